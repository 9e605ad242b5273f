"""Reading a request body: equal to an independent reading of it, for any spelling of it, and never slow."""

import json
import random
from typing import Any

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from libs.common.errors import BadRequest
from services.gateway.peek import Ask, peek

MONEY_KEYS = ("model", "max_tokens", "stream", "speed", "inference_geo", "fallbacks", "tools")
DEEP = b"[" * 5_000 + b"]" * 5_000
LONE = rb'"\ud83d"'


class Pairs(list[tuple[str, Any]]):
    """An object as the oracle sees it: every member, in order."""


class Refused(Exception):
    """The oracle's verdict on a body that must not be forwarded."""


def oracle(text: str) -> dict[str, Any]:
    """What Python's own json makes of a body."""
    pairs = json.loads(text, object_pairs_hook=Pairs, parse_constant=refuse)
    if not isinstance(pairs, Pairs):
        raise Refused
    names = [name for name, _ in pairs]
    top = dict(pairs)
    if any(names.count(name) > 1 for name in MONEY_KEYS) or "billing_policy" in names:
        raise Refused
    if not isinstance(top.get("model"), str):
        raise Refused
    for name in ("stream", "max_tokens", "speed", "inference_geo"):
        if isinstance(top.get(name), list):
            raise Refused
    if top.get("stream") not in (None, True, False):
        raise Refused
    return {
        "model": top["model"],
        "stream": bool(top.get("stream")),
        "max_tokens": count(top.get("max_tokens")),
        "other_models": (*fallback_models(top.get("fallbacks")), *advisor_models(top.get("tools"))),
        "speed": top["speed"] if isinstance(top.get("speed"), str) else None,
        "inference_geo": top["inference_geo"] if isinstance(top.get("inference_geo"), str) else None,
    }


def refuse(_: str) -> Any:
    raise Refused


def count(value: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, int | float) or value < 0 or value != int(value):
        return 0
    return int(value)


def fallback_models(value: Any) -> list[str]:
    if value is None or isinstance(value, str):
        return []
    if not isinstance(value, list) or isinstance(value, Pairs) or any(not isinstance(entry, Pairs) for entry in value):
        raise Refused
    return [model for entry in value if isinstance(model := dict(entry).get("model"), str)]


def advisor_models(value: Any) -> list[str]:
    if not isinstance(value, list) or isinstance(value, Pairs):
        return []
    tools = [dict(entry) for entry in value]
    return [tool["model"] for tool in tools if str(tool.get("type")).startswith("advisor")]


def fields(ask: Ask) -> dict[str, Any]:
    names = ("model", "stream", "max_tokens", "other_models", "speed", "inference_geo")
    return {name: getattr(ask, name) for name in names}


def agree(body: bytes) -> None:
    try:
        expected = oracle(body.decode())
    except Refused:
        with pytest.raises(BadRequest):
            peek(body)
    else:
        assert fields(peek(body)) == expected


# -- a writer of JSON that spells everything in odd ways ---------------------------------------------------------------


def written(value: Any, rng: random.Random) -> str:
    pad = rng.choice(["", "", "", " ", "\t\r\n ", "\n\n"])
    match value:
        case Pairs():
            members = [f"{written(name, rng)}:{written(inner, rng)}" for name, inner in value]
            return f"{pad}{{{pad}{','.join(members)}}}{pad}"
        case list():
            return f"{pad}[{pad}{','.join(written(inner, rng) for inner in value)}]{pad}"
        case str():
            return f'{pad}"{"".join(spelled(char, rng) for char in value)}"{pad}'
        case _:
            return pad + json.dumps(value) + pad


def spelled(char: str, rng: random.Random) -> str:
    code = ord(char)
    must = char in '"\\' or code < 0x20 or 0xD800 <= code <= 0xDFFF
    if code > 0xFFFF or (not must and rng.random() < 0.9):
        return char
    return f"\\u{code:04x}" if rng.random() < 0.5 else f"\\u{code:04X}"


