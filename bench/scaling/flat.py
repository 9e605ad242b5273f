"""Whether a request costs the same however many keys, accounts and open connections there are."""

import contextlib
import statistics
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Final

from bench.rig import BenchFailed
from bench.scaling import figures
from bench.scaling.figures import Figure, Figures
from bench.scaling.load import Plan, key_of
from bench.scaling.stack import Run, Stack, send
from libs.common import apikeys, ids, rediskeys

ROUNDS: Final = 3
BUSY: Final = 16
"""Connections of the load, all of them busy: how many requests meet in one turn of a loop decides what each costs, and must not
change with the weather of the machine."""
REQUESTS: Final = 1_000
KEYS: Final = (1, 1_000, 100_000)
ACCOUNTS: Final = (1, 100, 1_000)
KEYS_OF_ACCOUNTS: Final = 1_000
STREAMS: Final = {"gateway-1": 1, "gateway-2": 100, "gateway-3": 1_000}
IDLE: Final = {"gateway-1": 1, "gateway-3": 100, "gateway-2": 10_000}
"""The most are at another gateway than the most streams were, whose memory would be used again."""
_CONNECTIONS_PER_S: Final = 3_000
_STREAMS_PER_S: Final = 200
_IDLE_S: Final = 2.0
_RENEWAL_S: Final = 20.0
"""In which each lease is renewed once."""
_RESTORED_AT_ONCE: Final = 1_000


@dataclass
class Level:
    """One quantity of something, and what requests cost with it: CPU of the gateway and of Redis, less what they use unasked."""

    title: str
    gateway_us: list[float] = field(default_factory=list)
    redis_us: list[float] = field(default_factory=list)
    beside_us: dict[str, list[float]] = field(default_factory=lambda: defaultdict(list))
    runs: list[Run] = field(default_factory=list)

    def add(self, run: Run, gateway: str, idle: dict[str, float]) -> str:
        """Take a run of this level; what to say of it."""
        costs = {name: run.us(name, idle) for name in run.cpu_s}
        self.gateway_us.append(costs[gateway])
        self.redis_us.append(costs["redis"])
        self.runs.append(run)
        for name in ("nats", "accounting"):
            self.beside_us[name].append(costs[name])
        return f"  {self.title}: gateway {costs[gateway]:.0f} us, redis {costs['redis']:.0f} us"


Say = Callable[[str], None]


def keys(stack: Stack, say: Say) -> tuple[list[Level], Level, Figures]:
    """Keys of as many accounts, through one gateway that has seen them all; and keys it sees for the first time."""
    before = int(stack.redis.info("memory")["used_memory"])
    multiply(stack, "key", KEYS[-1], KEYS[-1])
    found = {
        "gateway_bytes": Figure(stack.rss("gateway-1"), "bytes of a gateway that has just started"),
    }
    bytes_each = (int(stack.redis.info("memory")["used_memory"]) - before) / KEYS[-1]
    url = stack.gateways["gateway-2"]
    first, idle = Level("100,000 keys, each new to the gateway"), stack.idle_cpu(_IDLE_S)
    say(first.add(stack.measure(_plan(url, "key", KEYS[-1])), "gateway-2", idle))
    _make_known(stack, "gateway-1", "key", KEYS[-1])
    known_bytes = (stack.rss("gateway-1") - found["gateway_bytes"].value) / KEYS[-1]
    found["known_key_bytes"] = Figure(known_bytes, "bytes of a gateway for a key it has seen, of 100,000")
    levels = _rounds(stack, "gateway-1", [(_several(count, "key"), "key", count) for count in KEYS], say)
    meaning = "bytes of Redis for an account with one key, its hash included (used_memory)"
    return levels, first, found | {"redis_account_and_key_bytes": Figure(bytes_each, meaning)}


def accounts(stack: Stack, say: Say) -> list[Level]:
    """The same number of keys, in more and more accounts, through another gateway."""
    wanted = []
    for count in ACCOUNTS:
        family = f"of {count} accounts"
        multiply(stack, family, KEYS_OF_ACCOUNTS, count)
        _make_known(stack, "gateway-2", family, KEYS_OF_ACCOUNTS)
        wanted.append((_several(count, "account"), family, KEYS_OF_ACCOUNTS))
    return _rounds(stack, "gateway-2", wanted, say)


