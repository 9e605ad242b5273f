"""NATS and Redis as clusters of local processes: three nodes with three copies, three masters with a replica each.

ClickHouse's engine cannot replicate here: it stays one process.
"""

import functools
import json
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from redis import Redis
from redis.exceptions import ResponseError

from libs.localstack.process import Process, free_port, http_answers, port_answers
from libs.localstack.stores import StoreGroup, binary, redis_options, redis_server, start_clickhouse

NODES: Final = 3
_START_S: Final = 30
_SLOTS: Final = 16_384
_BUS_OFFSET: Final = 10_000
_PORT_MAX: Final = 65_535


class ClusterStores(StoreGroup):
    """All of them in one directory. Ports are kept: nodes know each other by them after a restart."""

    def __init__(
        self,
        directory: Path,
        logs: Path,
        environment: Mapping[str, str] | None = None,
        ports: Mapping[str, Any] | None = None,
    ) -> None:
        self.ports = ports = dict(ports or {}) or {
            "nats": [free_port() for _ in range(NODES)],
            "routes": [free_port() for _ in range(NODES)],
            "redis": cluster_ports(2 * NODES),
            "clickhouse": free_port(),
        }
        self.nats_url = ",".join(f"nats://127.0.0.1:{port}" for port in ports["nats"])
        self.redis_url = "redis-cluster://" + ",".join(f"127.0.0.1:{port}" for port in ports["redis"])
        self.clickhouse_url = f"http://127.0.0.1:{ports['clickhouse']}/relay"
        nats, redis, clickhouse = (directory / name for name in ("nats-cluster", "redis-cluster", "clickhouse"))
        super().__init__(
            lambda: start_nats_cluster(
                nats, logs, ports=ports["nats"], routes=ports["routes"], environment=environment
            ),
            lambda: start_redis_cluster(redis, logs, ports=ports["redis"], masters=NODES, environment=environment),
            lambda: [start_clickhouse(clickhouse, logs, port=ports["clickhouse"], environment=environment)],
        )


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


def cluster_ports(count: int) -> list[int]:
    """Free ports whose bus ports, 10,000 above them, exist and are free too."""
    ports: set[int] = set()
    while len(ports) < count:
        port = free_port()
        if port + _BUS_OFFSET <= _PORT_MAX and not port_answers(port + _BUS_OFFSET)():
            ports.add(port)
    return sorted(ports)


def start_redis_cluster(
    directory: Path,
    logs: Path,
    *,
    ports: Sequence[int],
    masters: int | None = None,
    environment: Mapping[str, str] | None = None,
) -> list[Process]:
    """The first `masters` of the ports (without a number: all) are masters, the others their replicas, in order.

    Returns when every node knows who serves every slot. Raises ProcessFailed.
    """
    processes = []
    for number, port in enumerate(ports, 1):
        command = [redis_server(), *redis_options(directory / f"node-{number}", port, clustered=True)]
        process = Process.start(f"redis-{number}", command, log=logs / f"redis-{number}.log", environment=environment)
        processes.append(process.wait_until(port_answers(port), seconds=_START_S))
    nodes = [Redis(port=port, protocol=2) for port in ports]
    try:
        _form(nodes, ports, masters or len(nodes))
        for process, node in zip(processes, nodes, strict=True):
            process.wait_until(functools.partial(_knows_all, node), seconds=_START_S)
    finally:
        for node in nodes:
            node.close()
    return processes


def _form(nodes: Sequence[Redis], ports: Sequence[int], masters: int) -> None:
    """Once: afterwards the nodes remember each other and their slots."""
    if int(_info(nodes[0])["cluster_known_nodes"]) > 1:
        return
    share = -(-_SLOTS // masters)
    for number in range(masters):
        nodes[number].execute_command("CLUSTER", "ADDSLOTS", *range(number * share, min((number + 1) * share, _SLOTS)))
    for port in ports[1:]:
        nodes[0].execute_command("CLUSTER", "MEET", "127.0.0.1", port)
    for number, replica in enumerate(nodes[masters:]):
        _follow(replica, nodes[number % masters])


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


def _knows_all(node: Redis) -> bool:
    info = _info(node)
    return info["cluster_state"] == "ok" and int(info["cluster_slots_ok"]) == _SLOTS


def _info(node: Redis) -> dict[str, str]:
    text: bytes = node.execute_command("CLUSTER", "INFO")
    lines = text if isinstance(text, str) else text.decode()
    return dict(line.split(":", 1) for line in lines.split() if ":" in line)
