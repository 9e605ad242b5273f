"""NATS, Redis, ClickHouse's engine and a Claude API simulator as local processes. Read run.py first."""
