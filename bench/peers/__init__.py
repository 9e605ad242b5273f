"""The gateways that are measured beside ours: LiteLLM's and Portkey's. START HERE: run.py."""

from bench.peers.install import versions
from bench.peers.run import running

__all__ = ["running", "versions"]
