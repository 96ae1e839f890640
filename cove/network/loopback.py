"""Published ports on ::1: small proxies, because the kernel can't translate for IPv6's loopback.

A reply that is translated back to ::1 arrives from a link that isn't the loopback, and the kernel drops it:
IPv6 has no route_localnet. So what a program of the host sends to [::1]:PORT isn't translated; the socket
that holds the port listens, and passes on. Everything else, 127.0.0.1 too, goes through the kernel.

The proxies live in the daemon: connections through ::1 end with it, and new ones work when it is back.
Event-loop code; a slow reader slows its own writer only.
"""

from __future__ import annotations

import asyncio
import logging
import os
import socket
from typing import cast

from cove.network.model import Published
from cove.network.ports import Held

log = logging.getLogger(__name__)

_UDP_IDLE_S = 90.0  # as docker-proxy
_UDP_CLIENTS = 512  # of one port; the longest idle one makes room


class LoopbackProxies:
    """The proxies of one daemon, by the port they serve."""

    def __init__(self) -> None:
        self._servers: dict[int, asyncio.Server | asyncio.DatagramTransport] = {}
        self._fronts: dict[int, set[_Relay]] = {}

    async def add(self, held: Held) -> None:
        """Serve ::1 for a published port, where that needs a proxy. A port without a socket has none."""
        entry = held.published
        if held.descriptor < 0 or entry.host_ip not in ("::", "::1"):
            return
        loop = asyncio.get_running_loop()
        sock = socket.socket(fileno=os.dup(held.descriptor))
        try:
            if entry.protocol == "udp":
                transport, _ = await loop.create_datagram_endpoint(lambda: _DatagramFront(entry), sock=sock)
                self._servers[held.descriptor] = transport
            else:
                relays = self._fronts.setdefault(held.descriptor, set())
                self._servers[held.descriptor] = await loop.create_server(
                    lambda: _Relay(entry, relays), sock=sock, backlog=128
                )
        except OSError as error:
            sock.close()
            log.warning("port %d isn't reachable through ::1: %s", entry.host_port, error)

    def remove(self, held: Held) -> None:
        """Stop serving a port, before it is released; one that isn't served is fine."""
        server = self._servers.pop(held.descriptor, None)
        if server is not None:
            server.close()
        for relay in self._fronts.pop(held.descriptor, set()).copy():
            relay.abort()

    def close(self) -> None:
        """Stop all."""
        for descriptor in list(self._servers):
            self._servers.pop(descriptor).close()
        for relays in self._fronts.values():
            for relay in relays.copy():
                relay.abort()
        self._fronts.clear()


class _Side(asyncio.Protocol):
    """One end of a relayed connection: what it reads, the other end writes."""

    def __init__(self) -> None:
        self.transport: asyncio.Transport | None = None
        self.other: _Side | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)

    def data_received(self, data: bytes) -> None:
        if self.other is not None and self.other.transport is not None:
            self.other.transport.write(data)

    def eof_received(self) -> bool:
        if (
            self.other is not None
            and self.other.transport is not None
            and not self.other.transport.is_closing()
        ):
            self.other.transport.write_eof()
        return True  # the other direction may go on

    def pause_writing(self) -> None:
        if self.other is not None and self.other.transport is not None:
            self.other.transport.pause_reading()

    def resume_writing(self) -> None:
        if self.other is not None and self.other.transport is not None:
            self.other.transport.resume_reading()

    def connection_lost(self, exc: Exception | None) -> None:
        if self.other is not None and self.other.transport is not None:
            self.other.transport.close()


class _Relay(_Side):
    """The client's end; makes the connection to the container."""

    def __init__(self, entry: Published, relays: set[_Relay]) -> None:
        super().__init__()
        self._entry = entry
        self._relays = relays
        self._connecting: asyncio.Task[None] | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        assert self.transport is not None
        self.transport.pause_reading()
        self._relays.add(self)
        self._connecting = asyncio.get_running_loop().create_task(self._connect())

    def connection_lost(self, exc: Exception | None) -> None:
        self._relays.discard(self)
        if self._connecting is not None:
            self._connecting.cancel()
        super().connection_lost(exc)

    def abort(self) -> None:
        if self.transport is not None:
            self.transport.abort()

    async def _connect(self) -> None:
        assert self.transport is not None
        back = _Side()
        back.other = self
        try:
            await asyncio.get_running_loop().create_connection(
                lambda: back, self._entry.address, self._entry.port
            )
        except OSError:
            self.transport.abort()  # the client sees a reset, as from a port nobody listens on
            return
        if self.transport.is_closing():
            assert back.transport is not None
            back.transport.abort()
            return
        self.other = back
        self.transport.resume_reading()


class _DatagramFront(asyncio.DatagramProtocol):
    """The UDP port: one socket towards the container for each client, until it is idle."""

    def __init__(self, entry: Published) -> None:
        self._entry = entry
        self._transport: asyncio.DatagramTransport | None = None
        self._clients: dict[tuple[str, int], _DatagramBack] = {}

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.DatagramTransport, transport)

    def datagram_received(self, data: bytes, addr: tuple[str, int]) -> None:
        assert self._transport is not None
        client = self._clients.pop(addr, None)
        if client is None:
            if len(self._clients) >= _UDP_CLIENTS:
                self._clients.pop(next(iter(self._clients))).close()
            client = _DatagramBack(self, self._transport, addr, self._entry)
        self._clients[addr] = client  # again the last one: dicts keep their order
        client.send(data)

    def forget(self, addr: tuple[str, int]) -> None:
        self._clients.pop(addr, None)

    def connection_lost(self, exc: Exception | None) -> None:
        for client in list(self._clients.values()):
            client.close()
        self._clients.clear()


class _DatagramBack(asyncio.DatagramProtocol):
    """One client's socket towards the container."""

    def __init__(
        self,
        front: _DatagramFront,
        reply: asyncio.DatagramTransport,
        addr: tuple[str, int],
        entry: Published,
    ) -> None:
        self._front, self._reply, self._addr = front, reply, addr
        self._transport: asyncio.DatagramTransport | None = None
        self._waiting: list[bytes] = []
        self._loop = asyncio.get_running_loop()
        self._used = self._loop.time()
        self._timer = self._loop.call_later(_UDP_IDLE_S, self._check_idle)
        self._opening = self._loop.create_task(self._open(entry))

    def send(self, data: bytes) -> None:
        self._used = self._loop.time()
        if self._transport is not None:
            self._transport.sendto(data)
        elif len(self._waiting) < 16:
            self._waiting.append(data)

    def close(self) -> None:
        self._timer.cancel()
        self._opening.cancel()
        if self._transport is not None:
            self._transport.close()

    def datagram_received(self, data: bytes, addr: tuple[str, int]) -> None:
        self._used = self._loop.time()
        if not self._reply.is_closing():
            self._reply.sendto(data, self._addr)

    async def _open(self, entry: Published) -> None:
        try:
            transport, _ = await self._loop.create_datagram_endpoint(
                lambda: self, remote_addr=(entry.address, entry.port)
            )
        except OSError:
            self._front.forget(self._addr)
            self._timer.cancel()
            return
        self._transport = transport
        for data in self._waiting:
            transport.sendto(data)
        self._waiting.clear()

    def _check_idle(self) -> None:
        left = self._used + _UDP_IDLE_S - self._loop.time()
        if left > 0:
            self._timer = self._loop.call_later(left, self._check_idle)
            return
        self._front.forget(self._addr)
        self.close()
