"""A daemon with many containers: its start, its memory, its idleness. The full size is bench's case daemon-start."""

from __future__ import annotations

import os
import re
import time
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from tests.daemon import IMAGE, Daemon

STOPPED, RUNNING = 400, 80
AT_ONCE = 8
START_CPU_S = (
    2.0  # what it computes until then: about 0.5 s; the clock on the wall depends on who else is busy
)
IDLE_S = 3.0
IDLE_CPU_S = 0.04  # about 1 % of that time, in steps of 0.01 s


def cpu_s(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def rss_mib(pid: int) -> float:
    found = re.search(r"VmRSS:\s+(\d+)", Path(f"/proc/{pid}/status").read_text())
    return int(found[1]) / 1024 if found else 0.0


def all_at_once(work: Callable[[int], None], items: Iterable[int]) -> None:
    with ThreadPoolExecutor(AT_ONCE) as pool:
        list(pool.map(work, items))


def test_a_daemon_with_many_containers_starts_soon_and_then_rests() -> None:
    with Daemon("--log-level", "info") as daemon:
        daemon.load_image()

        def make(number: int) -> None:
            made = daemon.http(
                "POST", f"/containers/create?name=n{number}", {"Image": IMAGE, "Cmd": ["sleep", "100000"]}
            )
            assert made.status == 201
            if number < RUNNING:
                assert daemon.http("POST", f"/containers/n{number}/start").status == 204

        all_at_once(make, range(STOPPED + RUNNING))
        daemon.kill9()
        begun = time.monotonic()
        daemon.start()
        listed = daemon.http("GET", "/containers/json?all=1").json()
        elapsed_s = time.monotonic() - begun
        assert cpu_s(daemon.pid) < START_CPU_S
        assert elapsed_s < 10, "about 1 s on a machine of its own"
        assert len(listed) == STOPPED + RUNNING
        assert sum(entry["State"] == "running" for entry in listed) == RUNNING
        assert rss_mib(daemon.pid) < 150

        for _ in range(3):  # a start leaves some things to do behind
            before_s = cpu_s(daemon.pid)
            time.sleep(IDLE_S)
            used_s = cpu_s(daemon.pid) - before_s
            if used_s <= IDLE_CPU_S:
                break
        assert used_s <= IDLE_CPU_S

        def remove(number: int) -> None:
            assert daemon.http("DELETE", f"/containers/n{number}?force=1").status == 204

        all_at_once(remove, range(STOPPED + RUNNING))
