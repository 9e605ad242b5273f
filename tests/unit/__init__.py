"""Tests of unit. Read tests/conftest.py first."""
