"""START HERE. One stack under load; faults one after another by name, or at random; the oracle judges after each, or at the end.

faults.py names what is done, load.py who asks meanwhile, oracle.py what must be true, mutations.py what it must find.
"""

import random
import time
from collections.abc import Callable, Iterable
from pathlib import Path

from tests.chaos import oracle
from tests.chaos.faults import FAULTS
from tests.chaos.load import Load
from tests.chaos.report import Outcome, Result
from tests.chaos.stack import Stack, running

WARM_S = 1.5
Say = Callable[[Result], None]


def named(home: Path, seed: int, names: Iterable[str], say: Say, code: Path | None = None) -> list[Result]:
    """Each fault under load, healed, quiet, and judged, before the next."""
    results = []
    with running(home, code) as stack:
        for name in names:
            results.append(_stage(stack, name, seed, [name]))
            say(results[-1])
            if results[-1].outcome == "broken":
                break  # the ledger stays wrong: what follows would be blamed for it
    return results


def at_random(home: Path, seed: int, seconds: float, say: Say) -> list[Result]:
    """Faults drawn with the seed for so long under one load that never stops; judged once, at the end."""
    chance = random.Random(seed)
    names: list[str] = []
    with running(home) as stack:
        result = _stage(stack, f"random, seed {seed}", seed, _drawn(chance, names, time.monotonic() + seconds))
        detail = f"{len(names)} faults: {', '.join(names)}; {result.detail}"
        result = Result(result.name, result.outcome, detail, result.seconds)
    say(result)
    return [result]


def _drawn(chance: random.Random, names: list[str], until: float) -> Iterable[str]:
    while time.monotonic() < until:
        names.append(chance.choice(sorted(FAULTS)))
        yield names[-1]


def _stage(stack: Stack, name: str, seed: int, faults: Iterable[str]) -> Result:
    started, chance = time.monotonic(), random.Random(f"{seed} {name}")
    load = Load(stack, chance.getrandbits(32))
    load.start()
    trouble = []
    try:
        time.sleep(WARM_S)
        for fault in faults:
            FAULTS[fault](stack, chance)
            time.sleep(WARM_S)
    except AssertionError as error:
        trouble.append(f"the fault could not be healed: {error}")
    finally:
        stack.toxics.heal()
        load.stop()
    problems, figures = oracle.judge(stack, load)
    problems = trouble + problems
    if not load.statuses()[200]:
        problems.append("no request was answered at all")
    detail = figures if not problems else f"{len(problems)} problems, the first: {problems[:4]}; {figures}"
    outcome: Outcome = "broken" if problems else "held"
    return Result(name, outcome, detail, time.monotonic() - started)
