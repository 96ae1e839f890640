"""One URL's content into a file, inside the worker: redirects, failures tried again, a size that is kept.

What broke off goes on where it stopped (RFC 9110, section 14: Range with If-Range) when the server has said what the
content is (a strong ETag, or Last-Modified); else it begins anew, and the file is cut to nothing first.
"""

from __future__ import annotations

import os

from cove.image.registry.messages import GetUrl, UrlWritten
from cove.image.registry.transport import (
    AGAIN,
    Answer,
    Broken,
    Connections,
    Tries,
    Unreachable,
    next_url,
    status_error,
)
from cove.model.errors import Invalid

_REDIRECTS = (301, 302, 303, 307, 308)


def download(command: GetUrl, connections: Connections, file: int) -> UrlWritten:
    """Write it all, and close the file. NotFound, Unauthorized, Forbidden, Unavailable, Invalid, OSError."""
    with open(file, "wb", buffering=0) as out:
        return _Download(command, connections, out.fileno()).run()


class _Download:
    def __init__(self, command: GetUrl, connections: Connections, file: int) -> None:
        self._command, self._connections, self._file = command, connections, file
        self._size = 0
        self._validator = ""

    def run(self) -> UrlWritten:
        tries = Tries(self._connections.timing)
        while True:
            before = self._size
            try:
                with self._get() as answer:
                    if answer.status not in (200, 206):
                        if answer.status in AGAIN and tries.again(answer.headers.get("Retry-After", "")):
                            continue
                        raise status_error(
                            answer.status, b"", answer.url.partition("://")[2].partition("/")[0]
                        )
                    self._take(answer)
                    return UrlWritten(
                        id=self._command.id,
                        size=self._size,
                        modified=answer.headers.get("Last-Modified", "")[:64],
                        media_type=answer.headers.get("Content-Type", "")[:128],
                    )
            except (Broken, Unreachable):
                if self._size > before:
                    tries.progress()
                if not tries.again():
                    raise

    def _get(self) -> Answer:
        headers = {"Accept": "*/*"}
        if self._size and self._validator:
            headers |= {"Range": f"bytes={self._size}-", "If-Range": self._validator}
        url = self._command.url
        seen: list[str] = []
        while True:
            answer = self._connections.send("GET", url, headers)
            location = answer.headers.get("Location", "")
            if answer.status not in _REDIRECTS or not location:
                return answer
            answer.close()
            seen.append(url)
            url = next_url(url, location, seen)

    def _take(self, answer: Answer) -> None:
        """The body, behind what is there or from the beginning."""
        goes_on = answer.status == 206 and answer.headers.get("Content-Range", "").startswith(
            f"bytes {self._size}-"
        )
        if answer.status == 206 and not goes_on:
            raise Broken("the server sent another part than it was asked for")
        if not goes_on and self._size:
            os.ftruncate(self._file, 0)
            os.lseek(self._file, 0, os.SEEK_SET)
            self._size = 0
        tag = answer.headers.get("ETag", "")
        self._validator = tag if tag.startswith('"') else answer.headers.get("Last-Modified", "")
        limit = self._command.limit_bytes
        if self._size + (answer.length or 0) > limit:
            raise Invalid(f"it has {self._size + (answer.length or 0)} bytes; the limit is {limit}")
        for piece in answer.pieces():
            if self._size + len(piece) > limit:
                raise Invalid(f"it has more than {limit} bytes, which is the limit")
            view = memoryview(piece)
            while view:
                view = view[os.write(self._file, view) :]
            self._size += len(piece)
