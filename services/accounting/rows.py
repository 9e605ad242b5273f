"""Events as rows of the archive: pure, and in one place, so that a receipt can be recomputed from its row alone."""

from typing import Any, Final

import msgspec

from libs.common import clock, ids
from libs.common.events import Account, ApiKey, ControlChanged, Credit, UsageRecorded
from libs.common.pricing import Priced

Row = tuple[Any, ...]

USAGE_COLUMNS: Final = (
    "request_id",
    "version",
    "time",
    "account_id",
    "key_id",
    "path",
    "model_asked",
    "model_answered",
    "stream",
    "status",
    "outcome",
    "usage",
    "stop_reason",
    "cache_ttl_1h",
    "declined_models",
    "price_book_version",
    "multiplier_ppm",
    "line_models",
    "line_classes",
    "line_quantities",
    "line_unit_prices_attos",
    "line_amounts_nanos",
    "total_nanos",
    "upstream_request_id",
    "attempts",
    "first_byte_us",
    "duration_us",
    "bytes_in",
    "bytes_out",
    "client",
)
CREDIT_COLUMNS: Final = ("credit_id", "account_id", "time", "amount_nanos", "reason", "actor")
CONTROL_COLUMNS: Final = (
    "sequence",
    "kind",
    "entity_id",
    "account_id",
    "entity",
    "actor",
    "reason",
    "time",
)

_encode: Final = msgspec.json.Encoder(order="deterministic").encode


def usage_row(event: UsageRecorded, priced: Priced) -> Row:
    """A row of `usage`, in the order of USAGE_COLUMNS. Raises ValueError for a request id that is not one of ours."""
    lines = priced.lines
    return (
        event.request_id,
        event.version,
        clock.from_unix_ms(ids.id_time_ms(event.request_id)),
        event.account_id,
        event.key_id,
        event.path,
        event.model_asked,
        event.model_answered,
        event.stream,
        event.status,
        event.outcome,
        _encode(event.usage).decode(),
        event.stop_reason,
        event.cache_ttl_1h,
        list(event.declined_models),
        event.price_book_version,
        event.multiplier_ppm,
        [line.model for line in lines],
        [line.price_class for line in lines],
        [line.quantity for line in lines],
        [line.unit_price_attos for line in lines],
        [line.amount_nanos for line in lines],
        priced.total_nanos,
        event.upstream_request_id,
        event.attempts,
        event.first_byte_us,
        event.duration_us,
        event.bytes_in,
        event.bytes_out,
        event.client,
    )


def control_row(event: ControlChanged, sequence: int) -> Row:
    """A row of `control`, in the order of CONTROL_COLUMNS."""
    entity = event.entity
    return (
        sequence,
        kind_of(event),
        entity.id,
        entity.id if isinstance(entity, Account) else entity.account_id,
        _encode(entity).decode(),
        event.actor,
        event.reason,
        clock.from_unix_ms(event.at_ms),
    )


def credit_row(credit: Credit, actor: str) -> Row:
    """A row of `credits`, in the order of CREDIT_COLUMNS."""
    time = clock.from_unix_ms(credit.created_at_ms)
    return (credit.id, credit.account_id, time, credit.amount_nanos, credit.reason, actor)


def kind_of(event: ControlChanged) -> str:
    """`account`, `key` or `credit`."""
    match event.entity:
        case Account():
            return "account"
        case ApiKey():
            return "key"
        case Credit():
            return "credit"
