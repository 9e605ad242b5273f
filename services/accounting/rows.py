"""Events as rows of the archive: pure, and in one place, so that a receipt can be recomputed from its row alone."""

from collections.abc import Sequence
from datetime import datetime
from typing import Any, Final

import msgspec

from libs.common import clock, ids
from libs.common.events import (
    Account,
    Attempt,
    ControlChanged,
    Correction,
    Credit,
    RefusalsCounted,
    UsageRecorded,
)
from libs.common.pricing import Priced

Row = tuple[Any, ...]

USAGE_COLUMNS: Final = (
    "request_id",
    "version",
    "time",
    "account_id",
    "key_id",
    "member_id",
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
    "attempt_upstreams",
    "attempt_statuses",
    "attempt_errors",
    "attempt_durations_us",
    "first_byte_us",
    "duration_us",
    "bytes_in",
    "bytes_out",
    "client",
    "corrects_version",
    "corrects_total_nanos",
    "correction_reason",
    "correction_actor",
)
CREDIT_COLUMNS: Final = (
    "credit_id",
    "account_id",
    "time",
    "amount_nanos",
    "reason",
    "actor",
    "kind",
    "expires_at",
    "about_id",
)
REFUSAL_COLUMNS: Final = ("account_id", "minute", "key_id", "member_id", "reason", "gateway_id", "refused")
CONTROL_COLUMNS: Final = (
    "sequence",
    "kind",
    "entity_id",
    "account_id",
    "entity",
    "actor",
    "reason",
    "time",
    "address",
    "previous",
    "sha256",
)

_COLUMN_MAX: Final = {
    "version": 2**8 - 1,
    "status": 2**16 - 1,
    "multiplier_ppm": 2**32 - 1,
    "first_byte_us": 2**63 - 1,
    "duration_us": 2**63 - 1,
    "bytes_in": 2**63 - 1,
    "bytes_out": 2**63 - 1,
}
"""What a column holds. One value beyond it would make ClickHouse's client refuse the whole batch, again and again."""
_ATTEMPTS_MAX: Final = 2**8 - 1
TIME_MS_MIN: Final = 1_577_836_800_000  # 2020-01-01
TIME_MS_MAX: Final = 4_102_444_800_000  # 2100-01-01: DateTime64 ends in 2299, and months are partitions

_NEVER: Final = clock.from_unix_ms(0)
_encode: Final = msgspec.json.Encoder(order="deterministic").encode


def usage_row(event: UsageRecorded, priced: Priced) -> Row:
    """A row of `usage`, in the order of USAGE_COLUMNS.

    Raises ValueError for a request id that is not one of ours, and for a number that its column cannot hold.
    """
    _check(event)
    lines = priced.lines
    return (
        event.request_id,
        event.version,
        _time(ids.id_time_ms(event.request_id)),
        event.account_id,
        event.key_id,
        event.member_id,
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
        min(len(event.tries), _ATTEMPTS_MAX),
        [one.upstream_id for one in event.tries],
        [one.status for one in event.tries],
        [one.error for one in event.tries],
        [one.duration_us for one in event.tries],
        event.first_byte_us,
        event.duration_us,
        event.bytes_in,
        event.bytes_out,
        event.client,
        *_correction(event),
    )


def _check(event: UsageRecorded) -> None:
    for name, largest in _COLUMN_MAX.items():
        if not 0 <= getattr(event, name) <= largest:
            raise ValueError(f"{name} is out of range")
    if not all(0 <= one.status < 2**16 and 0 <= one.duration_us < 2**63 for one in event.tries):
        raise ValueError("an attempt is out of range")
    if event.version == 0:
        raise ValueError("versions begin at 1")


def _correction(event: UsageRecorded) -> Row:
    if event.corrects is None:
        return (0, 0, "", "")
    corrects = event.corrects
    if not (0 < corrects.version < event.version and 0 <= corrects.total_nanos < 2**63):
        raise ValueError("no correction of an earlier version")
    return (corrects.version, corrects.total_nanos, corrects.reason, corrects.actor)


def event_of(row: Sequence[Any]) -> UsageRecorded:
    """The event of a row of `usage` in the order of USAGE_COLUMNS: the inverse of `usage_row`, so that nothing is lost.

    Raises msgspec.MsgspecError.
    """
    of = dict(zip(USAGE_COLUMNS, row, strict=True))
    tries = zip(
        of["attempt_upstreams"],
        of["attempt_statuses"],
        of["attempt_errors"],
        of["attempt_durations_us"],
        strict=True,
    )
    corrects = None
    if of["corrects_version"]:
        corrects = Correction(
            version=of["corrects_version"],
            total_nanos=of["corrects_total_nanos"],
            reason=of["correction_reason"],
            actor=of["correction_actor"],
        )
    same = {name: of[name] for name in UsageRecorded.__struct_fields__ if name in of}
    return UsageRecorded(
        **same
        | {
            "usage": msgspec.json.decode(of["usage"]),
            "declined_models": tuple(of["declined_models"]),
            "tries": tuple(Attempt(upstream_id=a, status=b, error=c, duration_us=d) for a, b, c, d in tries),
            "corrects": corrects,
        }
    )


def control_row(event: ControlChanged, sequence: int, sha256: str = "") -> Row:
    """A row of `control`, in the order of CONTROL_COLUMNS; `sha256` is of the message. Raises ValueError for an odd time."""
    entity = event.entity
    return (
        sequence,
        kind_of(event),
        entity.id,
        account_of(event),
        _encode(entity).decode(),
        event.actor,
        event.reason,
        _time(event.at_ms),
        event.address,
        event.previous,
        sha256,
    )


def credit_row(credit: Credit, actor: str) -> Row:
    """A row of `credits`, in the order of CREDIT_COLUMNS. Raises ValueError for a time that cannot be."""
    time = _time(credit.created_at_ms)
    expires_at = _time(credit.expires_at_ms) if credit.expires_at_ms else _NEVER
    return (
        credit.id,
        credit.account_id,
        time,
        credit.amount_nanos,
        credit.reason,
        actor,
        credit.kind,
        expires_at,
        credit.about_id,
    )


def account_of(event: ControlChanged) -> str:
    """Whose entity it is; empty for what belongs to no account."""
    return event.entity.id if isinstance(event.entity, Account) else str(getattr(event.entity, "account_id", ""))


def refusal_row(count: RefusalsCounted) -> Row:
    """A row of `refusals`, in the order of REFUSAL_COLUMNS. Raises ValueError for what no gateway can have counted."""
    minute = _time(count.minute * 60_000)
    if not 0 < count.refused < 2**63:
        raise ValueError("refused is out of range")
    return (count.account_id, minute, count.key_id, count.member_id, count.reason, count.gateway_id, count.refused)


def _time(value_ms: int) -> datetime:
    if not TIME_MS_MIN <= value_ms < TIME_MS_MAX:
        raise ValueError(f"no time of an event: {value_ms} ms")
    return clock.from_unix_ms(value_ms)


def kind_of(event: ControlChanged) -> str:
    """`account`, `member`, `key`, `upstream`, `credit`, …: the tag of the entity, and the name inside its subject."""
    return str(event.entity.__struct_config__.tag)
