"""bin/cove-runtime beside runc: the same bundle, the same command lines, in pairs."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

from bench.cases import Case
from bench.context import Bench, Measure
from bench.cove import ROOT
from bench.engines import EngineError
from bench.peers import Runc
from bench.stats import Row, TimesFaster


class CoveRuntime(Runc):
    """Ours, called as runc is. The first call leaves a planner behind, and the others meet it."""

    def __init__(self, directory: Path, cgroup_parent: str, rootfs: Path) -> None:
        super().__init__(directory, cgroup_parent, rootfs)
        self.program = str(ROOT / "bin/cove-runtime")


def whole_life(side: Runc, name: str) -> float:
    """create, start, delete; milliseconds, without the time that the process itself takes to end."""
    elapsed = 0.0
    for verb in (["create", "--bundle", str(side.directory)], ["start"], ["delete", "--force"]):
        argv = [side.program, "--root", str(side.directory / "state"), *verb, name]
        begin = time.perf_counter()
        # the container keeps these descriptors, so they can't be pipes that are read to their end
        done = subprocess.run(
            argv, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, timeout=120
        )
        elapsed += time.perf_counter() - begin
        if done.returncode != 0:
            raise EngineError(f"{' '.join(argv)} ended with {done.returncode}")
    return elapsed * 1000


def compare(bench: Bench, what: str, life: bool, target: float) -> Iterator[Row]:
    times = bench.size(10, 4)

    def measure(side: Runc) -> Measure:
        side.run()  # what is done once: the filter's compilation, a planner

        def run() -> Iterator[float]:
            for number in range(times):
                yield whole_life(side, f"life-{number}") if life else side.run()

        return run

    samples = bench.measure(
        bench.size(10, 3),
        {"Cove": lambda: measure(bench.cove_runtime()), "runc": lambda: measure(bench.runc())},
    )
    note = (
        f"a process of its own each time; {samples.describe('Cove', 'ms')}, {samples.describe('runc', 'ms')}"
    )
    yield bench.row(what, "ms", samples, against="runc", targets=(TimesFaster(target),), note=note)


CASES = (
    Case(
        "runtime-run",
        "cove-runtime run of a bundle with true, beside runc",
        lambda bench: compare(bench, "`cove-runtime run` of `true`", False, 1.4),
    ),
    Case(
        "runtime-life",
        "cove-runtime create, start and delete, beside runc",
        lambda bench: compare(bench, "`cove-runtime` create, start, delete of `true`", True, 1.2),
    ),
)
