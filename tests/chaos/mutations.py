"""Guards of the rig: the relay is broken on purpose, in a copy, and the oracle must find it. Else its approval means nothing."""

import shutil
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from tests.chaos.report import Outcome, Result
from tests.chaos.stages import named

ROOT: Final = Path(__file__).parent.parent.parent


@dataclass(frozen=True)
class Mutation:
    """A change of one file, and the fault under which it shows."""

    name: str
    file: str
    old: str
    new: str
    fault: str


MUTATIONS: Final = (
    Mutation(
        "acknowledged before it is archived",
        "services/accounting/consumer.py",
        "        try:\n            async with _kept_alive(messages):",
        "        try:\n            await _each(messages, lambda one: one.ack())\n            async with _kept_alive(messages):",
        "kill clickhouse",
    ),
    Mutation(
        "settling twice debits twice",
        "libs/common/lua/settle.lua",
        "  if tonumber(version) >= tonumber(ARGV[2]) then",
        "  cost = '0'\n  if false then",
        "deliver again",
    ),
    Mutation(
        "the spool forgets its events",
        "services/gateway/recovery.py",
        "    found = reading.unpublished()",
        "    found: list[Found] = []",
        "kill gateway-1 without nats",
    ),
)


def stages(home: Path, seed: int) -> list[Result]:
    """`held`: the damage was found."""
    return [_found(home / mutation.name.replace(" ", "-"), seed, mutation) for mutation in MUTATIONS]


def _found(home: Path, seed: int, mutation: Mutation) -> Result:
    started = time.monotonic()
    code = home / "code"
    for folder in ("libs", "services"):
        shutil.copytree(ROOT / folder, code / folder, ignore=shutil.ignore_patterns("__pycache__"))
    path = code / mutation.file
    text = path.read_text()
    assert text.count(mutation.old) == 1, f"{mutation.name}: {mutation.file} does not have that line any more"
    path.write_text(text.replace(mutation.old, mutation.new))
    results = named(home / "stack", seed, [mutation.fault], lambda _: None, code)
    found = results[-1].outcome == "broken"
    outcome: Outcome = "held" if found else "broken"
    detail = f"found: {results[-1].detail[:300]}" if found else "the oracle did not see it"
    return Result(f"mutation: {mutation.name}", outcome, detail, time.monotonic() - started)
