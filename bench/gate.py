"""`make bench-gate`: fails when a request costs the gateway much more CPU than what bench/gate.json remembers.

What is remembered is a ratio to Caddy's CPU in the same run, since microseconds of two machines do not compare. The record is
changed by hand, in a commit that says why.
"""

import shutil
import statistics
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Final

import msgspec

from bench import rig
from bench.rig import BenchFailed, Kind, Rig, Run
from libs.localstack.process import ProcessFailed

RECORD: Final = Path(__file__).parent / "gate.json"
SLACK: Final = 1.3
"""How many times the recorded ratio is too much: above the noise of a machine that does other things too."""
PAIRS: Final = 5
_CREDIT_USD: Final = "1000.00"
_Ratio = Annotated[float, msgspec.Meta(gt=0)]


class Record(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The gateway's CPU per request over Caddy's, when it was last looked at, and why it is what it is."""

    json: _Ratio
    sse: _Ratio
    date: str
    why: str


@dataclass(frozen=True)
class Check:
    """A load for both proxies: enough requests that their CPU time is many clock ticks."""

    kind: Kind
    connections: int
    caddy_requests: int
    relay_requests: int


CHECKS: Final = (
    Check("json", connections=32, caddy_requests=6_000, relay_requests=2_000),
    Check("sse", connections=250, caddy_requests=500, relay_requests=500),
)


def main() -> int:
    """Exit code 1 when a ratio is too large, or a run cannot be trusted."""
    started = time.monotonic()
    record = msgspec.json.decode(RECORD.read_bytes(), type=Record)
    recorded = {"json": record.json, "sse": record.sse}
    home = Path(tempfile.mkdtemp(prefix="relay-gate-"))
    try:
        with rig.running(home) as running:
            running.grant(_CREDIT_USD)
            ratios = {check.kind: statistics.median(_pairs(running, check)) for check in CHECKS}
            running.check_rows()
    except (BenchFailed, ProcessFailed) as error:
        _say(f"bench-gate failed: {error}")
        return 1
    finally:
        shutil.rmtree(home, ignore_errors=True)
    sentences = [verdict(kind, ratio, recorded[kind]) for kind, ratio in ratios.items()]
    _say("\n".join(sentences) + f"\n{time.monotonic() - started:.0f} s")
    return 1 if any(is_too_much(ratio, recorded[kind]) for kind, ratio in ratios.items()) else 0


def is_too_much(ratio: float, recorded: float) -> bool:
    """Whether the gate is shut."""
    return ratio > SLACK * recorded


def verdict(kind: str, ratio: float, recorded: float) -> str:
    """A sentence with both figures, and what is to be done."""
    costs = f"{kind}: a request costs the gateway {ratio:.2f} × Caddy's CPU"
    if is_too_much(ratio, recorded):
        return (
            f"{costs}; recorded is {recorded:.2f}, and more than {SLACK} × that is too much. Make it cheaper, or change "
            "bench/gate.json in a commit that says why."
        )
    if ratio * SLACK < recorded:
        return f"{costs}; recorded is {recorded:.2f}. So much cheaper should be recorded: bench/gate.json, by hand."
    return f"{costs}; recorded is {recorded:.2f}, up to {SLACK} × that is let through."


def _pairs(running: Rig, check: Check) -> list[float]:
    """Ratios of interleaved pairs, after one warming run of each."""
    loads = ((running.caddy, check.caddy_requests), (running.relay, check.relay_requests))
    for proxy, _ in loads:
        running.load(proxy, check.kind, requests=check.connections, connections=check.connections)
    ratios = []
    for _ in range(PAIRS):
        caddy, relay = (
            running.load(proxy, check.kind, requests=requests, connections=check.connections)
            for proxy, requests in loads
        )
        ratios.append(relay.cpu_us / caddy.cpu_us)
        _say(f"  {check.kind:<5} Caddy {_figures(caddy)}  gateway {_figures(relay)}  ratio {ratios[-1]:.2f}")
    return ratios


def _figures(run: Run) -> str:
    return f"{run.cpu_us:5.0f} µs, {run.busy:4.0%} of the core"


def _say(text: str) -> None:
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(main())
