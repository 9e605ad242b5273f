"""What an account may still do, as headers: Anthropic's names and Anthropic's form."""

import json
import re
from pathlib import Path

from libs.common.leases import Figures, Window
from services.gateway.ratelimits import headers

FULL = Figures(
    Window(1000, 999, 1_755_776_517), Window(2_000_000, 1_999_000, 1_755_776_518), Window(400_000, 70, 1_755_776_522)
)


def test_three_headers_for_each_window_and_their_sum() -> None:
    found = {name.decode(): value.decode() for name, value in headers(FULL)}
    assert found == {
        "anthropic-ratelimit-requests-limit": "1000",
        "anthropic-ratelimit-requests-remaining": "999",
        "anthropic-ratelimit-requests-reset": "2025-08-21T11:41:57Z",
        "anthropic-ratelimit-input-tokens-limit": "2000000",
        "anthropic-ratelimit-input-tokens-remaining": "1999000",
        "anthropic-ratelimit-input-tokens-reset": "2025-08-21T11:41:58Z",
        "anthropic-ratelimit-output-tokens-limit": "400000",
        "anthropic-ratelimit-output-tokens-remaining": "70",
        "anthropic-ratelimit-output-tokens-reset": "2025-08-21T11:42:02Z",
        "anthropic-ratelimit-tokens-limit": "2400000",
        "anthropic-ratelimit-tokens-remaining": "1999070",
        "anthropic-ratelimit-tokens-reset": "2025-08-21T11:42:02Z",
    }


def test_what_does_not_limit_is_not_told() -> None:
    assert headers(Figures(None, None, None)) == []
    assert len(headers(Figures(FULL.requests, None, None))) == 3
    assert len(headers(Figures(None, FULL.input, None))) == 3


def test_names_and_form_are_those_of_recorded_answers(corpus: Path) -> None:
    recorded: dict[str, str] = {}
    for path in corpus.glob("*/*.meta.json"):
        found = json.loads(path.read_bytes())["response_headers"]
        recorded |= {name: value for name, value in found.items() if name.startswith("anthropic-ratelimit-")}
    ours = {name.decode(): value.decode() for name, value in headers(FULL)}
    assert set(ours) <= set(recorded)
    for name, value in ours.items():
        assert re.sub(r"\d+", "0", value) == re.sub(r"\d+", "0", recorded[name])
