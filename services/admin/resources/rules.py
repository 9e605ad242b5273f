"""Alert rules: when somebody is to be told, of what, and where. What a kind takes is said in conditions.py."""

import asyncio
from typing import Annotated, Any, Final, Literal

import msgspec
from msgspec import UNSET, UnsetType
from starlette.responses import Response

from libs.common import clock, ids, money
from libs.common.entities import AlertRule, Channel, RuleKind
from libs.common.events import ApiKey, Member
from services.admin.access import LEADERS, OPERATOR_OWNER, OPERATORS, PAYERS, SUPPORT
from services.admin.alerts import conditions
from services.admin.problems import Conflict, Unprocessable
from services.admin.resource import (
    MATCHED,
    PAGING,
    Call,
    Context,
    Name,
    Operation,
    check_match,
    found,
    given,
    is_deleted,
    is_id,
    page,
    read,
    respond,
    time_of,
)
from services.admin.resources.accounts import find_account
from services.admin.resources.channels import Tried, count_test, try_channel

RULES_MAX: Final = 100
_WINDOW_MINUTES: Final = 60
Threshold = Annotated[int, msgspec.Meta(ge=0, le=1_000_000_000)]
ThresholdUsd = Annotated[str, msgspec.Meta(extra_json_schema={"pattern": r"^[0-9]{1,9}(\.[0-9]{1,9})?$"})]
Minutes = Annotated[int, msgspec.Meta(ge=1, le=conditions.WINDOW_MINUTES_MAX)]
ChannelIds = Annotated[list[str], msgspec.Meta(max_length=20)]


