"""Sums of hours and days, made anew from the rows wherever rows have come: exact under redelivery, corrections, regrouping.

An additive view would count what is delivered twice; this counts what stands in `usage FINAL`. One row holds all groups of an
account's hour and is replaced as a whole, so that a group which is no more (`expired` that is `measured` now) goes too.

Two workers may sum up one hour at once. Each does so after its own rows are archived and notes when its query began; the row with
the later time wins, and it has seen whatever was archived before that time. Whoever archives later sums up later. A worker that
dies with hours in hand leaves them to the others: each looks every so often for rows that were archived after their hour was
summed up, and one that starts looks back to the last sum. Days are made from hours when they are over, and again when one of
their hours is.
"""

import asyncio
import contextlib
import logging
import time
from collections.abc import Sequence
from datetime import datetime, timedelta
from typing import Any, Final, Protocol

from libs.common import clock
from libs.common.metrics import Metrics
from services.accounting.ledger import LedgerUnavailable

_log: Final = logging.getLogger("relay.rollups")
_HOUR_MS: Final = 3_600_000
_DAY_MS: Final = 24 * _HOUR_MS
_AT_ONCE: Final = 20
_DIRTY_MAX: Final = 100_000
_DAYS_AT_ONCE: Final = 100
_PAGE_HOURS: Final = 2_000
_FOUND_DAYS_MAX: Final = 10_000
_OVERLAP: Final = timedelta(hours=1)
_SWEEP_S: Final = 600.0
_SWEPT: Final = timedelta(hours=2)
"""How far back rows are looked at: many sweeps, so that one which fails does not matter."""
_SHAPE: Final = 2
"""Of a row of `usage_by_hour`: 2 since there are clients in it."""
Hour = tuple[str, int]
"""Account id, and the Unix hour."""
Day = tuple[str, int]
"""Account id, and the Unix day."""

_TOKENS: Final = {
    name: f"sum(toUInt64(arraySum((class, quantity) -> if(class = '{name}', quantity, 0), line_classes, line_quantities)))"
    for name in ("input", "cache_read", "cache_write_5m", "cache_write_1h", "output", "web_search")
}
SUM_UP: Final = """
INSERT INTO usage_by_hour
SELECT account_id, hour, groupArray(key_id), groupArray(member_id), groupArray(model_answered), groupArray(outcome),
  groupArray(client), groupArray(requests), groupArray(errors), groupArray(limited), groupArray(input), groupArray(cache_read),
  groupArray(write_5m), groupArray(write_1h), groupArray(output), groupArray(searches), groupArray(total),
  groupArray(first_byte), groupArray(first_bytes), groupArray(duration), now64(6), {shape}
FROM (
  SELECT account_id, toStartOfHour(time, 'UTC') AS hour, key_id, member_id, model_answered, outcome, client,
    count() AS requests, countIf(status >= 400 OR status = 0) AS errors, countIf(status = 429) AS limited,
    {input} AS input, {cache_read} AS cache_read, {cache_write_5m} AS write_5m, {cache_write_1h} AS write_1h,
    {output} AS output, {web_search} AS searches, sum(toInt128(total_nanos)) AS total,
    sum(first_byte_us) AS first_byte, countIf(first_byte_us > 0) AS first_bytes, sum(duration_us) AS duration
  FROM usage FINAL
  WHERE {{which}}
  GROUP BY account_id, hour, key_id, member_id, model_answered, outcome, client
)
GROUP BY account_id, hour
""".format(shape=_SHAPE, **_TOKENS)  # noqa: S608 - our own words
_LISTED: Final = """account_id IN {accounts:Array(String)} AND time >= {first:DateTime} AND time < {end:DateTime}
    AND (account_id, toUnixTimestamp(toStartOfHour(time, 'UTC'))) IN
      (SELECT arrayJoin(arrayZip({accounts:Array(String)}, {starts:Array(UInt32)})))"""
_SUM_UP_LISTED: Final = SUM_UP.replace("{which}", _LISTED)
_RANGE: Final = """account_id >= {first_account:String} AND account_id <= {last_account:String}
    AND (account_id, toStartOfHour(time, 'UTC')) >= ({first_account:String}, {first:DateTime('UTC')})
    AND (account_id, toStartOfHour(time, 'UTC')) <= ({last_account:String}, {last:DateTime('UTC')})"""
