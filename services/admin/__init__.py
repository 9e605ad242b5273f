"""Control plane: the REST API over accounts, keys, credits and the ledger. Read app.py first."""
