"""Events to ledger rows and balances. Read settlement.py first."""
