"""Admission in Redis: what one script call decides and takes, and how it is given back (lua/admit, check, renew, finish, reap).

A lease is the in-flight slot of a request and the hold on its account's money. It is taken by `admit`, lives on by `renew`, and
ends with `finish`; the hold stays until the request's event is settled, whoever brings that event.
"""

import asyncio
from collections.abc import Sequence
from typing import Any, Final, Literal

import msgspec
from redis.exceptions import RedisError

from libs.common import ids, rediskeys
from libs.common.limits import Scope
from libs.common.redisclient import RedisClient
from libs.common.scripts import Scripts, StoreUnavailable

_MEMBER_TRIES: Final = 3
_CLAIM_MS: Final = 30_000
_FIGURES: Final = 9
_NO_LEASE: Final = ("", "0", "0", "0", "-")
_OLD_LEASE_FIELDS: Final = 5
"""Of a lease that was taken before leases named their key."""
Answered = asyncio.Future[bytes]
Reason = Literal[
    "key", "member", "account", "expired", "address", "model", "requests", "input", "output", "in_flight", "budget",
    "budget_held", "balance", "balance_held", "free", "closed",
]  # fmt: skip


class Admission(msgspec.Struct, frozen=True, kw_only=True):
    """What a message request asks for."""

    request_id: str
    account_id: str
    key_id: str
    address: str
    """The caller's, 32 hex digits (addresses.py)."""
    models: tuple[str, ...]
    """Ids of the price book: asked for, fallbacks, advisors."""
    input_tokens: int
    """Estimated."""
    hold_nanos: int
    """At public prices."""
    memo: bytes
    """What the reaper is to publish if nobody else can: a `UsageRecorded` as JSON, its multiplier and member still to be
    filled in."""


class Window(msgspec.Struct, frozen=True):
    """A bucket as the caller may see it."""

    limit: int
    """A minute."""
    remaining: int
    reset_s: int
    """Unix second at which it is full again."""


class Figures(msgspec.Struct, frozen=True):
    """Of account, member and key the one that has least left; None where nothing limits."""

    requests: Window | None
    input: Window | None
    output: Window | None


class Lease(msgspec.Struct, frozen=True):
    """Names what a request has taken."""

    account_id: str
    key_id: str
    member_id: str
    request_id: str


class Granted(msgspec.Struct, frozen=True, kw_only=True):
    """A request may go upstream, on these terms."""

    lease: Lease
    multiplier_ppm: int
    on_disconnect: Literal["drain", "cancel"]
    hold_nanos: int
    """The account's multiplier included."""
    figures: Figures


class Refused(msgspec.Struct, frozen=True, kw_only=True):
    """A request may not go upstream. Nothing was changed."""

    reason: Reason
    scope: Scope
    """Whose limit it is."""
    detail: str = ""
    """The status (key, member, account), the model, the address, or the period of a budget: day, week, month, total."""
    limit: int = 0
    """The cap: a minute's worth, slots, nano-dollars of the budget; of a balance what is available."""
    value: int = 0
    """What there is: left in the bucket, in flight, spent of the budget, held of the balance. Of `closed`: 1 if this very
    request was admitted before and must be undone."""
    needed: int = 0
    """What this request asked for: tokens, or nano-dollars to hold."""
    wait_ms: int = 0
    """Until exactly this request would pass; 0 where nobody knows, or waiting does not help."""
    reset_s: int = 0
    """Unix second at which the bucket is full or the budget's period ends; 0: never."""
    multiplier_ppm: int = 0
    figures: Figures | None = None
    """None where it is not clear who calls."""


class Checked(msgspec.Struct, frozen=True):
    """A request to a path that costs nothing may pass."""

    models: frozenset[str]
    """Ids of the price book the key may use; empty: all."""
    figures: Figures


class Expired(msgspec.Struct, frozen=True, kw_only=True):
    """A lease nobody has renewed."""

    account_id: str
    key_id: str = ""
    member_id: str
    request_id: str
    hold_nanos: int
    multiplier_ppm: int
    memo: bytes


