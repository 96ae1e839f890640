"""The DNS server: answers every container at its own two sockets.

Owns the sockets that the daemon handed over, and nothing of the host: no rights, no files (`confine`). It goes on
while no daemon is there, and ends when there is neither a daemon nor a container. What the daemon tells is taken in
before each batch of queries, so that whoever was told of a container finds its name.

A container's queries are read a few at a time, in turn with the others', and up to RATE a second: the rest waits in its
own sockets. An answer that its socket doesn't take is lost, as UDP has it.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import struct
from collections.abc import Callable, Coroutine
from dataclasses import dataclass, field

from cove.network.dns import broker, control, wire
from cove.network.dns.control import Channel, Closed, Order
from cove.network.dns.names import Client, Directory, Server
from cove.network.dns.upstream import Capacity, Upstreams, read_message
from cove.network.dns.wire import Malformed, Query

TTL_S = 5  # a container that comes back may have another address
RATE = 5000  # queries a second, of one container
BURST = 2000
MOST_CONNECTIONS = 64  # of one container
IDLE_S = 10.0  # a TCP connection without a query
_BATCH = 16
_PAUSE_S = 0.02
_LARGEST_QUERY = 4096


@dataclass(slots=True)
class _Slot:
    """A container that is served."""

    client: Client
    udp: socket.socket
    tcp: socket.socket
    upstreams: Upstreams
    pidfd: int = -1
    allowed: float = BURST
    counted_at: float = 0.0
    tasks: set[asyncio.Task[None]] = field(default_factory=set)
    connections: int = 0
    resting: asyncio.TimerHandle | None = None


class DnsServer:
    """See the module; lives on one event loop."""

    def __init__(self, listener: socket.socket, requests: socket.socket, most_files: int) -> None:
        self._loop = asyncio.get_running_loop()
        self._listener = listener
        self._broker = _Broker(requests, self._end)
        self._directory = Directory()
        self._slots: dict[str, _Slot] = {}
        self._capacity = Capacity(min(Capacity().free, max(most_files // 4, 64)))
        self._channel: Channel | None = None
        self._told: tuple[set[str], set[tuple[str, str]]] | None = None  # since Begin: containers, records
        self._ended = asyncio.Event()

    async def run(self, daemon: socket.socket) -> None:
        """Serve until nobody needs it. `daemon` is the channel to the daemon that started this process."""
        self._listener.setblocking(False)
        self._loop.add_reader(self._listener.fileno(), self._accept_daemon)
        self._listen_to(Channel(daemon))
        await self._ended.wait()

    def _end(self) -> None:
        self._ended.set()

    # --- the daemon ---------------------------------------------------------------------------

    def _accept_daemon(self) -> None:
        with contextlib.suppress(OSError):
            sock, _ = self._listener.accept()
            self._listen_to(Channel(sock))

    def _listen_to(self, channel: Channel) -> None:
        """The newest daemon counts; it learns which containers are served."""
        if self._channel is not None:
            self._channel.close()
        self._channel, self._told = channel, None
        self._loop.add_reader(channel.fileno(), self._take_in)
        with contextlib.suppress(Closed):  # it is gone; what it told before is still to be read
            for container, slot in self._slots.items():
                channel.send(control.Serving(container), (slot.udp.fileno(), slot.tcp.fileno()))
            channel.send(control.Ready())

    def _hang_up(self) -> None:
        if self._channel is not None:
            self._channel.close()
            self._channel = None
        self._end_if_idle()

    def _end_if_idle(self) -> None:
        if self._channel is None and not self._slots:
            self._end()

    def _take_in(self) -> None:
        """All that the daemon has told by now."""
        try:
            while self._channel is not None and (got := self._channel.receive_order()) is not None:
                self._follow(*got)
        except Closed:
            self._hang_up()

    def _follow(self, order: Order, descriptors: list[int]) -> None:
        containers, records = self._told if self._told is not None else (set(), set())
        match order:
            case control.Begin():
                self._told = (set(), set())
            case control.Put(record):
                self._directory.put(record)
                records.add((record.network, record.container))
            case control.Drop(network, container):
                self._directory.drop(network, container)
            case control.Serve(client):
                containers.add(client.container)
                self._serve(client, descriptors)
                descriptors = []
            case control.Watch(container):
                if container in self._slots and descriptors:
                    self._watch(container, descriptors.pop())
            case control.Leave(container):
                self._leave(container)
            case control.Complete():
                for container in self._slots.keys() - containers:
                    self._leave(container)
                for key in set(self._directory.entries()) - records:
                    self._directory.drop(*key)
                self._told = None
        for fd in descriptors:
            os.close(fd)

    # --- containers ---------------------------------------------------------------------------

    def _serve(self, client: Client, descriptors: list[int]) -> None:
        slot = self._slots.get(client.container)
        if len(descriptors) == 2:
            if slot is not None:
                self._leave(client.container)
            udp, tcp = (socket.socket(fileno=fd) for fd in descriptors)
            slot = _Slot(client, udp, tcp, self._upstreams(client, udp), counted_at=self._loop.time())
            self._slots[client.container] = slot
            self._loop.add_reader(udp.fileno(), self._read_queries, slot)
            self._loop.add_reader(tcp.fileno(), self._accept_client, slot)
            return
        for fd in descriptors:
            os.close(fd)
        if slot is not None:
            slot.client = client
            if slot.upstreams.servers != client.servers:
                slot.upstreams = self._upstreams(client, slot.udp)

    def _upstreams(self, client: Client, beside: socket.socket) -> Upstreams:
        async def open_socket(server: Server, datagrams: bool) -> socket.socket:
            if not server.from_host:
                return await self._broker.open(beside, server.address, datagrams)
            family = socket.AF_INET6 if ":" in server.address else socket.AF_INET
            sock = socket.socket(family, socket.SOCK_DGRAM if datagrams else socket.SOCK_STREAM)
            sock.setblocking(False)
            return sock

        return Upstreams(self._capacity, client.servers, open_socket)

    def _watch(self, container: str, pidfd: int) -> None:
        slot = self._slots[container]
        if slot.pidfd >= 0:
            self._loop.remove_reader(slot.pidfd)
            os.close(slot.pidfd)
        slot.pidfd = pidfd
        self._loop.add_reader(pidfd, self._leave, container)

    def _leave(self, container: str) -> None:
        """Close everything that is in the container's namespace, so that it can go."""
        slot = self._slots.pop(container, None)
        if slot is None:
            return
        for fd in (slot.udp.fileno(), slot.tcp.fileno(), slot.pidfd):
            if fd >= 0:
                self._loop.remove_reader(fd)
        if slot.resting is not None:
            slot.resting.cancel()
        if slot.pidfd >= 0:
            os.close(slot.pidfd)
        slot.udp.close()
        slot.tcp.close()
        for task in slot.tasks:
            task.cancel()
        self._end_if_idle()

    # --- queries ------------------------------------------------------------------------------

    def _read_queries(self, slot: _Slot) -> None:
        self._take_in()
        if slot.udp.fileno() < 0:
            return  # that was what the daemon told
        now = self._loop.time()
        slot.allowed = min(BURST, slot.allowed + (now - slot.counted_at) * RATE)
        slot.counted_at = now
        for _ in range(_BATCH):
            if slot.allowed < 1:
                self._loop.remove_reader(slot.udp.fileno())
                slot.resting = self._loop.call_later(_PAUSE_S, self._read_again, slot)
                return
            try:
                message, sender = slot.udp.recvfrom(_LARGEST_QUERY)
            except OSError:
                return
            slot.allowed -= 1
            self._answer_datagram(slot, message, sender)

    def _read_again(self, slot: _Slot) -> None:
        slot.resting = None
        self._loop.add_reader(slot.udp.fileno(), self._read_queries, slot)

    def _answer_datagram(self, slot: _Slot, message: bytes, sender: tuple[str, int]) -> None:
        def reply(answer: bytes) -> None:
            with contextlib.suppress(OSError):  # it takes none now, or is closed
                slot.udp.sendto(answer, sender)

        try:
            query = wire.parse_query(message)
        except Malformed as malformed:
            if malformed.reply:
                reply(malformed.reply)
            return
        answer = self._known(slot, query, query.limit)
        if answer is not None:
            reply(answer)
        elif slot.upstreams.admit():
            upstreams = slot.upstreams
            task = self._spawn(slot, self._forward(upstreams, message, query, reply))
            task.add_done_callback(lambda _: upstreams.release())
        else:
            reply(wire.build_reply(query, wire.REFUSED))

    def _known(self, slot: _Slot, query: Query, limit: int) -> bytes | None:
        """The answer without asking anybody; None: other servers are to be asked."""
        found = self._directory.find(slot.client, query)
        if found is not None:
            return wire.build_reply(
                query, wire.NOERROR, found.answers, found.additional, ttl=TTL_S, limit=limit
            )
        single = query.name is not None and "." not in query.name
        if slot.client.ndots_given and single and query.kind in (wire.A, wire.AAAA):
            return wire.build_reply(query, wire.NXDOMAIN)
        if not slot.client.servers:
            return wire.build_reply(query, wire.SERVFAIL)
        return None

    async def _forward(
        self, upstreams: Upstreams, message: bytes, query: Query, reply: Callable[[bytes], None]
    ) -> None:
        answer = await upstreams.ask(message, query, by_tcp=False)
        if answer is None:
            answer = wire.build_reply(query, wire.SERVFAIL)
        elif len(answer) > query.limit:
            answer = wire.truncated(query)
        reply(answer)

    # --- queries by TCP -----------------------------------------------------------------------

    def _accept_client(self, slot: _Slot) -> None:
        try:
            sock, _ = slot.tcp.accept()
        except OSError:
            return
        if slot.connections >= MOST_CONNECTIONS:
            sock.close()
            return
        sock.setblocking(False)
        slot.connections += 1
        self._spawn(slot, self._converse(slot, sock)).add_done_callback(lambda _: _end_connection(slot, sock))

    async def _converse(self, slot: _Slot, sock: socket.socket) -> None:
        with contextlib.suppress(OSError, TimeoutError):
            while True:
                async with asyncio.timeout(IDLE_S):
                    message = await read_message(sock)
                self._take_in()
                answer = await self._answer_message(slot, message)
                if not answer:
                    return
                async with asyncio.timeout(IDLE_S):
                    await self._loop.sock_sendall(sock, struct.pack(">H", len(answer)) + answer)
                slot.allowed -= 1
                if slot.allowed < 1:
                    await asyncio.sleep(_PAUSE_S)

    async def _answer_message(self, slot: _Slot, message: bytes) -> bytes:
        try:
            query = wire.parse_query(message)
        except Malformed as malformed:
            return malformed.reply
        known = self._known(slot, query, wire.MAX_MESSAGE)
        if known is not None:
            return known
        upstreams = slot.upstreams
        if not upstreams.admit():
            return wire.build_reply(query, wire.REFUSED)
        try:
            answer = await upstreams.ask(message, query, by_tcp=True)
        finally:
            upstreams.release()
        return answer if answer is not None else wire.build_reply(query, wire.SERVFAIL)

    def _spawn(self, slot: _Slot, work: Coroutine[None, None, None]) -> asyncio.Task[None]:
        task = self._loop.create_task(work)
        slot.tasks.add(task)
        task.add_done_callback(slot.tasks.discard)
        return task


