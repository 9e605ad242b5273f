"""relayctl as a process of its own, against a control plane on a real server with real stores."""

import asyncio
import json
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import pytest

from libs.common import apikeys, clock, serving
from libs.common.config import AdminConfig
from libs.common.runtime import spawn
from services.admin import openapi
from services.admin.app import OPERATIONS, PREFIX, create_app
from tests.integration.accounting_rig import Rig, until
from tests.integration.admin_rig import SECRETS_KEY, TOKEN

pytestmark = pytest.mark.anyio
ROOT: Final = Path(__file__).parent.parent.parent
_END_S: Final = 60


@dataclass(frozen=True)
class Ended:
    """A process that has ended."""

    code: int
    out: bytes
    err: str

    @property
    def json(self) -> Any:
        return json.loads(self.out)

    @property
    def lines(self) -> list[Any]:
        """Of NDJSON."""
        return [json.loads(line) for line in self.out.splitlines()]


Ctl = Callable[..., Awaitable[Ended]]


@pytest.fixture
async def rig(nats_url: str, redis_url: str, clickhouse_url: str) -> AsyncIterator[Rig]:
    async with Rig.over(nats_url, redis_url, clickhouse_url) as made:
        yield made


@pytest.fixture
async def url(rig: Rig) -> AsyncIterator[str]:
    """Of a control plane that is ready."""
    config = AdminConfig(
        nats_url=rig.config.nats_url, redis_url=rig.config.redis_url, clickhouse_url=rig.config.clickhouse_url,
        admin_token=TOKEN, secrets_key=SECRETS_KEY,
    )  # fmt: skip
    server = serving.plain_server(create_app(config), host="127.0.0.1", port=0)
    task = spawn(server.serve(), name="control plane")

    async def started() -> bool:
        return server.started or task.done()

    await until(started)
    yield f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"
    server.should_exit = True
    await task


@pytest.fixture
def ctl(url: str, tmp_path: Path) -> Ctl:
    """The command, signed in with the admin token unless `token` says otherwise."""

    async def run(*words: str, token: str = TOKEN, stdin: str = "", **more: str) -> Ended:
        environment = {"HOME": str(tmp_path), "PATH": "", "RELAYCTL_URL": url, "PYTHONPATH": str(ROOT), **more}
        if token:
            environment["RELAYCTL_TOKEN"] = token
        pipe = asyncio.subprocess.PIPE
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            "-m",
            "libs.relayctl",
            *words,
            env=environment,
            stdin=pipe,
            stdout=pipe,
            stderr=pipe,
            cwd=tmp_path,
        )
        out, err = await asyncio.wait_for(process.communicate(stdin.encode()), _END_S)
        assert token not in err.decode() or not token
        assert process.returncode is not None
        return Ended(process.returncode, out, err.decode())

    return run


async def done(ctl: Ctl, *words: str) -> Any:
    """The JSON of a command that succeeds."""
    ended = await ctl(*words, "--json")
    assert (ended.code, ended.err) == (0, "")
    return ended.json


async def test_from_an_account_to_its_statement(ctl: Ctl, rig: Rig, tmp_path: Path) -> None:
    await until(lambda: _is_ready(ctl))
    account_id = (await done(ctl, "accounts", "create", "--name", "Zoë 漢字", "--limits.rpm", "60"))["id"]
    shown = await done(ctl, "accounts", "show", account_id)
    assert (shown["name"], shown["limits"]["rpm"]) == ("Zoë 漢字", 60)

    credit = (
        "credits",
        "create",
        account_id,
        "--amount-usd",
        "10.00",
        "--reason",
        "hello",
        "--idempotency-key",
        "invoice 1",
    )
    assert await done(ctl, *credit) == await done(ctl, *credit)
    assert (await done(ctl, "balance", "show", account_id))["available_usd"] == "10.00"
    taken = ("credits", "create", account_id, "--amount-usd", "-2.50", "--reason", "back")
    assert (await done(ctl, *taken))["amount_usd"] == "-2.50"

    words = ["--name", "laptop", "--limits.rpm", "60", "--tag", "team-a", "--models", "claude-sonnet-4-6"]
    key = await done(ctl, "keys", "create", account_id, *words)
    assert apikeys.is_well_formed(key["key"].encode())
    assert (key["tag"], key["limits"]["rpm"], key["models"]) == ("team-a", 60, ["claude-sonnet-4-6"])
    changed = await done(
        ctl, "keys", "change", account_id, key["id"], "--no-tag", "--no-limits.rpm", "--models", "null"
    )
    assert (changed["tag"], changed["limits"]["rpm"], changed["models"]) == (None, None, None)

    rotated = await done(ctl, "key-batches", "rotate", account_id, key["id"], "--overlap-seconds", "0")
    listed = (await ctl("keys", "list", account_id, "--json", "--limit", "1")).lines
    assert {one["id"] for one in listed} == {key["id"], rotated["id"]}
    table = (await ctl("keys", "list", account_id, "--limit", "1")).out.decode().splitlines()
    assert table[0].split() == ["ID", "NAME", "HINT", "TAG", "STATUS", "EXPIRES_AT", "CREATED_AT"]
    assert len(table) == 3

    month = clock.utc_now().strftime("%Y-%m")
    target = tmp_path / "statement.csv"
    async with rig.worker():
        await until(lambda: _has_credit(ctl, account_id))
    ended = await ctl("statements", "show", account_id, month, "--output", str(target))
    assert (ended.code, ended.out, ended.err) == (0, b"", "")
    lines = target.read_bytes().split(b"\r\n")
    assert lines[0].startswith(b"date,entry,") and lines[-2].endswith(b",7.50") and lines[-1] == b""
    assert (await ctl("statements", "show", account_id, month)).out == target.read_bytes()


