"""What a request costs, side by side in one run. Read smoke.py first."""
