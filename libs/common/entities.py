"""Entities that the control plane alone works with. The data plane never reads them, so Redis does not hold them.

Like those of events.py they travel in CONTROL, whole, one subject each. What is secret is here as a hash or sealed.
"""

from typing import Final, Literal

import msgspec

OperatorRole = Literal["owner", "finance", "support", "viewer"]
MemberRole = Literal["owner", "admin", "developer", "billing"]
Scope = Literal[
    "accounts:read", "accounts:write", "members:read", "members:write", "keys:read", "keys:write", "money:read", "money:write",
    "prices:read", "prices:write", "usage:read", "alerts:read", "alerts:write", "audit:read", "upstreams:read",
    "upstreams:write", "operators:read", "operators:write", "tokens:read", "tokens:write",
]  # fmt: skip
"""What a service token may do, within its role."""


class SignIn(msgspec.Struct, frozen=True, kw_only=True):
    """How somebody proves who he is: by a password, which he has set by a link that works once."""

    password_hash: str = ""
    """argon2id with its parameters; empty: none was set yet."""
    link_sha256: str = ""
    """Of the secret inside the link that is out; empty: none is."""
    link_expires_at_ms: int = 0
    sessions_after_ms: int = 0
    """Sessions that began before are over."""


NO_SIGN_IN: Final = SignIn()


class Operator(msgspec.Struct, frozen=True, kw_only=True, tag="operator"):
    """A person who runs the relay."""

    id: str
    name: str
    email: str
    role: OperatorRole
    created_at_ms: int
    status: Literal["invited", "active", "disabled", "deleted"] = "invited"
    sign_in: SignIn = NO_SIGN_IN


class Login(msgspec.Struct, frozen=True, kw_only=True, tag="login"):
    """Whose an e-mail address is; its id is made from the address, so that nobody else can have it."""

    id: str
    owner_id: str
    """An operator's or a member's."""
    account_id: str = ""


class ServiceToken(msgspec.Struct, frozen=True, kw_only=True, tag="token"):
    """A credential of a program for the control plane."""

    id: str
    name: str
    created_at_ms: int
    sha256: str
    hint: str
    role: OperatorRole | MemberRole
    scopes: tuple[Scope, ...]
    account_id: str = ""
    """Empty: an operator's."""
    expires_at_ms: int | None = None
    status: Literal["active", "deleted"] = "active"


class RedeemCode(msgspec.Struct, frozen=True, kw_only=True, tag="code"):
    """A code that gives a credit to the account that redeems it. Its id is made from the code, which is kept nowhere."""

    id: str
    batch_id: str
    hint: str
    amount_nanos: int
    created_at_ms: int
    uses_max: int = 1
    uses: int = 0
    expires_at_ms: int | None = None
    credit_days: int | None = None
    """How long what it gives may be spent; None: for ever."""
    reason: str = ""
    status: Literal["active", "revoked"] = "active"


class PriceDraft(msgspec.Struct, frozen=True, kw_only=True, tag="pricedraft"):
    """The next price book while it is worked on. There is one."""

    id: str
    text: str
    """As pricebook.parse reads it."""
    base_version: str
    """What it is compared with."""
    unreviewed: tuple[str, ...] = ()
    """Models whose row a program has prepared: somebody must look at them first."""


class Channel(msgspec.Struct, frozen=True, kw_only=True, tag="channel"):
    """Where notices go."""

    id: str
    account_id: str
    """Empty: the operators'."""
    name: str
    kind: Literal["webhook", "email", "slack", "telegram", "feishu", "wecom", "dingtalk"]
    sealed: str
    """Address and secret, encrypted."""
    hint: str
    created_at_ms: int
    status: Literal["active", "deleted"] = "active"


RuleKind = Literal[
    "balance_below", "budget_used", "rate_limited", "error_share", "cache_hit_drop", "spend_velocity",
    "breaker_open", "unknown_model", "drift", "parked_events", "settlement_lag",
]  # fmt: skip


class AlertRule(msgspec.Struct, frozen=True, kw_only=True, tag="rule"):
    """When somebody is to be told."""

    id: str
    account_id: str
    """Empty: about the relay itself."""
    name: str
    kind: RuleKind
    threshold: int
    """Nano-dollars, percent, events or seconds: what the kind says (services/admin/alerts/conditions.py)."""
    created_at_ms: int
    window_minutes: int = 60
    member_id: str = ""
    key_id: str = ""
    channel_ids: tuple[str, ...] = ()
    pause_key: bool = False
    """Disable the key when it fires."""
    status: Literal["active", "disabled", "deleted"] = "active"


class Delivery(msgspec.Struct, frozen=True, kw_only=True):
    """One notice to one channel: the outbox."""

    id: str
    """The notice's too, the same for every try, so that receivers drop repetitions."""
    channel_id: str
    event: Literal["opened", "closed"] = "opened"
    status: Literal["pending", "delivered", "failed"] = "pending"
    tries: int = 0
    next_at_ms: int = 0
    error: str = ""


class Incident(msgspec.Struct, frozen=True, kw_only=True, tag="incident"):
    """A rule has fired. It is open until its condition is over, or somebody closes it."""

    id: str
    """Made from the rule and `number`, so that two watchers cannot open one twice."""
    account_id: str
    rule_id: str
    number: int
    kind: RuleKind
    title: str
    text: str = ""
    value: int
    opened_at_ms: int
    closed_at_ms: int | None = None
    over_at_ms: int | None = None
    """When its condition was over: only then may the rule fire again, whoever has closed it before."""
    deliveries: tuple[Delivery, ...] = ()


ControlOnly = Operator | Login | ServiceToken | RedeemCode | PriceDraft | Channel | AlertRule | Incident
