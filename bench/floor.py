"""Build and run the floor (bench/floor.c): what the kernel alone needs for the same isolation."""

from __future__ import annotations

import subprocess
from pathlib import Path

from bench.engines import EngineError
from bench.peers import find_program
from bench.room import hierarchies, remove_cgroups

SOURCE = Path(__file__).with_name("floor.c")
FLAGS = ("-std=c11", "-O2", "-static", "-Wall", "-Wextra", "-Werror")


class Floor:
    """The floor's program, with directories and a cgroup name of its own."""

    def __init__(self, directory: Path, lower: Path, program: bytes) -> None:
        """`lower` is overlay's lower directory, `program` the compiled system call filter (may be empty)."""
        directory.mkdir(parents=True)
        self.directory = directory
        self.cgroup = f"{directory.parent.name}-floor"
        self._binary = directory / "floor"
        self._lower = lower
        self._filter = directory / "filter.bpf"
        self._filter.write_bytes(program)
        compiler = find_program("gcc", "gcc")
        built = subprocess.run(
            [compiler, *FLAGS, "-o", str(self._binary), str(SOURCE)], capture_output=True, text=True
        )
        if built.returncode != 0:
            raise EngineError(f"bench/floor.c doesn't compile: {built.stderr.strip()[:300]}")

    def run(self, rounds: int, *, network: bool) -> list[float]:
        """Make and remove so many containers; milliseconds of each. `network`: with a network namespace."""
        argv = [str(self._binary), "-d", str(self.directory), "-l", str(self._lower), "-c", self.cgroup]
        roots = hierarchies()
        for root in roots:
            argv += ["-h", str(root)]
        if len(roots) == 1 and (roots[0] / "cgroup.controllers").exists():
            argv.append("-2")
        if self._filter.stat().st_size:
            argv += ["-s", str(self._filter)]
        argv += ["-C"] + (["-N"] if network else [])
        argv += ["-n", str(rounds), "--", "/bin/true"]
        done = subprocess.run(
            argv, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=60 + rounds
        )
        if done.returncode != 0:
            raise EngineError(done.stderr.strip() or f"the floor ended with {done.returncode}")
        return [int(line) / 1e6 for line in done.stdout.split()]

    def stop(self) -> None:
        remove_cgroups(self.cgroup)
