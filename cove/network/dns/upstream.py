"""Forwarding: ask other servers what isn't known here.

A query goes out as it came, under an id and from a port of its own. The servers of a container are asked in their
order: the next one when one fails, or when it has been silent for a while (its answer still counts, if it comes first).
A server that was silent is asked last for some time. An answer that is cut short is fetched by TCP.

Bounds: MOST at once in all, and of these no container more than half of what is free, so that one that floods its
resolver leaves room for the others; MOST_EACH for one container.
"""

from __future__ import annotations

import asyncio
import contextlib
import secrets
import socket
import struct
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from cove.network.dns import wire
from cove.network.dns.names import Server
from cove.network.dns.wire import Query

MOST = 8192
MOST_EACH = 1024
PATIENCE_S = 1.5  # until the next server is asked, too
GIVE_UP_S = 8.0  # after the last one was asked; clients wait 5 s, and ask again
SHUNNED_S = 30.0
_PORT = 53

Open = Callable[[Server, bool], Awaitable[socket.socket]]  # datagrams? Raises OSError


@dataclass(slots=True)
class Capacity:
    """How many more queries the server may have under way."""

    free: int = MOST


class Upstreams:
    """The servers of one container, and what is under way to them."""

    def __init__(self, capacity: Capacity, servers: tuple[Server, ...], open_socket: Open) -> None:
        self._capacity = capacity
        self._open = open_socket
        self._shunned: dict[Server, float] = {}
        self._under_way = 0
        self.servers = servers

    def admit(self) -> bool:
        """Take a place for one query, which `release` gives back; False: too many are under way."""
        if self._under_way >= min(MOST_EACH, max(self._capacity.free // 2, 1)) or self._capacity.free <= 0:
            return False
        self._under_way += 1
        self._capacity.free -= 1
        return True

    def release(self) -> None:
        self._under_way -= 1
        self._capacity.free += 1

    async def ask(self, message: bytes, query: Query, *, by_tcp: bool) -> bytes | None:
        """The answer, with the query's id; None when no server gave one."""
        answer = await self._ask_all(message, query, by_tcp)
        return None if answer is None else wire.with_id(answer, query.id)

    async def _ask_all(self, message: bytes, query: Query, by_tcp: bool) -> bytes | None:
        loop = asyncio.get_running_loop()
        now = loop.time()
        waiting = sorted(self.servers, key=lambda server: self._shunned.get(server, 0.0) > now)
        asked: dict[asyncio.Task[bytes | None], Server] = {}
        refused: bytes | None = None
        try:
            while waiting or asked:
                if waiting:
                    server = waiting.pop(0)
                    asked[loop.create_task(self._ask_one(server, message, query, by_tcp))] = server
                timeout = PATIENCE_S if waiting else GIVE_UP_S
                done, _ = await asyncio.wait(asked, timeout=timeout, return_when=asyncio.FIRST_COMPLETED)
                if not done:
                    for server in asked.values():
                        self._shunned[server] = loop.time() + SHUNNED_S
                    if not waiting:
                        return refused
                for task in done:
                    server = asked.pop(task)
                    answer = task.result()
                    if answer is None:
                        self._shunned[server] = loop.time() + SHUNNED_S
                        continue
                    self._shunned.pop(server, None)
                    if wire.rcode_of(answer) not in (wire.SERVFAIL, wire.REFUSED):
                        return answer
                    refused = answer
            return refused
        finally:
            for task in asked:
                task.cancel()
            if asked:
                await asyncio.wait(asked)

    async def _ask_one(self, server: Server, message: bytes, query: Query, by_tcp: bool) -> bytes | None:
        try:
            if by_tcp:
                return await self._by_tcp(server, message, query)
            answer = await self._by_udp(server, message, query)
            if wire.is_truncated(answer):
                with contextlib.suppress(OSError):
                    return await self._by_tcp(server, message, query)
            return answer
        except OSError:
            return None  # no route, refused, closed before the answer was whole

    async def _by_udp(self, server: Server, message: bytes, query: Query) -> bytes:
        loop = asyncio.get_running_loop()
        id, sent = _renumbered(message)
        with await self._open(server, True) as sock:
            sock.connect((server.address, _PORT))  # the kernel drops what others send
            await loop.sock_sendall(sock, sent)
            while True:
                answer = await loop.sock_recv(sock, wire.MAX_MESSAGE)
                if wire.answers_question(answer, id, query.question):
                    return answer

    async def _by_tcp(self, server: Server, message: bytes, query: Query) -> bytes:
        loop = asyncio.get_running_loop()
        id, sent = _renumbered(message)
        with await self._open(server, False) as sock:
            await loop.sock_connect(sock, (server.address, _PORT))
            await loop.sock_sendall(sock, struct.pack(">H", len(sent)) + sent)
            answer = await read_message(sock)
        if not wire.answers_question(answer, id, query.question):
            raise ConnectionError("that is no answer to the question")
        return answer


async def read_message(sock: socket.socket) -> bytes:
    """One message of a stream. Raises ConnectionError at its end."""
    (size,) = struct.unpack(">H", await _read_exactly(sock, 2))
    return await _read_exactly(sock, size)


async def _read_exactly(sock: socket.socket, size: int) -> bytes:
    loop = asyncio.get_running_loop()
    data = bytearray()
    while len(data) < size:
        piece = await loop.sock_recv(sock, size - len(data))
        if not piece:
            raise ConnectionError("the connection ended")
        data += piece
    return bytes(data)


def _renumbered(message: bytes) -> tuple[int, bytes]:
    id = secrets.randbelow(1 << 16)
    return id, wire.with_id(message, id)
