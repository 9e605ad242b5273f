"""HAProxy in front of several gateways: who cannot be reached is passed over before anything is sent to him."""

import shutil
import socket
from collections.abc import Mapping
from pathlib import Path
from typing import Final, Literal

from libs.localstack.process import Process, ProcessFailed, port_answers

_START_S: Final = 10
_CONFIG: Final = """global
  maxconn 4000
  stats socket ipv4@127.0.0.1:{admin_port} level admin
defaults
  mode http
  option http-server-close
  option redispatch 1
  retries 3
  retry-on conn-failure
  timeout connect 2s
  timeout client 660s
  timeout server 660s
frontend relay
  bind 127.0.0.1:{port}
  default_backend gateways
backend gateways
  balance leastconn
  option httpchk GET /readyz
  default-server check inter 500ms fall 2 rise 1
{servers}
"""
MISSING: Final = "HAProxy is not installed: apt-get install haproxy (or your system's package of that name)"


def start_balancer(
    directory: Path,
    logs: Path,
    *,
    port: int,
    admin_port: int,
    gateways: Mapping[str, int],
    environment: Mapping[str, str] | None = None,
) -> Process:
    """Listen on `port` for gateways by name → port. Raises ProcessFailed, also where HAProxy is not installed.

    Connections to gateways are not kept, so that a gateway that ends never has one on which a request could be lost.
    """
    program = shutil.which("haproxy") or shutil.which("haproxy", path="/usr/sbin:/usr/local/sbin")
    if program is None:
        raise ProcessFailed(MISSING)
    directory.mkdir(parents=True, exist_ok=True)
    config = directory / "haproxy.cfg"
    servers = "\n".join(f"  server {name} 127.0.0.1:{at}" for name, at in gateways.items())
    config.write_text(_CONFIG.format(port=port, admin_port=admin_port, servers=servers))
    command = [program, "-db", "-f", str(config)]
    process = Process.start("balancer", command, log=logs / "balancer.log", environment=environment)
    return process.wait_until(port_answers(port), seconds=_START_S)


def set_state(admin_port: int, gateway: str, state: Literal["drain", "ready"]) -> None:
    """`drain`: no new requests for that gateway; what it has goes on. `ready`: it is asked again. Raises OSError."""
    with socket.create_connection(("127.0.0.1", admin_port), timeout=5) as connection:
        connection.sendall(f"set server gateways/{gateway} state {state}\n".encode())
        if answer := connection.recv(1024).strip():
            raise OSError(answer.decode(errors="replace"))
