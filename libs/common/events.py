"""The events services exchange. What is acknowledged by JetStream is true; everything else is derived from these.

Wire form: JSON. A message on `usage.v1.pNN` is a JSON array of 1..N `UsageRecorded` of one partition, one on `usage.refused.pNN`
of 1..N `RefusalsCounted`; a message on `control.<kind>.<id>` is one `ControlChanged`.
"""

import hashlib
from collections.abc import Sequence
from typing import Any, Final, Literal

import msgspec

from libs.common.entities import NO_SIGN_IN, ControlOnly, MemberRole, SignIn
from libs.common.limits import Limits

Outcome = Literal["measured", "partial", "estimated", "free", "expired"]
"""DESIGN.md, outcomes and what they charge."""
VERSION_EXPIRED: Final = 1
VERSION_RECOVERED: Final = 2
VERSION_LIVE: Final = 3
VERSION_CORRECTION_MIN: Final = 4


class Attempt(msgspec.Struct, frozen=True, kw_only=True):
    """One try at the upstream for a request."""

    upstream_id: str
    status: int
    """The upstream's HTTP status; 0 if no answer came."""
    error: str = ""
    """`connect`, `timeout`, `broke` where no answer came; `left` where nobody waited for it any more."""
    duration_us: int = 0
    """Until status and headers were there, or the failure was."""


class Correction(msgspec.Struct, frozen=True, kw_only=True):
    """Why a version beyond the live end exists: a price or a count was wrong. Receipts show both amounts."""

    version: int
    """The version it corrects."""
    total_nanos: int
    """What that version cost."""
    reason: str
    actor: str


class UsageRecorded(msgspec.Struct, frozen=True, kw_only=True):
    """One admitted message request has ended. Equal (request_id, version) is the same event; a higher version wins."""

    request_id: str
    version: int = VERSION_LIVE
    account_id: str
    key_id: str
    member_id: str = ""
    """The member whose key it was; empty if it was the account's own."""
    path: str
    model_asked: str
    model_answered: str
    """Equal to `model_asked` where the upstream named none."""
    stream: bool
    status: int
    """The upstream's HTTP status; 0 if no answer came."""
    outcome: Outcome
    usage: dict[str, Any]
    """What is to be billed, in the API's own shape: raw for measured and partial, completed for estimated, {} for free."""
    stop_reason: str = ""
    cache_ttl_1h: bool = False
    declined_models: tuple[str, ...] = ()
    price_book_version: str
    multiplier_ppm: int
    upstream_request_id: str = ""
    tries: tuple[Attempt, ...] = ()
    """In order; the last one is what the caller saw. Empty if nothing went upstream."""
    first_byte_us: int = 0
    """From the whole request read to the first upstream body byte; 0 if none came."""
    duration_us: int = 0
    bytes_in: int = 0
    bytes_out: int = 0
    client: str = ""
    """Client family, e.g. `claude-code`, `anthropic-python`; never the raw user agent."""
    corrects: Correction | None = None
    """Of versions from VERSION_CORRECTION_MIN on."""


class RefusalsCounted(msgspec.Struct, frozen=True, kw_only=True):
    """How often one gateway process has refused a key for one reason in one minute. Sent again, it replaces: it never adds."""

    account_id: str
    key_id: str
    member_id: str = ""
    """The member whose key it was; empty if it was the account's own, or nobody could say."""
    reason: str
    """`leases.Reason`."""
    minute: int
    """Unix time in whole minutes."""
    gateway_id: str
    """Of the process, made at its start."""
    refused: int
    """All there were in that minute."""


class Account(msgspec.Struct, frozen=True, kw_only=True, tag="account"):
    """Who pays; one balance."""

    id: str
    name: str
    created_at_ms: int
    status: Literal["active", "disabled"] = "active"
    multiplier_ppm: int = 1_000_000
    """1_000_000 = public prices, one to one."""
    on_disconnect: Literal["drain", "cancel"] = "drain"
    """What happens upstream when a caller leaves."""
    time_zone: str = "UTC"
    """IANA name: where its days, weeks and months begin."""
    limits: Limits = Limits()


class Member(msgspec.Struct, frozen=True, kw_only=True, tag="member"):
    """A person of an account, who may have keys and limits of his own."""

    id: str
    account_id: str
    name: str
    created_at_ms: int
    status: Literal["invited", "active", "disabled", "deleted"] = "active"
    """Invited: he has not set his password yet. His keys work."""
    limits: Limits = Limits()
    email: str = ""
    """Empty: he cannot sign in."""
    role: MemberRole = "developer"
    sign_in: SignIn = NO_SIGN_IN


class ApiKey(msgspec.Struct, frozen=True, kw_only=True, tag="key"):
    """A key we issued. The secret itself is kept nowhere."""

    id: str
    account_id: str
    name: str
    created_at_ms: int
    sha256: str
    hint: str
    status: Literal["active", "disabled", "deleted"] = "active"
    member_id: str = ""
    """The member it belongs to; empty: the account itself."""
    limits: Limits = Limits()
    models: tuple[str, ...] = ()
    """Ids of the price book it may use; empty: all."""
    ip_allowlist: tuple[str, ...] = ()
    """Addresses and networks (CIDR) it may be used from; empty: anywhere."""
    expires_at_ms: int | None = None
    tag: str = ""
    """What its usage is grouped under, such as a cost centre; one, so that groups add up."""
    deleted_at_ms: int | None = None
    replaced_by: str = ""
    """The key that took its place when it was rotated."""