def _end_connection(slot: _Slot, sock: socket.socket) -> None:
    slot.connections -= 1
    sock.close()


class _Broker:
    """The server's side of `broker`."""

    def __init__(self, requests: socket.socket, ended: Callable[[], None]) -> None:
        requests.setblocking(False)
        self._requests = requests
        self._ended = ended
        self._waiting: dict[int, asyncio.Future[socket.socket]] = {}
        self._number = 0
        # Fewer than the socket's queue holds, so that no send is refused: a refusal would count against an upstream.
        self._room = asyncio.Semaphore(64)
        self._loop = asyncio.get_running_loop()
        self._loop.add_reader(requests.fileno(), self._receive)

    async def open(self, beside: socket.socket, address: str, datagrams: bool) -> socket.socket:
        """A socket for this address in the namespace of another one. Raises OSError."""
        async with self._room:
            self._number = (self._number + 1) & 0xFFFFFFFF
            number = self._number
            request = broker.REQUEST.pack(number, 6 if ":" in address else 4, datagrams)
            socket.send_fds(self._requests, [request], [beside.fileno()])
            future: asyncio.Future[socket.socket] = self._loop.create_future()
            self._waiting[number] = future
            try:
                return await future
            finally:
                self._waiting.pop(number, None)

    def _receive(self) -> None:
        try:
            data, descriptors, _, _ = socket.recv_fds(self._requests, broker.REPLY.size, 1)
        except BlockingIOError:
            return
        except OSError:
            data, descriptors = b"", []
        if not data:
            self._loop.remove_reader(self._requests.fileno())
            self._ended()
            return
        number, code = broker.REPLY.unpack(data)
        future = self._waiting.get(number)
        sock = socket.socket(fileno=descriptors[0]) if descriptors else None
        if future is None or future.done():
            if sock is not None:
                sock.close()
        elif sock is None:
            future.set_exception(OSError(code, os.strerror(code)))
        else:
            sock.setblocking(False)
            future.set_result(sock)
