"""What an operator runs by hand: `python -m services.accounting reconcile | rebuild | replay | parked | rerate`."""
