"""Which upstream credentials there are: those of the environment, and those of Redis with their seals opened. No I/O."""

import hashlib
from collections.abc import Iterable
from typing import Annotated, Final

import msgspec

from libs.common.config import ConfigError, Count, GatewayConfig, Secret, Url, UrlOrNone
from libs.common.sealing import Sealer, SecretsKeyMissing
from libs.common.upstreams import Name, Stored

ENV: Final = "env"
"""What the credential of RELAY_UPSTREAM_API_KEY is called."""
_PLACE: Final = "RELAY_UPSTREAMS"
_UNREADABLE: Final = "it cannot be opened (is RELAY_SECRETS_KEY the one it was sealed with?)"
_ANYWHERE: Final = GatewayConfig().upstream_url


class Way(msgspec.Struct, frozen=True, kw_only=True):
    """A way to the Claude API, as it is configured. It does not show itself, so that no log does."""

    name: Name
    base_url: str
    api_key: str
    proxy_url: str = ""
    weight: int = 1
    in_flight_max: int | None = None
    account_id: str = ""
    """Dedicated to it; empty: shared."""
    unusable: str = ""
    """Why nothing may be sent there; empty: it may."""
    disabled: bool = False
    """By the operator."""

    def __repr__(self) -> str:
        return f"Way({self.name.id})"


class _Given(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One of RELAY_UPSTREAMS."""

    api_key: Annotated[Secret, msgspec.Meta(min_length=1)]
    name: Annotated[str, msgspec.Meta(pattern=r"\A[A-Za-z0-9_.-]{0,64}\Z")] = ""
    base_url: Url = _ANYWHERE
    weight: Annotated[int, msgspec.Meta(ge=1, le=1_000)] = 1
    in_flight_max: Count | None = None
    proxy_url: UrlOrNone = ""
    account_id: str = ""


_decode: Final = msgspec.json.Decoder(list[_Given]).decode


def from_environment(config: GatewayConfig) -> list[Way]:
    """Those of RELAY_UPSTREAMS, else the one of RELAY_UPSTREAM_API_KEY, if it is set. Raises ConfigError that shows no secret."""
    if not config.upstreams:
        return [_single(config)] if config.upstream_api_key else []
    try:
        given = _decode(config.upstreams)
    except (msgspec.MsgspecError, UnicodeError, RecursionError) as error:
        raise ConfigError(f"{_PLACE} cannot be read: {error} (docs/configuration.md)") from None
    names = [one.name or f"{ENV}-{number}" for number, one in enumerate(given, start=1)]
    if len(set(names)) < len(names):
        raise ConfigError(f"{_PLACE}: two credentials have the same name")
    return [
        Way(
            name=Name(name, _generation(one.base_url, one.api_key, one.proxy_url)),
            base_url=one.base_url,
            api_key=one.api_key,
            proxy_url=one.proxy_url,
            weight=one.weight,
            in_flight_max=one.in_flight_max,
            account_id=one.account_id,
        )
        for name, one in zip(names, given, strict=True)
    ]


def without_a_key(config: GatewayConfig) -> list[Way]:
    """Where there is no credential at all: the upstream of the environment, if it is not Anthropic's, and may need none."""
    return [_single(config)] if config.upstream_url != _ANYWHERE else []


def from_redis(stored: Iterable[Stored], sealer: Sealer) -> list[Way]:
    """Those the admin API has made, disabled and unreadable ones too."""
    return [_opened(one, sealer) for one in stored]


def _opened(stored: Stored, sealer: Sealer) -> Way:
    credential, unusable, api_key, proxy_url = stored.credential, "", "", ""
    try:
        secret = sealer.open(credential.id, credential.sealed)
    except SecretsKeyMissing:
        unusable = _UNREADABLE
    else:
        api_key, proxy_url = secret.api_key, secret.proxy_url
    return Way(
        name=stored.name,
        base_url=credential.base_url,
        api_key=api_key,
        proxy_url=proxy_url,
        weight=credential.weight,
        in_flight_max=credential.in_flight_max,
        account_id=credential.account_id,
        unusable=unusable,
        disabled=credential.status != "active",
    )


def _single(config: GatewayConfig) -> Way:
    url, api_key, proxy = config.upstream_url, config.upstream_api_key, config.upstream_proxy
    return Way(name=Name(ENV, _generation(url, api_key, proxy)), base_url=url, api_key=api_key, proxy_url=proxy)


def _generation(*parts: str) -> str:
    """Changes with the credential, so that a new key does not inherit what was held against the old one."""
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:16]
