"""What the daemon and the DNS server tell each other, and the channel that carries it.

One message is one packet of a SOCK_SEQPACKET socket, with descriptors beside it. The daemon's state is the truth: after
every connection it tells all of it between `Begin` and `Complete`, and what wasn't told by then is dropped. Sending
never blocks: what the socket doesn't take waits, up to a bound, and goes as soon as it can.
"""

from __future__ import annotations

import asyncio
import os
import socket
from collections import deque
from collections.abc import Sequence
from typing import TypeVar

import msgspec

from cove.network.dns.names import Client, Record

MAX_MESSAGE = 128 << 10
_MAX_WAITING = 1 << 16  # messages: more than a daemon with 10,000 containers tells at once
_MOST_DESCRIPTORS = 4


class Begin(msgspec.Struct, frozen=True, array_like=True, tag="begin"):
    """All that there is follows, up to `Complete`."""


class Complete(msgspec.Struct, frozen=True, array_like=True, tag="complete"):
    """What wasn't told since `Begin` is gone."""


class Put(msgspec.Struct, frozen=True, array_like=True, tag="put"):
    record: Record


class Drop(msgspec.Struct, frozen=True, array_like=True, tag="drop"):
    network: str
    container: str


class Serve(msgspec.Struct, frozen=True, array_like=True, tag="serve"):
    """Answer a container. Its UDP and TCP socket come along, unless the server has them."""

    client: Client


class Watch(msgspec.Struct, frozen=True, array_like=True, tag="watch"):
    """A pidfd comes along: with its process the container is gone, also when no daemon is there to tell."""

    container: str


class Leave(msgspec.Struct, frozen=True, array_like=True, tag="leave"):
    """The container is gone: close what is open there."""

    container: str


class Serving(msgspec.Struct, frozen=True, array_like=True, tag="serving"):
    """From the server: it answers this container; its two sockets come along."""

    container: str


class Ready(msgspec.Struct, frozen=True, array_like=True, tag="ready"):
    """From the server: that were all of them."""


T = TypeVar("T")
Order = Begin | Complete | Put | Drop | Serve | Watch | Leave
Report = Serving | Ready
_orders: msgspec.msgpack.Decoder[Order] = msgspec.msgpack.Decoder(Order)
_reports: msgspec.msgpack.Decoder[Report] = msgspec.msgpack.Decoder(Report)
_encoder = msgspec.msgpack.Encoder()


class Closed(Exception):
    """The other side is gone, or can't be understood."""


def pair() -> tuple[socket.socket, socket.socket]:
    """Two connected sockets of the channel's kind."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    for end in (ours, theirs):
        end.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4 * MAX_MESSAGE)
    return ours, theirs


class Channel:
    """One end; owns its socket."""

    def __init__(self, sock: socket.socket) -> None:
        sock.setblocking(False)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4 * MAX_MESSAGE)
        self._sock = sock
        self._waiting: deque[tuple[bytes, tuple[int, ...]]] = deque()
        self.loop = asyncio.get_running_loop()

    def fileno(self) -> int:
        return self._sock.fileno()

    def send(self, message: Order | Report, descriptors: Sequence[int] = ()) -> None:
        """Send, or keep for later; descriptors stay the caller's. Raises Closed."""
        data = _encoder.encode(message)
        if len(data) > MAX_MESSAGE:
            raise ValueError(f"a message of {len(data)} bytes: at most {MAX_MESSAGE}")
        if not self._waiting and self._try(data, descriptors):
            return
        if len(self._waiting) >= _MAX_WAITING:
            raise Closed
        self._waiting.append((data, tuple(os.dup(fd) for fd in descriptors)))
        if len(self._waiting) == 1:
            self.loop.add_writer(self._sock.fileno(), self._flush)

    def receive_order(self) -> tuple[Order, list[int]] | None:
        """One message with its descriptors, which are the caller's; None: nothing is there. Raises Closed."""
        return self._receive(_orders)

    def receive_report(self) -> tuple[Report, list[int]] | None:
        return self._receive(_reports)

    def shut_down(self) -> None:
        """Hang up; both sides read the end. Raises OSError."""
        self._sock.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        if self._sock.fileno() >= 0:
            if self._waiting:
                self.loop.remove_writer(self._sock.fileno())
            self.loop.remove_reader(self._sock.fileno())
            self._sock.close()
        for _, descriptors in self._waiting:
            for fd in descriptors:
                os.close(fd)
        self._waiting.clear()

    def _receive(self, decoder: msgspec.msgpack.Decoder[T]) -> tuple[T, list[int]] | None:
        try:
            data, descriptors, flags, _ = socket.recv_fds(self._sock, MAX_MESSAGE, _MOST_DESCRIPTORS)
        except BlockingIOError:
            return None
        except OSError:
            raise Closed from None
        try:
            if not data or flags & (socket.MSG_TRUNC | socket.MSG_CTRUNC):
                raise Closed
            return decoder.decode(data), descriptors
        except (Closed, msgspec.DecodeError):
            for fd in descriptors:
                os.close(fd)
            raise Closed from None

    def _try(self, data: bytes, descriptors: Sequence[int]) -> bool:
        try:
            socket.send_fds(self._sock, [data], descriptors)
        except BlockingIOError:
            return False
        except OSError:
            raise Closed from None
        return True

    def _flush(self) -> None:
        try:
            while self._waiting:
                data, descriptors = self._waiting[0]
                if not self._try(data, descriptors):
                    return
                self._waiting.popleft()
                for fd in descriptors:
                    os.close(fd)
        except Closed:
            pass  # whoever reads from this end sees it, too
        self.loop.remove_writer(self._sock.fileno())
