"""Reads the archive. Every figure comes from ClickHouse through FINAL, so a replaced row is never counted."""

import asyncio
import logging
from collections import defaultdict
from collections.abc import AsyncIterator, Collection, Sequence
from datetime import datetime
from typing import Any, Final

from clickhouse_connect.driver import create_async_client
from clickhouse_connect.driver.asyncclient import AsyncClient
from clickhouse_connect.driver.exceptions import ClickHouseError
from clickhouse_connect.driver.query import QueryResult

from libs.common import clock, ids
from services.admin.problems import Unavailable

Row = dict[str, Any]
Names = dict[str, list[tuple[datetime, str]]]
"""By id: since when, what; in order."""

_log: Final = logging.getLogger("relay.ledger")
_CONNECT_S: Final = 2
_REPLY_S: Final = 15
_AWAY: Final = "The ledger does not answer. Try again."
_DAY_MS: Final = 86_400_000
_TIME_MS_MIN: Final = 1_577_836_800_000  # 2020-01-01, as in accounting
_TIME_MS_MAX: Final = 4_102_444_800_000
_FIRST_WINDOW_MS: Final = 600_000
_WIDER: Final = 6
_LATEST: Final = "ORDER BY time DESC, request_id DESC"


class Ledger:
    """Connects when first used, so that the control plane starts without ClickHouse."""

    def __init__(self, url: str) -> None:
        self._url = url
        self._client: AsyncClient | None = None
        self._connecting = asyncio.Lock()

    async def requests(self, filters: dict[str, Any], limit: int) -> list[Row]:
        """Rows, newest first. `filters`: account_id, key_id, member_id, model, outcome, client, errors (True: only those of
        status 0 or from 400 on), from_ms, to_ms, and before_ms with before_id (exclusive).

        Looks back in windows of time that widen until the page is full: it reads first where the page ends, in few and narrow
        columns, and then what is on it. So the newest page costs the same however many rows lie behind it.
        """
        conditions = [condition for name, condition in _CONDITIONS.items() if filters.get(name) is not None]
        conditions += [_ERRORS] if filters.get("errors") else []
        parameters: dict[str, Any] = {name: value for name, value in filters.items() if name != "errors"}
        newest_ms = min(filters.get("to_ms", _TIME_MS_MAX), filters.get("before_ms", _TIME_MS_MAX - 1) + 1)
        oldest_ms = max(filters.get("from_ms", 0), _TIME_MS_MIN)
        start_ms = await self._page_start(conditions, parameters | {"limit": limit}, oldest_ms, newest_ms)
        where = " AND ".join([*conditions, _CONDITIONS["from_ms"]])
        return await self.query(
            f"SELECT * FROM usage FINAL {_WINDOW} WHERE {where} {_LATEST} LIMIT {{limit:UInt32}} {_SETTINGS}",  # noqa: S608
            {**parameters, "limit": limit, "start_ms": start_ms, "end_ms": newest_ms, "from_ms": oldest_ms},
        )

    async def _page_start(
        self, conditions: Sequence[str], parameters: dict[str, Any], oldest_ms: int, newest_ms: int
    ) -> int:
        """A time from which on there is a page of rows; the oldest if there are not so many."""
        where = " AND ".join(conditions) or "1"
        width_ms, from_ms = _FIRST_WINDOW_MS, min(newest_ms, clock.unix_ms())
        while from_ms - width_ms > oldest_ms:
            found = await self.rows(
                f"SELECT toUnixTimestamp64Milli(time) FROM usage FINAL {_WINDOW} WHERE {where}"  # noqa: S608 - our own words
                f" ORDER BY time DESC LIMIT 1 OFFSET {{before_last:UInt32}} {_SETTINGS}",
                {
                    **parameters,
                    "before_last": parameters["limit"] - 1,
                    "start_ms": from_ms - width_ms,
                    "end_ms": newest_ms,
                },
            )
            if found:
                return int(found[0][0])
            width_ms *= _WIDER
        return oldest_ms

    async def request(self, request_id: str) -> Row | None:
        """One row by our id, or by the upstream's; None if there is none (yet)."""
        rows: Sequence[Row] = []
        if (time_ms := _time_ms(request_id)) is not None:
            rows = await self.query(
                "SELECT * FROM usage FINAL WHERE request_id = {id:String}"
                " AND time BETWEEN fromUnixTimestamp64Milli({from:Int64}) AND fromUnixTimestamp64Milli({to:Int64})",
                {"id": request_id, "from": time_ms - _DAY_MS, "to": time_ms + _DAY_MS},
            )
        if not rows:
            rows = await self.query(
                "SELECT * FROM usage FINAL WHERE upstream_request_id = {id:String} LIMIT 1", {"id": request_id}
            )
        return rows[0] if rows else None

    async def entities(self, kind: str, account_id: str, *, after: str = "", limit: int = 1_000_000) -> list[Row]:
        """The latest archived state of each entity of an account: a second or two behind the log of changes."""
        return await self.query(
            "SELECT entity_id, argMax(entity, sequence) AS entity FROM control FINAL"
            " WHERE kind = {kind:String} AND account_id = {account_id:String} AND entity_id > {after:String}"
            " GROUP BY entity_id ORDER BY entity_id LIMIT {limit:UInt32}",
            {"kind": kind, "account_id": account_id, "after": after, "limit": limit},
        )

    async def names(self, entity_ids: Collection[str]) -> Names:
        """What keys and members were called, and since when."""
        if not entity_ids:
            return {}
        rows = await self.rows(_NAMES, {"ids": sorted(entity_ids)})
        found: Names = defaultdict(list)
        for entity_id, time, name in rows:
            found[entity_id].append((time, name))
        return found

    async def credits(self, account_id: str, after: str, limit: int) -> list[Row]:
        """Entries of an account, in the order they were made, those after an id."""
        return await self.query(_CREDITS, {"account_id": account_id, "after": after, "limit": limit})

    async def answers(self) -> bool:
        """Whether ClickHouse answers now."""
        try:
            await self.query("SELECT 1", {})
        except Unavailable:
            return False
        return True

    async def close(self) -> None:
        """Close the connections."""
        if self._client is not None:
            await self._client.close()

    async def rows(self, sql: str, parameters: dict[str, Any]) -> Sequence[Sequence[Any]]:
        """Rows of a query. Raises Unavailable."""
        return (await self._result(sql, parameters)).result_rows

    async def stream(self, sql: str, parameters: dict[str, Any]) -> AsyncIterator[Sequence[Any]]:
        """Rows of a query as they come, however many. Raises Unavailable, also in the middle."""
        try:
            client = await self._connected()
            async with await client.query_row_block_stream(sql, parameters=parameters) as blocks:
                async for block in blocks:
                    for row in block:
                        yield row
        except (ClickHouseError, OSError) as error:
            raise _unavailable(error) from None

    async def query(self, sql: str, parameters: dict[str, Any]) -> list[Row]:
        """Rows of a statement, by column; whatever a caller has said is a parameter. Raises Unavailable."""
        result = await self._result(sql, parameters)
        return [dict(zip(result.column_names, row, strict=True)) for row in result.result_rows]

    async def _result(self, sql: str, parameters: dict[str, Any]) -> QueryResult:
        try:
            client = await self._connected()
            return await client.query(sql, parameters=parameters)
        except (ClickHouseError, OSError) as error:
            raise _unavailable(error) from None

    async def _connected(self) -> AsyncClient:
        async with self._connecting:
            if self._client is None:
                self._client = await create_async_client(
                    dsn=self._url,
                    autogenerate_session_id=False,
                    connect_timeout=_CONNECT_S,
                    send_receive_timeout=_REPLY_S,
                )
            return self._client


