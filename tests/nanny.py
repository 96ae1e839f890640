"""The process above a test's daemon: stands in for init, and sees to it that nothing outlives the tests.

Run as a program by tests/daemon.py, with a socket as descriptor 0. A message is JSON: argv, cwd, env; a
descriptor for standard output and error comes with it. The answer is the pid, with a pidfd. Orphans of a
killed daemon (supervisors, containers) become this process's children and are reaped as init would. When
the socket is closed, also by kill -9 of the tests, every descendant is killed.
"""

from __future__ import annotations

import ctypes
import json
import os
import select
import signal
import socket

_PR_SET_CHILD_SUBREAPER = 36


def main() -> None:
    ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    control = socket.socket(fileno=os.dup(0))
    wake, waker = socket.socketpair()
    waker.setblocking(False)
    wake.setblocking(False)
    signal.set_wakeup_fd(waker.fileno(), warn_on_full_buffer=False)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    while True:
        readable, _, _ = select.select([control, wake], [], [])
        if wake in readable:
            wake.recv(4096)
        if control in readable:
            message, descriptors, _, _ = socket.recv_fds(control, 1 << 20, 1)
            if not message:
                break
            start(control, json.loads(message), descriptors[0])
        reap()
    while children := descendants(os.getpid()):
        for pid in children:
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                pass
        try:
            os.waitpid(-1, 0)
        except ChildProcessError:
            pass
        reap()


def start(control: socket.socket, order: dict[str, object], output: int) -> None:
    # posix_spawn has no working directory: the child inherits this process's.
    os.chdir(str(order["cwd"]))
    argv, env = order["argv"], order["env"]
    assert isinstance(argv, list) and isinstance(env, dict)
    pid = os.posix_spawn(
        argv[0],
        argv,
        env,
        file_actions=[
            (os.POSIX_SPAWN_OPEN, 0, "/dev/null", os.O_RDONLY, 0),
            (os.POSIX_SPAWN_DUP2, output, 1),
            (os.POSIX_SPAWN_DUP2, output, 2),
        ],
        setsigdef=[signal.SIGCHLD],
    )
    os.close(output)
    pidfd = os.pidfd_open(pid)  # it can't be reaped before this
    socket.send_fds(control, [str(pid).encode()], [pidfd])
    os.close(pidfd)


def reap() -> None:
    try:
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass
    except ChildProcessError:
        pass


def descendants(root: int) -> list[int]:
    """The pids of all processes below one, zombies included."""
    children: dict[int, list[int]] = {}
    for entry in os.listdir("/proc"):
        if entry.isdecimal():
            try:
                with open(f"/proc/{entry}/stat") as file:
                    parent = int(file.read().rpartition(")")[2].split()[1])
            except (FileNotFoundError, ProcessLookupError):
                continue
            children.setdefault(parent, []).append(int(entry))
    found: list[int] = []
    left = [root]
    while left:
        below = children.get(left.pop(), [])
        found += below
        left += below
    return found


if __name__ == "__main__":
    main()
