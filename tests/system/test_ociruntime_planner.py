"""A planner stands in for Python's start: what it does is the same, and it serves nobody but who is like its maker."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import socket
import struct
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.system.oci_support import BOUND_S, Box, opened, wait_until
from tests.system.test_ociruntime_life import (
    test_a_detached_process_becomes_the_child_of_the_nearest_subreaper as test_parent,
)
from tests.system.test_ociruntime_life import (
    test_a_foreground_run_bridges_the_callers_terminal as test_terminal,
)
from tests.system.test_ociruntime_life import (
    test_a_hook_that_takes_too_long_is_killed as test_slow_hook,
)
from tests.system.test_ociruntime_life import (
    test_descriptors_are_passed_on as test_descriptors,
)
from tests.system.test_ociruntime_life import (
    test_exec_joins_everything_and_takes_its_flags as test_exec,
)
from tests.system.test_ociruntime_life import (
    test_hooks_run_in_the_order_of_the_specification_with_the_state_on_their_input as test_hooks,
)
from tests.system.test_ociruntime_life import (
    test_signals_to_a_foreground_run_reach_the_process as test_signals,
)

__all__ = [
    "test_descriptors",
    "test_exec",
    "test_hooks",
    "test_parent",
    "test_signals",
    "test_slow_hook",
    "test_terminal",
]

SOCKETS = Path("/run/cove-planner")


def listeners() -> dict[str, int]:
    """Sockets of planners, and their processes."""
    found = {}
    for path in SOCKETS.glob("*") if SOCKETS.exists() else ():
        with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as peer:
            try:
                peer.connect(str(path))
            except OSError:
                continue
            found[path.name] = struct.unpack(
                "iii", peer.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12)
            )[0]
    return found


@pytest.fixture
def box(tmp_path: Path) -> Iterator[Box]:
    """Its calls have a limit of their own, and so a planner of their own, which is there already."""
    before = set(listeners())
    with opened(tmp_path) as made:
        del made.environment["COVE_RUNTIME_WARM"]
        made.prefix = ["prlimit", f"--nofile={3000 + os.getpid() % 1000}:", "--"]
        made.configure(["true"])
        assert made.cove("run", "first").status == 0
        wait_until(lambda: bool(set(listeners()) - before), "a planner listens")
        try:
            yield made
        finally:
            made.close()
            for name in set(listeners()) - before:
                with contextlib.suppress(KeyError, OSError):
                    os.kill(listeners()[name], signal.SIGKILL)
                    (SOCKETS / name).unlink()
            for pid in processes(made, "first"):
                with contextlib.suppress(ProcessLookupError):  # with the planner, its children may end
                    os.kill(pid, signal.SIGKILL)


def running_program(box: Box) -> str:
    """What executes a `run` in the foreground."""
    box.configure(["sleep", "1000"])
    with subprocess.Popen(box.argv("cove", "run", "one"), cwd=box.bundle, env=box.environment) as child:
        wait_until(lambda: box.status("cove", "one") == "running", "it runs")
        program = os.readlink(f"/proc/{child.pid}/exe")
        box.cove("kill", "one", "KILL")
        assert child.wait(BOUND_S) == 137
    return program


def test_the_second_call_needs_no_python(box: Box) -> None:
    assert running_program(box).endswith("build/native/cove-runtime")
    box.environment["COVE_RUNTIME_WARM"] = "0"
    assert "python" in running_program(box)


def test_output_status_environment_and_directory_are_the_callers(box: Box) -> None:
    box.configure(["sh", "-c", "cat; echo err >&2; exit 7"])
    done = box.cove("run", "one", stdin="typed")
    assert (done.status, done.out, done.err) == (7, "typed", "err\n")
    pid_file = box.bundle / "pid"
    box.configure(["sleep", "1000"])
    assert box.cove("create", "--pid-file", "pid", "one").status == 0
    assert int(pid_file.read_text()) == box.cove("state", "one").json()["pid"]
    assert box.cove("start", "one").status == 0
    limits = Path(f"/proc/{int(pid_file.read_text())}/limits").read_text()
    assert re.search(r"Max open files +1024 +1024", limits)
    assert box.cove("delete", "one").error.startswith(
        "cannot delete container one that is not stopped: running"
    )


def test_another_limit_has_another_planner(box: Box) -> None:
    before = listeners()
    box.prefix[1] = f"--nofile={5000 + os.getpid() % 1000}:"
    box.configure(["true"])
    assert box.cove("run", "one").status == 0
    wait_until(lambda: len(listeners()) > len(before), "another planner listens")


def test_a_planner_ends_when_its_code_has_changed(box: Box, tmp_path: Path) -> None:
    """Seen from its own side: it compares the files that it was loaded from at each call."""
    from cove.ociruntime import planner

    file = tmp_path / "module.py"
    file.write_text("a = 1\n")
    stamp = planner._stamp(str(file))
    assert planner._stamp(str(file)) == stamp
    time.sleep(0.01)  # the clock of a file's time ticks every 4 ms
    file.write_text("a = 2\n")
    assert planner._stamp(str(file)) != stamp


def test_a_client_that_differs_is_left_to_python(box: Box) -> None:
    """The socket's name is a hash that anybody may compute: the planner looks at the peer itself."""
    path = max(SOCKETS.glob("*"), key=lambda each: each.stat().st_mtime)
    script = (
        "import socket, struct, sys, ctypes\n"
        "ctypes.CDLL(None).prctl(38, 1, 0, 0, 0)\n"  # PR_SET_NO_NEW_PRIVS
        "peer = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)\n"
        "peer.connect(sys.argv[1])\n"
        "print(struct.unpack('<I', peer.recv(100)[:4])[0])\n"
    )
    done = subprocess.run(
        ["python3", "-c", script, str(path)], capture_output=True, text=True, timeout=BOUND_S
    )
    assert done.stdout == "1\n", done.stderr  # FALLBACK


