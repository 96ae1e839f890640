"""Times and durations in Docker's notations. Pure."""

from __future__ import annotations

import re
import time
from datetime import UTC, datetime

from cove.model.errors import Invalid

NEVER = "0001-01-01T00:00:00Z"  # Go's zero time
_TIMESTAMP = re.compile(r"(-?\d{1,11})(?:\.(\d{1,9})\d*)?")
_FRACTION = re.compile(r":\d\d\.(\d{1,9})", re.ASCII)
_DURATION = re.compile(r"(\d+(?:\.\d+)?)(h|ms|m|s|us|ns)")
_UNITS_NS = {
    "h": 3_600_000_000_000,
    "m": 60_000_000_000,
    "s": 1_000_000_000,
    "ms": 1_000_000,
    "us": 1000,
    "ns": 1,
}


def rfc3339(ns: int) -> str:
    """Nanoseconds since the epoch as RFC 3339 with the digits needed; 0 is Go's zero time."""
    if ns <= 0:
        return NEVER
    seconds, rest = divmod(ns, 1_000_000_000)
    text = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(seconds))
    return f"{text}.{rest:09d}".rstrip("0").rstrip(".") + "Z"


def rfc3339_fixed(ns: int) -> str:
    """The same with nine digits always, as log lines have it, so that columns line up."""
    seconds, rest = divmod(ns, 1_000_000_000)
    return f"{time.strftime('%Y-%m-%dT%H:%M:%S', time.gmtime(seconds))}.{rest:09d}Z"


def parse_time(text: str, field: str, now_ns: int) -> int:
    """A query's time → ns since the epoch: `SECONDS[.NANOS]`, RFC 3339, or a duration ago (`10m`).

    Raises `Invalid`. An empty text is 0.
    """
    if not text:
        return 0
    if match := _TIMESTAMP.fullmatch(text):
        nanos = int((match[2] or "").ljust(9, "0") or 0)
        seconds = int(match[1])
        return seconds * 1_000_000_000 + (-nanos if text.startswith("-") else nanos)
    pieces = _DURATION.findall(text)
    if pieces and "".join(number + unit for number, unit in pieces) == text and len(text) < 40:
        return now_ns - int(sum(float(number) * _UNITS_NS[unit] for number, unit in pieces))
    try:
        moment = datetime.fromisoformat(text)
    except ValueError:
        raise Invalid(
            f'invalid value for "{field}": {text!r}, e.g. 1700000000.5 or 2024-01-31T10:00:00Z'
        ) from None
    if moment.tzinfo is None:
        moment = moment.replace(tzinfo=UTC)
    fraction = _FRACTION.search(text)  # datetime's has six digits
    nanos = int(fraction[1].ljust(9, "0")) if fraction else moment.microsecond * 1000
    return int(moment.replace(microsecond=0).timestamp()) * 1_000_000_000 + nanos


def parse_rfc3339_seconds(text: str) -> int:
    """An image's creation time → seconds since the epoch; 0 for what isn't a time."""
    try:
        return int(datetime.fromisoformat(text).timestamp())
    except (ValueError, OverflowError):
        return 0


def human_duration(seconds: float) -> str:
    """As docker ps writes it (github.com/docker/go-units, HumanDuration)."""
    if seconds < 1:
        return "Less than a second"
    if seconds < 2:
        return "1 second"
    if seconds < 60:
        return f"{int(seconds)} seconds"
    minutes = int(seconds / 60)
    if minutes == 1:
        return "About a minute"
    if minutes < 60:
        return f"{minutes} minutes"
    hours = int(seconds / 3600 + 0.5)
    if hours == 1:
        return "About an hour"
    if hours < 48:
        return f"{hours} hours"
    if hours < 24 * 7 * 2:
        return f"{hours // 24} days"
    if hours < 24 * 30 * 2:
        return f"{hours // 24 // 7} weeks"
    if hours < 24 * 365 * 2:
        return f"{hours // 24 // 30} months"
    return f"{int(seconds / 3600) // 24 // 365} years"
