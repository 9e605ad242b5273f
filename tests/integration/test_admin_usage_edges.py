"""Usage where tags, times and ranges are odd."""

import asyncio
import contextlib
import csv
import io
from collections.abc import AsyncIterator, Sequence
from typing import Any

import httpx2
import pytest
import uvicorn

from libs.localstack.process import free_port
from services.admin.ledger import Row
from services.admin.problems import Unavailable
from tests.integration.accounting_rig import Rig, until
from tests.integration.admin_rig import TOKEN, Admin
from tests.integration.test_admin_usage import Account, admin, rig

pytestmark = pytest.mark.anyio
__all__ = ["admin", "rig"]


@pytest.mark.parametrize(
    "tag", ["it's", 'a "b", c', "back\\slash", "\\N", "{x:String}", "漢字 =1+1", "other", "%27 OR 1=1"]
)
async def test_a_tag_is_only_a_word(admin: Admin, rig: Rig, tag: str) -> None:
    account = await Account(admin, rig).made()
    await admin.done("PATCH", f"/accounts/{account.id}/keys/{account.keys[1]}", json={"tag": tag})
    answer = await account.usage("?group=tag&metrics=requests")
    assert {one["values"]["tag"]: one["metrics"]["requests"] for one in answer["groups"]} == {tag: 2, "web": 1}
    params: dict[str, Any] = {"tag": tag, "metrics": "requests", "group": "tag,day"}
    assert (await account.usage(params=params))["totals"]["requests"] == 2
    text = (await admin.send("GET", f"/accounts/{account.id}/usage", params=params | {"format": "csv"})).text
    assert {row["tag"] for row in csv.DictReader(io.StringIO(text))} == {tag}


async def test_a_table_without_lines_has_a_head(admin: Admin) -> None:
    account_id = await admin.new_account()
    for query, head in (
        ("group=key&metrics=cost,first_byte_ms", "key,key_name,cost_usd,first_byte_us,first_bytes,first_byte_ms"),
        ("group=day,model&metrics=requests&from=2040-01-01&to=2040-02-01", "day,model,requests"),
    ):
        answer = await admin.send("GET", f"/accounts/{account_id}/usage?{query}&format=csv")
        assert answer.text == f"{head}\r\n"


async def test_the_beginning_of_time(admin: Admin) -> None:
    """In Berlin 1970 begins an hour before anything can be told in Unix time."""
    account_id = await admin.new_account()
    for format_ in ("json", "csv"):
        query = f"group=month&zone=Europe/Berlin&from=1970-01-01&to=1970-03-01&format={format_}"
        assert (await admin.send("GET", f"/accounts/{account_id}/usage?{query}")).status_code == 200


@contextlib.asynccontextmanager
async def on_a_socket(admin: Admin) -> AsyncIterator[httpx2.AsyncClient]:
    """The same application, where an answer may be cut."""
    port = free_port()
    server = uvicorn.Server(uvicorn.Config(admin.app, port=port, lifespan="off", log_config=None))
    serving = asyncio.get_running_loop().create_task(server.serve())
    try:
        await until(lambda: _true(server.started))
        headers = {"authorization": f"Bearer {TOKEN}"}
        async with httpx2.AsyncClient(
            base_url=f"http://127.0.0.1:{port}/api/v1", headers=headers, trust_env=False
        ) as client:
            yield client
    finally:
        server.should_exit = True
        await serving


async def _true(value: bool) -> bool:
    return value


@pytest.mark.parametrize("path", ["/usage?group=key&format=csv", "/usage?group=key&format=ndjson", "/audit/export"])
async def test_an_export_that_breaks_off_does_not_look_whole(
    admin: Admin, rig: Rig, path: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The connection ends without the end of the answer."""
    account = await Account(admin, rig).made()
    ledger, calls = admin.context.ledger, 0
    whole, query = ledger.stream, ledger.query

    async def broken(sql: str, parameters: dict[str, Any]) -> AsyncIterator[Sequence[Any]]:
        async for row in whole(sql, parameters):
            yield row
            raise Unavailable("away")

    async def broken_later(sql: str, parameters: dict[str, Any]) -> list[Row]:
        nonlocal calls
        calls += 1
        if calls > 2:
            raise Unavailable("away")
        return await query(sql, parameters)

    async with on_a_socket(admin) as client:
        assert (await client.get(f"/accounts/{account.id}{path}")).status_code == 200
        monkeypatch.setattr(ledger, "stream", broken)
        monkeypatch.setattr(ledger, "query", broken_later)
        with pytest.raises(httpx2.RemoteProtocolError):
            await client.get(f"/accounts/{account.id}{path}")
