"""The clients from npm, at the versions of package-lock.json, in a folder beside this interpreter. Once per lock file.

No install script runs: Claude Code is a native program inside a package of its own, which npm chooses by platform.
"""

import hashlib
import os
import platform
import shutil
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Final

_HERE: Final = Path(__file__).parent
_FILES: Final = ("package.json", "package-lock.json", ".npmrc")
_SCRIPT: Final = "sdk.mjs"
_INSTALL_S_MAX: Final = 600
_TRIES: Final = 3


class NotInstalled(Exception):
    """Something is missing; the message says what, and what to do."""


@dataclass(frozen=True)
class Installed:
    """What can be run."""

    node: str
    script: Path
    """sdk.mjs, beside the packages it imports."""
    claude: Path
    versions: str


def install() -> Installed:
    """npm ci, unless this lock file has been installed before. Raises NotInstalled."""
    node, npm = shutil.which("node"), shutil.which("npm")
    if node is None or npm is None:
        raise NotInstalled("node and npm are needed (Node.js 18 or newer), e.g. apt-get install nodejs npm")
    _check_node(node)
    directory = Path(sys.prefix) / "clients"
    stamp = directory / "installed"
    lock = hashlib.sha256(b"".join((_HERE / name).read_bytes() for name in _FILES)).hexdigest()
    if not stamp.exists() or stamp.read_text() != lock:
        directory.mkdir(parents=True, exist_ok=True)
        for name in _FILES:
            shutil.copyfile(_HERE / name, directory / name)
        _npm_ci(npm, directory)
        stamp.write_text(lock)
    shutil.copyfile(_HERE / _SCRIPT, directory / _SCRIPT)
    claude = _claude(directory)
    versions = f"node {_output(node, '--version')}, Claude Code {_output(str(claude), '--version')}"
    return Installed(node, directory / _SCRIPT, claude, versions)


def _check_node(node: str) -> None:
    version = _output(node, "--version")
    if int(version.lstrip("v").split(".")[0]) < 18:
        raise NotInstalled(f"Node.js 18 or newer is needed, this is {version}")


def _npm_ci(npm: str, directory: Path) -> None:
    """A registry that fails once is asked again."""
    for attempt in range(1, _TRIES + 1):
        command = [npm, "ci", "--no-progress", "--loglevel", "error"]
        done = subprocess.run(command, cwd=directory, capture_output=True, text=True, timeout=_INSTALL_S_MAX)
        if done.returncode == 0:
            return
        if attempt < _TRIES:
            time.sleep(attempt * 5)
    raise NotInstalled(f"npm ci failed:\n{done.stderr[-2000:]}")


def _claude(directory: Path) -> Path:
    """The program of this platform: the optional package that npm has taken."""
    found = sorted((directory / "node_modules" / "@anthropic-ai").glob("claude-code-*/claude"))
    libc = [path for path in found if path.parent.name.endswith("-musl") == (platform.libc_ver()[0] != "glibc")]
    for path in [*libc, *found]:
        if os.access(path, os.X_OK):
            return path
    raise NotInstalled(f"Claude Code has no program for {platform.system()} on {platform.machine()}")


def _output(program: str, argument: str) -> str:
    done = subprocess.run([program, argument], capture_output=True, text=True, timeout=60, check=True)
    return done.stdout.strip()
