"""The plain proxies of the benchmark, nginx and Caddy: each forwards every byte at once, keeps connections, does nothing else."""

import contextlib
import json
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


@dataclass(frozen=True)
class Upstreams:
    """Where the fake upstreams listen, and who vouches for the one with TLS."""

    plain_url: str
    tls_url: str
    authorities: Path


@contextlib.contextmanager
def caddy(home: Path, *upstream_urls: str, authorities: Path | None = None) -> Iterator[list[Proxy]]:
    """One Caddy on one core, with a port for each upstream."""
    ports = [free_port() for _ in upstream_urls]
    sites = [
        f"http://127.0.0.1:{port} {{\n\tbind 127.0.0.1\n\treverse_proxy {url} {{\n\t\tflush_interval -1\n"
        f"\t\ttransport http {{\n\t\t\tkeepalive_idle_conns_per_host {IDLE_CONNECTIONS}\n\t\t}}\n\t}}\n}}\n"
        for port, url in zip(ports, upstream_urls, strict=True)
    ]
    config = home / "Caddyfile"
    config.write_text("{\n\tadmin off\n\tauto_https off\n\tpersist_config off\n}\n" + "".join(sites))
    environment = {**os.environ, "GOMAXPROCS": "1"}
    environment |= {"HOME": str(home), "XDG_DATA_HOME": str(home), "XDG_CONFIG_HOME": str(home)}
    if authorities is not None:
        environment["SSL_CERT_FILE"] = str(authorities)
    command = [program("caddy"), "run", "--config", str(config), "--adapter", "caddyfile"]
    process = Process.start("caddy", command, log=home / "caddy.log", environment=environment)
    with _serving(process, ports) as proxies:
        yield proxies


@contextlib.contextmanager
def nginx(home: Path, *upstream_urls: str, authorities: Path | None = None) -> Iterator[list[Proxy]]:
    """One nginx with one worker, with a port for each upstream. Raises BenchFailed where it is not installed."""
    directory = home / "nginx"
    directory.mkdir(parents=True)
    ports = [free_port() for _ in upstream_urls]
    sites = "\n".join(
        f"  upstream u{port} {{ server {url.split('//')[1]}; keepalive {IDLE_CONNECTIONS}; }}\n"
        f"  server {{ listen 127.0.0.1:{port} backlog=4096;\n"
        f"    location / {{ proxy_pass {url.split('//')[0]}//u{port}; }} }}"
        for port, url in zip(ports, upstream_urls, strict=True)
    )
    trust = (
        f"proxy_ssl_verify on; proxy_ssl_name 127.0.0.1; proxy_ssl_trusted_certificate {json.dumps(str(authorities))};"
        if authorities is not None
        else ""
    )
    temporary = " ".join(
        f"{name}_temp_path {json.dumps(str(directory / name))};"
        for name in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
    )
    config = directory / "nginx.conf"
    config.write_text(
        f"""worker_processes 1; worker_rlimit_nofile 65536; daemon off;
pid {json.dumps(str(directory / "pid"))}; error_log {json.dumps(str(directory / "error.log"))};
events {{ worker_connections 8192; }}
http {{
  access_log off; {temporary}
  keepalive_requests 100000000; client_max_body_size 32m; proxy_http_version 1.1; proxy_set_header Connection "";
  proxy_buffering off; proxy_request_buffering off; {trust}
{sites}
}}
"""
    )
    command = [nginx_program(), "-p", str(directory), "-e", str(directory / "error.log"), "-c", str(config)]
    process = Process.start("nginx", command, log=home / "nginx.log")
    with _serving(process, ports) as proxies:
        yield proxies


def nginx_program() -> str:
    """Where nginx is. Raises BenchFailed that tells how to install it."""
    found = shutil.which("nginx") or shutil.which("nginx", path="/usr/sbin:/usr/local/sbin")
    if found is None:
        raise BenchFailed(_NGINX_MISSING)
    return found


@contextlib.contextmanager
def _serving(process: Process, ports: list[int]) -> Iterator[list[Proxy]]:
    try:
        for port in ports:
            process.wait_until(port_answers(port), seconds=READY_S)
        yield [Proxy(process.name, f"http://127.0.0.1:{port}", process.pid) for port in ports]
    finally:
        process.stop()