class NewRule(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """To make a rule."""

    name: Name
    kind: RuleKind
    """Of an account: balance_below, budget_used, rate_limited, error_share, cache_hit_drop, spend_velocity. Of the relay:
    breaker_open, unknown_model, drift, parked_events, settlement_lag."""
    threshold: Threshold | None = None
    """Percent, percentage points, events or seconds; null where it is money."""
    threshold_usd: ThresholdUsd | None = None
    """Of balance_below and spend_velocity."""
    window_minutes: Minutes | None = None
    """Of kinds that look back; 60 if not given."""
    member_id: str | None = None
    """Only about this member."""
    key_id: str | None = None
    """Only about this key."""
    channel_ids: ChannelIds = []
    pause_key: bool = False
    """spend_velocity of one key: disable it when it fires."""


class RuleChange(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """To change a rule; what is absent stays. Kind, member and key are what it is about: make another rule."""

    name: Name | UnsetType = UNSET
    status: Literal["active", "disabled"] | UnsetType = UNSET
    threshold: Threshold | UnsetType = UNSET
    threshold_usd: ThresholdUsd | UnsetType = UNSET
    window_minutes: Minutes | UnsetType = UNSET
    channel_ids: ChannelIds | UnsetType = UNSET
    pause_key: bool | UnsetType = UNSET


class RuleView(msgspec.Struct, kw_only=True):
    """A rule."""

    id: str
    account_id: str | None
    name: str
    kind: str
    threshold: int | None
    """null where it is money."""
    threshold_usd: str | None
    unit: str
    """usd, percent, points, events or seconds."""
    window_minutes: int | None
    member_id: str | None
    key_id: str | None
    channel_ids: list[str]
    pause_key: bool
    status: str
    created_at: str


class RulePage(msgspec.Struct):
    """In the order they were made; deleted ones too."""

    data: list[RuleView]
    next_cursor: str | None


class TriedAll(msgspec.Struct):
    """What came of a test notice, channel by channel."""

    data: list[Tried]


async def create(context: Context, call: Call) -> Response:
    """POST /rules, POST /accounts/{account_id}/rules."""
    body = await read(call, NewRule)
    if call.account_id:
        await find_account(context, call.account_id)
    if sum(not is_deleted(one) for one in context.mirror.of_account(AlertRule, call.account_id)) >= RULES_MAX:
        raise Conflict(f"There are {RULES_MAX} rules already; delete one first.")
    window = _WINDOW_MINUTES if conditions.KINDS[body.kind].has_window else 0
    rule = AlertRule(
        id=ids.new_id("rule"),
        account_id=call.account_id,
        name=body.name,
        kind=body.kind,
        threshold=_threshold(body.kind, body.threshold, body.threshold_usd),
        created_at_ms=clock.unix_ms(),
        window_minutes=body.window_minutes or window,
        member_id=body.member_id or "",
        key_id=body.key_id or "",
        channel_ids=_channel_ids(context, call, body.channel_ids),
        pause_key=body.pause_key,
    )
    _check(rule)
    await _check_owners(context, rule)
    one = await context.control.put(rule, over=None, by=call.by("created"))
    return respond(_view(rule), 201, version=one.version)


async def list_all(context: Context, call: Call) -> Response:
    """GET /rules, GET /accounts/{account_id}/rules."""
    shown, following = page(call, context.mirror.of_account(AlertRule, call.account_id), lambda one: one.id)
    return respond(RulePage([_view(one) for one in shown], following))


async def show(context: Context, call: Call) -> Response:
    """GET …/rules/{rule_id}."""
    one = await found(context, AlertRule, call, "rule_id", "rule")
    return respond(_view(one.entity), version=one.version)


async def change(context: Context, call: Call) -> Response:
    """PATCH …/rules/{rule_id}: measured anew with the next turn. A disabled rule closes what it has opened."""
    body = await read(call, RuleChange)
    one = await found(context, AlertRule, call, "rule_id", "rule")
    check_match(call, one)
    changes: dict[str, Any] = given(body, "name", "status", "window_minutes", "pause_key")
    if given(body, "threshold", "threshold_usd"):
        threshold = given(body, "threshold").get("threshold")
        changes["threshold"] = _threshold(one.entity.kind, threshold, given(body, "threshold_usd").get("threshold_usd"))
    if body.channel_ids is not UNSET:
        changes["channel_ids"] = _channel_ids(context, call, body.channel_ids)
    changed = msgspec.structs.replace(one.entity, **changes)
    _check(changed)
    put = await context.control.put(changed, over=one, by=call.by("changed"))
    return respond(_view(changed), version=put.version)


async def delete(context: Context, call: Call) -> Response:
    """DELETE …/rules/{rule_id}: what it has opened is closed without a notice."""
    one = await found(context, AlertRule, call, "rule_id", "rule")
    check_match(call, one)
    deleted = msgspec.structs.replace(one.entity, status="deleted")
    put = await context.control.put(deleted, over=one, by=call.by("deleted"))
    return respond(_view(deleted), version=put.version)


async def test(context: Context, call: Call) -> Response:
    """POST …/rules/{rule_id}/test: sends a notice to each of its channels now."""
    one = await found(context, AlertRule, call, "rule_id", "rule")
    await count_test(context, call)
    channels = [context.mirror.get(Channel, name) for name in one.entity.channel_ids]
    text = f"This is a test of the rule {one.entity.name}."
    tried = await asyncio.gather(*(try_channel(context, channel, text) for channel in channels if channel))
    return respond(TriedAll(list(tried)))


def _threshold(kind: RuleKind, threshold: int | None, usd: str | None) -> int:
    is_money = conditions.KINDS[kind].unit == "usd"
    if is_money and (usd is None or threshold is not None):
        raise Unprocessable(f'threshold_usd: {kind} needs an amount, such as "5.00", and no threshold.')
    if not is_money and (threshold is None or usd is not None):
        raise Unprocessable(f"threshold: {kind} needs one in {conditions.KINDS[kind].unit}, and no threshold_usd.")
    if usd is None:
        assert threshold is not None
        return threshold
    try:
        return money.parse_usd(usd)
    except ValueError as error:
        raise Unprocessable(f"threshold_usd: {error}") from None


def _channel_ids(context: Context, call: Call, names: list[str]) -> tuple[str, ...]:
    for name in names:
        channel = context.mirror.get(Channel, name)
        if channel is None or channel.account_id != call.account_id or is_deleted(channel):
            raise Unprocessable(f"channel_ids: there is no channel {name[:40]!r} here.")
    return tuple(dict.fromkeys(names))


def _check(rule: AlertRule) -> None:
    try:
        conditions.check(rule)
    except ValueError as error:
        raise Unprocessable(str(error)) from None


async def _check_owners(context: Context, rule: AlertRule) -> None:
    owners: tuple[tuple[str, type[Member | ApiKey], str, str], ...] = (
        ("member_id", Member, "memb", rule.member_id),
        ("key_id", ApiKey, "key", rule.key_id),
    )
    for field, kind, prefix, name in owners:
        if not name:
            continue
        one = await context.control.find(kind, name) if is_id(prefix, name) else None
        if one is None or one.entity.account_id != rule.account_id or is_deleted(one.entity):
            raise Unprocessable(f"{field}: this account has no such one.")


def _view(rule: AlertRule) -> RuleView:
    unit = conditions.KINDS[rule.kind].unit
    return RuleView(
        id=rule.id,
        account_id=rule.account_id or None,
        name=rule.name,
        kind=rule.kind,
        threshold=None if unit == "usd" else rule.threshold,
        threshold_usd=money.format_usd(rule.threshold) if unit == "usd" else None,
        unit=unit,
        window_minutes=rule.window_minutes or None,
        member_id=rule.member_id or None,
        key_id=rule.key_id or None,
        channel_ids=list(rule.channel_ids),
        pause_key=rule.pause_key,
        status=rule.status,
        created_at=time_of(rule.created_at_ms),
    )


_OF_ACCOUNT: Final = "/accounts/{account_id}/rules"
OPERATIONS = tuple(
    operation
    for path, readers, writers, of in (
        ("/rules", OPERATORS, OPERATOR_OWNER, "relay"),
        (_OF_ACCOUNT, OPERATORS | PAYERS, SUPPORT | LEADERS, "account"),
    )
    for operation in (
        Operation(
            method="POST", path=path, handler=create, summary=f"Make a rule of the {of}", body=NewRule, answer=RuleView,
            status=201, roles=writers, scope="alerts:write", name=f"rules_create_{of}",
        ),
        Operation(
            method="GET", path=path, handler=list_all, summary=f"List rules of the {of}", answer=RulePage, query=PAGING,
            roles=readers, scope="alerts:read", name=f"rules_list_{of}",
        ),
        Operation(
            method="GET", path=f"{path}/{{rule_id}}", handler=show, summary=f"Show a rule of the {of}", answer=RuleView,
            roles=readers, scope="alerts:read", name=f"rules_show_{of}",
        ),
        Operation(
            method="PATCH", path=f"{path}/{{rule_id}}", handler=change, summary=f"Change a rule of the {of}",
            body=RuleChange, answer=RuleView, headers=MATCHED, roles=writers, scope="alerts:write",
            name=f"rules_change_{of}",
        ),
        Operation(
            method="DELETE", path=f"{path}/{{rule_id}}", handler=delete, summary=f"Delete a rule of the {of}",
            answer=RuleView, headers=MATCHED, roles=writers, scope="alerts:write", name=f"rules_delete_{of}",
        ),
        Operation(
            method="POST", path=f"{path}/{{rule_id}}/test", handler=test, answer=TriedAll,
            summary=f"Send a test notice through a rule of the {of}", roles=writers, scope="alerts:write",
            name=f"rules_test_{of}",
        ),
    )
)  # fmt: skip
