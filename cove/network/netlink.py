"""Netlink messages: attributes, batches, acknowledgements. See docs/decisions/0003-netlink.md.

Owns the wire format and one socket type for NETLINK_ROUTE and NETLINK_NETFILTER. Blocking: the kernel
handles a request within sendmsg(2), so there is nothing to wait for but the kernel's own locks; callers
that may wait for those run in a thread. A socket belongs to the network namespace of the thread that
opened it, and keeps that namespace alive.

Sources: netlink(7), linux/netlink.h, linux/netfilter/nfnetlink.h.
"""

from __future__ import annotations

import errno
import os
import socket
import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from cove.model.errors import HostError

NETLINK_ROUTE = 0
NETLINK_NETFILTER = 12

NLM_F_REQUEST = 0x1
NLM_F_ACK = 0x4
NLM_F_ROOT = 0x100
NLM_F_MATCH = 0x200
NLM_F_DUMP = NLM_F_ROOT | NLM_F_MATCH
NLM_F_REPLACE = 0x100
NLM_F_EXCL = 0x200
NLM_F_CREATE = 0x400
NLM_F_DUMP_INTR = 0x10
NLM_F_CAPPED = 0x100
NLM_F_ACK_TLVS = 0x200

NLA_F_NESTED = 0x8000
NLA_TYPE_MASK = 0x3FFF

_NLMSG_ERROR = 2
_NLMSG_DONE = 3
_SOL_NETLINK = 270
_NETLINK_CAP_ACK = 10
_NETLINK_EXT_ACK = 11
_NETLINK_GET_STRICT_CHK = 12
_NLMSGERR_ATTR_MSG = 1
_HEADER = struct.Struct("=IHHII")
_ATTRIBUTE = struct.Struct("=HH")
_RECEIVE_BYTES = 1 << 17
# Acknowledgements wait in the socket's buffer, which holds some 270 by default; more would be lost.
_ACKNOWLEDGED_AT_ONCE = 64
# The kernel answers before sendmsg(2) returns, so that a long wait means a lost answer.
_PATIENCE = struct.pack("@ll", 10, 0)
_PADDING = (b"", b"\0\0\0", b"\0\0", b"\0")


class NetlinkError(HostError):
    """The kernel refused a request; `errno` says why, `what` which request it was."""

    def __init__(self, errno: int, what: str, detail: str = "") -> None:
        super().__init__(errno, what, detail)
        self.errno, self.what, self.detail = errno, what, detail

    def __str__(self) -> str:
        detail = f" ({self.detail})" if self.detail else ""
        return f"cannot {self.what}: {os.strerror(self.errno)}{detail}"


@dataclass(frozen=True, slots=True)
class Request:
    """One message to the kernel. `what` completes "cannot …"; `tolerated` are errors that are fine."""

    kind: int
    flags: int
    body: bytes
    what: str
    tolerated: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class Reply:
    """A message from the kernel, without its header."""

    kind: int
    body: bytes


def attribute(kind: int, value: bytes) -> bytes:
    """One attribute (struct nlattr), padded to four bytes."""
    size = len(value)
    return _ATTRIBUTE.pack(size + 4, kind) + value + _PADDING[size & 3]


def nested(kind: int, *attributes: bytes) -> bytes:
    """An attribute that holds attributes."""
    return attribute(kind | NLA_F_NESTED, b"".join(attributes))


def text(kind: int, value: str) -> bytes:
    """A string attribute, NUL-terminated."""
    return attribute(kind, value.encode() + b"\0")


def u32(kind: int, value: int) -> bytes:
    """An unsigned 32-bit attribute in the host's byte order (rtnetlink's)."""
    return attribute(kind, struct.pack("=I", value))


def parse_attributes(data: bytes, offset: int = 0) -> dict[int, bytes]:
    """Attributes by type, flags masked off; a truncated rest is ignored, a repeated type keeps its last."""
    return dict(each_attribute(data, offset))


def each_attribute(data: bytes, offset: int = 0) -> Iterator[tuple[int, bytes]]:
    """Each attribute as (type, value), in order."""
    end = len(data)
    while offset + 4 <= end:
        size, kind = _ATTRIBUTE.unpack_from(data, offset)
        if size < 4 or offset + size > end:
            return
        yield kind & NLA_TYPE_MASK, data[offset + 4 : offset + size]
        offset += (size + 3) & ~3


def zero_terminated(value: bytes) -> str:
    """The text of a string attribute."""
    return value.split(b"\0", 1)[0].decode(errors="replace")


