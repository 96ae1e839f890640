"""The process that speaks TLS for a daemon: `python -m cove.tls.relay CONTROL LISTENER... -- CERT KEY [CA]`.

It accepts, shakes hands, and only then gives the daemon the plain end of a socket pair, over the control socket, with
the peer's address and name. So a stranger's bytes meet OpenSSL in a process without privileges; and an attached
client's stream, whose plain end a supervisor holds, survives the daemon.

Order that must hold: certificates are read, privileges go, READY is told, the first connection is accepted. When the
daemon closes the control socket (it ended, or started a relay with newer certificates), nothing is accepted any more,
and the process ends with its last connection.
"""

from __future__ import annotations

import contextlib
import gc
import os
import select
import signal
import socket
import ssl
import sys
import time
from collections import deque

from cove.tls.pump import CHUNK, Pump

SHAKE_S = 10.0  # from accept to the end of the handshake
MOST_SHAKING = 512  # handshakes under way; above, nobody is accepted
DRAIN_S = 5.0  # an ended connection's peer may go on sending: closing at once would reset what it hasn't read
PAUSE_S = 0.2  # without accepting, when descriptors are short
NOBODY = 65534


def server_context(certificate: str, key: str, authority: str) -> ssl.SSLContext:
    """TLS 1.2 and newer; with an authority, clients need a certificate of it. Raises OSError."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.load_cert_chain(certificate, key, password=lambda: b"")  # no prompt for an encrypted key
    if authority == "system":
        context.load_default_certs(ssl.Purpose.CLIENT_AUTH)
    elif authority:
        context.load_verify_locations(authority)
    context.options |= ssl.OP_NO_RENEGOTIATION
    if authority:
        context.verify_mode = ssl.CERT_REQUIRED
    context.set_alpn_protocols(["http/1.1"])
    return context


class Relay:
    """All connections of one daemon's TLS addresses."""

    def __init__(
        self, control: socket.socket, listeners: list[socket.socket], context: ssl.SSLContext
    ) -> None:
        self._control: socket.socket | None = control
        self._listeners = listeners
        self._context = context
        self._poll = select.epoll()
        self._pumps: dict[int, Pump] = {}  # by both descriptors
        self._polled: dict[int, int] = {}
        self._shaking: dict[int, tuple[Pump, str, float]] = {}  # address and deadline
        self._draining: dict[int, tuple[socket.socket, float]] = {}
        self._handing: deque[tuple[bytes, socket.socket]] = deque()
        self._accept_after_s = 0.0
        control.setblocking(False)
        self._watch(control.fileno(), select.EPOLLIN)
        for listener in listeners:
            listener.setblocking(False)
            self._watch(listener.fileno(), select.EPOLLIN)

    def run(self) -> None:
        """Until the daemon is gone and the last connection with it."""
        while self._control is not None or self._pumps or self._shaking or self._draining:
            busy = self._shaking or self._draining or self._accept_after_s
            for fd, event in self._poll.poll(PAUSE_S if busy else None):
                if self._control is not None and fd == self._control.fileno():
                    self._controlled(event)
                elif fd in self._shaking:
                    self._shake(fd)
                elif fd in self._pumps:
                    self._move(self._pumps[fd])
                elif fd in self._draining:
                    self._drain(fd)
                else:
                    self._accept(fd)
            self._look_at_clock()

    def _watch(self, fd: int, events: int) -> None:
        before = self._polled.get(fd)
        if before is None:
            self._poll.register(fd, events)
        elif before != events:
            self._poll.modify(fd, events)
        self._polled[fd] = events

    def _forget(self, fd: int) -> None:
        if self._polled.pop(fd, None) is not None:
            with contextlib.suppress(OSError):
                self._poll.unregister(fd)

    # --- the daemon ---------------------------------------------------------------------------

    def _controlled(self, event: int) -> None:
        if event & (select.EPOLLHUP | select.EPOLLERR) or (
            event & select.EPOLLIN and not self._still_there()
        ):
            assert self._control is not None
            for sock in (self._control, *self._listeners):
                self._forget(sock.fileno())
                sock.close()
            self._control, self._listeners = None, []
            for _, plain in self._handing:
                plain.close()
            self._handing.clear()
        else:
            self._hand_over()

    def _still_there(self) -> bool:
        assert self._control is not None
        try:
            return bool(self._control.recv(1))
        except BlockingIOError:
            return True
        except OSError:
            return False

    def _hand_over(self) -> None:
        """Give the daemon the connections that wait for it."""
        if self._control is None:
            return
        while self._handing:
            told, plain = self._handing[0]
            try:
                socket.send_fds(self._control, [told], [plain.fileno()])
            except BlockingIOError:
                break
            except OSError:
                return  # the daemon is gone: the poll tells
            self._handing.popleft()
            plain.close()
        self._watch(self._control.fileno(), select.EPOLLIN | (select.EPOLLOUT if self._handing else 0))

    # --- connections --------------------------------------------------------------------------

    def _accept(self, fd: int) -> None:
        listener = next((sock for sock in self._listeners if sock.fileno() == fd), None)
        if listener is None:
            return None
        for _ in range(16):
            if len(self._shaking) >= MOST_SHAKING:
                return self._pause()
            try:
                sock, address = listener.accept()
            except (BlockingIOError, ConnectionAbortedError, InterruptedError):
                return None
            except OSError:  # EMFILE, ENFILE, ENOMEM: the rest waits in the backlog
                return self._pause()
            with contextlib.suppress(OSError):
                sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
            pump = Pump(sock, self._context, server_side=True)
            self._shaking[sock.fileno()] = (pump, f"{address[0]}:{address[1]}", time.monotonic() + SHAKE_S)
            self._watch(sock.fileno(), select.EPOLLIN)
        return None

    def _pause(self) -> None:
        """Accept nobody for a moment."""
        self._accept_after_s = time.monotonic() + PAUSE_S
        for listener in self._listeners:
            self._watch(listener.fileno(), 0)

    def _look_at_clock(self) -> None:
        now_s = time.monotonic()
        if self._accept_after_s and now_s >= self._accept_after_s:
            self._accept_after_s = 0.0
            for listener in self._listeners:
                self._watch(listener.fileno(), select.EPOLLIN)
        if self._shaking:
            for fd, (pump, _, deadline_s) in list(self._shaking.items()):
                if now_s > deadline_s:
                    self._drop(fd, pump)
        for fd, (sock, deadline_s) in list(self._draining.items()):
            if now_s > deadline_s:
                self._end_drain(fd, sock)

    def _shake(self, fd: int) -> None:
        pump, address, _ = self._shaking[fd]
        try:
            if not pump.shake():
                return
            ours, theirs = socket.socketpair()
        except OSError:  # a failed handshake, or a lack of descriptors
            self._drop(fd, pump)
            return
        del self._shaking[fd]
        pump.join(ours)
        self._pumps[fd] = self._pumps[ours.fileno()] = pump
        self._handing.append((f"{address} {pump.peer_name()}".encode()[:512], theirs))
        self._hand_over()
        self._move(pump)

    def _drop(self, fd: int, pump: Pump) -> None:
        del self._shaking[fd]
        self._forget(fd)
        pump.close()

    def _move(self, pump: Pump) -> None:
        assert pump.plain is not None
        fds = pump.tls.fileno(), pump.plain.fileno()
        pump.move()
        if pump.ended:
            for fd in fds:
                self._forget(fd)
                del self._pumps[fd]
            self._draining[fds[0]] = pump.release(), time.monotonic() + DRAIN_S
            self._watch(fds[0], select.EPOLLIN)
            return
        for fd, events in zip(fds, pump.interest(), strict=True):
            # a descriptor that is asked nothing of isn't polled: a hang-up would be told again and again
            if events:
                self._watch(fd, events)
            else:
                self._forget(fd)

    def _drain(self, fd: int) -> None:
        """Read what nobody wants, until the peer has ended too."""
        sock, _ = self._draining[fd]
        try:
            if sock.recv(CHUNK):
                return
        except (BlockingIOError, InterruptedError):
            return
        except OSError:
            pass
        self._end_drain(fd, sock)

    def _end_drain(self, fd: int, sock: socket.socket) -> None:
        del self._draining[fd]
        self._forget(fd)
        sock.close()


def drop_privileges() -> None:
    """Become nobody; a rootless daemon's relay stays the user that it is."""
    with contextlib.suppress(OSError):
        os.setgroups([])
    with contextlib.suppress(OSError):
        os.setresgid(NOBODY, NOBODY, NOBODY)
        os.setresuid(NOBODY, NOBODY, NOBODY)


def main(arguments: list[str]) -> int:
    split = arguments.index("--")
    descriptors = [int(word) for word in arguments[:split]]
    certificate, key, authority = (*arguments[split + 1 :], "")[:3]
    control, *listeners = (socket.socket(fileno=fd) for fd in descriptors)
    for number in (signal.SIGINT, signal.SIGHUP, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)  # what ends the daemon ends the control socket
    try:
        context = server_context(certificate, key, authority)
    except OSError as error:
        told = f"{getattr(error, 'reason', None) or error.strerror or error}"
        control.send(f"ERROR {certificate}, {key}, {authority}: {told}".encode()[:1024])
        return 1
    drop_privileges()
    gc.freeze()
    control.send(b"READY")
    Relay(control, listeners, context).run()
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
