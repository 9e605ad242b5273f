"""What the simulator served, request by request: tokens per class, never a price."""

import hashlib
from typing import Any

import msgspec

Usage = dict[str, Any]


class Entry(msgspec.Struct, kw_only=True):
    """One request to /v1/messages."""

    upstream_request_id: str
    sim_id: str
    path: str
    model_asked: str
    model_answered: str = ""
    stream: bool = False
    scenario: str = ""
    status: int = 0
    complete: bool = False
    client_gone: bool = False
    usage_start: Usage | None = None
    usage_last_sent: Usage | None = None
    """message_start's, overlaid by every message_delta that was written."""
    usage_final: Usage | None = None
    """Of what was served in full."""
    declined_models: list[str] = []
    stop_reason: str = ""
    content_empty: bool = False
    text_chars_sent: int = 0
    body_received_sha256: str = ""
    body_sent_sha256: str = ""

    def sent_usage(self, usage: Usage) -> None:
        """Overlay what has just been written."""
        known = {name: value for name, value in usage.items() if value is not None}
        self.usage_last_sent = {**(self.usage_last_sent or {}), **known}

    def close(self, sent: bytes, *, complete: bool) -> None:
        """The request is over."""
        self.complete = complete
        self.body_sent_sha256 = hashlib.sha256(sent).hexdigest()
        if complete:
            self.usage_final = self.usage_last_sent
