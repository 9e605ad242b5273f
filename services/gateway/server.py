"""The HTTP server's edge: uvicorn on httptools, plus the limits, deadlines and refusals it lacks. Threats: RELIABILITY.md.

llhttp parses and judges. This module cuts the bytes so that llhttp sees one head or one body at a time: sizes are exact, and a pipelined request stays
unread until the one before it is answered. A connection is always in one phase, and one coarse timer a process looks at its deadline:

    IDLE ─first byte─► HEAD ─blank line─► BODY ─last byte─► ANSWER ─answered─► IDLE
                         └──── refused ─────┴─── closing ──────┴──► DISCARD ──► gone

ANSWER has no deadline: an answer may stay silent for 600 s. Only a caller who does not take our bytes ends it.
A refused request is answered here, and the application's `receive()` says `http.disconnect`.
"""

import asyncio
import functools
import math
import socket
import sys
import urllib.parse
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final, cast

import httptools
import uvicorn
from starlette.types import ASGIApp
from uvicorn._types import ASGI3Application, ASGISendEvent, HTTPScope
from uvicorn.protocols.http.flow_control import HIGH_WATER_LIMIT
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol, RequestResponseCycle

from libs.common import ids
from libs.common.errors import BadRequest, InternalError, Overloaded, RelayError, RequestTooLarge
from services.gateway.headers import Headers
