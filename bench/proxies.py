"""The plain proxies of the benchmark, nginx and Caddy: each forwards every byte at once, keeps connections, does nothing else."""

import contextlib
import os
import shutil
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from bench.programs import BenchFailed, program
from libs.localstack.process import Process, free_port, port_answers

READY_S: Final = 30
IDLE_CONNECTIONS: Final = 2_000
"""To the upstream: more than are ever busy, so that none is opened anew under load."""
_CADDYFILE: Final = """{
	admin off
	auto_https off
	persist_config off
}
http://127.0.0.1:%d {
	bind 127.0.0.1
	reverse_proxy %s {
		flush_interval -1
		transport http {
			keepalive_idle_conns_per_host %d
		}
	}
}
"""
_NGINX: Final = """worker_processes 1; worker_rlimit_nofile 65536; daemon off;
pid {directory}/pid; error_log {directory}/error.log;
events {{ worker_connections 8192; }}
http {{
  access_log off; client_max_body_size 32m; keepalive_requests 100000000;
  client_body_temp_path {directory}/body; proxy_temp_path {directory}/proxy; fastcgi_temp_path {directory}/fastcgi;
  uwsgi_temp_path {directory}/uwsgi; scgi_temp_path {directory}/scgi;
  proxy_http_version 1.1; proxy_set_header Connection ""; proxy_buffering off; proxy_request_buffering off;
  {trust}
  upstream behind {{ server {address}; keepalive {idle}; keepalive_requests 100000000; }}
  server {{ listen 127.0.0.1:{port} backlog=4096; location / {{ proxy_pass {scheme}://behind; }} }}
}}
"""
_NGINX_MISSING: Final = "nginx is not installed: apt-get install nginx-light (or your system's package of that name)"


@dataclass(frozen=True)
class Proxy:
    """Something the load can be sent to."""

    name: str
    url: str
    pid: int
    beside: dict[str, int] = field(default_factory=dict)
    """Process ids that are shown apart."""
    headers: dict[str, str] = field(default_factory=dict)
    """What its callers send to be let in."""
    path: str = "/v1/messages"


@contextlib.contextmanager
def caddy(home: Path, upstream_url: str, *, authorities: Path | None = None) -> Iterator[Proxy]:
    """Caddy on one core. `authorities` vouch for an upstream with TLS."""
    directory, port = home / "caddy", free_port()
    directory.mkdir(parents=True)
    config = directory / "Caddyfile"
    config.write_text(_CADDYFILE % (port, upstream_url, IDLE_CONNECTIONS))
    environment = {**os.environ, "GOMAXPROCS": "1"}
    environment |= {name: str(directory) for name in ("HOME", "XDG_DATA_HOME", "XDG_CONFIG_HOME")}
    if authorities is not None:
        environment["SSL_CERT_FILE"] = str(authorities)
    command = [program("caddy"), "run", "--config", str(config), "--adapter", "caddyfile"]
    process = Process.start("caddy", command, log=directory / "caddy.log", environment=environment)
    with _serving(process, port) as proxy:
        yield proxy


@contextlib.contextmanager
def nginx(home: Path, upstream_url: str, *, authorities: Path | None = None) -> Iterator[Proxy]:
    """nginx with one worker. Raises BenchFailed where it is not installed."""
    directory, port = home / "nginx", free_port()
    directory.mkdir(parents=True)
    scheme, _, address = upstream_url.partition("://")
    trust = f"proxy_ssl_verify on; proxy_ssl_name localhost; proxy_ssl_trusted_certificate {authorities};"
    config = directory / "nginx.conf"
    config.write_text(
        _NGINX.format(
            directory=directory,
            port=port,
            scheme=scheme,
            address=address,
            idle=IDLE_CONNECTIONS,
            trust=trust if authorities is not None else "",
        )
    )
    command = [nginx_program(), "-p", str(directory), "-e", str(directory / "error.log"), "-c", str(config)]
    process = Process.start("nginx", command, log=directory / "nginx.log")
    with _serving(process, port) as proxy:
        yield proxy


def nginx_program() -> str:
    """Where nginx is. Raises BenchFailed that tells how to install it."""
    found = shutil.which("nginx") or shutil.which("nginx", path="/usr/sbin:/usr/local/sbin")
    if found is None:
        raise BenchFailed(_NGINX_MISSING)
    return found


@contextlib.contextmanager
def _serving(process: Process, port: int) -> Iterator[Proxy]:
    try:
        process.wait_until(port_answers(port), seconds=READY_S)
        yield Proxy(process.name, f"http://127.0.0.1:{port}", process.pid)
    finally:
        process.stop()
