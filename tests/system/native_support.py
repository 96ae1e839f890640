"""What the tests of cove-init share: a busybox root, plans for it, a launcher for each build."""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
from collections.abc import Callable, Coroutine, Iterator, Sequence
from pathlib import Path
from typing import Any, TypeVar

import pytest

from cove.runtime.launch import ExitStatus, Launcher, LogSetup, StreamSetup, Task, launch
from cove.runtime.steps import (
    Bind,
    Chdir,
    Exec,
    MakeNode,
    MakeSymlink,
    MountIn,
    MountRoot,
    PivotRoot,
    Plan,
    Propagate,
    Step,
)
from tests.native_build import build

NEWNS, NEWUTS, NEWIPC, NEWPID, NEWNET, NEWCGROUP = (
    0x00020000, 0x04000000, 0x08000000, 0x20000000, 0x40000000, 0x02000000,
)  # fmt: skip
NAMESPACES = NEWNS | NEWUTS | NEWIPC | NEWPID
MS_RDONLY, MS_NOSUID, MS_NODEV, MS_NOEXEC, MS_REC, MS_PRIVATE = 1, 2, 4, 8, 1 << 14, 1 << 18
PATH = "PATH=/usr/local/bin:/bin"
APPLETS = (
    "sh true false echo cat ls stat sleep mount umount id tty head yes ps env pwd touch dd mkdir stty ip test tail "
    "kill readlink wc hostname grep rm"
).split()

T = TypeVar("T")
needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="makes namespaces and mounts: needs root")


hang_up: list[Callable[[], None]] = []  # how to close the clients' ends that a test has made


def run(body: Coroutine[Any, Any, T]) -> T:
    """Run a test's body on an event loop of its own, within a generous bound."""

    async def bounded() -> T:
        try:
            async with asyncio.timeout(90):
                return await body
        finally:
            while hang_up:
                hang_up.pop()()
            await supervisors_gone()

    return asyncio.run(bounded())


async def supervisors_gone(bound_s: float = 10) -> None:
    """Wait until this loop watches no process any more: a supervisor ends a moment after it told the exit."""
    loop: Any = asyncio.get_running_loop()
    deadline = loop.time() + bound_s
    while loop.time() < deadline:
        watched = [fd for fd in loop._selector.get_map() if isinstance(fd, int)]
        if not any(os.readlink(f"/proc/self/fd/{fd}") == "anon_inode:[pidfd]" for fd in watched):
            return
        await asyncio.sleep(0.005)


def bind_host(source: Path, target: str, **more: int) -> Bind:
    return Bind(source=str(source), target=target, **more)


async def until(condition: Callable[[], object]) -> None:
    """Wait for what gives no event of its own; `run` bounds it."""
    while not condition():
        await asyncio.sleep(0.02)


