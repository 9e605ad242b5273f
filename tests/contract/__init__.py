"""Tests of contract. Read tests/conftest.py first."""
