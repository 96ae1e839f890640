"""bin/cove-runtime, killed at each of its system calls, alone and together with cove-init, and on a full disk: `delete
--force` leaves nothing of what it had begun."""

from __future__ import annotations

import itertools
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.system.oci_support import ROOT, Box, hierarchies, opened, wait_until

_SIGKILL = signal.SIGKILL

# Runs the program, and kills it at its Nth call of a function of the operating system from the first `begin` on.
_DRIVER = f"""
import sys

point, begin, group, *sys.argv = sys.argv[1:]
point, count = int(point), 0

def watch(frame, event, function):
    global count
    if event != "c_call" or "/cove/" not in frame.f_code.co_filename and "os.py" not in frame.f_code.co_filename:
        return
    owner = getattr(function, "__self__", None)
    owner = getattr(function, "__module__", None) or getattr(owner, "__name__", None) or type(owner).__module__
    if owner in ("posix", "fcntl", "select", "_signal", "_socket", "_io") and (count or function.__name__ == begin):
        count += 1
        if count == point:
            import os
            os.killpg(0, 9) if group == "group" else os.kill(os.getpid(), 9)

boot = {str(ROOT / "cove/ociruntime/boot.py")!r}
program = compile(open(boot).read(), boot, "exec")
sys.setprofile(watch)
exec(program, {{"__name__": "__main__", "__file__": boot}})
"""


@pytest.fixture
def box(tmp_path: Path) -> Iterator[Box]:
    with opened(tmp_path) as made:
        yield made


def killed_at(box: Box, point: int, begin: str, group: str, *arguments: str) -> bool:
    """Whether the call came as far as its point, and was killed there."""
    python = str(Path(sys.prefix) / "bin/python")
    command = [python, "-I", "-S", "-c", _DRIVER, str(point), begin, group, *box.argv("cove", *arguments)]
    told = box.bundle.parent / "told"
    with open(told, "w") as file:  # which the container's process may keep open
        done = subprocess.run(
            command, cwd=box.bundle, stdin=subprocess.DEVNULL, stdout=file, stderr=file, check=False, timeout=60,
            start_new_session=True,
        )  # fmt: skip
    assert done.returncode in (0, -_SIGKILL), told.read_text()
    return done.returncode == -_SIGKILL


def marked(word: str) -> list[str]:
    """Living processes with this word in their command line."""
    found = []
    for entry in os.listdir("/proc"):
        if entry.isdecimal():
            try:
                line = Path(f"/proc/{entry}/cmdline").read_bytes()
            except OSError:
                continue
            if word.encode() in line.split(b"\0"):
                found.append(line.replace(b"\0", b" ").decode(errors="replace"))
    return found


def what_is_left(box: Box, name: str) -> list[str]:
    state = box.state["cove"]
    left = [f"{state}/{entry}" for entry in (os.listdir(state) if state.exists() else ())]
    for hierarchy in hierarchies():
        left += [entry.path for entry in os.scandir(hierarchy / box.cgroup) if entry.is_dir()]
    left += [
        line for line in Path("/proc/self/mountinfo").read_text().splitlines() if str(box.bundle) in line
    ]
    return left + marked(name) + marked(box.config["process"]["args"][-1])


def delete(box: Box, name: str) -> None:
    done = box.cove("delete", "--force", name)
    assert done.status == 0, done.err
    wait_until(lambda: what_is_left(box, name) == [], f"nothing is left, but for {what_is_left(box, name)}")


def with_hooks(config: dict[str, Any]) -> None:
    hook = {"path": "/bin/sh", "args": ["sh", "-c", ":"]}
    config["hooks"] = {"createRuntime": [hook], "startContainer": [hook], "poststop": [hook]}


def with_user_namespace(config: dict[str, Any]) -> None:
    with_hooks(config)
    config["linux"]["namespaces"].append({"type": "user"})
    config["linux"]["uidMappings"] = [{"containerID": 0, "hostID": 0, "size": 65536}]
    config["linux"]["gidMappings"] = [{"containerID": 0, "hostID": 0, "size": 65536}]


STRIDE = int(os.environ.get("COVE_FAULT_STRIDE", "5"))  # 1: every call


@pytest.mark.parametrize("group", ["alone", "group"])
@pytest.mark.parametrize("change", [with_hooks, with_user_namespace])
def test_a_create_that_is_killed_anywhere_is_cleaned_up(box: Box, group: str, change: Any) -> None:
    name = f"{box.cgroup}-{group}"
    box.configure(["sleep", f"1000.{os.getpid()}"], change)
    for point in itertools.count(1, STRIDE):
        killed = killed_at(box, point, "mkdir", group, "create", name)
        delete(box, name)
        if not killed:
            assert point > 20
            break


def test_a_start_that_is_killed_anywhere_leaves_a_container_to_delete(box: Box) -> None:
    name = f"{box.cgroup}-start"
    box.configure(["sleep", f"1000.{os.getpid()}"], with_hooks)
    for point in itertools.count(1, 3 * STRIDE // 5 or 1):
        assert box.cove("create", name).status == 0
        killed = killed_at(box, point, "open", "alone", "start", name)
        status = box.status("cove", name)
        assert status in ("created", "running"), status
        delete(box, name)
        if not killed:
            break


def test_a_delete_that_is_killed_anywhere_can_be_repeated(box: Box) -> None:
    name = f"{box.cgroup}-delete"
    box.configure(["sleep", f"1000.{os.getpid()}"], with_hooks)
    for point in itertools.count(1, STRIDE):
        assert box.cove("run", "--detach", name).status == 0
        killed = killed_at(box, point, "open", "alone", "delete", "--force", name)
        delete(box, name)
        if not killed:
            break


@pytest.mark.parametrize("group", ["alone", "group"])
def test_an_exec_that_is_killed_anywhere_leaves_nothing_outside_the_container(box: Box, group: str) -> None:
    name = f"{box.cgroup}-exec"
    box.configure(["sleep", f"1000.{os.getpid()}"])
    assert box.cove("run", "--detach", name).status == 0
    for point in itertools.count(1, 2 * STRIDE):
        killed = killed_at(
            box, point, "open", group, "exec", "--detach", name, "sleep", f"1001.{os.getpid()}"
        )
        assert box.status("cove", name) == "running"
        if not killed:
            break
    delete(box, name)
    assert marked(f"1001.{os.getpid()}") == []


def test_on_a_full_disk_nothing_is_half_made(box: Box) -> None:
    name = f"{box.cgroup}-full"

    def annotate(config: dict[str, Any]) -> None:
        with_hooks(config)
        config["annotations"] = {"a": "x" * 9000}  # a state of three pages

    box.configure(["sleep", f"1000.{os.getpid()}"], annotate)
    state = box.state["cove"]
    state.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m,mode=700", "tmpfs", state], check=True)
    try:
        for free in itertools.count():
            filler = os.open(state / "filler", os.O_CREAT | os.O_WRONLY)
            os.posix_fallocate(filler, 0, (256 - free) * 4096 - 8192)
            os.unlink(state / "filler")
            done = box.cove("create", name)
            os.close(filler)
            assert "Traceback" not in done.err
            if done.status == 0:
                break
            assert "no space left on device" in done.error, done.err
            wait_until(lambda: what_is_left(box, name) == [], "nothing is left")
        assert free > 3
        delete(box, name)
    finally:
        box.cove("delete", "--force", name)
        subprocess.run(["umount", state], check=True)
