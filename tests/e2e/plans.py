"""A thousand requests of every kind the simulator can answer, drawn with one seed; each says how it must end in the ledger."""

import json
import random
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

MODELS: Final = (
    "claude-sonnet-4-6",
    "claude-opus-4-7",
    "claude-haiku-4-5",
    "claude-haiku-4-5-20251001",
    "claude-opus-5-5",
    "claude-sonnet-4",
    "claude-haiku-5-5",
    "claude-fable-5-2",
    "claude-opus-4-1-20250805",
)
FAST_MODELS: Final = ("claude-opus-5-5", "claude-opus-5", "claude-opus-4-8", "claude-fable-5-2")
STREAM_ONLY_PARTIAL: Final = (
    "cut;after={after}",
    "cut;after={after};clean=1",
    "cut_inside_frame;after={after}",
    "error_event;after={after}",
    "error_event;after={after};type=rate_limit_error",
    "no_message_stop",
)
MEASURED: Final = (
    "text;tokens={tokens}", "advisor", "compaction", "fallback", "fallback_declined", "web_search;n=3", "refusal_mid", "geo_us",
    "batch_tier", "cache_1h;tokens={tokens}", "long_context;tokens=250000", "long_context;tokens=150000", "falling_usage",
    "one_byte;tokens=5", "split_utf8", "crlf", "coalesced", "unknown_event", "big_event;size=200000", "big_header", "gzip",
    "close", "early_hints", "slow;gap_ms=20",
)  # fmt: skip
FREE: Final = (
    "error:400", "error:404", "error:413", "error:500", "error:529", "refusal_empty", "no_usage", "reset", "redirect",
)  # fmt: skip
"""What takes a credential out of service (401, 403, 429, spend limits) is not among them: it is for tests of the pool."""
UNIQUE_FROM: Final = 13_000
"""Bodies are padded from here on, each to a length of its own, by which its row is known even if nothing else came back."""


@dataclass(kw_only=True)
class Plan:
    """One request. `leave`: when its caller goes, "" if he stays."""

    run: str
    number: int
    account: int
    key: int
    body: bytes
    model: str
    stream: bool
    scenario: str
    outcome: str
    ttl_1h: bool = False
    leave: str = ""

    @property
    def sim_id(self) -> str:
        """By which the invoice names it."""
        return f"{self.run}-{self.number}"


class Planner:
    """Draws plans. Accounts 0 and 1 drain, account 2 cancels when a caller leaves."""

    def __init__(self, chance: random.Random, *, accounts: int, cancelling: int) -> None:
        self._chance = chance
        self._run = f"{chance.getrandbits(64):x}"
        self._accounts = accounts
        self._cancelling = cancelling

    def draw(self, count: int) -> list[Plan]:
        """So many, mixed by weight."""
        kinds: list[Callable[[int], Plan]] = [
            self._ordinary, self._measured, self._fast, self._free, self._partial, self._broken_json, self._leaver
        ]  # fmt: skip
        weights = [300, 350, 30, 120, 90, 30, 80]
        return [self._chance.choices(kinds, weights)[0](number) for number in range(count)]

    def draw_answered(self, count: int) -> list[Plan]:
        """So many that are answered in full."""
        return [self._ordinary(number) for number in range(count)]

    def _ordinary(self, number: int) -> Plan:
        """Without a scenario: text, tools, thinking, caching for both times."""
        fields: dict[str, Any] = {}
        ttl = ""
        match self._chance.randrange(5):
            case 0:
                fields["thinking"] = {"type": "enabled", "budget_tokens": 1024}
            case 1:
                fields["tools"] = [
                    {"name": "t", "input_schema": {"type": "object", "properties": {"x": {"type": "integer"}}}}
                ]
                fields["tool_choice"] = {"type": "any"}
            case 2 | 3:
                ttl = self._chance.choice(("5m", "1h"))
                text = f"Group {self._chance.randrange(4)}. " + "A long instruction, the same for all. " * 300
                fields["system"] = [{"type": "text", "text": text, "cache_control": {"type": "ephemeral", "ttl": ttl}}]
        return self._plan(number, "", "measured", fields=fields, ttl_1h=ttl == "1h")

    def _measured(self, number: int) -> Plan:
        scenario = self._chance.choice(MEASURED).format(tokens=self._chance.randrange(1, 3000))
        return self._plan(number, scenario, "measured")

    def _fast(self, number: int) -> Plan:
        return self._plan(number, "fast", "measured", model=self._chance.choice(FAST_MODELS))

    def _free(self, number: int) -> Plan:
        return self._plan(number, self._chance.choice(FREE), "free")

    def _partial(self, number: int) -> Plan:
        after = self._chance.choice((0, 1, 2, 5))
        scenario = self._chance.choice(STREAM_ONLY_PARTIAL)
        sees_usage = after > 0 or "after" not in scenario
        return self._plan(number, scenario.format(after=after), "partial" if sees_usage else "free", stream=True)

    def _broken_json(self, number: int) -> Plan:
        return self._plan(number, self._chance.choice(("cut_json", "cut")), "free", stream=False)

    def _leaver(self, number: int) -> Plan:
        """Before the first byte, or after the first event of a stream; some drains take longer than the drain may."""
        cancels = self._chance.random() < 0.5
        account = (
            self._cancelling
            if cancels
            else self._chance.choice([n for n in range(self._accounts) if n != self._cancelling])
        )
        stream = self._chance.random() < 0.7
        leave = self._chance.choice(("before", "inside")) if stream else "before"
        too_long = not cancels and self._chance.random() < 0.3
        # who cancels is noticed within a second or at the next write: the answer must not be over by then
        first_ms = 0 if leave == "inside" else 4000 if cancels else 600
        gap_ms = 4000 if too_long else 250 if cancels else 30
        return self._plan(
            number,
            f"slow;gap_ms={gap_ms};first_ms={first_ms};tokens=40",
            "estimated" if cancels or too_long else "measured",
            stream=stream,
            account=account,
            leave=leave,
        )

    def _plan(
        self,
        number: int,
        scenario: str,
        outcome: str,
        *,
        fields: dict[str, Any] | None = None,
        model: str = "",
        stream: bool | None = None,
        account: int | None = None,
        ttl_1h: bool = False,
        leave: str = "",
    ) -> Plan:
        model = model or self._chance.choice(MODELS)
        stream = self._chance.random() < 0.5 if stream is None else stream
        body = {
            "model": model,
            "max_tokens": self._chance.randrange(50, 5000),
            "stream": stream,
            "messages": [{"role": "user", "content": f"Question {self._chance.randrange(10**6)}"}],
            **(fields or {}),
        }
        text = json.dumps(body).encode()
        assert len(text) < UNIQUE_FROM
        return Plan(
            run=self._run,
            number=number,
            account=self._chance.randrange(self._accounts) if account is None else account,
            key=self._chance.randrange(2),
            body=text.ljust(UNIQUE_FROM + number),
            model=model,
            stream=stream,
            scenario=scenario,
            outcome=outcome,
            ttl_1h=ttl_1h,
            leave=leave,
        )
