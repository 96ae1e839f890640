"""Requests, bodies and responses as handlers see them. The sockets are connection.py's.

A handler is `async def handler(request) -> Response | None`. It returns a `Response`, or it
answers by itself, with `request.start_stream()` or `request.hijack()`, and returns None.
Order that must hold: a body is read before a stream starts, and nothing follows a hijack.
"""

from __future__ import annotations

import asyncio
import re
import socket
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Mapping
from http import HTTPStatus
from typing import Any, Protocol
from urllib.parse import unquote_to_bytes

import msgspec

from cove.model.errors import Invalid

MAX_JSON_BYTES = 4 << 20
BODY_BUFFER_BYTES = 256 << 10  # a body's unread bytes; above, the socket isn't read from

JSON = "application/json"
TEXT = "text/plain; charset=utf-8"

_BAD_ESCAPE = re.compile(r"%(?![0-9A-Fa-f]{2})")
_TRUE_WORDS = frozenset(("1", "true", "t", "yes", "y", "on"))
_FALSE_WORDS = frozenset(("", "0", "false", "f", "no", "n", "off", "none"))


class ClientGone(ConnectionError):
    """The client went away before the request was complete, or before it was answered."""


class Response:
    """A complete answer: one status, one body, sent in one write."""

    __slots__ = ("body", "content_type", "headers", "length", "status")

    def __init__(
        self,
        status: int = 200,
        body: bytes = b"",
        content_type: str = "",
        headers: Mapping[str, str] | None = None,
        length: int | None = None,
    ) -> None:
        self.status = status
        self.body = body
        self.content_type = content_type
        self.headers = headers
        self.length = length  # of a HEAD's answer: what a GET would bring, in bytes (None: the body's own)


class FileResponse(Response):
    """An answer whose body is `length` bytes of an open file, from `offset` on; whoever sends it closes the file.

    `grown` is for a file that is still being written: called with an offset, it returns the end of what is there as
    soon as that is behind the offset. It raises OSError when no more will come.
    """

    __slots__ = ("fd", "grown", "offset")

    length: int

    def __init__(
        self,
        status: int,
        fd: int,
        offset: int,
        length: int,
        content_type: str,
        headers: Mapping[str, str],
        grown: Callable[[int], Awaitable[int]] | None = None,
    ) -> None:
        super().__init__(status, b"", content_type, headers, length)
        self.fd = fd
        self.offset = offset
        self.grown = grown


_encoder = msgspec.json.Encoder()
encode_json = _encoder.encode
NO_CONTENT = Response(204)


def json_response(value: object, status: int = 200) -> Response:
    """`value` as JSON with a newline after it, as the reference daemon writes it."""
    return Response(status, encode_json(value) + b"\n", JSON)


_UNSEEN = {code: f"\\x{code:02x}" for code in (*range(0x20), *range(0x7F, 0xA0)) if chr(code) not in "\t\n"}


def error_response(status: int, message: str) -> Response:
    """`{"message": …}`; control characters of what the sentence quotes are written out, for terminals' sake."""
    return Response(status, encode_json({"message": message.translate(_UNSEEN)}) + b"\n", JSON)


def reason(status: int) -> str:
    try:
        return HTTPStatus(status).phrase
    except ValueError:
        return "Unknown"


class Query:
    """The query string, decoded. Repeated keys keep their order; getters raise `Invalid`."""

    __slots__ = ("_values",)

    def __init__(self, raw: str) -> None:
        values: dict[str, list[str]] = {}
        if raw:
            for pair in raw.split("&"):
                if pair:
                    key, _, value = pair.partition("=")
                    values.setdefault(unescape(key, plus=True), []).append(unescape(value, plus=True))
        self._values = values

    def __contains__(self, key: str) -> bool:
        return key in self._values

    def get(self, key: str, default: str = "") -> str:
        values = self._values.get(key)
        return values[0] if values else default

    def all(self, key: str) -> list[str]:
        return self._values.get(key, [])

    def flag(self, key: str, default: bool = False) -> bool:
        """A boolean: 1, true, yes, on … or 0, false, no, off …; anything else is refused.

        The reference daemon takes every unknown word as true, and so hides typing errors.
        """
        if key not in self._values:
            return default
        word = self._values[key][0].strip().lower()
        if word in _TRUE_WORDS:
            return True
        if word in _FALSE_WORDS:
            return False
        raise Invalid(f"query parameter {key}: expected true or false, got {self._values[key][0]!r}")

    def integer(self, key: str, default: int | None, *, low: int, high: int) -> int | None:
        text = self.get(key)
        if not text:
            return default
        digits = text[1:] if text[0] in "+-" else text
        if not (digits.isascii() and digits.isdigit() and len(digits) <= 19):
            raise Invalid(f"query parameter {key}: expected an integer, got {text!r}")
        number = int(text)
        if not low <= number <= high:
            raise Invalid(f"query parameter {key}: must be from {low} to {high}, got {number}")
        return number


