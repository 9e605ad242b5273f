"""NATS and Redis as clusters of local processes: three nodes with three copies, three masters with a replica each.

ClickHouse's engine cannot replicate here: it stays one process.
"""

import json
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from redis import Redis
from redis.exceptions import ResponseError

from libs.localstack.process import Process, free_port, http_answers, port_answers
from libs.localstack.stores import binary, cluster_ports, redis_options, redis_server, start_clickhouse, wait_for_slots

NODES: Final = 3
_START_S: Final = 30
_SLOTS: Final = 16_384


class ClusterStores:
    """All of them in one directory. Ports are kept: nodes know each other by them after a restart."""

    def __init__(
        self,
        directory: Path,
        logs: Path,
        environment: Mapping[str, str] | None = None,
        ports: Mapping[str, Any] | None = None,
    ) -> None:
        self.ports = dict(ports or {}) or {
            "nats": [free_port() for _ in range(NODES)],
            "routes": [free_port() for _ in range(NODES)],
            "redis": cluster_ports(2 * NODES),
            "clickhouse": free_port(),
        }
        self.nats_url = ",".join(f"nats://127.0.0.1:{port}" for port in self.ports["nats"])
        self.redis_url = "redis-cluster://" + ",".join(f"127.0.0.1:{port}" for port in self.ports["redis"])
        self.clickhouse_url = f"http://127.0.0.1:{self.ports['clickhouse']}/relay"
        self._directory, self._logs, self._environment = directory, logs, environment
        self.processes: list[Process] = []

    def start(self) -> None:
        """Start all; if one fails, stop those that run and raise ProcessFailed."""
        home, logs, ports = self._directory, self._logs, self.ports
        try:
            self.processes += start_nats_cluster(
                home / "nats-cluster", logs, ports=ports["nats"], routes=ports["routes"], environment=self._environment
            )
            self.processes += start_redis_replicas(
                home / "redis-cluster", logs, ports=ports["redis"], environment=self._environment
            )
            clickhouse = home / "clickhouse"
            self.processes.append(
                start_clickhouse(clickhouse, logs, port=ports["clickhouse"], environment=self._environment)
            )
        except BaseException:
            self.stop()
            raise

    def stop(self) -> None:
        """Stop all, last started first."""
        for process in reversed(self.processes):
            process.stop()
        self.processes = []


def start_nats_cluster(
    directory: Path,
    logs: Path,
    *,
    ports: Sequence[int],
    routes: Sequence[int],
    environment: Mapping[str, str] | None = None,
) -> list[Process]:
    """As many nodes as ports; ready when each has a leader to follow."""
    others = ", ".join(f"nats://127.0.0.1:{port}" for port in routes)
    started = []
    for number, (port, route) in enumerate(zip(ports, routes, strict=True), 1):
        home, monitor = directory / f"node-{number}", free_port()
        home.mkdir(parents=True, exist_ok=True)
        config = home / "nats.conf"
        config.write_text(
            f"""server_name: nats-{number}
listen: 127.0.0.1:{port}
http: 127.0.0.1:{monitor}
jetstream {{ store_dir: {json.dumps(str(home), ensure_ascii=False)}, sync_interval: always }}
cluster {{ name: relay, listen: 127.0.0.1:{route}, routes: [{others}] }}
"""
        )
        command = [binary("nats-server"), "-c", str(config)]
        process = Process.start(f"nats-{number}", command, log=logs / f"nats-{number}.log", environment=environment)
        started.append((process, http_answers(f"http://127.0.0.1:{monitor}/healthz")))
    return [process.wait_until(ready, seconds=_START_S) for process, ready in started]


def start_redis_replicas(
    directory: Path, logs: Path, *, ports: Sequence[int], environment: Mapping[str, str] | None = None
) -> list[Process]:
    """The first half of the ports are masters, the others their replicas, in order."""
    processes = []
    for number, port in enumerate(ports, 1):
        command = [redis_server(), *redis_options(directory / f"node-{number}", port, clustered=True)]
        process = Process.start(f"redis-{number}", command, log=logs / f"redis-{number}.log", environment=environment)
        processes.append(process.wait_until(port_answers(port), seconds=_START_S))
    nodes = [Redis(port=port, protocol=2) for port in ports]
    try:
        _form(nodes, ports)
        wait_for_slots(processes, nodes)
    finally:
        for node in nodes:
            node.close()
    return processes


def _form(nodes: Sequence[Redis], ports: Sequence[int]) -> None:
    """Once: afterwards the nodes remember each other and their slots."""
    masters = len(nodes) // 2
    if int(_count(nodes[0], "cluster_known_nodes")) > 1:
        return
    share = -(-_SLOTS // masters)
    for number in range(masters):
        nodes[number].execute_command("CLUSTER", "ADDSLOTS", *range(number * share, min((number + 1) * share, _SLOTS)))
    for port in ports[1:]:
        nodes[0].execute_command("CLUSTER", "MEET", "127.0.0.1", port)
    for number in range(masters):
        _follow(nodes[masters + number], nodes[number])


def _follow(replica: Redis, master: Redis) -> None:
    """As soon as it has heard of its master."""
    name = master.execute_command("CLUSTER", "MYID")
    deadline = time.monotonic() + _START_S
    while True:
        try:
            replica.execute_command("CLUSTER", "REPLICATE", name)
        except ResponseError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.05)
        else:
            return


def _count(node: Redis, name: str) -> str:
    text = node.execute_command("CLUSTER", "INFO")
    lines = text if isinstance(text, str) else text.decode()
    return next(line.partition(":")[2] for line in lines.split() if line.startswith(name))
