"""Events no retry can fix are parked in DLQ with the reason: counted, alarmed by the log, dropped only by hand."""

import hashlib
import logging
from typing import Final

from nats.js.client import JetStreamContext

from libs.common import subjects
from libs.common.metrics import Metrics

_log: Final = logging.getLogger("relay.parking")
_REASON_CHARS_MAX: Final = 500


async def park(jetstream: JetStreamContext, metrics: Metrics, subject: str, payload: bytes, reason: str) -> None:
    """Publish to DLQ and wait for the acknowledgement; repeated, the server keeps one. Raises nats errors."""
    one_line = " ".join(reason.split())[:_REASON_CHARS_MAX].encode("ascii", "replace").decode()
    headers = {"Nats-Msg-Id": hashlib.sha256(payload).hexdigest()[:32], "Relay-Reason": one_line}
    ack = await jetstream.publish(subject, payload, stream=subjects.STREAM_DLQ, headers=headers)
    if not ack.duplicate:
        metrics.add("relay_events_parked_total", subject)
        _log.error("parked on %s: %s", subject, one_line)
