"""A container that floods its log: bounded on the disk and in memory, and a quiet one beside it notices nothing."""

from __future__ import annotations

import re
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.daemon import Daemon
from tests.logkit import BOUND_S, Receiver

FILE_BYTES = 500_000
FILES = 3


@contextmanager
def container(daemon: Daemon, image: str, script: str, driver: str, **options: str) -> Iterator[Any]:
    config = {"Type": driver, "Config": {key.replace("_", "-"): value for key, value in options.items()}}
    made = daemon.client.containers.create(image, ["sh", "-c", script], log_config=config)
    try:
        made.start()
        yield made
    finally:
        made.remove(force=True)


def resident_kib(pid: int) -> int:
    (found,) = re.findall(r"VmRSS:\s+(\d+)", Path(f"/proc/{pid}/status").read_text())
    return int(found)


def held_bytes(directory: Path, pids: list[int]) -> int:
    """What a log takes on the disk: its files, and those that were removed but that a process has open."""
    found = {}
    for path in directory.iterdir():
        try:
            stat = path.stat()
        except FileNotFoundError:
            continue
        if path.is_file():
            found[stat.st_ino] = stat.st_blocks * 512
    for pid in pids:
        for link in Path(f"/proc/{pid}/fd").iterdir():
            try:
                if str(directory) in str(link.readlink()):
                    found[link.stat().st_ino] = link.stat().st_blocks * 512
            except OSError:
                continue
    return sum(found.values())


def seconds_of(work: Callable[[], object], times: int) -> list[float]:
    found = []
    for _ in range(times):
        begun = time.monotonic()
        work()
        found.append(time.monotonic() - begun)
    return sorted(found)


@pytest.mark.parametrize("driver", ["local", "json-file", "syslog"])
def test_a_flood_stays_within_its_bounds_and_disturbs_nobody(daemon: Daemon, image: str, driver: str) -> None:
    with Receiver("udp") as receiver:
        prefix = "cache_" if driver == "syslog" else ""
        options = {
            f"{prefix}max_size": str(FILE_BYTES),
            f"{prefix}max_file": str(FILES),
            f"{prefix}compress": "true",
        }
        if driver == "syslog":
            options["syslog_address"] = receiver.address
        quiet_s = seconds_of(lambda: daemon.http("GET", "/containers/json"), 30)
        # the second half of the flood has no newline at all
        flood = "timeout 2 yes a line of the flood that goes on and on; timeout 1 cat /dev/zero | tr '\\0' x"
        with container(daemon, image, flood, driver, **options) as made:
            log_dir = daemon.data_root / "containers" / made.id / "log"
            state = daemon.http("GET", f"/containers/{made.id}/json").json()["State"]
            supervisor = int(Path(f"/proc/{state['Pid']}/status").read_text().split("PPid:")[1].split()[0])
            reader = daemon.connect()  # it asks for everything, and never takes it
            reader.sendall(
                f"GET /containers/{made.id}/logs?stdout=1&follow=1 HTTP/1.1\r\nHost: x\r\n\r\n".encode()
            )
            most_disk = most_kib = most_supervisor_kib = 0
            busy_s: list[float] = []
            deadline = time.monotonic() + 2.5
            with container(
                daemon, image, "for i in 1 2 3 4 5 6 7 8; do echo $i; sleep 0.2; done", "local"
            ) as quiet:
                while time.monotonic() < deadline:
                    most_disk = max(most_disk, held_bytes(log_dir, [daemon.pid]))
                    most_kib = max(most_kib, resident_kib(daemon.pid))
                    most_supervisor_kib = max(most_supervisor_kib, resident_kib(supervisor))
                    busy_s += seconds_of(lambda: daemon.http("GET", "/containers/json"), 5)
                    time.sleep(0.05)
                assert quiet.logs() == b"".join(b"%d\n" % n for n in range(1, 9))
            reader.close()
            assert made.wait(timeout=BOUND_S)
            print(f"{driver}: disk {most_disk}, daemon {most_kib} KiB, supervisor {most_supervisor_kib} KiB")
            print(
                f"ps: quiet {quiet_s[15] * 1e3:.1f} ms, busy {sorted(busy_s)[len(busy_s) // 2] * 1e3:.1f} ms"
            )
            # files of which each may be one record too long, a copy that is being packed, and one a reader lets go of
            assert most_disk < (FILES + 2) * (FILE_BYTES + 300_000)
            assert held_bytes(log_dir, [daemon.pid]) < FILES * (FILE_BYTES + 300_000)
            assert most_kib < 120 << 10
            assert most_supervisor_kib < 4 << 10
            # a machine with few processors has less for the daemon while one floods; it must not stand still
            busy_s.sort()
            assert busy_s[len(busy_s) // 2] < max(0.05, 20 * quiet_s[len(quiet_s) // 2])


def test_a_reader_of_a_flood_leaves_the_others_their_turn(daemon: Daemon, image: str) -> None:
    with container(daemon, image, "timeout 3 yes flooding", "local", max_size="1m", max_file="3") as made:
        stop = threading.Event()

        def read() -> None:
            for _ in made.logs(stream=True, follow=True):
                if stop.is_set():
                    return

        thread = threading.Thread(target=read, daemon=True)
        thread.start()
        try:
            waits = seconds_of(lambda: daemon.http("GET", "/_ping"), 100)
            assert waits[90] < 0.5
        finally:
            stop.set()
            made.kill()
            thread.join(BOUND_S)
