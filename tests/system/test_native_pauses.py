"""Starts that stop on their way: pauses, hooks, and filters whose listener goes to somebody else."""
# ruff: noqa: F811

from __future__ import annotations

import errno
import fcntl
import os
import re
import select
import struct
import time
from pathlib import Path

import pytest

from cove.runtime import protocol
from cove.runtime.steps import (
    NoNewPrivs,
    Pause,
    RunHook,
    Seccomp,
    WriteHost,
)
from tests.system.detached_support import (  # noqa: F401
    BOUND_S,
    HOST_PATH,
    NEW_LISTENER,
    NOTIFY,
    RECV,
    SEND,
    Starter,
    filter_program,
    start,
    stat_of,
)
from tests.system.native_support import (  # noqa: F401
    PATH,
    Box,
    box,
    launcher,
    needs_root,
    run,
)

pytestmark = needs_root

# --- pauses and hooks -----------------------------------------------------------------------


def test_a_pause_waits_for_its_answer_and_comes_after_the_parent_steps(
    start: Starter, box: Box, tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("")
    plan = box.sh(
        "true", inside=(Pause(name="hooks"),), parent=(WriteHost(path=f"{tmp_path}/file", data="done"),)
    )
    started = start(plan)
    paused = started.until(protocol.Paused)
    assert isinstance(plan.child[paused.index], Pause)
    assert (tmp_path / "file").read_text() == "done"
    assert int(stat_of(started.pid)[1]) == os.getpid()
    started.go_on()
    started.until(protocol.Started)
    assert started.wait() == 0


def test_a_pause_that_is_not_to_go_on_fails(start: Starter, box: Box) -> None:
    plan = box.sh("true", inside=(Pause(name="hooks"),))
    started = start(plan)
    paused = started.until(protocol.Paused)
    started.control.send(protocol.encode_simple(protocol.UNRESOLVED, 0))
    assert started.failed() == ("child", paused.index, errno.ECANCELED)


def test_hooks_run_in_the_namespaces_with_the_state_on_stdin(
    start: Starter, box: Box, tmp_path: Path
) -> None:
    script = (
        "pwd -P > $0/cwd; cat > $0/state; readlink /proc/self/ns/mnt > $0/mnt; env > $0/env; "
        "ls /proc/self/fd > $0/fds; "
        "grep Sig.*: /proc/self/status > $0/signals"
    )
    before = RunHook(
        path="/bin/sh", args=("sh", "-c", script, str(tmp_path)), env=("A=b", HOST_PATH), timeout_ms=20000
    )
    after = RunHook(
        path="/bin/sh", args=("sh", "-c", "ls / > /shared/root; cat > /shared/again"), env=(PATH,)
    )
    state = b"x" * protocol.MAX_HOOK_INPUT
    started = start(
        box.sh(
            "readlink /proc/self/ns/mnt > /shared/mnt", inside=(Pause(name="hooks"), before), late=(after,)
        )
    )
    started.until(protocol.Paused)
    started.go_on(state)
    started.until(protocol.Started)
    assert started.wait() == 0
    assert (tmp_path / "cwd").read_text() == f"{box.path}/merged\n"
    assert (tmp_path / "state").read_bytes() == state == (box.shared / "again").read_bytes()
    assert (
        (tmp_path / "mnt").read_text()
        == (box.shared / "mnt").read_text()
        != os.readlink("/proc/self/ns/mnt") + "\n"
    )
    assert {
        line for line in (tmp_path / "env").read_text().splitlines() if line[:4] not in ("PWD=", "_=/u")
    } == {"A=b", HOST_PATH}
    assert (tmp_path / "fds").read_text().split()[:3] == ["0", "1", "2"] and len(
        (tmp_path / "fds").read_text().split()
    ) == 4
    masks = dict(re.findall(r"(Sig\w+):\s*(\w+)", (tmp_path / "signals").read_text()))
    assert {int(masks[key], 16) for key in ("SigBlk", "SigIgn", "SigPnd")} == {0}
    assert "shared" in (box.shared / "root").read_text() and "usr" not in (box.shared / "root").read_text()


@pytest.mark.parametrize(
    ("hook", "number"),
    [
        (RunHook(path="/bin/sh", args=("sh", "-c", "exit 3")), errno.EPROTO),
        (RunHook(path="/bin/sh", args=("sh", "-c", "kill -9 $$")), errno.EPROTO),
        (
            RunHook(path="/bin/sh", args=("sh", "-c", "exec sleep 1000"), env=(HOST_PATH,), timeout_ms=50),
            errno.ETIME,
        ),
        (RunHook(path="/nosuch/hook"), errno.ENOENT),
        (RunHook(path="/etc/passwd"), errno.EACCES),
    ],
)
def test_a_hook_that_fails_or_hangs_ends_the_start(
    start: Starter, box: Box, hook: RunHook, number: int
) -> None:
    plan = box.sh("touch /shared/ran", inside=(hook,))
    began = time.monotonic()
    assert start(plan).failed() == ("child", plan.child.index(hook), number)
    assert time.monotonic() - began < BOUND_S / 2
    assert not (box.shared / "ran").exists()


# --- a filter that asks -----------------------------------------------------------------------


def answer_call(listener: int, *, errno_: int) -> int:
    """Wait for one call and answer it; returns its number."""
    poll = select.poll()
    poll.register(listener, select.POLLIN)
    assert poll.poll(BOUND_S * 1000), "nobody asks"
    notice = bytearray(80)
    fcntl.ioctl(listener, RECV, notice)
    ident, _, _, number = struct.unpack_from("<QIIi", notice)
    fcntl.ioctl(listener, SEND, struct.pack("<QqiI", ident, 0, -errno_, 0))
    return int(number)


@pytest.mark.parametrize("supervised", [False, True])
def test_a_listener_arrives_whatever_the_filter_forbids(start: Starter, box: Box, supervised: bool) -> None:
    mkdir, sendmsg = {"x86_64": (83, 46), "aarch64": (34, 211)}[os.uname().machine]
    # the filter asks about sendmsg, too: nobody could answer before the listener is there
    program = filter_program({mkdir: NOTIFY, sendmsg: NOTIFY})
    late = (NoNewPrivs(), Seccomp(program=program, flags=NEW_LISTENER))
    plan = box.sh("mkdir /x 2> /shared/told; (ls /proc/1/fd > /shared/fds); true", late=late)

    async def body() -> None:
        kept: list[int] = []

        async def keep(listener: int, pid: int) -> None:
            assert Path(f"/proc/{pid}").exists()
            kept.append(os.dup(listener))

        task = await box.start(plan, on_listener=keep)
        assert answer_call(kept[0], errno_=errno.EDQUOT) == mkdir
        assert (await task.wait()).exit_code == 0
        os.close(kept[0])

    if supervised:
        run(body())
    else:
        started = start(plan)
        started.until(protocol.Cloned)
        message, (listener,) = started.next()
        assert isinstance(message, protocol.Listener)
        started.until(protocol.Started)
        assert answer_call(listener, errno_=errno.EDQUOT) == mkdir
        assert started.wait() == 0
        os.close(listener)
    assert os.strerror(errno.EDQUOT) in (box.shared / "told").read_text()
    assert (box.shared / "fds").read_text().split() == ["0", "1", "2"]


def test_a_filter_that_cannot_have_a_listener_is_told(start: Starter, box: Box) -> None:
    asking = Seccomp(program=filter_program({}), flags=NEW_LISTENER)
    plan = box.sh("true", late=(NoNewPrivs(), asking, asking))
    started = start(plan)
    started.until(protocol.Cloned)
    message, (listener,) = started.next()
    assert isinstance(message, protocol.Listener)
    assert started.failed() == ("child", len(plan.child) - 2, errno.EBUSY)  # one per process (seccomp(2))
    os.close(listener)
