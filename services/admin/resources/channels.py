"""Channels: where notices go. Address and secret are sealed; the secret of a webhook is made here and shown once."""

from typing import Annotated, Final

import msgspec
from starlette.responses import Response

from libs.common import clock, ids
from libs.common.entities import AlertRule, Channel
from libs.common.sealing import SecretsKeyMissing
from services.admin.access import LEADERS, OPERATOR_OWNER, OPERATORS, PAYERS, SUPPORT
from services.admin.notices import targets
from services.admin.notices.notices import ChannelTarget, Kind, Notice, Undelivered
from services.admin.problems import Conflict, Unprocessable
from services.admin.resource import (
    PAGING,
    Call,
    Context,
    Name,
    Operation,
    found,
    is_deleted,
    page,
    read,
    respond,
    time_of,
)
from services.admin.resources.accounts import find_account

CHANNELS_MAX: Final = 20
_TESTS_MAX: Final = 30
"""In a quarter of an hour, of one owner."""
_NO_KEY: Final = (
    "RELAY_SECRETS_KEY is not set, and without it no address is kept. Make one with"
    " `python -m services.admin new-secrets-key` and set it."
)
_SHUT: Final = "RELAY_SECRETS_KEY does not open what is kept of this channel: delete it and make it again."
Address = Annotated[str, msgspec.Meta(min_length=1, max_length=2_000, extra_json_schema={"writeOnly": True})]
ChannelSecret = Annotated[str, msgspec.Meta(max_length=200, extra_json_schema={"writeOnly": True})]


