"""How long usage questions take over ROWS rows in the local engine.

`python -m bench.analytics` writes bench/ANALYTICS.md. Rows are made inside the engine, their sums by accounting's own code.
"""

import asyncio
import os
import random
import tempfile
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any, Final

from libs.common import clock
from libs.localstack.process import free_port
from libs.localstack.stores import start_clickhouse
from services.accounting import rollups
from services.accounting.ledger import Ledger as Archive
from services.accounting.migrate import migrate
from services.admin.ledger import Ledger
from services.admin.usage.engine import UsageEngine
from services.admin.usage.query import Query

ROWS: Final = int(os.environ.get("ROWS", "100000000"))
SEED: Final = 7
ACCOUNTS: Final = 1_000
DAYS: Final = 120
CHUNK: Final = 500_000
QUERIES: Final = 40
TARGET_MS: Final = 300
RESULTS: Final = Path(__file__).parent / "ANALYTICS.md"
_HOUR_MS: Final = 3_600_000
_DAY_MS: Final = 24 * _HOUR_MS
_METRICS: Final = ("cost", "requests", "input", "output", "cache_read", "errors", "rate_limited")
_ZONES: Final = ("America/New_York", "Europe/Berlin", "Asia/Tokyo", "America/Los_Angeles")
_FILL: Final = """
INSERT INTO usage (request_id, version, time, account_id, key_id, member_id, path, model_asked, model_answered, stream, status,
  outcome, usage, stop_reason, price_book_version, multiplier_ppm, line_models, line_classes, line_quantities,
  line_unit_prices_attos, line_amounts_nanos, total_nanos, upstream_request_id, attempts, first_byte_us, duration_us, bytes_in,
  bytes_out, client)
WITH rand(1) / 4294967296 AS u, toUInt32(floor(1000 * u * u * u)) AS account, rand(2) % 20 AS key, rand(4) % 1000 AS dice,
  {first_ms:Int64} + intDiv((number - {start:UInt64}) * {span_ms:Int64}, {count:UInt64}) AS ms,
  ['claude-opus-4-8', 'claude-sonnet-4-6', 'claude-haiku-4-5', 'claude-sonnet-4-5', 'claude-opus-4-5'][rand(3) % 5 + 1] AS model,
  [toInt64(rand(5) % 20000), toInt64(rand(6) % 2000), toInt64(rand(7) % 50000)] AS quantities,
  [3000, 15000, 300] AS prices, arrayMap((quantity, price) -> quantity * price, quantities, prices) AS amounts
SELECT concat('req_', leftPad(lower(hex(ms)), 12, '0'), substring(lower(hex(sipHash128(number))), 1, 20)),
  3, fromUnixTimestamp64Milli(ms, 'UTC'), concat('acct_', leftPad(toString(account), 32, '0')),
  concat('key_', leftPad(toString(account * 20 + key), 32, '0')),
  concat('memb_', leftPad(toString(account * 5 + key % 5), 32, '0')),
  '/v1/messages', model, model, 1, multiIf(dice < 5, 500, dice < 15, 429, 200),
  multiIf(dice < 15, 'free', dice < 25, 'partial', dice < 40, 'estimated', 'measured'),
  '{"input_tokens":1,"output_tokens":1}', 'end_turn', '2026-11-22', 1000000,
  [model, model, model], ['input', 'output', 'cache_read'], quantities,
  arrayMap(price -> price * 1000000000, prices),
  amounts, arraySum(amounts), concat('req_', substring(lower(hex(sipHash64(number))), 1, 16)), 1,
  if(dice < 5, 0, 300000 + rand(8) % 2000000),
  2000000 + rand(9) % 30000000, 4000, 9000, ['claude-code', 'python', 'typescript', ''][intDiv(key, 5) + 1]
FROM numbers({start:UInt64}, {count:UInt64})
"""
_SIZES: Final = """
SELECT table, sum(rows), sum(bytes_on_disk) FROM system.parts
WHERE active AND database = currentDatabase() AND table LIKE 'usage%'
GROUP BY table ORDER BY table
"""
_DAY_OF: Final = "{0} >= {{first:DateTime('UTC')}} AND {0} < {{end:DateTime('UTC')}}"
_PARTITIONS: Final = """
SELECT DISTINCT table, partition FROM system.parts WHERE active AND database = currentDatabase() AND table LIKE 'usage_by%'
"""
Ask = Callable[[random.Random], Awaitable[Any]]


