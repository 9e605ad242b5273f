"""`make bench-scaling`: what a replica, a key, an account and an open connection cost. START HERE: __main__.py."""
