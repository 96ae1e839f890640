"""What is resident when nothing happens: the daemon, and cove-init itself. Comes first in a run."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from bench.cases import Case
from bench.context import Bench
from bench.engines import FAILURES, body, create, remove, start
from bench.procfs import memory_of
from bench.stats import AtMost, Row, Samples


def daemon_idle(bench: Bench) -> Iterator[Row]:
    samples = Samples()
    for name in ("Cove", "dockerd"):
        try:
            samples.values[name] = [bench.engine(name).idle_memory.rss / 1024]
        except FAILURES as error:
            samples.problems[name] = str(error)
    note = (
        "resident memory (Rss) of the daemon and its helpers, just started, no image; dockerd with containerd"
    )
    yield bench.row("daemon's resident memory, idle", "MiB", samples, targets=(AtMost(60, "MiB"),), note=note)


def executor(bench: Bench) -> Iterator[Row]:
    """Size and memory of one cove-init that supervises a sleeping container."""
    size, resident = Samples(), Samples()
    note = ""
    try:
        engine = bench.cove()
        with engine.client() as client:
            name = create(client, body(["sleep", "100000"], "none"))
            try:
                start(client, name)
                pids = engine.supervisor_pids()
                memory = memory_of(pids)
                resident.values["Cove"] = [memory.rss / max(1, len(pids))]
                note = f"of it private {memory.private // max(1, len(pids))} KiB"
                program = Path(f"/proc/{pids[0]}/exe")
                size.values["Cove"] = [program.stat().st_size / 1024]
            finally:
                remove(client, name)
    except (*FAILURES, IndexError) as error:
        size.problems["Cove"] = resident.problems["Cove"] = str(error) or "no supervisor found"
    yield bench.row("cove-init: size of the program", "KiB", size, against="", note="")
    yield bench.row("cove-init: resident memory", "KiB", resident, against="", note=note)


CASES = (
    Case("daemon-idle", "resident memory of the idle daemon", daemon_idle),
    Case("cove-init", "size and resident memory of cove-init", executor),
)
