"""Build and run the floor (bench/floor.c): what the kernel alone needs for the same isolation."""

from __future__ import annotations

import subprocess
from pathlib import Path

from bench.engines import EngineError
from bench.peers import find_program
from bench.room import CGROUPS, hierarchies, remove_cgroups
from cove.runtime.cgroups_detect import detect_cgroups
from cove.runtime.cgroups_devices import DEFAULT_RULES, v1_lines
from cove.runtime.host import find_host
from cove.runtime.seccomp import select
from cove.runtime.seccomp_compile import compile_filter

KEPT_CAPABILITIES = 0xA80425FB  # Docker's default 14
# The hierarchies of cgroup v1 that Cove's default container joins (cove/runtime/plan_cgroups.py).
JOINED = frozenset({"cpu", "cpuacct", "memory", "devices", "freezer", "pids", "blkio"})
SOURCE = Path(__file__).with_name("floor.c")
FLAGS = ("-std=c11", "-O2", "-static", "-Wall", "-Wextra", "-Werror")


class Floor:
    """The floor's program, with directories and a cgroup parent of its own."""

    def __init__(self, directory: Path, cgroup_parent: str, lower: Path) -> None:
        """`lower` is overlay's lower directory. Filter and hidden paths are those of Cove's plans here."""
        layout = detect_cgroups(str(CGROUPS)).layout
        host = find_host(layout)
        directory.mkdir(parents=True)
        self.directory = directory
        self.cgroup_parent = cgroup_parent
        self._binary = directory / "floor"
        self._lower = lower
        self._filter = directory / "filter.bpf"
        self._masks = host.masked_paths
        filter_ = select("", KEPT_CAPABILITIES, host.architecture, host.kernel)
        self._filter.write_bytes(b"" if filter_ is None else compile_filter(filter_))
        self._roots = [
            root for root in hierarchies() if root == CGROUPS or JOINED & set(root.name.split(","))
        ]
        for root in self._roots:
            make_parent(root / self.cgroup_parent)
        compiler = find_program("gcc", "gcc")
        built = subprocess.run(
            [compiler, *FLAGS, "-o", str(self._binary), str(SOURCE)], capture_output=True, text=True
        )
        if built.returncode != 0:
            raise EngineError(f"bench/floor.c doesn't compile: {built.stderr.strip()[:300]}")

    def run(self, rounds: int, *, network: bool) -> list[float]:
        """Make and remove so many containers; milliseconds of each. `network`: with a network namespace."""
        argv = [str(self._binary), "-d", str(self.directory / "round"), "-l", str(self._lower)]
        argv += ["-c", f"{self.cgroup_parent}/round"]
        for root in self._roots:
            argv += ["-h", str(root)]
        if self._roots == [CGROUPS]:
            argv.append("-2")
        for path in self._masks:
            argv += ["-m", path]
        if self._filter.stat().st_size:
            argv += ["-s", str(self._filter)]
        if network:
            argv.append("-N")
        argv += ["-n", str(rounds), "--", "/bin/true"]
        done = subprocess.run(
            argv, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=60 + rounds
        )
        if done.returncode != 0:
            raise EngineError(done.stderr.strip() or f"the floor ended with {done.returncode}")
        return [int(line) / 1e6 for line in done.stdout.split()]

    def stop(self) -> None:
        remove_cgroups(self.cgroup_parent)


def make_parent(directory: Path) -> None:
    """Make the parent cgroup, with the device rules that containers inherit (made once, as Cove does)."""
    directory.mkdir()
    if "devices" in directory.parent.name.split(","):
        for file, line in v1_lines(DEFAULT_RULES):
            (directory / file).write_text(line)
