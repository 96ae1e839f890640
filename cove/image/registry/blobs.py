"""One blob from a registry, in order, from any place on: what breaks off goes on, a large one comes by several ranges.

A thread of the worker that speaks with the registry. Nothing is verified here but sizes: whoever unpacks the bytes
computes their digest. Order that must hold: every byte goes out once, in order, whatever the registry does.
"""

from __future__ import annotations

import re
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor

from cove.image.registry.messages import StreamBlob
from cove.image.registry.transport import Answer, Broken, Client, Tries
from cove.model.errors import Invalid, NotFound

PIECE_BYTES = 2 << 20  # of a blob that comes by ranges
_RANGES_FROM = 8 * PIECE_BYTES
_PROGRESS_BYTES = 256 << 10  # an attempt that brought less doesn't begin the count of attempts anew
_CONTENT_RANGE = re.compile(r"bytes ([0-9]{1,19})-([0-9]{1,19})/([0-9]{1,19}|\*)")
Write = Callable[[bytes | bytearray], object]


class BlobStream:
    """A blob on its way to `write`. `position` is the next byte's place: another client may go on from there."""

    def __init__(self, command: StreamBlob, write: Write, pool: ThreadPoolExecutor) -> None:
        self._wanted = command
        self._write = write
        self._pool = pool
        self._may_range = True
        self.position = command.offset

    def run(self, client: Client) -> None:
        """Write the rest. Invalid: it isn't what was named. As Client.request besides: the rest is missing."""
        tries = Tries(client.timing)
        while self.position < self._wanted.size:
            before = self.position
            try:
                self._attempt(client)
            except Broken:
                if self.position - before >= _PROGRESS_BYTES:
                    tries.progress()
                if not tries.again():
                    raise
            except NotFound as error:
                if self._wanted.foreign:
                    raise NotFound(
                        f"layer {self._wanted.digest} isn't kept by the registry (it may not be distributed), "
                        "and Cove follows no addresses that an image names"
                    ) from error
                raise

    def _attempt(self, client: Client) -> None:
        wanted = self._wanted
        left = wanted.size - self.position
        by_ranges = self._may_range and wanted.connections > 1 and left >= _RANGES_FROM
        if not by_ranges:
            with self._ask(client, self.position, wanted.size if self.position else 0) as answer:
                self._pass_on(answer, wanted.size)
            return
        first = self.position + PIECE_BYTES
        with self._ask(client, self.position, first) as answer:
            if answer.status == 200:  # it doesn't know ranges, or doesn't like them
                self._may_range = False
                self._pass_on(answer, wanted.size)
                return
            ahead: deque[Future[bytearray]] = deque()
            try:
                asked = first
                while asked < wanted.size and len(ahead) < wanted.connections - 1:
                    asked = self._look_ahead(client, ahead, asked)
                self._pass_on(answer, first)
                while ahead:
                    piece = ahead.popleft().result()
                    if asked < wanted.size:
                        asked = self._look_ahead(client, ahead, asked)
                    self._write(piece)
                    self.position += len(piece)
            finally:
                for future in ahead:
                    future.cancel()

    def _look_ahead(self, client: Client, ahead: deque[Future[bytearray]], begin: int) -> int:
        end = min(begin + PIECE_BYTES, self._wanted.size)
        ahead.append(self._pool.submit(self._piece, client, begin, end))
        return end

    def _piece(self, client: Client, begin: int, end: int) -> bytearray:
        """A range, whole. Broken after as many attempts as there may be."""
        data = bytearray()
        tries = Tries(client.timing)
        while True:
            before = len(data)
            try:
                with self._ask(client, begin + len(data), end) as answer:
                    if answer.status != 206:
                        raise Broken("the registry answers one range and not the next")
                    for piece in answer.pieces():
                        data += piece
                        if begin + len(data) > end:
                            raise Invalid(f"{answer.url[:200]} sent more than the range that was asked for")
                if begin + len(data) == end:
                    return data
                raise Broken("a range ended early")
            except Broken:
                if len(data) - before >= _PROGRESS_BYTES:
                    tries.progress()
                if not tries.again():
                    raise

    def _ask(self, client: Client, begin: int, end: int) -> Answer:
        """The blob from `begin` on (to `end`, unless it is 0): an answer with 206, or with 200 and the whole blob."""
        headers = {"Range": f"bytes={begin}-{end - 1}"} if end else {}
        answer = client.request("GET", f"blobs/{self._wanted.digest}", headers=headers, expect=(200, 206))
        try:
            self._check_head(answer, begin, end)
        except BaseException:
            answer.close()
            raise
        return answer

    def _check_head(self, answer: Answer, begin: int, end: int) -> None:
        size = self._wanted.size
        if answer.status == 200:
            if answer.length not in (None, size):
                raise Invalid(
                    f"blob {self._wanted.digest} has {answer.length} bytes at the registry and {size} by its manifest"
                )
            return
        match = _CONTENT_RANGE.fullmatch(answer.headers.get("Content-Range", ""))
        if match is None or not end or (int(match[1]), int(match[2])) != (begin, end - 1):
            raise Invalid(
                f"the registry answered the range {begin}-{end - 1} of blob {self._wanted.digest} with another one"
            )
        if match[3] not in ("*", str(size)):
            raise Invalid(
                f"blob {self._wanted.digest} has {match[3]} bytes at the registry and {size} by its manifest"
            )

    def _pass_on(self, answer: Answer, end: int) -> None:
        """Write what an answer brings, up to `end`; of a whole blob, what was written before is passed over."""
        skip = self.position if answer.status == 200 else 0
        for piece in answer.pieces():
            if skip >= len(piece):
                skip -= len(piece)
                continue
            piece, skip = piece[skip:], 0
            if self.position + len(piece) > end:
                raise Invalid(
                    f"blob {self._wanted.digest} is longer than the {self._wanted.size} bytes it should have"
                )
            self._write(piece)
            self.position += len(piece)
        if self.position != end:
            raise Broken(f"blob {self._wanted.digest} ended {end - self.position} bytes early")
