"""Tests. Read e2e/relay.py first."""
