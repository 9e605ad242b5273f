"""When somebody is to be told: rules are measured, incidents open and close, notices wait in an outbox. Read watcher.py first."""
