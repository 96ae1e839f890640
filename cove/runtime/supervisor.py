"""The daemon's end of one supervisor process: spawn it, exchange messages, see it end.

Owns descriptors and the event loop's readers; what messages mean is launch.py's matter.
Order that must hold: messages are drained before the end of the process is reported, so that
the exit status it sent last is never missed.
"""

from __future__ import annotations

import asyncio
import os
import signal
import socket
from collections import deque
from collections.abc import Callable, Sequence
from pathlib import Path

from cove.model.errors import HostError
from cove.runtime import executor, protocol


def control_pair() -> tuple[socket.socket, int]:
    """Both ends of a control connection, as `executor.control_pair`; the daemon's doesn't block."""
    ours, theirs = executor.control_pair()
    control = socket.socket(fileno=ours.detach())
    control.setblocking(False)
    return control, theirs


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
