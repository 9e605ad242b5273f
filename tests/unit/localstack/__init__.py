"""Tests of unit/localstack. Read tests/conftest.py first."""
