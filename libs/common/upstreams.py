"""Upstream credentials as all gateways share them in Redis: the credentials, their breakers, and the slots of those with a cap.

A breaker is closed, open (nobody sends there), or half open: its time is up, and one request at a time may try. Which failure
opens it, and for how long, is said once here (`Breaker`) and once in lua/include/breaker.lua; a test holds the two together. A
gateway follows the first at once, and the second, which all gateways share, as soon as Redis answers.
"""

import asyncio
from collections.abc import Sequence
from typing import Final, Literal

import msgspec

from libs.common.events import UpstreamCredential
from libs.common.redisclient import RedisClient
from libs.common.scripts import Scripts

Kind = Literal["auth", "hold", "spend", "rate", "server", "connect"]
State = Literal["closed", "open", "half_open"]
_CREDENTIALS: Final = "{upstreams}credentials"
"""Hash: id → `<version> <JSON>`; of a deleted one only the version."""
_BREAKERS: Final = "{upstreams}breakers"
"""Hash: `<id>@<generation>` → breaker."""
_RANK: Final[dict[str, int]] = {"auth": 3, "hold": 3, "spend": 3, "rate": 2, "server": 1, "connect": 1}
_LASTING: Final = 3
"""The rank of what only the operator can mend: open until a try succeeds."""
_PASSING: Final = ("server", "connect")
_FAILURES_MAX: Final = 5
_LASTING_MS, _LASTING_MS_MAX = 30_000, 600_000
_BROKEN_MS, _BROKEN_MS_MAX = 5_000, 60_000
_OPENS_MAX: Final = 10
_RATE_S, _RATE_S_MIN, _RATE_S_MAX = 5.0, 1.0, 300.0
_PROBE_MS: Final = 30_000


class Breaker(msgspec.Struct, frozen=True, kw_only=True):
    """Milliseconds are those of Redis's clock."""

    kind: Kind | Literal[""] = ""
    """Why it is open, or what it has counted last."""
    failures: int = 0
    """In a row, while it is closed."""
    opens: int = 0
    """In a row, without a success in between: the time it stays open doubles."""
    since_ms: int = 0
    """When it opened; while it is closed, when it has failed last."""
    until_ms: int = 0
    """Open until then, half open afterwards; 0: closed."""
    probe_ms: int = 0
    """Until then somebody tries."""

    def state(self, now_ms: int) -> State:
        """Whether requests may go there."""
        if not self.until_ms:
            return "closed"
        return "open" if self.until_ms > now_ms else "half_open"

    @property
    def is_passing(self) -> bool:
        """Whether it is not closed for failures in a row only: for what the upstream may do to anybody."""
        return self.until_ms > 0 and self.kind in _PASSING

    def failed(self, kind: Kind, now_ms: int, *, rate_ms: int = 0) -> "Breaker":
        """After a failure. `rate_ms`: how long to stay away, for `rate`."""
        state = self.state(now_ms)
        since = now_ms if state == "closed" else self.since_ms
        rank = _RANK[kind]
        was_lasting = state == "half_open" and _RANK[self.kind] == _LASTING
        if state == "open" and rank <= _RANK[self.kind]:
            if kind == self.kind == "rate":
                return Breaker(kind=kind, since_ms=since, until_ms=max(self.until_ms, now_ms + rate_ms))
            return self
        if rank == _LASTING:
            opens = self.opens if was_lasting else 0
            return _opened(kind, opens, since, now_ms + min(_LASTING_MS << opens, _LASTING_MS_MAX))
        if kind == "rate":
            return Breaker(kind=kind, since_ms=since, until_ms=now_ms + rate_ms)
        if was_lasting:  # nobody knows whether it is mended
            return msgspec.structs.replace(self, until_ms=now_ms + _BROKEN_MS, probe_ms=0)
        if state == "half_open" or self.failures + 1 >= _FAILURES_MAX:
            return _opened(kind, self.opens, since, now_ms + min(_BROKEN_MS << self.opens, _BROKEN_MS_MAX))
        return Breaker(kind=kind, failures=self.failures + 1, since_ms=now_ms)

    def succeeded(self, now_ms: int) -> "Breaker":
        """After a success, which ends a row of failures; where more than that has opened it, the request was sent before."""
        return self if self.state(now_ms) == "open" and not self.is_passing else CLOSED

    def may_probe(self, now_ms: int) -> bool:
        """Whether one request may go there now: closed, or half open with nobody trying."""
        state = self.state(now_ms)
        return state == "closed" or (state == "half_open" and self.probe_ms <= now_ms)

    def probed(self, now_ms: int) -> "Breaker":
        """While somebody tries."""
        return msgspec.structs.replace(self, probe_ms=now_ms + _PROBE_MS)


def _opened(kind: Kind, opens_before: int, since_ms: int, until_ms: int) -> Breaker:
    return Breaker(kind=kind, opens=min(opens_before + 1, _OPENS_MAX), since_ms=since_ms, until_ms=until_ms)


CLOSED: Final = Breaker()


class Name(msgspec.Struct, frozen=True):
    """A credential as it was when it was used. Its breaker is that of this generation: a changed credential has a new one."""

    id: str
    generation: str
    """The version; of one that is not kept in Redis, any word that changes with it."""


class Stored(msgspec.Struct, frozen=True):
    """A credential with its version."""

    credential: UpstreamCredential
    version: int

    @property
    def name(self) -> Name:
        """Of its breaker."""
        return Name(self.credential.id, str(self.version))