class Box:
    """A busybox root as an overlay's lower directory, and what a container needs around it."""

    def __init__(self, path: Path, launcher: Launcher) -> None:
        self.path = path
        self.launcher = launcher
        self.lower = path / "lower"
        self.upper = path / "upper"
        self.state = path / "state"
        self.log = path / "log"
        self.shared = path / "shared"  # seen by both sides, as an overlay's upper directory isn't
        for name in ("lower/bin", "upper", "work", "merged", "log", "shared"):
            (path / name).mkdir(parents=True)
        for name in ("proc", "sys", "dev", "tmp", "etc"):
            (self.lower / name).mkdir()
        shutil.copy(shutil.which("busybox") or "/bin/busybox", self.lower / "bin/busybox")
        for applet in APPLETS:
            (self.lower / "bin" / applet).symlink_to("busybox")

    def root(self) -> tuple[Step, ...]:
        """Steps up to a root with /proc and /dev."""
        return (
            Propagate(flags=MS_REC | MS_PRIVATE),
            MountRoot(
                fstype="overlay",
                source="overlay",
                target=str(self.path / "merged"),
                flags=0,
                data="lowerdir=lower,upperdir=upper,workdir=work",
                cwd=str(self.path),
            ),
            MountIn(fstype="proc", source="proc", target="/proc", flags=MS_NOSUID | MS_NODEV | MS_NOEXEC),
            MountIn(fstype="tmpfs", source="tmpfs", target="/dev", flags=MS_NOSUID, data="mode=755,size=64k"),
            MountIn(
                fstype="devpts",
                source="devpts",
                target="/dev/pts",
                flags=MS_NOSUID | MS_NOEXEC,
                data="newinstance,ptmxmode=0666,mode=0620",
            ),
            MakeNode(path="/dev/null", mode=0o020666, major=1, minor=3),
            MakeNode(path="/dev/zero", mode=0o020666, major=1, minor=5),
            MakeNode(path="/dev/tty", mode=0o020666, major=5, minor=0),
            MakeSymlink(target="/proc/self/fd", path="/dev/fd"),
            MakeSymlink(target="/proc/self/fd/1", path="/dev/stdout"),
            bind_host(self.shared, "/shared"),
        )

    def plan(
        self,
        *args: str,
        inside: Sequence[Step] = (),
        late: Sequence[Step] = (),
        env: Sequence[str] = (PATH,),
        init: int = 0,
        flags: int = NAMESPACES,
        **sections: Any,
    ) -> Plan:
        """A container of `args`: `inside` before the pivot, `late` after it."""
        child = (
            *self.root(), *inside, PivotRoot(), Chdir(path="/"), *late,
            Exec(args=args, env=tuple(env), init=init),
        )  # fmt: skip
        return Plan(clone_flags=flags, child=child, **sections)

    def sh(self, script: str, **more: Any) -> Plan:
        return self.plan("sh", "-c", script, **more)

    def streams(self, **more: Any) -> StreamSetup:
        """Streams with a local log, which `output` reads."""
        return StreamSetup(log=LogSetup(driver="local", directory=self.log), **more)

    async def start(self, plan: Plan, **more: Any) -> Task:
        more.setdefault("streams", self.streams())
        more.setdefault("state_dir", self.state)
        return await launch(self.launcher, plan, **more)

    async def finish(self, plan: Plan, **more: Any) -> tuple[ExitStatus, str]:
        """Run to the end; the status, and what it printed."""
        task = await self.start(plan, **more)
        status = await task.wait()
        return status, self.output()

    def output(self, stream: int | None = None) -> str:
        """What was logged, of one stream or of both."""
        return b"".join(
            payload for number, _, payload in read_local(self.log / "log") if stream in (None, number)
        ).decode(errors="surrogateescape")


def read_local(path: Path) -> list[tuple[int, int, bytes]]:
    """The records (stream, time, payload) of a local log, checked for their form."""
    data = path.read_bytes() if path.exists() else b""
    records = []
    at = 0
    while at < len(data):
        length = int.from_bytes(data[at : at + 4], "little")
        stream, zeros = data[at + 4], data[at + 5 : at + 8]
        time_ns = int.from_bytes(data[at + 8 : at + 16], "little")
        payload = data[at + 16 : at + 16 + length]
        assert zeros == bytes(3)
        assert length == len(payload) == int.from_bytes(data[at + 16 + length : at + 20 + length], "little")
        records.append((stream, time_ns, payload))
        at += 20 + length
    return records


def make_launcher(name: str, report: Path) -> Launcher:
    options = f"detect_leaks=0:log_path={report}"
    environment = {"ASAN_OPTIONS": options, "UBSAN_OPTIONS": f"log_path={report}"} if "asan" in name else {}
    return Launcher.open(build(name) / "cove-init", environment)


@pytest.fixture(params=["native", "native-asan"])
def launcher(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Launcher]:
    """A launcher of each build. Afterwards no process is left, and no sanitizer has complained."""
    made = make_launcher(request.param, tmp_path / "sanitizer")
    yield made
    made.close()
    left = Path(f"/proc/self/task/{os.getpid()}/children").read_text().split()
    for pid in map(int, left):  # of a test that failed: its containers go with them
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
    assert left == []
    reports = list(tmp_path.glob("sanitizer*"))
    assert not reports, reports[0].read_text()
    assert str(tmp_path) not in Path("/proc/self/mountinfo").read_text()


@pytest.fixture
def box(launcher: Launcher, tmp_path: Path) -> Box:
    return Box(tmp_path / "box", launcher)
