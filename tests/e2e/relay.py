"""The whole relay for tests: the three services and the simulator as processes, and the few calls every test makes."""

import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx2

ADMIN_TOKEN = "test-admin-token-0123456789"
UPSTREAM_KEY = "sk-ant-simulator"
READY_S = 30.0
SETTLED_S = 30.0


def free_port() -> int:
    """A port nobody listens on at this moment."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@dataclass
class Relay:
    """Addresses of a running relay, and the control plane calls tests need."""

    gateway_url: str
    admin_url: str
    simulator_url: str
    processes: dict[str, subprocess.Popen[bytes]]
    admin: httpx2.Client = field(init=False)

    def __post_init__(self) -> None:
        self.admin = httpx2.Client(
            base_url=self.admin_url + "/api/v1", headers={"authorization": f"Bearer {ADMIN_TOKEN}"}, timeout=30
        )

    def new_account(self, *, credit_usd: str = "100.00", **settings: Any) -> tuple[str, str]:
        """(account id, key) of a new account; `settings` as PATCH takes them."""
        account = self._post("/accounts", {"name": "test"})["id"]
        if settings:
            self.admin.patch(f"/accounts/{account}", json=settings).raise_for_status()
        if credit_usd != "0":
            self._post(f"/accounts/{account}/credits", {"amount_usd": credit_usd, "reason": "test"})
        return account, self._post(f"/accounts/{account}/keys", {"name": "test"})["key"]

    def balance(self, account: str) -> dict[str, str]:
        """Decimal strings of USD."""
        answer = self.admin.get(f"/accounts/{account}/balance").raise_for_status()
        return dict(answer.json())

    def rows(self, account: str, count: int) -> list[dict[str, Any]]:
        """All ledger rows of an account, once there are `count` of them; fails if there are more or they do not come."""
        deadline = time.monotonic() + SETTLED_S
        while True:
            rows = list(self._pages(account))
            if len(rows) >= count or time.monotonic() > deadline:
                assert len(rows) == count, f"{len(rows)} rows, expected {count}"
                return rows
            time.sleep(0.1)

    def receipt(self, request_id: str) -> dict[str, Any]:
        """The receipt of one request, once it is there."""
        deadline = time.monotonic() + SETTLED_S
        while (answer := self.admin.get(f"/requests/{request_id}")).status_code == 404:
            assert time.monotonic() < deadline, f"no receipt for {request_id}"
            time.sleep(0.05)
        return dict(answer.raise_for_status().json())

    def invoice(self) -> list[dict[str, Any]]:
        """What the simulator says it has served."""
        answer = httpx2.get(f"{self.simulator_url}/_sim/invoice", timeout=30).raise_for_status().json()
        return list(answer["entries"] if isinstance(answer, dict) else answer)

    def metric(self, name: str) -> int:
        """A gauge or counter of the gateway, 0 if it has not been counted yet."""
        for line in httpx2.get(f"{self.gateway_url}/metrics", timeout=30).text.splitlines():
            if line.startswith(name + " "):
                return int(line.rpartition(" ")[2])
        return 0

    def _pages(self, account: str) -> Iterator[dict[str, Any]]:
        cursor = None
        while True:
            query = {"account_id": account, "limit": "500"} | ({"cursor": cursor} if cursor else {})
            page = self.admin.get("/requests", params=query).raise_for_status().json()
            yield from page["data"]
            cursor = page.get("next_cursor")
            if not cursor:
                return

    def _post(self, path: str, body: dict[str, Any]) -> dict[str, Any]:
        return dict(self.admin.post(path, json=body).raise_for_status().json())


@contextlib.contextmanager
def running_relay(stores: dict[str, str], logs: Path, **settings: str) -> Iterator[Relay]:
    """Start bootstrap, simulator, accounting, admin and gateway; stop them in order, and fail if one had died."""
    ports = {name: free_port() for name in ("gateway", "admin", "accounting", "simulator")}
    urls = {name: f"http://127.0.0.1:{port}" for name, port in ports.items()}
    environment = {
        **{name: value for name, value in os.environ.items() if not name.startswith(("RELAY_", "ANTHROPIC_"))},
        **stores,
        "RELAY_GATEWAY_PORT": str(ports["gateway"]),
        "RELAY_ADMIN_PORT": str(ports["admin"]),
        "RELAY_ACCOUNTING_PORT": str(ports["accounting"]),
        "RELAY_ADMIN_TOKEN": ADMIN_TOKEN,
        "RELAY_UPSTREAM_URL": urls["simulator"],
        "RELAY_UPSTREAM_API_KEY": UPSTREAM_KEY,
        "PYTHONUNBUFFERED": "1",
        **settings,
    }
    commands = {
        "simulator": ["libs.localstack.simulator", "--port", str(ports["simulator"]), "--api-key", UPSTREAM_KEY],
        "accounting": ["services.accounting"],
        "admin": ["services.admin"],
        "gateway": ["services.gateway"],
    }
    subprocess.run([sys.executable, "-m", "services.accounting", "bootstrap"], env=environment, check=True, timeout=60)
    processes: dict[str, subprocess.Popen[bytes]] = {}
    try:
        for name, command in commands.items():
            with (logs / f"{name}.log").open("wb") as log:
                processes[name] = subprocess.Popen(
                    [sys.executable, "-m", *command], env=environment, stdout=log, stderr=subprocess.STDOUT
                )
        for name in ("accounting", "admin", "gateway"):
            _wait_ready(f"{urls[name]}/readyz", processes[name], logs / f"{name}.log")
        _wait_ready(f"{urls['simulator']}/_sim/scenarios", processes["simulator"], logs / "simulator.log")
        yield Relay(urls["gateway"], urls["admin"], urls["simulator"], processes)
        for name, process in processes.items():
            assert process.poll() is None, f"{name} died: {(logs / f'{name}.log').read_text()[-4000:]}"
    finally:
        for name in ("gateway", "accounting", "admin", "simulator"):
            _stop(processes.get(name))


def _wait_ready(url: str, process: subprocess.Popen[bytes], log: Path) -> None:
    deadline = time.monotonic() + READY_S
    while True:
        with contextlib.suppress(httpx2.TransportError):
            if httpx2.get(url, timeout=5).status_code == 200:
                return
        if process.poll() is not None or time.monotonic() > deadline:
            raise AssertionError(f"{url} is not ready:\n{log.read_text()[-4000:]}")
        time.sleep(0.05)


def _stop(process: subprocess.Popen[bytes] | None) -> None:
    if process is None or process.poll() is not None:
        return
    process.send_signal(signal.SIGTERM)
    try:
        process.wait(20)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
        raise AssertionError("a service did not stop within 20 s of SIGTERM") from None
