"""One client's connection: framing, order of answers, leaving clients, hijacking.

Requests are answered one after another, in order; bytes of the next request stay unparsed
until the present one is answered, so that a hijack can take them as they are.

    idle ──head complete──> busy ──answered──> idle
                             ├──hijack──> detached: the socket has another owner
                             └──answered before the body's end──> lingering ──> closed

A client that leaves cancels a request that only reads (GET, HEAD) and one that called
`bind_to_client`. Other requests run to their end: a half-done change would help nobody. A
client that only shut down its sending side still gets its answer, except for answers that
have no end: those end with it.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import logging
import os
import select
import socket
import termios
import time
from collections.abc import Coroutine, Mapping
from email.utils import formatdate
from typing import Any, Protocol, cast

import httptools

from cove.api.chunked import ChunkedDecoder, MalformedChunk
from cove.api.http import Body, ClientGone, FileResponse, Handler, Request, Response, Stream, reason
from cove.model.errors import Invalid

log = logging.getLogger(__name__)

MAX_HEAD_BYTES = 64 << 10
MAX_HEADERS = 128
TLS_HANDSHAKE = 0x16  # a TLS record's first byte (RFC 8446, 5.1)
HEAD_TIMEOUT_S = 60.0  # from a request's first byte to its head's last
LINGER_S = 5.0  # how long an answered client may go on sending a body that nobody wants
TAKEN_WITHIN_S = 0.5  # how long a hijacked client is waited for to take the header
TAKEN_PAUSE_S = 0.0005  # the first pause of that wait
STALL_S = 60.0  # how long a client may take nothing of a file
FILE_PIECE_BYTES = 1 << 20
HELD_BYTES = 64 << 10  # bytes of following requests; above, the socket isn't read from


class Owner(Protocol):
    """Who knows all connections and owns the tasks of their requests: listener.HttpServer."""

    common_headers: str
    idle_s: float  # how long a connection without a request stays open; 0: for ever

    def refuse(self, status: int, message: str) -> Response: ...

    def add(self, connection: Connection) -> None: ...

    def discard(self, connection: Connection) -> None: ...

    def run(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]: ...


class Connection(asyncio.Protocol):
    """The protocol of one accepted socket."""

    def __init__(self, server: Owner, handler: Handler) -> None:
        self._server = server
        self._handler = handler
        self._loop = asyncio.get_running_loop()
        self._transport: asyncio.Transport | None = None
        self._buffer = bytearray()
        self._request: Request | None = None
        self._task: asyncio.Task[None] | None = None
        self._chunks: ChunkedDecoder | None = None
        self._body_left = 0
        self._expects_continue = False
        self._stream: Stream | None = None
        self._bound = False
        self._ends_clean = False
        self._eof = False
        self._closing = False
        self._lingering = False
        self._detached = False
        self._reading = True
        self._writable: asyncio.Future[None] | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._idle: asyncio.TimerHandle | None = None

    # --- the transport's calls ---------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        self._server.add(self)
        self._wait_idle()

    def data_received(self, data: bytes) -> None:
        if self._lingering:
            return
        if self._idle is not None:
            self._idle.cancel()
            self._idle = None
        if self._request is None:
            self._buffer += data
            self._parse()
            return
        rest = self._feed_body(data)
        if rest:
            self._buffer += rest
            if len(self._buffer) > HELD_BYTES:
                self._set_reading(False)

    def eof_received(self) -> bool:
        self._eof = True
        request = self._request
        if request is None or self._lingering:
            return False
        if not request.body.complete:
            request.body.fail(
                ClientGone("the client closed the connection in the middle of the request body")
            )
        elif (self._bound or self._hung_up()) and self._cancelable(request):
            self._cancel()
        return True  # a half-closed client still gets its answer

    def connection_lost(self, exc: Exception | None) -> None:
        self._transport = None
        self._closing = True
        self._stop_timer()
        if self._idle is not None:
            self._idle.cancel()
        self._server.discard(self)
        self._wake_writer()
        request = self._request
        if request is not None and not self._detached:
            request.body.fail(ClientGone("the client closed the connection"))
            if self._cancelable(request):
                self._cancel()

    def pause_writing(self) -> None:
        if self._writable is None:
            self._writable = self._loop.create_future()

    def resume_writing(self) -> None:
        self._wake_writer()

    def _wake_writer(self) -> None:
        waiter, self._writable = self._writable, None
        if waiter is not None and not waiter.done():
            waiter.set_result(None)

    # --- from bytes to requests --------------------------------------------------------

    def _parse(self) -> None:
        """Start the next request, once its head is complete."""
        buffer = self._buffer
        while buffer.startswith(b"\r\n"):  # RFC 9112, 2.2: empty lines before a request line
            del buffer[:2]
        if not buffer:
            self._wait_idle()
            return
        if (
            buffer[0] == TLS_HANDSHAKE
        ):  # waiting for a head's end would keep the client until its own time is up
            self._refuse(400, "the client speaks TLS, and this address is for plain HTTP")
            return
        end = buffer.find(b"\r\n\r\n", 0, MAX_HEAD_BYTES + 4)
        if end < 0:
            if len(buffer) > MAX_HEAD_BYTES:
                self._refuse(431, f"the request's head is larger than {MAX_HEAD_BYTES} bytes")
            elif self._timer is None:
                self._timer = self._loop.call_later(HEAD_TIMEOUT_S, self._head_timed_out)
            return
        self._stop_timer()
        head = bytes(buffer[: end + 4])
        rest = bytes(buffer[end + 4 :])
        buffer.clear()
        request = self._parse_head(head)
        if request is None:
            return
        self._request = request
        self._stream = None
        self._bound = self._ends_clean = False
        if rest:
            rest = self._feed_body(rest)
            if rest:
                buffer += rest
                if len(buffer) > HELD_BYTES:
                    self._set_reading(False)
        if self._eof:
            request.body.fail(
                ClientGone("the client closed the connection in the middle of the request body")
            )
        self._task = self._server.run(self._serve(request))

    def _parse_head(self, head: bytes) -> Request | None:
        request = Request(self)
        parser = httptools.HttpRequestParser(request)
        try:
            parser.feed_data(head)
        except httptools.HttpParserUpgrade:
            pass
        except httptools.HttpParserError as error:
            self._refuse(400, f"malformed HTTP request: {error}")
            return None
        if not request.head_complete or len(request.headers) > MAX_HEADERS:
            self._refuse(
                400, f"malformed HTTP request: more than {MAX_HEADERS} header lines, or an unfinished head"
            )
            return None
        request.method = parser.get_method().decode("ascii")
        http_version = parser.get_http_version()
        if http_version not in ("1.0", "1.1"):
            self._refuse(400, f"malformed HTTP request: HTTP/{http_version} isn't served, use HTTP/1.1")
            return None
        request.chunkable = http_version == "1.1"
        # the parser's own should_keep_alive() has forgotten once a request without a body is complete
        request.keep_alive = request.chunkable and not _wants_close(request.headers.get("connection", ""))
        path, _, request.raw_query = request.target.decode("latin-1").partition("?")
        request.path = path.partition("#")[0]
        headers = request.headers
        self._chunks = None
        self._body_left = 0
        if "transfer-encoding" in headers:
            if headers["transfer-encoding"].strip().lower() != "chunked" or "content-length" in headers:
                self._refuse(
                    400, "a request body must come with Transfer-Encoding: chunked or a Content-Length"
                )
                return None
            self._chunks = ChunkedDecoder()
            request.body = Body(None, self._on_demand)
        else:
            length = headers.get("content-length", "0").strip()
            if not (length.isascii() and length.isdigit() and len(length) <= 18):
                self._refuse(400, "Content-Length must be a decimal number of at most 18 digits")
                return None
            self._body_left = int(length)
            request.body = Body(self._body_left, self._on_demand)
        self._expects_continue = (
            not request.body.complete and headers.get("expect", "").strip().lower() == "100-continue"
        )
        return request

    def _feed_body(self, data: bytes) -> bytes:
        """Hand body bytes to the request; what follows the body comes back."""
        request = self._request
        assert request is not None
        body = request.body
        if body.complete:
            return data
        self._expects_continue = False
        if self._chunks is None:
            if len(data) <= self._body_left:
                self._body_left -= len(data)
                body.feed(data)
                rest = b""
            else:
                body.feed(data[: self._body_left])
                rest = data[self._body_left :]
                self._body_left = 0
            if not self._body_left:
                body.finish()
            return rest
        try:
            pieces, rest = self._chunks.feed(data)
        except MalformedChunk as error:
            request.keep_alive = False
            body.fail(Invalid(f"malformed request body: {error}"))
            return b""
        for piece in pieces:
            body.feed(piece)
        if self._chunks.done:
            body.finish()
        return rest

    def _on_demand(self, wanted: bool) -> None:
        if wanted and self._expects_continue:
            self._expects_continue = False
            self.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        self._set_reading(wanted)

    def _wait_idle(self) -> None:
        """Close the connection when no request comes for long."""
        if self._server.idle_s and self._idle is None:
            self._idle = self._loop.call_later(self._server.idle_s, self._abort)

    def _head_timed_out(self) -> None:
        self._timer = None
        self._refuse(408, f"the request's head wasn't complete after {HEAD_TIMEOUT_S:.0f} seconds")

    # --- serving -----------------------------------------------------------------------

    async def _serve(self, request: Request) -> None:
        try:
            response = await self._handler(request)
        except asyncio.CancelledError:
            if (
                self._closing
                and self._ends_clean
                and self._stream is not None
                and self._transport is not None
            ):
                self._stream.finish()
                self._transport.close()
            else:
                self._abort()
            raise
        except (ClientGone, ConnectionError):
            self._abort()
            return
        except Exception:
            log.exception("%s %s failed", request.method, request.route or request.path)
            response = self._server.refuse(500, "the daemon failed at this request; its log has the details")
        if self._detached:
            return
        if self._stream is not None:
            if response is not None:  # an error after the head went out: only a break can tell
                self._abort()
                return
            self._stream.finish()
        else:
            assert response is not None, "a handler returned neither a response nor a stream"
            self._respond(request, response)
        try:
            if isinstance(response, FileResponse):
                await self._send_file(request, response)
            await self.drain()
        except ClientGone:
            return
        self._finish(request)

    def _respond(self, request: Request, response: Response) -> None:
        if not request.body.complete:  # nobody knows whether the client will send the rest
            request.keep_alive = False
        head = self._head(request, response.status, response.content_type, response.headers)
        if response.status in (204, 304):
            self.write(head + b"\r\n")
        elif request.method == "HEAD":
            length = len(response.body) if response.length is None else response.length
            self.write(head + b"Content-Length: %d\r\n\r\n" % length)
        elif isinstance(response, FileResponse):
            self.write(head + b"Content-Length: %d\r\n\r\n" % response.length)
        else:
            self.write(head + b"Content-Length: %d\r\n\r\n%b" % (len(response.body), response.body))

    async def _send_file(self, request: Request, response: FileResponse) -> None:
        """Send the body from its file: by sendfile(2) below the transport, or piece by piece through TLS.

        Raises ClientGone, with the connection cut: whoever reads a Content-Length sees that bytes are missing.
        """
        sock: socket.socket | None = None
        try:
            offset, end = response.offset, response.offset + response.length
            if request.method == "HEAD" or self._transport is None:
                return
            if self._transport.get_extra_info("ssl_object") is None:
                self._transport.set_write_buffer_limits(high=0)  # pauses until the head is all out
                await self.drain()
                sock = cast(socket.socket, self._transport.get_extra_info("socket").dup())
                sock.setblocking(False)
            ready = end if response.grown is None else offset
            while offset < end:
                if response.grown is not None and offset >= ready:
                    ready = min(end, await response.grown(offset))
                piece = min(ready - offset, FILE_PIECE_BYTES)
                if sock is None:
                    data = os.pread(response.fd, min(piece, HELD_BYTES), offset)
                    self.write(data)
                    sent = len(data)
                    async with asyncio.timeout(STALL_S):
                        await self.drain()
                else:
                    try:
                        sent = os.sendfile(sock.fileno(), response.fd, offset, piece)
                    except BlockingIOError:
                        async with asyncio.timeout(STALL_S):
                            await self._wait_writable(sock)
                        continue
                    await asyncio.sleep(0)  # others have their turn
                if not sent:
                    raise ClientGone("the file became shorter while it was sent")
                offset += sent
        except OSError as error:
            self._abort()
            raise ClientGone("the client closed the connection, or took nothing for long") from error
        except asyncio.CancelledError:
            self._abort()
            raise
        finally:
            os.close(response.fd)
            if sock is not None:
                sock.close()
                if self._transport is not None:
                    self._transport.set_write_buffer_limits()

    async def _wait_writable(self, sock: socket.socket) -> None:
        ready: asyncio.Future[None] = self._loop.create_future()
        self._loop.add_writer(sock, _set_ready, ready)
        try:
            await ready
        finally:
            self._loop.remove_writer(sock)

    def _head(
        self, request: Request, status: int, content_type: str, headers: Mapping[str, str] | None
    ) -> bytes:
        lines = [f"HTTP/1.1 {status} {reason(status)}\r\n", self._server.common_headers]
        if request.id:
            lines.append(f"X-Request-Id: {request.id}\r\n")
        if content_type:
            lines.append(f"Content-Type: {content_type}\r\n")
        if headers:
            lines += [f"{key}: {value}\r\n" for key, value in headers.items()]
        lines.append(f"Date: {_now()}\r\n")
        if not request.keep_alive:
            lines.append("Connection: close\r\n")
        return "".join(lines).encode("latin-1", "replace")

    def _finish(self, request: Request) -> None:
        """The answer is out: go on with the next request, or end."""
        self._request = None
        self._task = None
        if self._transport is None:
            return
        if not request.body.complete:
            self._linger()
        elif not request.keep_alive or self._closing or (self._eof and not self._buffer):
            self._transport.close()
        else:
            self._set_reading(True)
            if self._buffer:
                self._parse()
            if self._request is None:
                self._wait_idle()
            if self._eof and self._request is None:  # what is left can't become a request
                self._transport.close()

    def _linger(self) -> None:
        """Close without a reset: a client that is still sending must be able to read the answer."""
        assert self._transport is not None
        if self._eof:
            self._transport.close()
            return
        self._lingering = True
        self._buffer.clear()
        self._set_reading(True)
        with contextlib.suppress(OSError, RuntimeError):
            self._transport.write_eof()
        self._timer = self._loop.call_later(LINGER_S, self._abort)

    def _refuse(self, status: int, message: str) -> None:
        """Answer what can't be parsed, and close."""
        request = Request(self)
        request.keep_alive = False
        request.body = Body(0, self._on_demand)
        self._stop_timer()
        self._respond(request, self._server.refuse(status, message))
        self._linger()

    # --- what a request may ask for (http.Writer) --------------------------------------

    def write(self, data: bytes) -> None:
        if self._transport is not None and not self._transport.is_closing():
            self._transport.write(data)

    async def drain(self) -> None:
        if self._writable is not None:
            await asyncio.shield(self._writable)
        if self._transport is None:
            raise ClientGone("the client closed the connection")

    def about_client(self, what: str) -> Any:
        return None if self._transport is None else self._transport.get_extra_info(what)

    async def start_stream(self, status: int, content_type: str, headers: Mapping[str, str] | None) -> Stream:
        request = self._request
        assert request is not None and self._stream is None
        chunked = request.chunkable
        if not request.body.complete:
            request.keep_alive = False
        head = self._head(request, status, content_type, headers)
        self._stream = Stream(self, chunked=chunked, silent=request.method == "HEAD")
        self.write(head + (b"Transfer-Encoding: chunked\r\n\r\n" if chunked else b"\r\n"))
        await self.drain()
        return self._stream

    async def hijack(self, head: bytes, *, settle: bool) -> tuple[socket.socket, bytes]:
        transport = self._transport
        if transport is None:
            raise ClientGone("the client closed the connection")
        self._set_reading(False)
        transport.set_write_buffer_limits(high=0)  # pauses until an earlier answer is all out
        await self.drain()
        if transport.is_closing():
            raise ClientGone("the client closed the connection")
        # A duplicate keeps the connection alive when the transport closes its own descriptor;
        # close(2) of one of two doesn't shut the connection down.
        sock = cast(socket.socket, transport.get_extra_info("socket").dup())
        sock.setblocking(False)
        early = bytes(self._buffer)
        self._buffer.clear()
        self._detached = True
        transport.abort()
        try:
            await self._loop.sock_sendall(sock, head + self._server.common_headers.encode() + b"\r\n")
        except BaseException as error:
            sock.close()
            if isinstance(error, OSError):
                raise ClientGone("the client closed the connection") from None
            raise
        if settle:
            await _wait_taken(sock)
        return sock, early

    def bind_to_client(self, *, ends_clean: bool) -> None:
        self._bound = True
        self._ends_clean = ends_clean
        if self._eof or self._transport is None:
            self._cancel()

    # --- ends --------------------------------------------------------------------------

    def shut_down(self, *, now: bool) -> None:
        """The server ends: idle connections close, answers without an end are cut."""
        self._closing = True
        if self._request is None:
            if self._transport is not None:
                self._transport.close()
        elif now or self._bound:
            self._cancel()

    def cut(self) -> None:
        """Drop the connection, whatever it is busy with."""
        self._abort()

    def _cancelable(self, request: Request) -> bool:
        return self._bound or request.method in ("GET", "HEAD")

    def _cancel(self) -> None:
        if self._task is not None and not self._detached:
            self._task.cancel()

    def _abort(self) -> None:
        self._stop_timer()
        if self._transport is not None and not self._detached:
            self._transport.abort()

    def _hung_up(self) -> bool:
        """True: the peer closed both directions. TCP can't tell before a write fails."""
        assert self._transport is not None
        poller = select.poll()
        poller.register(self._transport.get_extra_info("socket").fileno(), 0)
        return any(event & (select.POLLHUP | select.POLLERR) for _, event in poller.poll(0))

    def _set_reading(self, reading: bool) -> None:
        if reading != self._reading and self._transport is not None:
            self._reading = reading
            if reading:
                self._transport.resume_reading()
            else:
                self._transport.pause_reading()

    def _stop_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None


