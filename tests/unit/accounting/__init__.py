"""Tests of unit/accounting. Read tests/conftest.py first."""
