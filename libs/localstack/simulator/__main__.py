"""`python -m libs.localstack.simulator --port P [--host H] [--api-key KEY] [--gap-ms N]`: serves until SIGTERM."""

import argparse
import asyncio
import signal
import sys

import uvloop

from libs.localstack.simulator.app import Simulator


async def _serve(options: argparse.Namespace) -> None:
    stopping = asyncio.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, stopping.set)
    simulator = Simulator(api_key=options.api_key, gap_ms=options.gap_ms)
    port = await simulator.server.listen(options.host, options.port)
    sys.stdout.write(f"the Claude API simulator listens at http://{options.host}:{port}\n")
    sys.stdout.flush()
    await stopping.wait()
    simulator.server.close()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(prog="python -m libs.localstack.simulator")
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, required=True, help="0: a free one, see the line it prints")
    parser.add_argument("--api-key", default="", help="the only credential it takes; without: any")
    parser.add_argument("--gap-ms", type=int, default=0, help="between the events of a stream")
    uvloop.run(_serve(parser.parse_args()))
