"""The relay under chaos: two gateways, two accounting workers, admin, a simulator; every way between them through a proxy."""

import asyncio
import contextlib
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from libs.common import streams, subjects
from libs.localstack.stores import start_clickhouse, start_nats, start_redis
from tests.chaos.toxic import Toxics
from tests.e2e.relay import ADMIN_TOKEN, UPSTREAM_KEY, Relay, Service, environment_of, free_port
from tests.e2e.store import Store

GATEWAYS: Final = ("gateway-1", "gateway-2")
WORKERS: Final = ("accounting-1", "accounting-2")
ACK_WAIT_S: Final = 5
QUICK: Final = {
    "RELAY_LEASE_SECONDS": "5",
    "RELAY_REAP_SECONDS": "1",
    "RELAY_REWIND_SECONDS": "60",
    "RELAY_BATCH_SECONDS": "0.05",
    "RELAY_DRAIN_SECONDS": "3",
    "RELAY_SHUTDOWN_SECONDS": "10",
    "RELAY_ROLLUP_SECONDS": "1",
    "RELAY_UPSTREAM_RETRY_SECONDS": "0.02",
    "RELAY_UPSTREAM_RETRY_AFTER_SECONDS_MAX": "0.1",
    "RELAY_UPSTREAM_CONNECT_SECONDS": "2",
}


class Stack:
    """All processes, by name."""

    def __init__(self, home: Path, code: Path | None = None) -> None:
        """`code`: where another copy of the repository stands, whose services are run."""
        self.home = home
        self.toxics = Toxics()
        self.stores = {
            "nats": Store(start_nats, home / "nats"),
            "redis": Store(start_redis, home / "redis"),
            "clickhouse": Store(start_clickhouse, home / "clickhouse"),
        }
        self.direct = self._addresses({name: store.port for name, store in self.stores.items()})
        self._simulator_port = free_port()
        self._code = {"PYTHONPATH": str(code)} if code is not None else {}
        self._cwd = code
        self.services: dict[str, Service] = {}
        logs = home / "logs"
        logs.mkdir(parents=True, exist_ok=True)
        simulator = ("libs.localstack.simulator", "--port", str(self._simulator_port), "--api-key", UPSTREAM_KEY)
        self.services["simulator"] = Service(
            "simulator",
            *simulator,
            port=self._simulator_port,
            environment=environment_of({}),
            logs=logs,
            ready="/_sim/scenarios",
        )
        for name in (*WORKERS, "admin", *GATEWAYS):
            self.services[name] = self._service(name, logs)
        self.relay: Relay

    def start(self) -> None:
        """Bootstrap, then everything."""
        environment = environment_of(self.direct) | self._code
        command = [sys.executable, "-m", "services.accounting", "bootstrap"]
        subprocess.run(command, env=environment, cwd=self._cwd, check=True, timeout=60, stdout=subprocess.DEVNULL)
        for service in self.services.values():
            service.start()
        for service in self.services.values():
            service.wait_ready()
        asyncio.run(_shorten_ack_wait(self.direct["RELAY_NATS_URL"]))
        self.relay = Relay(self.direct, self.home / "logs", {**self.services, "gateway": self.services["gateway-1"]})

    def stop(self) -> None:
        """Everything, whatever state it is in."""
        self.toxics.heal()
        for service in reversed(self.services.values()):
            with contextlib.suppress(AssertionError, AttributeError):
                if service.process.poll() is None:
                    service.signal(signal.SIGCONT)  # a stopped process does not hear SIGTERM
                service.stop()
        for store in self.stores.values():
            store.close()
        self.toxics.close()

    def command(self, *words: str) -> subprocess.CompletedProcess[str]:
        """An operator's command of accounting."""
        environment = environment_of(self.direct) | QUICK | self._code
        line = [sys.executable, "-m", "services.accounting", *words]
        return subprocess.run(
            line, env=environment, cwd=self._cwd, timeout=300, text=True, capture_output=True, check=False
        )

    def links(self) -> list[str]:
        """All ways that can be disturbed."""
        return sorted(self.toxics.links)

    def _addresses(self, ports: dict[str, int]) -> dict[str, str]:
        return {
            "RELAY_NATS_URL": f"nats://127.0.0.1:{ports['nats']}",
            "RELAY_REDIS_URL": f"redis://127.0.0.1:{ports['redis']}/0",
            "RELAY_CLICKHOUSE_URL": f"http://127.0.0.1:{ports['clickhouse']}/relay",
        }

    def _service(self, name: str, logs: Path) -> Service:
        kind, port = name.partition("-")[0], free_port()
        neighbours = {store: self.toxics.link(f"{name}>{store}", one.port) for store, one in self.stores.items()}
        environment = environment_of(self._addresses(neighbours)) | QUICK | self._code
        environment |= {f"RELAY_{kind.upper()}_PORT": str(port), "RELAY_ADMIN_TOKEN": ADMIN_TOKEN}
        if kind == "gateway":
            del self.toxics.links[f"{name}>clickhouse"]  # it has no business there
            upstream = self.toxics.link(f"{name}>upstream", self._simulator_port)
            environment |= {
                "RELAY_SPOOL_DIRECTORY": str(self.home / f"spool-{name}"),
                "RELAY_UPSTREAM_URL": f"http://127.0.0.1:{upstream}",
                "RELAY_UPSTREAM_API_KEY": UPSTREAM_KEY,
            }
        return Service(
            name, f"services.{kind}", port=port, environment=environment, logs=logs, ready="/readyz", cwd=self._cwd
        )


async def _shorten_ack_wait(nats_url: str) -> None:
    """What a worker had in hand when it was killed comes again after a minute: too long for a stage."""
    broker = await streams.connect(nats_url, name="chaos")
    for stream in (subjects.STREAM_USAGE, subjects.STREAM_CONTROL):
        info = await broker.jetstream().consumer_info(stream, subjects.CONSUMER_ACCOUNTING)
        info.config.ack_wait = ACK_WAIT_S
        await broker.jetstream().add_consumer(stream, info.config)
    await streams.close(broker)


@contextlib.contextmanager
def running(home: Path, code: Path | None = None) -> Iterator[Stack]:
    """A stack that is stopped at the end."""
    stack = Stack(home, code)
    try:
        stack.start()
        yield stack
    finally:
        stack.stop()
