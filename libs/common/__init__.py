"""The words every service shares: ids, money, usage, prices, events, the shape of Redis. Read events.py first."""
