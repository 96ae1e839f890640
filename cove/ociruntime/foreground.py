"""Wait for a process in the foreground: forward signals to it, and bridge its terminal when it has one.

The process is this program's child (CLONE_PARENT), so its status comes by waitpid(2).
"""

from __future__ import annotations

import _signal  # type: ignore[import-not-found]
import os

TYPE_CHECKING = False
if TYPE_CHECKING:
    from cove.ociruntime.launch import Started

_SIGCHLD, _SIGURG, _SIGWINCH = 17, 23, 28
_STOPPING = (9, 19)  # SIGKILL and SIGSTOP can't be caught
_KEPT = (_SIGCHLD, _SIGURG, *_STOPPING, 4, 7, 8, 11)  # and what tells of this program's own faults


def wait(started: Started) -> int:
    """Its exit status, 128 + signal for a killed one. `started` stays the caller's but for its terminal."""
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
    status = os.waitstatus_to_exitcode(os.waitpid(started.pid, 0)[1])
    forwarding.stop()
    return 128 - status if status < 0 else status


class Forwarding:
    """While it lasts, every signal that this program gets goes to the process instead."""

    def __init__(self, pidfd: int) -> None:
        self._pidfd = pidfd
        self.on_resize = _nothing
        self._before = {}
        for signo in (*range(1, 32), *range(34, 65)):
            if signo not in _KEPT:
                self._before[signo] = _signal.signal(signo, self._on_signal)

    def _on_signal(self, signo: int, _frame: object) -> None:
        if signo == _SIGWINCH:
            self.on_resize()
            return
        try:
            _signal.pidfd_send_signal(self._pidfd, signo)
        except ProcessLookupError:
            pass

    def stop(self) -> None:
        for signo, handler in self._before.items():
            _signal.signal(signo, handler)


def _nothing() -> None:
    pass
