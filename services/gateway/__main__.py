"""`python -m services.gateway`: read the settings, serve until SIGTERM."""

import resource
import sys

from libs.common import config as settings
from libs.common import serving
from libs.common.metrics import Metrics
from services.gateway.app import create_app
from services.gateway.cycle import BodyBudget
from services.gateway.edge import make_server
from services.gateway.framing import ServerLimits


def main() -> int:
    """Exit code 2 for settings that cannot be read."""
    try:
        config = settings.load(settings.GatewayConfig)
        metrics = Metrics()
        budget = BodyBudget(config.bodies_in_flight_bytes_max)
        app = create_app(config, metrics=metrics, body_budget=budget)
    except settings.ConfigError as error:
        print(f"gateway: {error}", file=sys.stderr)
        return 2
    _raise_descriptor_limit()
    server = make_server(
        app,
        host=config.host,
        port=config.gateway_port,
        limits=ServerLimits(
            body_bytes_max=config.body_bytes_max,
            head_seconds=config.head_seconds,
            body_seconds=config.body_seconds,
            body_bytes_per_second_min=config.body_bytes_per_second_min,
            reader_stalled_seconds=config.reader_stalled_seconds,
            keep_alive_seconds=config.keep_alive_seconds,
        ),
        body_budget=budget,
        shutdown_seconds=config.shutdown_seconds,
        on_refused=lambda reason: metrics.add("relay_refusals_total", reason),
    )
    serving.run(server, log_level=config.log_level)
    return 0


def _raise_descriptor_limit() -> None:
    """Every caller and every upstream connection takes a descriptor; the usual soft limit of 1,024 is soon reached."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


if __name__ == "__main__":
    sys.exit(main())
