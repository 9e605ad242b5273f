"""Parking: only what is hopeless, with its reason, once, and never so large that the server cuts the connection."""

from dataclasses import dataclass, field
from typing import Any

import pytest
from nats.js.api import PubAck
from nats.js.client import JetStreamContext

from libs.common import subjects
from libs.common.metrics import Metrics
from services.accounting.parking import Trouble, is_hopeless, one_line, park
from services.accounting.settlement import Patience
from tests.unit.accounting.samples import Wire

DAY_S = 86_400.0


@dataclass
class Dlq(JetStreamContext):
    """The DLQ stream: keeps one message of each id."""

    messages: dict[str, tuple[str, bytes, dict[str, str]]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        super().__init__(Wire())

    async def publish(self, subject: str, payload: bytes = b"", *_: Any, **options: Any) -> PubAck:
        assert options["stream"] == subjects.STREAM_DLQ
        headers = options["headers"]
        duplicate = headers["Nats-Msg-Id"] in self.messages
        self.messages.setdefault(headers["Nats-Msg-Id"], (subject, payload, headers))
        return PubAck(stream=subjects.STREAM_DLQ, seq=len(self.messages), duplicate=duplicate)


@pytest.mark.parametrize(
    ("patience", "deliveries", "age_s", "hopeless"),
    [
        ("poison", 4, DAY_S, False),
        ("poison", 5, 0, True),
        ("book", 5, DAY_S - 1, False),
        ("book", 5, DAY_S, True),
        ("account", 5, DAY_S - 1, False),
        ("account", 4, DAY_S * 2, False),
        ("account", 5, DAY_S, True),
        ("store", 10**6, DAY_S * 365, False),
    ],
)
def test_who_is_parked(patience: Patience, deliveries: int, age_s: float, hopeless: bool) -> None:
    assert is_hopeless(Trouble(b"", patience, "why"), deliveries=deliveries, age_s=age_s) is hopeless


@pytest.mark.anyio
async def test_what_is_parked_twice_is_there_once() -> None:
    dlq, metrics = Dlq(), Metrics()
    for _ in range(2):
        await park(dlq, metrics, subjects.DLQ_USAGE, b"payload", "Unpriced:\r\n model \x00 é", sequence=7)
    ((subject, payload, headers),) = dlq.messages.values()
    assert (subject, payload) == (subjects.DLQ_USAGE, b"payload")
    assert headers["Relay-Reason"] == "Unpriced: model ? ?"
    assert metrics.value("relay_events_parked_total", subjects.DLQ_USAGE) == 1


@pytest.mark.anyio
async def test_what_is_too_large_is_cut_and_says_so() -> None:
    dlq = Dlq()
    await park(dlq, Metrics(), subjects.DLQ_USAGE, b"x" * 1024 * 1024, "why", sequence=7)
    ((_, payload, headers),) = dlq.messages.values()
    assert len(payload) == 1_000_000
    assert headers["Relay-Cut-From-Bytes"] == str(1024 * 1024)


def test_a_reason_is_one_short_line() -> None:
    assert one_line("a\n\tb\x07\x1b[2J " + "c" * 1000).startswith("a b??[2J ccc")
    assert len(one_line("c" * 1000)) == 500
