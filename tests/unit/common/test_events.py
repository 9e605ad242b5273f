"""Events as bytes and back, beside older and newer writers."""

import json
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from libs.common import events
from libs.common.events import (
    Account,
    ApiKey,
    Attempt,
    ControlChanged,
    Credit,
    Member,
    PublishedBook,
    RefusalsCounted,
    UpstreamCredential,
    UsageRecorded,
)
from libs.common.limits import Limits

REQUIRED: dict[str, Any] = {
    "request_id": "req_1",
    "account_id": "acct_1",
    "key_id": "key_1",
    "path": "/v1/messages",
    "model_asked": "claude-haiku-4-5",
    "model_answered": "claude-haiku-4-5-20251001",
    "stream": True,
    "status": 200,
    "outcome": "measured",
    "usage": {"input_tokens": 1, "iterations": [{"type": "message", "model": None}], "geo": "é😀"},
    "price_book_version": "2026-11-22",
    "multiplier_ppm": 1_000_000,
}


def event(**changes: Any) -> UsageRecorded:
    return UsageRecorded(**{**REQUIRED, **changes})


numbers = st.integers(0, 2**63 - 1)
texts = st.text(max_size=20)
leaves = st.none() | st.booleans() | numbers | st.floats(allow_nan=False, allow_infinity=False) | texts
usages = st.dictionaries(
    texts, st.recursive(leaves, lambda inner: st.lists(inner) | st.dictionaries(texts, inner), max_leaves=8)
)


@given(
    st.lists(
        st.builds(
            UsageRecorded,
            request_id=texts,
            version=st.integers(1, 9),
            account_id=texts,
            key_id=texts,
            path=texts,
            model_asked=texts,
            model_answered=texts,
            stream=st.booleans(),
            status=st.integers(0, 599),
            outcome=st.sampled_from(["measured", "partial", "estimated", "free", "expired"]),
            usage=usages,
            stop_reason=texts,
            cache_ttl_1h=st.booleans(),
            declined_models=st.lists(texts, max_size=3).map(tuple),
            price_book_version=texts,
            multiplier_ppm=numbers,
            duration_us=numbers,
            client=texts,
        ),
        max_size=3,
    )
)
def test_usage_round_trip(sent: list[UsageRecorded]) -> None:
    assert events.decode_usage(events.encode_usage(sent)) == sent


ENTITIES: list[events.Entity] = [
    Account(id="acct_1", name="Grüße", created_at_ms=1, multiplier_ppm=900_000, on_disconnect="cancel"),
    ApiKey(id="key_1", account_id="acct_1", name="n", created_at_ms=2, sha256="00" * 32, hint="sk-cr-Ab12…"),
    Account(id="acct_1", name="n", created_at_ms=1, time_zone="Asia/Tokyo", limits=Limits(rpm=5, budget_day_nanos=0)),
    Member(id="memb_1", account_id="acct_1", name="n", created_at_ms=2, limits=Limits(in_flight=3)),
    ApiKey(
        id="key_1", account_id="acct_1", name="n", created_at_ms=2, sha256="00" * 32, hint="h", member_id="memb_1",
        limits=Limits(itpm=7), models=("claude-opus-4-7",), ip_allowlist=("10.0.0.0/8",), expires_at_ms=9,
    ),
    UpstreamCredential(
        id="upst_1", name="n", created_at_ms=2, base_url="https://a", sealed="s", hint="abcd", weight=3, in_flight_max=9
    ),
    PublishedBook(id="book_1", version="2026-12-01", effective_at_ms=5, text='{"é": 1}', created_at_ms=3, note="dearer"),
    Credit(id="cred_1", account_id="acct_1", amount_nanos=-(10**15), reason="refund", created_at_ms=3),
]  # fmt: skip


@pytest.mark.parametrize("entity", ENTITIES, ids=lambda entity: type(entity).__name__)
def test_control_round_trip(entity: events.Entity) -> None:
    sent = ControlChanged(entity=entity, actor="admin", reason="why", at_ms=5)
    assert events.decode_control(events.encode_control(sent)) == sent


