"""Pricing: figures worked out by hand, and the fold in fractions over random usages."""

import contextlib
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from libs.common.pricing import (
    MULTIPLIER_PPM_MAX,
    TOTAL_NANOS_MAX,
    Unpriced,
    can_price,
    is_free_refusal,
    price,
)
from libs.common.usage import AMOUNT_MAX, UsageUnreadable
from tests.invoice_fold import FAST, PRICES, STEPS, cost_nanos
from tests.unit.common.receipts import BOOK, MICRO, folded, receipt

# The four recordings whose price the issue gives (issue 2), as usages of our own; test_corpus_pricing.py reads the recordings.
HAND_COMPUTED: list[tuple[str, str, int, dict[str, Any]]] = [
    (
        # input (100 + 229) × 3 = 987; 5-minute writes 55,096 × 3.75 = 206,610; output (131 + 5) × 15 = 2,040
        "compaction, only in the iterations",
        "claude-sonnet-4-6",
        209_637,
        {
            "input_tokens": 229,
            "output_tokens": 5,
            "cache_creation_input_tokens": 0,
            "iterations": [
                {
                    "type": "compaction",
                    "input_tokens": 100,
                    "output_tokens": 131,
                    "cache_creation_input_tokens": 55_096,
                    "cache_creation": {"ephemeral_5m_input_tokens": 55_096, "ephemeral_1h_input_tokens": 0},
                },
                {"type": "message", "input_tokens": 229, "output_tokens": 5, "cache_creation_input_tokens": 0},
            ],
        },
    ),
    (
        # Neither model is in the published table: both rows of the shipped book are the public list's.
        # sonnet-5, 2/10: (1,128 + 1,283) × 2 = 4,822 and (135 + 10) × 10 = 1,450
        # opus-4-8, 5/25: 2,543 × 5 = 12,715 and 18 × 25 = 450; together 19,437.
        # The top level (2,411 in, 145 out) leaves the advisor out.
        "advisor on another model",
        "claude-sonnet-5",
        19_437,
        {
            "input_tokens": 2411,
            "output_tokens": 145,
            "server_tool_use": {"web_search_requests": 0, "web_fetch_requests": 0},
            "iterations": [
                {"type": "message", "input_tokens": 1128, "output_tokens": 135},
                {"type": "advisor_message", "model": "claude-opus-4-8", "input_tokens": 2543, "output_tokens": 18},
                {"type": "message", "input_tokens": 1283, "output_tokens": 10},
            ],
        },
    ),
    (
        # 404,500 × 3 = 1,213,500; 943 × 15 = 14,145; 10 searches of 0.01 USD = 100,000.
        # No step: the list has none for sonnet-4-5.
        "ten searches",
        "claude-sonnet-4-5-20250929",
        1_327_645,
        {
            "input_tokens": 404_500,
            "output_tokens": 943,
            "output_tokens_details": {"thinking_tokens": 261},
            "server_tool_use": {"web_search_requests": 10, "web_fetch_requests": 3},
        },
    ),
    (
        # 17 × 3 = 51; 1-hour writes 2,056 × 6 = 12,336; 100 × 15 = 1,500
        "one-hour write",
        "claude-sonnet-4-20250514",
        13_887,
        {
            "input_tokens": 17,
            "output_tokens": 100,
            "cache_creation_input_tokens": 2056,
            "cache_creation": {"ephemeral_5m_input_tokens": 0, "ephemeral_1h_input_tokens": 2056},
        },
    ),
]


@pytest.mark.parametrize(("model", "micros", "usage"), [row[1:] for row in HAND_COMPUTED], ids=lambda v: str(v)[:20])
def test_hand_computed(model: str, micros: int, usage: dict[str, Any]) -> None:
    assert receipt(usage, model).total_nanos == micros * MICRO
    assert folded(usage, model) == micros * MICRO


