"""Tests of unit/admin. Read tests/conftest.py first."""
