"""The processes of a benchmark: the fake upstream, Caddy, the whole relay; their CPU time, and one load run against either.

Everything listens on loopback, on free ports, and is stopped when the rig is left.
"""

import contextlib
import json
import os
import shutil
import subprocess
import sys
import sysconfig
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from decimal import Decimal
from pathlib import Path
from typing import Any, Final, Literal

import httpx2
import psutil

from libs.localstack.config import LocalConfig
from libs.localstack.process import Process, free_port, port_answers
from libs.localstack.run import LocalRelay

Kind = Literal["json", "sse"]
REQUEST_COST_USD: Final = Decimal("0.002325")
"""25 input and 150 output tokens of claude-sonnet-4-6: what bench/upstream.py says of every answer."""
_READY_S: Final = 30
_LOAD_S_MAX: Final = 120
_SETTLED_S: Final = 60
_PAGE: Final = 500
_BESIDE: Final = ("redis", "nats", "accounting", "clickhouse")


class BenchFailed(Exception):
    """An answer was not 200, or the ledger does not hold what was served. No figure of such a run may be used."""


@dataclass(frozen=True)
class Run:
    """One load run: what it cost and how long its requests took."""

    cpu_us: float
    """Of the proxy, per request, user + system."""
    beside_us: dict[str, float]
    """Of each process beside the gateway, per request, until the last of them is settled."""
    per_second: float
    p50_ms: float
    p99_ms: float


@dataclass(frozen=True)
class Proxy:
    """Something the load can be sent to."""

    name: str
    url: str
    pid: int
    beside: dict[str, int]
    """Process ids that are shown apart."""
    headers: dict[str, str] = field(default_factory=dict)
    """Sent with each request: the peer's own key, and what it must be told."""
    path: str = "/v1/messages"


class Rig:
    """What runs, and what the relay was asked so far."""

    def __init__(self, caddy: Proxy, relay: Proxy, run: dict[str, Any]) -> None:
        self.caddy = caddy
        self.relay = relay
        self._run = run
        self._admin = httpx2.Client(
            base_url=f"{run['admin_url']}/api/v1",
            headers={"authorization": f"Bearer {run['admin_token']}"},
            timeout=30,
            trust_env=False,
        )
        self.relay_requests = 0

    def grant(self, amount_usd: str) -> None:
        """More credit, so that no run ends for want of it."""
        body = {"amount_usd": amount_usd, "reason": "bench"}
        self._admin.post(f"/accounts/{self._run['account_id']}/credits", json=body).raise_for_status()

    def load(self, proxy: Proxy, kind: Kind, *, requests: int, connections: int) -> Run:
        """Send a load and measure until all of it is settled. Raises BenchFailed unless every answer was whole and 200."""
        pids = {proxy.name: proxy.pid, **proxy.beside}
        before = {name: cpu_seconds(pid) for name, pid in pids.items()}
        report = send(proxy, self._run["api_key"], kind, requests, connections)
        if report["errors"] or report["requests"] != requests:
            raise BenchFailed(f"{proxy.name}: {report} of {requests} requests")
        if proxy is self.relay:
            self.relay_requests += requests
            self._wait_settled()
        spent = {name: cpu_seconds(pid) - before[name] for name, pid in pids.items()}
        per_request = {name: seconds / requests * 1e6 for name, seconds in spent.items()}
        return Run(
            cpu_us=per_request.pop(proxy.name),
            beside_us=per_request,
            per_second=requests / report["seconds"],
            p50_ms=report["p50_ms"],
            p99_ms=report["p99_ms"],
        )

    def check_rows(self) -> None:
        """Raise BenchFailed unless the ledger has exactly one row for each request of the relay."""
        rows = sum(1 for _ in self._rows())
        if rows != self.relay_requests:
            raise BenchFailed(f"{self.relay_requests} requests left {rows} rows")

    def _wait_settled(self) -> None:
        """Until the balance has paid for every request so far; raise BenchFailed if it does not, or for more."""
        expected = self.relay_requests * REQUEST_COST_USD
        deadline = time.monotonic() + _SETTLED_S
        while (spent := self._spent()) != expected:
            if time.monotonic() > deadline or spent > expected:
                raise BenchFailed(f"{self.relay_requests} requests cost {expected} USD, the balance says {spent}")
            time.sleep(0.1)

    def _spent(self) -> Decimal:
        answer = self._admin.get(f"/accounts/{self._run['account_id']}/balance").raise_for_status()
        return Decimal(answer.json()["spent_usd"])

    def _rows(self) -> Iterator[dict[str, Any]]:
        query = {"account_id": self._run["account_id"], "limit": str(_PAGE)}
        while True:
            page = self._admin.get("/requests", params=query).raise_for_status().json()
            yield from page["data"]
            if not page.get("next_cursor"):
                return
            query["cursor"] = page["next_cursor"]


