"""Every setting of the services, read from the environment once. A field `foo_bar` is the variable `RELAY_FOO_BAR`.

The list for people stands in docs/configuration.md; a test holds the two together.
"""

import os
from collections.abc import Mapping
from typing import Annotated, Any, Final, Literal, TypeVar, get_type_hints

import msgspec

_Config = TypeVar("_Config", bound="StoreConfig")
_INSTEAD: Final = {"upstream_api_key": "ANTHROPIC_API_KEY"}

Port = Annotated[int, msgspec.Meta(ge=0, le=65535)]
Count = Annotated[int, msgspec.Meta(ge=1, le=2**53)]
Seconds = Annotated[float, msgspec.Meta(gt=0, le=86_400)]
Url = Annotated[str, msgspec.Meta(pattern=r"\Ahttps?://[^\s/?#]\S*\Z")]
UrlOrNone = Annotated[str, msgspec.Meta(pattern=r"\A(https?://[^\s/?#]\S*)?\Z")]
Secret = Annotated[str, msgspec.Meta(pattern=r"\A[!-~]*\Z")]
"""It becomes part of a header: a line end that came along from a file is refused here."""


class ConfigError(ValueError):
    """A setting is missing or cannot be read; the message names it."""


class StoreConfig(msgspec.Struct, frozen=True, kw_only=True):
    """What every service needs."""

    host: str = "127.0.0.1"
    nats_url: str = "nats://127.0.0.1:4222"
    redis_url: Annotated[str, msgspec.Meta(pattern=r"\A(rediss?(-cluster|-sentinel)?|unix)://\S+\Z")] = (
        "redis://127.0.0.1:6379/0"
    )
    log_level: Literal["debug", "info", "warning", "error"] = "info"
    shutdown_seconds: Annotated[int, msgspec.Meta(ge=0, le=86_400)] = 30
    """How long running work may take to end after SIGTERM."""
    failpoints: str = ""
    """For tests only: where this process is to die or fail (libs/common/failpoints.py)."""


class GatewayConfig(StoreConfig, frozen=True, kw_only=True):
    """The data plane."""

    gateway_port: Port = 8080
    upstream_url: Url = "https://api.anthropic.com"
    upstream_api_key: Secret = ""
    upstream_proxy: UrlOrNone = ""
    upstreams: str = ""
    """Several upstream credentials for a small set-up: a JSON array (docs/configuration.md)."""
    secrets_key: Secret = ""
    """Opens the upstream credentials that admin has sealed; several, separated by commas, while keys change."""
    upstream_retries_max: Annotated[int, msgspec.Meta(ge=0, le=10)] = 3
    upstream_retry_seconds: Seconds = 1.0
    """Before the first retry; doubled for each further one, with jitter."""
    upstream_retry_after_seconds_max: Seconds = 10.0
    """The longest `retry-after` of the upstream that is waited for."""
    upstream_retries_seconds_max: Seconds = 30.0
    """All waiting of one request together."""
    lease_seconds: Annotated[int, msgspec.Meta(ge=1, le=3_600)] = 60
    """How long a dead gateway's slots and holds stay taken. Renewed after a third of it."""
    trusted_proxies: str = ""
    """Addresses and networks whose `x-forwarded-for` is believed, separated by commas."""
    price_book_seconds: Seconds = 5.0
    """How often published price books are looked for: a good deal less than they are published before they count."""
    unknown_keys_per_minute: Count = 30
    """How many keys that do not exist one address may try."""
    upstream_connect_seconds: Seconds = 10.0
    upstream_first_byte_seconds: Seconds = 600.0
    upstream_idle_seconds: Seconds = 600.0
    upstream_connections_max: Count = 2000
    body_bytes_max: Count = 32 * 1024 * 1024
    bodies_in_flight_bytes_max: Count = 512 * 1024 * 1024
    head_seconds: Seconds = 10.0
    body_seconds: Seconds = 30.0
    body_bytes_per_second_min: Count = 64 * 1024
    reader_stalled_seconds: Seconds = 60.0
    keep_alive_seconds: Seconds = 75.0
    drain_seconds: Annotated[float, msgspec.Meta(ge=0, le=86_400)] = 120.0
    """How long an upstream stream is read to its end after its caller left."""
    drains_max: Annotated[int, msgspec.Meta(ge=0, le=2**53)] = 200
    """How many such streams at once; beyond it they are cancelled and estimated."""
    error_body_bytes_max: Count = 1024 * 1024
    """How much of an upstream error is read before it is judged."""
    spool_directory: Annotated[str, msgspec.Meta(min_length=1)] = "spool"
    """Where requests are noted before they are sent, and kept until NATS has acknowledged them. One per gateway process."""
    spool_bytes_max: Annotated[int, msgspec.Meta(ge=2**20, le=2**50)] = 1024 * 1024 * 1024
    """When 95 % of it are used, new requests are answered 529."""


