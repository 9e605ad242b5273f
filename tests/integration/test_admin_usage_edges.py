"""Usage where tags, times and ranges are odd."""

import csv
import io
from typing import Any

import pytest

from tests.integration.accounting_rig import Rig
from tests.integration.admin_rig import Admin
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
