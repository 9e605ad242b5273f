"""URLs as an operator gives them: the base of the Claude API, and a proxy. What leads nowhere is refused, and not repeated."""

import ipaddress
import re
from typing import Final

from services.admin.problems import Unprocessable

_HOST: Final = r"(?P<host>\[[0-9a-fA-F:.]{2,45}\]|[A-Za-z0-9._-]{1,253})(:(?P<port>[0-9]{1,5}))?"
_BASE: Final = re.compile(rf"(?P<scheme>https?)://{_HOST}(?P<path>(/[A-Za-z0-9._~%-]{{1,100}}){{0,10}})/?")
_PROXY: Final = re.compile(rf"(?P<scheme>https?)://((?:(?![/?#@])[!-~]){{1,500}}@)?{_HOST}/?")
_PORTS: Final = {"http": 80, "https": 443}


def base_url(text: str) -> str:
    """In its shortest form, without a slash at its end. Raises Unprocessable."""
    parts = _parts(_BASE, text)
    if parts is None:
        raise Unprocessable("base_url must be http(s)://host[:port][/path], without user, query and fragment.")
    if parts["path"].endswith("/v1"):
        raise Unprocessable("base_url ends before /v1: the path of a request is added to it.")
    port = f":{parts['port']}" if parts["port"] else ""
    return f"{parts['scheme']}://{parts['host'].lower()}{port}{parts['path']}"


def proxy_url(text: str) -> str:
    """As it is: it may hold a password. Raises Unprocessable."""
    if _parts(_PROXY, text) is None:
        raise Unprocessable(
            "proxy_url must be http(s)://[user:password@]host[:port], with / ? # @ in a password as %2F %3F %23 %40."
        )
    return text


def host_and_port(proxy: str) -> str | None:
    """What may be shown of a proxy."""
    parts = _parts(_PROXY, proxy)
    return f"{parts['host']}:{parts['port'] or _PORTS[parts['scheme']]}" if parts else None


def _parts(pattern: re.Pattern[str], text: str) -> dict[str, str] | None:
    """What a URL is made of; None for one that leads nowhere."""
    match = pattern.fullmatch(text)
    if match is None or not 1 <= int(match["port"] or 1) <= 65_535:
        return None
    host = match["host"]
    try:
        if host.startswith("["):
            ipaddress.IPv6Address(host[1:-1])
        elif not host.strip("0123456789."):
            ipaddress.IPv4Address(host)
    except ValueError:
        return None
    return match.groupdict()
