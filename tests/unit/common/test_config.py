"""Settings: docs/configuration.md and the code say the same, and what cannot be read is named."""

import re
from pathlib import Path

import pytest

from libs.common import config
from libs.common.config import AccountingConfig, AdminConfig, ConfigError, GatewayConfig, StoreConfig

TOKEN = {"RELAY_ADMIN_TOKEN": "0123456789abcdef"}
KINDS: dict[str, type[StoreConfig]] = {
    "All services": StoreConfig,
    "Gateway": GatewayConfig,
    "Accounting": AccountingConfig,
    "Admin": AdminConfig,
}
DOCUMENT = Path(__file__).parents[3] / "docs" / "configuration.md"
ROW = re.compile(r"^\| `(RELAY_\w+)` \|(?: `([^`|]*)`)?[^|`]*\| ([^|]*)\|$", re.MULTILINE)


def documented(section: str) -> dict[str, tuple[str, str]]:
    """Variable → (default, meaning) of one table."""
    (text,) = re.findall(rf"^## {re.escape(section)}\n(.*?)(?=^## |\Z)", DOCUMENT.read_text(), re.MULTILINE | re.DOTALL)
    return {match[1]: (match[2] or "", match[3]) for match in ROW.finditer(text)}


@pytest.mark.parametrize("section", KINDS)
def test_every_setting_is_documented_and_nothing_else(section: str) -> None:
    kind = KINDS[section]
    inherited = set() if kind is StoreConfig else set(StoreConfig.__struct_fields__)
    fields = {f"RELAY_{name.upper()}" for name in kind.__struct_fields__ if name not in inherited}
    assert set(documented(section)) == fields
    for variable, (default, meaning) in documented(section).items():
        assert meaning.strip(), variable
        name = variable.removeprefix("RELAY_").lower()
        if variable not in TOKEN:
            assert config.load(kind, {**TOKEN, variable: default}) == config.load(kind, TOKEN), variable
            assert (default == "") is (getattr(config.load(kind, TOKEN), name) == ""), variable


def test_every_variable_of_the_document_exists() -> None:
    known = {f"RELAY_{name.upper()}" for kind in KINDS.values() for name in kind.__struct_fields__}
    assert set(re.findall(r"`(RELAY_\w+)`", DOCUMENT.read_text())) - known == {"RELAY_HOME"}  # libs/localstack


@pytest.mark.parametrize(
    ("kind", "variable", "value"),
    [
        (GatewayConfig, "RELAY_GATEWAY_PORT", "eighty"),
        (GatewayConfig, "RELAY_GATEWAY_PORT", "65536"),
        (GatewayConfig, "RELAY_GATEWAY_PORT", "-1"),
        (GatewayConfig, "RELAY_GATEWAY_PORT", "80.5"),
        (GatewayConfig, "RELAY_UPSTREAM_URL", "api.anthropic.com"),
        (GatewayConfig, "RELAY_UPSTREAM_URL", "ftp://api.anthropic.com"),
        (GatewayConfig, "RELAY_UPSTREAM_URL", "https:///v1"),
        (GatewayConfig, "RELAY_UPSTREAM_PROXY", "proxy:8080"),
        (GatewayConfig, "RELAY_UPSTREAM_API_KEY", "hush-hush\n"),
        (GatewayConfig, "RELAY_UPSTREAM_API_KEY", "hush-hüsh"),
        (GatewayConfig, "RELAY_HEAD_SECONDS", "0"),
        (GatewayConfig, "RELAY_HEAD_SECONDS", "nan"),
        (GatewayConfig, "RELAY_HEAD_SECONDS", "inf"),
        (GatewayConfig, "RELAY_DRAIN_SECONDS", "-0.1"),
        (GatewayConfig, "RELAY_DRAINS_MAX", "-1"),
        (GatewayConfig, "RELAY_BODY_BYTES_MAX", "0"),
        (GatewayConfig, "RELAY_BODY_BYTES_MAX", "32MB"),
        (GatewayConfig, "RELAY_BODY_BYTES_MAX", "9" * 40),
        (GatewayConfig, "RELAY_REDIS_URL", "127.0.0.1:6379"),
        (GatewayConfig, "RELAY_LOG_LEVEL", "loud"),
        (GatewayConfig, "RELAY_SHUTDOWN_SECONDS", "1.5"),
        (AccountingConfig, "RELAY_STREAM_REPLICAS", "0"),
        (AccountingConfig, "RELAY_STREAM_REPLICAS", "7"),
        (AccountingConfig, "RELAY_BATCH_SECONDS", "soon"),
        (AccountingConfig, "RELAY_CLICKHOUSE_URL", "127.0.0.1:8123"),
        (AdminConfig, "RELAY_ADMIN_TOKEN", "hush hush hush hush"),
    ],
)
def test_a_setting_that_cannot_be_read_is_named(kind: type[StoreConfig], variable: str, value: str) -> None:
    with pytest.raises(ConfigError) as refused:
        config.load(kind, {**TOKEN, variable: value})
    assert str(refused.value).startswith(variable)
    assert "hush" not in str(refused.value)
    assert refused.value.__cause__ is None and refused.value.__suppress_context__


def test_limits_themselves_are_in_range() -> None:
    loaded = config.load(
        GatewayConfig,
        {
            "RELAY_GATEWAY_PORT": "0",
            "RELAY_DRAINS_MAX": "0",
            "RELAY_DRAIN_SECONDS": "0",
            "RELAY_SHUTDOWN_SECONDS": "0",
            "RELAY_HEAD_SECONDS": "0.25",
            "RELAY_UPSTREAM_IDLE_SECONDS": "86400",
            "RELAY_UPSTREAM_URL": "http://127.0.0.1:9/base/",
            "RELAY_UPSTREAM_PROXY": "http://user:password@host:3128",
            "RELAY_REDIS_URL": "rediss://user:password@host/1",
        },
    )
    assert (loaded.gateway_port, loaded.drains_max, loaded.drain_seconds, loaded.head_seconds) == (0, 0, 0.0, 0.25)
    assert loaded.upstream_url == "http://127.0.0.1:9/base/"


def test_the_anthropic_key_stands_in() -> None:
    def key(**environment: str) -> str:
        return config.load(GatewayConfig, environment).upstream_api_key

    assert key() == ""
    assert key(ANTHROPIC_API_KEY="sk-ant-1") == "sk-ant-1"
    assert key(ANTHROPIC_API_KEY="sk-ant-1", RELAY_UPSTREAM_API_KEY="sk-ant-2") == "sk-ant-2"
    assert key(ANTHROPIC_API_KEY="sk-ant-1", RELAY_UPSTREAM_API_KEY="") == "sk-ant-1"


def test_an_empty_variable_is_not_set() -> None:
    empty = {f"RELAY_{name.upper()}": "" for name in GatewayConfig.__struct_fields__}
    assert config.load(GatewayConfig, empty) == config.load(GatewayConfig, {})


@pytest.mark.parametrize("environment", [{}, {"RELAY_ADMIN_TOKEN": ""}])
def test_the_admin_token_has_no_default(environment: dict[str, str]) -> None:
    assert config.load(AdminConfig, environment).admin_token == ""  # and that is nobody's: see test_authentication.py


def test_other_variables_do_not_matter() -> None:
    assert config.load(StoreConfig, {"HOST": "x", "RELAY_HOSTS": "x", "relay_host": "x"}).host == "127.0.0.1"


def test_without_an_argument_the_process_is_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RELAY_NATS_URL", "nats://one:4222,nats://two:4222")
    assert config.load(StoreConfig).nats_url == "nats://one:4222,nats://two:4222"
