"""`python -m tests.chaos`: faults under load, and a ledger that must come out right. Exit code 1 if a promise is broken."""

import argparse
import os
import secrets
import signal
import sys
import tempfile
import time
from pathlib import Path

from tests.chaos import mutations
from tests.chaos.faults import FAULTS, SHORT
from tests.chaos.report import Result
from tests.chaos.stages import at_random, named

STACK_FOR = 10
"""Faults one after another on one stack: what went wrong on one blames no other."""
SHARE_NAMED = 0.6
"""Of the time: for faults by name, one after another; the rest is for random ones."""


def main(arguments: list[str]) -> int:
    """Runs what is asked for, prints as it goes."""
    parser = argparse.ArgumentParser(prog="python -m tests.chaos", description=__doc__)
    parser.add_argument("--seconds", type=float, default=600)
    parser.add_argument("--seed", type=int, default=secrets.randbits(32))
    parser.add_argument("--only", action="append", metavar="FAULT", help="by name, several times")
    parser.add_argument("--short", action="store_true", help="a selection of some two minutes, for CI")
    parser.add_argument("--no-guards", action="store_true", help="without the deliberately broken copies")
    parser.add_argument("--list", action="store_true", help="the names of all faults")
    chosen = parser.parse_args(arguments)
    if chosen.list:
        print("\n".join(FAULTS))
        return 0
    _no_strangers()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that what was started is stopped
    print(f"chaos: seed {chosen.seed}", flush=True)
    with tempfile.TemporaryDirectory(prefix="chaos-") as home:
        results = _run(Path(home), chosen)
    print(f"\n{'outcome':8} {'s':>5}  stage")
    for one in results:
        print(f"{one.outcome:8} {one.seconds:5.0f}  {one.name}")
    broken = [one.name for one in results if one.outcome == "broken"]
    print(
        f"\nseed {chosen.seed}: {len(results)} stages, {len(broken)} broken{': ' + ', '.join(broken) if broken else ''}"
    )
    return int(bool(broken))


def _run(home: Path, chosen: argparse.Namespace) -> list[Result]:
    started = time.monotonic()
    if chosen.only:
        return named(home / "named", chosen.seed, chosen.only, _say)
    if chosen.short:
        return named(home / "named", chosen.seed, SHORT, _say)
    results: list[Result] = []
    names = list(FAULTS)
    for number in range(0, len(names), STACK_FOR):
        if time.monotonic() - started > chosen.seconds * SHARE_NAMED:
            print(f"no time left for: {', '.join(names[number:])} (random ones follow)", flush=True)
            break
        results += named(home / f"named-{number}", chosen.seed, names[number : number + STACK_FOR], _say)
    if not chosen.no_guards:
        for one in mutations.stages(home / "guards", chosen.seed):
            results.append(one)
            _say(one)
    left = max(chosen.seconds - (time.monotonic() - started), 30)
    return results + at_random(home / "random", chosen.seed, left, _say)


def _say(result: Result) -> None:
    print(f"{result.outcome:8} {result.seconds:5.1f} s  {result.name}: {result.detail}", flush=True)


def _no_strangers() -> None:
    """No credential or proxy of this machine is used."""
    for name in list(os.environ):
        if name.startswith(("ANTHROPIC_", "RELAY_")) or name.lower().endswith("_proxy"):
            del os.environ[name]


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
