"""A container that came up against a limit says so; and the init that `cove run` gives it."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from urllib.parse import quote

import pytest

from tests.apikit import eventually, inspect, remove, run, state, wait
from tests.daemon import Daemon

ROOT = Path(__file__).resolve().parents[2]
MEMORY = 16 << 20


def cove(daemon: Daemon, *arguments: str) -> str:
    done = subprocess.run(
        [ROOT / "bin/cove", "-H", daemon.host, *arguments], capture_output=True, text=True, timeout=100
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def summary(daemon: Daemon, container: str) -> dict[str, object]:
    filters = quote(json.dumps({"id": [container]}))
    return dict(daemon.http("GET", f"/containers/json?all=1&filters={filters}").json()[0])


def test_one_that_was_killed_for_memory_says_so_in_ps(daemon: Daemon, image: str) -> None:
    container = run(daemon, image, "tail", "/dev/zero", Memory=MEMORY, MemorySwap=MEMORY)
    assert wait(daemon, container) == 137
    eventually(lambda: "Limited" in state(daemon, container))
    assert state(daemon, container)["Limited"] == [
        {"Resource": "memory", "Limit": MEMORY, "Text": "out of memory (limit 16 MiB)"}
    ]
    line = cove(daemon, "ps", "-a", "--filter", f"id={container}", "--format", "{{.Status}}").strip()
    assert line.startswith("Exited (137) ")
    assert line.endswith("ago, out of memory (limit 16 MiB)")
    assert str(summary(daemon, container)["Status"]).endswith(" ago")  # as docker ps shows it
    remove(daemon, container)


def test_a_child_that_was_killed_is_told_while_it_runs_and_after_a_crash(
    fresh_daemon: Daemon, image: str
) -> None:
    container = run(
        fresh_daemon, image, "sh", "-c", "tail /dev/zero; exec sleep 1000", Memory=MEMORY, MemorySwap=MEMORY
    )
    eventually(lambda: "Limited" in state(fresh_daemon, container))
    fresh_daemon.kill9()
    fresh_daemon.start()
    assert state(fresh_daemon, container)["Limited"][0]["Resource"] == "memory"
    assert summary(fresh_daemon, container)["Cove"] == {"Limited": "out of memory (limit 16 MiB)"}
    fresh_daemon.http("POST", f"/containers/{container}/restart?t=0")
    remove(fresh_daemon, container)


def test_one_that_ran_out_of_processes_says_so(daemon: Daemon, image: str) -> None:
    script = "for i in 1 2 3 4 5 6 7 8; do sleep 1000 & done; wait"
    container = run(daemon, image, "sh", "-c", f"({script}); exec sleep 1000", PidsLimit=5)
    eventually(lambda: "Limited" in state(daemon, container))
    assert state(daemon, container)["Limited"][0]["Text"] == "out of processes (limit 5)"
    filters = quote(json.dumps({"container": [container], "event": ["limit"]}))
    events = daemon.http("GET", f"/events?since=1&until=1&filters={filters}")
    assert events.status == 200
    remove(daemon, container)
    quiet = run(daemon, image, "true", PidsLimit=50, Memory=MEMORY)
    wait(daemon, quiet)
    assert "Limited" not in state(daemon, quiet)
    remove(daemon, quiet)


def test_one_that_filled_its_layer_says_so_while_it_runs_and_after_its_end(
    daemon: Daemon, image: str
) -> None:
    script = "busybox dd if=/dev/zero of=/big bs=64k; exit 3"
    ended = run(daemon, image, "sh", "-c", script, StorageOpt={"size": "20m"})
    assert wait(daemon, ended) == 3
    limit = {"Resource": "disk", "Limit": 20 << 20, "Text": "disk full (limit 20 MiB)"}
    eventually(lambda: "Limited" in state(daemon, ended))
    assert state(daemon, ended)["Limited"] == [limit]
    line = cove(daemon, "ps", "-a", "--filter", f"id={ended}", "--format", "{{.Status}}").strip()
    assert line.endswith("ago, disk full (limit 20 MiB)")
    running = run(
        daemon,
        image,
        "sh",
        "-c",
        "busybox dd if=/dev/zero of=/big bs=64k; exec sleep 1000",
        StorageOpt={"size": "20m"},
    )
    eventually(lambda: state(daemon, running).get("Limited") == [limit])
    roomy = run(daemon, image, "true", StorageOpt={"size": "20m"})
    wait(daemon, roomy)
    assert "Limited" not in state(daemon, roomy)
    for container in (ended, running, roomy):
        remove(daemon, container)


@pytest.mark.parametrize(
    ("flags", "command", "init"),
    [
        ((), ("sleep", "1000"), True),
        (("--init=false",), ("sleep", "1000"), False),
        (("--pid", "host"), ("sleep", "1000"), True),
        (("--entrypoint", "/tini"), (), None),
    ],
)
def test_cove_run_gives_an_init_unless_the_command_is_one(
    daemon: Daemon, image: str, flags: tuple[str, ...], command: tuple[str, ...], init: bool | None
) -> None:
    container = cove(daemon, "create", *flags, image, *command).strip()
    assert inspect(daemon, container)["HostConfig"].get("Init") is init
    if init is not None:
        daemon.http("POST", f"/containers/{container}/start")
        seen = daemon.http("GET", f"/containers/{container}/top?ps_args=-eo%20pid,args").json()["Processes"]
        assert len(seen) == (2 if init and "--pid" not in flags else 1)
    remove(daemon, container)


def test_orphans_are_reaped(daemon: Daemon, image: str) -> None:
    container = cove(daemon, "run", "-d", image, "sh", "-c", "(sleep 0.01 & ) ; exec sleep 1000").strip()
    eventually(
        lambda: len(daemon.http("GET", f"/containers/{container}/top").json()["Processes"]) == 2,
        "only init and sleep",
    )
    remove(daemon, container)
