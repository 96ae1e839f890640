"""The peers: Debian's dockerd with containerd, and runc by itself.

dockerd runs in a room (bench/room.py): there its bridge, its iptables rules, the DROP policy of
its FORWARD chain and its mounts are its own and vanish with it. What it took to start here:

- containerd is started apart, with a root, state and address of its own: a daemon started by
  dockerd would use /run/containerd, and couldn't outlive dockerd.
- `--live-restore`, so that containers survive a killed dockerd: without it there would be nothing
  to compare a restarted Cove with.
- `--cgroup-parent` of its own and the cgroupfs driver: hybrid hosts have no systemd to ask.
- An empty `--config-file`, so that /etc/docker/daemon.json has no say.

No flag was needed for the missing CAP_SYS_RESOURCE: dockerd 20.10 starts its shims with
oom_score_adj -999 only if it may, and runc 1.1 raises no limit above the hard one.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import time
from pathlib import Path

from bench.engines import Engine, EngineError
from bench.procfs import Process
from bench.room import remove_cgroups

CONTAINERD_CONFIG = """\
version = 2
root = "{directory}/containerd"
state = "{directory}/containerd-state"
disabled_plugins = ["io.containerd.grpc.v1.cri"]
[grpc]
  address = "{directory}/containerd.sock"
[debug]
  level = "warn"
"""


def find_program(name: str, package: str) -> str:
    """The path of a program; EngineError names the package that has it."""
    path = shutil.which(name, path=os.environ.get("PATH", "") + ":/usr/sbin:/sbin")
    if path is None:
        raise EngineError(f"{name} isn't installed: apt-get install {package}")
    return path


class Dockerd(Engine):
    """Debian's docker.io."""

    name = "dockerd"

    def daemon_commands(self) -> list[list[str]]:
        directory = self.directory
        config = directory / "containerd.toml"
        config.write_text(CONTAINERD_CONFIG.format(directory=directory))
        (directory / "daemon.json").write_text("{}")
        containerd = [find_program("containerd", "containerd"), "--config", str(config)]
        dockerd = [
            find_program("dockerd", "docker.io"),
            f"--config-file={directory}/daemon.json",
            f"--data-root={directory}/data",
            f"--exec-root={directory}/exec",
            f"--pidfile={directory}/docker.pid",
            f"--host=unix://{self.socket}",
            f"--containerd={directory}/containerd.sock",
            "--storage-driver=overlay2",
            "--exec-opt=native.cgroupdriver=cgroupfs",
            f"--cgroup-parent=/{self.cgroup_parent}",
            "--live-restore",
            "--log-level=warn",
        ]
        find_program("runc", "runc")
        return [containerd, dockerd]

    def is_daemon(self, process: Process) -> bool:
        return Path(process.program).name in ("dockerd", "containerd")

    def is_supervisor(self, process: Process) -> bool:
        return Path(process.program).name.startswith("containerd-shim")


class Runc:
    """`runc run` of a bundle: what the low-level runtime alone takes, without overlay and log."""

    def __init__(self, directory: Path, cgroup_parent: str, rootfs: Path) -> None:
        self.directory = directory
        self.program = find_program("runc", "runc")
        self.cgroup_parent = cgroup_parent
        self._count = 0
        directory.mkdir(parents=True)
        subprocess.run([self.program, "spec"], cwd=directory, check=True, capture_output=True)
        path = directory / "config.json"
        config = json.loads(path.read_text())
        config["process"] |= {"terminal": False, "args": ["/bin/true"]}
        config["root"] = {"path": str(rootfs), "readonly": True}
        config["linux"]["cgroupsPath"] = f"/{self.cgroup_parent}/bundle"
        path.write_text(json.dumps(config))

    def run(self) -> float:
        """Run the bundle once; milliseconds from the start of the program to its end."""
        self._count += 1
        argv = [self.program, "--root", str(self.directory / "state"), "run"]
        argv += ["--bundle", str(self.directory), f"bench-{os.getpid()}-{self._count}"]
        return run_program(argv)

    def stop(self) -> None:
        remove_cgroups(self.cgroup_parent)
        shutil.rmtree(self.directory, ignore_errors=True)


def run_program(argv: list[str], env: dict[str, str] | None = None) -> float:
    """Run a program to its end; milliseconds. EngineError when it fails, with its last line of error."""
    begin = time.perf_counter()
    done = subprocess.run(
        argv,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        timeout=120,
        env=env,
    )
    elapsed_ms = (time.perf_counter() - begin) * 1000
    if done.returncode != 0:
        lines = done.stderr.decode(errors="replace").strip().splitlines()
        words = lines[-1] if lines else "no message"
        raise EngineError(f"{' '.join(argv[:3])} … ended with {done.returncode}: {words}")
    return elapsed_ms
