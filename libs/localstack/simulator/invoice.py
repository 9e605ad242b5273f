"""What the simulator served, request by request: tokens per class, never a price."""

from collections import deque
from typing import Any, Final

import msgspec

Usage = dict[str, Any]
ENTRIES_MAX: Final = 100_000


class Entry(msgspec.Struct, kw_only=True):
    """One request to /v1/messages: there from the moment it was read, and updated with every write."""

    upstream_request_id: str
    sim_id: str
    path: str
    body_received_sha256: str
    api_key_end: str = ""
    """The last four characters of its API key."""
    model_asked: str = ""
    model_answered: str = ""
    stream: bool = False
    scenario: str = ""
    status: int = 0
    """0 until an answer starts."""
    ended: bool = False
    complete: bool = False
    """The answer came to its own end: the whole JSON, or `message_stop`."""
    client_gone: bool = False
    """The caller left before we were done."""
    usage_start: Usage | None = None
    usage_last_sent: Usage | None = None
    """message_start's, overlaid by every message_delta that was written."""
    usage_final: Usage | None = None
    """The same, of an answer that came to its own end."""
    declined_models: list[str] = []
    """Models that handed over to a fallback before any output."""
    stop_reason: str = ""
    content_empty: bool = False
    """No content block, or one empty text."""
    text_chars_sent: int = 0
    """Unicode characters of text, thinking and tool input written to a stream."""
    body_sent_sha256: str = ""

    def sent_usage(self, usage: Usage) -> None:
        """Overlay what has just been written."""
        known = {name: value for name, value in usage.items() if value is not None}
        if self.usage_start is None:
            self.usage_start = known
        self.usage_last_sent = {**(self.usage_last_sent or {}), **known}

    def close(self, body_sha256: str) -> None:
        """The request is over."""
        self.ended = True
        self.body_sent_sha256 = body_sha256
        if self.complete:
            self.usage_final = self.usage_last_sent


class Invoice:
    """The newest entries; `dropped` counts the older ones that were forgotten."""

    def __init__(self) -> None:
        self._entries: deque[Entry] = deque(maxlen=ENTRIES_MAX)
        self._added = 0

    def add(self, entry: Entry) -> None:
        """Keep one."""
        self._entries.append(entry)
        self._added += 1

    def shown(self, sim_id: str = "") -> dict[str, Any]:
        """What `/_sim/invoice` answers: all entries, or those of one x-sim-id."""
        entries = [entry for entry in self._entries if not sim_id or entry.sim_id == sim_id]
        return {"entries": entries, "dropped": self._added - len(self._entries)}
