"""How large things are, what NATS can take, and what parts of a request cost: the inputs of the capacity plan."""

import asyncio
import contextlib
import statistics
import time
from collections import defaultdict
from collections.abc import Callable
from typing import Final

from nats.js.api import DiscardPolicy, StorageType, StreamConfig

from bench.rig import BenchFailed
from bench.scaling.figures import Figure, Figures
from bench.scaling.load import Plan
from bench.scaling.stack import Run, Stack
from libs.common import apikeys, ids, rediskeys, streams
from libs.common.runtime import spawn

ROUNDS: Final = 3
HELD: Final = 500
MIX_EVENTS: Final = 300
MIX_BODY_BYTES: Final = 100_000
MIX_RATE: Final = 15
_SMALL_BODY_BYTES: Final = 1_000
_SSE_EVENTS: Final = 62
_IDLE_S: Final = 2.0
_NATS_S: Final = 2.0
_NATS_PUBLISHERS: Final = 64
"""Four gateways with sixteen messages under way each (services/gateway/publisher.py)."""
_LARGE_HASH: Final = 2_000
_SAMPLE: Final = 2_000


Runs = dict[str, list[Run]]


def parts(stack: Stack, say: Callable[[str], None]) -> tuple[Figures, Runs]:
    """What a request, an event and a kilobyte of body cost, without nginx, and the runs they come from: small JSON, large JSON,
    SSE, and a mix like Claude Code's, which the plan must foretell from the others."""
    key, _ = stack.key(stack.account())
    url = stack.gateways["gateway-4"]
    wanted = {
        "json": Plan(url=url, key=key, requests=900, connections=64, rate=300, body_bytes=_SMALL_BODY_BYTES),
        "large": Plan(url=url, key=key, requests=300, connections=64, rate=150, body_bytes=MIX_BODY_BYTES),
        "sse": Plan(url=url, key=key, requests=200, connections=200, rate=100, events=_SSE_EVENTS),
        "mix": Plan(
            url=url, key=key, requests=60, connections=60, rate=MIX_RATE, events=MIX_EVENTS, gap_ms=10, body_bytes=MIX_BODY_BYTES
        ),
    }  # fmt: skip
    idle = stack.idle_cpu(_IDLE_S)
    runs: Runs = defaultdict(list)
    for _ in range(ROUNDS):
        for name, plan in wanted.items():
            runs[name].append(stack.measure(plan))
            say(f"  {name}: {runs[name][-1].us('gateway-4', idle):.0f} us")
    return _of_gateways(runs, idle) | _of_others(runs, idle), runs


def _of_gateways(runs: Runs, idle: dict[str, float]) -> Figures:
    json, large, sse, mix = (_cost(runs[name], "gateway-4", idle) for name in ("json", "large", "sse", "mix"))
    event, kilobyte = (sse - json) / _SSE_EVENTS, (large - json) / ((MIX_BODY_BYTES - _SMALL_BODY_BYTES) / 1000)
    cores = statistics.median(run.cpu_s["gateway-4"] / run.report.seconds for run in runs["mix"])
    per_s = statistics.median(run.requests / run.report.seconds for run in runs["mix"])
    return {
        "json_us": Figure(json, "µs CPU of a gateway for a JSON request, 300 a second"),
        "event_us": Figure(event, "for an event: (stream of 62 events, 100 streams a second − JSON) / 62"),
        "body_kb_us": Figure(kilobyte, "for a kB of a request's body: (body of 100 kB − 1 kB) / 99"),
        "mix_us": Figure(mix, f"for a stream of {MIX_EVENTS} events with a body of 100 kB: to check the sum"),
        "mix_per_s": Figure(per_s, "such streams a second, from the first to the end of the last"),
        "mix_cores": Figure(cores, "cores they took"),
    }


def _of_others(runs: Runs, idle: dict[str, float]) -> Figures:
    kinds = (
        ("json", "json", "JSON request"),
        ("stream", "sse", "stream of 62 events"),
        ("mix", "mix", "stream of 300"),
    )
    return {
        f"{kind}_{name}_us": Figure(
            _cost(runs[of], name, idle), f"µs CPU of {title} for the {what}, until it is settled"
        )
        for name, title in (("redis", "Redis"), ("nats", "NATS"), ("accounting", "accounting"), ("clickhouse", "chDB"))
        for kind, of, what in kinds
    }


def stored_events(runs: list[Run]) -> Figures:
    """What events take in the stream."""
    events = sum(run.requests for run in runs)
    return {
        "event_stored_bytes": Figure(
            sum(run.counts["message_bytes"] for run in runs) / events, "bytes of an event in the stream's files"
        ),
        "events_per_message": Figure(
            events / sum(run.counts["messages"] for run in runs), "events a message, 300 a second of one account"
        ),
    }


