"""What accounting has not done yet, as the streams tell: events that are parked, and how old the oldest unsettled one is."""

import json
from collections.abc import Callable
from datetime import datetime
from typing import Any, Final

import nats.errors
from nats.aio.client import Client
from nats.js.errors import APIError

from libs.common import clock, subjects
from services.admin.problems import Unavailable

_REPLY_S: Final = 2.5
_ERRORS: Final = (nats.errors.Error, APIError, OSError, TimeoutError)
_MESSAGE_API: Final = f"$JS.API.STREAM.MSG.GET.{subjects.STREAM_USAGE}"
_AWAY: Final = "The streams do not answer."


class Backlog:
    """Asks the server of the streams. Each question raises Unavailable."""

    def __init__(self, broker: Client, now_ms: Callable[[], int] = clock.unix_ms) -> None:
        self._broker = broker
        self._jetstream = broker.jetstream(timeout=_REPLY_S)
        self._now_ms = now_ms

    async def parked(self) -> int:
        """How many messages are parked and not decided about. What was decided stands beside them, once for each."""
        self._check_connected()
        try:
            info = await self._jetstream.stream_info(subjects.STREAM_DLQ, subjects_filter="dlq.>")
        except _ERRORS:
            raise Unavailable(_AWAY) from None
        counts = info.state.subjects or {}
        decided = counts.pop(subjects.DLQ_RESOLVED, 0)
        return max(sum(counts.values()) - decided, 0)

    async def lag_s(self) -> int:
        """Age of the oldest message of USAGE that accounting has not acknowledged; 0 if there is none."""
        self._check_connected()
        try:
            info = await self._jetstream.consumer_info(subjects.STREAM_USAGE, subjects.CONSUMER_ACCOUNTING)
            if not info.num_pending and not info.num_ack_pending:
                return 0
            floor = info.ack_floor.stream_seq if info.ack_floor else 0
            question = json.dumps({"seq": floor + 1, "next_by_subj": "usage.>"}).encode()
            reply = json.loads((await self._broker.request(_MESSAGE_API, question, timeout=_REPLY_S)).data)
        except (*_ERRORS, ValueError):
            raise Unavailable(_AWAY) from None
        if "message" not in reply:
            return 0  # acknowledged in the meantime, or too old to be kept
        return max((self._now_ms() - _time_ms(reply["message"])) // 1000, 0)

    def _check_connected(self) -> None:
        if not self._broker.is_connected:
            raise Unavailable(_AWAY)


def _time_ms(message: dict[str, Any]) -> int:
    """The server writes nanoseconds, in as many digits as it needs."""
    whole = str(message["time"])[:19]
    return clock.to_unix_ms(datetime.fromisoformat(f"{whole}+00:00"))
