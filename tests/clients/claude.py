"""Runs Claude Code headless in a home of its own, and reads what it prints."""

import json
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

_RUN_S_MAX: Final = 30
_QUIET: Final = {
    "CLAUDE_CODE_DISABLE_NONESSENTIAL_TRAFFIC": "1",
    "DISABLE_AUTOUPDATER": "1",
    "DISABLE_ERROR_REPORTING": "1",
    "DISABLE_TELEMETRY": "1",
    "NO_PROXY": "127.0.0.1",
}
"""Nothing but the relay is asked; what would be all the same goes to the proxy, which is a trap."""


@dataclass(frozen=True)
class Answer:
    """One run of `claude -p`."""

    code: int
    events: list[dict[str, Any]]
    stderr: str

    @property
    def result(self) -> dict[str, Any]:
        """The event that closes a run."""
        results = [event for event in self.events if event["type"] == "result"]
        assert results, f"Claude Code ended with {self.code} and no result: {self.stderr[-1000:]}"
        return results[-1]


@dataclass(frozen=True)
class ClaudeCode:
    """A program, and a home directory that belongs to it alone."""

    program: Path
    home: Path
    trap_url: str

    def ask(self, prompt: str, *, url: str, credential: dict[str, str], model: str, work: Path) -> Answer:
        """`claude -p` in the directory `work`, allowed to write files; `credential` as environment variables."""
        for directory in (self.home, work):
            directory.mkdir(parents=True, exist_ok=True)
        environment = {
            **_QUIET,
            **credential,
            "ANTHROPIC_BASE_URL": url,
            "CLAUDE_CONFIG_DIR": str(self.home / "config"),
            "HOME": str(self.home),
            "HTTP_PROXY": self.trap_url,
            "HTTPS_PROXY": self.trap_url,
            "PATH": "/usr/local/bin:/usr/bin:/bin",
            "TMPDIR": str(self.home),
        }
        command = [str(self.program), "-p", prompt, "--output-format", "stream-json", "--verbose"]
        done = subprocess.run(
            [*command, "--allowedTools", "Write", "--model", model],
            cwd=work,
            env=environment,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=_RUN_S_MAX,
        )
        events = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
        return Answer(done.returncode, events, done.stderr)
