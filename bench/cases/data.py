"""Bytes and rules in bulk: the log, loading an image, publishing many ports."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from typing import Any

from bench.cases import Case
from bench.context import Bench, Measure
from bench.engines import Engine, EngineError, body, create, remove, start, wait
from bench.images import LARGE, LINES_SIZE, large_archive
from bench.stats import AtMost, Row, Samples, TimesFaster, TimesMore

PORTS = 206
FIRST_PORT = 21000


def logs(bench: Bench) -> Iterator[Row]:
    """A container writes lines as fast as it may; then the log is read back."""
    megabytes = bench.size(200, 32)
    written: dict[str, list[float]] = {"Cove": [], "dockerd": []}
    sizes: dict[str, int] = {}

    def both(name: str) -> Measure:
        engine = bench.engine(name)
        request = body(["cat", *["/lines"] * megabytes], "none")

        def measure() -> Iterator[float]:
            with engine.client() as client:
                container = create(client, request)
                try:
                    begin = time.perf_counter()
                    start(client, container)
                    if wait(client, container) != 0:
                        raise EngineError("the container that writes the log failed")
                    written[name].append(megabytes * LINES_SIZE / 1e6 / (time.perf_counter() - begin))
                    begin = time.perf_counter()
                    size = client.download(f"/containers/{container}/logs?stdout=1&stderr=1")
                    sizes[name] = size
                    yield size / 1e6 / (time.perf_counter() - begin)
                finally:
                    remove(client, container)

        return measure

    reading = bench.measure(
        bench.size(3, 1), {"Cove": lambda: both("Cove"), "dockerd": lambda: both("dockerd")}
    )
    writing = Samples({name: values for name, values in written.items() if values}, reading.problems)
    kept = ", ".join(f"{name} had {size / 1e6:.0f} MB" for name, size in sizes.items())
    note = f"{megabytes} MiB of lines of about 100 bytes, from start until wait returns; default log driver"
    targets = (TimesMore(3),)
    yield bench.row(
        "log throughput: writing", "MB/s", writing, targets=targets, more_is_better=True, note=note
    )
    note = f"GET logs to its end; {kept} (a rotated log keeps its newest part)"
    yield bench.row("log throughput: reading back", "MB/s", reading, more_is_better=True, note=note)


def load(bench: Bench) -> Iterator[Row]:
    archive = large_archive(bench.cache)

    def loads(name: str) -> Measure:
        engine = bench.engine(name)

        def measure() -> Iterator[float]:
            begin = time.perf_counter()
            engine.load(archive)
            yield time.perf_counter() - begin
            engine.remove_image(LARGE)

        return measure

    samples = bench.measure(
        bench.size(5, 1), {"Cove": lambda: loads("Cove"), "dockerd": lambda: loads("dockerd")}
    )
    size = archive.stat().st_size / 1e6
    note = (
        f"POST /images/load of a docker-archive of {size:.0f} MB, 10,000 files, 4 layers, in the page cache; "
        f"{samples.describe('Cove', 's')}, {samples.describe('dockerd', 's')}"
    )
    yield bench.row("load of a 170 MB image", "s", samples, targets=(TimesFaster(2),), note=note)


def ports(bench: Bench) -> Iterator[Row]:
    """One container with 206 published ports; dockerd's turn only in a full run (it takes long)."""
    bindings = {f"{FIRST_PORT + i}/tcp": [{"HostPort": str(FIRST_PORT + i)}] for i in range(PORTS)}
    request: dict[str, Any] = body(["sleep", "100000"], "bridge", PortBindings=bindings)
    request["ExposedPorts"] = {port: {} for port in bindings}

    def starts(name: str) -> Measure:
        engine: Engine = bench.engine(name)

        def measure() -> Iterator[float]:
            with engine.client() as client:
                container = create(client, request)
                try:
                    begin = time.perf_counter()
                    start(client, container)
                    yield time.perf_counter() - begin
                finally:
                    remove(client, container)

        return measure

    sides: dict[str, Callable[[], Measure]] = {"Cove": lambda: starts("Cove")}
    if not bench.quick:
        sides["dockerd"] = lambda: starts("dockerd")
    samples = bench.measure(bench.size(3, 3), sides)
    note = "the start of a container with 206 published TCP ports, until it runs"
    if bench.quick:
        note += "; dockerd only in a full run"
    yield bench.row(
        "206 ports published by one container", "s", samples, targets=(AtMost(0.2, "s"),), note=note
    )


CASES = (
    Case("logs", "log throughput, writing and reading back", logs),
    Case("load", "load of a 170 MB image", load),
    Case("ports", "206 ports published by one container", ports),
)