@contextlib.contextmanager
def running(home: Path) -> Iterator[Rig]:
    """The upstream, Caddy and the relay, with a demo account. `home` holds their state and logs."""
    upstream_port, caddy_port = free_port(), free_port()
    command = [sys.executable, "-m", "bench.upstream", str(upstream_port), "20"]
    upstream = Process.start("upstream", command, log=home / "upstream.log")
    caddy = None
    relay = LocalRelay(_relay_config(home, f"http://127.0.0.1:{upstream_port}"))
    try:
        upstream.wait_until(port_answers(upstream_port), seconds=_READY_S)
        caddy = _start_caddy(home, caddy_port, upstream_port)
        run = relay.start()
        pids = run["pids"]
        beside = {name: pids[name] for name in _BESIDE}
        for pid in (caddy.pid, pids["gateway"]):
            pin(pid)
        yield Rig(
            Proxy("caddy", f"http://127.0.0.1:{caddy_port}", caddy.pid, {}),
            Proxy("relay", run["gateway_url"], pids["gateway"], beside),
            run,
        )
    finally:
        relay.stop()
        if caddy is not None:
            caddy.stop()
        upstream.stop()


def cpu_seconds(pid: int) -> float:
    """User and system time of a process and its children so far."""
    process = psutil.Process(pid)
    times = [member.cpu_times() for member in (process, *process.children(recursive=True))]
    ended = process.cpu_times()
    return float(sum(time.user + time.system for time in times) + ended.children_user + ended.children_system)


def program(name: str) -> str:
    """A program that a package has put beside this interpreter, or one on PATH."""
    beside = Path(sysconfig.get_path("scripts")) / name
    found = str(beside) if beside.exists() else shutil.which(name)
    if found is None:
        raise BenchFailed(f"{name} is not installed; run `make setup`")
    return found


def pin(pid: int) -> None:
    """The proxies share the last core; load, upstream and stores go where the system puts them."""
    core = max(os.sched_getaffinity(0))
    process = psutil.Process(pid)
    for member in (process, *process.children(recursive=True)):
        for thread in member.threads():
            os.sched_setaffinity(thread.id, {core})


def send(proxy: Proxy, key: str, kind: Kind, requests: int, connections: int) -> dict[str, Any]:
    """What `bench.load` says of a load run against a proxy, with the caller's key. Raises BenchFailed if it does not end."""
    arguments = [proxy.url + proxy.path, key, kind, str(requests), str(connections), json.dumps(proxy.headers)]
    command = [sys.executable, "-m", "bench.load", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=_LOAD_S_MAX, check=False)
    if done.returncode != 0:
        raise BenchFailed(f"the load against {proxy.url} failed:\n{done.stderr[-2000:]}")
    return dict(json.loads(done.stdout))


def _relay_config(home: Path, upstream_url: str) -> LocalConfig:
    ours = ("RELAY_", "ANTHROPIC_")
    return LocalConfig(
        profile="single",
        home=home / "relay",
        gateway_port=0,
        admin_port=0,
        upstream_url=upstream_url,
        admin_token="",
        upstream_api_key="sk-ant-bench",
        secrets_key="",
        environment={name: value for name, value in os.environ.items() if not name.startswith(ours)},
    )


def _start_caddy(home: Path, port: int, upstream_port: int) -> Process:
    """A plain reverse proxy that flushes every write, on one core."""
    config = home / "Caddyfile"
    config.write_text(
        "{\n\tadmin off\n\tauto_https off\n\tpersist_config off\n}\n"
        f"http://127.0.0.1:{port} {{\n\tbind 127.0.0.1\n\treverse_proxy 127.0.0.1:{upstream_port} {{\n"
        "\t\tflush_interval -1\n\t}\n}\n"
    )
    state = {"HOME": str(home), "XDG_DATA_HOME": str(home), "XDG_CONFIG_HOME": str(home)}
    command = [program("caddy"), "run", "--config", str(config), "--adapter", "caddyfile"]
    environment = {**os.environ, **state, "GOMAXPROCS": "1"}
    caddy = Process.start("caddy", command, log=home / "caddy.log", environment=environment)
    return caddy.wait_until(port_answers(port), seconds=_READY_S)
