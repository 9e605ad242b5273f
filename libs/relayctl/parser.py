"""From words to what was asked for: argparse, built for the one command that was typed."""

import argparse
import difflib
import sys
from collections.abc import Iterable, Sequence
from typing import Any, Final, Never

from libs.relayctl.failures import Misuse
from libs.relayctl.options import Option
from libs.relayctl.table import JSON, Command, Table

_NULL: Final = "null is given by the word null or by --no-FIELD, where a field says [null]"
PATH_PREFIX: Final = "path:"
_COMMON: Final = frozenset({"--url", "--context", "--timeout", "--refresh"})
_WIDTH_MAX: Final = 100


class Parser(argparse.ArgumentParser):
    """Raises Misuse where argparse would exit; no value that was given is repeated."""

    def __init__(self, prog: str, **options: Any) -> None:
        super().__init__(prog=prog, allow_abbrev=False, formatter_class=_Formatter, **options)

    def error(self, message: str) -> Never:
        """Raises Misuse."""
        raise Misuse(message, self.format_usage())

    def parse_all(self, words: Sequence[str]) -> argparse.Namespace:
        """Read the words. Raises Misuse."""
        found, unknown = self.parse_known_args(_with_dashes(words))
        if unknown:
            names = [word.partition("=")[0] for word in unknown if word.startswith("--")]
            hint = " (it goes before the resource)" if _COMMON.intersection(names) else ""
            self.error(f"unknown option {', '.join(names)}{hint}" if names else "too many arguments")
        return found


class _Formatter(argparse.HelpFormatter):
    """Long option names leave room for what they mean."""

    def __init__(self, prog: str) -> None:
        super().__init__(prog, max_help_position=34)
        self._width = min(self._width, _WIDTH_MAX)


def _with_dashes(words: Sequence[str]) -> list[str]:
    """`--ip_allowlist` is `--ip-allowlist`; the value after = stays."""
    changed: list[str] = []
    for number, word in enumerate(words):
        if word == "--":
            return [*changed, *words[number:]]
        name, equals, value = word.partition("=")
        changed.append(name.replace("_", "-") + equals + value if name.startswith("--") else word)
    return changed


def add_common(parser: argparse.ArgumentParser) -> None:
    """Options about the server. They stand before a resource: behind it, `--url` may be a field of a body."""
    group = parser.add_argument_group("options about the server")
    hidden: dict[str, Any] = {"default": argparse.SUPPRESS}
    group.add_argument("--url", metavar="URL", help="the control plane (RELAYCTL_URL)", **hidden)
    group.add_argument("--context", metavar="NAME", help="another context than the current one", **hidden)
    group.add_argument(
        "--timeout", metavar="SECONDS", type=_seconds, help="longest silence of the server (60)", **hidden
    )
    group.add_argument("--refresh", action="store_true", help="ask for the server's commands now, not hourly", **hidden)


