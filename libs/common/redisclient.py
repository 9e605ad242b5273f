"""How every service connects to Redis: one server, behind Sentinel, or a Cluster; two short tries, so that a refusal comes within
300 ms.

Two, because a time-out is not always Redis's: a process that was itself stopped for longer than its limit finds every reply late.
And because a pooled connection may have been closed while it was idle.

    redis://host:6379/0     rediss:// with TLS     unix:///run/redis.sock
    redis-sentinel://user:password@host:26379,host:26379/service/0          rediss-sentinel://
    redis-cluster://user:password@host:6379,host:6379                       rediss-cluster://
"""

from typing import Any, Final
from urllib.parse import unquote, urlsplit

import hiredis
from redis.asyncio import Redis, RedisCluster, Sentinel
from redis.asyncio.cluster import ClusterNode
from redis.asyncio.connection import Connection, SSLConnection, UnixDomainSocketConnection
from redis.asyncio.retry import Retry
from redis.asyncio.sentinel import SentinelManagedConnection, SentinelManagedSSLConnection
from redis.backoff import NoBackoff
from redis.exceptions import RedisError

TRIES: Final = 2
TRY_S: Final = 0.13
TRY_S_UNHURRIED: Final = 5.0
"""For who keeps no caller waiting: on a machine that is short of CPU, late is better than never."""
CONNECTIONS_MAX: Final = 64
RedisClient = Redis | RedisCluster
_SCHEMES: Final = frozenset(
    {"redis", "rediss", "unix", "redis-sentinel", "rediss-sentinel", "redis-cluster", "rediss-cluster"}
)
_PORTS: Final = {"sentinel": 26379, "cluster": 6379}


class _Packing:
    """Packs script calls in C: the library does it in Python, which was 40 % of the CPU of an admission."""

    def pack_command(self, *args: Any) -> list[bytes]:
        if args[0] == "EVALSHA":
            return [hiredis.pack_command(args)]
        packed: list[bytes] = super().pack_command(*args)  # type: ignore[misc]
        return packed


class _Tcp(_Packing, Connection):
    pass


class _Tls(_Packing, SSLConnection):
    pass


class _Unix(_Packing, UnixDomainSocketConnection):
    pass


class _SentinelTcp(_Packing, SentinelManagedConnection):
    pass


class _SentinelTls(_Packing, SentinelManagedSSLConnection):
    pass


_OWN: Final = {Connection: _Tcp, SSLConnection: _Tls, UnixDomainSocketConnection: _Unix}


def connect(url: str, *, try_seconds: float = TRY_S) -> RedisClient:
    """A client with a pool; it connects when first used. Replies are bytes. Raises ValueError for a URL that is none.

    `try_seconds` bounds connecting, and then each reply, of each of the two tries.
    """
    parts = urlsplit(url)
    if parts.scheme not in _SCHEMES:
        raise ValueError("a Redis URL begins with redis://, rediss://, unix://, redis-sentinel:// or redis-cluster://")
    options: dict[str, Any] = {
        "socket_connect_timeout": try_seconds,
        "socket_timeout": try_seconds,
        "retry": Retry(NoBackoff(), TRIES - 1),
        "max_connections": CONNECTIONS_MAX,
        "decode_responses": False,
    }
    kind = parts.scheme.partition("-")[2]
    if kind == "cluster":
        return _cluster(url, options)
    if kind == "sentinel":
        return _sentinel(url, options)
    client = Redis.from_url(url, **options)
    pool = client.connection_pool
    pool.connection_class = _OWN[pool.connection_class]
    return client


async def answers(redis: RedisClient) -> bool:
    """Whether Redis answers a ping now; of a Cluster, each of its masters."""
    try:
        return bool(await redis.ping())
    except (RedisError, OSError, TimeoutError):
        return False


def _cluster(url: str, options: dict[str, Any]) -> RedisCluster:
    tls = url.startswith("rediss")
    hosts, credentials, _ = _read(url)
    nodes = [ClusterNode(host, port) for host, port in hosts]
    client = RedisCluster(startup_nodes=nodes, require_full_coverage=False, ssl=tls, **credentials, **options)
    # the library has no setting for it; nodes that are found later are made from `connection_kwargs`
    client.connection_kwargs["connection_class"] = own = _Tls if tls else _Tcp
    for node in client.nodes_manager.startup_nodes.values():
        node.connection_class = own
    return client


def _sentinel(url: str, options: dict[str, Any]) -> Redis:
    tls = url.startswith("rediss")
    hosts, credentials, path = _read(url)
    service, _, db = path.partition("/")
    if not service or not (db or "0").isdigit():
        raise ValueError("a Sentinel URL ends with the name of the service, and perhaps a database: …/service/0")
    timeouts = {name: options[name] for name in ("socket_connect_timeout", "socket_timeout")}
    sentinel: Any = Sentinel(hosts, sentinel_kwargs=timeouts, ssl=tls)  # type: ignore[no-untyped-call]
    client: Redis = sentinel.master_for(service, db=int(db or "0"), **credentials, **options)
    client.connection_pool.connection_class = _SentinelTls if tls else _SentinelTcp
    return client


def _read(url: str) -> tuple[list[tuple[str, int]], dict[str, Any], str]:
    """Hosts with ports, user and password, and the path."""
    parts = urlsplit(url)
    user_part, _, host_part = parts.netloc.rpartition("@")
    user, _, password = user_part.partition(":")
    credentials = {"username": unquote(user), "password": unquote(password)}
    default = _PORTS[parts.scheme.partition("-")[2]]
    hosts = []
    for place in host_part.split(","):
        host, _, port = place.strip().rpartition(":") if ":" in place else (place.strip(), "", "")
        if not host or not (port or "0").isdigit() or int(port or "0") > 65535:
            raise ValueError("a Redis URL has hosts such as host:6379,host:6379")
        hosts.append((host.strip("[]"), int(port) if port else default))
    return hosts, {name: text for name, text in credentials.items() if text}, parts.path.strip("/")
