"""cove-init as a program: the sealed copy that is executed, and the two ways to spawn it. Synchronous.

`supervisor.py` uses it within the daemon's event loop, `cove.ociruntime` without one; so it imports neither asyncio
nor what costs a short-lived program its start (socket and signal make enums of hundreds of constants, 6 ms
together).
"""

from __future__ import annotations

import _socket
import errno
import fcntl
import os

from cove.model.errors import HostError, Unavailable

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping

    from cove.runtime.steps import Plan, Step

_MFD_EXEC = 0x10  # Linux 6.3; before, memfds are executable anyway
LOW = 16  # descriptors below could be overwritten by those that the child is given
# signal.valid_signals(), without the import: 32 and 33 belong to the C library (nptl(7))
_ALL_SIGNALS = (*range(1, 32), *range(34, 65))


class StepFailed(HostError):
    """A step of the plan failed; everything before it has been undone.

    `section` is before, clone, parent, child or exit; `step` is None for clone.
    """

    code = "step-failed"

    def __init__(self, section: str, index: int, step: Step | None, errno: int) -> None:
        super().__init__(section, index, step, errno)
        self.section, self.index, self.step, self.errno = section, index, step, errno

    def __str__(self) -> str:
        what = self.step.describe() if self.step else "clone into new namespaces"
        return f"{self.section} step {self.index}, {what}: {os.strerror(self.errno)}"


def step_failed(plan: Plan, section: str, index: int, number: int) -> StepFailed:
    """The error for what cove-init told by section, index and errno."""
    steps: tuple[Step, ...] = getattr(plan, section, ())
    return StepFailed(section, index, steps[index] if index < len(steps) else None, number)


class Launcher:
    """cove-init in a sealed memfd, made once: no container can change what the next one is
    started by (CVE-2019-5736), and neither can an upgrade of the file under a running daemon."""

    def __init__(self, descriptor: int, environment: Mapping[str, str]) -> None:
        self._descriptor = descriptor
        self._environment = dict(environment)

    @classmethod
    def open(cls, binary: str | os.PathLike[str], environment: Mapping[str, str] | None = None) -> Launcher:
        """Read `binary` and seal a copy. `environment` is cove-init's own (empty but for sanitizers'
        options), never a container's. Raises Unavailable when there is no such file."""
        try:
            with open(binary, "rb") as file:
                content = file.read()
        except OSError as error:
            raise Unavailable(
                f"cove-init can't be read at {os.fspath(binary)} ({error.strerror}): build it with `make setup`"
            ) from error
        try:
            raw = os.memfd_create("cove-init", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING | _MFD_EXEC)
        except OSError as error:
            if error.errno != errno.EINVAL:
                raise
            raw = os.memfd_create("cove-init", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        try:
            view = memoryview(content)
            while view:
                view = view[os.write(raw, view) :]
            fcntl.fcntl(
                raw,
                fcntl.F_ADD_SEALS,
                fcntl.F_SEAL_SEAL | fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_WRITE,
            )
            return cls(fcntl.fcntl(raw, fcntl.F_DUPFD_CLOEXEC, LOW), environment or {})
        finally:
            os.close(raw)

    def spawn(self, title: str, control: int) -> int:
        """Start a supervisor in a session of its own, holding nothing of the caller but `control`
        (as descriptor 3); returns its pid. All signals are blocked and have their default action."""
        os.set_inheritable(control, False)
        return os.posix_spawn(
            f"/proc/self/fd/{self._descriptor}",
            ["cove-init", title],
            self._environment,
            file_actions=[
                (os.POSIX_SPAWN_OPEN, 0, "/dev/null", os.O_RDWR, 0),
                (os.POSIX_SPAWN_DUP2, 0, 1),
                (os.POSIX_SPAWN_DUP2, 0, 2),
                (os.POSIX_SPAWN_DUP2, control, 3),
            ],
            setsid=True,
            setsigmask=_ALL_SIGNALS,
            setsigdef=_ALL_SIGNALS,
        )

    def spawn_detached(self, title: str, control: int) -> int:
        """Start cove-init in its detached mode, which passes the caller's 0, 1 and 2 on to the container's process
        and makes that one the caller's child; returns cove-init's pid."""
        os.set_inheritable(control, False)
        return os.posix_spawn(
            f"/proc/self/fd/{self._descriptor}",
            ["cove-init", title],
            self._environment,
            file_actions=[(os.POSIX_SPAWN_DUP2, control, 3)],
            setsigmask=_ALL_SIGNALS,
            setsigdef=_ALL_SIGNALS,
        )

    def fileno(self) -> int:
        """The sealed program."""
        return self._descriptor

    def copy(self) -> Launcher:
        """The same, to be closed by itself."""
        return Launcher(fcntl.fcntl(self._descriptor, fcntl.F_DUPFD_CLOEXEC, LOW), self._environment)

    def close(self) -> None:
        os.close(self._descriptor)


def control_pair() -> tuple[_socket.socket, int]:
    """A control connection: this side's end, and the descriptor of the other, which isn't 0, 1, 2 or 3 (so that
    giving it to the child as 3 overwrites nothing). Both belong to the caller."""
    ours, theirs = _socket.socketpair(_socket.AF_UNIX, _socket.SOCK_SEQPACKET)
    descriptor = theirs.detach()
    if descriptor < LOW:
        moved = fcntl.fcntl(descriptor, fcntl.F_DUPFD_CLOEXEC, LOW)
        os.close(descriptor)
        descriptor = moved
    return ours, descriptor