class NewChannel(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """To make a channel."""

    name: Name
    kind: Kind
    address: Address
    """webhook: a URL, https://; email: an address; telegram: id of a chat, or @name; else the URL that the service gives
    for its robot. Kept sealed, not shown."""
    secret: ChannelSecret = ""
    """telegram: the bot's token; dingtalk: SEC…, if it is signed. A webhook's is made here."""


class ChannelView(msgspec.Struct, kw_only=True):
    """A channel, without what is sealed."""

    id: str
    account_id: str | None
    name: str
    kind: str
    hint: str
    """Enough of the address to tell channels apart."""
    status: str
    created_at: str


class CreatedChannel(ChannelView, kw_only=True):
    """A new channel."""

    secret: str | None
    """What a webhook is signed with (Standard Webhooks); null for other kinds."""


class ChannelPage(msgspec.Struct):
    """In the order they were made; deleted ones too."""

    data: list[ChannelView]
    next_cursor: str | None


class Tried(msgspec.Struct, kw_only=True):
    """What came of a test notice."""

    channel_id: str
    delivered: bool
    error: str | None
    """Why not."""


async def create(context: Context, call: Call) -> Response:
    """POST /channels, POST /accounts/{account_id}/channels."""
    body = await read(call, NewChannel)
    if call.account_id:
        await find_account(context, call.account_id)
    if len(_active(context, call.account_id)) >= CHANNELS_MAX:
        raise Conflict(f"There are {CHANNELS_MAX} channels already; delete one first.")
    if body.kind == "webhook" and body.secret:
        raise Unprocessable("secret: that of a webhook is made here.")
    secret = targets.new_secret() if body.kind == "webhook" else body.secret
    target = ChannelTarget(kind=body.kind, address=body.address, secret=secret)
    try:
        context.senders.check(target)
    except ValueError as error:
        raise Unprocessable(str(error)) from None
    channel_id = ids.new_id("chan")
    channel = Channel(
        id=channel_id,
        account_id=call.account_id,
        name=body.name,
        kind=body.kind,
        sealed=_sealed(context, channel_id, target),
        hint=targets.hint(body.kind, body.address),
        created_at_ms=clock.unix_ms(),
    )
    await context.control.put(channel, over=None, by=call.by("created"))
    shown = msgspec.structs.asdict(_view(channel))
    return respond(CreatedChannel(secret=secret if body.kind == "webhook" else None, **shown), 201)


async def list_all(context: Context, call: Call) -> Response:
    """GET /channels, GET /accounts/{account_id}/channels."""
    shown, following = page(call, context.mirror.of_account(Channel, call.account_id), lambda one: one.id)
    return respond(ChannelPage([_view(one) for one in shown], following))


async def delete(context: Context, call: Call) -> Response:
    """DELETE …/channels/{channel_id}: what is still to be sent there is not sent."""
    one = await found(context, Channel, call, "channel_id", "chan")
    rules = context.mirror.of_account(AlertRule, call.account_id)
    using = [rule.name for rule in rules if one.entity.id in rule.channel_ids and not is_deleted(rule)]
    if using:
        raise Conflict(f"Rules send notices there: {', '.join(using[:5])}. Change or delete them first.")
    deleted = msgspec.structs.replace(one.entity, status="deleted", sealed="")
    await context.control.put(deleted, over=one, by=call.by("deleted"))
    return respond(_view(deleted))


async def test(context: Context, call: Call) -> Response:
    """POST …/channels/{channel_id}/test: sends a notice now."""
    one = await found(context, Channel, call, "channel_id", "chan")
    await count_test(context, call)
    return respond(await try_channel(context, one.entity, f"This is a test of the channel {one.entity.name}."))


async def count_test(context: Context, call: Call) -> None:
    """A test makes machines elsewhere work. Raises TooMany, Unavailable."""
    await context.sessions.count_try("test-notice", call.account_id or "relay", _TESTS_MAX)


async def try_channel(context: Context, channel: Channel, text: str) -> Tried:
    """Sends a test notice, once."""
    error = None
    try:
        notice = Notice(
            id=ids.new_id("ntc"),
            kind="alert.test",
            title="Test of a notice",
            text=text,
            severity="info",
            account_id=channel.account_id,
            at_ms=clock.unix_ms(),
        )
        await context.senders.send(targets.opened(context.sealer, channel), notice)
    except SecretsKeyMissing:
        error = _SHUT
    except Undelivered as undelivered:
        error = undelivered.reason
    return Tried(channel_id=channel.id, delivered=error is None, error=error)


def _active(context: Context, account_id: str) -> list[Channel]:
    return [one for one in context.mirror.of_account(Channel, account_id) if not is_deleted(one)]


def _sealed(context: Context, channel_id: str, target: ChannelTarget) -> str:
    try:
        return targets.seal(context.sealer, channel_id, target)
    except SecretsKeyMissing:
        raise Conflict(_NO_KEY) from None


def _view(channel: Channel) -> ChannelView:
    return ChannelView(
        id=channel.id,
        account_id=channel.account_id or None,
        name=channel.name,
        kind=channel.kind,
        hint=channel.hint,
        status=channel.status,
        created_at=time_of(channel.created_at_ms),
    )


_OF_ACCOUNT: Final = "/accounts/{account_id}/channels"
OPERATIONS = tuple(
    operation
    for path, readers, writers, of in (
        ("/channels", OPERATORS, OPERATOR_OWNER, "relay"),
        (_OF_ACCOUNT, OPERATORS | PAYERS, SUPPORT | LEADERS, "account"),
    )
    for operation in (
        Operation(
            method="POST", path=path, handler=create, summary=f"Make a channel of the {of}", body=NewChannel,
            answer=CreatedChannel, status=201, roles=writers, scope="alerts:write", name=f"channels_create_{of}",
        ),
        Operation(
            method="GET", path=path, handler=list_all, summary=f"List channels of the {of}", answer=ChannelPage,
            query=PAGING, roles=readers, scope="alerts:read", name=f"channels_list_{of}",
        ),
        Operation(
            method="DELETE", path=f"{path}/{{channel_id}}", handler=delete, summary=f"Delete a channel of the {of}",
            answer=ChannelView, roles=writers, scope="alerts:write", name=f"channels_delete_{of}",
        ),
        Operation(
            method="POST", path=f"{path}/{{channel_id}}/test", handler=test, answer=Tried,
            summary=f"Send a test notice to a channel of the {of}", roles=writers, scope="alerts:write",
            name=f"channels_test_{of}",
        ),
    )
)  # fmt: skip