def test_the_200k_step_of_the_published_table() -> None:
    """At 200,000 input tokens, cached ones included, the old price; one more, and every token has the new one."""
    below = {
        "input_tokens": 1_000,
        "cache_read_input_tokens": 149_000,
        "cache_creation_input_tokens": 50_000,
        "cache_creation": {"ephemeral_5m_input_tokens": 30_000, "ephemeral_1h_input_tokens": 20_000},
        "output_tokens": 2_000,
    }
    # 1,000 × 3 + 149,000 × 0.30 + 30,000 × 3.75 + 20,000 × 6 + 2,000 × 15 = 3,000 + 44,700 + 112,500 + 120,000 + 30,000
    assert receipt(below, "claude-sonnet-4-6").total_nanos == 310_200 * MICRO
    # 1,001 × 6 + 149,000 × 0.60 + 30,000 × 7.50 + 20,000 × 12 + 2,000 × 22.50 = 6,006 + 89,400 + 225,000 + 240,000 + 45,000
    above = {**below, "input_tokens": 1_001}
    assert receipt(above, "claude-sonnet-4-6").total_nanos == 605_406 * MICRO
    for usage in (below, above):
        assert receipt(usage, "claude-sonnet-4-6").total_nanos == folded(usage, "claude-sonnet-4-6")


def test_the_100k_step_of_haiku_5_5() -> None:
    below = {"input_tokens": 60_000, "cache_read_input_tokens": 40_000, "output_tokens": 1_000}
    # 60,000 × 0.10 + 40,000 × 0.01 + 1,000 × 0.50 = 6,000 + 400 + 500
    assert receipt(below, "claude-haiku-5-5").total_nanos == 6_900 * MICRO
    # 60,001 × 0.50 + 40,000 × 0.05 + 1,000 × 2.50 = 30,000.5 + 2,000 + 2,500
    assert receipt({**below, "input_tokens": 60_001}, "claude-haiku-5-5").total_nanos == 34_500_500


def test_each_call_of_a_response_is_measured_against_the_step_by_itself() -> None:
    entries = [{"type": "message", "input_tokens": n, "output_tokens": 0} for n in (150_000, 150_000, 200_001)]
    # 300,000 × 3 + 200,001 × 6
    assert receipt({"iterations": entries}, "claude-sonnet-4-6").total_nanos == 2_100_006 * MICRO


def test_modifiers_are_read_from_the_response_and_multiply() -> None:
    usage: dict[str, Any] = {
        "input_tokens": 1_000_000,
        "output_tokens": 1_000_000,
        "server_tool_use": {"web_search_requests": 1},
    }
    search = 10_000 * MICRO
    for more, dollars in [
        ({}, "30"),
        ({"service_tier": "standard", "inference_geo": "global", "speed": "standard"}, "30"),
        ({"service_tier": "priority", "inference_geo": "not_available"}, "30"),
        ({"service_tier": "batch"}, "15"),
        ({"inference_geo": "us"}, "33"),
        ({"speed": "fast"}, "60"),
        ({"speed": "fast", "inference_geo": "us", "service_tier": "batch"}, "33"),
    ]:
        expected = int(dollars) * 10**9 + search
        assert receipt({**usage, **more}, "claude-opus-4-8").total_nanos == expected, more


def test_the_accounts_multiplier_applies_to_all() -> None:
    usage = {"input_tokens": 1000, "output_tokens": 10, "server_tool_use": {"web_search_requests": 2}}
    # (1,000 × 1 + 10 × 5 + 20,000) µUSD × 1.234567 = 21,050 × 1.234567 = 25,987.63535 µUSD
    assert receipt(usage, "claude-haiku-4-5", ppm=1_234_567).total_nanos == 25_987_635
    assert receipt(usage, "claude-haiku-4-5", ppm=0).total_nanos == 0


def test_rounded_once_halves_upwards() -> None:
    half = {"cache_read_input_tokens": 1}  # haiku-5-5: 10 nano-dollars a token; × 0.05 = a half
    assert receipt(half, "claude-haiku-5-5", ppm=50_000).total_nanos == 1
    assert receipt(half, "claude-haiku-5-5", ppm=49_999).total_nanos == 0
    five = {"iterations": [{"type": "message", **half} for _ in range(5)]}  # 2.5, not five times one
    priced = receipt(five, "claude-haiku-5-5", ppm=50_000)
    assert priced.total_nanos == 3 and sum(line.amount_nanos for line in priced.lines) == 3