def connections(
    stack: Stack, open_now: dict[str, int], say: Say, *, streams: bool
) -> tuple[list[Level], float, dict[str, float]]:
    """Connections open at three gateways, while each in turn gets a load: their levels, bytes of the gateway for each
    connection of the last, and CPU seconds a second of everything while nothing is asked."""
    key, _ = stack.key(stack.account())
    what = "open stream" if streams else "idle connection"
    levels = {name: Level(_several(count, what)) for name, count in open_now.items()}
    more = {"events": 62, "rate": _STREAMS_PER_S} if streams else {"path": "/healthz", "rate": _CONNECTIONS_PER_S}
    last = list(open_now)[-1]
    with contextlib.ExitStack() as held:
        before = stack.rss(last)
        for name, count in open_now.items():
            plan = Plan(url=stack.gateways[name], key=key, requests=count, connections=count, hold=True, **more)
            held.enter_context(stack.holding(plan, rows=streams))
        bytes_each = (stack.rss(last) - before) / open_now[last]
        quiet = stack.idle_cpu(_RENEWAL_S if streams else _IDLE_S)
        for _ in range(ROUNDS):
            for name, level in levels.items():
                plan = Plan(url=stack.gateways[name], key=key, requests=REQUESTS, connections=BUSY)
                say(level.add(stack.measure(plan), name, quiet))
    stack.wait_settled()
    return list(levels.values()), bytes_each, quiet


def multiply(stack: Stack, family: str, keys_count: int, accounts_count: int) -> None:
    """Accounts and keys in Redis, copies of one that the control plane has made. Keys are `key_of(family, number)`."""
    model = stack.account()
    _, key_id = stack.key(model)
    account, key = stack.redis.dump(rediskeys.account(model)), stack.redis.dump(rediskeys.api_key(model, key_id))
    if account is None or key is None:
        raise BenchFailed("Redis does not have the account that was made")
    owners = [ids.new_account_id() for _ in range(accounts_count)]
    for at in range(0, keys_count, _RESTORED_AT_ONCE):
        pipeline = stack.redis.pipeline(transaction=False)
        for number in range(at, min(at + _RESTORED_AT_ONCE, keys_count)):
            owner, copy = owners[number % accounts_count], ids.new_key_id()
            if number < accounts_count:
                pipeline.restore(rediskeys.account(owner), 0, account)
            pipeline.restore(rediskeys.api_key(owner, copy), 0, key)
            sha256 = apikeys.hash_key(key_of(family, number).encode())
            pipeline.set(rediskeys.key_hash(sha256), f"{owner} {copy}")
        pipeline.execute()


def table(levels: Sequence[Level]) -> list[str]:
    """Lines of a table, without its head."""
    return [
        f"| {level.title} | {figures.spread(level.gateway_us)} | {figures.spread(level.redis_us)} "
        f"| {statistics.median(level.beside_us['nats']):.0f} | {statistics.median(level.beside_us['accounting']):.0f} "
        f"| {' | '.join(f'{_median(level, name):.2f}' for name in ('scripts', 'reads', 'messages'))} "
        f"| {statistics.median(run.report.p99_ms for run in level.runs):.0f} |"
        for level in levels
    ]


def _several(count: int, what: str) -> str:
    return f"{count:,} {what}" if count == 1 else f"{count:,} {what}s"


def _median(level: Level, name: str) -> float:
    return statistics.median(run.each(name) for run in level.runs)


def changes(levels: Sequence[Level]) -> tuple[float, float]:
    """Of gateway and Redis from the first level on."""
    gateway = figures.growth([statistics.median(level.gateway_us) for level in levels])
    return gateway, figures.growth([statistics.median(level.redis_us) for level in levels])


def _rounds(stack: Stack, gateway: str, wanted: Sequence[tuple[str, str, int]], say: Say) -> list[Level]:
    idle = stack.idle_cpu(_IDLE_S)
    levels = [Level(title) for title, _, _ in wanted]
    for _ in range(ROUNDS):
        for level, (_, family, count) in zip(levels, wanted, strict=True):
            say(level.add(stack.measure(_plan(stack.gateways[gateway], family, count)), gateway, idle))
    return levels


def _plan(url: str, family: str, count: int) -> Plan:
    return Plan(url=url, family=family, keys=count, requests=REQUESTS, connections=BUSY)


def _make_known(stack: Stack, gateway: str, family: str, count: int) -> None:
    """Let a gateway see every key once. A model without a price is refused after the key was looked up, and is no row."""
    plan = Plan(
        url=stack.gateways[gateway],
        family=family,
        keys=count,
        requests=count,
        connections=64,
        in_turn=True,
        model="none",
    )
    report = send(plan)
    if report.statuses != {"404": count}:
        raise BenchFailed(f"{gateway} does not know the keys of {family!r}: {report}")
