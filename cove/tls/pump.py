"""One encrypted connection, pumped to and from a plain socket pair: both directions, each with its own end.

A raw stream over TLS can't be handed to a container's supervisor; the plain end of a socket pair can. What TLS says
by close_notify (RFC 8446, 6.1: it closes one direction) is a shutdown(2) of that direction on the plain side, and the
other way round, so that `docker run -i` ends its input and still reads the output. Nothing is read from a side while
the other one hasn't taken what was read before: a slow reader holds its peer back, and memory stays bounded.
"""

from __future__ import annotations

import contextlib
import select
import socket
import ssl
from typing import Any

CHUNK = 64 << 10
TURNS = 16  # chunks moved in one direction before others have their turn
HELD_BYTES = 256 << 10  # ciphertext that the socket hasn't taken


class Pump:
    """Moves bytes whenever one of its two sockets is ready; both are non-blocking and its own to close."""

    def __init__(
        self, tls: socket.socket, context: ssl.SSLContext, *, server_side: bool, name: str | None = None
    ) -> None:
        """`name` is the server's, which a client checks."""
        self.tls = tls
        self.plain: socket.socket | None = None
        self.ended = False
        self.failure = ""  # why it ended, when TLS says so
        self._received, self._outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        self._object = context.wrap_bio(
            self._received, self._outgoing, server_side=server_side, server_hostname=name
        )
        self._to_plain = b""
        self._to_tls = b""
        self._tls_eof = False  # the peer says no more
        self._plain_eof = False  # our side says no more
        self._finished = False  # the peer's socket has no more
        tls.setblocking(False)

    # --- the handshake ------------------------------------------------------------------------

    def shake(self) -> bool:
        """Go on with the handshake; True: it is complete. Raises OSError (ssl.SSLError is one)."""
        self._receive()
        try:
            self._object.do_handshake()
        except ssl.SSLWantReadError:
            if self._finished:
                raise ConnectionResetError("the peer went away in the middle of the handshake") from None
            return False
        finally:
            with contextlib.suppress(BlockingIOError):
                self._flush()  # an alert tells the peer why
        return True

    def peer_name(self) -> str:
        """The common name of the peer's certificate; "" without one."""
        found: Any = self._object.getpeercert() or {}
        names = [value for entry in found.get("subject", ()) for key, value in entry if key == "commonName"]
        return str(names[0]) if names else ""

    def join(self, plain: socket.socket) -> None:
        """Pump to and from `plain` from here on."""
        plain.setblocking(False)
        self.plain = plain

    # --- moving bytes -------------------------------------------------------------------------

    def interest(self) -> tuple[int, int]:
        """What to poll for: events of the TLS socket, and of the plain one."""
        of_tls = select.POLLOUT if self._to_tls or self._outgoing.pending else 0
        of_plain = select.POLLOUT if self._to_plain else 0
        if not self._finished and not self._tls_eof and not self._to_plain:
            of_tls |= select.POLLIN
        if not self._plain_eof and not self._crowded:
            of_plain |= select.POLLIN
        return of_tls, of_plain

    @property
    def _crowded(self) -> bool:
        return len(self._to_tls) + self._outgoing.pending > HELD_BYTES

    def move(self) -> None:
        """Move what can be moved now; `ended` is set at the end of both directions, or when a side is gone."""
        assert self.plain is not None
        try:
            self._inward(self.plain)
            self._outward(self.plain)
            self._flush()
        except (BlockingIOError, InterruptedError):
            pass
        except OSError as error:
            self.failure = getattr(error, "reason", None) or ""
            self.ended = True
            return
        if (
            self._plain_eof
            and not self._to_tls
            and not self._outgoing.pending
            and (self._tls_eof or self._gone())
        ):
            self.ended = True

    def _gone(self) -> bool:
        """Whether nobody reads the plain side any more."""
        assert self.plain is not None
        poller = select.poll()
        poller.register(self.plain, 0)
        return any(event & (select.POLLHUP | select.POLLERR) for _, event in poller.poll(0))

    def _inward(self, plain: socket.socket) -> None:
        """From the peer to our side. What is left at the end is in the kernel, where a poll sees it."""
        turns = 0
        while True:
            if self._to_plain:
                try:
                    self._to_plain = self._to_plain[plain.send(self._to_plain) :]
                except BlockingIOError:
                    return
                continue
            if self._tls_eof:
                return
            try:
                self._to_plain = self._object.read(CHUNK)
            except ssl.SSLWantReadError:
                turns += 1
                if turns > TURNS or not self._receive():
                    return
            except (ssl.SSLZeroReturnError, ssl.SSLEOFError):
                self._tls_eof = True
            else:
                self._tls_eof = not self._to_plain
            if self._tls_eof:
                with contextlib.suppress(OSError):
                    plain.shutdown(socket.SHUT_WR)

    def _receive(self) -> bool:
        """Take in ciphertext, or its end; False: there is neither now."""
        if self._finished:
            return False
        try:
            data = self.tls.recv(CHUNK)
        except (BlockingIOError, InterruptedError):
            return False
        if data:
            self._received.write(data)
        else:
            self._finished = True
            self._received.write_eof()
        return True

    def _outward(self, plain: socket.socket) -> None:
        """From our side to the peer."""
        for _ in range(TURNS):
            if self._plain_eof or self._crowded:
                return
            try:
                data = plain.recv(CHUNK)
            except (BlockingIOError, InterruptedError):
                return
            if data:
                self._object.write(data)
            else:
                self._plain_eof = True
                with contextlib.suppress(ssl.SSLError):
                    self._object.unwrap()  # writes close_notify; the peer's own comes when it likes
            with contextlib.suppress(BlockingIOError):
                self._flush()

    def _flush(self) -> None:
        while True:
            if not self._to_tls:
                self._to_tls = self._outgoing.read(CHUNK)
                if not self._to_tls:
                    return
            self._to_tls = self._to_tls[self.tls.send(self._to_tls) :]

    def release(self) -> socket.socket:
        """Close our side, and give back the peer's socket, which says no more: the caller drains and closes it."""
        self.ended = True
        if self.plain is not None:
            self.plain.close()
        with contextlib.suppress(OSError):
            self.tls.shutdown(socket.SHUT_WR)
        return self.tls

    def close(self) -> None:
        """Close both sides. Idempotent."""
        self.release().close()
