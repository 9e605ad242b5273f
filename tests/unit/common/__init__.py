"""Tests of unit/common. Read tests/conftest.py first."""
