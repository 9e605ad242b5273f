"""All operations of the API."""

from typing import Final

from services.admin.resource import Operation
from services.admin.resources import (
    accounts,
    balance,
    channels,
    codes,
    incidents,
    key_batches,
    keys,
    members,
    operators,
    requests,
    rules,
    signing_in,
    statements,
    tokens,
    upstreams,
)
from services.admin.resources import credits as credit_entries

OPERATIONS: Final[tuple[Operation, ...]] = (
    *signing_in.OPERATIONS,
    *operators.OPERATIONS,
    *tokens.OPERATIONS,
    *accounts.OPERATIONS,
    *credit_entries.OPERATIONS,
    *members.OPERATIONS,
    *keys.OPERATIONS,
    *key_batches.OPERATIONS,
    *balance.OPERATIONS,
    *codes.OPERATIONS,
    *statements.OPERATIONS,
    *upstreams.OPERATIONS,
    *channels.OPERATIONS,
    *rules.OPERATIONS,
    *incidents.OPERATIONS,
    *requests.OPERATIONS,
)