def test_fields_of_a_newer_writer_are_passed_over() -> None:
    (written,) = json.loads(events.encode_usage([event()]))
    newer = json.dumps([{**written, "colour": "blue", "nested": {"a": [1]}}]).encode()
    assert events.decode_usage(newer) == [event()]
    for entity in ENTITIES:
        sent = ControlChanged(entity=entity, actor="a", reason="r", at_ms=5)
        control = json.loads(events.encode_control(sent))
        control["entity"]["colour"] = "blue"
        assert events.decode_control(json.dumps({**control, "shape": 1}).encode()) == sent


def test_fields_an_older_writer_did_not_have_get_their_defaults() -> None:
    (read,) = events.decode_usage(json.dumps([REQUIRED]).encode())
    assert read == event() and read.version == events.VERSION_LIVE
    assert (read.declined_models, read.tries, read.cache_ttl_1h, read.stop_reason) == ((), (), False, "")


@pytest.mark.parametrize("missing", sorted(REQUIRED))
def test_what_must_be_there(missing: str) -> None:
    short = {name: value for name, value in REQUIRED.items() if name != missing}
    with pytest.raises(msgspec.DecodeError):
        events.decode_usage(json.dumps([short]).encode())


@pytest.mark.parametrize(
    "payload",
    [b"", b"{}", b"[1]", b"[", b"\xff", json.dumps([{**REQUIRED, "outcome": "lost"}]).encode(), b'[{"usage":[]}]'],
)
def test_payloads_that_are_none_of_ours(payload: bytes) -> None:
    with pytest.raises(msgspec.DecodeError):
        events.decode_usage(payload)
    with pytest.raises(msgspec.DecodeError):
        events.decode_control(payload)


def test_entities_of_an_unknown_kind_are_refused() -> None:
    payload = b'{"entity":{"type":"spell","id":"1"},"actor":"a","reason":"r","at_ms":1}'
    with pytest.raises(msgspec.DecodeError):
        events.decode_control(payload)


def test_message_id() -> None:
    one, two = event(request_id="req_1"), event(request_id="req_2")
    names = [
        events.message_id(batch)
        for batch in (
            [one],
            [two],
            [one, two],
            [event(request_id="req_1", version=4)],
            [event(request_id="req_11")],
        )
    ]
    assert len(set(names)) == len(names)
    assert all(len(name) == 32 for name in names)
    # The same events again, whatever else they say: the server is to drop the second one.
    assert events.message_id([event(request_id="req_1", client="other")]) == names[0]


def test_versions_rise_with_what_is_known() -> None:
    assert events.VERSION_EXPIRED < events.VERSION_RECOVERED < events.VERSION_LIVE < events.VERSION_CORRECTION_MIN


def test_an_event_from_before_tries_were_recorded_is_read() -> None:
    """It had a number under another name."""
    (read,) = events.decode_usage(json.dumps([REQUIRED | {"attempts": 2}]).encode())
    assert read.tries == ()


def test_one_event_by_itself() -> None:
    sent = event(tries=(Attempt(upstream_id="env", status=0, error="connect"),), member_id="memb_1")
    assert events.decode_event(events.encode_event(sent)) == sent
    assert events.decode_usage(events.join_usage([events.encode_event(sent)])) == [sent]


def test_limits_that_are_not_set_take_no_space() -> None:
    assert b'"limits":{}' in events.encode_control(ControlChanged(entity=ENTITIES[0], actor="a", reason="r", at_ms=5))


def test_refusals_are_read_as_they_were_counted_and_never_for_usage() -> None:
    counted = [
        RefusalsCounted(
            account_id="acct_1", key_id="key_1", reason=reason, minute=29_000_000, gateway_id="g1", refused=number
        )
        for number, reason in enumerate(("budget", "requests"), 1)
    ]
    payload = events.encode_refusals(counted)
    assert events.decode_refusals(payload) == counted
    for other, read in ((payload, events.decode_usage), (events.encode_usage([event()]), events.decode_refusals)):
        with pytest.raises(msgspec.DecodeError):
            read(other)
