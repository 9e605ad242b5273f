"""A stand-in for the Claude API with an invoice of its own, for the demo and for tests. Read messages.py first.

    python -m libs.localstack.simulator --port P [--host 127.0.0.1] [--api-key KEY] [--gap-ms N]

How it answers is told by a scenario, `NAME[;param=value…]`: the request header `x-sim-scenario`, or, for callers that cannot
set headers, the body's `metadata.user_id` of the form `sim:NAME[;param=value…]`; the header wins. `scenarios.py` holds the
table, also served at `/_sim/scenarios`; a name it does not have is a 400. Without a scenario the answer is ordinary: prose of a
length that follows from the prompt and is bounded by `max_tokens`; thinking first when `thinking` asks for it; a call of a tool
when the last user text says `use the NAME tool`, with the input that follows the word `with` as JSON, or one made from the
tool's schema; after a tool's result, a text that quotes it.

The invoice: `/_sim/invoice[?sim_id=ID]` shows for each request to `/v1/messages` the tokens served, and the last that were sent;
`x-sim-id` is a request header by which a test finds its own. `/_sim/requests/{request-id}` shows what was received,
`/_sim/connections` what is open, and a POST to `/_sim/reset` forgets everything.

Layers: `app` routes · `messages` is the life of a message request · `errors`, `answers`, `variants`, `stream` decide, without
I/O, what is said · `delivery` writes it, as badly as the scenario wants · `http` is the wire.
"""
