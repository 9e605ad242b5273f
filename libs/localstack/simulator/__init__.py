"""A stand-in for the Claude API with an invoice of its own, for the demo and for tests. Read messages.py first.

Scenarios are chosen by the request header `x-sim-scenario: NAME[;param=value…]`; `scenarios.py` holds their table, which is also
served at `/_sim/scenarios`. What was served stands at `/_sim/invoice`, what was received at `/_sim/requests/{request-id}`.
"""