texts = st.text(st.characters(), max_size=8) | st.sampled_from(
    [
        "model",
        'x"model',
        'model"',
        "stream",
        "max_tokens",
        '{"model":"x"}',
        "[]{}",
        "\\",
        '\\"',
        "\ud800",
        "\udc00\ud83d",
    ]
)
scalars = st.none() | st.booleans() | st.integers(-(2**70), 2**70) | st.floats(-1e9, 1e9) | texts
values = st.recursive(
    scalars,
    lambda inner: st.lists(inner, max_size=4) | st.lists(st.tuples(texts, inner), max_size=4).map(Pairs),
    max_leaves=12,
)
plain = st.sampled_from(["claude-opus-4-7", "claude-haiku-4-5", "fast", "us", ""])
named = st.lists(st.tuples(st.sampled_from(["model", "type", "name"]), plain), max_size=3).map(
    lambda p: Pairs(dict(p).items())
)
advisors = plain.map(lambda model: Pairs([("type", "advisor_20260301"), ("model", model)]))
members = st.one_of(
    st.tuples(texts.filter(lambda name: name not in MONEY_KEYS), values),
    st.tuples(st.just("model"), plain | values.filter(lambda v: not isinstance(v, str))),
    st.tuples(st.just("max_tokens"), st.integers(-5, 2**40) | st.sampled_from([1000.0, 10.5, "5", None, True, []])),
    st.tuples(st.just("stream"), st.sampled_from([True, False, None, 0, 1, 2, "true", [], Pairs()])),
    st.tuples(st.sampled_from(["speed", "inference_geo"]), plain | st.none() | st.integers() | st.just([])),
    st.tuples(
        st.just("fallbacks"), st.lists(named, max_size=3) | st.sampled_from(["default", None, 5, ["x"], Pairs()])
    ),
    st.tuples(st.just("tools"), st.lists(named | advisors, max_size=3)),
    st.tuples(st.just("billing_policy"), values),
)
randoms = st.integers(0, 2**32).map(random.Random)


def objects(always: list[tuple[str, Any]]) -> st.SearchStrategy[Pairs]:
    return st.lists(members, max_size=6).flatmap(lambda some: st.permutations([*always, *some])).map(Pairs)


@given(objects([("model", "claude-opus-4-7")]) | objects([]), randoms)
def test_equals_an_independent_reading_however_the_body_is_spelled(pairs: Pairs, rng: random.Random) -> None:
    agree(written(pairs, rng).encode())


@given(objects([("model", "claude-opus-4-7")]), randoms, st.integers(0, 10_000), st.binary(max_size=3))
def test_a_damaged_body_is_refused_or_read_as_it_is(pairs: Pairs, rng: random.Random, at: int, wound: bytes) -> None:
    body = written(pairs, rng).encode()
    at %= len(body)
    damaged = body[:at] + wound + body[at + 1 :]
    try:
        text = damaged.decode()
        json.loads(text)
    except ValueError:
        refused_or_read(damaged)
    else:
        assume("\\ud" not in text.lower())
        try:
            agree(damaged)
        except AttributeError:  # a wound made an entry of `tools` a number: the oracle knows no such tool
            refused_or_read(damaged)


@given(st.binary(max_size=200) | st.binary(max_size=60).map(lambda junk: b'{"model":"m","x":' + junk + b"}"))
def test_arbitrary_bytes_are_refused_or_read(body: bytes) -> None:
    refused_or_read(body)


