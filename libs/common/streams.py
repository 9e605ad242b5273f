"""The NATS connection every service makes the same way, and the check that the streams are what they must be."""

import logging
from typing import Final

import nats.errors
from nats.aio.client import Client
from nats.js.api import StreamConfig
from nats.js.client import JetStreamContext
from nats.js.errors import NotFoundError

from libs.common import subjects

_log: Final = logging.getLogger("relay.nats")
_DRAIN_S: Final = 5
_CHECKED: Final = (
    "subjects", "storage", "retention", "discard", "deny_delete", "deny_purge", "max_age", "allow_atomic",
)  # fmt: skip


class StreamMissing(Exception):
    """A stream does not exist or is configured otherwise than `subjects.stream_configs` says. Run the bootstrap."""


async def connect(url: str, *, name: str, client: Client | None = None) -> Client:
    """Return when connected, however long that takes, and keep reconnecting for ever after.

    `url` may list several servers, separated by commas. Publishing while disconnected fails at once (`pending_size=0`).
    `client` is one made before, for a service that works without NATS and must not wait here.
    """
    client = client or Client()
    await client.connect(
        url.split(","),
        name=name,
        error_cb=_log_error,
        max_reconnect_attempts=-1,
        reconnect_time_wait=1,
        pending_size=0,
        drain_timeout=_DRAIN_S,
    )
    return client


async def close(client: Client) -> None:
    """Close, in whatever state it is: nats-py 2.16 raises when it is told to close while it is reconnecting."""
    if not (client.is_connected or client.is_connecting or client.is_reconnecting or client.is_draining):
        return
    try:
        await client.close()
    except (nats.errors.Error, OSError) as error:
        _log.warning("nats, while closing: %s", error or type(error).__name__)


async def _log_error(error: Exception) -> None:
    _log.warning("nats: %s", error or type(error).__name__)


async def create(jetstream: JetStreamContext, *, replicas: int, bytes_max: int) -> None:
    """Create the streams where they are missing, and bring them up to date. Only the bootstrap calls this; safe to repeat."""
    for config in subjects.stream_configs(replicas=replicas, bytes_max=bytes_max):
        try:
            found = (await jetstream.stream_info(str(config.name))).config
        except NotFoundError:
            await jetstream.add_stream(config)
            continue
        if _brought_up(found, to=config):
            await jetstream.update_stream(found)


def _brought_up(found: StreamConfig, *, to: StreamConfig) -> bool:
    """Whether it had to be changed."""
    is_changed = False
    if bool(found.allow_atomic) != bool(to.allow_atomic):
        # an older release made it: there were no changes of several entities then
        found.allow_atomic, is_changed = to.allow_atomic, True
    if 0 < (found.max_bytes or 0) < (to.max_bytes or 0):
        # more traffic than was thought of; never less, which might leave no room for what is there
        found.max_bytes, is_changed = to.max_bytes, True
    return is_changed


async def check(jetstream: JetStreamContext) -> None:
    """Raise StreamMissing unless every stream exists with the settings correctness rests on."""
    for wanted in subjects.stream_configs(replicas=1, bytes_max=1):
        try:
            found = (await jetstream.stream_info(str(wanted.name))).config
        except NotFoundError:
            raise StreamMissing(f"stream {wanted.name} does not exist") from None
        for field in (
            "subjects",
            "storage",
            "retention",
            "discard",
            "deny_delete",
            "deny_purge",
            "max_age",
            "allow_atomic",
        ):
            if (getattr(found, field) or None) != (getattr(wanted, field) or None):
                raise StreamMissing(f"stream {wanted.name}: {field} is {getattr(found, field)!r}")
