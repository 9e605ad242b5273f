"""Machines that notices are sent to, on loopback: names and certificates, a mail server, and what they were told."""

import asyncio
import base64
import contextlib
import ssl
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import trustme

from services.admin.notices.notices import Notice

CANARY = "c4n4ry"


def notice(**changes: Any) -> Notice:
    fields: dict[str, Any] = {
        "id": "ntc_01",
        "kind": "alert.opened",
        "title": "余额 <below> $5 & falling",
        "text": "Top up, or requests will be <refused>.",
        "severity": "critical",
        "account_id": "acct_1",
        "at_ms": 1_795_000_000_123,
        "data": {"balance_usd": "4.99"},
    }
    return Notice(**fields | changes)


def server_context(authority: trustme.CA, *names: str) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert(*names).configure_cert(context)
    return context


@dataclass
class Names:
    """A resolver: each question has the next answer, the last one stays."""

    answers: Sequence[Sequence[str]]
    asked: list[tuple[str, int]] = field(default_factory=list)

    async def __call__(self, host: str, port: int) -> Sequence[str]:
        self.asked.append((host, port))
        return self.answers[min(len(self.asked), len(self.answers)) - 1]


@dataclass
class MailServer:
    """SMTP, as far as a client needs it. `refusals`: a command to the answer it gets instead."""

    context: ssl.SSLContext | None = None
    refusals: dict[str, bytes] = field(default_factory=dict)
    port: int = 0
    commands: list[str] = field(default_factory=list)
    messages: list[bytes] = field(default_factory=list)

    async def speak(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            await self._converse(reader, writer)
        except (ConnectionError, asyncio.IncompleteReadError, ssl.SSLError):
            pass
        finally:
            writer.transport.abort()

    async def _converse(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(self.refusals.get("HELLO", b"220 mail.example\r\n"))
        while line := (await reader.readline()).decode().strip():
            self.commands.append(line)
            verb = line.split(":", 1)[0].split(" ", 1)[0].upper()
            writer.write(self.refusals.get(verb) or self._answer(verb))
            if verb == "DATA" and verb not in self.refusals:
                self.messages.append(await reader.readuntil(b"\r\n.\r\n"))
                writer.write(self.refusals.get("END", b"250 taken\r\n"))
            await writer.drain()
            if verb == "STARTTLS":
                assert self.context is not None
                await writer.start_tls(self.context)

    def _answer(self, verb: str) -> bytes:
        known = b"250-mail.example\r\n" + (b"250-STARTTLS\r\n" if self.context else b"") + b"250 AUTH PLAIN\r\n"
        return {
            "EHLO": known,
            "STARTTLS": b"220 go\r\n",
            "AUTH": b"235 welcome\r\n",
            "DATA": b"354 go\r\n",
            "QUIT": b"221 bye\r\n",
        }.get(verb, b"250 ok\r\n")

    def logins(self) -> list[bytes]:
        return [base64.b64decode(line.split()[2]) for line in self.commands if line.startswith("AUTH PLAIN")]


@contextlib.asynccontextmanager
async def mail(server: MailServer, *, tls_at_once: bool = False) -> AsyncIterator[MailServer]:
    tasks: set[asyncio.Task[None]] = set()

    def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        tasks.add(asyncio.get_running_loop().create_task(server.speak(reader, writer)))

    listener = await asyncio.start_server(accept, "127.0.0.1", 0, ssl=server.context if tls_at_once else None)
    server.port = listener.sockets[0].getsockname()[1]
    try:
        yield server
    finally:
        listener.close()
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await asyncio.sleep(0.01)