def _seconds(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value <= 86_400:
        raise argparse.ArgumentTypeError("seconds, more than 0 and at most 86400")
    return value


def command_parser(command: Command) -> Parser:
    """The parser of one command."""
    parser = Parser(
        f"relayctl {command.words}",
        usage=_usage(command),
        description=_escaped(f"{command.summary}."),
        epilog=_who(command),
    )
    for name in command.positionals:
        parser.add_argument(f"{PATH_PREFIX}{name}", metavar=name.upper())
    groups = {"body": "fields", "query": "filters", "header": "headers"}
    for place, title in groups.items():
        found = [one for one in command.options if one.place == place]
        if found:
            has_null = any(one.is_nullable for one in found)
            group = parser.add_argument_group(title, _NULL if has_null else None)
            for option in found:
                _add_option(group, option)
            if place == "body":
                group.add_argument("--body", metavar="FILE", help="send this JSON as it is; - is standard input")
    _add_output(parser, command)
    return parser


def _usage(command: Command) -> str:
    needed = [one for one in command.options if one.is_required and not one.is_parent]
    words = [name.upper() for name in command.positionals] + [f"{one.flag} {one.metavar}" for one in needed]
    return _escaped(" ".join(["relayctl", command.words, *words, "[options]"]))


def _who(command: Command) -> str:
    who = "everybody, signed in or not" if command.is_open else ", ".join(command.roles)
    return _escaped(f"This is {command.method} {command.path}" + (f", for {who}." if who else "."))


def _add_option(group: Any, option: Option) -> None:
    marks = ["[null]"] * option.is_nullable + ["(required)"] * (option.is_required and not option.is_parent)
    help_text = _escaped(" ".join([option.help, *marks]).strip())
    suppressed = {"dest": option.dest, "default": argparse.SUPPRESS}
    if option.is_switch:
        group.add_argument(option.flag, action="store_const", const=True, help=help_text, **suppressed)
        group.add_argument(f"--no-{option.flag[2:]}", action="store_const", const=False, help="false", **suppressed)
        return
    if not option.is_parent:
        action = "append" if option.is_list else "store"
        group.add_argument(
            option.flag, action=action, type=_converter(option), metavar=option.metavar, help=help_text, **suppressed
        )
    if option.is_nullable:
        group.add_argument(
            f"--no-{option.flag[2:]}", action="store_const", const=None, help=argparse.SUPPRESS, **suppressed
        )


def _converter(option: Option) -> Any:
    def convert(words: str) -> Any:
        if option.is_secret and words == "-":
            return words  # asked for later
        try:
            return option.value_of(words)
        except ValueError as error:
            raise argparse.ArgumentTypeError(f"{error} is wanted") from None

    return convert


def _add_output(parser: Parser, command: Command) -> None:
    group = parser.add_argument_group("output")
    group.add_argument("--json", action="store_true", help="the server's JSON as it is; of a list, one item a line")
    group.add_argument("--output", metavar="FILE", default="", help="write to a file, for your eyes only")
    if len(command.media) > 1 and not any(one.flag == "--format" for one in command.options):
        group.add_argument("--accept", choices=command.media, default="", metavar="TYPE", help=", ".join(command.media))
    if command.is_list:
        shown = f"instead of {', '.join(command.columns)}" if command.columns else "as a table of these"
        group.add_argument("--columns", type=_names, metavar="A,B", help=shown)
    if command.page_by:
        group.add_argument("--limit-pages", type=_pages, metavar="N", help="stop after so many pages; all if not given")


def _names(words: str) -> list[str]:
    return [name.strip() for name in words.split(",") if name.strip()]


def _pages(words: str) -> int:
    if not (words.isascii() and words.isdigit() and 1 <= len(words) <= 9 and int(words)):
        raise argparse.ArgumentTypeError("a number from 1 is wanted")
    return int(words)


def resource_help(resource: str, commands: Iterable[tuple[str, str, str]]) -> str:
    """`relayctl keys --help`: verb, arguments, and what it does, of each."""
    lines = [(f"{verb} {arguments}".rstrip(), summary) for verb, arguments, summary in commands]
    return f"usage: relayctl {resource} VERB …\n\n{columns(lines)}\n\nrelayctl {resource} VERB --help says more.\n"


def columns(lines: Sequence[tuple[str, str]]) -> str:
    """Two columns."""
    wide = max((len(left) for left, _ in lines), default=0)
    return "\n".join(f"  {left.ljust(wide)}  {right}".rstrip() for left, right in lines)


def listed(command: Command) -> tuple[str, str, str]:
    """A command as a line of its resource's help."""
    return command.verb, " ".join(name.upper() for name in command.positionals), command.summary


def overview(table: Table | None, hand_made: Sequence[tuple[str, str]], url: str) -> str:
    """`relayctl --help` below its options."""
    parts = [f"commands:\n{columns(hand_made)}"]
    if table is None:
        parts.append(f"The commands of the API come from the server, and {url} does not answer.")
    else:
        lines = [(name, ", ".join(one.verb for one in table.of_resource(name))) for name in table.resources]
        parts.append(f"resources, from {url}:\n{columns(lines)}")
        parts.append("relayctl RESOURCE --help and relayctl RESOURCE VERB --help say more.")
    return "\n\n".join(parts) + "\n"


def nearest(word: str, known: Sequence[str]) -> str:
    """A question that helps, or nothing."""
    found = difflib.get_close_matches(word, known, n=1)
    return f"; is it {found[0]} you mean?" if found else ""


def is_json(content_type: str) -> bool:
    """Whether an answer of this type is JSON, and not lines of it."""
    return content_type.partition(";")[0].strip() == JSON


def print_usage(failure: Misuse) -> None:
    """How the command is used, before what is wrong."""
    if failure.usage:
        sys.stderr.write(failure.usage)


def _escaped(words: str) -> str:
    return words.replace("%", "%%")