def test_a_declined_hop_is_free_and_one_that_spoke_is_not() -> None:
    served = {"type": "fallback_message", "model": "claude-opus-4-8", "input_tokens": 100, "output_tokens": 10}

    def nanos(first: dict[str, Any], *declined: str) -> int:
        usage = {"input_tokens": 100, "output_tokens": 10, "iterations": [{"type": "message", **first}, served]}
        priced = receipt(usage, "claude-opus-4-8", asked="claude-fable-5", declined=declined)
        assert priced.total_nanos == folded(usage, "claude-opus-4-8", asked="claude-fable-5", declined=declined)
        return priced.total_nanos

    alone = 100 * 5_000 + 10 * 25_000
    assert nanos({"input_tokens": 100, "output_tokens": 0}) == alone
    assert nanos({"input_tokens": 100, "output_tokens": 7}, "claude-fable-5") == alone
    # It had said something: billed at the model that was asked for, 10/50.
    assert nanos({"input_tokens": 100, "output_tokens": 7}) == alone + 100 * 10_000 + 7 * 50_000


def test_a_response_that_says_little_costs_little() -> None:
    assert receipt({}, "claude-opus-4-7").total_nanos == 0
    assert receipt({"input_tokens": None, "server_tool_use": None, "iterations": []}, "claude-opus-4-7").lines == []


@pytest.mark.parametrize(
    ("model", "usage"),
    [
        ("claude-2.1", {}),
        ("", {"input_tokens": 1}),
        ("claude-haiku-4-5", {"speed": "fast"}),
        ("claude-opus-5", {"speed": "ludicrous"}),
        ("claude-opus-5", {"inference_geo": "moon"}),
        ("claude-opus-5", {"service_tier": "flex"}),
        ("claude-opus-5", {"iterations": [{"type": "advisor_message", "model": "claude-99"}]}),
    ],
)
def test_what_has_no_price_is_never_priced(model: str, usage: dict[str, Any]) -> None:
    with pytest.raises(Unpriced):
        receipt(usage, model)


@pytest.mark.parametrize("name", ["speed", "inference_geo", "service_tier"])
@pytest.mark.parametrize("value", [1, True, [], ["us"], {}, {"a": 1}, 0.5])
def test_modifiers_that_are_no_text(name: str, value: Any) -> None:
    with pytest.raises(UsageUnreadable, match=name):
        receipt({name: value}, "claude-opus-5")


def test_limits_keep_what_stores_cannot_hold_out_of_them() -> None:
    with pytest.raises(Unpriced):
        receipt({}, "claude-opus-5", ppm=-1)
    with pytest.raises(Unpriced):
        receipt({}, "claude-opus-5", ppm=MULTIPLIER_PPM_MAX + 1)
    searched = receipt({"server_tool_use": {"web_search_requests": 1}}, "claude-opus-5", ppm=MULTIPLIER_PPM_MAX)
    assert 2**62 < searched.lines[0].unit_price_attos < 2**63
    most = {"output_tokens": AMOUNT_MAX}
    priced = receipt(most, "claude-opus-4-7", ppm=13_000_000)  # 75,000 USD × 13
    assert priced.total_nanos == 975_000 * 10**9 < TOTAL_NANOS_MAX
    with pytest.raises(UsageUnreadable):
        receipt(most, "claude-opus-4-7", ppm=14_000_000)
    with pytest.raises(UsageUnreadable):
        receipt({"output_tokens": AMOUNT_MAX + 1}, "claude-opus-4-7")


def test_a_multiplier_finer_than_an_atto_dollar_cannot_happen() -> None:
    """The book's prices have four decimals at most, so every product with the modifiers and the multiplier is whole."""
    for row in BOOK.rows.values():
        for rates in filter(None, (row.rates, row.long_context, row.fast)):
            assert all(getattr(rates, name) % 10**8 == 0 for name in rates.__struct_fields__)
    usage = {"input_tokens": 1, "cache_creation_input_tokens": 1, "inference_geo": "us", "service_tier": "batch"}
    for ppm in (1, 333_333, 999_999):
        assert receipt(usage, "claude-haiku-5-5", ppm=ppm).total_nanos == folded(usage, "claude-haiku-5-5", ppm=ppm)


