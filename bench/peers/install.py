"""LiteLLM's proxy from PyPI and Portkey's gateway from npm, each set up once under build/peers, from a locked and hashed list.

No code of a package runs while it is set up: wheels only, and no install scripts (.npmrc). litellm.in says why that release.
package.json overrides @hono/node-server: with those that Portkey's own range allows today, every stream is answered with 500
("TypeError: immutable", Portkey-AI/gateway issue 1389); 1.14.1 is the last that streams.
"""

import hashlib
import json
import re
import shutil
import subprocess
import sys
import time
from collections import deque
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final

from bench.rig import BenchFailed

_HERE: Final = Path(__file__).parent
_BUILD: Final = _HERE.parents[1] / "build" / "peers"
_PORTKEY: Final = "@portkey-ai/gateway"
_SHOWN: Final = ("Collecting", "Downloading", "Installing", "Successfully", "ERROR", "added", "npm error")
_TAIL: Final = 15


def litellm() -> Path:
    """The program `litellm`, in a virtual environment of its own. Raises BenchFailed."""
    return _set_up("litellm", ("litellm.txt",), _litellm_commands) / "bin" / "litellm"


def portkey() -> Path:
    """The script that `node` runs. Raises BenchFailed."""
    _program("node")
    files = ("package.json", "package-lock.json", ".npmrc")
    return _set_up("portkey", files, _portkey_commands) / "node_modules" / _PORTKEY / "build" / "start-server.js"


def versions() -> str:
    """What is measured, for a report."""
    pinned = re.search(r"^litellm==(\S+)", (_HERE / "litellm.txt").read_text(), re.MULTILINE)
    gateway = json.loads((_HERE / "package.json").read_text())["dependencies"][_PORTKEY]
    node = subprocess.run([_program("node"), "--version"], capture_output=True, text=True, timeout=60, check=True)
    return f"LiteLLM {pinned and pinned[1]}; Portkey's gateway {gateway} on Node.js {node.stdout.strip()}"


def _litellm_commands(directory: Path) -> list[list[str]]:
    pip = [str(directory / "bin" / "python"), "-m", "pip", "install", "--progress-bar", "off"]
    locked = ["--disable-pip-version-check", "--require-hashes", "--only-binary", ":all:", "-r", "litellm.txt"]
    return [[sys.executable, "-m", "venv", str(directory)], [*pip, *locked]]


def _portkey_commands(directory: Path) -> list[list[str]]:
    return [[_program("npm"), "ci", "--prefix", str(directory), "--no-progress", "--loglevel", "error"]]


def _set_up(name: str, files: Sequence[str], commands: Callable[[Path], list[list[str]]]) -> Path:
    """Its directory, in which the commands were run for these very files: half a set-up is begun anew."""
    directory = _BUILD / name
    stamp = directory / "installed"
    lock = hashlib.sha256(b"".join((_HERE / file).read_bytes() for file in files)).hexdigest()
    if stamp.exists() and stamp.read_text() == lock:
        return directory
    print(f"setting up {name} in build/peers/{name} (once) …", flush=True)
    started = time.monotonic()
    shutil.rmtree(directory, ignore_errors=True)
    directory.mkdir(parents=True)
    for file in files:
        shutil.copyfile(_HERE / file, directory / file)
    for command in commands(directory):
        _run(name, command, directory)
    stamp.write_text(lock)
    print(f"{name} is set up ({time.monotonic() - started:.0f} s)", flush=True)
    return directory


def _run(name: str, command: list[str], directory: Path) -> None:
    """Run a step, with its progress shown; BenchFailed ends with its last lines."""
    tail: deque[str] = deque(maxlen=_TAIL)
    with subprocess.Popen(
        command, cwd=directory, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    ) as child:
        for line in child.stdout or ():
            tail.append(line)
            if line.startswith(_SHOWN):
                print(f"  {line.rstrip()[:100]}", flush=True)
    if child.returncode != 0:
        raise BenchFailed(f"{name} could not be set up; it needs its package index once:\n{''.join(tail)}")


def _program(name: str) -> str:
    found = shutil.which(name)
    if found is None:
        raise BenchFailed(
            f"{name} is needed for Portkey's gateway (Node.js 18 or newer), e.g. apt-get install nodejs npm"
        )
    return found
