"""Data plane: streams requests to the Claude API and meters them. Read proxy.py first."""