_NAMES: Final = """
SELECT entity_id, time, JSONExtractString(entity, 'name') FROM control FINAL
WHERE kind IN ('key', 'member') AND entity_id IN {ids:Array(String)} ORDER BY sequence
"""
_CREDITS: Final = """
SELECT * FROM credits FINAL WHERE account_id = {account_id:String}
  AND (time, credit_id) > (SELECT max(time), max(credit_id) FROM credits FINAL
    WHERE account_id = {account_id:String} AND credit_id = {after:String})
ORDER BY time, credit_id LIMIT {limit:UInt32}
"""


def name_at(names: Names, entity_id: str, time: datetime) -> str | None:
    """What a key or a member was called then; of before its first change, the first name. None: not in the archive yet."""
    told = names.get(entity_id)
    if not told:
        return None
    return next((name for since, name in reversed(told) if since <= time), told[0][1])


def _unavailable(error: Exception) -> Unavailable:
    _log.warning("ClickHouse: %s", " ".join(str(error).split())[:500] or type(error).__name__)
    return Unavailable(_AWAY)


_CONDITIONS: Final = {
    "account_id": "account_id = {account_id:String}",
    "key_id": "key_id = {key_id:String}",
    "member_id": "member_id = {member_id:String}",
    "model": "model_answered = {model:String}",
    "outcome": "outcome = {outcome:String}",
    "client": "client = {client:String}",
    "from_ms": "time >= fromUnixTimestamp64Milli({from_ms:Int64})",
    "to_ms": "time < fromUnixTimestamp64Milli({to_ms:Int64})",
    "before_ms": "(time, request_id) < (fromUnixTimestamp64Milli({before_ms:Int64}), {before_id:String})",
}
_ERRORS: Final = "(status >= 400 OR status = 0)"
_WINDOW: Final = (
    "PREWHERE time >= fromUnixTimestamp64Milli({start_ms:Int64}) AND time < fromUnixTimestamp64Milli({end_ms:Int64})"
)
"""By the sort key alone, so that it may be looked at before versions are put together; the rest is read only where it holds."""
_SETTINGS: Final = "SETTINGS do_not_merge_across_partitions_select_final = 1"
"""The month of a row is a part of its sort key: two versions of a row never lie in two partitions."""


def _time_ms(request_id: str) -> int | None:
    """The time inside an id of ours; None for anything else, far-off times included."""
    try:
        time_ms = ids.id_time_ms(request_id)
    except ValueError:
        return None
    return time_ms if abs(time_ms - clock.unix_ms()) < 100 * 365 * _DAY_MS else None
