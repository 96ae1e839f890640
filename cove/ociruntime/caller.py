"""What has to be done in the caller's place: spawning and waiting for cove-init and hooks, and forwarding signals.

Called directly this process is in that place. A planner's child isn't: there the C client that called it does these
things (native/client/cove-runtime.c), for its children have the right parent, limits, cgroup and session.
"""

from __future__ import annotations

import os

from cove.runtime.executor import Launcher

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

ALL_SIGNALS = (*range(1, 32), *range(34, 65))


class Fallback(Exception):
    """A planner can't do this call: the client starts Python for it. Nothing has been done yet."""


class Caller:
    """This process is the one that was called."""

    pid = "self"  # the caller's place in /proc

    def only_here(self) -> None:
        """Called before anything is done by what needs the caller's place itself: its descriptors beyond 0, 1 and 2,
        its terminal, or to end by its signals. Raises Fallback in a planner's child."""

    def launcher(self) -> Launcher:
        """cove-init, sealed; the caller closes it."""
        return Launcher.open(find_binary())

    def spawn_init(self, launcher: Launcher, title: str, control: int) -> int:
        """Start cove-init in its detached mode; its pid."""
        return launcher.spawn_detached(title, control)

    def spawn_hook(
        self, path: str, args: Sequence[str], env: Mapping[str, str], stdin: int, output: int
    ) -> int:
        """Start a program of the host, which gets these descriptors alone; its pid. Raises OSError."""
        for name in os.listdir("/proc/self/fd"):
            if int(name) > 2:
                try:
                    os.set_inheritable(int(name), False)  # the caller may have left some open
                except OSError:
                    pass  # that of the listing
        return os.posix_spawn(
            path,
            list(args),
            env,
            file_actions=[
                (os.POSIX_SPAWN_DUP2, stdin, 0),
                (os.POSIX_SPAWN_DUP2, output, 1),
                (os.POSIX_SPAWN_DUP2, output, 2),
            ],
            setsigmask=(),
            setsigdef=ALL_SIGNALS,
        )

    def wait(self, pid: int) -> int:
        """Reap a process that was spawned here; its status, as of waitpid(2)."""
        return os.waitpid(pid, 0)[1]

    def begin_foreground(self, terminal: bool) -> None:
        """Before a process is made that will be waited for: keep signals until `wait_foreground` forwards them, so that
        none gets lost. A terminal is copied in its own session, which gets the signals of its size."""
        if terminal:
            self.only_here()
        from cove.ociruntime import foreground

        foreground.hold_signals()

    def wait_foreground(self, pid: int, wait: Callable[[], int]) -> int:
        """The status of the process, which gets every signal that comes meanwhile; `wait` does it for a caller that is
        this process."""
        return wait()


def is_own_path(text: bytes) -> bool:
    """Whether a path in it leads to what only the process itself has."""
    return b"/fd/" in text or b"/proc/self/" in text or b"/proc/thread-self/" in text


def find_binary() -> str:
    """cove-init of this checkout."""
    return __file__.rpartition("/cove/")[0] + "/build/native/cove-init"


current = Caller()
"""Who does it in this process."""
