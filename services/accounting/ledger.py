"""The only writer of ClickHouse. Appending the same rows twice leaves the same archive: newer versions replace older ones."""

from collections.abc import Sequence
from typing import Any, Final, Self

from clickhouse_connect.driver import create_async_client
from clickhouse_connect.driver.asyncclient import AsyncClient
from clickhouse_connect.driver.exceptions import ClickHouseError

from services.accounting.rows import CONTROL_COLUMNS, CREDIT_COLUMNS, USAGE_COLUMNS, Row

_SETTINGS: Final = {"async_insert": 0}


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
            return cls(await create_async_client(dsn=url, autogenerate_session_id=False))
        except (ClickHouseError, OSError) as error:
            raise LedgerUnavailable(str(error)) from error

    async def append_usage(self, rows: Sequence[Row]) -> None:
        """Append rows of `usage`. Raises LedgerUnavailable."""
        await self._insert("usage", rows, USAGE_COLUMNS)

    async def append_control(self, rows: Sequence[Row], credit_rows: Sequence[Row]) -> None:
        """Append rows of `control` and of `credits`. Raises LedgerUnavailable."""
        await self._insert("control", rows, CONTROL_COLUMNS)
        await self._insert("credits", credit_rows, CREDIT_COLUMNS)

    async def run(self, statement: str) -> None:
        """Run a statement of a migration. Raises LedgerUnavailable."""
        try:
            await self._client.command(statement)
        except (ClickHouseError, OSError) as error:
            raise LedgerUnavailable(str(error)) from error

    async def query(self, statement: str) -> Sequence[Sequence[Any]]:
        """Rows of a query without parameters. Raises LedgerUnavailable."""
        try:
            return (await self._client.query(statement)).result_rows
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
        except (ClickHouseError, OSError) as error:
            raise LedgerUnavailable(str(error)) from error
