"""Every figure about usage: one question, one answer, from the ledger. Read query.py first."""