_SUM_UP_RANGE: Final = SUM_UP.replace("{which}", _RANGE)
SUM_UP_DAYS: Final = """
INSERT INTO usage_by_day
SELECT account_id, day, groupArray(model), groupArray(outcome), groupArray(client), groupArray(number), groupArray(failed),
  groupArray(limited), groupArray(input), groupArray(cache_read), groupArray(write_5m), groupArray(write_1h), groupArray(output),
  groupArray(searches), groupArray(total), groupArray(first_byte), groupArray(with_first_byte), groupArray(duration), now64(6)
FROM (
  SELECT account_id, toStartOfDay(hour, 'UTC') AS day, model, outcome, client,
    sum(a) AS number, sum(b) AS failed, sum(c) AS limited, sum(d) AS input, sum(e) AS cache_read, sum(f) AS write_5m,
    sum(g) AS write_1h, sum(h) AS output, sum(i) AS searches, sum(j) AS total, sum(k) AS first_byte, sum(l) AS with_first_byte,
    sum(m) AS duration
  FROM usage_by_hour FINAL
  ARRAY JOIN models AS model, outcomes AS outcome, clients AS client, requests AS a, errors AS b, rate_limited AS c,
    input_tokens AS d, cache_read_tokens AS e, cache_write_5m_tokens AS f, cache_write_1h_tokens AS g, output_tokens AS h,
    web_searches AS i, total_nanos AS j, first_byte_us AS k, first_bytes AS l, duration_us AS m
  WHERE {which}
  GROUP BY account_id, day, model, outcome, client
)
GROUP BY account_id, day
"""
_SUM_UP_DAYS: Final = SUM_UP_DAYS.replace(
    "{which}",
    """account_id IN {accounts:Array(String)} AND hour >= {first:DateTime} AND hour < {end:DateTime}
    AND (account_id, toUnixTimestamp(toStartOfDay(hour, 'UTC'))) IN
      (SELECT arrayJoin(arrayZip({accounts:Array(String)}, {starts:Array(UInt32)})))""",
)
_SINCE: Final = f"SELECT max(computed_at), countIf(account_id = '' AND shape = {_SHAPE}) FROM usage_by_hour"  # noqa: S608
ALL_DONE: Final = f"INSERT INTO usage_by_hour (account_id, hour, computed_at, shape) SELECT '', 0, now64(6), {_SHAPE}"
"""A row without groups and of no account: hours from before this shape of row have all been made anew."""
_LATE: Final = """
SELECT DISTINCT account_id, intDiv(toUnixTimestamp(time), 3600) FROM usage WHERE recorded_at >= {since:DateTime64(3)}
"""
_LEFT: Final = """
SELECT account_id, intDiv(toUnixTimestamp(start), 3600) FROM (
  SELECT account_id, toStartOfHour(time, 'UTC') AS start, max(recorded_at) AS archived_at FROM usage
  WHERE recorded_at >= {since:DateTime64(3)} GROUP BY account_id, start
) AS rows LEFT JOIN (
  SELECT account_id, hour AS start, max(computed_at) AS summed_at FROM usage_by_hour
  WHERE computed_at >= {since:DateTime64(3)} GROUP BY account_id, start
) AS sums USING (account_id, start)
WHERE archived_at > summed_at SETTINGS join_use_nulls = 0
"""
_PAGE: Final = """
SELECT account_id, toUnixTimestamp(toStartOfHour(time, 'UTC')) AS start FROM usage
WHERE account_id >= {account:String} AND (account_id > {account:String} OR time >= {time:DateTime('UTC')})
GROUP BY account_id, start ORDER BY account_id, start LIMIT {limit:UInt32} SETTINGS optimize_aggregation_in_order = 1
"""
_DONE: Final = f"""
SELECT count() FROM usage_by_hour FINAL WHERE shape = {_SHAPE}
  AND (account_id, hour) >= ({{first_account:String}}, {{first:DateTime('UTC')}})
  AND (account_id, hour) <= ({{last_account:String}}, {{last:DateTime('UTC')}})
"""  # noqa: S608 - our own words
_LATE_DAYS: Final = """
SELECT account_id, intDiv(toUnixTimestamp(day), 86400) FROM (
  SELECT account_id, toStartOfDay(hour, 'UTC') AS day, max(computed_at) AS hours_at FROM usage_by_hour
  WHERE account_id != '' AND hour < {end:DateTime('UTC')} GROUP BY account_id, day
) AS hours LEFT JOIN (
  SELECT account_id, day, max(computed_at) AS day_at FROM usage_by_day GROUP BY account_id, day
) AS days USING (account_id, day)
WHERE hours_at > day_at LIMIT {limit:UInt32} SETTINGS join_use_nulls = 0
"""


class Archive(Protocol):
    """Where rows are."""

    async def run(self, statement: str, parameters: dict[str, Any] | None = None) -> None:
        """Run a statement. Raises LedgerUnavailable."""

    async def query(self, statement: str, parameters: dict[str, Any] | None = None) -> Sequence[Sequence[Any]]:
        """Rows. Raises LedgerUnavailable."""


