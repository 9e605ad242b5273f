"""How many events a second one accounting worker settles into the local engine, and how far behind it is at an offered rate.

`python -m bench.accounting` writes bench/ACCOUNTING.md. The events go into JetStream as gateways put them there; the worker is a
process of its own on stores of its own. Messages, and the leases their requests have left, are made before the clock starts: what
is measured is not who makes them.
"""

import asyncio
import os
import platform
import random
import signal
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import psutil

from bench.rig import BenchFailed, cpu_seconds
from libs.common import clock, events, ids, redisclient, rediskeys, streams, subjects
from libs.common.balances import Balances
from libs.common.directory import Directory
from libs.common.events import Account, Attempt, ControlChanged, Credit, UsageRecorded
from libs.common.upstreams import Upstreams
from libs.localstack.process import Process, free_port, http_answers
from libs.localstack.stores import Stores

SEED: Final = 4
ACCOUNTS: Final = 200
KEYS: Final = 5
"""Of an account, each of a member of its own."""
BACKLOG: Final = 200_000
OFFERED_PER_S: Final = 10_000
OFFERED_S: Final = 10
PER_MESSAGE: Final = 100
EVENTS_PER_S_MIN: Final = 10_000
LAG_S_MAX: Final = 2
USAGE: Final = {
    "input_tokens": 12,
    "cache_creation_input_tokens": 800,
    "cache_read_input_tokens": 21_000,
    "cache_creation": {"ephemeral_5m_input_tokens": 800, "ephemeral_1h_input_tokens": 0},
    "output_tokens": 412,
    "service_tier": "standard",
}
COST_NANOS: Final = 12 * 3_000 + 800 * 3_750 + 21_000 * 300 + 412 * 15_000
"""Of that usage, by hand: claude-sonnet-4-6, 3, 3.75, 0.30 and 15 dollars a million."""
RESULTS: Final = Path(__file__).parent / "ACCOUNTING.md"
_PROCESSES: Final = ("accounting", "redis", "clickhouse", "nats", "bench")
_READY_S: Final = 60
_LEASE_MS: Final = 3_600_000
_WAIT_S: Final = 300


@dataclass
class Found:
    """One run."""

    name: str
    events: int
    seconds: float
    cpu_us: dict[str, float]
    """Per event: of the worker, of each store, and of this process, which publishes and looks on."""
    lag_s_max: float
    """Age of the oldest message that was not acknowledged yet; 0 where nobody waited for it."""
    rss_mb: float


