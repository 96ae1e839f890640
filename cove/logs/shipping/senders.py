"""Connections to receivers: made when needed, made again when they break.

`send` returns when the other side has taken what it was given: its kernel has acknowledged the bytes of a
stream (SIOCOUTQ is 0), its application those of a forward-protocol chunk with an id; a datagram is gone when it's
sent. Anything else raises, and the caller sends the same again. A peer that takes nothing for STALL_S is given up.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import fcntl
import os
import socket
import struct
import termios
import time
from collections.abc import Callable, Sequence
from typing import Protocol

import msgspec

from cove.logs.destinations import Address
from cove.logs.shipping.cut import Message

CONNECT_S = 10.0
STALL_S = 30.0
_ACK_BYTES = 4096
_TURN = 64  # datagrams, then it's somebody else's turn

Datagrams = Callable[[Message], list[bytes] | None]


class Sender(Protocol):
    """What sends the messages of one log."""

    async def send(self, batch: Sequence[Message]) -> int:
        """How many messages, from the first on, the receiver has taken. Raises OSError, TimeoutError."""
        ...

    def close(self) -> None: ...


class TooLong(Exception):
    """A message that no datagram can hold: it can't be sent, ever."""


# --- streams ------------------------------------------------------------------------------


class StreamSender:
    """A TCP, TLS or Unix connection. `encode` gives the bytes of a batch, and an id that the peer acknowledges."""

    def __init__(
        self,
        address: Address,
        encode: Callable[[Sequence[Message]], tuple[bytes, str]],
        *,
        stall_s: float = STALL_S,
        ack_s: float = STALL_S,
        reconnect_s: float = 0.0,
    ) -> None:
        self._address = address
        self._encode = encode
        self._stall_s = stall_s
        self._ack_s = ack_s
        self._reconnect_s = reconnect_s
        self._reader: asyncio.StreamReader | None = None
        self._writer: asyncio.StreamWriter | None = None
        self._since = 0.0

    async def send(self, batch: Sequence[Message]) -> int:
        data, acknowledged = self._encode(batch)
        if data:
            try:
                reader, writer = await self._connected()
                writer.write(data)
                await self._taken(reader, writer)
                if acknowledged:
                    async with asyncio.timeout(self._ack_s):
                        await _read_acknowledgement(reader, acknowledged)
            except BaseException:
                self.close()
                raise
        return len(batch)

    def close(self) -> None:
        if self._writer is not None:
            self._writer.transport.abort() if self._writer.transport.get_write_buffer_size() else (
                self._writer.close()
            )
        self._reader = self._writer = None

    async def _connected(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        old = self._reconnect_s and time.monotonic() - self._since > self._reconnect_s
        if self._reader is not None and (old or self._reader.at_eof()):
            self.close()
        if self._reader is None or self._writer is None:
            async with asyncio.timeout(CONNECT_S):
                self._reader, self._writer = await self._connect()
            self._since = time.monotonic()
        return self._reader, self._writer

    async def _connect(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        address = self._address
        if address.path:
            return await asyncio.open_unix_connection(address.path, limit=_ACK_BYTES)
        context = None
        if address.tls is not None:
            from cove.logs.shipping.tls import client_context

            context = client_context(address.tls)
        return await asyncio.open_connection(address.host, address.port, ssl=context, limit=_ACK_BYTES)

    async def _taken(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        sock = writer.get_extra_info("socket")
        descriptor = sock.fileno()
        pause_s, last, moved = 0.0, -1, time.monotonic()
        while True:
            if writer.transport.is_closing() or reader.at_eof():
                raise ConnectionResetError(errno.ECONNRESET, os.strerror(errno.ECONNRESET))
            left = writer.transport.get_write_buffer_size() + _unsent(descriptor)
            if not left:
                return
            now = time.monotonic()
            if left != last:
                last, moved = left, now
            elif now - moved > self._stall_s:
                raise TimeoutError(f"{self._address} takes nothing")
            await asyncio.sleep(pause_s)
            pause_s = min(max(pause_s * 2, 0.0005), 0.05)


def _unsent(descriptor: int) -> int:
    """Bytes of a socket that the peer hasn't acknowledged (tcp(7)), or not read (unix(7)): SIOCOUTQ."""
    (count,) = struct.unpack("i", fcntl.ioctl(descriptor, termios.TIOCOUTQ, b"\0\0\0\0"))
    return int(count)


class _Acknowledgement(msgspec.Struct):
    ack: str


async def _read_acknowledgement(reader: asyncio.StreamReader, wanted: str) -> None:
    data = b""
    while True:
        piece = await reader.read(_ACK_BYTES)
        data += piece
        try:
            answer = msgspec.msgpack.decode(data, type=_Acknowledgement)
        except msgspec.ValidationError:
            raise ConnectionError(
                "the receiver acknowledges in a way that isn't the forward protocol's"
            ) from None
        except msgspec.DecodeError:
            if not piece or len(data) >= _ACK_BYTES:
                raise ConnectionResetError(errno.ECONNRESET, "no acknowledgement") from None
            continue
        if answer.ack != wanted:
            raise ConnectionError("the receiver acknowledges what it wasn't sent")
        return


# --- datagrams ----------------------------------------------------------------------------


class DatagramSender:
    """UDP or Unix datagrams, to the first of some addresses that is there. `attach`: one that is too long for a
    datagram goes as a descriptor, as journald takes it."""

    def __init__(self, addresses: Sequence[Address], encode: Datagrams, *, attach: bool = False) -> None:
        self._addresses = addresses
        self._encode = encode
        self._attach = attach
        self._socket: socket.socket | None = None

    async def send(self, batch: Sequence[Message]) -> int:
        for number, message in enumerate(batch):
            datagrams = self._encode(message)
            if datagrams is None:
                if number:
                    return number
                raise TooLong
            try:
                for datagram in datagrams:
                    await self._send_one(datagram)
            except (OSError, TimeoutError):
                self.close()
                if number:
                    return number
                raise
            if number % _TURN == _TURN - 1:
                await asyncio.sleep(0)
        return len(batch)

    def close(self) -> None:
        if self._socket is not None:
            self._socket.close()
        self._socket = None

    async def _send_one(self, data: bytes) -> None:
        if self._socket is None:
            self._socket = await self._connect()
        deadline = time.monotonic() + STALL_S
        while True:
            try:
                self._socket.send(data)
                return
            except BlockingIOError:
                async with asyncio.timeout(deadline - time.monotonic()):
                    await _writable(self._socket)
            except OSError as error:
                if error.errno != errno.EMSGSIZE:
                    raise
                if not self._attach:
                    raise TooLong from None
                _send_file(self._socket, data)
                return

    async def _connect(self) -> socket.socket:
        last: OSError | None = None
        for address in self._addresses:
            sock = None
            try:
                if address.path:
                    sock = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
                    sock.setblocking(False)
                    sock.connect(address.path)
                else:
                    loop = asyncio.get_running_loop()
                    async with asyncio.timeout(CONNECT_S):
                        found = await loop.getaddrinfo(address.host, address.port, type=socket.SOCK_DGRAM)
                    family, kind, protocol, _, place = found[0]
                    sock = socket.socket(family, kind, protocol)
                    sock.setblocking(False)
                    sock.connect(place)
                return sock
            except OSError as error:
                if sock is not None:
                    sock.close()
                last = error
        raise last or OSError(errno.ENOENT, os.strerror(errno.ENOENT))


def _send_file(sock: socket.socket, data: bytes) -> None:
    descriptor = os.memfd_create("journal", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    try:
        with open(descriptor, "wb", closefd=False) as file:
            file.write(data)
        # systemd's journal takes only a memfd that nobody can change
        fcntl.fcntl(
            descriptor,
            fcntl.F_ADD_SEALS,
            fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_WRITE | fcntl.F_SEAL_SEAL,
        )
        socket.send_fds(sock, [b""], [descriptor])
    finally:
        os.close(descriptor)


async def _writable(sock: socket.socket) -> None:
    loop = asyncio.get_running_loop()
    future: asyncio.Future[None] = loop.create_future()

    def ready() -> None:
        if not future.done():
            future.set_result(None)

    loop.add_writer(sock.fileno(), ready)
    try:
        await future
    finally:
        with contextlib.suppress(OSError, ValueError):
            loop.remove_writer(sock.fileno())
