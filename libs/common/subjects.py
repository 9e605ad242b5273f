"""Names of JetStream streams, subjects and consumers, and how the streams are configured (RELIABILITY.md, settings)."""

from typing import Final

from nats.js.api import DiscardPolicy, RetentionPolicy, StorageType, StreamConfig

STREAM_USAGE: Final = "USAGE"
STREAM_CONTROL: Final = "CONTROL"
STREAM_DLQ: Final = "DLQ"
CONSUMER_ACCOUNTING: Final = "accounting"
DLQ_USAGE: Final = "dlq.usage"
DLQ_CONTROL: Final = "dlq.control"
DLQ_RESOLVED: Final = "dlq.resolved"
"""What was decided about parked messages: nothing in DLQ is ever deleted."""

USAGE_EVENTS: Final = "usage.v1.>"
"""What concerns money in USAGE; refusals, which are only counted, stand beside it."""
_REFUSED: Final = "usage.refused."

_DAY_S: Final = 86_400
_DUPLICATE_WINDOW_S: Final = 2 * 3600


def usage_subject(partition: int) -> str:
    """`usage.v1.p07`: all usage of the accounts of one partition."""
    return f"usage.v1.p{partition:02d}"


def refused_subject(partition: int) -> str:
    """`usage.refused.p07`: how many requests of the accounts of one partition were refused."""
    return f"{_REFUSED}p{partition:02d}"


def is_refused(subject: str) -> bool:
    """Whether messages of this subject count refusals."""
    return subject.startswith(_REFUSED)


def control_subject(kind: str, entity_id: str) -> str:
    """`control.key.key_…`: every change of one entity, so that its last sequence is its compare-and-set."""
    return f"control.{kind}.{entity_id}"


def stream_configs(*, replicas: int, bytes_max: int) -> list[StreamConfig]:
    """The three streams. `bytes_max` is per stream; keep it well under the disk, a full one shows only as time-outs."""

    def config(name: str, subjects: list[str], age_s: int, *, allow_atomic: bool = False) -> StreamConfig:
        return StreamConfig(
            name=name,
            subjects=subjects,
            storage=StorageType.FILE,
            num_replicas=replicas,
            retention=RetentionPolicy.LIMITS,
            discard=DiscardPolicy.NEW,
            deny_delete=True,
            deny_purge=True,
            max_bytes=bytes_max,
            max_age=age_s,
            duplicate_window=_DUPLICATE_WINDOW_S,
            allow_atomic=allow_atomic or None,
        )

    return [
        config(STREAM_USAGE, ["usage.>"], 30 * _DAY_S),
        config(STREAM_CONTROL, ["control.>"], 0, allow_atomic=True),
        config(STREAM_DLQ, ["dlq.>"], 0),
    ]
