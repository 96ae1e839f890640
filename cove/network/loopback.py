"""Published ports on ::1: small proxies, because the kernel can't translate for IPv6's loopback.

A reply that is translated back to ::1 arrives from a link that isn't the loopback, and the kernel drops it:
IPv6 has no route_localnet. So what a program of the host sends to [::1]:PORT isn't translated; the socket
that holds the port listens, and passes on. Everything else, 127.0.0.1 too, goes through the kernel.

A rootless daemon serves every port so: its ports are in the user's network namespace, its rules in its own.

The proxies live in the daemon: connections through ::1 end with it, and new ones work when it is back.
Event-loop code; a slow reader slows its own writer only.
"""

from __future__ import annotations

import asyncio
import errno
import logging
import socket
from typing import cast

from cove.network.clients import socket_from
from cove.network.model import Published
from cove.network.ports import Held

log = logging.getLogger(__name__)

_UDP_IDLE_S = 90.0  # as docker-proxy
_BACKLOG = 128
_SHORT_OF_DESCRIPTORS_S = 1.0
_DATAGRAM_BYTES = 65535
_Peer = tuple[str, int, int, int]  # of IPv6: address, port, flow, scope
_UDP_CLIENTS = 512  # of one port; the longest idle one makes room


class LoopbackProxies:
    """The proxies of one daemon, by the descriptor that holds their port.

    They read that very descriptor, and close nothing: once `remove` has returned, the port can be released,
    and is free at that moment. (A transport would own a copy and close it some turns of the loop later.)
    """

    def __init__(self, *, everything: bool = False) -> None:
        """`everything`: the ports are in another network namespace, where no rule translates anything."""
        self._everything = everything
        self._served: dict[int, _Listener | _DatagramFront] = {}

    def add(self, held: Held) -> None:
        """Serve ::1 for a published port, where that needs a proxy. A port without a socket has none."""
        entry = held.published
        if held.descriptor < 0 or not (self._everything or entry.host_ip in ("::", "::1")):
            return
        try:
            if entry.protocol == "udp":
                self._served[held.descriptor] = _DatagramFront(held.descriptor, entry)
            else:
                self._served[held.descriptor] = _Listener(held.descriptor, entry, as_client=self._everything)
        except OSError as error:
            log.warning("port %d isn't reachable through ::1: %s", entry.host_port, error)

    def remove(self, held: Held) -> None:
        """Stop serving a port, before it is released; one that isn't served is fine."""
        served = self._served.pop(held.descriptor, None)
        if served is not None:
            served.close()

    def close(self) -> None:
        """Stop all."""
        while self._served:
            self._served.popitem()[1].close()


