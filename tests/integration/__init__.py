"""Tests of integration. Read tests/conftest.py first."""
