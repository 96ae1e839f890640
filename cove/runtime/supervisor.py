"""The daemon's end of one supervisor process: spawn it, exchange messages, see it end.

Owns descriptors and the event loop's readers; what messages mean is launch.py's matter.
Order that must hold: messages are drained before the end of the process is reported, so that
the exit status it sent last is never missed.
"""

from __future__ import annotations

import asyncio
import errno
import fcntl
import os
import signal
import socket
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from cove.model.errors import HostError, Unavailable
from cove.runtime import protocol

_MFD_EXEC = 0x10  # Linux 6.3; before, memfds are executable anyway
_LOW = 16  # descriptors below could be overwritten by those that the child is given
_ALL_SIGNALS = tuple(signal.valid_signals())


class Launcher:
    """cove-init in a sealed memfd, made once: no container can change what the next one is
    started by (CVE-2019-5736), and neither can an upgrade of the file under a running daemon."""

    def __init__(self, descriptor: int, environment: Mapping[str, str]) -> None:
        self._descriptor = descriptor
        self._environment = dict(environment)

    @classmethod
    def open(cls, binary: Path, environment: Mapping[str, str] | None = None) -> Launcher:
        """Read `binary` and seal a copy. `environment` is cove-init's own (empty but for sanitizers'
        options), never a container's. Raises Unavailable when there is no such file."""
        try:
            content = binary.read_bytes()
        except OSError as error:
            raise Unavailable(
                f"cove-init can't be read at {binary} ({error.strerror}): build it with `make setup`"
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
            return cls(fcntl.fcntl(raw, fcntl.F_DUPFD_CLOEXEC, _LOW), environment or {})
        finally:
            os.close(raw)

    def spawn(self, title: str, control: socket.socket) -> int:
        """Start a supervisor in a session of its own, holding nothing of the daemon but `control`
        (as descriptor 3); returns its pid. All signals are blocked and have their default action."""
        os.set_inheritable(control.fileno(), False)
        return os.posix_spawn(
            f"/proc/self/fd/{self._descriptor}",
            ["cove-init", title],
            self._environment,
            file_actions=[
                (os.POSIX_SPAWN_OPEN, 0, "/dev/null", os.O_RDWR, 0),
                (os.POSIX_SPAWN_DUP2, 0, 1),
                (os.POSIX_SPAWN_DUP2, 0, 2),
                (os.POSIX_SPAWN_DUP2, control.fileno(), 3),
            ],
            setsid=True,
            setsigmask=_ALL_SIGNALS,
            setsigdef=_ALL_SIGNALS,
        )

    def close(self) -> None:
        os.close(self._descriptor)


def control_pair() -> tuple[socket.socket, socket.socket]:
    """Both ends of a control connection; the daemon's doesn't block, the other isn't 0, 1, 2 or 3
    (so that giving it to the child as 3 overwrites nothing)."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    ours.setblocking(False)
    if theirs.fileno() < _LOW:
        moved = fcntl.fcntl(theirs.fileno(), fcntl.F_DUPFD_CLOEXEC, _LOW)
        theirs.close()
        theirs = socket.socket(fileno=moved)
    return ours, theirs


def listen_control(state_dir: int) -> socket.socket:
    """A listening control.sock (0600) in the directory `state_dir`, however long its path is."""
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET | socket.SOCK_NONBLOCK)
    try:
        os.fchmod(listener.fileno(), 0o600)  # before bind(2) it sets the mode of the file
        listener.bind(f"/proc/self/fd/{state_dir}/control.sock")
        listener.listen(16)
    except BaseException:
        listener.close()
        raise
    return listener


async def connect_control(state_dir: Path) -> socket.socket | None:
    """Connect to a running supervisor; None when there is none any more. Raises TimeoutError when the
    supervisor accepts nobody for ten seconds (it is stopped)."""
    try:
        directory = os.open(state_dir, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    except FileNotFoundError:
        return None
    control = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET | socket.SOCK_NONBLOCK)
    try:
        async with asyncio.timeout(10):
            while True:
                try:
                    control.connect(f"/proc/self/fd/{directory}/control.sock")
                    break
                except BlockingIOError:  # the queue is full, and a unix socket tells nobody when it isn't
                    await asyncio.sleep(0.01)
    except (FileNotFoundError, ConnectionRefusedError):
        control.close()
        return None
    except BaseException:
        control.close()
        raise
    finally:
        os.close(directory)
    return control


class Connection:
    """A control connection within the event loop.

    Messages that are awaited with `next()` queue up; `on_message` takes over once set.
    """

    def __init__(self, control: socket.socket) -> None:
        self._loop = asyncio.get_running_loop()
        self._control = control
        self._queue: deque[tuple[protocol.Message, list[int]]] = deque()
        self._waiter: asyncio.Future[None] | None = None
        self._on_message: Callable[[protocol.Message], None] | None = None
        self.closed = False
        self._loop.add_reader(control.fileno(), self.drain)

    def send(self, message: bytes, descriptors: Sequence[int] = ()) -> None:
        """Send now. Raises HostError when the supervisor is gone or doesn't read."""
        try:
            if descriptors:
                socket.send_fds(self._control, [message], list(descriptors))
            else:
                self._control.send(message)
        except OSError as error:
            raise HostError(f"the container's supervisor can't be reached: {error.strerror}") from error

    async def next(self) -> tuple[protocol.Message, list[int]] | None:
        """The next message with its descriptors, which become the caller's; None at the end."""
        while not self._queue:
            if self.closed:
                return None
            self._waiter = self._loop.create_future()
            try:
                await self._waiter
            finally:
                self._waiter = None
        return self._queue.popleft()

    def take_over(self, on_message: Callable[[protocol.Message], None]) -> None:
        """From now on messages go to `on_message`; descriptors that come are closed."""
        self._on_message = on_message
        while self._queue:
            message, descriptors = self._queue.popleft()
            _close_all(descriptors)
            on_message(message)

    def drain(self) -> None:
        """Handle everything that has arrived."""
        while not self.closed:
            try:
                data, descriptors, _, _ = socket.recv_fds(
                    self._control, protocol.MAX_MESSAGE, 8, socket.MSG_CMSG_CLOEXEC
                )
            except (BlockingIOError, InterruptedError):
                return
            except OSError:
                data, descriptors = b"", []
            if not data:
                self.close()
                return
            try:
                message = protocol.decode(data)
            except ValueError:
                message = None
            if message is None:
                _close_all(descriptors)
            elif self._on_message is not None:
                _close_all(descriptors)
                self._on_message(message)
            else:
                self._queue.append((message, descriptors))
                self._wake()

    def close(self) -> None:
        if not self.closed:
            self.closed = True
            self._loop.remove_reader(self._control.fileno())
            self._control.close()
            self._wake()

    def discard(self) -> None:
        """Close, and close the descriptors of messages nobody took."""
        self.close()
        while self._queue:
            _close_all(self._queue.popleft()[1])

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)


async def wait_readable(descriptor: int) -> None:
    """Wait until a pidfd (or any descriptor) is readable."""
    loop = asyncio.get_running_loop()
    readable = asyncio.Event()
    loop.add_reader(descriptor, readable.set)
    try:
        await readable.wait()
    finally:
        loop.remove_reader(descriptor)


def reap(pidfd: int) -> None:
    """Collect the process if it is a child of this daemon; another's child isn't ours to reap."""
    try:
        os.waitid(os.P_PIDFD, pidfd, os.WEXITED | os.WNOHANG)
    except ChildProcessError:
        pass


def kill(pidfd: int, signo: int = signal.SIGKILL) -> None:
    """Signal a process by its pidfd; one that is gone is fine."""
    try:
        signal.pidfd_send_signal(pidfd, signo)
    except ProcessLookupError:
        pass


def _close_all(descriptors: Sequence[int]) -> None:
    for descriptor in descriptors:
        os.close(descriptor)
