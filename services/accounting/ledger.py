"""The only writer of ClickHouse. Appending the same rows twice leaves the same archive: newer versions replace older ones."""

from collections.abc import Sequence
from typing import Any, Final, Self

from clickhouse_connect.driver import create_async_client
from clickhouse_connect.driver.asyncclient import AsyncClient
from clickhouse_connect.driver.exceptions import ClickHouseError, DataError

from libs.common import clock, ids
from libs.common.balances import Settlement
from libs.common.events import Credit
from services.accounting.rows import CONTROL_COLUMNS, CREDIT_COLUMNS, REFUSAL_COLUMNS, USAGE_COLUMNS, Row

_CONNECT_S: Final = 5
_REPLY_S: Final = 60
_SETTINGS: Final = {"async_insert": 0, "max_partitions_per_insert_block": 0}
_ASKED_AT_ONCE: Final = 20
_SETTLED_BEFORE: Final = """
SELECT request_id, max(version), argMax(total_nanos, version) FROM usage
WHERE account_id IN {accounts:Array(String)} AND time BETWEEN {first:DateTime64(3)} AND {last:DateTime64(3)}
  AND request_id IN {ids:Array(String)} AND recorded_at < {recorded_before:DateTime64(3)}
GROUP BY request_id
"""
_HAS_CREDIT: Final = "SELECT 1 FROM credits WHERE account_id = {account:String} AND credit_id = {credit:String} LIMIT 1"


class LedgerUnavailable(Exception):
    """ClickHouse cannot be asked or did not take the rows. Try again later; a partial write does no harm."""


class Ledger:
    """Appends rows, and runs migrations."""

    def __init__(self, client: AsyncClient) -> None:
        self._client = client

    @classmethod
    async def open(cls, url: str) -> Self:
        """Connect to `http://user:password@host:port/database`. Raises LedgerUnavailable."""
        try:
            client = await create_async_client(
                dsn=url, autogenerate_session_id=False, connect_timeout=_CONNECT_S, send_receive_timeout=_REPLY_S
            )
            return cls(client)
        except (ClickHouseError, OSError) as error:
            raise LedgerUnavailable(str(error)) from error

    async def append_usage(self, rows: Sequence[Row]) -> None:
        """Append rows of `usage`. Raises LedgerUnavailable."""
        await self._insert("usage", rows, USAGE_COLUMNS)

    async def append_control(self, rows: Sequence[Row]) -> None:
        """Append rows of `control`. Raises LedgerUnavailable."""
        await self._insert("control", rows, CONTROL_COLUMNS)

    async def append_credits(self, rows: Sequence[Row]) -> None:
        """Append rows of `credits`. Raises LedgerUnavailable."""
        await self._insert("credits", rows, CREDIT_COLUMNS)

    async def append_refusals(self, rows: Sequence[Row]) -> None:
        """Append rows of `refusals`. Raises LedgerUnavailable."""
        await self._insert("refusals", rows, REFUSAL_COLUMNS)

    async def settled_before(
        self, settlements: Sequence[Settlement], recorded_before_ms: int
    ) -> dict[str, tuple[int, int]]:
        """Request id → (version, total) of the newest row archived before that time. Raises LedgerUnavailable.

        Without FINAL: a correction archived a moment ago, and perhaps not settled, must not hide what it corrects.
        """
        found: dict[str, tuple[int, int]] = {}
        for start in range(0, len(settlements), _ASKED_AT_ONCE):  # so few that they travel in the URL
            found |= await self._settled_before(settlements[start : start + _ASKED_AT_ONCE], recorded_before_ms)
        return found

    async def _settled_before(
        self, settlements: Sequence[Settlement], recorded_before_ms: int
    ) -> dict[str, tuple[int, int]]:
        times_ms = [ids.id_time_ms(one.request_id) for one in settlements]
        parameters = {
            "accounts": sorted({one.account_id for one in settlements}),
            "ids": sorted({one.request_id for one in settlements}),
            "first": clock.from_unix_ms(min(times_ms)),
            "last": clock.from_unix_ms(max(times_ms)),
            "recorded_before": clock.from_unix_ms(recorded_before_ms),
        }
        rows = await self.query(_SETTLED_BEFORE, parameters)
        return {request_id: (version, total) for request_id, version, total in rows}

    async def has_credit(self, credit: Credit) -> bool:
        """Whether it was taken: only such are archived. Raises LedgerUnavailable."""
        return bool(await self.query(_HAS_CREDIT, {"account": credit.account_id, "credit": credit.id}))

    async def run(self, statement: str, parameters: dict[str, Any] | None = None) -> None:
        """Run a statement that gives no rows. Raises LedgerUnavailable."""
        try:
            await self._client.command(statement, parameters=parameters)
        except (ClickHouseError, OSError) as error:
            raise LedgerUnavailable(str(error)) from error

    async def query(self, statement: str, parameters: dict[str, Any] | None = None) -> Sequence[Sequence[Any]]:
        """Rows of a query. Raises LedgerUnavailable."""
        try:
            return (await self._client.query(statement, parameters=parameters)).result_rows
        except (ClickHouseError, OSError) as error:
            raise LedgerUnavailable(str(error)) from error

    async def answers(self) -> bool:
        """Whether ClickHouse answers now."""
        return bool(await self._client.ping())

    async def close(self) -> None:
        """Close the connections."""
        await self._client.close()

    async def _insert(self, table: str, rows: Sequence[Row], columns: Sequence[str]) -> None:
        if not rows:
            return
        try:
            await self._client.insert(table, rows, column_names=columns, settings=_SETTINGS)
        except DataError:
            raise  # a value that no column holds: one of these rows is poison, and ClickHouse was not even asked
        except (ClickHouseError, OSError) as error:
            raise LedgerUnavailable(str(error)) from error
