"""Addresses of Redis in all their forms, and that a call packed in C is byte for byte what the library would have sent."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from redis.asyncio import Redis, RedisCluster
from redis.asyncio.connection import Connection, SSLConnection, UnixDomainSocketConnection
from redis.asyncio.sentinel import SentinelConnectionPool

from libs.common import redisclient

pytestmark = pytest.mark.anyio


@pytest.mark.parametrize(
    ("url", "kind"),
    [
        ("redis://127.0.0.1:6379/3", Connection),
        ("rediss://user:secret@127.0.0.1:6379/0", SSLConnection),
        ("unix:///run/redis.sock", UnixDomainSocketConnection),
    ],
)
async def test_one_server(url: str, kind: type) -> None:
    client = redisclient.connect(url)
    assert isinstance(client, Redis)
    pool = client.connection_pool
    assert issubclass(pool.connection_class, kind) and pool.connection_class is not kind
    assert (pool.connection_kwargs["socket_timeout"], pool.max_connections) == (redisclient.TRY_S, 64)


async def test_a_cluster() -> None:
    client = redisclient.connect("rediss-cluster://user:p%40ss@10.0.0.1:7001,10.0.0.2", try_seconds=0.5)
    assert isinstance(client, RedisCluster)
    nodes = {(node.host, node.port): node for node in client.nodes_manager.startup_nodes.values()}
    assert set(nodes) == {("10.0.0.1", 7001), ("10.0.0.2", 6379)}
    for node in nodes.values():
        assert issubclass(node.connection_class, SSLConnection)
        assert (node.connection_kwargs["username"], node.connection_kwargs["password"]) == ("user", "p@ss")
        assert node.connection_kwargs["socket_timeout"] == 0.5


async def test_sentinel() -> None:
    client = redisclient.connect("redis-sentinel://user:secret@10.0.0.1:26380,10.0.0.2/relay/4")
    assert isinstance(client, Redis)
    pool: Any = client.connection_pool
    assert isinstance(pool, SentinelConnectionPool)
    assert (pool.service_name, pool.connection_kwargs["db"], pool.connection_kwargs["password"]) == (
        "relay",
        4,
        "secret",
    )
    addresses = [one.connection_pool.connection_kwargs for one in pool.sentinel_manager.sentinels]
    assert [(one["host"], one["port"]) for one in addresses] == [("10.0.0.1", 26380), ("10.0.0.2", 26379)]


@pytest.mark.parametrize(
    "url",
    [
        "http://secret@127.0.0.1",
        "redis-cluster://secret@",
        "redis-cluster://user:secret@host:port",
        "redis-sentinel://user:secret@host:26379",
        "redis-sentinel://user:secret@host:26379/relay/x",
        "redis-cluster://user:secret@host:70000",
    ],
)
async def test_what_is_no_address_is_told_without_its_password(url: str) -> None:
    with pytest.raises(ValueError) as caught:
        redisclient.connect(url)
    assert "secret" not in str(caught.value)


words = st.text(max_size=20) | st.binary(max_size=20) | st.integers(0, 2**63)


@given(st.lists(words, max_size=12))
def test_packed_in_c_is_what_the_library_sends(arguments: list[str | bytes | int]) -> None:
    own, plain = redisclient._Tcp(), Connection()
    call = ("EVALSHA", "0" * 40, "1", *arguments)
    assert b"".join(own.pack_command(*call)) == b"".join(plain.pack_command(*call))
    other = ("CONFIG GET", "save")
    assert own.pack_command(*other) == plain.pack_command(*other)