class UpstreamCredential(msgspec.Struct, frozen=True, kw_only=True, tag="upstream"):
    """A credential for the Claude API, with the way to it."""

    id: str
    name: str
    created_at_ms: int
    base_url: str
    sealed: str
    """API key and proxy, encrypted (sealing.py)."""
    hint: str
    """The last characters of the API key."""
    weight: int = 1
    """Its share of the requests beside the others'."""
    in_flight_max: int | None = None
    """Requests under way at once, over all gateways; None: no cap."""
    account_id: str = ""
    """Dedicated to that account: it uses such credentials only, and nobody else uses them. Empty: shared."""
    status: Literal["active", "disabled", "deleted"] = "active"


CreditKind = Literal["credit", "adjustment", "promotion", "redemption", "expiry"]


class Credit(msgspec.Struct, frozen=True, kw_only=True, tag="credit"):
    """An entry that changes a balance; there is no way to set one. Negative amounts are adjustments."""

    id: str
    account_id: str
    amount_nanos: int
    reason: str
    created_at_ms: int
    kind: CreditKind = "credit"
    expires_at_ms: int | None = None
    """Of a promotion: what is not spent until then is taken back by an entry of kind `expiry`."""
    about_id: str = ""
    """The code that was redeemed; of an expiry, the promotion."""


class Repair(msgspec.Struct, frozen=True, kw_only=True, tag="repair"):
    """An entry that brings a number in Redis back to what archive and log say. The archive itself is never changed by it.

    It concerns one hash: the account's, or, if one of them is named, a key's or a member's. Amounts are differences in
    nano-dollars.
    """

    id: str
    account_id: str
    key_id: str = ""
    member_id: str = ""
    balance_nanos: int = 0
    granted_nanos: int = 0
    spent_nanos: int = 0
    held_nanos: int = 0
    reason: str
    created_at_ms: int


class PublishedBook(msgspec.Struct, frozen=True, kw_only=True, tag="pricebook"):
    """A price book that counts from a time on. What was published under a version is never changed (ADR 15)."""

    id: str
    version: str
    """As `pricebook.load` takes it."""
    effective_at_ms: int
    """Requests whose id carries this time or a later one are priced by it, until another book takes effect."""
    text: str
    """The JSON document, as `pricebook.parse` reads it; it names its version too."""
    created_at_ms: int
    note: str = ""


Entity = Account | ApiKey | Credit | Member | PublishedBook | Repair | UpstreamCredential | ControlOnly


class ControlChanged(msgspec.Struct, frozen=True, kw_only=True):
    """The whole new state of one entity, with who changed it and why. Its version is its stream sequence."""

    entity: Entity
    actor: str
    reason: str
    at_ms: int
    address: str = ""
    """Where the change came from; empty: from this relay itself."""
    request: str = ""
    """A hash of what was asked for, where an Idempotency-Key came along: another request with it is refused."""
    previous: str = ""
    """SHA-256 of the message that was the entity's latest before this one: the hash chain. Empty: there was none."""


_encoder: Final = msgspec.json.Encoder()
_event_decoder: Final = msgspec.json.Decoder(UsageRecorded)
_usage_decoder: Final = msgspec.json.Decoder(list[UsageRecorded])
_refusals_decoder: Final = msgspec.json.Decoder(list[RefusalsCounted])
_control_decoder: Final = msgspec.json.Decoder(ControlChanged)


def encode_usage(events: Sequence[UsageRecorded]) -> bytes:
    """The payload of a usage message. All events must be of one partition."""
    return _encoder.encode(events)


def encode_event(event: UsageRecorded) -> bytes:
    """One event as it stands inside a usage message."""
    return _encoder.encode(event)


def join_usage(encoded: Sequence[bytes]) -> bytes:
    """The payload of a usage message from events encoded one by one."""
    return b"[" + b",".join(encoded) + b"]"


def decode_usage(payload: bytes) -> list[UsageRecorded]:
    """Raises msgspec.DecodeError (ValidationError included) for a payload that is not one of ours."""
    return _usage_decoder.decode(payload)


def decode_event(encoded: bytes) -> UsageRecorded:
    """One event, as `encode_event` has written it. Raises msgspec.DecodeError (ValidationError included)."""
    return _event_decoder.decode(encoded)


def encode_refusals(counts: Sequence[RefusalsCounted]) -> bytes:
    """The payload of a message of refusals. All counts must be of one partition."""
    return _encoder.encode(counts)


def decode_refusals(payload: bytes) -> list[RefusalsCounted]:
    """Raises msgspec.DecodeError (ValidationError included) for a payload that is not one of ours."""
    return _refusals_decoder.decode(payload)


def encode_control(event: ControlChanged) -> bytes:
    """The payload of a control message."""
    return _encoder.encode(event)


def decode_control(payload: bytes) -> ControlChanged:
    """Raises msgspec.DecodeError for a payload that is not one of ours."""
    return _control_decoder.decode(payload)


def message_id(events: Sequence[UsageRecorded]) -> str:
    """`Nats-Msg-Id`: a hash of the ids and versions inside, so that a repeated publish is dropped by the server.

    Only an optimisation: settlement is idempotent per event.
    """
    names = ",".join(f"{event.request_id}:{event.version}" for event in events)
    return hashlib.sha256(names.encode()).hexdigest()[:32]


def payload_sha256(payload: bytes) -> str:
    """What the next change of the same entity names as `previous`: 64 hex digits."""
    return hashlib.sha256(payload).hexdigest()


def payload_id(payload: bytes) -> str:
    """`Nats-Msg-Id` of a payload whose events are not at hand one by one: what is repeated is the same, byte for byte."""
    return hashlib.sha256(payload).hexdigest()[:32]