def _set_ready(waiter: asyncio.Future[None]) -> None:
    if not waiter.done():
        waiter.set_result(None)


def _wants_close(connection: str) -> bool:
    return any(word.strip().lower() == "close" for word in connection.split(","))


_date: tuple[int, str] = (0, "")


async def _wait_taken(sock: socket.socket) -> None:
    """Wait, for half a second at most, until the client has read the header of a hijacked connection.

    Python's http.client buffers whatever it reads along with the header, and the docker SDK then reads the
    stream from the socket below that buffer: what followed the header too closely would be lost to it.
    """
    loop = asyncio.get_running_loop()
    start = loop.time()
    pause_s = TAKEN_PAUSE_S
    while loop.time() - start < TAKEN_WITHIN_S:
        left = fcntl.ioctl(sock, termios.TIOCOUTQ, b"\0\0\0\0")  # SIOCOUTQ of unix(7) and tcp(7)
        if left == b"\0\0\0\0":
            return
        await asyncio.sleep(pause_s)
        pause_s = min(2 * pause_s, 0.01)  # a client that is busy elsewhere: look more rarely


def _now() -> str:
    """The Date header's value, formatted once a second."""
    global _date
    second = int(time.time())
    if _date[0] != second:
        _date = (second, formatdate(second, usegmt=True))
    return _date[1]