def unescape(text: str, *, plus: bool = False) -> str:
    """Undo percent-encoding; raises `Invalid` for a bad escape and for what isn't UTF-8."""
    if plus and "+" in text:
        text = text.replace("+", " ")
    if "%" not in text:
        if not text.isascii():
            raise Invalid("the URL holds a character that must be percent-encoded")
        return text
    if bad := _BAD_ESCAPE.search(text):
        raise Invalid(f"invalid URL escape {text[bad.start() : bad.start() + 3]!r}")
    try:
        return unquote_to_bytes(text).decode()
    except UnicodeDecodeError:
        raise Invalid("the URL's percent-encoded text isn't UTF-8") from None


class Body:
    """A request's body, handed over as it arrives.

    Iterate over it, once, for its bytes; `read_all` for a small one. Reading slowly holds the
    client back. Raises `ClientGone` when the connection ends early, `Invalid` when it is malformed.
    """

    __slots__ = ("_buffered", "_chunks", "_error", "_on_demand", "_waiter", "complete", "length")

    def __init__(self, length: int | None, on_demand: Callable[[bool], None]) -> None:
        self.length = length  # in bytes as announced; None: chunked
        self.complete = length == 0
        self._chunks: deque[bytes] = deque()
        self._buffered = 0
        self._error: Exception | None = None
        self._waiter: asyncio.Future[None] | None = None
        # called with True when more is wanted, with False when too much is buffered
        self._on_demand = on_demand

    @property
    def empty(self) -> bool:
        """True: known to have no bytes."""
        return self.length == 0 or (self.complete and not self._buffered)

    def feed(self, data: bytes) -> None:
        if data and self._error is None:
            self._chunks.append(data)
            self._buffered += len(data)
            if self._buffered > BODY_BUFFER_BYTES:
                self._on_demand(False)
            self._wake()

    def finish(self) -> None:
        self.complete = True
        self._wake()

    def fail(self, error: Exception) -> None:
        if not self.complete and self._error is None:
            self._error = error
            self._wake()

    def _wake(self) -> None:
        waiter, self._waiter = self._waiter, None
        if waiter is not None and not waiter.done():
            waiter.set_result(None)

    def __aiter__(self) -> AsyncIterator[bytes]:
        return self

    async def __anext__(self) -> bytes:
        while not self._chunks:
            if self._error is not None:
                raise self._error
            if self.complete:
                raise StopAsyncIteration
            self._on_demand(True)
            waiter = self._waiter = asyncio.get_running_loop().create_future()
            await waiter
        chunk = self._chunks.popleft()
        self._buffered -= len(chunk)
        return chunk

    async def read_all(self, limit: int = MAX_JSON_BYTES) -> bytes:
        """The whole body; raises `Invalid` above `limit` bytes, at once if the length is announced."""
        if self.length is not None and self.length > limit:
            raise Invalid(f"the request body has {self.length} bytes, the limit is {limit}")
        parts: list[bytes] = []
        size = 0
        async for chunk in self:
            size += len(chunk)
            if size > limit:
                raise Invalid(f"the request body is larger than the limit of {limit} bytes")
            parts.append(chunk)
        return parts[0] if len(parts) == 1 else b"".join(parts)


class Stream:
    """An answer in the making: bytes of unknown number, chunked (or until the end, for HTTP/1.0)."""

    __slots__ = ("_chunked", "_silent", "_writer")

    def __init__(self, writer: Writer, *, chunked: bool, silent: bool) -> None:
        self._writer = writer
        self._chunked = chunked
        self._silent = silent  # HEAD: a header and no body

    async def write(self, data: bytes) -> None:
        """Send `data` now; waits while the client is slow. Raises `ClientGone`."""
        if data and not self._silent:
            self._writer.write(b"%x\r\n%b\r\n" % (len(data), data) if self._chunked else data)
        await self._writer.drain()

    def finish(self) -> None:
        if self._chunked and not self._silent:
            self._writer.write(b"0\r\n\r\n")


