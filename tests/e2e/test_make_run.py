"""What `make run` starts, as a stranger meets it: what it prints works, a restart keeps all, Ctrl-C leaves nothing behind."""

import json
import os
import re
import signal
import stat
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import httpx2
import psutil
import pytest

from tests.e2e.waiting import PLAIN

ROOT: Final = Path(__file__).parent.parent.parent
START_S: Final = 60.0
STOP_S: Final = 60.0


class LocalRun:
    """One `make run` with a directory of its own."""

    def __init__(self, home: Path, **settings: str) -> None:
        self.home = home
        self.output = home.parent / f"{time.monotonic_ns()}.out"
        environment = {
            **{name: value for name, value in os.environ.items() if not name.startswith(("RELAY_", "ANTHROPIC_"))},
            "RELAY_HOME": str(home),
            "RELAY_GATEWAY_PORT": "0",
            "RELAY_ADMIN_PORT": "0",
            **settings,
        }
        with self.output.open("w") as output:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "libs.localstack", "run"],
                cwd=ROOT,
                env=environment,
                stdout=output,
                stderr=subprocess.STDOUT,
            )

    @property
    def printed(self) -> str:
        return self.output.read_text()

    @property
    def run(self) -> dict[str, Any]:
        return dict(json.loads((self.home / "run.json").read_bytes()))

    def wait_ready(self) -> None:
        deadline = time.monotonic() + START_S
        while "The relay is running." not in self.printed:
            assert self.process.poll() is None, self.printed
            assert time.monotonic() < deadline, self.printed
            time.sleep(0.05)

    def stop(self) -> int:
        """Ctrl-C; the exit code."""
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGINT)
        try:
            return self.process.wait(STOP_S)
        finally:
            if self.process.poll() is None:
                self.process.kill()


@pytest.fixture(scope="module")
def local_run(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalRun]:
    started = LocalRun(tmp_path_factory.mktemp("local") / "relay")
    try:
        started.wait_ready()
        yield started
    finally:
        started.stop()


def test_what_is_written_down(local_run: LocalRun) -> None:
    run = local_run.run
    assert set(run) == {
        "gateway_url", "admin_url", "admin_token", "account_id", "api_key", "upstream_url", "nats_url", "redis_url",
        "clickhouse_url", "pids", "secrets_key",
    }  # fmt: skip
    assert {"gateway", "accounting", "admin", "simulator", "nats", "redis", "clickhouse"} == set(run["pids"])
    assert all(psutil.pid_exists(pid) for pid in run["pids"].values())
    assert stat.S_IMODE((local_run.home / "run.json").stat().st_mode) == 0o600


def test_the_printed_curl_streams(local_run: LocalRun) -> None:
    found = re.search(r"^  (curl -iN .*?)\n\n", local_run.printed, re.MULTILINE | re.DOTALL)
    assert found
    done = subprocess.run(["sh", "-c", found[1]], check=True, capture_output=True, text=True, timeout=30)
    assert "x-relay-request-id: req_" in done.stdout
    assert "\n\nevent: message_start\n" in done.stdout
    assert "event: message_stop\n" in done.stdout


def test_what_it_cost_is_there(local_run: LocalRun) -> None:
    run = local_run.run
    answer = httpx2.post(
        f"{run['gateway_url']}/v1/messages",
        headers={"authorization": f"Bearer {run['api_key']}", "anthropic-version": "2023-06-01"},
        json={"model": "claude-sonnet-4-6", "max_tokens": 50, "messages": [{"role": "user", "content": "Hello"}]},
        verify=PLAIN,
    ).raise_for_status()
    usage = answer.json()["usage"]
    admin = httpx2.Client(
        base_url=f"{run['admin_url']}/api/v1", headers={"authorization": f"Bearer {run['admin_token']}"}
    )
    with admin:
        deadline = time.monotonic() + 10
        while (receipt := admin.get(f"/requests/{answer.headers['x-relay-request-id']}")).status_code == 404:
            assert time.monotonic() < deadline
            time.sleep(0.05)
        balance = admin.get(f"/accounts/{run['account_id']}/balance").json()
    assert receipt.json()["total_nanos"] == usage["input_tokens"] * 3000 + usage["output_tokens"] * 15000
    assert balance["granted_usd"] == "25.00"


