"""Commands made by hand, where a person needs more than one call: signing in and out, contexts.

A new one is a function and a line in HAND_MADE; with two words, such as ("audit", "verify"), it stands among the verbs of
a resource, before the document's verb of that name.
"""

import sys
from argparse import Namespace
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

import msgspec

from libs.relayctl import client, config, output
from libs.relayctl.config import Context
from libs.relayctl.failures import DONE, Misuse, NotAllowed, Refused, Trouble
from libs.relayctl.parser import Parser
from libs.relayctl.session import Session, ask_secret, decoded
from libs.relayctl.table import Command

SIGN_IN: Final = "signing_in_sign_in"
SIGN_OUT: Final = "signing_in_sign_out"
WHO: Final = "signing_in_me"


def _nothing(_: Parser) -> None:
    pass


@dataclass(frozen=True, kw_only=True)
class HandMade:
    """One of them. It has the options about the server, and those that `arguments` adds."""

    words: tuple[str, ...]
    summary: str
    run: Callable[[Session, Namespace], int]
    """Returns the exit code. Raises Failure."""
    arguments: Callable[[Parser], None] = _nothing
    makes_context: bool = False
    """`--context` may name one that is not there yet."""


def login(session: Session, arguments: Namespace) -> int:
    """Keep a session's token, or one that was made elsewhere."""
    if arguments.with_token:
        kept = _with_token(session)
    else:
        email = arguments.email or _ask_email()
        password = ask_secret("password")
        session.client.hide(password)
        sent = msgspec.json.encode({"email": email, "password": password})
        answer = _answer(session, SIGN_IN, body=sent)
        token = answer.get("token")
        if not isinstance(token, str) or not config.is_token(token):
            raise Trouble("the server's answer has no token: it is older or newer than this relayctl")
        kept = _context(session, token, answer)
    settings = session.settings
    config.save(settings.config_file, settings.contexts.with_context(settings.context, kept))
    until = f" until {kept.expires_at}" if kept.expires_at else ""
    print_line(f"signed in to {kept.url} as {kept.actor}{until} (context {settings.context})")
    return DONE


def _with_token(session: Session) -> Context:
    token = ask_secret("token").strip()
    if not config.is_token(token):
        raise Misuse("that is no token")
    session.client.hide(token)
    return _context(session, token, _answer(session, WHO, headers=client.bearer(token)))


def _ask_email() -> str:
    if sys.stdin.isatty():
        sys.stderr.write("e-mail: ")
        sys.stderr.flush()
    email = sys.stdin.readline().strip()
    if not email:
        raise Misuse("an e-mail address is needed")
    return email


def _context(session: Session, token: str, answer: dict[str, Any]) -> Context:
    actor, expires_at = str(answer.get("actor", "")), str(answer.get("expires_at") or "")
    return Context(url=session.settings.url, token=token, actor=actor, expires_at=expires_at)


def logout(session: Session, _: Namespace) -> int:
    """End the session at the server, and forget its token whatever the server says."""
    settings = session.settings
    kept = settings.contexts.by_name.get(settings.context)
    if kept is None or not kept.token:
        raise NotAllowed(f"context {settings.context} is not signed in")
    if kept.url != settings.url:
        raise Misuse(f"context {settings.context} is of another server; leave --url and RELAYCTL_URL away")
    session.client.hide(kept.token)
    forgotten = replace(kept, token="", expires_at="")
    config.save(settings.config_file, settings.contexts.with_context(settings.context, forgotten))
    try:
        _answer(session, SIGN_OUT, headers=client.bearer(kept.token))
    except (NotAllowed, Refused):
        ended = "it was over already, or is a token that is ended where it was made"
    except Trouble as error:
        lasts = f"; the session lasts until {kept.expires_at}" if kept.expires_at else ""
        raise Trouble(f"signed out here, but the server was not told{lasts}: {error}") from None
    else:
        ended = "the session is over"
    print_line(f"signed out of {kept.url}: {ended}")
    return DONE


def whoami(session: Session, arguments: Namespace) -> int:
    """Who one is for the server."""
    if not session.client.has_token:
        raise NotAllowed("not signed in: relayctl login, or set RELAYCTL_TOKEN")
    command = _command(session, WHO)
    if arguments.json:
        return session.run(command, Namespace(json=True, output="", columns=None))
    answer = _answer(session, WHO)
    with output.opened("") as sink:
        output.write_one(sink, {**answer, "url": session.settings.url, "context": session.settings.context})
    return DONE


def context(session: Session, arguments: Namespace) -> int:
    """List the contexts, or change the current one."""
    settings = session.settings
    contexts = settings.contexts
    if arguments.name:
        if arguments.name not in contexts.by_name:
            raise Misuse(f"there is no context {arguments.name}; relayctl login --context {arguments.name} makes it")
        contexts = replace(contexts, current=arguments.name)
        config.save(settings.config_file, contexts)
    items = [
        {"context": name, "current": name == contexts.current, "url": one.url, "signed in as": one.actor if one.token else None}
        for name, one in contexts.by_name.items()
    ]  # fmt: skip
    with output.opened("") as sink:
        output.Rows(sink, ("context", "current", "url", "signed in as")).add(items)
    return DONE


def _command(session: Session, operation_id: str) -> Command:
    command = session.documents.read().table.by_id(operation_id)
    if command is None:
        command = session.documents.read(anew=True).table.by_id(operation_id)
    if command is None:
        raise Trouble("this server has no such operation: it is older or newer than this relayctl")
    return command


def _answer(
    session: Session, operation_id: str, *, body: bytes | None = None, headers: dict[str, str] | None = None
) -> dict[str, Any]:
    command = _command(session, operation_id)
    with session.client.open(command.method, command.path, body=body, headers=headers) as response:
        answer = decoded(session.client.read(response))
    if not isinstance(answer, dict):
        raise Trouble("the server's answer is no JSON object: it is older or newer than this relayctl")
    return answer


def print_line(words: str) -> None:
    """For the person, on standard error: standard output is for answers."""
    sys.stderr.write(words + "\n")


def _login_arguments(parser: Parser) -> None:
    parser.add_argument("--email", default="", help="asked for if not given; the password always is")
    parser.add_argument("--with-token", action="store_true", help="read a token from standard input instead")


def _whoami_arguments(parser: Parser) -> None:
    parser.add_argument("--json", action="store_true", help="the server's JSON as it is")


def _context_arguments(parser: Parser) -> None:
    parser.add_argument("name", nargs="?", default="", metavar="NAME", help="the one to use from now on")


HAND_MADE: Final[Sequence[HandMade]] = (
    HandMade(
        words=("login",), summary="sign in, and keep the session's token", run=login, arguments=_login_arguments,
        makes_context=True,
    ),
    HandMade(words=("logout",), summary="end the session", run=logout),
    HandMade(words=("whoami",), summary="who you are for the server", run=whoami, arguments=_whoami_arguments),
    HandMade(
        words=("context",), summary="list the contexts, or change the current one", run=context,
        arguments=_context_arguments,
    ),
)  # fmt: skip