def refused_or_read(body: bytes) -> None:
    try:
        peek(body)
    except BadRequest as error:
        error.body("req_1").decode()


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b" ",
        b"null",
        b"5",
        b'"model"',
        b'["model"]',
        b"model=claude",
        b"{",
        b"{}",
        b'{"model"}',
        b'{"model":}',
        b'{"model":"m"',
        b'{"model":"m"}}',
        b'{"model":"m"} trailing',
        b'{"model":"m"}{"model":"m"}',
        b'{"model":"m",}',
        b"{'model':'m'}",
        b'{"model":null}',
        b'{"model":5}',
        b'{"model":["m"]}',
        b'{"Model":"m"}',
        b'{"model":"\xff"}',
        b'{"model":"m\xc3"}',
        b'{"mod\xffel":"m"}',
        b'{"model":"m","\xff":1}',
        b'\xef\xbb\xbf{"model":"m"}',
        '{"model":"m"}'.encode("utf-16"),
        b'{"model":"m","temperature":NaN}',
        b'{"model":"m","odd":{"a":[1e5}}',
        b'{"model":"m","odd":[1]]}',
        b'{"model":"m","odd":["a}',
        rb'{"model":"m","odd":"a\"}',
        b'{"model":"m","messages":[{"role":"us',
        b'{"model":"m","max_tokens":Infinity}',
        b'{"model":"m","max_tokens":1e999}',
        b'{"model":"m","max_tokens":' + b"9" * 5000 + b"}",
        b'{"model":"m","max_tokens":{}}',
        b'{"model":"m","stream":"true"}',
        b'{"model":"m","stream":2}',
        rb'{"model":"m","stream":"\ud800"}',
        b'{"model":"m","speed":"\xff"}',
        b'{"model":"m","fallbacks":[{"model":"\xff"}]}',
        b'{"model":"m","fallbacks":{"model":"x"}}',
        b'{"model":"m","fallbacks":["x"]}',
        b'{"model":"m","tools":["advisor"]}',
        b'{"model":"m","billing_policy":null}',
        rb'{"model":"m","billing_polic\u0079":{"bill_to":"user_profile"}}',
    ],
)
def test_refused(body: bytes) -> None:
    with pytest.raises(BadRequest):
        peek(body)


@pytest.mark.parametrize("name", MONEY_KEYS)
@pytest.mark.parametrize("odd", [b"", b',"x":' + LONE, b',"x":' + DEEP, b',"x":[NaN]'])
def test_a_money_key_that_stands_twice_is_refused_in_every_spelling(name: str, odd: bytes) -> None:
    values: dict[str, bytes] = {"model": b'"m"', "max_tokens": b"5", "stream": b"true"}
    value = values.get(name, b"null")
    last = name[-1]
    for again in (name, f"{name[:-1]}\\u{ord(last):04x}", "".join(f"\\u{ord(char):04X}" for char in name)):
        first = b"" if name == "model" else b'"model":"m",'
        once = b'{%b"%b":%b%b}' % (first, name.encode(), value, odd)
        assert peek(once).model == "m"
        twice = b'{%b"%b":%b%b ,\n"%b":%b}' % (first, name.encode(), value, odd, again.encode(), value)
        with pytest.raises(BadRequest, match="twice"):
            peek(twice)


@pytest.mark.parametrize(
    "body",
    [
        b'{"model":"m","metadata":{"model":1,"model":2,"stream":"x","stream":0}}',
        b'{"model":"m","messages":[{"model":"x","max_tokens":{}},{"model":"x","max_tokens":[]}]}',
        b'{"model":"m","a":"model","b":["model","model"],"c":"max_tokens"}',
        rb'{"x\"model":1,"model":"m","model\"":2,"\"model\"":3}',
        b'{"model":"m","MODEL":"x","model ":"y"}',
        b'{"x":1,"x":2,"model":"m"}',
    ],
)
def test_the_same_words_elsewhere_are_nothing_to_us(body: bytes) -> None:
    assert fields(peek(body)) == fields(Ask(**oracle(body.decode()), cache_ttl_1h=False, input_estimated_tokens=0))
    assert peek(body).model == "m"


def test_a_model_may_be_called_model() -> None:
    assert peek(b'{"model":"model","stream":true}').model == "model"


