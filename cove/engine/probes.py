"""Health probes without a process in the container: HTTP, HTTPS and TCP from inside its network namespace.

A thread enters the namespace for as long as it takes to make a socket, and goes home; the socket stays of that
namespace. Connecting, sending and reading are the event loop's, without blocking; TLS is computed in threads. The
server is a stranger: what it sends is read up to bounds, and the caller's time limit covers all of it.

A certificate isn't verified: it is the container's own, asked for by an address that no authority vouches for.
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import os
import re
import socket
from collections.abc import Awaitable
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Protocol

from cove import __version__
from cove.model.errors import Conflict, HostError
from cove.model.extension import Probe

if TYPE_CHECKING:
    import ssl

MAX_HEAD = 16 << 10  # of an HTTP answer
MAX_BODY = 4000  # bytes that are kept; with the status line they fit into a health log's 4,096
MAX_HANDSHAKE = 256 << 10
BODY_S = 1.0  # what the body is waited for, once the status is known
_PIECE = 16 << 10
_CLONE_NEWNET = 0x40000000
_STATUS = re.compile(rb"HTTP/1\.[01] ([1-5]\d\d)(?: ([^\r\n]{0,100}))?[^\r\n]*\r?\n")
_HEAD_END = re.compile(rb"\r?\n\r?\n")
_libc = ctypes.CDLL(None, use_errno=True)


class Prober:
    """Makes sockets in other network namespaces, in a thread of its own that is made at the first one."""

    def __init__(self) -> None:
        self._thread: ThreadPoolExecutor | None = None
        self._home = -1

    async def open(self, pidfd: int, family: int) -> socket.socket:
        """A non-blocking stream socket in the network namespace of a process. Raises OSError."""
        if self._thread is None:
            self._home = os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
            self._thread = ThreadPoolExecutor(1, "cove-probe")
        target = os.dup(pidfd)  # the process may end, and its pidfd be closed, before the thread's turn
        return await asyncio.get_running_loop().run_in_executor(self._thread, self._open, target, family)

    def _open(self, pidfd: int, family: int) -> socket.socket:
        try:
            _enter(pidfd)
            try:
                kind = socket.SOCK_STREAM | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC
                return socket.socket(family, kind)
            finally:
                _enter(self._home)
        finally:
            os.close(pidfd)

    def close(self) -> None:
        """End the thread. Blocks for as long as it takes to make a socket."""
        if self._thread is not None:
            self._thread.shutdown()
            os.close(self._home)
            self._thread = None


def _enter(fd: int) -> None:
    """setns(2); a pidfd stands for its process's namespace since Linux 5.8."""
    if _libc.setns(fd, _CLONE_NEWNET):
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))


class Stream(Protocol):
    def send(self, data: bytes) -> Awaitable[None]: ...

    def receive(self) -> Awaitable[bytes]:
        """The next bytes, at most some 16 KiB; b"" at the end."""
        ...


class Plain:
    """A connected socket."""

    def __init__(self, sock: socket.socket) -> None:
        self._sock = sock
        self._loop = asyncio.get_running_loop()

    async def send(self, data: bytes) -> None:
        await self._loop.sock_sendall(self._sock, data)

    async def receive(self) -> bytes:
        return await self._loop.sock_recv(self._sock, _PIECE)


class Tls:
    """TLS over a connected socket; every step of the cipher is a thread's."""

    def __init__(self, below: Plain) -> None:
        import ssl

        self._ssl = ssl
        self._below = below
        self._incoming, self._outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
        self._object: ssl.SSLObject = context.wrap_bio(self._incoming, self._outgoing)

    async def handshake(self) -> None:
        """Raises HostError when the server's part of it makes no sense, or is too long."""
        taken = 0
        while not await asyncio.to_thread(self._step):
            await self._flush()
            piece = await self._below.receive()
            taken += len(piece)
            if not piece or taken > MAX_HANDSHAKE:
                raise HostError("TLS handshake: the server ended it, or sent too much")
            self._incoming.write(piece)
        await self._flush()

    def _step(self) -> bool:
        try:
            self._object.do_handshake()
        except self._ssl.SSLWantReadError:
            return False
        return True

    async def send(self, data: bytes) -> None:
        await asyncio.to_thread(self._object.write, data)
        await self._flush()

    async def receive(self) -> bytes:
        while True:
            try:
                return await asyncio.to_thread(self._object.read, _PIECE)
            except self._ssl.SSLWantReadError:
                await self._flush()
                piece = await self._below.receive()
                if not piece:
                    return b""
                self._incoming.write(piece)
            except (self._ssl.SSLZeroReturnError, self._ssl.SSLEOFError):
                return b""

    async def _flush(self) -> None:
        if self._outgoing.pending:
            await self._below.send(self._outgoing.read())


