"""`python -m services.accounting` runs a worker; `python -m services.accounting bootstrap` prepares streams and tables."""

import asyncio
import sys

import nats.errors
import uvloop

from libs.common import config as settings
from libs.common import serving
from services.accounting.app import bootstrap, create_app
from services.accounting.ledger import LedgerUnavailable

_BOOTSTRAP_S = 60
_USAGE = "usage: python -m services.accounting [bootstrap]"


def main(arguments: list[str]) -> int:
    """Exit code 2 for settings or arguments that cannot be read, 1 when a store does not answer."""
    try:
        config = settings.load(settings.AccountingConfig)
    except settings.ConfigError as error:
        print(f"accounting: {error}", file=sys.stderr)
        return 2
    match arguments:
        case []:
            server = serving.plain_server(create_app(config), host=config.host, port=config.accounting_port)
            serving.run(server, log_level=config.log_level)
            return 0
        case ["bootstrap"]:
            return _bootstrap(config)
        case _:
            print(_USAGE, file=sys.stderr)
            return 2


def _bootstrap(config: settings.AccountingConfig) -> int:
    try:
        uvloop.run(asyncio.wait_for(bootstrap(config), _BOOTSTRAP_S))
    except (LedgerUnavailable, nats.errors.Error, OSError) as error:
        print(f"bootstrap: NATS or ClickHouse does not do it: {error or type(error).__name__}", file=sys.stderr)
        return 1
    print("bootstrap: streams and tables are there")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
