"""Many containers: rate, 32 starts at once, and a thousand alive at once with all that follows."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

from bench.cases import Case
from bench.client import Client
from bench.context import Bench, Measure
from bench.engines import FAILURES, Engine, body, create, remove, run_whole_life, share, start
from bench.procfs import memory_of
from bench.room import wait_until
from bench.stats import AtMost, AtMostTimes, Row, Samples, TimesMore, significant

SLEEP = ["sleep", "1000000"]


# --- rate ---------------------------------------------------------------------------------


def rate(bench: Bench) -> Iterator[Row]:
    """Whole lives of `true` by several connections at once."""
    connections = 2 * bench.cores
    counts = {"Cove": bench.size(1000, 100), "dockerd": bench.size(200, 16)}
    parts = bench.size(4, 2)

    def rates(name: str) -> Measure:
        engine = bench.engine(name)
        request = body(["true"], "none")
        count = counts[name] // parts

        def measure() -> Iterator[float]:
            begin = time.perf_counter()
            share(connections, [request] * count, engine, run_whole_life)
            yield count / (time.perf_counter() - begin)

        return measure

    samples = bench.measure(parts, {"Cove": lambda: rates("Cove"), "dockerd": lambda: rates("dockerd")})
    note = (
        f"`true`, no network, created, started, awaited, removed by {connections} connections; "
        f"{counts['Cove']} in all by Cove, {counts['dockerd']} by dockerd; "
        f"client on the same {bench.cores} cores; "
        f"{samples.describe('Cove', 'per s')}, {samples.describe('dockerd', 'per s')}"
    )
    targets = (TimesMore(15),)
    what = "containers started per second"
    yield bench.row(what, "per s", samples, targets=targets, more_is_better=True, note=note)


# --- 32 at once ---------------------------------------------------------------------------


def start_at_once(engine: Engine, names: list[str]) -> float:
    """Start all containers in the same moment; milliseconds until the last one runs."""
    barrier = threading.Barrier(len(names) + 1)

    def run(name: str) -> None:
        with engine.client() as client:
            client.exchange("GET", "/_ping", b"")
            barrier.wait()
            start(client, name)

    with ThreadPoolExecutor(len(names)) as pool:
        done = [pool.submit(run, name) for name in names]
        barrier.wait()
        begin = time.perf_counter()
        for future in done:
            future.result()
        return (time.perf_counter() - begin) * 1000


def at_once(bench: Bench) -> Iterator[Row]:
    """One start alone, and 32 in the same moment, each divided by what the cores could share."""
    count = 32
    singles: dict[str, list[float]] = {"Cove": [], "dockerd": []}

    def bursts(name: str, burst: int, alone: int) -> Measure:
        engine = bench.engine(name)

        def measure() -> Iterator[float]:
            names: list[str] = []
            request = body(SLEEP, "bridge")
            try:
                with engine.client() as client:
                    names += [create(client, request) for _ in range(burst + alone)]
                    for single in names[burst:]:
                        begin = time.perf_counter()
                        start(client, single)
                        singles[name].append((time.perf_counter() - begin) * 1000)
                yield start_at_once(engine, names[:burst]) * bench.cores / burst
            finally:
                share(4, names, engine, remove)

        return measure

    peer_count = bench.size(32, 8)
    samples = bench.measure(
        bench.size(3, 1),
        {
            "Cove": lambda: bursts("Cove", count, 8),
            "dockerd": lambda: bursts("dockerd", peer_count, 2),
        },
    )
    row = Samples({"Cove": samples.values.get("Cove", []), "alone": singles["Cove"]}, samples.problems)
    alone = Samples(singles, samples.problems)
    note = (
        f"time until the last of {count} runs, times {bench.cores} cores, by {count}; bridge network; "
        f"dockerd with {peer_count} at once: {samples.describe('dockerd', 'ms')}, "
        f"{alone.describe('dockerd', 'ms')} alone"
    )
    what = f"{count} starts at once, per start and core, beside one start"
    yield bench.row(what, "ms", row, against="alone", targets=(AtMostTimes(2),), note=note)


# --- a thousand alive ---------------------------------------------------------------------


class Alive:
    """What one engine showed with many containers alive."""

    def __init__(self, bench: Bench, engine: Engine, count: int) -> None:
        self.count = count
        request = body(SLEEP, "none")

        def start_one(client: Client, _: int) -> None:
            start(client, create(client, request))

        before = engine.supervisor_pids()
        assert not before, "another case left containers running"
        try:
            begin = time.perf_counter()
            share(2 * bench.cores, range(count), engine, start_one)
            self.start_s = time.perf_counter() - begin
            supervisors = engine.supervisor_pids()
            assert len(supervisors) == count, f"{len(supervisors)} supervisors for {count} containers"
            self.each_kib = memory_of(supervisors).private / max(1, len(supervisors))
            self.daemon_mib = engine.daemon_memory().rss / 1024
            self.list_ms = list(list_latencies(engine, count))
            self.restart_s = restart(engine, count)
        finally:
            begin = time.perf_counter()
            engine.remove_all(2 * bench.cores)
            self.remove_s = time.perf_counter() - begin
        wait_until(lambda: not engine.supervisor_pids(), 60, "the supervisors end")


def list_latencies(engine: Engine, count: int) -> Iterator[float]:
    """Milliseconds of `ps` (GET /containers/json), twenty times."""
    with engine.client() as client:
        for _ in range(20):
            begin = time.perf_counter()
            listed = engine.list_running(client)
            yield (time.perf_counter() - begin) * 1000
            assert listed == count, f"{listed} containers are listed as running, expected {count}"


def restart(engine: Engine, count: int) -> float:
    """kill -9 of the daemon, start it again; seconds from the start until it lists all containers running."""
    engine.kill_api_daemon()
    begin = time.perf_counter()
    engine.restart_api_daemon()

    def has_all() -> bool:
        with engine.client() as client:
            return engine.list_running(client) == count

    wait_until(has_all, 120, f"the restarted daemon lists {count} running containers")
    return time.perf_counter() - begin


def alive(bench: Bench) -> Iterator[Row]:
    """All at once: starting them, their memory, the daemon's, `ps`, a killed and restarted daemon."""
    counts = {"Cove": bench.size(1000, 100), "dockerd": bench.size(200, 10)}
    seen: dict[str, Alive] = {}
    problems: dict[str, str] = {}
    for name, count in counts.items():
        try:
            seen[name] = Alive(bench, bench.engine(name), count)
        except (*FAILURES, AssertionError) as error:
            problems[name] = str(error)
    scale = f"{counts['Cove']} by Cove, {counts['dockerd']} by dockerd, no network"

    def samples(attribute: str) -> Samples:
        values = {}
        for name, result in seen.items():
            value = getattr(result, attribute)
            values[name] = value if isinstance(value, list) else [value]
        return Samples(values, problems)

    rates = Samples({name: [r.count / r.start_s] for name, r in seen.items()}, problems)
    removals = Samples({name: [r.count / r.remove_s] for name, r in seen.items()}, problems)
    count = counts["Cove"]
    equal = count == counts["dockerd"]
    times = "; ".join(f"{name}: {r.count} in {significant(r.start_s)} s" for name, r in seen.items())
    yield bench.row(
        f"{count} containers kept alive: started per second",
        "per s",
        rates,
        more_is_better=True,
        note=f"{scale}; {times}",
    )
    yield bench.row(
        "memory per idle container beyond its own process",
        "KiB",
        samples("each_kib"),
        targets=(AtMost(1024, "KiB"), AtMostTimes(0.1)),
        note="private memory (clean and dirty) of cove-init, of containerd-shim, mean of all; " + scale,
    )
    yield bench.row(
        f"daemon's resident memory, {count} containers",
        "MiB",
        samples("daemon_mib"),
        targets=(AtMost(150, "MiB"),),
        comparable=equal,
        note=f"resident memory (Rss) of the daemon and its helpers; {scale}",
    )
    yield bench.row(
        f"`ps` with {count} containers, API", "ms", samples("list_ms"), comparable=equal, note=scale
    )
    yield bench.row(
        f"killed and restarted daemon answers and has all {count}",
        "s",
        samples("restart_s"),
        comparable=equal,
        note=f"from the start of the daemon's program, dockerd with --live-restore; {scale}",
    )
    yield bench.row(
        "forced removals of running containers per second", "per s", removals, more_is_better=True, note=scale
    )


CASES = (
    Case("rate", "containers started per second", rate),
    Case("at-once", "32 starts at once", at_once),
    Case("alive", "1,000 containers alive at once: time, memory, ps, restart", alive),
)
