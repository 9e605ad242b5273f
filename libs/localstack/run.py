"""`make run`: every store and service on this machine, a demo account, and what to type next. Ctrl-C stops all in order."""

import fcntl
import json
import os
import queue
import secrets
import signal
import sys
import time
from pathlib import Path
from typing import IO, Any, Final

import httpx2

from libs.common import sealing
from libs.localstack import config as settings
from libs.localstack.balancer import start_balancer
from libs.localstack.cluster import ClusterStores
from libs.localstack.config import LocalConfig
from libs.localstack.process import Process, ProcessFailed, free_port, http_answers, port_answers
from libs.localstack.stores import Stores

_READY_S: Final = 60
_WATCH_S: Final = 0.5
_DEMO_CREDIT_USD: Final = "25.00"
_SIMULATOR_KEY: Final = "sk-ant-simulator"


Stopping = queue.SimpleQueue[None]


class AlreadyRunning(Exception):
    """Another `make run` uses the same directory."""


class LocalRelay:
    """All processes of `make run`."""

    def __init__(self, config: LocalConfig) -> None:
        self._config = config
        self._logs = config.home / "logs"
        self._clustered = config.profile == "cluster"
        self._services: list[Process] = []
        self._gateway_port = config.gateway_port or free_port()
        self._admin_port = config.admin_port or free_port()
        self._saved = _read_json(config.home / "run.json")
        self._stores: Stores | ClusterStores = Stores(config.home, self._logs, config.environment)
        if self._clustered:
            saved = self._saved.get("cluster_ports")
            self._stores = ClusterStores(config.home, self._logs, config.environment, saved)
        self._admin_token = config.admin_token or self._saved.get("admin_token") or secrets.token_urlsafe(32)
        self._secrets_key = config.secrets_key or self._saved.get("secrets_key") or sealing.new_key()
        self._upstream_url = config.upstream_url
        self.gateway_url = f"http://127.0.0.1:{self._gateway_port}"
        self.admin_url = f"http://127.0.0.1:{self._admin_port}"

    def start(self) -> dict[str, Any]:
        """Start everything, in order; what stands in run.json. Raises ProcessFailed."""
        for port, name in ((self._gateway_port, "RELAY_GATEWAY_PORT"), (self._admin_port, "RELAY_ADMIN_PORT")):
            if port_answers(port)():
                raise ProcessFailed(f"port {port} is taken; set {name} to another one, or to 0 for any")
        _say("starting NATS, Redis and ClickHouse's engine …")
        self._stores.start()
        _say("creating streams and tables …")
        self._bootstrap()
        if not self._upstream_url:
            self._start_simulator()
        self._start_services()
        account_id, api_key = self._demo_account()
        run = {
            "gateway_url": self.gateway_url,
            "admin_url": self.admin_url,
            "admin_token": self._admin_token,
            "secrets_key": self._secrets_key,
            "account_id": account_id,
            "api_key": api_key,
            "upstream_url": self._upstream_url,
            "nats_url": self._stores.nats_url,
            "redis_url": self._stores.redis_url,
            "clickhouse_url": self._stores.clickhouse_url,
            "pids": {process.name: process.pid for process in self._all()},
        }
        if isinstance(self._stores, ClusterStores):
            run["cluster_ports"] = self._stores.ports
        _write_private(self._config.home / "run.json", run)
        return run

    def watch(self, stopping: Stopping) -> Process | None:
        """Wait until told to stop (None), or until a process has died (that one)."""
        while True:
            try:
                stopping.get(timeout=_WATCH_S)
            except queue.Empty:
                died = [process for process in self._all() if not process.is_running()]
                if died and not self._clustered:
                    return died[0]
                for process in died:  # so that one may kill things and watch what becomes of them
                    self._forget(process)
                    _say(f"{process.name} has ended; the others go on")
            else:
                return None

    def stop(self) -> None:
        """Services first, the gateway before what it feeds; then the stores."""
        for process in reversed(self._services):
            _say(f"stopping {process.name} …")
            if not process.stop(seconds=40):
                _say(f"{process.name} did not stop in time and was killed")
        _say("stopping the stores …")
        self._stores.stop()

    def _all(self) -> list[Process]:
        return [*self._stores.processes, *self._services]

    def _forget(self, process: Process) -> None:
        for processes in (self._stores.processes, self._services):
            if process in processes:
                processes.remove(process)

    def _start_services(self) -> None:
        if not self._clustered:
            for name, port in (
                ("accounting", free_port()),
                ("admin", self._admin_port),
                ("gateway", self._gateway_port),
            ):
                _say(f"starting {name} …")
                self._start_service(name, port)
            return
        _say("starting two accounting workers, admin, three gateways and the balancer …")
        for number in (1, 2):
            self._start_service("accounting", free_port(), f"-{number}")
        self._start_service("admin", self._admin_port)
        gateways = {f"gateway-{number}": free_port() for number in (1, 2, 3)}
        for name, port in gateways.items():
            self._start_service("gateway", port, name.removeprefix("gateway"))
        home = self._config.home / "balancer"
        environment = self._config.environment
        balancer = start_balancer(
            home,
            self._logs,
            port=self._gateway_port,
            admin_port=free_port(),
            gateways=gateways,
            environment=environment,
        )
        self._services.append(balancer)

    def _environment(self) -> dict[str, str]:
        return {
            **self._config.environment,
            "RELAY_HOST": "127.0.0.1",
            "RELAY_NATS_URL": self._stores.nats_url,
            "RELAY_REDIS_URL": self._stores.redis_url,
            "RELAY_CLICKHOUSE_URL": self._stores.clickhouse_url,
            **({"RELAY_STREAM_REPLICAS": "3"} if self._clustered else {}),
            "PYTHONUNBUFFERED": "1",
            "NO_PROXY": "127.0.0.1",
            "no_proxy": "127.0.0.1",
        }

    def _bootstrap(self) -> None:
        log = self._logs / "bootstrap.log"
        command = [sys.executable, "-m", "services.accounting", "bootstrap"]
        process = Process.start("bootstrap", command, log=log, environment=self._environment())
        deadline = time.monotonic() + _READY_S
        while process.is_running() and time.monotonic() < deadline:
            time.sleep(0.05)
        process.stop()
        if process.exit_code != 0:
            raise ProcessFailed(f"bootstrap failed:\n{process.log_tail()}")

    def _start_simulator(self) -> None:
        port = free_port()
        _say("starting the Claude API simulator (no ANTHROPIC_API_KEY given) …")
        command = [sys.executable, "-m", "libs.localstack.simulator", "--port", str(port), "--gap-ms", "15"]
        process = Process.start(
            "simulator", command, log=self._logs / "simulator.log", environment=self._config.environment
        )
        self._services.append(process)
        process.wait_until(port_answers(port), seconds=_READY_S)
        self._upstream_url = f"http://127.0.0.1:{port}"

    def _start_service(self, name: str, port: int, suffix: str = "") -> None:
        environment = {**self._environment(), f"RELAY_{name.upper()}_PORT": str(port)}
        if name in ("admin", "gateway"):
            environment["RELAY_SECRETS_KEY"] = self._secrets_key
        if name == "admin":
            environment["RELAY_ADMIN_TOKEN"] = self._admin_token
        if name == "gateway":
            environment["RELAY_SPOOL_DIRECTORY"] = str(self._config.home / f"spool{suffix}")
            environment["RELAY_UPSTREAM_URL"] = self._upstream_url
            environment["RELAY_UPSTREAM_API_KEY"] = self._config.upstream_api_key or _SIMULATOR_KEY
        command = [sys.executable, "-m", f"services.{name}"]
        name += suffix
        process = Process.start(name, command, log=self._logs / f"{name}.log", environment=environment)
        self._services.append(process)
        process.wait_until(http_answers(f"http://127.0.0.1:{port}/readyz"), seconds=_READY_S)

    def _demo_account(self) -> tuple[str, str]:
        """The account and key of the first start, for as long as the state in RELAY_HOME lives."""
        if self._saved.get("api_key"):
            return self._saved["account_id"], self._saved["api_key"]
        headers = {"authorization": f"Bearer {self._admin_token}"}
        with httpx2.Client(base_url=f"{self.admin_url}/api/v1", headers=headers, trust_env=False) as admin:
            account = _post(admin, "/accounts", {"name": "demo"})["id"]
            _post(admin, f"/accounts/{account}/credits", {"amount_usd": _DEMO_CREDIT_USD, "reason": "demo credit"})
            return account, _post(admin, f"/accounts/{account}/keys", {"name": "demo"})["key"]


