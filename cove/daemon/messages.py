"""The daemon's own log: text or JSON lines on standard error, with the id of the request that they are about.

A line that many clients' requests could bring about at once is rate limited by its place in the code: what is left
out is counted, and told with the next line from there.
"""

from __future__ import annotations

import json
import logging
import sys
import time

from cove.api.requestlog import request_id

BURST = 200  # lines from one place at once
RATE = 50.0  # and lines a second after those
MAX_PLACES = 1_000

LEVELS = {
    "debug": logging.DEBUG,
    "info": logging.INFO,
    "warn": logging.WARNING,
    "warning": logging.WARNING,
    "error": logging.ERROR,
    "fatal": logging.CRITICAL,
}
_NAMES = {10: "debug", 20: "info", 30: "warn", 40: "error", 50: "fatal"}


class RateLimit(logging.Filter):
    """Lets a burst of lines pass from each place, and then so many a second."""

    def __init__(self) -> None:
        super().__init__()
        self._places: dict[tuple[str, int], list[float]] = {}  # tokens left, when counted, lines left out

    def filter(self, record: logging.LogRecord) -> bool:
        if len(self._places) > MAX_PLACES:
            self._places.clear()
        now_s = time.monotonic()
        bucket = self._places.setdefault((record.pathname, record.lineno), [float(BURST), now_s, 0.0])
        bucket[0] = min(float(BURST), bucket[0] + (now_s - bucket[1]) * RATE)
        bucket[1] = now_s
        if bucket[0] < 1:
            bucket[2] += 1
            return False
        bucket[0] -= 1
        record.left_out, bucket[2] = int(bucket[2]), 0.0
        return True


class TextFormat(logging.Formatter):
    """`2026-01-02 03:04:05,678 INFO cove.daemon: message`, with the request's id where there is one."""

    def __init__(self) -> None:
        super().__init__("%(asctime)s %(levelname)s %(name)s: %(message)s")

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802 - the base class's name
        text = super().formatMessage(record)
        if (found := request_id.get()) and not hasattr(record, "fields"):
            text += f" request={found}"
        if left_out := getattr(record, "left_out", 0):
            text += f" ({left_out} more like this were left out)"
        return text


class JsonFormat(logging.Formatter):
    """One JSON object a line: time, level, logger, msg, and request and the fields of a request's own line."""

    def format(self, record: logging.LogRecord) -> str:
        found: dict[str, object] = {
            "time": time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created))
            + f".{int(record.msecs):03}Z",
            "level": _NAMES.get(record.levelno, record.levelname.lower()),
            "logger": record.name,
            "msg": record.getMessage(),
        }
        if request := request_id.get():
            found["request"] = request
        found.update(getattr(record, "fields", {}))
        if left_out := getattr(record, "left_out", 0):
            found["left_out"] = left_out
        if record.exc_info:
            found["error"] = self.formatException(record.exc_info)
        return json.dumps(found, ensure_ascii=True)


def set_up_log(level: str, form: str) -> None:
    """Send every logger's messages to standard error. Called once."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonFormat() if form == "json" else TextFormat())
    handler.addFilter(RateLimit())
    root = logging.getLogger()
    root.handlers[:] = [handler]
    set_level(level)


def set_level(level: str) -> None:
    logging.getLogger().setLevel(LEVELS[level])
