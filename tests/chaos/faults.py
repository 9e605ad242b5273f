"""Every fault by name: what it does to a running stack, and how it is healed. The oracle comes afterwards."""

import asyncio
import random
import signal
import time
from collections.abc import Callable
from functools import partial
from typing import Final

from libs.common import ids, redisclient, streams, subjects
from services.gateway import records
from tests.chaos.load import spool_segments
from tests.chaos.stack import GATEWAYS, WORKERS, Stack
from tests.chaos.toxic import MODES, Mode

Fault = Callable[[Stack, random.Random], None]
LASTS_S: Final = 2.5
_REPUBLISHED_MAX: Final = 300
SERVICES: Final = (*GATEWAYS, *WORKERS, "admin")


def kill_service(name: str, stack: Stack, _: random.Random) -> None:
    """kill -9, and started again in a moment."""
    stack.services[name].kill()
    time.sleep(0.5)
    stack.services[name].start().wait_ready()


def kill_gateway_without_nats(name: str, stack: Stack, _: random.Random) -> None:
    """Nobody but its spool knows of what it had in hand."""
    stack.stores["nats"].kill()
    time.sleep(LASTS_S)
    stack.services[name].kill()
    stack.services[name].start()
    stack.stores["nats"].give_back()
    stack.services[name].wait_ready()


def freeze_service(name: str, stack: Stack, _: random.Random) -> None:
    """SIGSTOP for longer than a lease, then SIGCONT."""
    stack.services[name].signal(signal.SIGSTOP)
    time.sleep(7)
    stack.services[name].signal(signal.SIGCONT)


def restart_service(name: str, stack: Stack, _: random.Random) -> None:
    """SIGTERM: it ends by itself, and is started again."""
    stack.services[name].stop()
    stack.services[name].start().wait_ready()


def kill_store(name: str, stack: Stack, _: random.Random) -> None:
    """kill -9, and started again with its data."""
    stack.stores[name].kill()
    time.sleep(LASTS_S)
    stack.stores[name].give_back()


def freeze_store(name: str, stack: Stack, _: random.Random) -> None:
    """SIGSTOP, then SIGCONT."""
    stack.stores[name].freeze()
    time.sleep(LASTS_S)
    stack.stores[name].give_back()


def disturb_link(name: str, mode: Mode, stack: Stack, _: random.Random) -> None:
    """A network between two processes that cuts, resets, delays, is slow or slices."""
    stack.toxics.disturb(name, mode)
    time.sleep(LASTS_S)
    stack.toxics.disturb(name, "pass")


def rolling_restart(stack: Stack, _: random.Random) -> None:
    """Every service, one after another, under load."""
    for name in SERVICES:
        restart_service(name, stack, _)


def empty_redis(stack: Stack, _: random.Random) -> None:
    """FLUSHALL: a young installation is restored from its log by itself."""
    asyncio.run(_flush(stack))
    _wait_open(stack)


def empty_redis_and_rebuild(stack: Stack, _: random.Random) -> None:
    """FLUSHALL while accounting is away, and the operator's command brings everything back."""
    for name in WORKERS:
        stack.services[name].stop()
    asyncio.run(_flush(stack))
    _rebuild(stack)
    for name in WORKERS:
        stack.services[name].start().wait_ready()


def rebuild_under_load(stack: Stack, _: random.Random) -> None:
    """Nothing is lost, and everything is rebuilt while callers wait and accounting is at work."""
    _rebuild(stack, "--close")


def redis_without_its_data(stack: Stack, _: random.Random) -> None:
    """Killed, its directory empty, started again."""
    stack.stores["redis"].kill()
    for path in (stack.home / "redis").glob("appendonly*"):
        path.unlink()
    stack.stores["redis"].give_back()
    _wait_open(stack)


def deliver_again(stack: Stack, chance: random.Random) -> None:
    """Events that are in the log are published again, regrouped and in another order."""
    asyncio.run(_republish(stack, chance))


