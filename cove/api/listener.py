"""Bound sockets, the connections they bring and those that the TLS relay hands over; the owner of every request's task.

Order at the end: stop listening, close idle connections and answers without an end, wait for
the requests that change something, then cut the rest.
"""

from __future__ import annotations

import asyncio
import socket
import ssl
from collections.abc import Callable, Coroutine, Iterable
from typing import Any

from cove.api.connection import Connection
from cove.api.http import Handler, Response, error_response

BACKLOG = 1024
SHAKE_S = 10.0  # for TLS's handshake
FLUSH_S = 1.0  # for clients to take the last of their answers at the server's end


class HttpServer:
    """Serves `handler` on any number of sockets.

    `idle_s`: how long a connection without a request stays open; 0: for ever. `most`: how many connections at once;
    0: any number. `refuse` gives what HTTP itself forbids its form.
    """

    def __init__(
        self,
        handler: Handler,
        headers: Iterable[tuple[str, str]] = (),
        *,
        idle_s: float = 0.0,
        most: int = 0,
        refuse: Callable[[int, str], Response] = error_response,
    ) -> None:
        self.idle_s = idle_s
        self.refuse = refuse
        self._most = most
        self.common_headers = "".join(f"{key}: {value}\r\n" for key, value in headers)
        self._handler = handler
        self._servers: list[asyncio.AbstractServer] = []
        self._connections: set[Connection] = set()
        self._tasks: set[asyncio.Task[None]] = set()

    async def listen(self, sock: socket.socket, tls: ssl.SSLContext | None = None) -> None:
        """Accept on a bound socket, unix or TCP. The server owns it from here on. `tls`: speak it in this process."""
        loop = asyncio.get_running_loop()
        sock.setblocking(False)
        if sock.family == socket.AF_UNIX:
            server = await loop.create_unix_server(self._accepted, sock=sock, backlog=BACKLOG)
        else:
            shake_s = SHAKE_S if tls else None
            server = await loop.create_server(
                self._accepted, sock=sock, backlog=BACKLOG, ssl=tls, ssl_handshake_timeout=shake_s
            )
        self._servers.append(server)

    @property
    def connections(self) -> int:
        """How many clients are connected; raw streams that were handed over don't count."""
        return len(self._connections)

    def adopt(self, sock: socket.socket) -> None:
        """Serve a connection that somebody else accepted. The server owns it from here on."""
        sock.setblocking(False)
        self.run(self._adopt(sock))

    async def _adopt(self, sock: socket.socket) -> None:
        try:
            await asyncio.get_running_loop().connect_accepted_socket(self._accepted, sock)
        except OSError:
            sock.close()  # the client has gone meanwhile

    async def close(self, grace_s: float = 10.0) -> None:
        """End: changes under way have `grace_s` seconds to finish. Idempotent."""
        servers, self._servers = self._servers, []
        for server in servers:
            server.close()
        for connection in list(self._connections):
            connection.shut_down(now=False)
        if self._tasks:
            await asyncio.wait(list(self._tasks), timeout=grace_s)
        for connection in list(self._connections):
            connection.shut_down(now=True)
        if self._tasks:
            await asyncio.wait(list(self._tasks), timeout=grace_s)
        deadline_s = asyncio.get_running_loop().time() + FLUSH_S
        while self._connections and asyncio.get_running_loop().time() < deadline_s:  # noqa: ASYNC110 - once
            await asyncio.sleep(0.005)  # the last answers are on their way
        for connection in list(self._connections):
            connection.cut()
        for server in servers:
            await server.wait_closed()

    # --- connections -----------------------------------------------------------------------

    def _accepted(self) -> Connection:
        return Connection(self, self._handler)

    def add(self, connection: Connection) -> None:
        self._connections.add(connection)
        if self._most and len(self._connections) > self._most:
            connection.cut()

    def discard(self, connection: Connection) -> None:
        self._connections.discard(connection)

    def run(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        """Start a request's task; the server keeps hold of it until it ends."""
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task
