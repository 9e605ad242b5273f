"""Every setting of the services, read from the environment once. A field `foo_bar` is the variable `RELAY_FOO_BAR`.

The list for people stands in docs/configuration.md; a test holds the two together.
"""

import os
from collections.abc import Mapping
from typing import Any, Final, TypeVar

import msgspec

_Config = TypeVar("_Config", bound="StoreConfig")
_REQUIRED: Final = frozenset({"admin_token"})


class ConfigError(ValueError):
    """A setting is missing or cannot be read; the message names it."""


class StoreConfig(msgspec.Struct, frozen=True, kw_only=True):
    """What every service needs."""

    host: str = "127.0.0.1"
    nats_url: str = "nats://127.0.0.1:4222"
    redis_url: str = "redis://127.0.0.1:6379/0"
    log_level: str = "info"
    shutdown_seconds: int = 30
    """How long running work may take to end after SIGTERM."""


class GatewayConfig(StoreConfig, frozen=True, kw_only=True):
    """The data plane."""

    gateway_port: int = 8080
    upstream_url: str = "https://api.anthropic.com"
    upstream_api_key: str = ""
    upstream_proxy: str = ""
    upstream_connect_seconds: float = 10.0
    upstream_first_byte_seconds: float = 600.0
    upstream_idle_seconds: float = 600.0
    upstream_connections_max: int = 2000
    body_bytes_max: int = 32 * 1024 * 1024
    bodies_in_flight_bytes_max: int = 512 * 1024 * 1024
    head_seconds: float = 10.0
    body_seconds: float = 30.0
    body_bytes_per_second_min: int = 64 * 1024
    reader_stalled_seconds: float = 60.0
    keep_alive_seconds: float = 75.0
    drain_seconds: float = 120.0
    """How long an upstream stream is read to its end after its caller left."""
    drains_max: int = 200
    """How many such streams at once; beyond it they are cancelled and estimated."""
    error_body_bytes_max: int = 1024 * 1024
    """How much of an upstream error is read before it is judged."""
    unpublished_events_max: int = 100_000
    """Events waiting for NATS; when full, new requests are answered 529."""


class AccountingConfig(StoreConfig, frozen=True, kw_only=True):
    """The worker."""

    accounting_port: int = 8082
    clickhouse_url: str = "http://127.0.0.1:8123/relay"
    batch_messages_max: int = 200
    batch_seconds: float = 0.2
    stream_replicas: int = 1
    stream_bytes_max: int = 2 * 1024 * 1024 * 1024


class AdminConfig(StoreConfig, frozen=True, kw_only=True):
    """The control plane."""

    admin_port: int = 8081
    admin_token: str
    clickhouse_url: str = "http://127.0.0.1:8123/relay"


def load(kind: type[_Config], environment: Mapping[str, str] | None = None) -> _Config:
    """A service's settings. Raises ConfigError that names the variable.

    `ANTHROPIC_API_KEY` stands in for `RELAY_UPSTREAM_API_KEY`, so that what works for an SDK works for the relay.
    """
    environment = os.environ if environment is None else environment
    values: dict[str, Any] = {}
    for name in kind.__struct_fields__:
        if name in _REQUIRED and f"RELAY_{name.upper()}" not in environment:
            raise ConfigError(f"RELAY_{name.upper()} must be set (docs/configuration.md)")
        value = environment.get(f"RELAY_{name.upper()}")
        if value is None and name == "upstream_api_key":
            value = environment.get("ANTHROPIC_API_KEY")
        if value is not None:
            values[name] = value
    try:
        return msgspec.convert(values, kind, strict=False)
    except msgspec.ValidationError as error:
        raise ConfigError(f"a RELAY_* setting cannot be read: {error} (names are in docs/configuration.md)") from error
