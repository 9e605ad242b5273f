"""Settings of the local stack, from the environment."""

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

ANTHROPIC_URL: Final = "https://api.anthropic.com"


@dataclass(frozen=True, kw_only=True)
class LocalConfig:
    """What `make run` can be told."""

    home: Path
    profile: str
    """`single`, or `cluster`: three of everything that can be."""
    gateway_port: int
    admin_port: int
    upstream_url: str
    """Empty: the simulator."""
    upstream_api_key: str
    admin_token: str
    """Empty: one is made and kept."""
    secrets_key: str
    """Empty: one is made and kept."""
    environment: Mapping[str, str]
    """What children inherit: everything but the upstream credential, the admin token and the secrets key."""


def load(environment: Mapping[str, str] | None = None) -> LocalConfig:
    """Raises ValueError that names the variable."""
    values = dict(os.environ if environment is None else environment)
    api_key = values.pop("RELAY_UPSTREAM_API_KEY", "") or values.get("ANTHROPIC_API_KEY", "")
    values.pop("ANTHROPIC_API_KEY", None)
    url = values.pop("RELAY_UPSTREAM_URL", "") or (ANTHROPIC_URL if api_key else "")
    profile = values.pop("RELAY_PROFILE", "") or "single"
    if profile not in ("single", "cluster"):
        raise ValueError(f"RELAY_PROFILE must be single or cluster, not {profile!r}")
    return LocalConfig(
        profile=profile,
        home=Path(values.get("RELAY_HOME") or ".relay").absolute(),
        gateway_port=_port(values, "RELAY_GATEWAY_PORT", 8080),
        admin_port=_port(values, "RELAY_ADMIN_PORT", 8081),
        upstream_url=url,
        upstream_api_key=api_key,
        admin_token=values.pop("RELAY_ADMIN_TOKEN", ""),
        secrets_key=values.pop("RELAY_SECRETS_KEY", ""),
        environment=values,
    )


def _port(values: Mapping[str, str], name: str, default: int) -> int:
    text = values.get(name) or str(default)
    if not (text.isascii() and text.isdigit()) or int(text) > 65535:
        raise ValueError(f"{name} must be a port number, not {text!r}")
    return int(text)
