"""A daemon with many containers: how soon it answers after its start, and what it uses when nothing happens."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator

from bench.cases import Case
from bench.context import Bench
from bench.engines import FAILURES, Engine, body, create, share, start
from bench.stats import AtMost, Row, Samples

IDLE_S = 10.0


def start_and_idle(bench: Bench) -> Iterator[Row]:
    """1,000 stopped and 200 running ones; the peer isn't asked for that many."""
    stopped, running = bench.size(1000, 100), bench.size(200, 20)
    answers, idle = Samples(), Samples()
    try:
        engine = bench.cove()
        try:
            share(
                2 * bench.cores, range(stopped + running), engine, lambda client, n: make(client, n < running)
            )
            answers.values["Cove"] = [answer_after(engine) for _ in range(bench.size(5, 2))]
            idle.values["Cove"] = [idle_ms(engine)]
        finally:
            engine.remove_all(2 * bench.cores)
    except FAILURES as error:
        answers.problems["Cove"] = idle.problems["Cove"] = str(error)
    what = f"{stopped} stopped and {running} running containers"
    yield bench.row(
        f"daemon with {what}: answers after its start",
        "s",
        answers,
        against="",
        targets=(AtMost(1, "s"),),
        note="kill -9, start, the first `ps` is answered with all of them",
    )
    note = "user and system time of the daemon, told in steps of 10 ms"
    yield bench.row(
        f"the same, idle: processor time in {IDLE_S:g} s",
        "ms",
        idle,
        against="",
        targets=(AtMost(20, "ms"),),
        note=note,
    )


def make(client: object, running: bool) -> None:
    name = create(client, body(["sleep", "100000"], "bridge"))  # type: ignore[arg-type]
    if running:
        start(client, name)  # type: ignore[arg-type]


def answer_after(engine: Engine) -> float:
    engine.kill_api_daemon()
    begin = time.perf_counter()
    engine.restart_api_daemon()
    with engine.client() as client:
        client.call("GET", "/containers/json?all=1")
    return time.perf_counter() - begin


def idle_ms(engine: Engine) -> float:
    time.sleep(3)  # what a start leaves to do behind
    before_s, begin = cpu_s(engine), time.perf_counter()
    time.sleep(IDLE_S)
    return 1000 * (cpu_s(engine) - before_s) * IDLE_S / (time.perf_counter() - begin)


def cpu_s(engine: Engine) -> float:
    """utime and stime of the daemon's processes (proc_pid_stat(5))."""
    ticks = 0
    for pid in engine.daemon_pids():
        with open(f"/proc/{pid}/stat", encoding="ascii", errors="replace") as file:
            fields = file.read().rpartition(")")[2].split()
        ticks += int(fields[11]) + int(fields[12])
    return ticks / os.sysconf("SC_CLK_TCK")


CASES = (Case("daemon-start", "a daemon's start with many containers, and its idle CPU", start_and_idle),)
