"""Wait for a process in the foreground: forward signals to it, and bridge its terminal when it has one.

The process is this program's child (CLONE_PARENT), so its status comes by waitpid(2). Order that must hold: signals
are held back before the process is made, so that none is lost that comes before they are forwarded.
"""

from __future__ import annotations

import _signal  # type: ignore[import-not-found]
import os

from cove.ociruntime import caller

TYPE_CHECKING = False
if TYPE_CHECKING:
    from cove.ociruntime.launch import Started

_SIGCHLD, _SIGURG, _SIGWINCH = 17, 23, 28
_STOPPING = (9, 19)  # SIGKILL and SIGSTOP can't be caught
_KEPT = (_SIGCHLD, _SIGURG, *_STOPPING, 4, 7, 8, 11)  # and what tells of this program's own faults
_FORWARDED = [signo for signo in (*range(1, 32), *range(34, 65)) if signo not in _KEPT]


def hold_signals() -> None:
    """Keep signals until `wait` forwards them."""
    _signal.pthread_sigmask(_signal.SIG_BLOCK, _FORWARDED)


def wait(started: Started) -> int:
    """Its exit status, 128 + signal for a killed one. `started` stays the caller's but for its terminal."""
    status = os.waitstatus_to_exitcode(
        caller.current.wait_foreground(started.pid, lambda: _wait_here(started))
    )
    return 128 - status if status < 0 else status


def _wait_here(started: Started) -> int:
    forwarding = Forwarding(started.pidfd)
    if started.terminal >= 0:
        from cove.ociruntime.console import Bridge

        master, started.terminal = started.terminal, -1
        bridge = Bridge(master)
        forwarding.on_resize = bridge.resize
        try:
            bridge.copy(started.pidfd)
        finally:
            bridge.close()
    return os.waitpid(started.pid, 0)[1]


class Forwarding:
    """From now on every signal that this program gets goes to the process instead."""

    def __init__(self, pidfd: int) -> None:
        self._pidfd = pidfd
        self.on_resize = _nothing
        for signo in _FORWARDED:
            _signal.signal(signo, self._on_signal)
        _signal.pthread_sigmask(_signal.SIG_UNBLOCK, _FORWARDED)

    def _on_signal(self, signo: int, _frame: object) -> None:
        if signo == _SIGWINCH:
            self.on_resize()
            return
        try:
            _signal.pidfd_send_signal(self._pidfd, signo)
        except ProcessLookupError:
            pass


def _nothing() -> None:
    pass
