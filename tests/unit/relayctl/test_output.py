"""Tables, cells, progress; and text that a terminal may be given."""

import io

import pytest

from libs.relayctl import output, text


class Terminal(io.StringIO):
    """It says so."""

    def isatty(self) -> bool:
        return True


def shown(columns: list[str], *pages: list[dict[str, object]]) -> list[str]:
    raw = io.BytesIO()
    rows = output.Rows(output.Sink(raw), columns)
    for one in pages:
        rows.add(one)
    return raw.getvalue().decode().splitlines()


def test_columns_are_aligned_and_grow() -> None:
    assert shown(["a", "b.c"], [{"a": "漢字", "b": {"c": True}}, {"a": None}], [{"a": "longer", "b": 1}], [{"a": "x"}]) == [
        "A     B.C", "漢字  yes", "-     -", "longer  -", "x       -",
    ]  # fmt: skip


def test_sentences_are_cut_and_ids_are_not() -> None:
    (_, sentence, key) = shown(["a"], [{"a": "word " * 20}, {"a": "k" * 100}])
    assert len(sentence) == 48 and sentence.endswith("…")
    assert key == "k" * 100


def test_wide_sentences_are_cut_at_the_same_width() -> None:
    (_, sentence) = shown(["a"], [{"a": "漢字 " * 40}])
    assert 46 <= text.width(sentence) <= 48 and sentence.endswith("…")


@pytest.mark.parametrize("sign", ["\u2066", "\u2067", "\u2068", "\u202e", "\x1b", "\u2028"])
def test_nothing_turns_a_line_around(sign: str) -> None:
    assert text.plain(f"a{sign}b") == f"a{sign.encode('unicode_escape').decode()}b"


def test_what_has_no_width_takes_none() -> None:
    assert text.width("a\u200db\ufe0f\u0e31") == 2


def test_nothing_is_a_head() -> None:
    assert shown(["a"], []) == ["A"]


@pytest.mark.parametrize(
    ("value", "words"),
    [(None, "-"), ([], "-"), ({}, "-"), (False, "no"), (0, "0"), ("", ""), ([1, None], "1, -"), ("a\tb\n", "a\\tb\\n")],
)
def test_cells(value: object, words: str) -> None:
    assert output.cell(value) == words


def test_progress_is_for_terminals() -> None:
    quiet, terminal = io.StringIO(), Terminal()
    for stream in (quiet, terminal):
        progress = output.Progress(stream)
        progress.show("12 rows")
        progress.show("13")
        progress.clear()
        progress.clear()
    assert quiet.getvalue() == ""
    assert terminal.getvalue() == "\r12 rows\r13     \r  \r"


def test_nothing_moves_the_cursor() -> None:
    assert text.plain("a\x1b[2J\u202eb\u2028\x9b é漢") == "a\\x1b[2J\\u202eb\\u2028\\x9b é漢"


def test_secrets_are_struck_out() -> None:
    words = "known-1234, sk-cr-AAAABBBBCCCCDDDD, sk-ant-api03-xxxxxxxx, rss_abcdefghijklm, rli_oper_1234567890.abc, sk-cr-abcd…"
    assert (
        text.without_secrets(words, ["known-1234", ""])
        == "[secret], [secret], [secret], [secret], [secret], sk-cr-abcd…"
    )
    assert text.without_secrets("req_0123456789abcdef0123456789abcdef", []) == "req_0123456789abcdef0123456789abcdef"
