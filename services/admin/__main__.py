"""`python -m services.admin`: read the settings, serve until SIGTERM. Or one of the commands below."""

import argparse
import asyncio
import sys
from collections.abc import Sequence

from nats.errors import Error as NatsError

from libs.common import config as settings
from libs.common import sealing, serving, streams
from services.admin import audit_chain, openapi
from services.admin.app import OPERATIONS, PREFIX, create_app
from services.admin.ledger import Ledger
from services.admin.problems import Problem

_CONNECT_S = 10


def main(arguments: Sequence[str]) -> int:
    """Exit code 2 for arguments or settings that cannot be read, 1 for a log that is not sound, 3 for a store that is away."""
    parser = argparse.ArgumentParser(prog="python -m services.admin", description="Serve the control plane.")
    commands = parser.add_subparsers(dest="command")
    commands.add_parser("new-secrets-key", help="print a key for RELAY_SECRETS_KEY")
    verify = commands.add_parser("audit-verify", help="verify the log of changes, and the archive against it")
    verify.add_argument("--expect", default="", metavar="HEAD", help="a head that an earlier run printed")
    commands.add_parser("api-reference", help="print a table of all operations")
    chosen = parser.parse_args(arguments)
    if chosen.command == "new-secrets-key":
        print(sealing.new_key())
        return 0
    if chosen.command == "api-reference":
        print(openapi.reference(OPERATIONS, prefix=PREFIX), end="")
        return 0
    try:
        config = settings.load(settings.AdminConfig)
        if chosen.command == "audit-verify":
            return asyncio.run(_verify(config, chosen.expect))
        app = create_app(config)
    except settings.ConfigError as error:
        print(f"admin: {error}", file=sys.stderr)
        return 2
    server = serving.plain_server(
        app, host=config.host, port=config.admin_port, trusted_proxies=config.admin_trusted_proxies
    )
    serving.run(server, log_level=config.log_level)
    return 0


async def _verify(config: settings.AdminConfig, expected: str) -> int:
    ledger = Ledger(config.clickhouse_url)
    try:
        async with asyncio.timeout(_CONNECT_S):
            broker = await streams.connect(config.nats_url, name="relay-audit-verify")
        try:
            verdict = await audit_chain.verify(
                broker.jetstream(),
                ledger,
                expected=expected,
                progress=lambda count: print(count, "changes", file=sys.stderr),
            )
        finally:
            await streams.close(broker)
    except (NatsError, TimeoutError, OSError, Problem) as error:
        print(f"a store does not answer: {error or type(error).__name__}", file=sys.stderr)
        return 3
    finally:
        await ledger.close()
    print(f"{verdict.changes} changes up to {verdict.last_sequence}; {verdict.unchained} are older than the chain")
    print(f"head {verdict.head}")
    faults = [
        *verdict.faults,
        *(["the expected head is nowhere in the log"] if expected and not verdict.expected_found else []),
    ]
    for fault in faults:
        print(f"FAULT {fault}")
    print("not sound" if faults else "sound")
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
