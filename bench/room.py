"""A room: mount, network and pid namespaces in which one engine runs, and from which nothing escapes.

An engine changes the host it runs on: mounts, bridges, iptables, sysctls, processes that outlive
it. In a room all of that is the room's own and goes with it, also when the benchmark is killed:
the room's first process ends when its standard input does. What a room doesn't own is removed by
its owner: cgroups (by path) and directories.

Every engine runs in a room of the same kind, so none has an advantage.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path

from bench.procfs import Process, descendants

INIT = Path(__file__).with_name("room_init.py")
CGROUPS = Path("/sys/fs/cgroup")


class RoomError(Exception):
    """A room or a program in it didn't start."""


class Room:
    """Namespaces with a process 1 that starts programs on request."""

    def __init__(self) -> None:
        argv = ["unshare", "--net", "--mount", "--propagation", "private", "--pid", "--fork", "--kill-child"]
        argv += ["--mount-proc", sys.executable, "-I", str(INIT)]
        self._unshare = subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        try:
            self._answer()
        except RoomError:
            self.close()
            raise

    def start(self, argv: Sequence[str], log: Path, env: Mapping[str, str] | None = None) -> int:
        """Start a program in the room, its output appended to `log`; return its pid in the room."""
        order = {"argv": list(argv), "env": dict(os.environ) | dict(env or {}), "log": str(log)}
        assert self._unshare.stdin is not None
        self._unshare.stdin.write(json.dumps(order) + "\n")
        self._unshare.stdin.flush()
        return self._answer()

    def kill(self, inner_pid: int) -> None:
        """SIGKILL one process, named by its pid in the room, and wait until it is gone."""
        for process in self.processes().values():
            if process.inner_pids[1:] == (inner_pid,):
                os.kill(process.pid, signal.SIGKILL)
                wait_until(partial(ended, process.pid), 30, f"process {inner_pid} ends")

    def processes(self) -> dict[int, Process]:
        """Every process of the room, by its pid on this side."""
        return descendants(self._unshare.pid)

    def close(self) -> None:
        """Kill everything in the room and wait until it is gone."""
        members = [pid for pid in self.processes() if pid != self._unshare.pid]
        if self._unshare.stdin is not None:
            self._unshare.stdin.close()
        self._unshare.kill()
        self._unshare.wait()
        wait_until(lambda: not any(alive(pid) for pid in members), 60, "the room's processes end")

    def _answer(self) -> int:
        assert self._unshare.stdout is not None
        line = self._unshare.stdout.readline()
        if not line:
            raise RoomError("unshare made no namespaces here: root with CAP_SYS_ADMIN is needed")
        answer = json.loads(line)
        if "error" in answer:
            raise RoomError(answer["error"])
        return int(answer["pid"])


def alive(pid: int) -> bool:
    """Whether a process exists and isn't a zombie."""
    try:
        status = Path(f"/proc/{pid}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return False
    return status.rpartition(")")[2].split()[0] not in "ZX"


def ended(pid: int) -> bool:
    return not alive(pid)


def wait_until(condition: Callable[[], bool], timeout_s: float, what: str) -> None:
    """Poll until the condition holds; RoomError says what was waited for."""
    deadline = time.monotonic() + timeout_s
    pause_s = 0.001
    while not condition():
        if time.monotonic() > deadline:
            raise RoomError(f"waited {timeout_s:g} s in vain: {what}")
        time.sleep(pause_s)
        pause_s = min(pause_s * 1.5, 0.1)


def hierarchies() -> list[Path]:
    """Mount points of the cgroup hierarchies that have controllers: all of v1's, or v2's one."""
    if (CGROUPS / "cgroup.controllers").exists():
        return [CGROUPS]
    return sorted(path for path in CGROUPS.iterdir() if not path.is_symlink() and (path / "tasks").exists())


def remove_cgroups(name: str) -> None:
    """Remove the cgroup `name` and what is below it from every hierarchy, killing what is left inside."""
    assert name.strip("/") not in ("", ".", "..")
    roots = [*hierarchies(), CGROUPS / "unified"]
    for root in roots:
        for directory, _, _ in os.walk(root / name.strip("/"), topdown=False):
            remove_cgroup(Path(directory))


def remove_cgroup(directory: Path) -> None:
    for _ in range(200):
        try:
            for pid in (directory / "cgroup.procs").read_text().split():
                os.kill(int(pid), signal.SIGKILL)
        except (FileNotFoundError, ProcessLookupError):
            pass
        try:
            directory.rmdir()
            return
        except FileNotFoundError:
            return
        except OSError:
            time.sleep(0.01)
    raise RoomError(f"the cgroup {directory} stays busy")
