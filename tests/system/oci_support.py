"""Bundles, and the runtimes that run them: ours and runc, called alike.

box = Box(tmp_path)                       # a root filesystem of busybox, a cgroup of its own
box.configure(["sh", "-c", "echo hi"])    # writes config.json
assert box.cove("run", "one").out == "hi\n"
"""

from __future__ import annotations

import contextlib
import copy
import json
import os
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests import leaks

ROOT = Path(__file__).parent.parent.parent
RUNTIME = ROOT / "bin/cove-runtime"
BOUND_S = 60.0


def find_runc() -> str | None:
    return shutil.which("runc", path=os.environ.get("PATH", "") + ":/usr/sbin:/sbin")


@dataclass(frozen=True)
class Done:
    """How a call ended; `error` is the message of the last line of the log."""

    status: int
    out: str
    err: str

    @property
    def error(self) -> str:
        line = self.err.strip().splitlines()[-1] if self.err.strip() else ""
        return line.partition(' msg="')[2].removesuffix('"').replace('\\"', '"') or line

    def json(self) -> Any:
        return json.loads(self.out)


class Box:
    """A directory with a bundle, and the state of both runtimes beside it."""

    def __init__(self, directory: Path) -> None:
        self.environment = dict(os.environ)
        self.prefix: list[str] = []  # of each command line of ours
        self.bundle = directory / "bundle"
        self.state = {"cove": directory / "cove", "runc": directory / "runc"}
        self.cgroup = leaks.unique_name()
        make_root(self.bundle / "rootfs")
        make_cgroups(self.cgroup)
        self.config: dict[str, Any] = {}

    def configure(
        self, args: Sequence[str], change: Callable[[dict[str, Any]], object] | None = None
    ) -> None:
        """Write config.json: runc's default one with these arguments and without a terminal."""
        self.config = copy.deepcopy(DEFAULT)
        self.config["process"]["args"] = list(args)
        self.config["linux"]["cgroupsPath"] = f"/{self.cgroup}/box"
        if change is not None:
            change(self.config)
        (self.bundle / "config.json").write_text(json.dumps(self.config))

    def argv(self, which: str, *args: str) -> list[str]:
        program = [*self.prefix, str(RUNTIME)] if which == "cove" else [find_runc() or "runc"]
        return [*program, "--root", str(self.state[which]), *args]

    def call(self, which: str, *args: str, stdin: str = "") -> Done:
        """Call a runtime and wait for its end; output by files, which a detached process may keep open."""
        out, err = self.bundle.parent / f"{which}.out", self.bundle.parent / f"{which}.err"
        with open(out, "wb") as out_file, open(err, "wb") as err_file:
            child = subprocess.Popen(
                self.argv(which, *args), cwd=self.bundle, env=self.environment, stdin=subprocess.PIPE,
                stdout=out_file, stderr=err_file,
            )  # fmt: skip
            child.communicate(stdin.encode(), timeout=BOUND_S)
        return Done(child.returncode, out.read_text(errors="replace"), err.read_text(errors="replace"))

    def cove(self, *args: str, stdin: str = "") -> Done:
        return self.call("cove", *args, stdin=stdin)

    def status(self, which: str, name: str) -> str:
        """The status that `state` prints, or the error."""
        done = self.call(which, "state", name)
        return str(done.json()["status"]) if done.status == 0 else done.error.partition(":")[0]

    def ids(self, which: str) -> list[str]:
        return self.call(which, "list", "-q").out.split()

    def close(self) -> None:
        """Delete every container, and the cgroups above."""
        for which, state in self.state.items():
            if state.exists():
                for name in os.listdir(state):
                    self.call(which, "delete", "--force", name)
        remove_cgroups(self.cgroup)


@contextlib.contextmanager
def opened(directory: Path) -> Iterator[Box]:
    box = Box(directory)
    try:
        yield box
    finally:
        box.close()


def make_root(root: Path) -> None:
    """A root filesystem of busybox and its applets."""
    busybox = shutil.which("busybox")
    assert busybox, "busybox isn't installed: apt-get install busybox-static"
    for name in ("bin", "dev", "etc", "proc", "root", "sys", "tmp"):
        (root / name).mkdir(parents=True)
    shutil.copy(busybox, root / "bin/busybox")
    applets = subprocess.run([busybox, "--list"], capture_output=True, text=True, check=True).stdout.split()
    for applet in applets:
        if applet != "busybox":
            (root / "bin" / applet).symlink_to("busybox")
    (root / "etc/passwd").write_text("root:x:0:0:root:/root:/bin/sh\n")
    (root / "etc/group").write_text("root:x:0:\n")


def hierarchies() -> list[Path]:
    """The mounted hierarchies of both versions."""
    root = Path("/sys/fs/cgroup")
    if (root / "cgroup.controllers").exists():
        return [root]
    return [each for each in root.iterdir() if not each.is_symlink() and (each / "cgroup.procs").exists()]


def make_cgroups(name: str) -> None:
    """A parent in every hierarchy, also a hybrid's v2 tree, which runc joins: `remove_cgroups` removes it."""
    for hierarchy in hierarchies():
        (hierarchy / name).mkdir()


def remove_cgroups(name: str) -> None:
    for hierarchy in hierarchies():
        for directory, _, _ in os.walk(hierarchy / name, topdown=False):
            with contextlib.suppress(FileNotFoundError):
                os.rmdir(directory)


def wait_until(condition: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + BOUND_S
    while not condition():
        assert time.monotonic() < deadline, f"waited in vain: {what}"
        time.sleep(0.01)  # another program's doing: nothing tells


def _mount(destination: str, kind: str, *options: str, source: str = "") -> dict[str, Any]:
    return {"destination": destination, "type": kind, "source": source or kind, "options": list(options)}


# what `runc spec` writes, but for the terminal and capabilities that can't be ambient
_CAPABILITIES = ["CAP_AUDIT_WRITE", "CAP_KILL", "CAP_NET_BIND_SERVICE"]
DEFAULT: dict[str, Any] = {
    "ociVersion": "1.0.2",
    "process": {
        "terminal": False,
        "user": {"uid": 0, "gid": 0},
        "args": ["true"],
        "env": ["PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "TERM=xterm"],
        "cwd": "/",
        "capabilities": dict.fromkeys(("bounding", "effective", "permitted"), _CAPABILITIES),
        "rlimits": [{"type": "RLIMIT_NOFILE", "hard": 1024, "soft": 1024}],
        "noNewPrivileges": True,
    },
    "root": {"path": "rootfs", "readonly": True},
    "hostname": "box",
    "mounts": [
        _mount("/proc", "proc"),
        _mount("/dev", "tmpfs", "nosuid", "strictatime", "mode=755", "size=65536k"),
        _mount("/dev/pts", "devpts", "nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620"),
        _mount("/dev/shm", "tmpfs", "nosuid", "noexec", "nodev", "mode=1777", "size=65536k", source="shm"),
        _mount("/dev/mqueue", "mqueue", "nosuid", "noexec", "nodev"),
        _mount("/sys", "sysfs", "nosuid", "noexec", "nodev", "ro"),
    ],
    "linux": {
        "resources": {"devices": [{"allow": False, "access": "rwm"}]},
        "namespaces": [{"type": kind} for kind in ("pid", "network", "ipc", "uts", "mount")],
        "maskedPaths": ["/proc/kcore", "/proc/keys", "/sys/firmware"],
        "readonlyPaths": ["/proc/bus", "/proc/sys"],
    },
}
