"""Links that work once: by one, somebody who was invited sets his password, and so proves that the address is his."""

import base64
import hashlib
import hmac
import re
import secrets
from collections.abc import Sequence
from typing import Final

import msgspec

from libs.common import clock, ids
from libs.common.entities import Login, Operator, SignIn
from libs.common.events import Member
from services.admin.control import Control, Found, Put
from services.admin.problems import Conflict, Missing, Unprocessable
from services.admin.resource import is_deleted, is_id

PREFIX: Final = "rli_"
_KEPT_MS: Final = 3 * 86_400_000
_EMAIL: Final = re.compile(
    r"[^\s@,;<>\"()\[\]\\\x00-\x1f\x7f]{1,64}@[a-z0-9](?:[a-z0-9.-]{0,185}[a-z0-9])?\.[a-z0-9-]{2,63}", re.ASCII
)
_GONE: Final = "This link was used, was replaced by a newer one, or is too old. Ask for a new one."
Person = Operator | Member


def new_link(owner_id: str, sign_in: SignIn, *, bits: bytes = b"") -> tuple[str, SignIn]:
    """A link's token, kept nowhere, and how its owner signs in from now on: a link that was out before is void.

    `bits`: what its secret is made from, if it must be possible to show it again; empty: chance.
    """
    secret = _secret(bits or secrets.token_bytes(32))
    kept = msgspec.structs.replace(sign_in, link_sha256=_sha256(secret), link_expires_at_ms=clock.unix_ms() + _KEPT_MS)
    return f"{PREFIX}{owner_id}.{secret}", kept


def link_again(owner_id: str, sign_in: SignIn, choices: Sequence[bytes]) -> str | None:
    """The token of the link that is out, if it was made from one of these bits."""
    for bits in choices:
        if hmac.compare_digest(_sha256(_secret(bits)), sign_in.link_sha256):
            return f"{PREFIX}{owner_id}.{_secret(bits)}"
    return None


async def owner_of(control: Control, token: str) -> tuple[Person, Put]:
    """Whom a link was made for, and what stands in CONTROL of him. Raises Missing, Unavailable."""
    owner_id, _, secret = token.removeprefix(PREFIX).partition(".")
    found = await find_person(control, owner_id)
    if found is None or is_deleted(found.entity) or found.entity.status == "disabled":
        raise Missing(_GONE)
    sign_in = found.entity.sign_in
    if not sign_in.link_sha256 or not hmac.compare_digest(_sha256(secret), sign_in.link_sha256):
        raise Missing(_GONE)
    if sign_in.link_expires_at_ms <= clock.unix_ms():
        raise Missing(_GONE)
    return found.entity, (found.entity, found)


async def find_person(control: Control, owner_id: str) -> Found[Operator] | Found[Member] | None:
    """An operator or a member. Raises Unavailable."""
    if is_id("oper", owner_id):
        return await control.find(Operator, owner_id)
    return await control.find(Member, owner_id) if is_id("memb", owner_id) else None


def email_of(text: str) -> str:
    """An address as it is compared: in lower case. Raises Unprocessable."""
    email = text.strip().lower()
    if _EMAIL.fullmatch(email) is None:
        raise Unprocessable("email must be an address such as ada@example.com.")
    return email


def login_id(email: str) -> str:
    """The id of an address's login."""
    return ids.derived_id("login", email)


async def claim(control: Control, email: str, owner: Person) -> Put:
    """What makes an address this person's, to be written together with him. Raises Conflict if it is another's, Unavailable."""
    found = await control.find(Login, login_id(email))
    account_id = getattr(owner, "account_id", "")
    login = Login(id=login_id(email), owner_id=owner.id, account_id=account_id)
    if found is None or found.entity.owner_id == owner.id:
        return login, found
    holder = await find_person(control, found.entity.owner_id)
    if holder is not None and not is_deleted(holder.entity) and holder.entity.email == email:
        raise Conflict("This e-mail address belongs to somebody already.")
    return login, found


def _secret(bits: bytes) -> str:
    return base64.urlsafe_b64encode(bits).decode().rstrip("=")


def _sha256(secret: str) -> str:
    return hashlib.sha256(secret.encode()).hexdigest()
