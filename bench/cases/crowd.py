"""200 clients at once for five minutes, beside 1,000 containers that are listed all the while."""

from __future__ import annotations

import statistics
from collections.abc import Iterator

from bench.cases import Case
from bench.context import Bench
from bench.crowd import Seen, crowd
from bench.engines import FAILURES, Engine, EngineError, body, create, share
from bench.procfs import memory_of
from bench.stats import AtMost, Row, TimesMore, significant


def p99(values: list[float]) -> float:
    return statistics.quantiles(values, n=100, method="inclusive")[98]


def fill(engine: Engine, count: int) -> None:
    """Create so many containers that never start."""
    request = body(["true"], "bridge")
    share(4, [request] * count, engine, create)


def check(engine: Engine, seen: Seen, count: int) -> None:
    """Raise EngineError for anything lost, or left behind."""
    if seen.wrong:
        raise EngineError(f"{seen.wrong} things went wrong: {'; '.join(seen.words)}")
    with engine.client() as client:
        left = len(client.call("GET", "/containers/json?all=1"))
    if left != count:
        raise EngineError(f"{left} containers are there after it, {count} were before it")


def at_the_door(bench: Bench) -> Iterator[Row]:
    """The crowd for Cove at its whole size, and a small one for both."""
    count, clients = bench.size(1000, 200), bench.size(200, 50)
    seconds = bench.size(300, 10)
    small, small_seconds = 8, bench.size(20, 5)
    lives: dict[str, float] = {}
    lists: dict[str, float] = {}
    problems: dict[str, str] = {}
    for name in ("Cove", "dockerd"):
        try:
            engine = bench.engine(name)
            seen = crowd(engine.socket, clients=small, seconds=small_seconds, network="bridge", listed=0)
            check(engine, seen, 0)
            lives[name], lists[name] = seen.lives / small_seconds, p99(seen.lists_ms)
        except FAILURES as error:
            problems[name] = str(error)
    yield Row(
        what=f"{small} clients: create, start, exec, logs, stop, remove; lives per second",
        unit="per s",
        cove=lives.get("Cove"),
        base=lives.get("dockerd"),
        against="dockerd",
        more_is_better=True,
        targets=(TimesMore(5),),
        note=f"on a bridge network, for {small_seconds} s on each side",
        problem="; ".join(f"no {name}: {reason}" for name, reason in problems.items()),
    )
    engine = bench.cove()
    fill(engine, count)
    before = memory_of(engine.daemon_pids())
    seen = crowd(engine.socket, clients=clients, seconds=seconds, network="bridge", listed=count)
    check(engine, seen, count)
    after = memory_of(engine.daemon_pids())
    engine.remove_all()
    ordered = sorted(seen.lists_ms)
    yield Row(
        what=f"p99 of listing {count} containers while {clients} clients work",
        unit="ms",
        cove=p99(ordered),
        targets=(AtMost(100, "ms"),),
        note=(
            f"{seconds} s, {seen.lives} whole lives ({significant(seen.lives / seconds)} per s), nothing lost; "
            f"{len(ordered)} lists, median {significant(statistics.median(ordered))} ms, longest "
            f"{significant(ordered[-1])} ms; daemon {significant(before.rss / 1024)} MiB before, "
            f"{significant(after.rss / 1024)} after"
        ),
    )


CASES = (Case("crowd", "200 clients at once for five minutes", at_the_door),)
