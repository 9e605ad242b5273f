"""The processes of a benchmark: the fake upstream, Caddy, the whole relay; and one load run against any of them.

Everything listens on loopback, on free ports, and is stopped when the rig is left. What is measured has the last core for
itself; load, upstream and stores have the others.
"""

import contextlib
import json
import os
import resource
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path
from types import MappingProxyType
from typing import Any, Final

import httpx2

from bench import proxies, traffic
from bench.programs import BenchFailed, cpu_seconds, other_cores, pin, program, yield_to_others
from bench.proxies import Proxy
from bench.traffic import Kind
from libs.localstack.config import LocalConfig
from libs.localstack.process import Process, free_port, port_answers
from libs.localstack.run import LocalRelay

__all__ = ["BenchFailed", "Kind", "Proxy", "Rig", "Run", "cpu_seconds", "pin", "program", "running", "send"]

_LOAD_S_MAX: Final = 180
_SETTLED_S: Final = 60
_PAGE: Final = 500
_GAP_MS: Final = 20
_BESIDE: Final = ("redis", "nats", "accounting", "clickhouse")
_LATER: Final = ("accounting", "clickhouse")
"""Nobody waits for these: they have what the others leave, as if they were on a machine of their own."""
_LIMITS: Final = {"rpm": 10**7, "itpm": 10**9, "otpm": 10**9, "in_flight": 10**5}
"""Of the demo account: each is looked at for every request, and none is reached."""


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

    @property
    def busy(self) -> float:
        """The share of the measured core that the proxy had: near 1 at saturation."""
        return self.cpu_us * self.per_second / 1e6


class Rig:
    """What runs, and what the relay was asked so far."""

    def __init__(self, upstream: Proxy, caddy: Proxy, relay: Proxy, run: dict[str, Any]) -> None:
        self.upstream = upstream
        """What stands behind the proxies, to be asked directly."""
        self.caddy = caddy
        self.relay = relay
        self.run = run
        """What the relay's run.json says."""
        self._admin = httpx2.Client(
            base_url=f"{run['admin_url']}/api/v1",
            headers={"authorization": f"Bearer {run['admin_token']}"},
            timeout=30,
            trust_env=False,
        )
        self._asked: Counter[Decimal] = Counter()

    @property
    def relay_requests(self) -> int:
        """How many the relay has served."""
        return self._asked.total()

    def widen(self) -> None:
        """Raise the account's limits, so that no run is refused."""
        path = f"/accounts/{self.run['account_id']}"
        self._admin.patch(path, json={"limits": _LIMITS}).raise_for_status()

    def grant(self, amount_usd: str) -> None:
        """More credit, so that no run ends for want of it."""
        body = {"amount_usd": amount_usd, "reason": "bench"}
        self._admin.post(f"/accounts/{self.run['account_id']}/credits", json=body).raise_for_status()

    def load(self, proxy: Proxy, kind: Kind, *, requests: int, connections: int) -> Run:
        """Send a load and measure until all of it is settled. Raises BenchFailed unless every answer was whole and 200."""
        with self.measured(proxy, kind, requests) as spent_us:
            report = send(proxy, kind, requests=requests, connections=connections)
            if report["errors"] or report["requests"] != requests:
                raise BenchFailed(f"{proxy.name}: {report} of {requests} requests")
        return Run(
            cpu_us=spent_us.pop(proxy.name),
            beside_us=spent_us,
            per_second=requests / report["seconds"],
            p50_ms=report["p50_ms"],
            p99_ms=report["p99_ms"],
        )

    @contextlib.contextmanager
    def measured(self, proxy: Proxy, kind: Kind, requests: int) -> Iterator[dict[str, float]]:
        """Around so many requests: what is yielded holds µs of CPU per request of each process, once they are settled."""
        pids = {proxy.name: proxy.pid, **proxy.beside}
        before = {name: cpu_seconds(pid) for name, pid in pids.items()}
        spent_us: dict[str, float] = {}
        yield spent_us
        if proxy.name == self.relay.name:
            self._asked += traffic.costs(kind, requests)
            self._wait_settled()
        spent_us |= {name: (cpu_seconds(pid) - before[name]) / requests * 1e6 for name, pid in pids.items()}

    def check_rows(self) -> None:
        """Raise BenchFailed unless the ledger has exactly one row for each request of the relay, at its cost."""
        rows = Counter(Decimal(row["total_usd"]) for row in self._rows())
        if rows != self._asked:
            raise BenchFailed(f"requests by cost: {dict(self._asked)}; rows of the ledger: {dict(rows)}")

    def _wait_settled(self) -> None:
        """Until the balance has paid for every request so far; raise BenchFailed if it does not, or for more."""
        expected = sum((cost * count for cost, count in self._asked.items()), Decimal(0))
        deadline = time.monotonic() + _SETTLED_S
        while (spent := self._spent()) != expected:
            if time.monotonic() > deadline or spent > expected:
                raise BenchFailed(f"{self.relay_requests} requests cost {expected} USD, the balance says {spent}")
            time.sleep(0.1)

    def _spent(self) -> Decimal:
        answer = self._admin.get(f"/accounts/{self.run['account_id']}/balance").raise_for_status()
        return Decimal(answer.json()["spent_usd"])

    def _rows(self) -> Iterator[dict[str, Any]]:
        query = {"account_id": self.run["account_id"], "limit": str(_PAGE)}
        while True:
            page = self._admin.get("/requests", params=query).raise_for_status().json()
            yield from page["data"]
            if not page.get("next_cursor"):
                return
            query["cursor"] = page["next_cursor"]


