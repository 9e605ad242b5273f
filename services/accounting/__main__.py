"""`python -m services.accounting` runs a worker; with a command it does what an operator needs done (`--help`)."""

import argparse
import asyncio
import logging
import sys
from types import ModuleType
from typing import Final

import uvloop

from libs.common import config as settings
from libs.common import failpoints, serving
from libs.common.streams import StreamMissing
from services.accounting.app import bootstrap, create_app
from services.accounting.migrate import MigrationChanged
from services.accounting.operations import parked, rebuild, reconcile, replay, rerate
from services.accounting.operations.output import Output
from services.accounting.stores import TROUBLE, open_stores

_BOOTSTRAP_S: Final = 60
_CONNECT_S: Final = 10.0
_COMMANDS: Final[dict[str, ModuleType]] = {
    "reconcile": reconcile,
    "rebuild": rebuild,
    "replay": replay,
    "parked": parked,
    "rerate": rerate,
}


def main(arguments: list[str]) -> int:
    """Exit code 2 for settings or arguments that cannot be read, 1 when a store does not answer or a finding is bad."""
    parsed = _parser().parse_args(arguments)
    try:
        config = settings.load(settings.AccountingConfig)
        if parsed.command is None:
            server = serving.plain_server(create_app(config), host=config.host, port=config.accounting_port)
            serving.run(server, log_level=config.log_level)
            return 0
        failpoints.arm_all(config.failpoints)
    except ValueError as error:
        print(f"accounting: {error}", file=sys.stderr)
        return 2
    logging.basicConfig(level=logging.ERROR, format="%(message)s")
    work = _bootstrap(config) if parsed.command == "bootstrap" else _operate(parsed, config)
    try:
        return uvloop.run(work)
    except (*TROUBLE, StreamMissing, MigrationChanged) as error:
        print(f"{parsed.command}: a store does not do it: {error or type(error).__name__}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print(f"{parsed.command}: broken off; run it again", file=sys.stderr)
        return 1


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m services.accounting", description="Without a command: a worker.")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND")
    commands.add_parser("bootstrap", help="create streams and tables where they are missing")
    for name, module in _COMMANDS.items():
        command = commands.add_parser(name, help=module.HELP, description=module.HELP)
        command.add_argument("--json", action="store_true", help="one JSON object a line")
        module.add_arguments(command)
    return parser


async def _bootstrap(config: settings.AccountingConfig) -> int:
    await asyncio.wait_for(bootstrap(config), _BOOTSTRAP_S)
    print("bootstrap: streams and tables are there")
    return 0


async def _operate(parsed: argparse.Namespace, config: settings.AccountingConfig) -> int:
    async with open_stores(config, name=f"relay-{parsed.command}", connect_s=_CONNECT_S) as stores:
        code: int = await _COMMANDS[parsed.command].run(parsed, stores, Output(as_json=parsed.json))
        return code


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
