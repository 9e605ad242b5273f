"""`make chaos`: the whole relay under load and faults, and a ledger that must come out right. Read stages.py first."""