class _Listener:
    """A TCP port: accepts, and relays each connection to the container."""

    def __init__(self, descriptor: int, entry: Published, *, as_client: bool) -> None:
        self._entry = entry
        self._as_client = as_client  # the container sees the client's own address (clients.py)
        self._relays: set[_Relay] = set()
        self._tasks: set[asyncio.Task[object]] = set()
        self._pause: asyncio.TimerHandle | None = None
        self._loop = asyncio.get_running_loop()
        self._socket = socket.socket(fileno=descriptor)
        try:
            # set after bind(2), it takes nothing away from the port; connections that linger don't hold it then
            self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            self._socket.listen(_BACKLOG)
        except OSError:
            self._socket.detach()
            raise
        self._loop.add_reader(descriptor, self._accept)

    def close(self) -> None:
        if self._pause is not None:
            self._pause.cancel()
        self._loop.remove_reader(self._socket.fileno())
        self._socket.detach()
        for task in self._tasks:
            task.cancel()
        for relay in self._relays.copy():
            relay.abort()

    def _accept(self) -> None:
        try:
            client, peer = self._socket.accept()
        except OSError as error:
            if error.errno in (errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.ENOBUFS):
                # It stays in the backlog; asking again at once would only burn the processor.
                self._loop.remove_reader(self._socket.fileno())
                self._pause = self._loop.call_later(_SHORT_OF_DESCRIPTORS_S, self._resume)
            return
        client.setblocking(False)
        task = self._loop.create_task(self._relay(client, peer[0] if self._as_client else ""))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def _resume(self) -> None:
        self._pause = None
        self._loop.add_reader(self._socket.fileno(), self._accept)

    async def _relay(self, client: socket.socket, address: str) -> None:
        try:
            await self._loop.connect_accepted_socket(
                lambda: _Relay(self._entry, self._relays, address), client
            )
        except BaseException:
            client.close()
            raise


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

    def __init__(self, entry: Published, relays: set[_Relay], client: str) -> None:
        super().__init__()
        self._entry = entry
        self._client = client  # to connect as; "": as this host
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
            await self._reach(back)
        except OSError:
            self.transport.abort()  # the client sees a reset, as from a port nobody listens on
            return
        if self.transport.is_closing():
            assert back.transport is not None
            back.transport.abort()
            return
        self.other = back
        self.transport.resume_reading()

    async def _reach(self, back: _Side) -> None:
        loop = asyncio.get_running_loop()
        entry = self._entry
        sock = socket_from(self._client, entry.address) if self._client else None
        if sock is None:
            await loop.create_connection(lambda: back, entry.address, entry.port)
            return
        try:
            await loop.sock_connect(sock, (entry.address, entry.port))
            await loop.create_connection(lambda: back, sock=sock)
        except BaseException:
            sock.close()
            raise


class _DatagramFront:
    """A UDP port: one socket towards the container for each client, until it is idle."""

    def __init__(self, descriptor: int, entry: Published) -> None:
        self._entry = entry
        self._clients: dict[_Peer, _DatagramBack] = {}
        self._loop = asyncio.get_running_loop()
        self._socket = socket.socket(fileno=descriptor)
        self._loop.add_reader(descriptor, self._receive)

    def close(self) -> None:
        self._loop.remove_reader(self._socket.fileno())
        self._socket.detach()
        for client in list(self._clients.values()):
            client.close()
        self._clients.clear()

    def reply(self, data: bytes, peer: _Peer) -> None:
        try:
            self._socket.sendto(data, peer)
        except OSError:
            pass  # as on any network: a datagram may be lost

    def forget(self, peer: _Peer) -> None:
        self._clients.pop(peer, None)

    def _receive(self) -> None:
        try:
            data, peer = self._socket.recvfrom(_DATAGRAM_BYTES)
        except OSError:
            return  # an ICMP error of an earlier answer
        client = self._clients.pop(peer, None)
        if client is None:
            if len(self._clients) >= _UDP_CLIENTS:
                oldest = next(iter(self._clients))
                self._clients.pop(oldest).close()
            client = _DatagramBack(self, peer, self._entry)
        self._clients[peer] = client  # again the last one: dicts keep their order
        client.send(data)


class _DatagramBack(asyncio.DatagramProtocol):
    """One client's socket towards the container."""

    def __init__(
        self,
        front: _DatagramFront,
        peer: _Peer,
        entry: Published,
    ) -> None:
        self._front, self._peer = front, peer
        self._transport: asyncio.DatagramTransport | None = None
        self._waiting: list[bytes] = []
        self._closed = False
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
        self._closed = True
        self._timer.cancel()
        self._opening.cancel()
        if self._transport is not None:
            self._transport.close()

    def datagram_received(self, data: bytes, addr: tuple[str, int]) -> None:
        self._used = self._loop.time()
        if not self._closed:
            self._front.reply(data, self._peer)

    async def _open(self, entry: Published) -> None:
        try:
            transport, _ = await self._loop.create_datagram_endpoint(
                lambda: self, remote_addr=(entry.address, entry.port)
            )
        except OSError:
            self._front.forget(self._peer)
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
        self._front.forget(self._peer)
        self.close()