def main() -> int:
    """Exit code 0 after Ctrl-C or SIGTERM, 1 when something failed, 2 for settings that cannot be read."""
    try:
        config = settings.load()
    except ValueError as error:
        print(error, file=sys.stderr)
        return 2
    stopping: Stopping = (
        queue.SimpleQueue()
    )  # an Event would deadlock when a second Ctrl-C comes inside its first set()
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, lambda *_: stopping.put(None))
    config.home.mkdir(parents=True, exist_ok=True)
    try:
        with _Lock(config.home / "lock"):
            return _run(config, stopping)
    except AlreadyRunning:
        print(f"make run is already running with {config.home}; stop it, or set RELAY_HOME to another directory")
        return 1


def _run(config: LocalConfig, stopping: Stopping) -> int:
    relay = LocalRelay(config)
    try:
        run = relay.start()
        _print_welcome(run)
        died = relay.watch(stopping)
        if died is None:
            return 0
        print(f"\n{died.name} has died; its last words ({died.log}):\n{died.log_tail()}", file=sys.stderr)
        return 1
    except (ProcessFailed, httpx2.HTTPError) as error:
        print(f"\n{error}", file=sys.stderr)
        return 1
    finally:
        relay.stop()


def _print_welcome(run: dict[str, Any]) -> None:
    url, key = run["gateway_url"], run["api_key"]
    print(
        f"""
The relay is running.

  base URL   {url}
  key        {key}
  upstream   {run["upstream_url"]}
  admin API  {run["admin_url"]}   (admin token: admin_token in run.json)

Try it:

  curl -iN {url}/v1/messages \\
    -H "x-api-key: {key}" -H "anthropic-version: 2023-06-01" \\
    -H "content-type: application/json" \\
    -d '{{"model":"claude-sonnet-4-6","max_tokens":200,"stream":true,"messages":[{{"role":"user","content":"Hello"}}]}}'

Claude Code:

  export ANTHROPIC_BASE_URL={url}
  export ANTHROPIC_AUTH_TOKEN={key}
  claude

Ctrl-C stops everything; state is kept.""",
        flush=True,
    )


def _say(text: str) -> None:
    print(text, flush=True)


def _post(client: httpx2.Client, path: str, body: dict[str, str]) -> dict[str, Any]:
    return dict(client.post(path, json=body).raise_for_status().json())


def _read_json(path: Path) -> dict[str, Any]:
    try:
        return dict(json.loads(path.read_bytes()))
    except FileNotFoundError:
        return {}


def _write_private(path: Path, value: dict[str, Any]) -> None:
    """Readable by its owner alone from the first byte on, and replaced in one step."""
    temporary = path.with_suffix(".new")
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with os.fdopen(descriptor, "w") as file:
        json.dump(value, file, indent=2)
    temporary.replace(path)


class _Lock:
    """Holds an exclusive lock on a file; raises AlreadyRunning if another process has it."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._file: IO[str] | None = None

    def __enter__(self) -> None:
        self._file = self._path.open("w")
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            self._file.close()
            raise AlreadyRunning from None

    def __exit__(self, *_: object) -> None:
        assert self._file is not None
        self._file.close()
