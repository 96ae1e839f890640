"""The known escapes, tried against the OCI runtime: whoever calls it may hold anything, a bundle may ask anything."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import os
import pty
import re
import shutil
import subprocess
import termios
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from tests.apikit import eventually
from tests.leaks import unique_name
from tests.native_build import ROOT, build
from tests.system import probes
from tests.system.test_seccomp import MKDIR, Agent
from tests.system.test_security_escapes import descriptors

RUNTIME = str(ROOT / "bin/cove-runtime")
APPLETS = "sh cat chmod cp env grep ls mkdir sleep stat true".split()
BOUND_S = 60


class Bundle:
    """A bundle with busybox and the probe, and a runtime's root of its own."""

    def __init__(self, path: Path) -> None:
        build("native")
        self.path = path
        binaries = path / "rootfs/bin"
        binaries.mkdir(parents=True)
        shutil.copy(shutil.which("busybox") or "/bin/busybox", binaries / "busybox")
        shutil.copy(probes.probe(), path / "rootfs/probe")
        for applet in APPLETS:
            (binaries / applet).symlink_to("busybox")
        (path / "secret").write_text("secret of the host")
        self("spec", "--bundle", str(path))
        self.config: dict[str, Any] = json.loads((path / "config.json").read_text())
        self.config["process"]["terminal"] = False
        self.config["root"]["readonly"] = False

    def __call__(self, *args: str, **more: Any) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [RUNTIME, "--root", str(self.path / "root"), *args],
            capture_output=True, text=True, errors="replace", timeout=BOUND_S, **more,
        )  # fmt: skip

    def prepare(self, args: Sequence[str], **process: Any) -> str:
        """Write the config; an id for the container."""
        self.config["process"].update(args=list(args), **process)
        (self.path / "config.json").write_text(json.dumps(self.config))
        return unique_name()

    def run(self, *args: str, process: dict[str, Any] | None = None, **more: Any) -> tuple[int, str]:
        name = self.prepare(args, **(process or {}))
        done = self("run", "--bundle", str(self.path), name, **more)
        return done.returncode, done.stdout + done.stderr

    @contextlib.contextmanager
    def running(self, *args: str, output: Path) -> Iterator[str]:
        name = self.prepare(args)
        with open(output, "wb") as out:
            done = subprocess.run(
                [RUNTIME, "--root", str(self.path / "root"), "run", "--detach", "--bundle", str(self.path), name],
                stdin=subprocess.DEVNULL, stdout=out, stderr=out, timeout=BOUND_S,
            )  # fmt: skip
        try:
            assert done.returncode == 0, output.read_text()
            yield name
        finally:
            assert self("delete", "--force", name).returncode == 0


@pytest.fixture
def bundle(tmp_path: Path) -> Bundle:
    return Bundle(tmp_path)


@pytest.fixture
def leaked(bundle: Bundle) -> Iterator[tuple[int, ...]]:
    """Descriptors of the host's root and of the bundle that whoever calls the runtime left open to its children."""
    made = tuple(os.open(path, os.O_RDONLY | os.O_DIRECTORY) for path in ("/", bundle.path))
    high = fcntl.fcntl(made[1], fcntl.F_DUPFD, 300)
    yield (*made, high)
    for descriptor in (*made, high):
        os.close(descriptor)


def test_a_process_gets_its_streams_and_nothing_else_of_the_caller(
    bundle: Bundle, leaked: tuple[int, ...]
) -> None:
    """CVE-2024-21626, CVE-2016-9962: what a caller left open stays outside, and so does its environment."""
    script = "env; cat /proc/1/environ; busybox ls -l /proc/self/fd; busybox ls -l /proc/1/fd"
    code, said = bundle.run(
        "sh", "-c", script, pass_fds=leaked, env={**os.environ, "SECRET": "of the caller"}
    )
    assert code == 0 and "of the caller" not in said
    assert descriptors(said.encode()) <= {"0", "1", "2", "3"} and "rootfs" not in said


def test_no_working_directory_is_a_descriptor_of_the_runtime_or_its_caller(
    bundle: Bundle, leaked: tuple[int, ...], tmp_path: Path
) -> None:
    """CVE-2024-21626, at run and at exec."""
    look = ("sh", "-c", "cat secret ./tmp/secret; busybox ls; :")
    for number in sorted({*leaked, *range(3, 12)}):
        code, said = bundle.run(*look, process={"cwd": f"/proc/self/fd/{number}"}, pass_fds=leaked)
        assert code != 0 and "secret of the host" not in said and "rootfs" not in said, (number, said)
    bundle.config["process"]["cwd"] = "/"
    with bundle.running("sleep", "1000", output=tmp_path / "out") as name:
        for number in sorted({*leaked, *range(3, 12)}):
            cwd = f"/proc/self/fd/{number}"
            done = bundle("exec", "--cwd", cwd, name, *look, pass_fds=leaked)
            assert done.returncode != 0 and "secret of" not in done.stdout, (number, done.stdout)


