"""Control plane: the REST API over accounts, members, keys, credits, upstreams and the ledger. Read app.py first."""
