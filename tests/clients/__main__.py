"""`python -m tests.clients`: real clients do real tasks through a whole relay in front of the simulator.

install.py    npm ci, once
sdk.mjs       the TypeScript SDK's part
claude.py     runs Claude Code
checks.py     what must be so
recorder.py   counts the requests a client makes
"""

import contextlib
import functools
import shutil
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final

from libs.localstack.process import ProcessFailed
from libs.localstack.stores import Stores
from tests.clients import checks
from tests.clients.checks import Bench
from tests.clients.claude import ClaudeCode
from tests.clients.install import NotInstalled, install
from tests.clients.recorder import Recorder, recording
from tests.e2e.relay import running_relay

_CLAUDE_CODE: Final[dict[str, Callable[[Bench], str]]] = {
    "writes a file with its tool (ANTHROPIC_AUTH_TOKEN)": functools.partial(
        checks.writes_a_file, credential="ANTHROPIC_AUTH_TOKEN", header="authorization"
    ),
    "writes a file with its tool (ANTHROPIC_API_KEY)": functools.partial(
        checks.writes_a_file, credential="ANTHROPIC_API_KEY", header="x-api-key"
    ),
    "/context counts tokens for nothing": checks.context_is_free,
    "a stream that is cut off: every try has its row": checks.survives_a_broken_stream,
    "empty balance: one request, and it says so": checks.stops_on_empty_balance,
    "disabled key: one request, and it says so": checks.stops_on_disabled_key,
}


class Score:
    """Counts and says how each check ended."""

    def __init__(self) -> None:
        self.passed = 0
        self.failed = 0

    def ok(self, name: str, seconds: float, detail: str = "") -> None:
        """A check held."""
        self.passed += 1
        _say(f"  ok  {name} ({seconds:.1f} s){detail and ': ' + detail}")

    def fail(self, name: str, seconds: float, reason: str) -> None:
        """A check did not hold."""
        self.failed += 1
        _say(f"  FAILED  {name} ({seconds:.1f} s)\n{reason}")


def main() -> int:
    """Exit code 1 if a check failed or nothing could be run."""
    score = Score()
    directory = Path(tempfile.mkdtemp(prefix="relay-clients-"))
    try:
        _say("installing the clients from npm (once) …")
        installed = install()
        _say(f"{installed.versions}; starting the relay …")
        with (
            _stack(directory) as relay_stores,
            recording(None) as trap,
            running_relay(relay_stores, directory) as relay,
        ):
            claude = ClaudeCode(installed.claude, directory / "home", trap.url)
            _run_all(Bench(relay, installed, claude, directory), trap, score)
            if score.failed:
                _say(f"the gateway's last words:\n{relay.services['gateway'].log_text[-2000:]}")
    except (NotInstalled, ProcessFailed, AssertionError) as error:
        score.fail("the rig", 0, str(error))
    finally:
        shutil.rmtree(directory, ignore_errors=True)
    _say(f"{score.passed} passed, {score.failed} failed")
    return 1 if score.failed or not score.passed else 0


def _run_all(bench: Bench, trap: Recorder, score: Score) -> None:
    _say("TypeScript SDK")
    _run_sdk(bench, score)
    _say("Claude Code")
    for name, check in _CLAUDE_CODE.items():
        _run(name, functools.partial(check, bench), score)
    _run("who was refused, or counted tokens, has no row", functools.partial(checks.refusals_are_free, bench), score)
    _run("neither client asked for anything but the relay", functools.partial(_nobody_came, trap), score)


def _run_sdk(bench: Bench, score: Score) -> None:
    started = time.monotonic()
    try:
        for line in checks.typescript_sdk(bench):
            seconds = line.get("seconds", time.monotonic() - started)
            if line["ok"]:
                score.ok(line["name"], seconds)
            else:
                score.fail(line["name"], seconds, line["detail"])
            started = time.monotonic()
    except Exception:  # noqa: BLE001 - whatever it was, the check failed and the next one runs
        score.fail("the SDK's ledger", time.monotonic() - started, traceback.format_exc(limit=-3))


def _run(name: str, check: Callable[[], str], score: Score) -> None:
    started = time.monotonic()
    try:
        detail = check()
    except Exception:  # noqa: BLE001 - whatever it was, the check failed and the next one runs
        score.fail(name, time.monotonic() - started, traceback.format_exc(limit=-3))
    else:
        score.ok(name, time.monotonic() - started, detail)


def _nobody_came(trap: Recorder) -> str:
    assert not trap.raw, [first.split(b"\r\n", 1)[0] for first in trap.raw]
    return ""


@contextlib.contextmanager
def _stack(directory: Path) -> Iterator[dict[str, str]]:
    """The three stores, as settings."""
    stores = Stores(directory / "stores", directory / "logs")
    stores.start()
    try:
        yield {
            "RELAY_NATS_URL": stores.nats_url,
            "RELAY_REDIS_URL": stores.redis_url,
            "RELAY_CLICKHOUSE_URL": stores.clickhouse_url,
        }
    finally:
        stores.stop()


def _say(text: str) -> None:
    print(text, flush=True)


if __name__ == "__main__":
    sys.exit(main())
