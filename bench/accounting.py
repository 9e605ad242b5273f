"""How many events a second one accounting worker settles into the local engine, and how far behind it is at an offered rate.

`python -m bench.accounting` writes bench/ACCOUNTING.md. The events go into JetStream as gateways put them there; the worker is a
process of its own on stores of its own.
"""

import asyncio
import random
import signal
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import httpx2
import psutil

from bench.rig import BenchFailed, cpu_seconds
from libs.common import clock, events, ids, redisclient, streams, subjects
from libs.common.balances import Balances
from libs.common.directory import Directory
from libs.common.events import Account, ControlChanged, Credit, UsageRecorded
from libs.common.upstreams import Upstreams
from libs.localstack.process import Process, free_port, http_answers
from libs.localstack.stores import Stores

SEED: Final = 4
ACCOUNTS: Final = 200
BACKLOG: Final = 200_000
OFFERED_PER_S: Final = 10_000
OFFERED_S: Final = 10
PER_MESSAGE: Final = 100
RESULTS: Final = Path(__file__).parent / "ACCOUNTING.md"
_READY_S: Final = 60
_WAIT_S: Final = 300


@dataclass
class Found:
    """One run."""

    name: str
    events: int
    seconds: float
    cpu_us: float
    """Of the worker, per event."""
    lag_s_max: float
    """Of the newest event that was not settled yet; 0 where nobody waited for it."""
    rss_mb: float


class Bench:
    """Stores, a worker, and accounts to debit."""

    def __init__(self, home: Path) -> None:
        self._stores = Stores(home, home / "logs")
        self._home = home
        self._chance = random.Random(SEED)
        self.accounts = [ids.new_account_id() for _ in range(ACCOUNTS)]
        self.worker: Process

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
            redis = redisclient.connect(self._stores.redis_url, try_seconds=redisclient.TRY_S_UNHURRIED)
            balances = Balances(redis)
            await self._create_accounts(Directory(redis, balances, Upstreams(redis)))
            found = [await self._backlog(broker.jetstream()), await self._offered(broker.jetstream())]
            spent = 0
            for account_id in self.accounts:
                balance = await balances.read(account_id)
                spent += balance.spent if balance else 0
            wanted = 3_000 * sum(one.events for one in found)
            if spent != wanted:
                raise BenchFailed(f"{spent} were debited, {wanted} were due")
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

    async def _backlog(self, jetstream: Any) -> Found:
        """As after an outage: everything is there, and the worker has to catch up."""
        self._signal(signal.SIGSTOP)
        for _ in range(BACKLOG // PER_MESSAGE):
            await self._publish(jetstream)
        self._signal(signal.SIGCONT)
        return await self._measured("backlog", BACKLOG, jetstream, None)

    async def _offered(self, jetstream: Any) -> Found:
        async def offer() -> None:
            started = time.monotonic()
            for number in range(OFFERED_PER_S * OFFERED_S // PER_MESSAGE):
                await self._publish(jetstream)
                await asyncio.sleep(max(started + (number + 1) * PER_MESSAGE / OFFERED_PER_S - time.monotonic(), 0))

        offering = asyncio.ensure_future(offer())
        return await self._measured("offered", OFFERED_PER_S * OFFERED_S, jetstream, offering)

    def _signal(self, number: signal.Signals) -> None:
        psutil.Process(self.worker.pid).send_signal(number)

    async def _publish(self, jetstream: Any) -> None:
        account_id = self._chance.choice(self.accounts)
        batch = [_event(account_id) for _ in range(PER_MESSAGE)]
        subject = subjects.usage_subject(ids.partition(account_id))
        await jetstream.publish(subject, events.encode_usage(batch), stream=subjects.STREAM_USAGE)

    async def _measured(self, name: str, count: int, jetstream: Any, offering: "asyncio.Future[None] | None") -> Found:
        worker, lag_s, rss = psutil.Process(self.worker.pid), 0.0, 0
        before, started, cpu = self._settled(), time.monotonic(), cpu_seconds(self.worker.pid)
        while self._settled() - before < count:
            await asyncio.sleep(0.1)
            rss = max(rss, worker.memory_info().rss)
            if offering is not None:
                lag_s = max(lag_s, await self._lag_s(jetstream))
            if time.monotonic() - started > _WAIT_S:
                raise BenchFailed(f"{self._settled() - before} of {count} events after {_WAIT_S} s")
        seconds = time.monotonic() - started
        if offering is not None:
            await offering
        used = cpu_seconds(self.worker.pid) - cpu
        return Found(name, count, seconds, used / count * 1e6, lag_s, rss / 2**20)

    async def _lag_s(self, jetstream: Any) -> float:
        """Age of the oldest message that is not acknowledged."""
        info = await jetstream.consumer_info(subjects.STREAM_USAGE, subjects.CONSUMER_ACCOUNTING)
        if not info.num_pending and not info.num_ack_pending:
            return 0.0
        message = await jetstream.get_msg(subjects.STREAM_USAGE, info.ack_floor.stream_seq + 1)
        return float((clock.utc_now() - message.time).total_seconds())

    def _settled(self) -> int:
        text = httpx2.get(f"http://127.0.0.1:{self._port}/metrics", trust_env=False).text
        return sum(int(line.split()[-1]) for line in text.splitlines() if line.startswith("relay_events_settled_total"))


def _event(account_id: str) -> UsageRecorded:
    return UsageRecorded(
        request_id=ids.new_request_id(),
        account_id=account_id,
        key_id="key_bench",
        path="/v1/messages",
        model_asked="claude-sonnet-4-6",
        model_answered="claude-sonnet-4-6",
        stream=True,
        status=200,
        outcome="measured",
        usage={"input_tokens": 1, "output_tokens": 0},
        price_book_version="2026-11-22",
        multiplier_ppm=1_000_000,
        client="claude-code",
    )


def main() -> None:
    """Run, print, write."""
    with tempfile.TemporaryDirectory(prefix="bench-") as home:
        found = asyncio.run(Bench(Path(home)).run())
    lines = [
        "# Accounting: one worker, local engine",
        "",
        f"`make bench-accounting`, seed {SEED}, {ACCOUNTS} accounts, {PER_MESSAGE} events a message, {clock.utc_now():%Y-%m-%d}.",
        "Every event is priced, archived (fsync), settled in Redis and acknowledged; at the end all debits are added up.",
        "",
        "| run | events | events/s | worker CPU µs/event | largest lag s | worker RSS MB |",
        "|---|---|---|---|---|---|",
    ]
    for one in found:
        lag = f"{one.lag_s_max:.2f}" if one.name == "offered" else "–"
        lines.append(
            f"| {one.name} | {one.events:,} | {one.events / one.seconds:,.0f} | {one.cpu_us:.0f} | {lag} | {one.rss_mb:.0f} |"
        )
    lines += [
        "",
        f"*backlog*: all of it is there when the worker begins. *offered*: {OFFERED_PER_S:,} a second for {OFFERED_S} s; lag is",
        "the age of the oldest message that is not acknowledged. NATS, Redis, engine and publisher share two cores with it.",
        "",
    ]
    RESULTS.write_text("\n".join(lines))
    print("\n".join(lines))


if __name__ == "__main__":
    main()