class Rollups:
    """See the module's docstring."""

    def __init__(self, archive: Archive, metrics: Metrics, *, every_s: float) -> None:
        self._archive = archive
        self._metrics = metrics
        self._every_s = every_s
        self._dirty: set[Hour] = set()
        self._dirty_days: set[Day] = set()
        self._caught_up = False
        self._swept_at = time.monotonic()

    def touched(self, account_id: str, time_ms: int) -> None:
        """A row of that account and time was archived."""
        if len(self._dirty) < _DIRTY_MAX:
            self._dirty.add((account_id, time_ms // _HOUR_MS))
        else:
            self._caught_up = False  # too many to remember: they are looked for instead

    async def run(self, stopping: asyncio.Event) -> None:
        """Sum up every so often, until told to stop; then once more."""
        while not stopping.is_set():
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(stopping.wait(), self._every_s)
            try:
                await self.flush()
            except LedgerUnavailable as error:
                _log.warning("hours are summed up again in %g s: %s", self._every_s, error)

    async def flush(self) -> int:
        """Sum up all hours that rows have come to; how many. Raises LedgerUnavailable: then they are kept."""
        if not self._caught_up:
            await self._catch_up()
        await self._sweep()
        hours, count = sorted(self._dirty), 0
        for start in range(0, len(hours), _AT_ONCE):
            part = hours[start : start + _AT_ONCE]
            self._dirty.difference_update(part)  # what comes while they are summed up counts anew
            try:
                await self._archive.run(_SUM_UP_LISTED, _parameters(part, _HOUR_MS))
            except LedgerUnavailable:
                self._dirty.update(part)
                raise
            self._dirty_days.update((account_id, hour // 24) for account_id, hour in part)
            count += len(part)
        await self._sum_up_days()
        self._metrics.add("relay_rollups_written_total", amount=count)
        return count

    async def _sweep(self) -> None:
        """Take over what another worker had in hand when it died."""
        if time.monotonic() - self._swept_at < _SWEEP_S:
            return
        found = await self._archive.query(_LEFT, {"since": clock.utc_now() - _SWEPT})
        self._dirty.update((account_id, int(hour)) for account_id, hour in found)
        self._swept_at = time.monotonic()

    async def _sum_up_days(self) -> None:
        """Those that are over: nobody reads a day before, and a worker that dies leaves them to `_catch_up_days`."""
        today = clock.unix_ms() // _DAY_MS
        days = sorted(day for day in self._dirty_days if day[1] < today)
        for start in range(0, len(days), _DAYS_AT_ONCE):
            part = days[start : start + _DAYS_AT_ONCE]
            await self._archive.run(_SUM_UP_DAYS, _parameters(part, _DAY_MS))
            self._dirty_days.difference_update(part)

    async def _catch_up(self) -> None:
        """Find what a worker that died had not summed up yet; the first time, all that there is."""
        ((latest, all_done),) = await self._archive.query(_SINCE)
        if not all_done:
            await self._make_all_anew()
        since = _aware(latest) - _OVERLAP if _aware(latest).year > 1970 else clock.from_unix_ms(0)
        if all_done:
            found = await self._archive.query(_LATE, {"since": since})
            self._dirty.update((account_id, int(hour)) for account_id, hour in found)
        await self._catch_up_days()
        self._caught_up = True

    async def _make_all_anew(self) -> None:
        """Walk over the archive, a page of hours at a time. Who is interrupted begins again and passes over what is done."""
        account_id, start_s = "", 0
        while True:
            after = {"account": account_id, "time": clock.from_unix_ms(start_s * 1000), "limit": _PAGE_HOURS}
            page = await self._archive.query(_PAGE, after)
            if page:
                await self._make_anew(page)
            if len(page) < _PAGE_HOURS:
                await self._archive.run(ALL_DONE)
                return
            account_id, start_s = str(page[-1][0]), int(page[-1][1]) + 3600

    async def _make_anew(self, page: Sequence[Sequence[Any]]) -> None:
        (first_account, first_s), (last_account, last_s) = page[0], page[-1]
        ends = {
            "first_account": first_account,
            "first": clock.from_unix_ms(int(first_s) * 1000),
            "last_account": last_account,
            "last": clock.from_unix_ms(int(last_s) * 1000),
        }
        ((done,),) = await self._archive.query(_DONE, ends)
        if int(done) < len(page):
            await self._archive.run(_SUM_UP_RANGE, ends)

    async def _catch_up_days(self) -> None:
        """Days that are over and older than one of their hours."""
        today = clock.unix_ms() // _DAY_MS
        asked = {"end": clock.from_unix_ms(today * _DAY_MS), "limit": _FOUND_DAYS_MAX}
        while True:
            found = await self._archive.query(_LATE_DAYS, asked)
            self._dirty_days.update((account_id, int(day)) for account_id, day in found)
            await self._sum_up_days()
            if len(found) < _FOUND_DAYS_MAX:
                return


def _aware(time: datetime) -> datetime:
    return time if time.tzinfo else time.replace(tzinfo=clock.utc_now().tzinfo)


def _parameters(spans: Sequence[tuple[str, int]], span_ms: int) -> dict[str, Any]:
    """Accounts and starts run in parallel: an account stands there once for each of its hours or days."""
    numbers = [number for _, number in spans]
    return {
        "accounts": [account_id for account_id, _ in spans],
        "starts": [number * span_ms // 1000 for number in numbers],
        "first": clock.from_unix_ms(min(numbers) * span_ms),
        "end": clock.from_unix_ms((max(numbers) + 1) * span_ms),
    }
