"""One container at a time: create to remove against the floor, by the command lines, and exec."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator

from bench.cases import Case
from bench.client import Client
from bench.context import Bench, Measure
from bench.engines import Engine, body, create, remove, run_exec, run_whole_life, start
from bench.images import BUSYBOX
from bench.peers import run_program
from bench.stats import AtMostTimes, Row, TimesFaster, significant


class Meter:
    """The client's own CPU time beside the wall time of what it called."""

    def __init__(self) -> None:
        self.calls = 0
        self.cpu_ms = 0.0

    def describe(self) -> str:
        return f"the client's own part of it is {significant(self.cpu_ms / max(1, self.calls))} ms of CPU"


def whole_lives(engine: Engine, network: str, times: int, meter: Meter) -> Measure:
    """A measurement of `times` whole lives of `true` over one connection; milliseconds each."""
    client = engine.client()
    request = body(["true"], network)
    run_whole_life(client, request)

    def measure() -> Iterator[float]:
        for _ in range(times):
            cpu, begin = client.cpu_ns, time.perf_counter()
            run_whole_life(client, request)
            yield (time.perf_counter() - begin) * 1000
            meter.calls += 1
            meter.cpu_ms += (client.cpu_ns - cpu) / 1e6

    return measure


def run_engine(bench: Bench, network: str, label: str, target: float) -> Iterator[Row]:
    """Cove beside the floor (the target) and beside dockerd, with runc for orientation."""
    meter = Meter()
    times = bench.size(10, 5)

    def floor() -> Measure:
        side = bench.floor()
        side.run(2, network=True)
        return lambda: side.run(times, network=True)

    def runc() -> Measure:
        side = bench.runc()
        side.run()
        return lambda: [side.run()]

    samples = bench.measure(
        bench.size(15, 4),
        {
            "Cove": lambda: whole_lives(bench.cove(), network, times, meter),
            "floor": floor,
            "dockerd": lambda: whole_lives(bench.dockerd(), network, 1, Meter()),
            "runc run": runc,
        },
    )
    note = (
        "API over one kept connection; the floor makes its own network namespace with loopback up, no link; "
        f"{samples.describe('Cove', 'ms')}, {samples.describe('floor', 'ms')}, "
        f"{samples.describe('runc run', 'ms')}; {meter.describe()}"
    )
    what = f"create, start, wait, remove `true`, {label}"
    yield bench.row(what, "ms", samples, against="floor", targets=(AtMostTimes(target),), note=note)
    yield bench.row(f"{what}: beside dockerd", "ms", samples, note=samples.describe("dockerd", "ms"))


def engine_none(bench: Bench) -> Iterator[Row]:
    return run_engine(bench, "none", "no network", 2.5)


def engine_bridge(bench: Bench) -> Iterator[Row]:
    return run_engine(bench, "bridge", "bridge network", 3)


# --- the command lines --------------------------------------------------------------------


def command_line(bench: Bench, engine: Engine, argv: list[str]) -> Measure:
    """A measurement of one run of a command line; milliseconds."""
    config = bench.directory / "cli"
    config.mkdir(exist_ok=True)
    env = {
        "PATH": os.environ["PATH"],
        "HOME": str(config),
        "DOCKER_CONFIG": str(config),
        "DOCKER_HOST": f"unix://{engine.socket}",
    }
    run_program(argv, env)
    return lambda: [run_program(argv, env)]


def run_command_line(bench: Bench, what: str, cove_argv: list[str] | None) -> Iterator[Row]:
    arguments = ["run", "--rm", BUSYBOX, "true"]

    def cove() -> Measure:
        argv = [bench.docker_cli(), *arguments] if cove_argv is None else [bench.cove_cli(), *cove_argv]
        return command_line(bench, bench.cove(), argv)

    samples = bench.measure(
        bench.size(25, 5),
        {
            "Cove": cove,
            "dockerd": lambda: command_line(bench, bench.dockerd(), [bench.docker_cli(), *arguments]),
        },
    )
    note = (
        "a process of its own each time, default network; "
        f"{samples.describe('Cove', 'ms')}, {samples.describe('dockerd', 'ms')}"
    )
    yield bench.row(what, "ms", samples, targets=(TimesFaster(8),), note=note)


def docker_cli(bench: Bench) -> Iterator[Row]:
    return run_command_line(bench, "`docker run --rm IMAGE true`, stock CLI", None)


def cove_cli(bench: Bench) -> Iterator[Row]:
    arguments = ["run", "--rm", BUSYBOX, "true"]
    return run_command_line(bench, "`cove run --rm IMAGE true` beside `docker run` with dockerd", arguments)


# --- exec ---------------------------------------------------------------------------------


def exec_true(bench: Bench) -> Iterator[Row]:
    times = bench.size(5, 3)
    running: list[tuple[Engine, str]] = []

    def execs(engine: Engine) -> Measure:
        client, raw = engine.client(), Client(engine.socket)
        container = create(client, body(["sleep", "100000"], "none"))
        running.append((engine, container))
        start(client, container)
        run_exec(client, raw, container, ["true"])

        def measure() -> Iterator[float]:
            for _ in range(times):
                begin = time.perf_counter()
                run_exec(client, raw, container, ["true"])
                yield (time.perf_counter() - begin) * 1000

        return measure

    try:
        samples = bench.measure(
            bench.size(10, 3),
            {"Cove": lambda: execs(bench.cove()), "dockerd": lambda: execs(bench.dockerd())},
        )
    finally:
        for engine, container in running:
            with engine.client() as client:
                remove(client, container)
    note = (
        "exec create, start attached until its stream ends, inspect; "
        f"{samples.describe('Cove', 'ms')}, {samples.describe('dockerd', 'ms')}"
    )
    yield bench.row(
        "exec of `true` in a running container, API", "ms", samples, targets=(TimesFaster(8),), note=note
    )


CASES = (
    Case("engine", "create, start, wait, remove by the API, no network, beside the floor", engine_none),
    Case("engine-bridge", "the same on the bridge network", engine_bridge),
    Case("docker-cli", "docker run --rm IMAGE true by the stock CLI", docker_cli),
    Case("cove-cli", "cove run --rm IMAGE true", cove_cli),
    Case("exec", "exec of true in a running container", exec_true),
)