def flip_a_bit_in_the_spool(stack: Stack, chance: random.Random) -> None:
    """Of a gateway that was killed; it is started again."""
    name = chance.choice(GATEWAYS)
    stack.services[name].kill()
    for path in spool_segments(stack, name):
        text = bytearray(path.read_bytes())
        used = len(text.rstrip(b"\0"))
        if used > len(records.MAGIC) + records.HEAD_BYTES:
            text[chance.randrange(len(records.MAGIC), used)] ^= 1 << chance.randrange(8)
            path.write_bytes(text)
    stack.services[name].start().wait_ready()


FAULTS: Final[dict[str, Fault]] = {
    **{f"kill {name}": partial(kill_service, name) for name in SERVICES},
    **{f"freeze {name}": partial(freeze_service, name) for name in SERVICES},
    **{f"kill {name}": partial(kill_store, name) for name in ("nats", "redis", "clickhouse")},
    **{f"freeze {name}": partial(freeze_store, name) for name in ("nats", "redis", "clickhouse")},
    **{f"kill {name} without nats": partial(kill_gateway_without_nats, name) for name in GATEWAYS},
    "rolling restart": rolling_restart,
    "empty redis": empty_redis,
    "empty redis, rebuild": empty_redis_and_rebuild,
    "redis without its data": redis_without_its_data,
    "rebuild under load": rebuild_under_load,
    "deliver again": deliver_again,
    "flip a bit in the spool": flip_a_bit_in_the_spool,
    **{
        f"{mode} {link}": partial(disturb_link, link, mode)
        for link in (
            "gateway-1>redis",
            "gateway-1>nats",
            "gateway-1>upstream",
            "accounting-1>redis",
            "accounting-1>nats",
            "accounting-1>clickhouse",
            "admin>redis",
            "admin>nats",
        )
        for mode in MODES
    },
}
SHORT: Final = (
    "kill gateway-1 without nats",
    "kill redis",
    "kill accounting-1",
    "cut accounting-1>clickhouse",
    "deliver again",
    "empty redis, rebuild",
    "rolling restart",
)


async def _flush(stack: Stack) -> None:
    redis = redisclient.connect(stack.direct["RELAY_REDIS_URL"], try_seconds=redisclient.TRY_S_UNHURRIED)
    await redis.flushall()
    await redis.aclose()


def _rebuild(stack: Stack, *words: str) -> None:
    deadline = time.monotonic() + 60
    while (done := stack.command("rebuild", *words)).returncode:  # accounting may be at the same partitions
        assert time.monotonic() < deadline, done.stdout + done.stderr
        time.sleep(0.5)


def _wait_open(stack: Stack) -> None:
    deadline = time.monotonic() + 60
    while stack.command("rebuild").returncode:
        assert time.monotonic() < deadline
        time.sleep(0.5)


async def _republish(stack: Stack, chance: random.Random) -> None:
    broker = await streams.connect(stack.direct["RELAY_NATS_URL"], name="again")
    jetstream = broker.jetstream()
    state = (await jetstream.stream_info(subjects.STREAM_USAGE)).state
    newest = range(max(state.first_seq, state.last_seq - _REPUBLISHED_MAX), state.last_seq + 1)
    found = [await jetstream.get_msg(subjects.STREAM_USAGE, sequence) for sequence in newest if sequence]
    by_subject: dict[str, list[bytes]] = {}
    for message in found:
        by_subject.setdefault(str(message.subject), []).append((message.data or b"[]").strip()[1:-1])
    for subject, texts in by_subject.items():
        chance.shuffle(texts)
        while texts:
            group = [texts.pop() for _ in range(min(len(texts), chance.randint(1, 5)))]
            headers = {"Nats-Msg-Id": ids.uuid7_hex()}
            await jetstream.publish(subject, b"[" + b",".join(group) + b"]", headers=headers)
    await streams.close(broker)
