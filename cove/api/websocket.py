"""WebSocket sessions (RFC 6455): the handshake, and the relay between a client and a container's stream.

cove-init doesn't speak WebSocket, so the daemon stands between: bytes of the stream become messages,
and a client's messages, of whatever fragments, become bytes. Nothing is kept: who is slow is waited
for, and at most one read of each direction is in memory. A session ends with its daemon (close code
1001), and the container doesn't notice.
"""

from __future__ import annotations

import asyncio
import base64
import binascii
import codecs
import contextlib
import socket
from collections.abc import Coroutine, Mapping
from typing import Any

from cove.model.errors import Forbidden, Invalid, Unavailable

TYPE_CHECKING = False
if TYPE_CHECKING:
    from wsproto.connection import Connection
    from wsproto.events import Event

MAX_SESSIONS = 512
READ_BYTES = 32 << 10
CLOSE_WITHIN_S = 2.0  # how long a client may take to answer our close
GOING_WITHIN_S = 0.5  # the same when the daemon ends
VERSION = "13"


# --- the handshake ------------------------------------------------------------------------


def accept_head(headers: Mapping[str, str]) -> str:
    """The head of the answer to a client's handshake, without the empty line. Raises Invalid, Forbidden.

    A page of another site must not reach a daemon by its visitor's browser: browsers name the page's origin.
    """
    from wsproto.utilities import generate_accept_token

    wanted = headers.get("upgrade", "").strip().lower()
    words = [word.strip().lower() for word in headers.get("connection", "").split(",")]
    if wanted != "websocket" or "upgrade" not in words:
        raise Invalid("websocket: bad handshake: expected Upgrade: websocket and Connection: Upgrade")
    if headers.get("sec-websocket-version", "").strip() != VERSION:
        raise Invalid(f"websocket: bad handshake: expected Sec-WebSocket-Version: {VERSION}")
    key = headers.get("sec-websocket-key", "").strip()
    try:
        good = len(base64.b64decode(key, validate=True)) == 16
    except (binascii.Error, ValueError):
        good = False
    if not good:
        raise Invalid("websocket: bad handshake: Sec-WebSocket-Key has to be 16 bytes in base64")
    origin = headers.get("origin", "").strip()
    host = headers.get("host", "").strip()
    if origin and origin.partition("://")[2].lower() != host.lower():
        raise Forbidden(f"websocket: the origin {origin[:200]} isn't this daemon, {host[:200]}")
    token = generate_accept_token(key.encode("ascii")).decode("ascii")
    return (
        "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
        f"Sec-WebSocket-Accept: {token}\r\n"
    )


# --- sessions -----------------------------------------------------------------------------


class Sessions:
    """The owner of the relays' tasks."""

    def __init__(self) -> None:
        self._tasks: set[asyncio.Task[None]] = set()

    def check_room(self) -> None:
        """Raises Unavailable when no further session is possible."""
        if len(self._tasks) >= MAX_SESSIONS:
            raise Unavailable(
                f"{MAX_SESSIONS} WebSocket clients are attached, the most there can be: end one of them"
            )

    def spawn(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def close(self) -> None:
        """End all sessions, each with a word to its client."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)


async def run_session(
    client: socket.socket, inside: socket.socket, *, text: bool, early: bytes = b""
) -> None:
    """Relay until one side ends; closes both sockets. `text`: messages are text, what isn't UTF-8 becomes U+FFFD.

    `early` is what the client sent before the handshake was answered.
    """
    with client, inside:
        client.setblocking(False)
        inside.setblocking(False)
        await _Session(client, inside, text=text).run(early)


class _Session:
    def __init__(self, client: socket.socket, inside: socket.socket, *, text: bool) -> None:
        from wsproto.connection import Connection, ConnectionType

        self._client = client
        self._inside = inside
        self._websocket: Connection = Connection(ConnectionType.SERVER)
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace") if text else None
        self._sending = asyncio.Lock()  # a message goes out whole
        self._loop = asyncio.get_running_loop()

    async def run(self, early: bytes) -> None:
        code = 1001
        incoming = self._loop.create_task(self._receive(early))
        outgoing = self._loop.create_task(self._send_output())
        try:
            await asyncio.wait((incoming, outgoing), return_when=asyncio.FIRST_COMPLETED)
            code = 1000
            if outgoing.done() and not incoming.done():
                await self._say_close(code)
                await asyncio.wait((incoming,), timeout=CLOSE_WITHIN_S)
        except asyncio.CancelledError:
            outgoing.cancel()
            await self._say_close(code)
            await asyncio.wait((incoming,), timeout=GOING_WITHIN_S)
            raise
        finally:
            incoming.cancel()
            outgoing.cancel()
            await asyncio.gather(incoming, outgoing, return_exceptions=True)

    async def _say_close(self, code: int) -> None:
        from wsproto.events import CloseConnection

        with contextlib.suppress(OSError, TimeoutError):
            async with asyncio.timeout(CLOSE_WITHIN_S):
                await self._send(CloseConnection(code=code))

    async def _send(self, event: Event) -> None:
        from wsproto.utilities import LocalProtocolError

        async with self._sending:
            try:
                data = self._websocket.send(event)
            except LocalProtocolError:  # it is closed already
                return
            await self._loop.sock_sendall(self._client, data)

    async def _send_output(self) -> None:
        """From the container to the client, until the container's end, or the client's."""
        from wsproto.events import BytesMessage, TextMessage

        with contextlib.suppress(OSError):
            while data := await self._loop.sock_recv(self._inside, READ_BYTES):
                if self._decoder is None:
                    await self._send(BytesMessage(data=data))
                elif text := self._decoder.decode(data):
                    await self._send(TextMessage(data=text))

    async def _receive(self, early: bytes) -> None:
        """From the client to the container, until the client closes or breaks the protocol."""
        with contextlib.suppress(OSError):
            data = early or await self._loop.sock_recv(self._client, READ_BYTES)
            while data:
                self._websocket.receive_data(data)
                for event in self._websocket.events():
                    if not await self._take(event):
                        return
                data = await self._loop.sock_recv(self._client, READ_BYTES)

    async def _take(self, event: Event) -> bool:
        """Whether the session goes on after an event."""
        from wsproto.events import BytesMessage, CloseConnection, Ping, TextMessage

        match event:
            case TextMessage():
                await self._input(event.data.encode())
            case BytesMessage():
                await self._input(bytes(event.data))
            case Ping():
                await self._send(event.response())
            case CloseConnection():
                await self._send(event.response())
                return False
        return True

    async def _input(self, data: bytes) -> None:
        """A container that takes no more input still has output: what is sent to it is dropped."""
        with contextlib.suppress(OSError):
            await self._loop.sock_sendall(self._inside, data)