def test_lines_say_what_was_counted() -> None:
    usage = {
        "input_tokens": 10,
        "output_tokens": 3,
        "cache_read_input_tokens": 7,
        "server_tool_use": {"web_search_requests": 1},
    }
    lines = receipt(usage, "claude-haiku-4-5-20251001", ppm=2_000_000).lines
    assert [(line.price_class, line.quantity, line.unit_price_attos, line.amount_nanos) for line in lines] == [
        ("input", 10, 2 * 10**12, 20_000),
        ("cache_read", 7, 2 * 10**11, 1_400),
        ("output", 3, 10**13, 30_000),
        ("web_search", 1, 2 * 10**16, 20_000_000),
    ]
    assert {line.model for line in lines} == {"claude-haiku-4-5-20251001"}


def test_a_refusal_is_free_only_if_nothing_was_said() -> None:
    assert is_free_refusal("refusal", content_empty=True)
    assert not is_free_refusal("refusal", content_empty=False)
    assert not is_free_refusal("end_turn", content_empty=True)
    assert not is_free_refusal(None, content_empty=True)


def test_can_price_agrees_with_price() -> None:
    for model in (*PRICES, "claude-haiku-4-5-20251001", "claude-2.1", "", "claude-opus-4-7-2025"):
        for speed in (None, "standard", "fast", "warp"):
            for geo in (None, "us", "global", "moon"):
                try:
                    receipt({"speed": speed, "inference_geo": geo}, model)
                    priced = True
                except Unpriced:
                    priced = False
                assert can_price(BOOK, model, speed=speed, inference_geo=geo) is priced, (model, speed, geo)


DATED = {"claude-haiku-4-5": "claude-haiku-4-5-20251001", "claude-sonnet-4": "claude-sonnet-4-0"}
models = st.sampled_from([*PRICES, *DATED.values()])
tokens = st.none() | st.integers(0, 400_000) | st.sampled_from([0, 1, 99_999, 100_000, 100_001, 200_000, 200_001])
splits = st.none() | st.fixed_dictionaries(
    {}, optional={"ephemeral_5m_input_tokens": tokens, "ephemeral_1h_input_tokens": tokens}
)
AMOUNTS = {
    "input_tokens": tokens,
    "output_tokens": tokens,
    "cache_creation_input_tokens": tokens,
    "cache_read_input_tokens": tokens,
    "cache_creation": splits,
}
plain_entries = st.fixed_dictionaries(
    {"type": st.sampled_from(["message", "compaction", "advisor_message"])},
    optional={**AMOUNTS, "model": st.none() | models},
)
fallback_entries = st.fixed_dictionaries({"type": st.just("fallback_message"), "model": models}, optional=AMOUNTS)
iterations = st.none() | st.lists(plain_entries, max_size=4) | st.lists(plain_entries | fallback_entries, max_size=4)
usages: st.SearchStrategy[dict[str, Any]] = st.fixed_dictionaries(
    {},
    optional={
        **AMOUNTS,
        "iterations": iterations,
        "inference_geo": st.sampled_from([None, "us", "global", "not_available", ""]),
        "service_tier": st.sampled_from([None, "standard", "batch", "priority"]),
        "speed": st.sampled_from([None, "standard"]),
        "server_tool_use": st.none() | st.fixed_dictionaries({"web_search_requests": st.none() | st.integers(0, 50)}),
    },
)
multipliers = st.just(1_000_000) | st.integers(0, 5_000_000)


