"""Settings of relayctl: the environment, and contexts (a server, and a token for it) in ~/.config/relayctl/config.json."""

import json
import os
import re
import secrets
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Final

from libs.relayctl.failures import Misuse

URL_DEFAULT: Final = "http://127.0.0.1:8081"
CONTEXT_DEFAULT: Final = "default"
_TOKEN: Final = re.compile(r"[!-~]{1,4096}", re.ASCII)
_URL: Final = re.compile(r"https?://[^\s/?#@]+(/[^\s?#]*)?", re.ASCII)
_NAME: Final = re.compile(r"[\w.-]{1,64}", re.ASCII)


@dataclass(frozen=True, kw_only=True)
class Context:
    """A server, and a token for it."""

    url: str
    token: str = field(default="", repr=False)
    actor: str = ""
    expires_at: str = ""


@dataclass(frozen=True, kw_only=True)
class Contexts:
    """What the file holds."""

    current: str = CONTEXT_DEFAULT
    by_name: Mapping[str, Context] = field(default_factory=dict)

    def with_context(self, name: str, context: Context) -> "Contexts":
        """This one added, or in the place of the one before, and current."""
        return replace(self, current=name, by_name={**self.by_name, name: context})


@dataclass(frozen=True, kw_only=True)
class Settings:
    """What a command works with."""

    url: str
    token: str = field(repr=False)
    """Empty: not signed in."""
    context: str
    contexts: Contexts
    config_file: Path
    cache_directory: Path


def load(
    environment: Mapping[str, str] | None = None, *, url: str = "", context: str = "", context_is_new: bool = False
) -> Settings:
    """Options win over the environment, the environment over the context. Raises Misuse.

    A context's token is for its own server: it goes to no other. `context_is_new`: it is about to be made.
    """
    values = os.environ if environment is None else environment
    config_file = _folder(values, "XDG_CONFIG_HOME", ".config") / "config.json"
    contexts = read(config_file)
    name = context or contexts.current
    if not _NAME.fullmatch(name):
        raise Misuse("the name of a context has letters, digits, dots and dashes")
    chosen = contexts.by_name.get(name)
    if context and chosen is None and not context_is_new:
        raise Misuse(f"there is no context {context}; relayctl login --context {context} makes it")
    own_url = chosen.url if chosen else ""
    wanted = checked_url(url or values.get("RELAYCTL_URL", "") or own_url or URL_DEFAULT)
    token = values.get("RELAYCTL_TOKEN", "") or (chosen.token if chosen and own_url == wanted else "")
    if token and not _TOKEN.fullmatch(token):
        raise Misuse("the token (RELAYCTL_TOKEN) has characters that no token has")
    return Settings(
        url=wanted, token=token, context=name, contexts=contexts, config_file=config_file,
        cache_directory=_folder(values, "XDG_CACHE_HOME", ".cache"),
    )  # fmt: skip


def checked_url(text: str) -> str:
    """A server's URL without a slash at its end. Raises Misuse, which does not repeat it: it may hold a password."""
    if not _URL.fullmatch(text):
        raise Misuse("the server's URL (--url, RELAYCTL_URL) must be like https://relay.example.com")
    return text.rstrip("/")


def is_token(text: str) -> bool:
    """Whether it can be sent as one."""
    return _TOKEN.fullmatch(text) is not None


def read(path: Path) -> Contexts:
    """The contexts of a file; none if there is no file. Raises Misuse."""
    try:
        value = json.loads(path.read_text())
        by_name = {name: _context(one) for name, one in value["contexts"].items()}
        return Contexts(current=str(value["current"]), by_name=by_name)
    except FileNotFoundError:
        return Contexts()
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        raise Misuse(f"{path} cannot be read; remove it and sign in again") from None


def _context(value: Mapping[str, Any]) -> Context:
    return Context(**{name: str(value[name]) for name in ("url", "token", "actor", "expires_at")})


def save(path: Path, contexts: Contexts) -> None:
    """Write the file, for nobody else's eyes. Raises Misuse."""
    value = {"current": contexts.current, "contexts": {name: asdict(one) for name, one in contexts.by_name.items()}}
    try:
        write_private(path, json.dumps(value, indent=2).encode() + b"\n")
    except OSError as error:
        raise Misuse(f"{path} cannot be written: {error.strerror}") from None


def write_private(path: Path, data: bytes) -> None:
    """The whole file or nothing, mode 0600. Raises OSError."""
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    draft = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    try:
        with os.fdopen(os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
            file.write(data)
        draft.replace(path)
    finally:
        draft.unlink(missing_ok=True)


def _folder(values: Mapping[str, str], variable: str, default: str) -> Path:
    base = values.get(variable) or str(Path(values.get("HOME") or Path.home()) / default)
    return Path(base) / "relayctl"
