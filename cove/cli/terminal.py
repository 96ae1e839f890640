"""The caller's terminal: raw mode that is always undone, its size, signals as readable bytes, detach keys.

Signals arrive on a pipe (`Signals.fd`), so one poll loop sees them beside the sockets. Uses the
C module under `signal`, whose Python half imports enum.
"""

from __future__ import annotations

import _signal  # type: ignore[import-not-found]
import fcntl
import os
import struct
import termios

from cove.cli.fail import CliError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

SIGINT: int = _signal.SIGINT
SIGTERM: int = _signal.SIGTERM
SIGHUP: int = _signal.SIGHUP
SIGQUIT: int = _signal.SIGQUIT
SIGWINCH: int = _signal.SIGWINCH
SIGTSTP: int = _signal.SIGTSTP
# What is passed on to the process: everything a person or a supervisor sends on purpose.
PROXIED = tuple(
    getattr(_signal, name)
    for name in ("SIGHUP", "SIGINT", "SIGQUIT", "SIGTERM", "SIGUSR1", "SIGUSR2", "SIGALRM", "SIGCONT")
)


def signal_name(number: int) -> str:
    """`SIGTERM` of 15."""
    for name in dir(_signal):
        if name.startswith("SIG") and not name.startswith("SIG_") and getattr(_signal, name) == number:
            return str(name)
    return str(number)


class RawMode:
    """Puts a terminal into raw mode until `restore`; a context manager."""

    def __init__(self, fd: int) -> None:
        self.fd = fd
        self._saved: list[Any] | None = None

    def __enter__(self) -> RawMode:
        self._saved = termios.tcgetattr(self.fd)
        mode = termios.tcgetattr(self.fd)
        # cfmakeraw(3)
        mode[0] &= ~(
            termios.IGNBRK
            | termios.BRKINT
            | termios.PARMRK
            | termios.ISTRIP
            | termios.INLCR
            | termios.IGNCR
            | termios.ICRNL
            | termios.IXON
        )
        mode[1] &= ~termios.OPOST
        mode[2] = (mode[2] & ~(termios.CSIZE | termios.PARENB)) | termios.CS8
        mode[3] &= ~(termios.ECHO | termios.ECHONL | termios.ICANON | termios.ISIG | termios.IEXTEN)
        mode[6][termios.VMIN], mode[6][termios.VTIME] = 1, 0
        termios.tcsetattr(self.fd, termios.TCSANOW, mode)
        return self

    def restore(self) -> None:
        """Give the terminal its former mode back; once."""
        if self._saved is not None:
            saved, self._saved = self._saved, None
            try:
                termios.tcsetattr(self.fd, termios.TCSADRAIN, saved)
            except (termios.error, OSError):
                pass  # the terminal is gone: there is nothing to restore

    def __exit__(self, *_: object) -> None:
        self.restore()


class Signals:
    """While entered, the given signals are written to a pipe as bytes instead of acting."""

    def __init__(self, numbers: tuple[int, ...]) -> None:
        self.numbers = numbers
        self.fd = -1
        self._saved: dict[int, Any] = {}
        self._write_fd = -1
        self._wakeup = -1

    def __enter__(self) -> Signals:
        self.fd, self._write_fd = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        self._wakeup = _signal.set_wakeup_fd(self._write_fd, warn_on_full_buffer=False)
        for number in self.numbers:
            self._saved[number] = _signal.signal(number, lambda *_: None)
        return self

    def read(self) -> bytes:
        """The signals that came, one byte each."""
        try:
            return os.read(self.fd, 256)
        except BlockingIOError:
            return b""

    def __exit__(self, *_: object) -> None:
        for number, handler in self._saved.items():
            _signal.signal(number, handler)
        _signal.set_wakeup_fd(self._wakeup)
        os.close(self.fd)
        os.close(self._write_fd)


def window_size(fd: int) -> tuple[int, int]:
    """Rows and columns; (0, 0) where `fd` is no terminal."""
    try:
        rows, columns, _, _ = struct.unpack("HHHH", fcntl.ioctl(fd, termios.TIOCGWINSZ, b"\0" * 8))
    except OSError:
        return 0, 0
    return rows, columns


def parse_detach_keys(text: str) -> bytes:
    """`ctrl-p,ctrl-q` as the bytes that a terminal sends; "" is that default."""
    keys = b""
    for key in (text or "ctrl-p,ctrl-q").split(","):
        name = key.removeprefix("ctrl-")
        if key.startswith("ctrl-") and len(name) == 1 and (name.isascii() and name.isalpha()):
            keys += bytes([ord(name.lower()) - ord("a") + 1])
        elif key.startswith("ctrl-") and len(name) == 1 and name in "@[\\]^_":
            keys += bytes([ord(name) - 64])
        elif len(key) == 1 and key.isascii():
            keys += key.encode()
        else:
            raise CliError(
                f"--detach-keys {text}: expected letters or ctrl-LETTER by commas, e.g. ctrl-p,ctrl-q"
            )
    return keys


class KeyWatch:
    """Notices the detach keys in what is typed. The daemon acts on them; this tells why a session ended."""

    def __init__(self, keys: bytes) -> None:
        self._keys = keys
        self._tail = b""
        self.seen = False

    def feed(self, typed: bytes) -> None:
        """Look at the next bytes typed."""
        if self._keys and not self.seen:
            self.seen = self._keys in self._tail + typed
            self._tail = (self._tail + typed)[-(len(self._keys) - 1) :] if len(self._keys) > 1 else b""
