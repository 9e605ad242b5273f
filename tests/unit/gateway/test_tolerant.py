"""The tolerant scanner: the members of an object as Python's json sees them, and where a text stops being one."""

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.gateway import tolerant
from services.gateway.tolerant import NotAnObject, top_level

values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=5), inner, max_size=4),
    max_leaves=10,
)


@given(st.lists(st.tuples(st.text(), values), max_size=8), st.sampled_from(["", " ", "\r\n\t "]), st.booleans())
def test_members_are_found_in_order_duplicates_included(members: list[tuple[str, Any]], pad: str, ascii_: bool) -> None:
    def written(value: Any) -> str:
        return json.dumps(value, ensure_ascii=ascii_, indent=1 if pad else None)

    inside = f"{pad},{pad}".join(f"{written(name)}{pad}:{pad}{written(value)}" for name, value in members)
    found = top_level(f"{pad}{{{pad}{inside}{pad}}}{pad}".encode("utf-8", "surrogatepass"))
    assert [name for name, _ in found] == [name for name, _ in members]
    assert [raw.decode("utf-8", "surrogatepass") for _, raw in found] == [written(value) for _, value in members]


@given(st.binary(max_size=80) | st.text('{}[]":,\\ntrue0', max_size=40).map(str.encode))
def test_nothing_else_is_raised_and_what_json_reads_is_read(text: bytes) -> None:
    try:
        expected = json.loads(text.decode(), object_pairs_hook=Pairs, parse_constant=not_json)
    except (ValueError, RecursionError):
        expected = None
    try:
        found = top_level(text)
    except NotAnObject:
        assert not isinstance(expected, Pairs)
    else:
        if isinstance(expected, Pairs):
            assert [name for name, _ in found] == [name for name, _ in expected]


class Pairs(list[tuple[str, Any]]):
    """An object, every member of it."""


def not_json(_: str) -> Any:
    raise ValueError


@pytest.mark.parametrize(
    "text",
    [
        b"",
        b"  ",
        b"[]",
        b"1",
        b"{",
        b"}",
        b"{,}",
        b'{"a"}',
        b'{"a":}',
        b'{"a":1,}',
        b'{"a":1 "b":2}',
        b"{}x",
        b"{} x",
        b'{"a":1}}',
        b'{"a":1} x',
        b"{'a':1}",
        b"{a:1}",
        b'{"a":NaN}',
        b'{"a":Infinity}',
        b'{"a":+1}',
        b'{"a":.5}',
        b'{"a":[1}',
        b'{"a":"x}',
        rb'{"a":"x\"}',
        b'{"a":["]}',
        rb'{"\x":1}',
        b'{"\xff":1}',
        b'\xef\xbb\xbf{"a":1}',
        b"\0",
    ],
)
def test_not_an_object(text: bytes) -> None:
    with pytest.raises(NotAnObject):
        top_level(text)


@pytest.mark.parametrize(
    ("text", "members"),
    [
        (b"{}", []),
        (b'{"a":[NaN, {"b": -Infinity}] }', [("a", b'[NaN, {"b": -Infinity}]')]),
        (rb'{"\u006dodel":"x","model":"y"}', [("model", b'"x"'), ("model", b'"y"')]),
        (rb'{"a":"\ud800","\ud83d":1}', [("a", rb'"\ud800"'), ("\ud83d", b"1")]),
        (rb'{"a":"\\","b":"\"}"}', [("a", rb'"\\"'), ("b", rb'"\"}"')]),
        (rb'{"a":["\"]","\\",{"]":"["}]}', [("a", rb'["\"]","\\",{"]":"["}]')]),
        (b'{"a":"\xff"}', [("a", b'"\xff"')]),
        (
            b'{"a":1e5,"b":-0.5E-3,"c":true,"d":null}',
            [("a", b"1e5"), ("b", b"-0.5E-3"), ("c", b"true"), ("d", b"null")],
        ),
    ],
)
def test_members(text: bytes, members: list[tuple[str, bytes]]) -> None:
    assert top_level(text) == members


def test_limits() -> None:
    deep = tolerant.DEPTH_MAX
    assert top_level(b'{"a":' + b"[" * deep + b"]" * deep + b"}")[0][0] == "a"
    most = b"{" + b",".join(b'"%d":1' % at for at in range(tolerant.MEMBERS_MAX)) + b"}"
    assert len(top_level(most)) == tolerant.MEMBERS_MAX
    for text, says in (
        (b'{"a":' + b"[" * (deep + 1) + b"]" * (deep + 1) + b"}", "deeper"),
        (b'{"a":[' + b"[]," * (tolerant.BRACKETS_MAX // 2) + b"1]}", "brackets"),
        (b"{" + b",".join(b'"%d":1' % at for at in range(tolerant.MEMBERS_MAX + 1)) + b"}", "fields"),
    ):
        with pytest.raises(NotAnObject, match=says):
            top_level(text)


def test_brackets_are_counted_over_all_members() -> None:
    part = b"[" + b"[]," * (tolerant.BRACKETS_MAX // 6) + b"1]"
    assert len(top_level(b'{"a":' + part + b',"b":' + part + b"}")) == 2
    with pytest.raises(NotAnObject, match="brackets"):
        top_level(b'{"a":' + part + b',"b":' + part + b',"c":' + part + b"}")