class Netlink:
    """A netlink socket of the calling thread's network namespace. Not for use by two threads at once."""

    def __init__(self, protocol: int) -> None:
        self._socket = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, protocol)
        try:
            self._socket.setsockopt(_SOL_NETLINK, _NETLINK_EXT_ACK, 1)
            self._socket.setsockopt(_SOL_NETLINK, _NETLINK_CAP_ACK, 1)
            if protocol == NETLINK_ROUTE:
                # Without it the kernel ignores a dump's filters (Linux 4.20).
                self._socket.setsockopt(_SOL_NETLINK, _NETLINK_GET_STRICT_CHK, 1)
            self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, _PATIENCE)
            self._socket.bind((0, 0))
        except OSError:
            self._socket.close()
            raise
        self._sequence = 0

    def close(self) -> None:
        self._socket.close()

    def __enter__(self) -> Netlink:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def batch(self, requests: Sequence[Request]) -> None:
        """Send requests in one go and take their acknowledgements; the kernel does them in order.

        All are tried, whatever becomes of the ones before. Raises NetlinkError for the first that failed.
        """
        failed: NetlinkError | None = None
        for start in range(0, len(requests), _ACKNOWLEDGED_AT_ONCE):
            try:
                self._batch(requests[start : start + _ACKNOWLEDGED_AT_ONCE])
            except NetlinkError as error:
                failed = failed or error
        if failed is not None:
            raise failed

    def transaction(self, subsystem: int, requests: Sequence[Request], what: str) -> None:
        """An nfnetlink batch: all or nothing (NFNL_MSG_BATCH_BEGIN … END).

        Raises NetlinkError for the first request that failed, or for `what` when the commit did.
        """
        begin = self._sequence + 1
        self._sequence += len(requests) + 2
        frame = struct.pack(">BBH", 0, 0, subsystem)
        parts = [_pack(0x10, NLM_F_REQUEST, begin, frame)]
        waiting = {begin: Request(0x10, 0, b"", what)}
        for i, request in enumerate(requests, begin + 1):
            parts.append(_pack(request.kind, request.flags | NLM_F_REQUEST | NLM_F_ACK, i, request.body))
            waiting[i] = request
        parts.append(_pack(0x11, NLM_F_REQUEST, self._sequence, frame))
        self._socket.send(b"".join(parts))
        self._collect(waiting, silent=begin)

    def ask(self, request: Request) -> Reply | None:
        """Send a request that is answered by one message; None when an error of `tolerated` came back."""
        found = list(self._exchange(request))
        return found[0] if found else None

    def dump(self, request: Request) -> list[Reply]:
        """Every message of a dump. One that a change interrupted is asked for again, ten times at most."""
        for _ in range(10):
            self._interrupted = False
            replies = list(
                self._exchange(Request(request.kind, request.flags | NLM_F_DUMP, request.body, request.what))
            )
            if not self._interrupted:
                break
        return replies

    _interrupted = False

    def _batch(self, requests: Sequence[Request]) -> None:
        first = self._sequence + 1
        self._sequence += len(requests)
        self._socket.send(
            b"".join(
                _pack(request.kind, request.flags | NLM_F_REQUEST | NLM_F_ACK, first + i, request.body)
                for i, request in enumerate(requests)
            )
        )
        self._collect({first + i: request for i, request in enumerate(requests)})

    def _exchange(self, request: Request) -> Iterator[Reply]:
        self._sequence += 1
        dumping = request.flags & NLM_F_DUMP == NLM_F_DUMP
        ack = 0 if dumping else NLM_F_ACK
        self._socket.send(
            _pack(request.kind, request.flags | NLM_F_REQUEST | ack, self._sequence, request.body)
        )
        while True:
            for kind, flags, sequence, body in self._receive():
                if sequence != self._sequence:
                    continue
                if flags & NLM_F_DUMP_INTR:
                    self._interrupted = True
                if kind == _NLMSG_ERROR:
                    error = _error(request, flags, body)
                    if error is not None and error.errno not in request.tolerated:
                        raise error
                    return
                if kind == _NLMSG_DONE:
                    return
                yield Reply(kind, body)

    def _collect(self, waiting: dict[int, Request], silent: int = 0) -> None:
        failed: NetlinkError | None = None
        while waiting.keys() - {silent}:
            for kind, flags, sequence, body in self._receive():
                request = waiting.pop(sequence, None)
                if kind != _NLMSG_ERROR or request is None:
                    continue
                error = _error(request, flags, body)
                if error is not None and error.errno not in request.tolerated and failed is None:
                    failed = error
                if error is not None and sequence == silent:
                    # The batch as a whole was refused: nothing else need follow.
                    self._drain()
                    raise failed or error
        if failed is not None:
            raise failed

    def _drain(self) -> None:
        while True:
            try:
                self._socket.recv(_RECEIVE_BYTES, socket.MSG_DONTWAIT)
            except BlockingIOError:
                return
            except OSError:
                continue  # a pending error (ENOBUFS) is told once

    def _receive(self) -> list[tuple[int, int, int, bytes]]:
        try:
            data = self._socket.recv(_RECEIVE_BYTES)
        except OSError as error:
            self._drain()
            raise NetlinkError(error.errno or errno.EIO, "hear the kernel's answer") from None
        messages = []
        offset = 0
        while offset + 16 <= len(data):
            size, kind, flags, sequence, _ = _HEADER.unpack_from(data, offset)
            if size < 16:
                break
            messages.append((kind, flags, sequence, data[offset + 16 : offset + size]))
            offset += (size + 3) & ~3
        return messages


def _pack(kind: int, flags: int, sequence: int, body: bytes) -> bytes:
    size = len(body)
    return _HEADER.pack(size + 16, kind, flags, sequence, 0) + body + _PADDING[size & 3]


def _error(request: Request, flags: int, body: bytes) -> NetlinkError | None:
    (code,) = struct.unpack_from("=i", body)
    if code == 0:
        return None
    detail = ""
    if flags & NLM_F_ACK_TLVS and flags & NLM_F_CAPPED:
        message = parse_attributes(body, 20).get(_NLMSGERR_ATTR_MSG)
        detail = zero_terminated(message) if message else ""
    return NetlinkError(-code, request.what, detail)
