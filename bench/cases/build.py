"""Builds: `cove build` and `docker build` on Cove beside `docker build` (the classic builder) on dockerd."""

from __future__ import annotations

import io
import os
import tarfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from bench.cases import Case
from bench.cases.registry import stream
from bench.context import Bench, Measure
from bench.engines import Engine
from bench.images import BUSYBOX, DEBIAN, debian_archive, small_tree
from bench.peers import run_program
from bench.stats import Row, Target, TimesFaster

TAG = "bench/built:latest"
TREE = f"""\
FROM {DEBIAN}
WORKDIR /src
COPY src .
RUN ls -R . | wc -l > /count
CMD ["cat", "/count"]
"""
SMALL_PROJECT = f"""\
FROM {BUSYBOX}
ENV MODE=production
WORKDIR /app
COPY settings .
RUN cat settings > copied
COPY program .
RUN seq 1000 > numbers
CMD ["sh", "program"]
"""
STAGE = "RUN i=0; while [ $i -lt {loops} ]; do i=$((i+1)); done; echo {name} > /{name}\n"
LOOPS = 400_000


def stages() -> str:
    """Three stages that don't need each other, and one that takes their results together."""
    names = ("first", "second", "third")
    text = "".join(f"FROM {BUSYBOX} AS {name}\n" + STAGE.format(loops=LOOPS, name=name) for name in names)
    copies = "".join(f"COPY --from={name} /{name} /\n" for name in names)
    return f"{text}FROM {BUSYBOX}\n{copies}"


def build(bench: Bench, engine: Engine, program: str, context: Path, *options: str) -> float:
    """Build once; seconds from the start of the client's program to its end."""
    address = f"unix://{engine.socket}"
    env = dict(os.environ, DOCKER_HOST=address, COVE_HOST=address, DOCKER_BUILDKIT="0")
    argv = [bench.cove_cli() if program == "cove" else bench.docker_cli(), "build", "-q", "-t", TAG]
    return run_program([*argv, *options, str(context)], env) / 1000


def compare(
    bench: Bench,
    what: str,
    context: Path,
    note: str,
    *targets: Target,
    cached: bool = False,
    program: str = "cove",
    base: Callable[[Path], Path] | None = None,
) -> Iterator[Row]:
    """A row: `program` on Cove beside docker on dockerd; `cached` builds once before it measures."""

    def side(name: str) -> Measure:
        engine = bench.engine(name)
        if base is not None:
            engine.load(base(bench.cache))
        used = program if name == "Cove" else "docker"
        if cached:
            build(bench, engine, used, context)

        def measure() -> Iterator[float]:
            yield build(bench, engine, used, context, *(() if cached else ("--no-cache",)))

        return measure

    samples = bench.measure(
        bench.size(5, 1), {"Cove": lambda: side("Cove"), "dockerd": lambda: side("dockerd")}
    )
    note = f"{note}; {samples.describe('Cove', 's')}, {samples.describe('dockerd', 's')}"
    yield bench.row(what, "s", samples, targets=targets, note=note)


def builds(bench: Bench) -> Iterator[Row]:
    tree = bench.directory / "context-tree"
    if not tree.exists():
        small_tree(tree)
        (tree / "Dockerfile").write_text(TREE)
    project = write(bench.directory / "context-project", SMALL_PROJECT)
    parallel = write(bench.directory / "context-stages", stages())
    note = "`cove build` beside `docker build` with dockerd's classic builder, a process of its own each time"
    files = "Debian's image and a context of 20,000 files"
    yield from compare(bench, f"build: {files}, nothing cached", tree, note, base=debian_archive)
    yield from compare(bench, f"build: {files}, all cached", tree, note, TimesFaster(5), cached=True)
    yield from compare(bench, "build: seven small steps, nothing cached", project, note)
    yield from compare(
        bench, "build: seven small steps, all cached", project, note, TimesFaster(5), cached=True
    )
    yield from compare(
        bench,
        "build: seven small steps, all cached, stock CLI",
        project,
        "`docker build` on both",
        cached=True,
        program="docker",
    )
    yield from by_api(bench, "build: seven small steps, all cached, API", project)
    yield from compare(
        bench, "build: three independent stages, nothing cached", parallel, note, TimesFaster(1.3)
    )


def by_api(bench: Bench, what: str, context: Path) -> Iterator[Row]:
    """POST /build of a context as a tar, without a client's program: what the engine takes for it."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        tar.add(context, arcname=".")
    archive = buffer.getvalue()

    def side(name: str) -> Measure:
        engine = bench.engine(name)

        def once() -> float:
            with engine.client() as client:
                begin = time.perf_counter()
                stream(client, f"/build?t={TAG}", archive)
                return time.perf_counter() - begin

        once()

        def measure() -> Iterator[float]:
            yield once()

        return measure

    samples = bench.measure(
        bench.size(25, 5), {"Cove": lambda: side("Cove"), "dockerd": lambda: side("dockerd")}
    )
    note = f"POST /build; {samples.describe('Cove', 's')}, {samples.describe('dockerd', 's')}"
    yield bench.row(what, "s", samples, targets=(TimesFaster(5),), note=note)


def write(directory: Path, dockerfile: str) -> Path:
    directory.mkdir(exist_ok=True)
    (directory / "Dockerfile").write_text(dockerfile)
    (directory / "settings").write_text("colour=blue\n")
    (directory / "program").write_text("cat copied\n")
    return directory


CASES = (Case("build", "builds: cold, cached, and three independent stages", builds),)
