"""What the cases share: the engines, started when the first case needs them and stopped at the end.

A side that can't start is remembered with its reason; every case that needs it gets the reason.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Callable, Iterable, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import TypeVar

from bench.cove import Cove, find_cli
from bench.engines import FAILURES, Engine, EngineError
from bench.floor import Floor
from bench.images import busybox_archive, busybox_root
from bench.peers import Dockerd, Runc, find_program
from bench.stats import Row, Samples, Target, Unit, interleave
from bench.workdir import PREFIX, WORK, lock, make_filesystem, sweep, unmount

CACHE = Path("/var/cache/cove/bench")
Measure = Callable[[], Iterable[float]]
Side = TypeVar("Side")


class Bench:
    """One run of the benchmark."""

    def __init__(self, *, quick: bool, cache: Path = CACHE) -> None:
        self.quick = quick
        self.cache = cache
        self.cores = os.cpu_count() or 1
        sweep(WORK)
        outer = Path(tempfile.mkdtemp(prefix=PREFIX, dir=WORK))
        self._name = outer.name
        self._undo = ExitStack()
        self._undo.callback(os.close, lock(outer))
        self._undo.callback(shutil.rmtree, outer, ignore_errors=True)
        self.directory = outer
        if mounted := make_filesystem(outer):
            self._undo.callback(unmount, mounted)
            self.directory = mounted
        self._sides: dict[str, object] = {}
        self._reasons: dict[str, str] = {}

    def __enter__(self) -> Bench:
        return self

    def __exit__(self, *_: object) -> None:
        self._undo.close()

    def size(self, full: int, quick: int) -> int:
        """A number of rounds or containers: the second one in a quick run."""
        return quick if self.quick else full

    # --- sides ----------------------------------------------------------------------------

    def cove(self) -> Cove:
        return self._side("Cove", self._make_cove)

    def dockerd(self) -> Dockerd:
        return self._side("dockerd", self._make_dockerd)

    def floor(self) -> Floor:
        return self._side("floor", self._make_floor)

    def runc(self) -> Runc:
        return self._side("runc", self._make_runc)

    def engine(self, name: str) -> Engine:
        return self.cove() if name == "Cove" else self.dockerd()

    def docker_cli(self) -> str:
        return find_program("docker", "docker.io")

    def cove_cli(self) -> str:
        return str(find_cli())

    def _side(self, name: str, make: Callable[[], Side]) -> Side:
        if name in self._reasons:
            raise EngineError(self._reasons[name])
        if name not in self._sides:
            try:
                self._sides[name] = make()
            except Exception as error:
                self._reasons[name] = str(error)
                raise EngineError(str(error)) from error
        return self._sides[name]  # type: ignore[return-value]

    def _make_cove(self) -> Cove:
        engine = Cove(self.directory / "c", f"{self._name}-cove")
        self._start(engine)
        return engine

    def _make_dockerd(self) -> Dockerd:
        engine = Dockerd(self.directory / "d", f"{self._name}-dockerd")
        self._start(engine)
        return engine

    def _start(self, engine: Engine) -> None:
        archive = busybox_archive(self.cache)
        engine.start()
        self._undo.callback(engine.stop)
        engine.load(archive)

    def _make_floor(self) -> Floor:
        busybox_archive(self.cache)
        floor = Floor(self.directory / "floor", f"{self._name}-floor", self._rootfs())
        self._undo.callback(floor.stop)
        return floor

    def _make_runc(self) -> Runc:
        runc = Runc(self.directory / "runc", f"{self._name}-runc", self._rootfs())
        self._undo.callback(runc.stop)
        return runc

    def cove_runtime(self) -> Runc:
        from bench.cases.runtime import CoveRuntime

        return self._side("cove-runtime", lambda: self._started(CoveRuntime))

    def _started(self, kind: type[Runc]) -> Runc:
        side = kind(self.directory / kind.__name__, f"{self._name}-runtime", self._rootfs())
        self._undo.callback(side.stop)
        return side

    def _rootfs(self) -> Path:
        return busybox_root(self.directory / "rootfs")

    # --- measuring ------------------------------------------------------------------------

    def measure(self, rounds: int, sides: Mapping[str, Callable[[], Measure]]) -> Samples:
        """Make each side's measurement ready, then take turns. A side that fails keeps its reason."""
        ready: dict[str, Measure] = {}
        problems: dict[str, str] = {}
        for name, make in sides.items():
            try:
                ready[name] = make()
            except FAILURES as error:
                problems[name] = str(error)
        samples = interleave(rounds, ready, FAILURES)
        samples.problems.update(problems)
        return samples

    def row(
        self,
        what: str,
        unit: Unit,
        samples: Samples,
        *,
        against: str = "dockerd",
        targets: tuple[Target, ...] = (),
        more_is_better: bool = False,
        comparable: bool = True,
        note: str = "",
    ) -> Row:
        """A row of medians: Cove beside `against`."""
        reasons = [(name, samples.problems.get(side)) for name, side in (("Cove", "Cove"), ("peer", against))]
        problem = "; ".join(f"no {name}: {reason}" for name, reason in reasons if reason)
        return Row(
            what=what,
            unit=unit,
            cove=samples.median("Cove"),
            base=samples.median(against),
            against=against,
            targets=targets,
            more_is_better=more_is_better,
            comparable=comparable,
            note=note,
            problem=problem,
        )