@settings(max_examples=400)
@given(usages, models, models, st.booleans(), multipliers, st.lists(models, max_size=2))
def test_the_product_equals_the_fold(
    usage: dict[str, Any], asked: str, answered: str, ttl_1h: bool, ppm: int, declined: list[str]
) -> None:
    priced = receipt(usage, answered, asked=asked, ttl_1h=ttl_1h, ppm=ppm, declined=tuple(declined))
    assert priced.total_nanos == cost_nanos(
        usage,
        model_asked=asked,
        model_answered=answered,
        cache_ttl_1h=ttl_1h,
        multiplier_ppm=ppm,
        declined_models=declined,
    )
    assert sum(line.amount_nanos for line in priced.lines) == priced.total_nanos
    for line in priced.lines:
        assert line.quantity > 0 and abs(line.amount_nanos * 10**9 - line.quantity * line.unit_price_attos) < 10**9


@given(usages, st.sampled_from(sorted(FAST)), st.booleans(), multipliers)
def test_the_product_equals_the_fold_in_fast_mode(usage: dict[str, Any], model: str, ttl_1h: bool, ppm: int) -> None:
    usage = {**usage, "speed": "fast"}
    for entry in usage.get("iterations") or []:
        entry["model"] = model  # a model without a fast price is refused; that has its own test
    assert receipt(usage, model, ttl_1h=ttl_1h, ppm=ppm).total_nanos == folded(usage, model, ttl_1h=ttl_1h, ppm=ppm)


@given(st.sampled_from(sorted(STEPS)), st.integers(-2, 2), st.integers(0, 90_000), st.booleans())
def test_the_product_equals_the_fold_around_the_steps(model: str, off: int, read: int, ttl_1h: bool) -> None:
    usage = {
        "input_tokens": STEPS[model][0] - read + off - 50,
        "cache_read_input_tokens": read,
        "cache_creation_input_tokens": 50,
        "output_tokens": 9,
    }
    assert receipt(usage, model, ttl_1h=ttl_1h).total_nanos == folded(usage, model, ttl_1h=ttl_1h)


@given(usages, models, st.sampled_from(["input_tokens", "output_tokens", "cache_read_input_tokens"]), tokens)
def test_more_tokens_never_cost_less(usage: dict[str, Any], model: str, name: str, more: int | None) -> None:
    usage = {**usage, "iterations": None}
    grown = {**usage, name: (usage.get(name) or 0) + (more or 0)}
    assert receipt(grown, model).total_nanos >= receipt(usage, model).total_nanos


def json_values() -> st.SearchStrategy[Any]:
    names = st.sampled_from(
        [*AMOUNTS, "iterations", "type", "model", "speed", "inference_geo", "service_tier", "server_tool_use", "x"]
    ) | st.text(max_size=3)
    words = st.sampled_from(["message", "compaction", "fallback_message", "us", "fast", "batch", "claude-opus-5"])
    leaves = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5) | words
    return st.recursive(
        leaves, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(names, inner, max_size=6), max_leaves=25
    )


@given(st.dictionaries(st.sampled_from([*AMOUNTS, "iterations", "speed", "server_tool_use", "y"]), json_values()))
def test_arbitrary_json_as_usage_is_refused_in_our_words(usage: dict[str, Any]) -> None:
    with contextlib.suppress(Unpriced, UsageUnreadable):
        assert 0 <= receipt(usage, "claude-opus-5").total_nanos <= TOTAL_NANOS_MAX


def test_messages_stay_short_whatever_the_usage_holds() -> None:
    long = "x" * 10_000
    for usage in ({f"{n}{long}": 1 for n in range(50)}, {"speed": long}, {"iterations": [{"type": long}]}):
        with pytest.raises((Unpriced, UsageUnreadable)) as refused:
            receipt(usage, "claude-opus-5")
        assert len(str(refused.value)) < 500


def test_price_is_a_pure_function_of_its_arguments() -> None:
    usage = {"input_tokens": 5, "iterations": [{"type": "message", "input_tokens": 5}]}
    before = repr(usage)
    again = [
        price(
            usage, book=BOOK, model_asked="a", model_answered="claude-opus-5", cache_ttl_1h=False, multiplier_ppm=10**6
        )
        for _ in range(2)
    ]
    assert again[0] == again[1] and repr(usage) == before
