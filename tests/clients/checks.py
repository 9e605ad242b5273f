"""What is checked of Claude Code and of the ledger behind both clients. A check fails by an AssertionError that says why."""

import json
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass, field
from decimal import Decimal
from pathlib import Path
from typing import Any, Final

from tests.clients.claude import Answer, ClaudeCode
from tests.clients.install import Installed
from tests.clients.recorder import Recorder, recording
from tests.e2e.relay import Relay

MODEL: Final = "claude-sonnet-4-6"
SDK_ROWS: Final = 10
"""What sdk.mjs asks for that is admitted: 1 message, 1 stream, 2 turns of a tool, 4 upstream errors, 2 broken streams."""
SDK_REFUSED: Final = 4
"""Two 401, a 402 and a 404: one request each, though the SDK would repeat some errors."""
_TRIES_MAX: Final = 12
_SDK_S_MAX: Final = 90
_TEXT: Final = "written by Claude Code — 中文\n"


@dataclass(frozen=True)
class Bench:
    """What every check uses."""

    relay: Relay
    installed: Installed
    claude: ClaudeCode
    directory: Path
    free_accounts: list[str] = field(default_factory=list)
    """Accounts nothing may be charged to; looked at once more at the end, when a late row would have come."""

    def empty_key(self) -> str:
        """A key of an account without credit."""
        account, key = self.relay.new_account(credit_usd="0")
        self.free_accounts.append(account)
        return key

    def disabled_key(self) -> str:
        """A key that was valid and is no longer."""
        account, _ = self.relay.new_account()
        self.free_accounts.append(account)
        key = self.relay.new_key(account)
        change = self.relay.admin.patch(f"/accounts/{account}/keys/{key['id']}", json={"status": "disabled"})
        change.raise_for_status()
        return str(key["key"])


def typescript_sdk(bench: Bench) -> Iterator[dict[str, Any]]:
    """sdk.mjs' own checks as they end, and then the ledger's."""
    account, key = bench.relay.new_account()
    directory = bench.directory / "sdk"
    directory.mkdir()
    with recording(bench.relay.gateway_url) as recorder:
        argument = {
            "url": recorder.url,
            "key": key,
            "emptyKey": bench.empty_key(),
            "disabledKey": bench.disabled_key(),
            "directory": str(directory),
            "model": MODEL,
        }
        command = [bench.installed.node, str(bench.installed.script), json.dumps(argument)]
        done = subprocess.run(command, capture_output=True, text=True, timeout=_SDK_S_MAX)
    assert done.returncode == 0, done.stderr[-2000:]
    bench.relay.forget_breakers()
    yield from (json.loads(line) for line in done.stdout.splitlines())
    rows = bench.relay.rows(account, SDK_ROWS)
    assert {row["client"] for row in rows} == {"anthropic-typescript"}
    assert sorted(row["outcome"] for row in rows) == ["free"] * 4 + ["measured"] * 4 + ["partial"] * 2
    assert len(recorder.messages()) == SDK_ROWS + SDK_REFUSED, [seen.target for seen in recorder.requests]
    yield {
        "name": f"{len(rows)} ledger rows, their sum is the balance's change; every refusal was asked once",
        "ok": True,
    }


def writes_a_file(bench: Bench, credential: str, header: str) -> str:
    """Claude Code does a task with a tool; ledger and balance say what it cost, and so does Claude Code."""
    account, key = bench.relay.new_account()
    work = bench.directory / f"work-{header}"
    target = work / "hello.txt"
    with recording(bench.relay.gateway_url) as recorder:
        prompt = f"use the Write tool with {json.dumps({'file_path': str(target), 'content': _TEXT})}"
        answer = _ask(bench, prompt, recorder, {credential: key}, work)
    assert answer.code == 0 and not answer.result["is_error"], answer.result
    assert target.read_text() == _TEXT
    _check_requests(recorder, header)
    asked = len(recorder.messages())
    assert asked >= 2, "a call of the tool and a closing answer"
    rows = bench.relay.rows(account, asked)  # which compares their sum with the balance
    assert {(row["client"], row["outcome"]) for row in rows} == {("claude-code", "measured")}
    total = sum(Decimal(row["total_usd"]) for row in rows)
    counted = Decimal(str(answer.result["total_cost_usd"]))
    assert total > 0
    assert abs(total - counted) < Decimal("1e-9"), f"the ledger has {total}, Claude Code counted {counted}"
    return f"{asked} requests, {total} USD"


