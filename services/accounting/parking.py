"""Events no retry can fix are parked in DLQ with the reason: counted, alarmed by the log, dropped only by hand."""

import hashlib
import logging
from typing import Final

import msgspec
from nats.js.client import JetStreamContext

from libs.common import subjects
from libs.common.metrics import Metrics
from services.accounting.settlement import Patience

_log: Final = logging.getLogger("relay.parking")
_REASON_CHARS_MAX: Final = 500
_PAYLOAD_BYTES_MAX: Final = 1_000_000
"""nats-server takes 1 MiB with headers, and cuts the connection of who sends more."""
DELIVERIES_MIN: Final = 5
_AGE_S_MIN: Final[dict[Patience, float]] = {
    "poison": 0,
    "account": 86_400,  # its control event may be under way, or an operator rebuilds Redis
    "book": 86_400,  # the same, or the gateways were upgraded before accounting
    "store": float("inf"),
}


class Trouble(msgspec.Struct, frozen=True):
    """What keeps a message from being acknowledged: `payload` is what is parked when patience has an end."""

    payload: bytes
    patience: Patience
    reason: str


def is_hopeless(trouble: Trouble, *, deliveries: int, age_s: float) -> bool:
    """Whether it has been tried often enough, and for long enough, to be parked."""
    return deliveries >= DELIVERIES_MIN and age_s >= _AGE_S_MIN[trouble.patience]


async def park(
    jetstream: JetStreamContext, metrics: Metrics, subject: str, payload: bytes, reason: str, *, sequence: int
) -> None:
    """Publish to DLQ and wait for the acknowledgement; repeated, the server keeps one. Raises nats errors.

    `sequence`: where its message stands in the stream it came from. What is too large to travel with a reason is cut, and
    says so; the whole of it stays in that stream.
    """
    headers = {"Nats-Msg-Id": hashlib.sha256(payload).hexdigest()[:32], "Relay-Reason": one_line(reason)}
    headers["Relay-Sequence"] = str(sequence)
    if len(payload) > _PAYLOAD_BYTES_MAX:
        headers["Relay-Cut-From-Bytes"] = str(len(payload))
    ack = await jetstream.publish(subject, payload[:_PAYLOAD_BYTES_MAX], stream=subjects.STREAM_DLQ, headers=headers)
    if not ack.duplicate:
        metrics.add("relay_events_parked_total", subject)
        _log.error("parked on %s: %s", subject, one_line(reason))


def one_line(reason: str) -> str:
    """A reason as it may stand in a header or a log: printable ASCII, bounded."""
    text = " ".join(reason.split())[:_REASON_CHARS_MAX].encode("ascii", "replace").decode()
    return "".join(character if character.isprintable() else "?" for character in text)
