"""Reads the archive. Every figure comes from ClickHouse through FINAL, so a replaced row is never counted."""

import asyncio
import logging
from collections.abc import Sequence
from typing import Any, Final

from clickhouse_connect.driver import create_async_client
from clickhouse_connect.driver.asyncclient import AsyncClient
from clickhouse_connect.driver.exceptions import ClickHouseError

from libs.common import clock, ids
from services.admin.problems import Unavailable

Row = dict[str, Any]

_log: Final = logging.getLogger("relay.ledger")
_CONNECT_S: Final = 2
_REPLY_S: Final = 15
_AWAY: Final = "The ledger does not answer. Try again."
_DAY_MS: Final = 86_400_000
_LATEST: Final = "ORDER BY time DESC, request_id DESC"


class Ledger:
    """Connects when first used, so that the control plane starts without ClickHouse."""

    def __init__(self, url: str) -> None:
        self._url = url
        self._client: AsyncClient | None = None
        self._connecting = asyncio.Lock()

    async def requests(self, filters: dict[str, Any], limit: int) -> list[Row]:
        """Rows, newest first. `filters`: account_id, key_id, from_ms, to_ms, and before_ms with before_id (exclusive)."""
        conditions = [_CONDITIONS[name] for name in filters if name in _CONDITIONS]
        where = " AND ".join(conditions) or "1"
        return await self.query(
            f"SELECT * FROM usage FINAL WHERE {where} {_LATEST} LIMIT {{limit:UInt32}}",  # noqa: S608 - our own words
            {**filters, "limit": limit},
        )

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

    async def query(self, sql: str, parameters: dict[str, Any]) -> list[Row]:
        """Rows of a statement; whatever a caller has said is a parameter. Raises Unavailable."""
        try:
            client = await self._connected()
            result = await client.query(sql, parameters=parameters)
        except (ClickHouseError, OSError) as error:
            _log.warning("ClickHouse: %s", " ".join(str(error).split())[:500] or type(error).__name__)
            raise Unavailable(_AWAY) from None
        return [dict(zip(result.column_names, row, strict=True)) for row in result.result_rows]

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


_CREDITS: Final = """
SELECT * FROM credits FINAL WHERE account_id = {account_id:String}
  AND (time, credit_id) > (SELECT max(time), max(credit_id) FROM credits FINAL
    WHERE account_id = {account_id:String} AND credit_id = {after:String})
ORDER BY time, credit_id LIMIT {limit:UInt32}
"""
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


def _time_ms(request_id: str) -> int | None:
    """The time inside an id of ours; None for anything else, far-off times included."""
    try:
        time_ms = ids.id_time_ms(request_id)
    except ValueError:
        return None
    return time_ms if abs(time_ms - clock.unix_ms()) < 100 * 365 * _DAY_MS else None
