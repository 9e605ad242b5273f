"""The whole relay against the simulator. Read relay.py first."""