async def _is_ready(ctl: Ctl) -> bool:
    return (await ctl("accounts", "list", "--limit-pages", "1")).code == 0


async def _has_credit(ctl: Ctl, account_id: str) -> bool:
    return len((await ctl("credits", "list", account_id, "--json")).lines) == 2


async def test_every_way_it_ends(ctl: Ctl, url: str) -> None:
    await until(lambda: _is_ready(ctl))
    account = await done(ctl, "accounts", "create", "--name", "a")
    refused = await ctl("accounts", "show", "acct_nobody")
    assert (refused.code, refused.out) == (1, b"")
    assert refused.err == "relayctl: There is no such account.\n"
    stale = await ctl("accounts", "change", account["id"], "--name", "b", "--if-match", "1")
    assert stale.code == 1 and "It has changed since you read it" in stale.err
    wrong = await ctl("accounts", "create")
    assert wrong.code == 2 and "missing: --name" in wrong.err
    assert (await ctl("accounts", "list", token="")).code == 3
    unknown = await ctl("accounts", "list", token="rst_0123456789abcdefghijklmnop")
    assert unknown.code == 3 and "service token" in unknown.err
    away = await ctl("accounts", "list", RELAYCTL_URL="http://127.0.0.1:9")
    assert away.code == 4 and "no connection" in away.err


async def test_a_body_from_standard_input(ctl: Ctl) -> None:
    await until(lambda: _is_ready(ctl))
    ended = await ctl("accounts", "create", "--body", "-", "--json", stdin='{"name": "from a pipe"}')
    assert ended.code == 0 and ended.json["name"] == "from a pipe"
    refused = await ctl("accounts", "create", "--body", "-", stdin="{")
    assert refused.code == 1 and "cannot be read" in refused.err


async def test_an_operator_signs_in_and_out(ctl: Ctl, tmp_path: Path) -> None:
    await until(lambda: _is_ready(ctl))
    email = f"op{clock.unix_ms()}@example.com"
    invited = await done(ctl, "operators", "create", "--name", "Op", "--email", email, "--role", "viewer")
    link = invited["link"]["url"].partition("#")[2]
    accept = ("signing-in", "accept", "--token", "-", "--password", "a long password")
    assert (await ctl(*accept, token="", stdin=f"{link}\n")).code == 0
    assert (await ctl("login", token="", stdin=f"{email}\nwrong\n")).code == 3
    signed_in = await ctl("login", token="", stdin=f"{email}\na long password\n")
    assert signed_in.code == 0, signed_in.err
    kept = tmp_path / ".config" / "relayctl" / "config.json"
    assert kept.stat().st_mode & 0o777 == 0o600
    who = await ctl("whoami", "--json", token="")
    assert (who.json["actor"], who.json["role"]) == (invited["id"], "operator:viewer")
    forbidden = await ctl("accounts", "create", "--name", "no", token="")
    assert forbidden.code == 3 and "Your role is operator:viewer" in forbidden.err
    session = json.loads(kept.read_text())["contexts"]["default"]["token"]
    assert (await ctl("logout", token="")).code == 0
    assert (await ctl("whoami", token="")).code == 3
    assert (await ctl("whoami", token=session)).code == 3


async def test_the_server_says_whether_its_document_is_known(url: str, ctl: Ctl, tmp_path: Path) -> None:
    assert (await ctl("--help")).code == 0
    (kept,) = (tmp_path / ".cache" / "relayctl").glob("*.json")
    value = json.loads(kept.read_text())
    assert value["etag"] and value["document"] == openapi.document(OPERATIONS, prefix=PREFIX)
    kept.write_text(
        json.dumps({**value, "read_at_ms": 0, "document": {**value["document"], "info": {"title": "kept"}}})
    )
    assert (await ctl("--help")).code == 0
    assert json.loads(kept.read_text())["document"]["info"] == {"title": "kept"}
    assert (await ctl("--refresh", "nothing")).code == 2