@contextlib.contextmanager
def running(home: Path) -> Iterator[Rig]:
    """The upstream, Caddy and the relay, with a demo account. `home` holds their state and logs."""
    with contextlib.ExitStack() as stack:
        stack.enter_context(_roomy())
        upstream = stack.enter_context(serving_upstream(home))
        caddy = stack.enter_context(proxies.caddy(home, upstream.url))
        relay = LocalRelay(relay_config(home, upstream.url))
        stack.callback(relay.stop)
        run = relay.start()
        for name in _LATER:
            yield_to_others(run["pids"][name])
        beside = {name: run["pids"][name] for name in _BESIDE}
        headers = {"x-api-key": run["api_key"]}
        gateway = Proxy("relay", run["gateway_url"], run["pids"]["gateway"], beside, headers)
        for proxy in (caddy, gateway):
            pin(proxy.pid)
        rig = Rig(upstream, caddy, gateway, run)
        rig.widen()
        yield rig


@contextlib.contextmanager
def serving_upstream(home: Path, certificate: Path | None = None) -> Iterator[Proxy]:
    """The fake upstream, with TLS if there is a certificate."""
    port = free_port()
    name, scheme = ("upstream", "http") if certificate is None else ("upstream-tls", "https")
    command = [sys.executable, "-m", "bench.upstream", str(port), str(_GAP_MS)]
    command += [str(certificate)] if certificate is not None else []
    process = Process.start(name, command, log=home / f"{name}.log")
    try:
        process.wait_until(port_answers(port), seconds=proxies.READY_S)
        yield Proxy("upstream", f"{scheme}://127.0.0.1:{port}", process.pid)
    finally:
        process.stop()


def send(proxy: Proxy, kind: Kind, *, requests: int, connections: int) -> dict[str, Any]:
    """What bench/load.py reports of a closed loop. Raises BenchFailed."""
    return report_of("bench.load", {"requests": requests, "connections": connections, **destination(proxy, kind)})


def destination(proxy: Proxy, kind: Kind) -> dict[str, Any]:
    """What every load generator must be told."""
    return {"url": proxy.url, "path": proxy.path, "headers": proxy.headers, "kind": kind}


def report_of(module: str, plan: dict[str, Any]) -> dict[str, Any]:
    """Run a load generator with a plan; what it reports. Raises BenchFailed."""
    command = [sys.executable, "-m", module, json.dumps(plan)]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=_LOAD_S_MAX, check=False)
    except subprocess.TimeoutExpired:
        raise BenchFailed(f"the load against {plan['url']} did not end in {_LOAD_S_MAX} s") from None
    if done.returncode != 0:
        raise BenchFailed(f"the load against {plan['url']} failed:\n{done.stderr[-2000:]}")
    return dict(json.loads(done.stdout))


@contextlib.contextmanager
def _roomy() -> Iterator[None]:
    """Children may open thousands of connections, and leave the measured core alone."""
    cores, (soft, hard) = os.sched_getaffinity(0), resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    os.sched_setaffinity(0, other_cores())
    try:
        yield
    finally:
        os.sched_setaffinity(0, cores)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def relay_config(home: Path, upstream_url: str, settings: Mapping[str, str] = MappingProxyType({})) -> LocalConfig:
    """A relay for a bench, with nothing of ours from this process's environment but `settings`."""
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
        environment={name: value for name, value in os.environ.items() if not name.startswith(ours)} | dict(settings),
    )