class Bench:
    """An engine, its rows, and questions."""

    def __init__(self, url: str) -> None:
        self._ledger = Ledger(url)
        self._engine = UsageEngine(self._ledger)
        self._now_ms = clock.unix_ms()
        self._url = url

    async def fill(self) -> tuple[float, float]:
        """Seconds for the rows and for the sums."""
        archive = await Archive.open(self._url)
        await migrate(archive)
        started = time.monotonic()
        first_ms = self._now_ms - DAYS * _DAY_MS
        for start in range(0, ROWS, CHUNK):
            count = min(CHUNK, ROWS - start)
            part = {"start": start, "count": count, "span_ms": DAYS * _DAY_MS * count // ROWS}
            await archive.run(_FILL, part | {"first_ms": first_ms + DAYS * _DAY_MS * start // ROWS})
            print(f"{start + count:,} rows, {time.monotonic() - started:.0f} s", flush=True)
        filled = time.monotonic()
        for day in range(DAYS + 2):
            start_ms = first_ms // _DAY_MS * _DAY_MS + day * _DAY_MS
            span = {"first": clock.from_unix_ms(start_ms), "end": clock.from_unix_ms(start_ms + _DAY_MS)}
            await archive.run(rollups.SUM_UP.replace("{which}", _DAY_OF.format("time")), span)
            await archive.run(rollups.SUM_UP_DAYS.replace("{which}", _DAY_OF.format("hour")), span)
        await archive.run(rollups.ALL_DONE)
        for table, partition in await archive.query(_PARTITIONS):  # as min_age_to_force_merge_seconds does in an hour
            await archive.run(f"OPTIMIZE TABLE {table} PARTITION '{partition}' FINAL")
        done = time.monotonic()
        await archive.close()
        return filled - started, done - filled

    async def sizes(self) -> list[tuple[str, int, int]]:
        """Table, rows, bytes."""
        return [(str(a), int(b), int(c)) for a, b, c in await self._ledger.rows(_SIZES, {})]

    async def measure(self) -> list[tuple[str, float, float]]:
        """Question, p50 and p95 in ms."""
        found = []
        for name, ask in self._questions().items():
            chance, took = random.Random(SEED), []
            await ask(random.Random(SEED - 1))
            for _ in range(QUERIES):
                started = time.perf_counter()
                await ask(chance)
                took.append((time.perf_counter() - started) * 1000)
            took.sort()
            found.append((name, took[len(took) // 2], took[int(len(took) * 0.95)]))
            print(found[-1], flush=True)
        return found

    def _questions(self) -> dict[str, Ask]:
        large, relay = True, False
        return {
            "overview by day, 30 days, one large account": self._overview(large, ("UTC", *_ZONES)),
            "overview by day, 30 days, whole relay, UTC": self._overview(relay, ("UTC",)),
            "overview by day, 30 days, whole relay, other zones": self._overview(relay, _ZONES),
            "by model and key, 90 days, one large account": self._explore(large, ("model", "key")),
            "by model and account, 90 days, whole relay": self._explore(relay, ("model", "account")),
            "first page of requests, one large account": self._page(large),
            "first page of requests, whole relay": self._page(relay),
        }

    def _overview(self, large: bool, zones: tuple[str, ...]) -> Ask:
        async def ask(chance: random.Random) -> Any:
            to_ms = self._now_ms - chance.choice([0, 0, chance.randrange(85) * _DAY_MS])
            zone = chance.choice(zones)
            return await self._ask(chance, large, to_ms - 30 * _DAY_MS, to_ms, group=("day",), zone=zone)

        return ask

    def _explore(self, large: bool, group: tuple[str, ...]) -> Ask:
        async def ask(chance: random.Random) -> Any:
            to_ms = self._now_ms - chance.randrange(29) * _DAY_MS
            filters = chance.choice([{}, {}, {"outcome": ("measured",)}, {"client": ("claude-code", "python")}])
            zone = chance.choice(["UTC", *_ZONES])
            return await self._ask(
                chance, large, to_ms - 90 * _DAY_MS, to_ms, group=group, zone=zone, filters=filters, top=50
            )

        return ask

    async def _ask(self, chance: random.Random, large: bool, from_ms: int, to_ms: int, **asked: Any) -> Any:
        accounts = (_account(chance.randrange(3)),) if large else ()
        answer = await self._engine.ask(
            Query(metrics=_METRICS, accounts=accounts, from_ms=from_ms, to_ms=to_ms, **asked)
        )
        assert (answer.totals["requests"] or 0) > ROWS // 1_000
        return answer

    def _page(self, large: bool) -> Ask:
        async def ask(chance: random.Random) -> Any:
            filters: dict[str, Any] = chance.choice([{}, {}, {"errors": True}, {"model": "claude-opus-4-8"}])
            if chance.random() < 0.5:
                filters = filters | {"to_ms": self._now_ms - chance.randrange(100 * _DAY_MS)}
            if large:
                filters = filters | {"account_id": _account(chance.randrange(3))}
            rows = await self._ledger.requests(filters, 101)
            assert len(rows) == 101
            return rows

        return ask

    async def close(self) -> None:
        """Close the connection."""
        await self._ledger.close()


def _account(number: int) -> str:
    return f"acct_{number:032}"


async def _run(url: str) -> str:
    bench = Bench(url)
    filled_s, summed_s = await bench.fill()
    lines = [
        "# Usage questions, local engine",
        "",
        f"`make bench-analytics ROWS={ROWS}`, seed {SEED}, {clock.utc_now():%Y-%m-%d}, {os.cpu_count()} cores.",
        f"{ACCOUNTS:,} accounts (the largest has a tenth of the rows), 20 keys each, 5 models, 4 clients, {DAYS} days.",
        f"Rows were made in {filled_s:.0f} s,",
        f"all sums in {summed_s:.0f} s, by accounting's own statements, a day at a time.",
        "",
        "| table | rows | GB |",
        "|---|---|---|",
    ]
    lines += [f"| {name} | {rows:,} | {size / 1e9:.2f} |" for name, rows, size in await bench.sizes()]
    lines += ["", f"| {QUERIES} varied questions each | p50 ms | p95 ms | target ms |", "|---|---|---|---|"]
    for name, p50, p95 in await bench.measure():
        target = TARGET_MS if "account" in name.split(",")[-1] else "–"
        lines.append(f"| {name} | {p50:.0f} | {p95:.0f} | {target} |")
    await bench.close()
    return "\n".join(
        [
            *lines,
            "",
            "Times are of the whole call, HTTP and the reading of the answer included; one call at a time.",
            "",
        ]
    )


def main() -> None:
    """Run, print, write."""
    with tempfile.TemporaryDirectory(prefix="bench-") as home:
        port = free_port()
        engine = start_clickhouse(Path(home) / "clickhouse", Path(home), port=port)
        try:
            text = asyncio.run(_run(f"http://127.0.0.1:{port}/relay"))
        finally:
            engine.stop()
    RESULTS.write_text(text)
    print(text)


if __name__ == "__main__":
    main()
