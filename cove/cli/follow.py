"""`logs -f` that survives its daemon: when the connection breaks, the next one goes on behind the last line.

Every line is asked for with its time, which is taken off again unless it's wanted. A line's place is its time, and its
number among the lines of its stream with that time: a log tells the same again to the next daemon.
"""

from __future__ import annotations

import time

from cove.cli.client import Client, query, quote
from cove.cli.fail import ApiError, CliError
from cove.cli.session import Demultiplexer, write_all

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

AGAIN_S = 60.0  # how long a daemon may be away
BACK_S = 10  # how long before another stream's line one may have begun that ends after it
_PAUSE_S = 0.2


class Place:
    """Where the reading is: takes timed lines, gives those that are new to `write`."""

    def __init__(
        self, write: Callable[[int, bytes], None], *, timestamps: bool = False, whole: bool = True
    ) -> None:
        """Not `whole`: only the last lines were asked for, and what is before the first isn't to be told."""
        self._write = write
        self._whole = whole
        self._timestamps = timestamps
        self._first = self._newest = b""
        # By stream, as its lines are told in the order of their times: the last time, how many lines had it, and how
        # many of those are still to be told again.
        self._last = {1: b"", 2: b""}
        self._seen = {1: 0, 2: 0}
        self._skip = {1: 0, 2: 0}
        self._rest = b""  # of a terminal's line

    def since(self) -> str:
        """The time to go on from, as the API takes it; "" before the first line.

        A line is told when it ends and has the time of its beginning: one of the other stream may have begun
        a while before the newest that was told.
        """
        if not self._newest:
            return ""
        ns = _nanoseconds(self._newest) - BACK_S * 10**9
        if not self._whole:
            ns = max(ns, _nanoseconds(self._first))
        return f"{ns // 10**9}.{ns % 10**9:09}"

    def begin(self) -> None:
        """A new connection begins, with the lines of `since`."""
        self._rest = b""
        self._skip = dict(self._seen)

    def take(self, stream: int, line: bytes) -> None:
        """One line, with its time in front (30 characters, jsonmessage.RFC3339NanoFixed)."""
        stamp, _, text = line.partition(b" ")
        if len(stamp) != 30 or stamp[10:11] != b"T" or not stamp.endswith(b"Z"):
            self._write(stream, line)  # not of the log: the daemon's own words
            return
        last = self._last[stream]
        if stamp < last:
            return
        if stamp == last and self._skip[stream] > 0:
            self._skip[stream] -= 1
            return
        self._seen[stream] = self._seen[stream] + 1 if stamp == last else 1
        self._last[stream] = stamp
        self._first = self._first or stamp
        self._newest = max(self._newest, stamp)
        self._skip[stream] = 0
        self._write(stream, line if self._timestamps else text)

    def take_raw(self, data: bytes) -> None:
        """A piece of a terminal's output, which has no frames."""
        *lines, self._rest = (self._rest + data).split(b"\n")
        for line in lines:
            self.take(1, line + b"\n")

    def end_raw(self) -> None:
        """What a terminal's output ends with."""
        if self._rest:
            self.take(1, self._rest)
            self._rest = b""


def _nanoseconds(stamp: bytes) -> int:
    from cove.cli.output import parse_rfc3339

    return int(parse_rfc3339(stamp[:19].decode() + "Z")) * 10**9 + int(stamp[20:29])


def follow(client: Client, container: dict[str, Any], parameters: dict[str, Any]) -> None:
    """Write a log as it grows, until the container's run ends. Raises CliError: the daemon stays away."""
    path = f"/containers/{quote(container['Id'])}"
    place = Place(write_all, timestamps=bool(parameters["timestamps"]), whole=parameters["tail"] == "all")
    begun = ""  # when the first answer came
    start = f"{time.time():.9f}"
    asked = {**parameters, "timestamps": True}
    tty = bool(container["Config"].get("Tty"))
    deadline = 0.0
    while True:
        try:
            answer = client.request("GET", f"{path}/logs" + query(asked))
            deadline, begun = 0.0, start
            place.begin()
            demultiplexer = Demultiplexer(place.take)
            for data in answer.chunks():
                place.take_raw(data) if tty else demultiplexer.feed(data)
            now = client.get(f"{path}/json")["State"]
            if not now["Running"] or now["StartedAt"] != container["State"]["StartedAt"]:
                place.end_raw()
                return
        except ApiError as error:
            if error.http == 404 and begun:
                return  # it was removed
            raise
        except (CliError, OSError) as error:
            deadline = deadline or time.monotonic() + AGAIN_S
            if time.monotonic() > deadline:
                raise error if isinstance(error, CliError) else CliError(str(error)) from None
            client.forget()
            time.sleep(_PAUSE_S)
        since = place.since() or (start if parameters["tail"] == "0" else "")
        if since:
            asked = {**asked, "since": since, "tail": "all"}
