"""All operations of the API."""

from typing import Final

from services.admin.resource import Operation
from services.admin.resources import (
    accounts,
    audit,
    balance,
    channels,
    codes,
    incidents,
    key_batches,
    keys,
    members,
    models,
    operators,
    prices,
    reports,
    requests,
    rules,
    signing_in,
    statements,
    tokens,
    upstreams,
    usage,
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
    *usage.OPERATIONS,
    *reports.OPERATIONS,
    *prices.OPERATIONS,
    *models.OPERATIONS,
    *audit.OPERATIONS,
)