class Bench:
    """Stores, a worker, and accounts to debit."""

    def __init__(self, home: Path) -> None:
        self._stores = Stores(home, home / "logs")
        self._home = home
        self._chance = random.Random(SEED)
        self.accounts = [ids.new_account_id() for _ in range(ACCOUNTS)]
        self._callers = {one: [(ids.new_key_id(), ids.new_member_id()) for _ in range(KEYS)] for one in self.accounts}
        self._neighbours: dict[int, list[str]] = {}
        """Accounts by partition."""
        for one in self.accounts:
            self._neighbours.setdefault(ids.partition(one), []).append(one)
        self.worker: Process
        self._redis: Any

    def environment(self) -> dict[str, str]:
        """Where the stores are."""
        return {
            "RELAY_NATS_URL": self._stores.nats_url,
            "RELAY_REDIS_URL": self._stores.redis_url,
            "RELAY_CLICKHOUSE_URL": self._stores.clickhouse_url,
            "PATH": "/usr/bin:/bin",
        }

    async def run(self) -> list[Found]:
        """Both runs, one after another."""
        self._stores.start()
        try:
            self._bootstrap()
            self._start_worker()
            broker = await streams.connect(self._stores.nats_url, name="bench")
            self._redis = redis = redisclient.connect(self._stores.redis_url, try_seconds=redisclient.TRY_S_UNHURRIED)
            balances = Balances(redis)
            await self._create_accounts(Directory(redis, balances, Upstreams(redis)))
            found = [await self._backlog(broker.jetstream()), await self._offered(broker.jetstream())]
            await self._add_up(balances, COST_NANOS * sum(one.events for one in found))
            await redis.aclose()
            await streams.close(broker)
            return found
        finally:
            if hasattr(self, "worker"):
                self.worker.stop()
            self._stores.stop()

    def _bootstrap(self) -> None:
        command = [sys.executable, "-m", "services.accounting", "bootstrap"]
        log = self._home / "logs" / "bootstrap.log"
        process = Process.start("bootstrap", command, log=log, environment=self.environment())
        while process.is_running():
            time.sleep(0.05)
        if process.exit_code:
            raise BenchFailed(process.log_tail())

    def _start_worker(self) -> None:
        self._port = free_port()
        environment = self.environment() | {"RELAY_ACCOUNTING_PORT": str(self._port)}
        log = self._home / "logs" / "accounting.log"
        command = [sys.executable, "-m", "services.accounting"]
        self.worker = Process.start("accounting", command, log=log, environment=environment)
        self.worker.wait_until(http_answers(f"http://127.0.0.1:{self._port}/readyz"), seconds=_READY_S)

    async def _create_accounts(self, directory: Directory) -> None:
        for account_id in self.accounts:
            entities: list[Any] = [
                Account(id=account_id, name="bench", created_at_ms=0),
                Credit(id=ids.new_credit_id(), account_id=account_id, amount_nanos=10**14, reason="", created_at_ms=0),
            ]
            for entity in entities:
                await directory.apply(ControlChanged(entity=entity, actor="bench", reason="", at_ms=0), 1)

    async def _add_up(self, balances: Balances, due: int) -> None:
        found = [balance for one in self.accounts if (balance := await balances.read(one))]
        spent, held = sum(one.spent for one in found), sum(one.held for one in found)
        if spent != due or held:
            raise BenchFailed(f"{spent} were debited, {due} were due, and {held} are still held")

    async def _backlog(self, jetstream: Any) -> Found:
        """As after an outage: everything is there, and the worker has to catch up."""
        self._signal(signal.SIGSTOP)
        for message in await self._messages(BACKLOG):
            await _publish(jetstream, message)
        self._signal(signal.SIGCONT)
        return await self._measured("backlog", BACKLOG, jetstream, None)

    async def _offered(self, jetstream: Any) -> Found:
        messages = await self._messages(OFFERED_PER_S * OFFERED_S)

        async def offer() -> None:
            started = time.monotonic()
            for number, message in enumerate(messages, start=1):
                await _publish(jetstream, message)
                await asyncio.sleep(max(started + number * PER_MESSAGE / OFFERED_PER_S - time.monotonic(), 0))

        offering = asyncio.ensure_future(offer())
        return await self._measured("offered", OFFERED_PER_S * OFFERED_S, jetstream, offering)

    def _signal(self, number: signal.Signals) -> None:
        psutil.Process(self.worker.pid).send_signal(number)

    async def _messages(self, count: int) -> list[tuple[str, bytes]]:
        """Subjects and payloads that carry so many events, whose requests have been admitted and are finished."""
        messages = []
        for _ in range(count // PER_MESSAGE):
            partition = self._chance.choice(list(self._neighbours))
            batch = [self._event(self._chance.choice(self._neighbours[partition])) for _ in range(PER_MESSAGE)]
            await self._hold(partition, batch)
            messages.append((subjects.usage_subject(partition), events.encode_usage(batch)))
        return messages

    def _event(self, account_id: str) -> UsageRecorded:
        key_id, member_id = self._chance.choice(self._callers[account_id])
        return event(account_id, key_id, member_id)

    async def _hold(self, partition: int, batch: list[UsageRecorded]) -> None:
        """What admission and the end of a request have left in Redis (lua/include/lease.lua)."""
        pipeline = self._redis.pipeline(transaction=False)
        ends_us = (clock.unix_ms() + _LEASE_MS) * 1000
        for one in batch:
            account_id, lease = one.account_id, f"f {COST_NANOS} 1000000 12 {one.member_id} {one.key_id}"
            memo = {one.request_id: lease, f"{one.request_id}:memo": "{}"}
            pipeline.hset(rediskeys.leases(account_id), mapping=memo)
            pipeline.zadd(rediskeys.lease_index(partition), {f"{account_id} {one.request_id}": ends_us})
            for scope in (
                rediskeys.account(account_id),
                rediskeys.api_key(account_id, one.key_id),
                rediskeys.member(account_id, one.member_id),
            ):
                pipeline.hincrby(scope, "held", COST_NANOS)
        await pipeline.execute()

    async def _measured(self, name: str, count: int, jetstream: Any, offering: "asyncio.Future[None] | None") -> Found:
        worker, lag_s, rss = psutil.Process(self.worker.pid), 0.0, 0
        started, cpu = time.monotonic(), self._cpu()
        while (left := await _unacknowledged(jetstream)) or not (offering is None or offering.done()):
            await asyncio.sleep(0.1)
            rss = max(rss, worker.memory_info().rss)
            if offering is not None:
                lag_s = max(lag_s, await self._lag_s(jetstream))
            if time.monotonic() - started > _WAIT_S:
                raise BenchFailed(f"{left} messages of {count} events are left after {_WAIT_S} s")
        seconds = time.monotonic() - started
        if offering is not None:
            await offering
        used = {process: (now - cpu[process]) / count * 1e6 for process, now in self._cpu().items()}
        return Found(name, count, seconds, used, lag_s, rss / 2**20)

    def _cpu(self) -> dict[str, float]:
        used = {process.name: cpu_seconds(process.pid) for process in (self.worker, *self._stores.processes)}
        return used | {"bench": time.process_time()}

    async def _lag_s(self, jetstream: Any) -> float:
        """Age of the oldest message that is not acknowledged."""
        info = await jetstream.consumer_info(subjects.STREAM_USAGE, subjects.CONSUMER_ACCOUNTING)
        if not info.num_pending and not info.num_ack_pending:
            return 0.0
        message = await jetstream.get_msg(subjects.STREAM_USAGE, info.ack_floor.stream_seq + 1)
        return float((clock.utc_now() - message.time).total_seconds())


async def _unacknowledged(jetstream: Any) -> int:
    info = await jetstream.consumer_info(subjects.STREAM_USAGE, subjects.CONSUMER_ACCOUNTING)
    return int(info.num_pending + info.num_ack_pending)


async def _publish(jetstream: Any, message: tuple[str, bytes]) -> None:
    subject, payload = message
    await jetstream.publish(subject, payload, stream=subjects.STREAM_USAGE)


def event(account_id: str, key_id: str, member_id: str) -> UsageRecorded:
    """As a gateway records a request of an agent."""
    return UsageRecorded(
        request_id=ids.new_request_id(),
        account_id=account_id,
        key_id=key_id,
        member_id=member_id,
        path="/v1/messages",
        model_asked="claude-sonnet-4-6",
        model_answered="claude-sonnet-4-6",
        stream=True,
        status=200,
        outcome="measured",
        usage=USAGE,
        stop_reason="end_turn",
        price_book_version="2026-11-22",
        multiplier_ppm=1_000_000,
        upstream_request_id="req_011CSHoEeqs5C35K2UUqR7Fy",
        tries=(Attempt(upstream_id="upst_bench", status=200, duration_us=812_345),),
        first_byte_us=812_345,
        duration_us=5_123_456,
        bytes_in=80_123,
        bytes_out=34_567,
        client="claude-code",
    )


def main() -> None:
    """Run, print, write."""
    load_before = os.getloadavg()[0]
    with tempfile.TemporaryDirectory(prefix="bench-") as home:
        found = asyncio.run(Bench(Path(home)).run())
    document = text(found, load_before=load_before)
    RESULTS.write_text(document)
    print(document)


def text(found: list[Found], *, load_before: float) -> str:
    """The document."""
    lines = [
        "# Accounting: one worker, local engine",
        "",
        f"`make bench-accounting`, seed {SEED}, {clock.utc_now():%Y-%m-%d}. {ACCOUNTS} accounts of {KEYS} keys and members,",
        f"{PER_MESSAGE} events a message. Every event is priced (4 lines), archived (fsync), settled in Redis, where its lease",
        "is freed, and acknowledged; at the end all debits and holds are added up.",
        "",
        "| run | events | events/s | CPU µs/event: worker | Redis | engine | NATS | bench | largest lag s | worker RSS MB |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for one in found:
        lag = f"{one.lag_s_max:.2f}" if one.name == "offered" else "–"
        cpu = " | ".join(f"{one.cpu_us[name]:.0f}" for name in _PROCESSES)
        lines.append(
            f"| {one.name} | {one.events:,} | {one.events / one.seconds:,.0f} | {cpu} | {lag} | {one.rss_mb:.0f} |"
        )
    lines += [
        "",
        *_verdicts({one.name: one for one in found}),
        "",
        f"*backlog*: all of it is there when the worker begins. *offered*: {OFFERED_PER_S:,} a second for {OFFERED_S} s, and",
        "then until none is left; lag is the age of the oldest message that is not acknowledged. NATS, Redis, engine and",
        "publisher share the cores with it.",
        "",
        f"Machine: {os.cpu_count()} cores, {platform.machine()}, {platform.system()}; Python {platform.python_version()};",
        f"load average before the start {load_before:.2f}.",
        "",
    ]
    return "\n".join(lines)


def _verdicts(found: dict[str, Found]) -> list[str]:
    backlog, offered = found["backlog"], found["offered"]
    rate, lag_s = backlog.events / backlog.seconds, offered.lag_s_max
    return [
        "| target | seen | |",
        "|---|---|---|",
        f"| {EVENTS_PER_S_MIN:,} events/s of a backlog | {rate:,.0f} | {_verdict(rate >= EVENTS_PER_S_MIN)} |",
        f"| lag ≤ {LAG_S_MAX} s while {OFFERED_PER_S:,}/s are offered | {lag_s:.2f} | {_verdict(lag_s <= LAG_S_MAX)} |",
    ]


def _verdict(is_held: bool) -> str:
    return "held" if is_held else "**missed**"


if __name__ == "__main__":
    main()
