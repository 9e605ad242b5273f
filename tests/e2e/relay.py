"""The whole relay for tests: the three services and the simulator as processes, and the few calls every test makes."""

import asyncio
import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass, field
from decimal import Decimal
from pathlib import Path
from typing import Any, Final, Self

import httpx2
import psutil

from libs.common import redisclient
from tests.e2e.waiting import PLAIN, WAIT_S, wait_until

ADMIN_TOKEN: Final = "test-admin-token-0123456789"
UPSTREAM_KEY: Final = "sk-ant-simulator"
NO_LIMITS: Final = {"rpm": 10**6, "itpm": 10**9, "otpm": 10**9, "free_rpm": 10**6, "in_flight": 10**5}
READY_S: Final = 30.0
STOP_S: Final = 20.0
GAUGES_AT_REST: Final = ("relay_requests_in_flight", "relay_drains_in_progress", "relay_events_unpublished")


def free_port() -> int:
    """A port nobody listens on at this moment."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class Service:
    """One process; it can be ended in any way, and started again at the same address."""

    def __init__(
        self,
        name: str,
        *command: str,
        port: int,
        environment: dict[str, str],
        logs: Path,
        ready: str,
        cwd: Path | None = None,
    ) -> None:
        self._cwd = cwd
        self.name = name
        self.url = f"http://127.0.0.1:{port}"
        self.log = logs / f"{name}-{port}.log"
        self._command = [sys.executable, "-m", *command]
        self._environment = environment
        self._ready = ready

    def start(self) -> Self:
        """Without waiting until it is ready."""
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                self._command,
                env=self._environment,
                cwd=self._cwd,
                stdout=log,
                stderr=subprocess.STDOUT,
                stdin=subprocess.DEVNULL,
            )
        return self

    def wait_ready(self) -> Self:
        """Until it answers."""

        def ready() -> bool:
            assert self.process.poll() is None, f"{self.name} died: {self.log_text[-4000:]}"
            with contextlib.suppress(httpx2.TransportError):
                return httpx2.get(self.url + self._ready, timeout=5, verify=PLAIN).status_code == 200
            return False

        wait_until(ready, f"{self.name} is ready", READY_S)
        return self

    @property
    def log_text(self) -> str:
        """All it wrote."""
        return self.log.read_text(errors="replace")

    def signal(self, number: int) -> None:
        """Send a signal."""
        self.process.send_signal(number)

    def kill(self) -> None:
        """kill -9."""
        self.process.kill()
        self.process.wait()

    def ask_to_stop(self) -> None:
        """SIGTERM, unless it has ended."""
        if hasattr(self, "process") and self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)

    def stop(self) -> None:
        """SIGTERM, unless it has ended; it must end by itself."""
        if not hasattr(self, "process") or self.process.poll() is not None:
            return
        self.ask_to_stop()
        try:
            self.process.wait(STOP_S)
        except subprocess.TimeoutExpired:
            self.kill()
            raise AssertionError(f"{self.name} did not stop within {STOP_S} s of SIGTERM") from None


@dataclass
class Gateway:
    """A gateway process."""

    service: Service

    @property
    def url(self) -> str:
        """Where callers go."""
        return self.service.url

    def metric(self, name: str) -> int:
        """A counter, labels summed up; 0 if it has not been counted yet."""
        return sum(value for series, value in self._series() if series.partition("{")[0] == name)

    def gauge(self, name: str) -> int:
        """A gauge; it must be there."""
        return dict(self._series())[name]

    def callers_connected(self) -> int:
        """Sockets of callers, those that are half closed included."""
        port = int(self.url.rpartition(":")[2])
        connections = psutil.Process(self.service.process.pid).net_connections("tcp")
        return sum(one.laddr.port == port and one.status != psutil.CONN_LISTEN for one in connections)

    def wait_at_rest(self) -> None:
        """Until no request, drain, busy upstream connection or unpublished event is left; fails if one stays."""
        busy: dict[str, int] = {}

        def at_rest() -> bool:
            gauges = dict(self._series())
            busy.update({name: gauges[name] for name in GAUGES_AT_REST})
            busy["connections"] = gauges["relay_upstream_connections_open"] - gauges["relay_upstream_connections_idle"]
            return not any(busy.values())

        wait_until(at_rest, lambda: f"the gateway is at rest: {busy}")

    def _series(self) -> list[tuple[str, int]]:
        with urllib.request.urlopen(f"{self.url}/metrics", timeout=WAIT_S) as answer:
            lines = [line.rpartition(" ") for line in answer.read().decode().splitlines()]
        return [(series, int(value)) for series, _, value in lines]


@dataclass
class Relay:
    """A running relay, and the control plane calls tests need."""

    stores: dict[str, str]
    logs: Path
    services: dict[str, Service]
    admin: httpx2.Client = field(init=False)

    def __post_init__(self) -> None:
        self.admin = httpx2.Client(
            base_url=self.services["admin"].url + "/api/v1",
            headers={"authorization": f"Bearer {ADMIN_TOKEN}"},
            timeout=30,
        )

    @property
    def gateway(self) -> Gateway:
        """The gateway in front of the simulator."""
        return Gateway(self.services["gateway"])

    @property
    def gateway_url(self) -> str:
        """Where callers go."""
        return self.gateway.url

    @property
    def simulator_url(self) -> str:
        """The upstream."""
        return self.services["simulator"].url

    def new_account(self, *, credit_usd: str = "100.00", **settings: Any) -> tuple[str, str]:
        """(account id, key) of a new account; `settings` as PATCH takes them. Limits are out of the way if none are given."""
        account = self.post("/accounts", {"name": "test"})["id"]
        self.admin.patch(f"/accounts/{account}", json={"limits": NO_LIMITS} | settings).raise_for_status()
        if credit_usd != "0":
            self.post(f"/accounts/{account}/credits", {"amount_usd": credit_usd, "reason": "test"})
        return account, self.new_key(account)["key"]

    def new_key(self, account: str) -> dict[str, Any]:
        """A further key of an account, as admin shows it once."""
        return self.post(f"/accounts/{account}/keys", {"name": "test"})

    def balance(self, account: str) -> dict[str, str]:
        """Decimal strings of USD."""
        answer = self.admin.get(f"/accounts/{account}/balance").raise_for_status()
        return dict(answer.json())

    def spent_nanos(self, account: str) -> int:
        """What the balance has lost, held amounts included."""
        balance = self.balance(account)
        lost = Decimal(balance["granted_usd"]) - Decimal(balance["available_usd"])
        assert lost == Decimal(balance["spent_usd"]) + Decimal(balance["held_usd"])
        return int(lost * 10**9)

    def rows(self, account: str, count: int, *, wait_s: float = 30.0, held: bool = False) -> list[dict[str, Any]]:
        """All ledger rows of an account, newest first, once there are `count` of them and they are settled.

        Nothing may be held any more, unless something is `held`.
        """
        deadline = time.monotonic() + wait_s
        while True:
            asked = time.monotonic()
            rows = list(self.all_rows(account))
            lost = Decimal(self.balance(account)["spent_usd"]) * 10**9 if held else self.spent_nanos(account)
            settled = sum(row["total_nanos"] for row in rows) == lost
            if (len(rows) >= count and settled) or time.monotonic() > deadline:
                assert len(rows) == count, f"{len(rows)} rows, expected {count}"
                assert settled, "the balance is not what the rows add up to"
                return rows
            time.sleep(max(0.05, time.monotonic() - asked))  # a thousand rows take long to read

    def receipt(self, request_id: str) -> dict[str, Any]:
        """The receipt of one request, by our id or the upstream's, once it is there."""
        path = f"/requests/{request_id}"
        wait_until(lambda: self.admin.get(path).status_code != 404, f"receipt of {request_id}")
        return dict(self.admin.get(path).raise_for_status().json())

    def invoice(self) -> list[dict[str, Any]]:
        """What the simulator says it has served."""
        return list(self.simulator("invoice")["entries"])

    def simulator(self, name: str) -> dict[str, Any]:
        """What the simulator says of itself under `/_sim/`."""
        answer = httpx2.get(f"{self.simulator_url}/_sim/{name}", timeout=30, verify=PLAIN).raise_for_status()
        return dict(answer.json())

    def forget_breakers(self) -> None:
        """Nothing is held against the upstream credential any more, whatever a test has made it answer."""

        async def forget() -> None:
            redis = redisclient.connect(self.stores["RELAY_REDIS_URL"], try_seconds=5)
            await redis.delete("{upstreams}breakers")
            await redis.aclose()

        asyncio.run(forget())
        wait_until(lambda: self.gateway.gauge("relay_upstream_open_breakers") == 0, "the gateway has heard of it")

    def post(self, path: str, body: dict[str, Any]) -> dict[str, Any]:
        """A call of the control plane."""
        return dict(self.admin.post(path, json=body).raise_for_status().json())

    @contextlib.contextmanager
    def second_gateway(self, upstream_url: str, **settings: str) -> Iterator[Gateway]:
        """One more gateway on the same stores, with another upstream or other settings; `settings` win over the stores."""
        port = free_port()
        environment = environment_of(self.stores) | {
            "RELAY_GATEWAY_PORT": str(port),
            "RELAY_SPOOL_DIRECTORY": str(self.logs / f"spool-{port}"),
            "RELAY_UPSTREAM_URL": upstream_url,
            "RELAY_UPSTREAM_API_KEY": UPSTREAM_KEY,
            "RELAY_UPSTREAM_RETRY_SECONDS": "0.02",
            "RELAY_UPSTREAM_RETRY_AFTER_SECONDS_MAX": "0.1",
            **settings,
        }
        service = Service(
            "gateway", "services.gateway", port=port, environment=environment, logs=self.logs, ready="/readyz"
        )
        try:
            service.start().wait_ready()
            yield Gateway(service)
        finally:
            service.stop()

    @contextlib.contextmanager
    def gateways(self, count: int, upstream_url: str, **settings: str) -> Iterator[list[Gateway]]:
        """Several more of the same."""
        with contextlib.ExitStack() as stack:
            yield [stack.enter_context(self.second_gateway(upstream_url, **settings)) for _ in range(count)]

    def all_rows(self, account: str) -> Iterator[dict[str, Any]]:
        """The ledger rows of an account that are there now, newest first."""
        cursor = None
        while True:
            query = {"account_id": account, "limit": "1000"} | ({"cursor": cursor} if cursor else {})
            page = self.admin.get("/requests", params=query).raise_for_status().json()
            yield from page["data"]
            cursor = page.get("next_cursor")
            if not cursor:
                return


