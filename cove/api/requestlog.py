"""Requests' ids and the line that each request leaves in the daemon's log.

An id is the client's X-Request-Id where it is a plain word, else one of the daemon's; it goes back as a header and
stands on every line that is logged on the request's behalf. The line tells method, route, status and milliseconds:
neither names nor queries nor bodies, which may hold secrets. Failures of the daemon are told at level error, the
rest at debug.
"""

from __future__ import annotations

import contextvars
import itertools
import logging
import re
import secrets

log = logging.getLogger("cove.api")

request_id: contextvars.ContextVar[str] = contextvars.ContextVar("request_id", default="")

_PLAIN = re.compile(r"[A-Za-z0-9._:/+=-]{1,128}")
_prefix = secrets.token_hex(4)
_numbers = itertools.count(1)


def choose_id(asked: str) -> str:
    """The id of a request that came with this X-Request-Id ("" without one)."""
    if asked and _PLAIN.fullmatch(asked):
        return asked
    return f"{_prefix}-{next(_numbers):x}"


def log_request(method: str, route: str, status: int, elapsed_s: float) -> None:
    """Leave the line of an answered request."""
    level = logging.ERROR if status >= 500 and status not in (501, 503) else logging.DEBUG
    if log.isEnabledFor(level):
        found = request_id.get()
        ms = round(elapsed_s * 1000, 1)
        log.log(
            level,
            "%s %s -> %d in %.1f ms, request=%s",
            method,
            route,
            status,
            ms,
            found,
            extra={"fields": {"method": method, "route": route, "status": status, "ms": ms}},
        )