def survives_a_broken_stream(bench: Bench) -> str:
    """The turn is repeated without streaming, as often as Claude Code likes; every try has its row."""
    account, key = bench.relay.new_account()
    environment = {"ANTHROPIC_AUTH_TOKEN": key, "ANTHROPIC_CUSTOM_HEADERS": "x-sim-scenario: cut;after=4"}
    with recording(bench.relay.gateway_url) as recorder:
        answer = _ask(bench, "Hello", recorder, environment, bench.directory / "work-cut")
    assert answer.code != 0 and answer.result["is_error"], answer.result
    rows = bench.relay.rows(account, len(recorder.messages()))
    assert len(rows) <= _TRIES_MAX
    first = rows[-1]
    assert first["stream"] and first["outcome"] == "partial" and Decimal(first["total_usd"]) > 0
    return f"{len(rows)} requests"


def stops_on_empty_balance(bench: Bench) -> str:
    """402: one request, and the message on the screen."""
    key = bench.empty_key()
    with recording(bench.relay.gateway_url) as recorder:
        answer = _ask(bench, "Hello", recorder, {"ANTHROPIC_AUTH_TOKEN": key}, bench.directory / "work-402")
    return _check_refused(answer, recorder, status=402, words="balance is too low")


def stops_on_disabled_key(bench: Bench) -> str:
    """401: one request, and the message on the screen."""
    credential = {"ANTHROPIC_AUTH_TOKEN": bench.disabled_key()}
    with recording(bench.relay.gateway_url) as recorder:
        answer = _ask(bench, "Hello", recorder, credential, bench.directory / "work-401")
    return _check_refused(answer, recorder, status=401, words="not active")


def context_is_free(bench: Bench) -> str:
    """`/context` counts tokens with many requests at once; they cost nothing and need no balance."""
    key = bench.empty_key()
    with recording(bench.relay.gateway_url) as recorder:
        answer = _ask(bench, "/context", recorder, {"ANTHROPIC_AUTH_TOKEN": key}, bench.directory / "work-context")
    assert answer.code == 0, answer.stderr
    counted = [seen for seen in recorder.requests if seen.path == "/v1/messages/count_tokens"]
    assert counted and not recorder.messages(), [seen.target for seen in recorder.requests]
    return f"{len(counted)} requests"


def refusals_are_free(bench: Bench) -> str:
    """No row and no charge for whoever was refused, or only counted tokens."""
    for account in bench.free_accounts:
        bench.relay.rows(account, 0)
    return f"{len(bench.free_accounts)} accounts"


def _ask(bench: Bench, prompt: str, recorder: Recorder, credential: dict[str, str], work: Path) -> Answer:
    return bench.claude.ask(prompt, url=recorder.url, credential=credential, model=MODEL, work=work)


def _check_requests(recorder: Recorder, header: str) -> None:
    other = "x-api-key" if header == "authorization" else "authorization"
    for seen in recorder.messages():
        assert seen.target == "/v1/messages?beta=true"
        assert header in seen.headers and other not in seen.headers
        assert seen.headers["user-agent"].startswith("claude-cli/")


def _check_refused(answer: Answer, recorder: Recorder, *, status: int, words: str) -> str:
    assert answer.code != 0 and answer.result["is_error"], answer.result
    assert answer.result["api_error_status"] == status
    assert words in answer.result["result"], answer.result["result"]
    assert len(recorder.messages()) == 1, f"{len(recorder.messages())} requests"
    return str(answer.result["result"])