async def run_probe(prober: Prober, pidfd: int, probe: Probe) -> tuple[int, str]:
    """Probe once: 0 and what was answered, or 1 and why not. Bounded in memory; the caller bounds the time."""
    try:
        sock, where = await _connect(prober, pidfd, probe)
    except OSError as error:
        return 1, f"{probe.url}: {os.strerror(error.errno) if error.errno else error}"
    with sock:
        if probe.scheme == "tcp":
            return 0, f"connected to {where}"
        stream: Plain | Tls = Plain(sock)
        try:
            if probe.scheme == "https":
                stream = Tls(Plain(sock))
                await stream.handshake()
            return await exchange(stream, probe)
        except (OSError, HostError, Conflict) as error:  # ssl.SSLError is an OSError
            return 1, f"{probe.url}: {error}"


async def _connect(prober: Prober, pidfd: int, probe: Probe) -> tuple[socket.socket, str]:
    """A connection, and its address as text. Raises the first address's OSError when none answers."""
    first: OSError | None = None
    loop = asyncio.get_running_loop()
    for host in (probe.host,) if probe.host else ("127.0.0.1", "::1"):
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        try:
            sock = await prober.open(pidfd, family)
        except OSError as error:
            first = first or error
            continue
        try:
            await loop.sock_connect(sock, (host, probe.port))
        except OSError as error:
            sock.close()
            first = first or error
        except BaseException:
            sock.close()
            raise
        else:
            return sock, f"[{host}]:{probe.port}" if ":" in host else f"{host}:{probe.port}"
    assert first is not None
    raise first


def request_bytes(probe: Probe) -> bytes:
    """The request, as HTTP/1.1 with one answer."""
    headers = {
        "Host": f"{probe.host or 'localhost'}:{probe.port}",
        "User-Agent": f"cove-health/{__version__}",
        "Accept": "*/*",
        **dict(probe.headers),
        "Connection": "close",
    }
    lines = [f"GET {probe.path} HTTP/1.1", *(f"{name}: {value}" for name, value in headers.items()), "", ""]
    return "\r\n".join(lines).encode()


async def exchange(stream: Stream, probe: Probe) -> tuple[int, str]:
    """Ask and judge by the status; what fits of the body goes into the log."""
    await stream.send(request_bytes(probe))
    data = b""
    while True:
        match, end = _STATUS.match(data), _HEAD_END.search(data)
        if match is not None and end is not None:
            if match[1][:1] != b"1":
                break
            data = data[end.end() :]  # 100 Continue and the like: the answer comes after it
            continue
        if len(data) > MAX_HEAD:
            return 1, f"{probe.url}: the head of the answer is over {MAX_HEAD} bytes"
        piece = await stream.receive()
        if not piece:
            return 1, f"{probe.url}: no HTTP answer, but {len(data)} bytes: {_text(data[:80])!r}"
        data += piece
    status = int(match[1])
    head, body = data[: end.end()].lower(), bytearray(data[end.end() :])
    with contextlib.suppress(TimeoutError, OSError):
        async with asyncio.timeout(BODY_S):
            while len(body) < MAX_BODY and not _is_whole(head, body):
                piece = await stream.receive()
                if not piece:
                    break
                body += piece
    chunked = b"transfer-encoding: chunked" in head
    shown = _text((_join_chunks(bytes(body)) if chunked else bytes(body))[:MAX_BODY])
    line = _text(match[0]).strip()
    if probe.status_low <= status <= probe.status_high:
        return 0, f"{line}\n{shown}".rstrip("\n")
    wanted = f"expected {probe.status_low} to {probe.status_high}"
    return 1, f"{line} ({wanted})\n{shown}".rstrip("\n")


def _is_whole(head: bytes, body: bytes | bytearray) -> bool:
    """Whether the body is there as far as its head tells."""
    if b"transfer-encoding: chunked" in head:
        return body.endswith(b"\r\n0\r\n\r\n") or body == b"0\r\n\r\n"
    length = re.search(rb"\ncontent-length:[ \t]*(\d{1,15})[ \t]*\r?\n", head)
    return length is not None and len(body) >= int(length[1])


def _join_chunks(body: bytes) -> bytes:
    """The data of what came of a chunked body; up to where it makes no sense."""
    found = b""
    while match := re.match(rb"([0-9a-fA-F]{1,8})[^\r\n]{0,200}\r\n", body):
        size = int(match[1], 16)
        if not size:
            break
        found += body[match.end() : match.end() + size]
        body = body[match.end() + size + 2 :]
    return found


def _text(data: bytes) -> str:
    return data.decode("utf-8", "replace")
