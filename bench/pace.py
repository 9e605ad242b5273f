"""Arrivals of an open loop, from a process of its own: `python -m bench.pace RATE SECONDS HELD_MS`.

Writes `+` when a request arrives and `-` when it ends, each at its time: independent arrivals (a Poisson process), however the
reader is doing.
"""

import os
import random
import sys
import time
from typing import Final

_STDOUT: Final = 1
_SEED: Final = 3


def timetable(rate: float, seconds: float, held_s: float) -> list[tuple[float, bytes]]:
    """(second, mark) in order: a `-` for each `+`."""
    chance = random.Random(_SEED)
    moments: list[tuple[float, bytes]] = []
    for _ in range(int(rate * seconds)):
        arrives = chance.random() * seconds
        moments += [(arrives, b"+"), (arrives + chance.uniform(0.5, 1.5) * held_s, b"-")]
    return sorted(moments)


def main() -> None:
    """Write them."""
    moments = timetable(float(sys.argv[1]), float(sys.argv[2]), float(sys.argv[3]) / 1000)
    started, at = time.perf_counter(), 0
    while at < len(moments):
        now = time.perf_counter() - started
        due = at
        while due < len(moments) and moments[due][0] <= now:
            due += 1
        if due > at:
            os.write(_STDOUT, b"".join(mark for _, mark in moments[at:due]))
            at = due
        else:
            time.sleep(moments[at][0] - now)


if __name__ == "__main__":
    main()
