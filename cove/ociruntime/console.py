"""Terminals: handing one to a `--console-socket`, or copying between one and the caller's own.

The master of the container's terminal comes from cove-init. Order that must hold in the foreground: the caller's
terminal goes into raw mode last before the copying and back before anything is printed.
"""

from __future__ import annotations

import _socket
import errno
import fcntl
import os
import select
import struct
import termios

import msgspec

from cove.model.errors import HostError, Invalid
from cove.runtime.oci import ConsoleSize

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import Any

    from cove.runtime.oci import Process

_CHUNK = 64 * 1024
_BOUND_S = 10.0  # for a socket whose owner accepts or reads nothing


def connect(path: str, flag: str) -> _socket.socket:
    """Connect to the unix socket of a flag. Raises Invalid."""
    peer = _socket.socket(_socket.AF_UNIX, _socket.SOCK_STREAM)
    peer.settimeout(_BOUND_S)
    try:
        peer.connect(path)
    except OSError as error:
        peer.close()
        raise Invalid(f"{flag} {path}: {(error.strerror or str(error)).lower()}") from None
    return peer


def hand_over(peer: _socket.socket, descriptor: int) -> None:
    """Send a descriptor with its name beside it, and close the connection. Raises HostError."""
    try:
        name = os.readlink(f"/proc/self/fd/{descriptor}").encode(errors="surrogateescape")
        send_descriptors(peer, name, (descriptor,))
    finally:
        peer.close()


def send_descriptors(peer: _socket.socket, message: bytes, descriptors: Sequence[int]) -> None:
    """One message with descriptors beside it (SCM_RIGHTS). Raises HostError."""
    rights = struct.pack(f"{len(descriptors)}i", *descriptors)
    try:
        peer.sendmsg([message], [(_socket.SOL_SOCKET, _socket.SCM_RIGHTS, rights)])
    except OSError as error:
        raise HostError(f"can't send a descriptor: {error.strerror}") from None


def find_terminal() -> int:
    """A descriptor of the caller's terminal, to be closed. Raises Invalid when there is none."""
    for descriptor in (2, 1, 0):
        if os.isatty(descriptor):
            return os.dup(descriptor)
    try:
        return os.open("/dev/tty", os.O_RDWR | os.O_CLOEXEC)
    except OSError:
        raise Invalid(
            "process.terminal is true and the caller has no terminal: give --detach and --console-socket, "
            "or set it to false"
        ) from None


def with_own_size(process: Process) -> Process:
    """The process with a terminal of the caller's size, whatever its config says: it has that from its first moment."""
    if not process.terminal:
        return process
    own = find_terminal()
    try:
        rows, columns = struct.unpack("4H", fcntl.ioctl(own, termios.TIOCGWINSZ, bytes(8)))[:2]
    except OSError:
        return process
    finally:
        os.close(own)
    return msgspec.structs.replace(process, console_size=ConsoleSize(height=rows, width=columns))


class Bridge:
    """Copies between the caller's terminal and the container's, until the latter hangs up."""

    def __init__(self, master: int) -> None:
        self._master = master
        self._own = find_terminal()
        self._before: list[Any] = termios.tcgetattr(self._own)
        self.resize()
        self._clear_onlcr()
        self._set_raw()

    def resize(self) -> None:
        """Give the container's terminal the size of the caller's."""
        try:
            size = fcntl.ioctl(self._own, termios.TIOCGWINSZ, bytes(8))
            fcntl.ioctl(self._master, termios.TIOCSWINSZ, size)
        except OSError:
            pass  # one of them has hung up

    def _clear_onlcr(self) -> None:
        """The caller's terminal, in raw mode, adds no carriage return; the container's has to."""
        mode = termios.tcgetattr(self._master)
        mode[1] |= termios.ONLCR
        termios.tcsetattr(self._master, termios.TCSANOW, mode)

    def _set_raw(self) -> None:
        """cfmakeraw(3)."""
        mode = termios.tcgetattr(self._own)
        mode[0] &= ~(
            termios.IGNBRK | termios.BRKINT | termios.PARMRK | termios.ISTRIP
            | termios.INLCR | termios.IGNCR | termios.ICRNL | termios.IXON
        )  # fmt: skip
        mode[1] &= ~termios.OPOST
        mode[2] = mode[2] & ~(termios.CSIZE | termios.PARENB) | termios.CS8
        mode[3] &= ~(termios.ECHO | termios.ECHONL | termios.ICANON | termios.ISIG | termios.IEXTEN)
        termios.tcsetattr(self._own, termios.TCSANOW, mode)

    def copy(self, ended: int) -> None:
        """Copy both ways until the process of the pidfd `ended` is gone and its last output is read."""
        poll = select.poll()
        poll.register(0, select.POLLIN)
        poll.register(self._master, select.POLLIN)
        poll.register(ended, select.POLLIN)
        while True:
            ready = dict(poll.poll())
            if ended in ready and not self._copy_output(block=False):
                return
            if self._master in ready and not self._copy_output(block=True):
                poll.unregister(self._master)
            if 0 in ready and not self._copy_input():
                poll.unregister(0)

    def _copy_output(self, *, block: bool) -> bool:
        """False at the end: every process of the container's has closed the terminal."""
        if not block:
            ready = select.poll()
            ready.register(self._master, select.POLLIN)
            if not any(event & select.POLLIN for _, event in ready.poll(0)):
                return False
        try:
            data = os.read(self._master, _CHUNK)
        except OSError as error:
            if error.errno != errno.EIO:
                raise
            data = b""
        write_all(1, data)
        return bool(data)

    def _copy_input(self) -> bool:
        try:
            data = os.read(0, _CHUNK)
            write_all(self._master, data)
        except OSError:
            return False
        return bool(data)

    def close(self) -> None:
        """The caller's terminal as it was before."""
        try:
            termios.tcsetattr(self._own, termios.TCSADRAIN, self._before)
        except termios.error:
            pass  # it has hung up
        os.close(self._own)
        os.close(self._master)


def write_all(descriptor: int, data: bytes) -> None:
    while data:
        data = data[os.write(descriptor, data) :]