def redis_sizes(stack: Stack) -> Figures:
    """MEMORY USAGE of what is there for each account, key, request under way, and request of the last 73 hours."""
    account = stack.account()
    key, key_id = stack.key(account)
    url = stack.gateways["gateway-4"]
    plan = Plan(url=url, key=key, requests=HELD, connections=HELD, rate=200, events=_SSE_EVENTS, hold=True)
    with stack.holding(plan, rows=True):
        of_leases = [rediskeys.leases(account), rediskeys.lease_index(ids.partition(account))]
        of_slots = [rediskeys.slots(account, account), rediskeys.slots(account, key_id)]
        lease = sum(_memory(stack, name) for name in of_leases + of_slots) / HELD
    stack.wait_settled()
    entities = {
        "account": rediskeys.account(account),
        "key": rediskeys.api_key(account, key_id),
        "key_hash": rediskeys.key_hash(apikeys.hash_key(key.encode())),
    }
    found = {
        f"redis_{name}_bytes": Figure(
            _memory(stack, key_name), f"bytes of Redis for one {name.replace('_', ' ')} (MEMORY USAGE)"
        )
        for name, key_name in entities.items()
    }
    found["redis_lease_bytes"] = Figure(lease, "bytes of Redis for a request under way: lease, memo, index, slots")
    return found | _remembered(stack)


def _remembered(stack: Stack) -> Figures:
    """Entries that keep an event from being settled twice: in a hash of their own, among some, among very many."""
    sizes: dict[bool, list[tuple[int, int]]] = defaultdict(list)
    for name in stack.redis.scan_iter("*}settled:*", count=5_000):
        if len(sizes[True]) >= _SAMPLE:
            break
        entries = int(stack.redis.hlen(name))
        if entries == 1 or entries >= 8:
            sizes[entries == 1].append((_memory(stack, name.decode()), entries))
    large = "bench:large"
    stack.redis.hset(large, mapping={ids.new_request_id(): "3:2325000" for _ in range(_LARGE_HASH)})
    in_large = _memory(stack, large) / _LARGE_HASH
    stack.redis.delete(large)
    alone, among = (sum(size for size, _ in some) / sum(n for _, n in some) for some in (sizes[True], sizes[False]))
    return {
        "remembered_alone_bytes": Figure(alone, "bytes of Redis to remember a settled event, the only one of its hash"),
        "remembered_among_bytes": Figure(
            among, "the same in a hash of eight or more (an account with some 2,000 an hour)"
        ),
        "remembered_large_bytes": Figure(in_large, "the same in a hash of 2,000 (half a million an hour)"),
    }


def nats_limit(stack: Stack, event_bytes: float) -> Figures:
    """Messages a second that one node takes when it syncs each, and what one costs it."""
    before, started = stack.cpu()["nats"], time.perf_counter()
    count = asyncio.run(_publish(stack.addresses["nats_url"], bytes(int(event_bytes))))
    seconds = time.perf_counter() - started
    return {
        "nats_messages_per_s": Figure(count / _NATS_S, "messages a second one node took, each synced, 64 under way"),
        "nats_message_us": Figure((stack.cpu()["nats"] - before) / count * 1e6, "µs CPU of NATS for one of them"),
        "nats_cores": Figure((stack.cpu()["nats"] - before) / seconds, "cores it used meanwhile"),
    }


async def _publish(url: str, payload: bytes) -> int:
    broker = await streams.connect(url, name="bench")
    jetstream = broker.jetstream()
    await jetstream.add_stream(
        StreamConfig(
            name="BENCH", subjects=["bench.>"], storage=StorageType.FILE, discard=DiscardPolicy.NEW, max_bytes=2**30
        )
    )
    ends, count = time.perf_counter() + _NATS_S, 0

    async def publish(number: int) -> None:
        nonlocal count
        while time.perf_counter() < ends:
            await jetstream.publish(f"bench.p{number:02d}", payload)
            count += 1

    await asyncio.gather(*(spawn(publish(number), name="bench-publish") for number in range(_NATS_PUBLISHERS)))
    with contextlib.suppress(TimeoutError):
        await jetstream.delete_stream("BENCH")
    await streams.close(broker)
    return count


def _memory(stack: Stack, name: str) -> int:
    size = stack.redis.memory_usage(name, samples=0)
    if size is None:
        raise BenchFailed(f"Redis has no {name}")
    return int(size)


def _cost(runs: list[Run], process: str, idle: dict[str, float]) -> float:
    return statistics.median(run.us(process, idle) for run in runs)
