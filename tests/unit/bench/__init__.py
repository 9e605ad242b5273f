"""Tests of what benches compute and say."""
