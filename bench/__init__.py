"""What a request costs, side by side in one run. START HERE: compare.py."""
