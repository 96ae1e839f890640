"""Debian's dockerd and containerd with bin/cove-runtime as a runtime, in a room of their own (bench/room.py)."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from bench.peers import CONTAINERD_CONFIG, Dockerd, find_program
from bench.room import Room, remove_cgroups, wait_until
from tests import leaks
from tests.imagekit import busybox_archive
from tests.system.oci_support import make_cgroups

RUNTIME = Path(__file__).parent.parent.parent / "bin/cove-runtime"
IMAGE = "busybox:latest"
BOUND_S = 90.0


def missing_program(*names: str) -> str:
    """Which of these isn't installed; ""."""
    path = os.environ.get("PATH", "") + ":/usr/sbin:/sbin"
    return next((name for name in names if shutil.which(name, path=path) is None), "")


@dataclass(frozen=True)
class Done:
    status: int
    out: str
    err: str


def run(argv: Sequence[str], *, env: dict[str, str] | None = None, stdin: bytes = b"") -> Done:
    done = subprocess.run(argv, input=stdin, capture_output=True, timeout=BOUND_S, env=env)
    return Done(done.returncode, done.stdout.decode(errors="replace"), done.stderr.decode(errors="replace"))


class DockerdWithCove(Dockerd):
    """dockerd, whose default runtime is ours; runc stays under its name."""

    def __init__(self) -> None:
        directory = Path(tempfile.mkdtemp(prefix="cove-test-", dir="/var/tmp")) / "d"
        leaks.own_directory(directory.parent)
        super().__init__(directory, leaks.unique_name())
        make_cgroups(self.cgroup_parent)

    def daemon_commands(self) -> list[list[str]]:
        containerd, dockerd = super().daemon_commands()
        dockerd.remove("--live-restore")
        return [containerd, [*dockerd, f"--add-runtime=cove={RUNTIME}", "--default-runtime=cove"]]

    def load_image(self) -> None:
        done = self.docker("load", stdin=busybox_archive(IMAGE))
        assert done.status == 0, done.err

    def docker(self, *args: str, stdin: bytes = b"") -> Done:
        env = {**os.environ, "DOCKER_HOST": f"unix://{self.socket}", "DOCKER_CONFIG": str(self.directory)}
        return run(["docker", *args], env=env, stdin=stdin)

    def stop(self) -> None:
        if self.room is not None and self.daemon_pids():
            self.remove_all()
        super().stop()
        shutil.rmtree(self.directory.parent, ignore_errors=True)


class Containerd:
    """containerd alone, called by ctr; its containers run in a room, so ctr does, too."""

    def __init__(self) -> None:
        self.directory = Path(tempfile.mkdtemp(prefix="cove-test-", dir="/var/tmp"))
        leaks.own_directory(self.directory)
        self.cgroup = leaks.unique_name()
        make_cgroups(self.cgroup)
        self.socket = self.directory / "containerd.sock"
        config = self.directory / "containerd.toml"
        config.write_text(CONTAINERD_CONFIG.format(directory=self.directory))
        self.room = Room()
        log = self.directory / "log"
        self.room.start([find_program("containerd", "containerd"), "--config", str(config)], log)
        wait_until(lambda: self.ctr("version").status == 0, 60, "containerd answers")
        archive = self.directory / "image.tar"
        archive.write_bytes(busybox_archive(IMAGE))
        done = self.ctr("images", "import", str(archive))
        assert done.status == 0, done.err

    def ctr(self, *args: str, stdin: bytes = b"") -> Done:
        """In the room's namespaces: a shim's FIFOs and mounts are paths there."""
        inside = min(pid for pid, process in self.room.processes().items() if len(process.inner_pids) > 1)
        enter = ["nsenter", "--target", str(inside), "--mount", "--pid", "--net"]
        return run([*enter, "ctr", "--address", str(self.socket), *args], stdin=stdin)

    def run(self, name: str, *command: str, flags: Sequence[str] = ()) -> Done:
        """`ctr run` by our runtime."""
        runtime = ["--runtime", "io.containerd.runc.v2", "--runc-binary", str(RUNTIME)]
        group = ["--cgroup", f"/{self.cgroup}/{name}"]
        return self.ctr("run", *runtime, *group, *flags, f"docker.io/library/{IMAGE}", name, *command)

    def close(self) -> None:
        self.room.close()
        remove_cgroups(self.cgroup)
        shutil.rmtree(self.directory, ignore_errors=True)