class AccountingConfig(StoreConfig, frozen=True, kw_only=True):
    """The worker."""

    accounting_port: Port = 8082
    clickhouse_url: Url = "http://127.0.0.1:8123/relay"
    batch_messages_max: Count = 200
    batch_seconds: Seconds = 0.2
    reap_seconds: Seconds = 5.0
    """How often leases of dead gateways are looked for."""
    rewind_seconds: Annotated[int, msgspec.Meta(ge=1, le=86_400)] = 900
    """How far back usage and control are settled again when Redis was restarted or failed over."""
    rollup_seconds: Seconds = 5.0
    """How often the hourly sums are made anew where rows have come."""
    clickhouse_cluster: Annotated[str, msgspec.Meta(pattern=r"\A[A-Za-z0-9_-]*\Z")] = ""
    """Name of the ClickHouse cluster: tables are replicated over it. Empty: one node."""
    ledger_partition: Literal["month", "week", "day"] = "month"
    """What one partition of the ledger holds; decided when the table is made."""
    ledger_detail_days: Annotated[int, msgspec.Meta(ge=0, le=36_500)] = 0
    """After how many days the details of a row are emptied; its amounts stay. 0: never."""
    stream_replicas: Annotated[int, msgspec.Meta(ge=1, le=5)] = 1
    stream_bytes_max: Count = 2 * 1024 * 1024 * 1024


class AdminConfig(StoreConfig, frozen=True, kw_only=True):
    """The control plane."""

    admin_port: Port = 8081
    admin_token: Secret = ""
    """A token for programs that may do everything; empty: there is none, and the first start prints a set-up link."""
    admin_url: UrlOrNone = ""
    """Where people reach the control plane: what links begin with. Empty: this machine."""
    admin_trusted_proxies: str = ""
    """Addresses and networks whose `x-forwarded-for` is believed, separated by commas: whom the audit log names."""
    secrets_key: Secret = ""
    """Seals upstream credentials; several, separated by commas, while keys change: the first one seals."""
    clickhouse_url: Url = "http://127.0.0.1:8123/relay"
    promotions_seconds: Seconds = 300.0
    """How often promotions that have ended are looked for."""
    price_lead_seconds: Seconds = 60.0
    """How long before it counts a price book is published at least: many times RELAY_PRICE_BOOK_SECONDS of the gateways."""
    new_models_seconds: Seconds = 86_400.0
    """How often the upstream's model list is compared with the price book."""
    alerts_seconds: Seconds = 30.0
    """How often alert rules are measured."""
    smtp_url: Secret = ""
    """smtp[s]://[user:password@]host[:port][?starttls=1]; empty: no e-mail is sent."""
    smtp_from: str = ""
    webhook_networks: str = ""
    """Networks that webhooks may reach beside global addresses, separated by commas."""


def load(kind: type[_Config], environment: Mapping[str, str] | None = None) -> _Config:
    """A service's settings. Raises ConfigError that names the variable and shows no secret.

    An empty variable is one that is not set. `ANTHROPIC_API_KEY` stands in for `RELAY_UPSTREAM_API_KEY`, so that what
    works for an SDK works for the relay.
    """
    environment = os.environ if environment is None else environment
    values: dict[str, Any] = {}
    for name, wanted in get_type_hints(kind, include_extras=True).items():
        variable = f"RELAY_{name.upper()}"
        text = environment.get(variable) or environment.get(_INSTEAD.get(name, ""))
        if text:
            values[name] = _read(variable, text, wanted)
    return kind(**values)


def _read(variable: str, text: str, wanted: Any) -> Any:
    try:
        return msgspec.convert(text, wanted, strict=False)
    except msgspec.ValidationError as error:
        raise ConfigError(f"{variable} cannot be read: {error} (docs/configuration.md)") from None