class Writer(Protocol):
    """What a connection offers to the request it is busy with."""

    def write(self, data: bytes) -> None: ...
    async def drain(self) -> None: ...
    async def start_stream(
        self, status: int, content_type: str, headers: Mapping[str, str] | None
    ) -> Stream: ...
    async def hijack(self, head: bytes, *, settle: bool) -> tuple[socket.socket, bytes]: ...
    def bind_to_client(self, *, ends_clean: bool) -> None: ...
    def about_client(self, what: str) -> Any: ...


class Request:
    """One request: its head, and its body as it arrives. The parser library fills it in."""

    __slots__ = (
        "_query",
        "_writer",
        "body",
        "chunkable",
        "head_complete",
        "headers",
        "id",
        "keep_alive",
        "method",
        "name",
        "path",
        "raw_query",
        "route",
        "target",
        "version",
    )

    body: Body

    def __init__(self, writer: Writer) -> None:
        self._writer = writer
        self._query: Query | None = None
        self.headers: dict[str, str] = {}
        self.target = b""
        self.method = ""
        self.path = ""
        self.raw_query = ""
        self.id = ""  # for the log, and back to the client; set by the app
        self.route = ""  # the path's pattern, set by the router
        self.name = ""  # the object named in the path, set by the router
        self.version = 0  # API version, major * 1000 + minor, set by the router
        self.keep_alive = True
        self.chunkable = True  # HTTP/1.1: an answer may be chunked
        self.head_complete = False

    # the parser library's callbacks
    def on_url(self, url: bytes) -> None:
        self.target += url

    def on_header(self, name: bytes, value: bytes) -> None:
        key = name.decode("latin-1").lower()
        text = value.decode("latin-1")
        before = self.headers.get(key)
        self.headers[key] = text if before is None else f"{before}, {text}"

    def on_headers_complete(self) -> None:
        self.head_complete = True

    @property
    def query(self) -> Query:
        """The decoded query string; raises `Invalid` where it can't be decoded."""
        if self._query is None:
            self._query = Query(self.raw_query)
        return self._query

    @property
    def upgrades(self) -> bool:
        """True: the client speaks of `Upgrade`, and so expects a 101 before a raw stream."""
        return "upgrade" in self.headers

    async def start_stream(
        self, content_type: str, status: int = 200, headers: Mapping[str, str] | None = None
    ) -> Stream:
        """Send the answer's head now, and its body by and by. Raises `ClientGone`."""
        return await self._writer.start_stream(status, content_type, headers)

    async def upgrade(self, head: str) -> tuple[socket.socket, bytes]:
        """Answer with `head`, status line and all, without the empty line; the rest is as in `hijack`."""
        return await self._writer.hijack(head.encode("latin-1"), settle=False)

    async def hijack(self, content_type: str, *, settle: bool = True) -> tuple[socket.socket, bytes]:
        """Answer with a raw stream: the socket, and the bytes that arrived before it was taken.

        `settle`: return once the client has taken the header, for what follows it at once. Where the client's next
        request brings the first output, this must return before that request is handled: without settling,
        it does. The socket is non-blocking and the caller's to close. Raises `ClientGone`.
        """
        if self.upgrades:
            head = "HTTP/1.1 101 UPGRADED\r\nConnection: Upgrade\r\nUpgrade: tcp\r\n"
        else:
            head = "HTTP/1.1 200 OK\r\n"
        text = f"{head}Content-Type: {content_type}\r\n"
        return await self._writer.hijack(text.encode("latin-1"), settle=settle)

    def about_client(self, what: str) -> Any:
        """What the transport knows of the client: asyncio's `peername`, `peercert` …; None where it doesn't."""
        return self._writer.about_client(what)

    def bind_to_client(self, *, ends_clean: bool = True) -> None:
        """From here on, the client's leaving cancels this request, whatever its method is.

        `ends_clean`: what was sent of its stream is worth something by itself. When the daemon ends, the stream
        ends as if it were complete; else it breaks off, for the client to see.
        """
        self._writer.bind_to_client(ends_clean=ends_clean)


Handler = Callable[[Request], Coroutine[Any, Any, Response | None]]
