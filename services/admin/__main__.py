"""`python -m services.admin`: read the settings, serve until SIGTERM. With `new-secrets-key`: print a RELAY_SECRETS_KEY."""

import sys
from collections.abc import Sequence

from libs.common import config as settings
from libs.common import sealing, serving
from services.admin.app import create_app


def main(arguments: Sequence[str]) -> int:
    """Exit code 2 for arguments or settings that cannot be read."""
    match arguments:
        case []:
            return _serve()
        case ["new-secrets-key"]:
            print(sealing.new_key())
            return 0
    print("usage: python -m services.admin [new-secrets-key]", file=sys.stderr)
    return 2


def _serve() -> int:
    try:
        config = settings.load(settings.AdminConfig)
        app = create_app(config)
    except settings.ConfigError as error:
        print(f"admin: {error}", file=sys.stderr)
        return 2
    serving.run(serving.plain_server(app, host=config.host, port=config.admin_port), log_level=config.log_level)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