def environment_of(stores: dict[str, str]) -> dict[str, str]:
    """What a service inherits: nothing of the machine's own settings."""
    inherited = {name: value for name, value in os.environ.items() if not name.startswith(("RELAY_", "ANTHROPIC_"))}
    return {**inherited, **stores, "PYTHONUNBUFFERED": "1"}


@contextlib.contextmanager
def running_relay(stores: dict[str, str], logs: Path, **settings: str) -> Iterator[Relay]:
    """Start bootstrap, simulator, accounting, admin and gateway; stop them in order, and fail if one had died."""
    ports = {name: free_port() for name in ("gateway", "admin", "accounting", "simulator")}
    environment = environment_of(stores) | {
        "RELAY_GATEWAY_PORT": str(ports["gateway"]),
        "RELAY_SPOOL_DIRECTORY": str(logs / f"spool-{ports['gateway']}"),
        "RELAY_ADMIN_PORT": str(ports["admin"]),
        "RELAY_ACCOUNTING_PORT": str(ports["accounting"]),
        "RELAY_ADMIN_TOKEN": ADMIN_TOKEN,
        "RELAY_UPSTREAM_URL": f"http://127.0.0.1:{ports['simulator']}",
        "RELAY_UPSTREAM_API_KEY": UPSTREAM_KEY,
        "RELAY_UPSTREAM_RETRY_SECONDS": "0.02",
        "RELAY_UPSTREAM_RETRY_AFTER_SECONDS_MAX": "0.1",
        **settings,
    }
    simulator = ("libs.localstack.simulator", "--port", str(ports["simulator"]), "--api-key", UPSTREAM_KEY)
    commands = {
        "simulator": (simulator, "/_sim/scenarios"),
        "accounting": (("services.accounting",), "/readyz"),
        "admin": (("services.admin",), "/readyz"),
        "gateway": (("services.gateway",), "/readyz"),
    }
    services = {
        name: Service(name, *command, port=ports[name], environment=environment, logs=logs, ready=ready)
        for name, (command, ready) in commands.items()
    }
    subprocess.run([sys.executable, "-m", "services.accounting", "bootstrap"], env=environment, check=True, timeout=60)
    try:
        for service in services.values():
            service.start()
        for service in services.values():
            service.wait_ready()
        relay = Relay(stores, logs, services)
        with relay.admin:
            yield relay
        for service in services.values():
            assert service.process.poll() is None, f"{service.name} died: {service.log_text[-4000:]}"
    finally:
        services["gateway"].stop()
        for name in ("accounting", "admin", "simulator"):
            services[name].ask_to_stop()
        for name in ("accounting", "admin", "simulator"):
            services[name].stop()
