"""Hourly sums, made anew from the rows wherever rows have come: exact under redelivery, corrections and regrouped batches.

An additive view would count what is delivered twice; this counts what stands in `usage FINAL`. One row holds all groups of an
account's hour and is replaced as a whole, so that a group which is no more (`expired` that is `measured` now) goes too.

Two workers may sum up one hour at once. Each does so after its own rows are archived and notes when its query began; the row with
the later time wins, and it has seen whatever was archived before that time. Whoever archives later sums up later. A worker that
dies with hours in hand leaves them to the next one that starts, which looks for rows archived since the last sum.
"""

import asyncio
import contextlib
import logging
from collections.abc import Sequence
from datetime import datetime, timedelta
from typing import Any, Final, Protocol

from libs.common import clock
from libs.common.metrics import Metrics
from services.accounting.ledger import LedgerUnavailable

_log: Final = logging.getLogger("relay.rollups")
_HOUR_MS: Final = 3_600_000
_AT_ONCE: Final = 20
_DIRTY_MAX: Final = 100_000
_OVERLAP: Final = timedelta(hours=1)
Hour = tuple[str, int]
"""Account id, and the Unix hour."""

_SUM_UP: Final = """
INSERT INTO usage_hours
SELECT account_id, hour, groupArray(key_id), groupArray(member_id), groupArray(model_answered), groupArray(outcome),
  groupArray(requests), groupArray(errors), groupArray(input), groupArray(cache_read), groupArray(write_5m), groupArray(write_1h),
  groupArray(output), groupArray(searches), groupArray(total), groupArray(first_byte), groupArray(duration), now64(6)
FROM (
  SELECT account_id, toStartOfHour(time, 'UTC') AS hour, key_id, member_id, model_answered, outcome,
    count() AS requests, countIf(status >= 400 OR status = 0) AS errors,
    sum({input}) AS input, sum({cache_read}) AS cache_read, sum({cache_write_5m}) AS write_5m, sum({cache_write_1h}) AS write_1h,
    sum({output}) AS output, sum({web_search}) AS searches,
    sum(toInt128(total_nanos)) AS total, sum(first_byte_us) AS first_byte, sum(duration_us) AS duration
  FROM usage FINAL
  WHERE account_id IN {{accounts:Array(String)}} AND time >= {{first:DateTime}} AND time < {{end:DateTime}}
    AND (account_id, toUnixTimestamp(toStartOfHour(time, 'UTC'))) IN
      (SELECT arrayJoin(arrayZip({{accounts:Array(String)}}, {{hours:Array(UInt32)}})))
  GROUP BY account_id, hour, key_id, member_id, model_answered, outcome
)
GROUP BY account_id, hour
""".format(  # noqa: S608 - our own words
    **{
        name: f"toUInt64(arraySum((class, quantity) -> if(class = '{name}', quantity, 0), line_classes, line_quantities))"
        for name in ("input", "cache_read", "cache_write_5m", "cache_write_1h", "output", "web_search")
    }
)
_SINCE: Final = "SELECT max(computed_at) FROM usage_hours"
_LATE: Final = """
SELECT DISTINCT account_id, intDiv(toUnixTimestamp(time), 3600) FROM usage WHERE recorded_at >= {since:DateTime64(3)}
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
        self._caught_up = False

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
        hours, count = sorted(self._dirty), 0
        for start in range(0, len(hours), _AT_ONCE):
            part = hours[start : start + _AT_ONCE]
            self._dirty.difference_update(part)  # what comes while they are summed up counts anew
            try:
                await self._archive.run(_SUM_UP, _parameters(part))
            except LedgerUnavailable:
                self._dirty.update(part)
                raise
            count += len(part)
        self._metrics.add("relay_rollups_written_total", amount=count)
        return count

    async def _catch_up(self) -> None:
        """Find what a worker that died had not summed up yet."""
        ((latest,),) = await self._archive.query(_SINCE)
        since = _aware(latest) - _OVERLAP if _aware(latest).year > 1970 else clock.from_unix_ms(0)
        found = await self._archive.query(_LATE, {"since": since})
        self._dirty.update((account_id, int(hour)) for account_id, hour in found)
        self._caught_up = True


def _aware(time: datetime) -> datetime:
    return time if time.tzinfo else time.replace(tzinfo=clock.utc_now().tzinfo)


def _parameters(hours: Sequence[Hour]) -> dict[str, Any]:
    """Accounts and hours run in parallel: an account stands there once for each of its hours."""
    numbers = [hour for _, hour in hours]
    return {
        "accounts": [account_id for account_id, _ in hours],
        "hours": [hour * 3600 for hour in numbers],
        "first": clock.from_unix_ms(min(numbers) * _HOUR_MS),
        "end": clock.from_unix_ms((max(numbers) + 1) * _HOUR_MS),
    }
