"""Limits of a request body, and time: the event loop stands still while one is read, so none may take long, however odd."""

import json
import time

import pytest

from libs.common.errors import BadRequest
from services.gateway import peek as peeking
from services.gateway import tolerant
from services.gateway.peek import peek
from tests.unit.gateway.test_peek import refused_or_read


def test_limits_are_named() -> None:
    many = b'{"model":"m"' + b"".join(b',"%d":1' % at for at in range(tolerant.MEMBERS_MAX + 1)) + b"}"
    with pytest.raises(BadRequest, match="fields"):
        peek(many)
    with pytest.raises(BadRequest, match="fields"):
        peek(many[:-1] + b',"x":[NaN]}')
    large = b'{"model":"m","fallbacks":[' + b" " * peeking._NAMED_MODELS_BYTES_MAX + b"]}"
    with pytest.raises(BadRequest, match="larger than 4 MB"):
        peek(large)


MB = 1024 * 1024
HEAD = b'{"model":"m","max_tokens":5,"x":'
ODD_HEAD = b'{"model":"m","odd":[NaN],"x":'


def many(part: bytes) -> bytes:
    return part * (8 * MB // len(part))


NASTY = {
    "brackets": HEAD + b"[" + many(b"[],") + b"1]}",
    "brackets, tolerantly": ODD_HEAD + b"[" + many(b"[],") + b"1]}",
    "brackets over many fields, tolerantly": ODD_HEAD + b"1" + (b',"x":[' + b"[]," * 90_000 + b"1]") * 25 + b"}",
    "open brackets": HEAD + many(b"["),
    "fields": b'{"model":"m"' + many(b',"":1') + b"}",
    "fields, tolerantly": ODD_HEAD + b"1" + many(b',"":1') + b"}",
    "strings, tolerantly": ODD_HEAD + b"[" + many(b'"a",') + b"1]}",
    "strings without an end": ODD_HEAD + b"[" + many(b'"a",') + b'"',
    "backslashes, tolerantly": ODD_HEAD + b'"' + many(b"\\\\") + b'"}',
    "backslashes without an end": ODD_HEAD + b'"' + many(b"\\\\"),
    "quotes": many(b'"'),
    "escaped quotes": HEAD + b'"' + many(rb"\"") + b'"}',
    "lone surrogates": HEAD + b'"' + many(rb"\ud800") + b'"}',
    "words that look like keys": HEAD + b"[" + many(b'"model",') + b"1]}",
    "cache controls": HEAD + b"[" + many(b'{"cache_control":{"ttl":"5m"}},') + b'"1h"]}',
    "spaces after cache control": HEAD + b'["1h",' + many(b'"cache_control"' + b" " * 1000 + b",") + b"1]}",
    "a long cache control": HEAD + b'{"cache_control":{"x":[' + many(b'"ttl" ,') + b'"1h"]}}}',
    "base64 begun": b'{"model":"m","messages":["source","base64"' + many(b',"data" ') + b"]}",
    "base64 without an end": b'{"model":"m","messages":["source","base64",{"data":"' + many(b"A") + b' "}]}',
    "citations begun": b'{"model":"m","messages":["source",' + many(b'"citations" ,') + b"1]}",
    "files": b'{"model":"m","messages":["source",' + many(b'"file_id",') + b"1]}",
    "tools of the API's own": b'{"model":"m","tools":[' + many(b'{"type":"a_20250101"},') + b"1]}",
    "fallbacks": b'{"model":"m","fallbacks":[' + many(b"{},") + b"{}]}",
    "a list for a word": b'{"model":"m","speed":[' + many(b"[],") + b"1]}",
    "a list for a number": b'{"model":"m","max_tokens":[' + many(b"[],") + b"1]}",
    "digits": b'{"model":"m","max_tokens":' + many(b"9") + b"}",
}


@pytest.mark.alone
@pytest.mark.parametrize("kind", NASTY)
def test_no_body_of_8_mb_takes_a_second(kind: str) -> None:
    started = time.thread_time()
    refused_or_read(NASTY[kind])
    assert time.thread_time() - started < 1


@pytest.mark.alone
def test_an_ordinary_body_of_400_kb_takes_less_than_its_budget() -> None:
    text = 'def f(x: int) -> str:\n\treturn "naïve" # \U0001f600\n' * 40
    turn = [{"role": "user", "content": [{"type": "text", "text": text}]}, {"role": "assistant", "content": text}]
    tools = [{"name": f"T{at}", "description": text[:400], "input_schema": {"type": "object"}} for at in range(30)]
    body = {"model": "claude-opus-4-7", "max_tokens": 32000, "stream": True, "tools": tools, "messages": turn * 80}
    for ensure_ascii in (True, False):
        payload = json.dumps(body, ensure_ascii=ensure_ascii).encode()
        assert 300_000 < len(payload) < 500_000
        spent = []
        for _ in range(15):
            started = time.thread_time()
            peek(payload)
            spent.append(time.thread_time() - started)
        assert min(spent) < 0.0025  # 0.3 to 0.7 ms on the machine this was written on
