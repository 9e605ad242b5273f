"""Reads JetStream from a time on, for those who must see every message once: whole, in order, and told if one is missing."""

from collections.abc import AsyncIterator
from datetime import datetime
from typing import Final

import nats.errors
from nats.aio.msg import Msg
from nats.js.api import AckPolicy, ConsumerConfig, DeliverPolicy
from nats.js.client import JetStreamContext

from libs.common import clock

BEGINNING: Final = clock.from_unix_ms(0)
_BATCH: Final = 200
_FETCH_S: Final = 2.0
_FORGOTTEN_S: Final = 60.0
"""After which the server forgets a reader that died."""


class LogTorn(nats.errors.Error):
    """A message of the log did not arrive: what was read is not all there is."""


async def read(jetstream: JetStreamContext, stream: str, subject: str, since: datetime) -> AsyncIterator[list[Msg]]:
    """All messages from a time on, up to the one that is the last now. Raises LogTorn, errors of NATS, TimeoutError."""
    state = (await jetstream.stream_info(stream)).state
    if state.messages == 0:
        return
    config = ConsumerConfig(
        deliver_policy=DeliverPolicy.BY_START_TIME,
        opt_start_time=since,
        ack_policy=AckPolicy.NONE,
        inactive_threshold=_FORGOTTEN_S,
    )
    subscription = await jetstream.pull_subscribe(subject, stream=stream, config=config)
    count = 0
    try:
        while (await subscription.consumer_info()).num_pending:
            messages = await subscription.fetch(_BATCH, timeout=_FETCH_S)
            for message in messages:  # nothing is acknowledged, so what is lost on the way does not come again
                count += 1
                if message.metadata.sequence.consumer != count:
                    raise LogTorn(f"message {count} of {stream} was lost on the way")
            yield messages
            if messages[-1].metadata.sequence.stream >= state.last_seq:
                return
    finally:
        await subscription.unsubscribe()