def test_a_second_one_in_the_same_directory_says_so(local_run: LocalRun) -> None:
    second = LocalRun(local_run.home)
    assert second.process.wait(30) == 1
    assert "already running" in second.printed
    httpx2.get(local_run.run["gateway_url"] + "/readyz", verify=PLAIN).raise_for_status()


def test_ctrl_c_stops_all_and_a_restart_keeps_everything(tmp_path: Path) -> None:
    first = LocalRun(tmp_path / "relay")
    try:
        first.wait_ready()
        before = first.run
        assert _spend(before) == 200
        assert first.stop() == 0
        order = [line.split()[1] for line in first.printed.splitlines() if line.startswith("stopping ")]
        assert order[0] == "gateway"
        assert order[-1] == "the"  # the stores
        assert not [name for name, pid in before["pids"].items() if psutil.pid_exists(pid)]
        again = LocalRun(tmp_path / "relay")
        try:
            again.wait_ready()
            after = again.run
            assert [after[name] for name in ("account_id", "api_key", "admin_token")] == [
                before[name] for name in ("account_id", "api_key", "admin_token")
            ]
            assert _spend(after) == 200
            assert len(_rows(after, 2)) == 2
        finally:
            again.stop()
    finally:
        first.stop()


def test_a_killed_run_takes_its_children_with_it(tmp_path: Path) -> None:
    started = LocalRun(tmp_path / "relay")
    try:
        started.wait_ready()
        pids = started.run["pids"].values()
        started.process.kill()
        started.process.wait()
        _, alive = psutil.wait_procs([psutil.Process(pid) for pid in pids if psutil.pid_exists(pid)], timeout=10)
        assert alive == []
    finally:
        started.stop()


def test_a_taken_port_is_named(tmp_path: Path, local_run: LocalRun) -> None:
    taken = local_run.run["gateway_url"].rpartition(":")[2]
    other = LocalRun(tmp_path / "relay", RELAY_GATEWAY_PORT=taken)
    assert other.process.wait(30) == 1
    assert f"port {taken} is taken; set RELAY_GATEWAY_PORT" in other.printed


def _spend(run: dict[str, Any]) -> int:
    body = {"model": "claude-haiku-4-5", "max_tokens": 5, "messages": [{"role": "user", "content": "Hello"}]}
    headers = {"x-api-key": run["api_key"]}
    return httpx2.post(
        f"{run['gateway_url']}/v1/messages", headers=headers, json=body, timeout=30, verify=PLAIN
    ).status_code


def _rows(run: dict[str, Any], count: int) -> list[Any]:
    headers = {"authorization": f"Bearer {run['admin_token']}"}
    query = f"{run['admin_url']}/api/v1/requests?account_id={run['account_id']}"
    deadline = time.monotonic() + 10
    while len(rows := httpx2.get(query, headers=headers, verify=PLAIN).raise_for_status().json()["data"]) < count:
        assert time.monotonic() < deadline
        time.sleep(0.05)
    return list(rows)


def test_a_proxy_in_the_environment_does_not_matter(tmp_path: Path) -> None:
    nobody = "http://127.0.0.1:9"
    settings = dict.fromkeys(("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY"), nobody)
    started = LocalRun(
        tmp_path / "a home with \u00fcml\u00e4uts", RELAY_ADMIN_TOKEN="given-by-the-environment", **settings
    )
    try:
        started.wait_ready()
        assert started.run["admin_token"] == "given-by-the-environment"
        assert _spend(started.run) == 200
        assert len(_rows(started.run, 1)) == 1
    finally:
        started.stop()