@pytest.mark.parametrize(
    "odd", [LONE, DEEP, b"[NaN]", b"[1 2]", b'{"a":[1e5}]', rb'"\uDC00\uD7FF"', b'"\xff"', rb'["\q"]']
)
def test_what_the_fast_decoder_refuses_is_forwarded_all_the_same(odd: bytes) -> None:
    ask = peek(b'{"odd":' + odd + b' ,"model":"claude-opus-4-7","max_tokens":12,"stream":null,"speed":"fast"}')
    assert (ask.model, ask.max_tokens, ask.stream, ask.speed) == ("claude-opus-4-7", 12, False, "fast")


@pytest.mark.parametrize(
    ("written_as", "read_as"),
    [
        ("0", 0),
        ("-0", 0),
        ("-5", 0),
        ("1e3", 1000),
        ("1000.0", 1000),
        ("10.5", 0),
        ('"7"', 0),
        ("null", 0),
        ("true", 0),
        (str(2**53 + 1), 2**53 + 1),
        (str(10**30), 10**30),
    ],
)
def test_max_tokens(written_as: str, read_as: int) -> None:
    assert peek(f'{{"model":"m","max_tokens":{written_as}}}'.encode()).max_tokens == read_as


@pytest.mark.parametrize(
    ("body", "models"),
    [
        (rb'{"model":"m","fallbacks":"default"}', ()),
        (rb'{"model":"m","fallbacks":null,"tools":null}', ()),
        (rb'{"model":"m","fallbacks":[{"model":"a","speed":"fast"},{"model":"b"}]}', ("a", "b")),
        (rb'{"model":"m","fallbacks":[{"mod\u0065l":"a"}]}', ("a",)),
        (rb'{"model":"m","fallbacks":[{"model":"a","x":"\ud800"}]}', ("a",)),
        (rb'{"model":"m","tools":[{"type":"advisor_20260301","name":"advisor","model":"a"},{"name":"x"}]}', ("a",)),
        (rb'{"model":"m","tools":[{"type":"\u0061dvisor_20260301","model":"a"}]}', ("a",)),
        (rb'{"model":"m","tools":[{"type":"advisor_20260301","model":"a","x":"\udfff"}]}', ("a",)),
        (rb'{"model":"m","tools":[{"type":"custom","description":"advisor","model":"a"}]}', ()),
        (rb'{"model":"m","fallbacks":[{"model":"a"}],"tools":[{"type":"advisor","model":"b"}]}', ("a", "b")),
    ],
)
def test_other_models_cannot_be_hidden(body: bytes, models: tuple[str, ...]) -> None:
    assert peek(body).other_models == models


@pytest.mark.parametrize(
    ("messages", "one_hour"),
    [
        (b'[{"cache_control":{"type":"ephemeral","ttl":"1h"}}]', True),
        (b'[{"cache_control" :\n{ "ttl" : "1h" , "type":"ephemeral"}}]', True),
        (b'[{"cache_control":{"type":"ephemeral"}},{"x":{},"cache_control":{"ttl":"1h"}}]', True),
        (
            b'[{"cache_control":{"ttl":"5m"}}' + b',{"cache_control":{}}' * 5000 + b',{"cache_control":{"ttl":"1h"}}]',
            True,
        ),
        (rb'[{"cache\u005fcontrol":{"ttl":"1h"}}]', True),
        (rb'[{"\u0063\u0061\u0063\u0068\u0065\u005F\u0063ontrol":{"\u0074t\u006C":"\u0031\u0068"}}]', True),
        (rb'[{"cache_control":{"type":"ephemer\u0061l","ttl":"5m"}},"1h"]', False),
        (rb'["\u003cb\u003e",{"cache_control":{"ttl":"1h"}}]', True),
        (b'[{"cache_control":{"type":"ephemeral","ttl":"5m"}}]', False),
        (b'[{"cache_control":{"type":"ephemeral"},"ttl":"1h"}]', False),
        (rb'["\"cache_control\":{\"type\":\"ephemeral\",\"ttl\":\"1h\"}"]', False),
        (b"[]", False),
    ],
)
def test_one_hour_cache_writes(messages: bytes, one_hour: bool) -> None:
    assert peek(b'{"model":"m","messages":' + messages + b"}").cache_ttl_1h is one_hour
