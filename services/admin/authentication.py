"""From a bearer token to a principal: a session, a service token, or the admin token of the settings."""

import hmac
from typing import Final

from starlette.requests import Request

from libs.common import clock
from libs.common.entities import Operator
from libs.common.events import Account, Member
from services.admin import access, sessions
from services.admin.access import Principal
from services.admin.mirror import Mirror
from services.admin.problems import Missing, Unauthorized, Unavailable

TOKEN_PREFIX: Final = "rst_"  # noqa: S105 - a prefix
_WANTED: Final = "Send a session's or a service token as Authorization: Bearer."
_OVER: Final = "This session is over. Sign in again."
_SILENT: Final = "The log of changes does not answer, so nobody knows who may still come in. Try again in a moment."
_STARTING: Final = "The control plane is starting. Try again in a moment."


class Authentication:
    """Nobody is let in by default: an empty admin token is none."""

    def __init__(self, mirror: Mirror, store: sessions.Sessions, admin_token: str) -> None:
        self._mirror = mirror
        self._sessions = store
        self._admin_token = sessions.sha256(admin_token) if admin_token else ""

    async def principal(self, request: Request) -> Principal:
        """Who calls. Raises Unauthorized, Unavailable."""
        scheme, _, token = request.headers.get("authorization", "").partition(" ")
        token = token.strip(" \t")
        if not token and "x-api-key" in request.headers:  # as tools for Anthropic's Admin API send it
            scheme, token = "bearer", request.headers["x-api-key"]
        if scheme.lower() != "bearer" or not token:
            raise Unauthorized(_WANTED)
        digest = sessions.sha256(token)
        if self._admin_token and hmac.compare_digest(digest, self._admin_token):
            return Principal(actor="admin-token", role="operator:owner")
        if token.startswith(sessions.PREFIX):
            return await self._of_session(digest)
        if token.startswith(TOKEN_PREFIX):
            return self._of_token(digest)
        raise Unauthorized(_WANTED)

    async def _of_session(self, digest: str) -> Principal:
        session = await self._sessions.find(digest)
        if session is None:
            raise Unauthorized(_OVER)
        self._check_whole()
        owner = self._mirror.get(Operator, session.owner_id) or self._mirror.get(Member, session.owner_id)
        if owner is None or owner.status != "active" or session.began_at_ms < owner.sign_in.sessions_after_ms:
            raise Unauthorized(_OVER)
        if session.password != sessions.password_name(owner.sign_in.password_hash):
            raise Unauthorized(_OVER)
        if isinstance(owner, Operator):
            return Principal(actor=owner.id, role=access.operator(owner.role), session=digest)
        self._check_account(owner.account_id)
        return Principal(actor=owner.id, role=access.member(owner.role), account_id=owner.account_id, session=digest)

    def _of_token(self, digest: str) -> Principal:
        self._check_whole()
        token = self._mirror.token(digest)
        if token is None or token.status != "active":
            raise Unauthorized("There is no such service token, or it was deleted.")
        if token.expires_at_ms is not None and token.expires_at_ms <= clock.unix_ms():
            raise Unauthorized(f"This service token expired at {clock.iso_utc(token.expires_at_ms)}.")
        if token.account_id:
            self._check_account(token.account_id)
        role = access.member(token.role) if token.account_id else access.operator(token.role)
        return Principal(actor=token.id, role=role, account_id=token.account_id, scopes=frozenset(token.scopes))

    def _check_account(self, account_id: str) -> None:
        account = self._mirror.get(Account, account_id)
        if account is None or account.status != "active":
            raise Unauthorized("This account is not active. Ask the operator of this relay.")

    def _check_whole(self) -> None:
        if not self._mirror.is_whole:
            raise Unavailable(_STARTING)
        if not self._mirror.is_fresh:
            raise Unavailable(_SILENT)


def check_account(principal: Principal, account_id: str) -> None:
    """Raise Missing if the path is another account's: that it exists is nobody else's business."""
    if account_id and principal.account_id and account_id != principal.account_id:
        raise Missing("There is no such account.")
