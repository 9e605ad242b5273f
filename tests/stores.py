"""The stores tests run against: local processes by default, containers where Docker is there and RELAY_TEST_STACK=containers.

The container form follows testcontainers' documentation; it has not been run where this was written, for want of Docker.
"""

import contextlib
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from libs.localstack.cluster import cluster_ports, start_redis_cluster
from libs.localstack.stores import Stores
from tests.gates import open_gates


@dataclass(frozen=True)
class TestStores:
    """Addresses."""

    __test__ = False
    nats_url: str
    redis_url: str
    clickhouse_url: str


@contextlib.contextmanager
def start_stores(directory: Path) -> Iterator[TestStores]:
    """Start all three, stop them at the end."""
    if os.environ.get("RELAY_TEST_STACK") == "containers":
        with _containers() as stores:
            open_gates(stores.redis_url)
            yield stores
        return
    local = Stores(directory, directory / "logs")
    local.start()
    try:
        with _redis(directory, local.redis_url) as redis_url:
            open_gates(redis_url)
            yield TestStores(local.nats_url, redis_url, local.clickhouse_url)
    finally:
        local.stop()


@contextlib.contextmanager
def _redis(directory: Path, local_url: str) -> Iterator[str]:
    """RELAY_TEST_REDIS: empty for the one that runs anyway, `cluster` for three nodes, or the URL of another server."""
    wanted = os.environ.get("RELAY_TEST_REDIS", "")
    if wanted != "cluster":
        yield wanted or local_url
        return
    ports = cluster_ports(3)
    nodes = start_redis_cluster(directory / "redis-cluster", directory / "logs", ports=ports)
    try:
        yield "redis-cluster://" + ",".join(f"127.0.0.1:{port}" for port in ports)
    finally:
        for node in nodes:
            node.stop()


@contextlib.contextmanager
def _containers() -> Iterator[TestStores]:
    from testcontainers.core.container import DockerContainer
    from testcontainers.core.waiting_utils import wait_for_logs

    nats = DockerContainer("nats:2").with_command("-js").with_exposed_ports(4222)
    redis = DockerContainer("redis:7").with_exposed_ports(6379)
    clickhouse = (
        DockerContainer("clickhouse/clickhouse-server:25.8")
        .with_env("CLICKHOUSE_DB", "relay")
        .with_env("CLICKHOUSE_PASSWORD", "test")
        .with_exposed_ports(8123)
    )
    with nats, redis, clickhouse:
        wait_for_logs(nats, "Server is ready")
        wait_for_logs(redis, "Ready to accept connections")
        wait_for_logs(clickhouse, "Ready for connections")
        yield TestStores(
            f"nats://127.0.0.1:{nats.get_exposed_port(4222)}",
            f"redis://127.0.0.1:{redis.get_exposed_port(6379)}/0",
            f"http://default:test@127.0.0.1:{clickhouse.get_exposed_port(8123)}/relay",
        )