class Leases:
    """See the module's docstring. All calls may be repeated; each raises StoreUnavailable when Redis does not answer."""

    def __init__(self, redis: RedisClient, scripts: Scripts | None = None, *, lease_ms: int = 60_000) -> None:
        self._redis = redis
        self._scripts = scripts or Scripts(redis)
        self._lease_ms = str(lease_ms)
        self._members: dict[str, str] = {}
        """By key: its member when last seen. Only a guess, which the script checks."""

    async def admit(self, admission: Admission) -> Granted | Refused:
        """Decide, and take everything or nothing. After StoreUnavailable it may have been taken: `void` it."""
        account_id, key_id, request_id = admission.account_id, admission.key_id, admission.request_id
        arguments = (
            admission.address,
            ",".join(admission.models),
            str(admission.input_tokens),
            str(admission.hold_nanos),
            self._lease_ms,
            admission.memo,
        )
        for _ in range(_MEMBER_TRIES):
            lease = self.lease_of(admission)
            keys = _admit_keys(lease)
            reply = await self._scripts.call(
                "admit", len(keys), *keys, request_id, f"{account_id} {request_id}", lease.member_id, *arguments
            )
            match reply[0]:
                case b"OK":
                    return _granted(lease, reply)
                case b"REJECTED":
                    return _refused(reply)
                case b"MEMBER":
                    self._members[key_id] = reply[1].decode()
                case _:
                    break
        raise StoreUnavailable("the request was given up, or its key is being moved")

    def lease_of(self, admission: Admission) -> Lease:
        """The lease that admission has taken, or would have."""
        member_id = self._members.get(admission.key_id, "")
        return Lease(admission.account_id, admission.key_id, member_id, admission.request_id)

    def member_of(self, key_id: str) -> str:
        """The member a key belonged to when it was last seen here; empty if it is the account's own, or was never seen."""
        return self._members.get(key_id, "")

    async def check(
        self, account_id: str, key_id: str, *, address: str, models: Sequence[str] = ()
    ) -> Checked | Refused:
        """Decide for a path that costs nothing: key, address, models, and the bucket of such requests."""
        for _ in range(_MEMBER_TRIES):
            member_id = self._members.get(key_id, "")
            reply = await self._scripts.call(
                "check",
                3,
                rediskeys.account(account_id),
                rediskeys.api_key(account_id, key_id),
                rediskeys.member(account_id, member_id),
                member_id,
                address,
                ",".join(models),
            )
            match reply[0]:
                case b"OK":
                    allowed = frozenset(reply[1].decode().strip(",").split(",")) - {""}
                    return Checked(allowed, Figures(_window(reply, 2), None, None))
                case b"REJECTED":
                    return _refused(reply)
                case _:
                    self._members[key_id] = reply[1].decode()
        raise StoreUnavailable("the key is being moved from member to member")

    # Not coroutines: the call goes out in a moment, also from where nothing may be awaited. Each gives b"OK", or
    # b"LOST" if there is no such lease open; who does not wait for it hands it to `scripts.heed`.

    def renew(self, lease: Lease, *, input_tokens: int | None = None, in_flight: bool = True) -> Answered:
        """Keep a lease. `input_tokens`: the true ones take the estimate's place. Not `in_flight`: only the hold is kept."""
        keys = _lease_keys(lease)
        told = "" if input_tokens is None else str(input_tokens)
        return self._scripts.call(
            "renew",
            len(keys),
            *keys,
            lease.request_id,
            _entry(lease),
            self._lease_ms,
            told,
            "1" if in_flight else "0",
            patient=True,
        )

    def finish(self, lease: Lease, *, input_tokens: int, output_tokens: int, cost_nanos: int | None) -> Answered:
        """Give back the slots, put the buckets right, hold what it cost (None: what was held) until that is settled."""
        return self._finish(lease, input_tokens, output_tokens, cost_nanos, void=False)

    def void(self, lease: Lease) -> Answered:
        """Undo an admission that was never used: as if it had not been. One that arrives later is refused."""
        return self._finish(lease, 0, 0, None, void=True)

    async def reap(self, partition: int, *, grace_ms: int, count: int) -> list[Expired]:
        """Up to `count` leases of a partition that ended more than `grace_ms` ago. They are the caller's for 30 s."""
        index = rediskeys.lease_index(partition)
        entries = await self._scripts.call("reap", 1, index, str(grace_ms), str(count), str(_CLAIM_MS))
        found = [tuple(entry.decode().split(" ")) for entry in entries]
        read = await self._read(found)
        await self._forget(index, [names for names, lease in zip(found, read, strict=True) if lease is None])
        return [lease for lease in read if lease is not None]

    async def throttle(self, group: str, *, per_minute: int) -> int:
        """Count one attempt of an address with a key that does not exist; 0, or milliseconds until it may try again."""
        return int(await self._scripts.call("throttle", 1, rediskeys.throttled(group), str(per_minute)))

    def _finish(
        self, lease: Lease, input_tokens: int, output_tokens: int, cost_nanos: int | None, *, void: bool
    ) -> Answered:
        keys = _lease_keys(lease)
        return self._scripts.call(
            "finish",
            len(keys),
            *keys,
            lease.request_id,
            _entry(lease),
            self._lease_ms,
            str(input_tokens),
            str(output_tokens),
            "" if cost_nanos is None else str(cost_nanos),
            "1" if void else "0",
            patient=not void,
        )

    async def _read(self, names: Sequence[tuple[str, ...]]) -> list[Expired | None]:
        """None for what was given up, or settled meanwhile."""
        pipeline = self._redis.pipeline(transaction=False)
        for account_id, request_id in names:
            pipeline.hmget(rediskeys.leases(account_id), [request_id, f"{request_id}:memo"])
        try:
            replies: list[Any] = await pipeline.execute() if names else []
        except (RedisError, OSError) as error:
            raise StoreUnavailable(str(error)) from error
        return [
            _expired(account_id, request_id, *fields)
            for (account_id, request_id), fields in zip(names, replies, strict=True)
        ]

    async def _forget(self, index: str, names: Sequence[tuple[str, ...]]) -> None:
        pipeline = self._redis.pipeline(transaction=False)
        for account_id, request_id in names:
            pipeline.hdel(rediskeys.leases(account_id), request_id)
            pipeline.zrem(index, f"{account_id} {request_id}")
        try:
            if names:
                await pipeline.execute()
        except (RedisError, OSError) as error:
            raise StoreUnavailable(str(error)) from error


