"""`make bench-scaling`: measures replicas, keys, accounts, connections; writes bench/SCALING.md, and docs/capacity.md from it.

`python -m bench.scaling --capacity` only writes docs/capacity.md anew, from the result files as they are.
"""

import os
import resource
import shutil
import sys
import tempfile
from pathlib import Path
from typing import Final

from bench.rig import BenchFailed
from bench.scaling import capacity, flat, replicas, report, sizes
from bench.scaling.report import Found
from bench.scaling.stack import Stack
from libs.common import clock
from libs.localstack.process import ProcessFailed

_FILES_NEEDED: Final = 11_000


def main(arguments: list[str]) -> int:
    """Exit code 1 when a run cannot be trusted; what is not flat is said, not failed."""
    if arguments == ["--capacity"]:
        capacity.write()
        return 0
    started, load_before = clock.unix_ms(), os.getloadavg()[0]
    home = Path(tempfile.mkdtemp(prefix="relay-bench-"))
    try:
        _raise_file_limit()
        with Stack.running(home) as stack:
            found = _measured(stack)
    except (BenchFailed, ProcessFailed) as error:
        say(f"\nbench-scaling failed: {error}")
        return 1
    finally:
        shutil.rmtree(home, ignore_errors=True)
    seconds = (clock.unix_ms() - started) / 1000
    text = report.text(found, seconds=seconds, load_before=load_before)
    report.RESULTS.write_text(text)
    capacity.write()
    say(f"\n{text}\n{seconds:.0f} s; written to bench/SCALING.md and docs/capacity.md")
    return 0


def _measured(stack: Stack) -> Found:
    say("100,000 keys")  # first: a gateway remembers 100,000 keys, and forgets all when there is one more
    keys, first_seen, figures = flat.keys(stack, say)
    say("accounts")
    accounts = flat.accounts(stack, say)
    say("replicas")
    runs = replicas.measured(stack, say)
    limits = replicas.limits_shared(stack)
    say("open streams")
    streams, stream_bytes, streams_cpu = flat.connections(stack, flat.STREAMS, say, streams=True)
    say("idle connections")
    idle, idle_bytes, idle_cpu = flat.connections(stack, flat.IDLE, say, streams=False)
    say("parts of a request, and sizes")
    of_parts, part_runs = sizes.parts(stack, say)
    stored = sizes.stored_events(part_runs["json"])
    figures |= of_parts | stored | sizes.redis_sizes(stack)
    figures |= sizes.nats_limit(stack, stored["event_stored_bytes"].value)
    figures |= report.connection_figures(idle_bytes, stream_bytes, idle_cpu, streams_cpu)
    say("reading the ledger")
    stack.check_ledger()
    return Found(keys, first_seen, accounts, runs, limits, idle, streams, figures, stack.served, stack.crowded)


def _raise_file_limit() -> None:
    """Children inherit it: a gateway with 10,000 connections needs as many files."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard != resource.RLIM_INFINITY and hard < _FILES_NEEDED:
        raise BenchFailed(f"{_FILES_NEEDED} open files are needed and {hard} allowed (ulimit -Hn)")
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def say(text: str) -> None:
    """Print at once."""
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
