"""Tests of unit/gateway. Read tests/conftest.py first."""
