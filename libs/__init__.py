"""Code the services share. Read common/events.py first."""