def processes(box: Box, name: str) -> dict[int, int]:
    """Pids and parents of the planner that the `run` of this name left, and of its children."""
    wanted = f"{box.state['cove']}\0run\0{name}\0".encode()
    found = {}
    for entry in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            if wanted in (entry / "cmdline").read_bytes():
                found[int(entry.name)] = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
    return found


def planner_of(box: Box) -> tuple[int, int]:
    """The planner, and the child that waits for a call: the same for a while, for each connection takes one."""
    pairs: list[list[tuple[int, int]]] = [[]]

    def settled() -> bool:
        time.sleep(0.2)
        found = processes(box, "first")
        pairs.append([(parent, child) for child, parent in found.items() if parent in found])
        return len(found) == 2 and len(pairs[-1]) == 1 and pairs[-1] == pairs[-2]

    wait_until(settled, "the planner has a child")
    return pairs[-1][0]


@pytest.mark.parametrize("what", ["killed", "child killed", "stopped"])
def test_a_planner_that_fails_costs_no_call(box: Box, what: str) -> None:
    planner, child = planner_of(box)
    if what == "killed":
        os.kill(planner, signal.SIGKILL)
    else:
        os.kill(child, signal.SIGKILL if what == "child killed" else signal.SIGSTOP)
    box.configure(["sh", "-c", "exit 5"])
    for _ in range(3):
        assert box.cove("run", "one").status == 5
    for pid in (planner, child):
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


def test_a_planner_sits_in_no_callers_cgroup(box: Box) -> None:
    for pid in planner_of(box):
        lines = Path(f"/proc/{pid}/cgroup").read_text().splitlines()
        assert all(line.endswith(":/") for line in lines), lines


def test_a_call_whose_child_is_killed_fails_and_is_cleaned_up(box: Box) -> None:
    box.configure(["sleep", "1000"])
    for _ in range(5):
        killed, status, errors = _run_and_kill_child(box)
        if killed:
            break
        # a client that waits for its child for three seconds, on a busy machine, does without
        assert box.cove("delete", "--force", "one").status in (0, 1)
    assert (killed, status) == (True, 1)
    assert b"the planner" in errors
    assert box.cove("delete", "--force", "one").status == 0
    assert box.ids("cove") == []


def _run_and_kill_child(box: Box) -> tuple[bool, int, bytes]:
    """Whether the waiting child took the call, and was killed; the client's exit status and words."""
    _, child = planner_of(box)
    argv = box.argv("cove", "run", "one")
    with subprocess.Popen(argv, cwd=box.bundle, env=box.environment, stderr=subprocess.PIPE) as client:
        killed = True
        try:
            wait_until(lambda: box.status("cove", "one") == "running", "it runs")
            os.kill(child, signal.SIGKILL)
        except ProcessLookupError:
            killed = False
        finally:
            box.cove("kill", "one", "KILL")
        status = client.wait(BOUND_S)
        assert client.stderr is not None
        return killed, status, client.stderr.read()


def test_a_planner_without_calls_ends(box: Box) -> None:
    box.prefix[1] = f"--nofile={7000 + os.getpid() % 1000}:"
    box.environment["COVE_RUNTIME_WARM"] = "1"
    assert box.cove("run", "second").status == 0
    wait_until(lambda: len(processes(box, "second")) == 2, "it waits")
    wait_until(lambda: not processes(box, "second"), "it ends")