def _expired(account_id: str, request_id: str, text: bytes | None, memo: bytes | None) -> Expired | None:
    fields = text.decode().split(" ") if text else _NO_LEASE
    state, hold, multiplier, _, member_id = fields[:_OLD_LEASE_FIELDS]
    if state not in ("o", "f"):
        return None
    return Expired(
        account_id=account_id,
        key_id="".join(fields[_OLD_LEASE_FIELDS:]),
        member_id=member_id.strip("-"),
        request_id=request_id,
        hold_nanos=int(hold),
        multiplier_ppm=int(multiplier),
        memo=memo or b"",
    )


def _entry(lease: Lease) -> str:
    return f"{lease.account_id} {lease.request_id}"


def _admit_keys(lease: Lease) -> tuple[str, ...]:
    account_id = lease.account_id
    return (
        rediskeys.account(account_id),
        rediskeys.api_key(account_id, lease.key_id),
        rediskeys.member(account_id, lease.member_id),
        rediskeys.leases(account_id),
        rediskeys.lease_index(ids.partition(account_id)),
        rediskeys.slots(account_id, account_id),
        rediskeys.slots(account_id, lease.key_id),
        rediskeys.slots(account_id, lease.member_id),
        rediskeys.gate(ids.partition(account_id)),
    )


def _lease_keys(lease: Lease) -> list[str]:
    account_id = lease.account_id
    keys = [
        rediskeys.leases(account_id),
        rediskeys.lease_index(ids.partition(account_id)),
        rediskeys.account(account_id),
        rediskeys.slots(account_id, account_id),
        rediskeys.api_key(account_id, lease.key_id),
        rediskeys.slots(account_id, lease.key_id),
    ]
    if lease.member_id:
        keys += [rediskeys.member(account_id, lease.member_id), rediskeys.slots(account_id, lease.member_id)]
    return keys


def _granted(lease: Lease, reply: Sequence[Any]) -> Granted:
    return Granted(
        lease=lease,
        multiplier_ppm=int(reply[1]),
        on_disconnect=reply[2].decode(),
        hold_nanos=reply[3],
        figures=Figures(_window(reply, 4), _window(reply, 7), _window(reply, 10)),
    )


def _refused(reply: Sequence[Any]) -> Refused:
    at = 10
    figures = None
    if len(reply) == at + _FIGURES:
        figures = Figures(_window(reply, at), _window(reply, at + 3), _window(reply, at + 6))
    elif len(reply) > at:
        figures = Figures(_window(reply, at), None, None)
    return Refused(
        reason=reply[1].decode(),
        scope=reply[2].decode(),
        detail=reply[3].decode(),
        limit=reply[4],
        value=reply[5],
        needed=reply[6],
        wait_ms=-(-reply[7] // 1000),
        reset_s=reply[8],
        multiplier_ppm=reply[9],
        figures=figures,
    )


def _window(reply: Sequence[Any], at: int) -> Window | None:
    return Window(*reply[at : at + 3]) if reply[at] else None
