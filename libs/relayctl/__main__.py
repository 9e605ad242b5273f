"""`python -m libs.relayctl`, or `relayctl` where it is installed."""

import sys

from libs.relayctl.app import main


def run() -> None:
    """The command that is installed."""
    sys.exit(main(sys.argv[1:]))


if __name__ == "__main__":
    run()
