"""One attached session: copies between the caller's streams, the terminal's signals and the daemon's socket.

A single poll loop, no threads. Standard input is read only when everything read before has been
sent, and the socket is always read, so neither side can block the other. When standard input
ends, the socket is shut down for writing only: the process sees the end of its input and its
output goes on.
"""

from __future__ import annotations

import _socket
import os
import select

from cove.cli import terminal
from cove.cli.fail import Exit

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

READ = 1 << 16


def write_all(fd: int, data: bytes) -> None:
    """Write everything; Exit(141) when the reader is gone, as SIGPIPE would end a C program."""
    view = memoryview(data)
    while view:
        try:
            view = view[os.write(fd, view) :]
        except BlockingIOError:
            select.select([], [fd], [])
        except BrokenPipeError:
            raise Exit(141) from None


class Demultiplexer:
    """Splits Docker's frames `stream 0 0 0 length` (api reference, attach) onto file descriptors 1 and 2."""

    def __init__(self, write: Callable[[int, bytes], None] = write_all) -> None:
        self._buffer = bytearray()
        self._write = write

    def feed(self, data: bytes) -> None:
        """Take the next bytes of the stream and write every complete or begun frame's payload."""
        self._buffer += data
        position, end = 0, len(self._buffer)
        while end - position >= 8:
            size = int.from_bytes(self._buffer[position + 4 : position + 8], "big")
            if end - position - 8 < size:
                break
            stream = self._buffer[position]
            self._write(2 if stream == 2 else 1, bytes(self._buffer[position + 8 : position + 8 + size]))
            position += 8 + size
        if position:
            del self._buffer[:position]


class Session:
    """Where the bytes go, and what happens on signals and keys."""

    def __init__(
        self,
        sock: _socket.socket,
        early: bytes,
        *,
        tty: bool,
        stdin: bool,
        detach_keys: bytes,
        on_signal: Callable[[int], None],
    ) -> None:
        self.sock = sock
        self.tty = tty
        self.stdin_fd = 0 if stdin else -1
        self.keys = terminal.KeyWatch(detach_keys if tty else b"")
        self.on_signal = on_signal
        self._pending = b""
        self._demultiplexer = None if tty else Demultiplexer()
        self._take(early)

    @property
    def detached(self) -> bool:
        """Whether the session ended because the detach keys were typed."""
        return self.keys.seen

    def _take(self, data: bytes) -> None:
        if not data:
            return
        if self._demultiplexer is None:
            write_all(1, data)
        else:
            self._demultiplexer.feed(data)

    def run(self, signals: terminal.Signals | None) -> None:
        """Copy until the daemon closes the stream."""
        self.sock.setblocking(False)
        poller = select.poll()
        fd = self.sock.fileno()
        poller.register(fd, select.POLLIN)
        if signals is not None:
            poller.register(signals.fd, select.POLLIN)
        if self.stdin_fd >= 0:
            poller.register(self.stdin_fd, select.POLLIN)
        while True:
            for ready, event in poller.poll():
                if signals is not None and ready == signals.fd:
                    for number in signals.read():
                        self.on_signal(number)
                elif ready == fd:
                    if event & select.POLLOUT:
                        self._send(poller)
                    if event & (select.POLLIN | select.POLLHUP | select.POLLERR) and not self._receive():
                        return
                elif ready == self.stdin_fd:
                    self._read_stdin(poller)

    def _receive(self) -> bool:
        try:
            data = self.sock.recv(1 << 18)
        except (BlockingIOError, InterruptedError):
            return True
        except ConnectionResetError:
            return False
        self._take(data)
        return bool(data)

    def _read_stdin(self, poller: select.poll) -> None:
        try:
            data = os.read(self.stdin_fd, READ)
        except BlockingIOError:
            return
        except OSError:  # EIO: the terminal is gone
            data = b""
        if not data:
            poller.unregister(self.stdin_fd)
            self.stdin_fd = -1
            self._shut_down()
            return
        self.keys.feed(data)
        self._pending = data
        # Unregistered, not masked: poll(2) reports a hang-up whatever the mask says.
        poller.unregister(self.stdin_fd)
        self._send(poller)

    def _send(self, poller: select.poll) -> None:
        try:
            while self._pending:
                self._pending = self._pending[self.sock.send(self._pending) :]
        except BlockingIOError:
            poller.modify(self.sock.fileno(), select.POLLIN | select.POLLOUT)
            return
        except (BrokenPipeError, ConnectionResetError):
            # The process ended or closed its input: what is left of ours has no reader.
            self._pending = b""
            self.stdin_fd = -1
        poller.modify(self.sock.fileno(), select.POLLIN)
        if self.stdin_fd >= 0:
            poller.register(self.stdin_fd, select.POLLIN)

    def _shut_down(self) -> None:
        try:
            self.sock.shutdown(_socket.SHUT_WR)
        except OSError:
            pass  # the other side closed already