def test_nobody_overwrites_the_runtime_or_its_interpreter(bundle: Bundle, tmp_path: Path) -> None:
    """CVE-2019-5736: the only foreign program that a container ever meets is a sealed copy of cove-init."""
    for kind in ("bounding", "effective", "permitted"):
        bundle.config["process"]["capabilities"][kind].append("CAP_SYS_PTRACE")
    script = bundle.path / "rootfs/self"
    script.write_text("#!/proc/self/exe\n")
    script.chmod(0o755)
    programs = [build("native") / "cove-init", (ROOT / ".venv/bin/python").resolve(), Path(RUNTIME)]
    before = [(program.read_bytes(), program.stat().st_mtime_ns) for program in programs]
    output = tmp_path / "out"
    with bundle.running("/probe", "overwrite", "3", output=output) as name:
        for _ in range(8):
            assert bundle("exec", name, "true").returncode == 0
            assert bundle("exec", name, "/self").returncode != 0
        eventually(lambda: "opened" in output.read_text(), "the attacker's end")
    said = output.read_text()
    seen, opened = said[said.index("seen ") :].split()[1:4:2]
    assert int(seen) > 0 and int(opened) > 0, "it never met cove-init: nothing was tried"
    assert "overwritten" not in said and "truncated" not in said, said
    assert before == [(program.read_bytes(), program.stat().st_mtime_ns) for program in programs]


def test_a_created_container_shows_its_neighbours_nothing_of_the_host(bundle: Bundle, tmp_path: Path) -> None:
    """CVE-2016-9962: it waits, for as long as somebody likes, in the pid namespace of one that may trace it."""
    for kind in ("bounding", "effective", "permitted"):
        bundle.config["process"]["capabilities"][kind].append("CAP_SYS_PTRACE")
    with bundle.running("sleep", "1000", output=tmp_path / "out") as first:
        pid = json.loads(bundle("state", first).stdout)["pid"]
        others = [each for each in bundle.config["linux"]["namespaces"] if each["type"] != "pid"]
        bundle.config["linux"]["namespaces"] = [*others, {"type": "pid", "path": f"/proc/{pid}/ns/pid"}]
        second = bundle.prepare(["true"])
        output = tmp_path / "second"
        with open(output, "wb") as out:
            command = [
                RUNTIME,
                "--root",
                str(bundle.path / "root"),
                "create",
                "--bundle",
                str(bundle.path),
                second,
            ]
            subprocess.run(
                command, stdin=subprocess.DEVNULL, stdout=out, stderr=out, timeout=BOUND_S, check=True
            )
        try:
            secret = bundle.path / "secret"
            script = (
                f"for p in /proc/[0-9]*; do grep -l cove-init $p/comm; cat $p/root{secret} $p/cwd{secret}; done;"
                "busybox ls -l /proc/[0-9]*/fd; echo environ=; cat /proc/[0-9]*/environ"
            )
            said = bundle("exec", first, "sh", "-c", script).stdout
            assert "/comm" in said, "the waiting process isn't there"
            assert "secret of the host" not in said and "cove" not in said.partition("environ=")[2]
            held = re.findall(r" (\d+) -> (.*)", said)
            more = {target for number, target in held if int(number) > 2 and not target.startswith("/proc/")}
            assert more == {f"{bundle.path}/root/{second}/{name}" for name in ("go", "status")}
        finally:
            assert bundle("delete", "--force", second).returncode == 0


def test_a_process_types_nothing_into_the_terminal_of_who_called_the_runtime(bundle: Bundle) -> None:
    """CVE-2016-2568: the terminal comes as a stream, and is no controlling one in the container's own session."""
    name = bundle.prepare(
        [
            "sh",
            "-c",
            f"/probe call {probes.IOCTL} 0 {termios.TIOCSCTTY} 0; /probe call {probes.IOCTL} 0 21522 @x",
        ]
    )
    pid, terminal = pty.fork()
    if pid == 0:
        os.execv(
            RUNTIME, [RUNTIME, "--root", str(bundle.path / "root"), "run", "--bundle", str(bundle.path), name]
        )
    said = b""
    with contextlib.suppress(OSError):  # EIO: everybody has closed it
        while data := os.read(terminal, 4096):
            said += data
    os.close(terminal)
    assert os.waitpid(pid, 0)[1] == 0, said
    lines = [line for line in said.decode().splitlines() if line.startswith("-1 ")]
    assert lines == [f"-1 {errno.EPERM}"] * 2 or lines == [f"-1 {errno.EPERM}", f"-1 {errno.EIO}"], said


def test_an_agent_decides_about_the_calls_of_a_container(bundle: Bundle, tmp_path: Path) -> None:
    agent = Agent(tmp_path / "agent.sock", lambda number: errno.ENETDOWN if number == MKDIR else None)
    try:
        bundle.config["linux"]["seccomp"] = {
            "defaultAction": "SCMP_ACT_ALLOW",
            "listenerPath": str(agent.path),
            "listenerMetadata": "of the test",
            "syscalls": [{"names": ["mkdir", "setresuid", "execve"], "action": "SCMP_ACT_NOTIFY"}],
        }
        code, said = bundle.run("mkdir", "/made")
        assert code == 1 and "Network is down" in said
        (state,) = agent.states
        assert (state["fds"], state["metadata"]) == (["seccompFd"], "of the test")
        assert state["state"]["bundle"] == str(bundle.path) and state["pid"] == state["state"]["pid"]
        assert MKDIR in agent.asked
    finally:
        agent.close()


def test_a_filter_is_compiled_once(bundle: Bundle) -> None:
    bundle.config["linux"]["seccomp"] = {
        "defaultAction": "SCMP_ACT_ALLOW",
        "syscalls": [{"names": ["mkdir"], "action": "SCMP_ACT_ERRNO", "errnoRet": errno.ENETDOWN}],
    }
    for _ in range(2):
        assert bundle.run("true") == (0, "")  # the first call makes the root
    (file,) = (bundle.path / "root/~filters").iterdir()
    made = file.stat().st_mtime_ns
    code, said = bundle.run("mkdir", "/made")
    assert code == 1 and "Network is down" in said and file.stat().st_mtime_ns == made
    assert bundle("list", "--quiet").stdout == ""
