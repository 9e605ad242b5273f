"""`python -m services.admin`: read the settings, serve until SIGTERM."""

import sys

from libs.common import config as settings
from libs.common import serving
from services.admin.app import create_app


def main() -> int:
    """Exit code 2 for settings that cannot be read."""
    try:
        config = settings.load(settings.AdminConfig)
        app = create_app(config)
    except settings.ConfigError as error:
        print(f"admin: {error}", file=sys.stderr)
        return 2
    serving.run(serving.plain_server(app, host=config.host, port=config.admin_port), log_level=config.log_level)
    return 0


if __name__ == "__main__":
    sys.exit(main())
