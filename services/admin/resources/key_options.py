"""Where, for what and how long a key may be used: what may be set when it is created, and later."""

import ipaddress
from collections.abc import Sequence
from typing import Annotated, Any, Final

import msgspec
from msgspec import UNSET, UnsetType

from libs.common import pricebook
from libs.common.limits import Limits
from services.admin.prices import books
from services.admin.problems import Missing, Unprocessable
from services.admin.resource import TEXT, Context
from services.admin.resources import limits
from services.admin.resources.limits import LimitsChange
from services.admin.resources.members import find_member
from services.admin.resources.times import Expiry, expiry_ms

_SOME: Final = {"minItems": 1}
Models = Annotated[list[str], msgspec.Meta(max_length=100, extra_json_schema=_SOME)]
"""Ids or aliases of the price book."""
Addresses = Annotated[list[str], msgspec.Meta(max_length=100, extra_json_schema=_SOME)]
"""Addresses and networks (CIDR)."""
Tag = Annotated[str, msgspec.Meta(min_length=1, max_length=64, pattern=TEXT)]


class KeyOptions(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """What may be set when a key is created, and later. Absent: it stays; null: no such restriction."""

    member_id: str | UnsetType | None = UNSET
    limits: LimitsChange | UnsetType = UNSET
    models: Models | UnsetType | None = UNSET
    ip_allowlist: Addresses | UnsetType | None = UNSET
    expires_at: Expiry | UnsetType | None = UNSET
    tag: Tag | UnsetType | None = UNSET
    """What its usage is grouped under, such as a cost centre."""


async def fields(context: Context, account_id: str, before: Limits, body: KeyOptions) -> dict[str, Any]:
    """The fields of the key that the body sets. Raises Unprocessable that names the field."""
    found: dict[str, Any] = {"limits": limits.changed(before, body.limits)}
    if body.member_id is not UNSET:
        found["member_id"] = await _member_id(context, account_id, body.member_id)
    if body.models is not UNSET:
        found["models"] = await _models(context, body.models)
    if body.ip_allowlist is not UNSET:
        found["ip_allowlist"] = _addresses(body.ip_allowlist)
    if body.expires_at is not UNSET:
        found["expires_at_ms"] = expiry_ms(body.expires_at, in_future=False)
    if body.tag is not UNSET:
        found["tag"] = body.tag or ""
    return found


async def _member_id(context: Context, account_id: str, member_id: str | None) -> str:
    if member_id is None:
        return ""
    try:
        await find_member(context, account_id, member_id)
    except Missing:
        raise Unprocessable("member_id: this account has no such member.") from None
    return member_id


async def _models(context: Context, names: Sequence[str] | None) -> tuple[str, ...]:
    if names is None:
        return ()
    if not names:
        raise Unprocessable("models: an empty list would allow none; null allows all.")
    book = pricebook.parse((await books.all_books(context.control))[-1].text.encode())  # one that counts soon included
    found: dict[str, None] = {}
    for name in names:
        row = book.find(name)
        if row is None:
            raise Unprocessable(f"models: the price book has no {name[:80]!r}.")
        found[row.id] = None
    return tuple(found)


def _addresses(texts: Sequence[str] | None) -> tuple[str, ...]:
    if texts is None:
        return ()
    if not texts:
        raise Unprocessable("ip_allowlist: an empty list would allow no address; null allows every one.")
    return tuple(dict.fromkeys(_address(text) for text in texts))


def _address(text: str) -> str:
    """In its shortest form; IPv4 that is written as IPv6 is IPv4."""
    try:
        network = ipaddress.ip_network(text)
        scoped = "%" in text
    except ValueError as error:
        meant = " (bits beyond the mask must be zero)" if "host bits" in str(error) else ""
        raise Unprocessable(f"ip_allowlist: {text[:60]!r} is no address and no network{meant}.") from None
    if scoped:
        raise Unprocessable(f"ip_allowlist: {text[:60]!r} has a zone, which means nothing to other machines.")
    if isinstance(network, ipaddress.IPv6Network) and network.network_address.ipv4_mapped and network.prefixlen >= 96:
        network = ipaddress.IPv4Network((network.network_address.ipv4_mapped, network.prefixlen - 96))
    whole = network.prefixlen == network.max_prefixlen
    return str(network.network_address if whole else network)
