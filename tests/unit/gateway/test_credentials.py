"""Upstream credentials from the environment and from Redis, and what is said of those that cannot be used."""

import json
from typing import Any, Final

import pytest

from libs.common.config import ConfigError, GatewayConfig
from libs.common.events import UpstreamCredential
from libs.common.sealing import Sealer, UpstreamSecret, new_key
from libs.common.upstreams import Name, Stored
from services.gateway.credentials import from_environment, from_redis, without_a_key

SECRET: Final = "sk-ant-api03-secret"


def given(*entries: dict[str, Any], **config: Any) -> GatewayConfig:
    return GatewayConfig(upstreams=json.dumps(entries), **config)


def test_several_from_the_environment() -> None:
    full = {
        "name": "spare",
        "base_url": "https://gate/claude",
        "api_key": SECRET,
        "weight": 3,
        "in_flight_max": 9,
        "proxy_url": "http://user:word@proxy:3128",
        "account_id": "acct_1",
    }
    plain, spare = from_environment(given({"api_key": SECRET}, full, upstream_api_key="not this one"))
    assert (plain.name.id, plain.base_url, plain.api_key) == ("env-1", "https://api.anthropic.com", SECRET)
    assert (plain.weight, plain.in_flight_max, plain.proxy_url, plain.account_id) == (1, None, "", "")
    assert (spare.name.id, spare.base_url, spare.weight, spare.in_flight_max) == ("spare", "https://gate/claude", 3, 9)
    assert (spare.proxy_url, spare.account_id) == ("http://user:word@proxy:3128", "acct_1")


def test_one_from_the_environment() -> None:
    config = GatewayConfig(upstream_url="http://127.0.0.1:9", upstream_api_key=SECRET, upstream_proxy="http://proxy:1")
    (way,) = from_environment(config)
    assert (way.name.id, way.base_url, way.api_key, way.proxy_url) == (
        "env",
        "http://127.0.0.1:9",
        SECRET,
        "http://proxy:1",
    )


def test_a_new_key_inherits_nothing_and_the_same_key_keeps_its_past() -> None:
    one, same, other = (from_environment(GatewayConfig(upstream_api_key=key))[0].name for key in ("k1", "k1", "k2"))
    assert one == same and one != other and one.id == other.id


def test_without_a_key_only_an_upstream_of_ones_own_is_used() -> None:
    assert from_environment(GatewayConfig()) == [] == without_a_key(GatewayConfig())
    (way,) = without_a_key(GatewayConfig(upstream_url="http://127.0.0.1:9"))
    assert (way.base_url, way.api_key) == ("http://127.0.0.1:9", "")


@pytest.mark.parametrize(
    "entries",
    [
        "{}",
        "[",
        '["x"]',
        '[{"name":"a"}]',
        '[{"api_key":""}]',
        f'[{{"api_key":"{SECRET}\\n"}}]',
        f'[{{"api_key":"{SECRET}","weight":0}}]',
        f'[{{"api_key":"{SECRET}","base_url":"api.anthropic.com"}}]',
        f'[{{"api_key":"{SECRET}","proxy_url":"socks5://{SECRET}@x"}}]',
        f'[{{"api_key":"{SECRET}","name":"a b"}}]',
        f'[{{"api_key":"{SECRET}","surprise":1}}]',
        f'[{{"api_key":"{SECRET}","name":"a"}},{{"api_key":"{SECRET}","name":"a"}}]',
        f'[{{"api_key":"{SECRET}"}},{{"api_key":"{SECRET}","name":"env-1"}}]',
        "[" * 10_000,
    ],
)
def test_what_cannot_be_read_is_named_and_not_shown(entries: str) -> None:
    with pytest.raises(ConfigError, match="RELAY_UPSTREAMS") as caught:
        from_environment(GatewayConfig(upstreams=entries))
    assert SECRET not in str(caught.value)


def stored(sealed: str, **fields: Any) -> Stored:
    credential = UpstreamCredential(
        id="upst_1", name="main", created_at_ms=1, base_url="https://api", sealed=sealed, hint="WXYZ", **fields
    )
    return Stored(credential, 7)


def test_those_of_redis_are_opened() -> None:
    sealer = Sealer(new_key())
    sealed = sealer.seal("upst_1", UpstreamSecret(api_key=SECRET, proxy_url="http://proxy:1"))
    (way,) = from_redis([stored(sealed, weight=2, in_flight_max=5, account_id="acct_1")], sealer)
    assert (way.name, way.api_key, way.proxy_url) == (Name("upst_1", "7"), SECRET, "http://proxy:1")
    assert (way.weight, way.in_flight_max, way.account_id, way.unusable, way.disabled) == (2, 5, "acct_1", "", False)
    assert SECRET not in repr(way)
    assert from_redis([stored(sealed, status="disabled")], sealer)[0].disabled


@pytest.mark.parametrize("keys", ["", new_key()], ids=["no key", "another key"])
def test_one_that_cannot_be_opened_says_so(keys: str) -> None:
    sealed = Sealer(new_key()).seal("upst_1", UpstreamSecret(api_key=SECRET))
    (way,) = from_redis([stored(sealed)], Sealer(keys))
    assert "RELAY_SECRETS_KEY" in way.unusable and not way.api_key
