"""From a command line to an exit code: which command is meant, and how a failure is told."""

import argparse
import contextlib
import os
import sys
from collections.abc import Iterator, Sequence
from typing import Final

from libs.relayctl import config, options, parser, text
from libs.relayctl.commands import HAND_MADE, HandMade
from libs.relayctl.failures import DONE, INTERRUPTED, PIPE_CLOSED, Failure, Misuse, Trouble
from libs.relayctl.parser import Parser
from libs.relayctl.session import Session
from libs.relayctl.table import Command, Table

_TIMEOUT_S: Final = 60.0
_HELP: Final = ("-h", "--help")
_DESCRIPTION: Final = "The relay's control plane on the command line."


def main(arguments: Sequence[str]) -> int:
    """The exit code: see failures.py."""
    try:
        code = _main(arguments)
        sys.stdout.flush()
    except SystemExit as end:  # argparse has shown its help
        return int(end.code or DONE)
    except Failure as failure:
        if isinstance(failure, Misuse):
            parser.print_usage(failure)
        sys.stderr.write(f"relayctl: {text.plain(text.without_secrets(str(failure), ()))}\n")
        return failure.exit_code
    except KeyboardInterrupt:
        return INTERRUPTED
    except OSError as error:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # so that the interpreter's own flush is quiet
        if isinstance(error, BrokenPipeError):
            return PIPE_CLOSED
        sys.stderr.write(f"relayctl: standard output cannot be written: {error.strerror or type(error).__name__}\n")
        return Trouble.exit_code
    return code


def _main(arguments: Sequence[str]) -> int:
    root = _root()
    found = root.parse_all(arguments)
    words = [*(options.dashed(word) for word in found.words[:1]), *found.words[1:]]
    if not words:
        return _overview(root, found)
    if found.help:
        words.append("--help")
    hand_made = next((one for one in HAND_MADE if tuple(words[: len(one.words)]) == one.words), None)
    if hand_made is not None:
        return _run_hand_made(hand_made, words[len(hand_made.words) :], found)
    with _session(found) as session:
        return _run(session, words, anew=getattr(found, "refresh", False))


def _root() -> Parser:
    root = Parser("relayctl", description=_DESCRIPTION, add_help=False, usage="relayctl [options] RESOURCE VERB …")
    root.add_argument("-h", "--help", action="store_true", help="show this, and every command")
    root.add_argument("words", nargs=argparse.REMAINDER, help=argparse.SUPPRESS)
    parser.add_common(root)
    return root


@contextlib.contextmanager
def _session(found: argparse.Namespace, *, makes_context: bool = False) -> Iterator[Session]:
    settings = config.load(
        url=getattr(found, "url", ""), context=getattr(found, "context", ""), context_is_new=makes_context
    )
    session = Session(settings, timeout_seconds=getattr(found, "timeout", _TIMEOUT_S))
    try:
        yield session
    finally:
        session.client.close()


def _overview(root: Parser, found: argparse.Namespace) -> int:
    with _session(found) as session:
        table = session.documents.read_for_help()
        hand_made = [(" ".join(one.words), one.summary) for one in HAND_MADE]
        words = f"{root.format_help()}\n{parser.overview(table, hand_made, session.settings.url)}"
    if not found.help:
        raise Misuse("which resource?", words)
    sys.stdout.write(words)
    return DONE


def _run_hand_made(hand_made: HandMade, words: Sequence[str], found: argparse.Namespace) -> int:
    own = Parser(f"relayctl {' '.join(hand_made.words)}", description=f"{hand_made.summary.capitalize()}.")
    hand_made.arguments(own)
    parser.add_common(own)
    given = own.parse_all(words)
    everything = argparse.Namespace(**{**vars(found), **vars(given)})
    with _session(everything, makes_context=hand_made.makes_context) as session:
        return hand_made.run(session, everything)


def _run(session: Session, words: Sequence[str], *, anew: bool) -> int:
    if any(word in _HELP for word in words):
        table = session.documents.read_for_help()
        with contextlib.suppress(Misuse):  # told below, where it is known to be so
            if table is not None:
                _parsed(table, words)
    read = session.documents.read(anew=anew)
    try:
        command, arguments = _parsed(read.table, words)
    except Misuse as misuse:
        if not read.may_be_behind:
            raise
        try:  # the server may know what our copy of its document does not
            newer = session.documents.read(anew=True)
        except Failure:
            raise misuse from None
        command, arguments = _parsed(newer.table, words)
    return session.run(command, arguments)


def _parsed(table: Table, words: Sequence[str]) -> tuple[Command, argparse.Namespace]:
    """The command that is meant, and what it was given. Raises Misuse; SystemExit once help was shown."""
    resource, *rest = words
    commands = table.of_resource(resource)
    if not commands:
        raise Misuse(f"there is no resource {resource}{parser.nearest(resource, table.resources)}")
    if not rest or rest[0] in _HELP:
        shown = parser.resource_help(resource, [*_hand_made_of(resource), *map(parser.listed, commands)])
        if not rest:
            raise Misuse("which verb?", shown)
        sys.stdout.write(shown)
        raise SystemExit(DONE)
    verb = options.dashed(rest[0])
    command = table.find(resource, verb)
    if command is None:
        known = [one.verb for one in commands]
        raise Misuse(f"{resource} has no verb {verb}{parser.nearest(verb, known)}", f"verbs: {', '.join(known)}\n")
    return command, parser.command_parser(command).parse_all(rest[1:])


def _hand_made_of(resource: str) -> list[tuple[str, str, str]]:
    return [(one.words[1], "", one.summary) for one in HAND_MADE if len(one.words) == 2 and one.words[0] == resource]