class Shared(msgspec.Struct, frozen=True):
    """Everything but the slots, as of one moment."""

    now_ms: int
    credentials: list[Stored]
    """Disabled ones too, deleted ones not."""
    breakers: dict[Name, Breaker]
    """Of those that are absent, nothing is known against them: `CLOSED`."""

    def breaker(self, credential_id: str) -> Breaker | None:
        """Of a credential as it is now; None if there is no such credential."""
        names = [stored.name for stored in self.credentials if stored.credential.id == credential_id]
        return self.breakers.get(names[0], CLOSED) if names else None


class Seen(msgspec.Struct, frozen=True):
    """A breaker after a call. `breaker` is None if its credential was changed since."""

    now_ms: int
    breaker: Breaker | None


_encode: Final = msgspec.json.Encoder().encode
_decode: Final = msgspec.json.Decoder(UpstreamCredential).decode


def rate_ms(retry_after_s: float | None) -> int:
    """How long a credential is left alone after a 429: 1 s to 5 min, 5 s if the upstream does not say."""
    seconds = _RATE_S if retry_after_s is None else retry_after_s
    return int(min(max(seconds, _RATE_S_MIN), _RATE_S_MAX) * 1000)


class Upstreams:
    """See the module's docstring. Each call raises StoreUnavailable when Redis does not answer."""

    def __init__(self, redis: RedisClient, scripts: Scripts | None = None) -> None:
        self._scripts = scripts or Scripts(redis)

    async def put(self, credential: UpstreamCredential, version: int) -> bool:
        """Keep a credential and forget its breaker. False, and nothing done, if this version or a newer one is there."""
        text = b"" if credential.status == "deleted" else _encode(credential)
        reply = await self._scripts.call("upstream_put", 2, _CREDENTIALS, _BREAKERS, str(version), credential.id, text)
        return bool(reply)

    async def read_all(self) -> Shared:
        """What all gateways know."""
        now_ms, credentials, breakers = await self._scripts.call("upstream_read", 2, _CREDENTIALS, _BREAKERS)
        return Shared(
            now_ms,
            [stored for stored in map(_stored, credentials[1::2]) if stored is not None],
            {_name(field): _breaker(text) for field, text in zip(breakers[::2], breakers[1::2], strict=True)},
        )

    async def failed(self, name: Name, kind: Kind, *, retry_after_s: float | None = None) -> Seen:
        """Count a failure. `retry_after_s` is the upstream's word, for `rate`."""
        wait = str(rate_ms(retry_after_s))
        reply = await self._scripts.call(
            "breaker_failed", 2, _CREDENTIALS, _BREAKERS, name.id, name.generation, kind, wait
        )
        return Seen(reply[0], _breaker(reply[1]) if reply[1] else None)

    async def succeeded(self, name: Name) -> Seen:
        """Forget the failures and close the breaker, as `Breaker.succeeded` says."""
        now_ms, text = await self._scripts.call("breaker_succeeded", 1, _BREAKERS, name.id, name.generation)
        return Seen(now_ms, _breaker(text))

    async def take_probe(self, name: Name) -> tuple[bool, Seen]:
        """Whether this request may try a half-open credential: one at a time, for 30 s at most. True if it is closed."""
        reply = await self._scripts.call("breaker_probe", 1, _BREAKERS, name.id, name.generation, str(_PROBE_MS))
        return bool(reply[0]), Seen(reply[1], _breaker(reply[2]))

    async def take(self, credential_id: str, request_id: str, *, in_flight_max: int, lease_s: float) -> bool:
        """A slot for a request until it is released, or was not renewed for `lease_s`. False if all are taken."""
        lease_ms, cap = str(int(lease_s * 1000)), str(in_flight_max)
        return bool(await self._scripts.call("upstream_take", 1, _slots(credential_id), request_id, lease_ms, cap))

    # Not coroutines: the call goes out in this turn of the loop. Who does not wait for it hands it to `scripts.heed`.

    def renew(self, credential_id: str, request_id: str, *, lease_s: float) -> "asyncio.Future[int]":
        """Keep a slot. One that was lost is taken again: the request is under way, whatever the cap."""
        return self._scripts.call("upstream_take", 1, _slots(credential_id), request_id, str(int(lease_s * 1000)), "")

    def release(self, credential_id: str, request_id: str) -> "asyncio.Future[int]":
        """Give a slot back."""
        return self._scripts.call("upstream_release", 1, _slots(credential_id), request_id)

    async def in_flight(self, credential_ids: Sequence[str]) -> list[int]:
        """Slots taken of each, over all gateways."""
        if not credential_ids:
            return []
        keys = [_slots(credential_id) for credential_id in credential_ids]
        return list(await self._scripts.call("upstream_in_flight", len(keys), *keys))


def _slots(credential_id: str) -> str:
    return f"{{upstreams}}slots:{credential_id}"


def _stored(text: bytes) -> Stored | None:
    version, _, credential = text.partition(b" ")
    return Stored(_decode(credential), int(version)) if credential else None


def _name(field: bytes) -> Name:
    credential_id, _, generation = field.decode().rpartition("@")
    return Name(credential_id, generation)


def _breaker(text: bytes) -> Breaker:
    if not text:
        return CLOSED
    kind, *numbers = text.decode().split(" ")
    failures, opens, since, until, probe = map(int, numbers)
    return msgspec.convert(
        {"kind": kind, "failures": failures, "opens": opens, "since_ms": since, "until_ms": until, "probe_ms": probe},
        Breaker,
    )
