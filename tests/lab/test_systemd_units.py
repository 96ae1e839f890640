"""`cove systemd`: systemd runs a container as a service of its own."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.apikit import create, eventually, remove, state
from tests.daemon import Daemon
from tests.unit.cli_fake_daemon import run_cove

UNITS = Path("/run/systemd/system")


def systemctl(*words: str) -> str:
    done = subprocess.run(["systemctl", *words], capture_output=True, text=True, timeout=90)
    return (done.stdout + done.stderr).strip()


@pytest.fixture
def unit(daemon: Daemon, image: str) -> Iterator[tuple[str, str]]:
    """A container, and the unit that was written for it."""
    script = "trap 'echo bye; exit 0' TERM; echo hello from the unit; while :; do sleep 0.1; done"
    container = create(daemon, image, "sh", "-c", script, NetworkMode="none")
    name = str(daemon.http("GET", f"/containers/{container}/json").json()["Name"].removeprefix("/"))
    written = run_cove("systemd", "--output", str(UNITS), name, host=daemon.host)
    assert written.returncode == 0, written.stderr
    path = Path(written.stdout.decode().strip())
    assert path == UNITS / f"cove-{name}.service"
    assert systemctl("daemon-reload") == ""
    yield container, path.name
    systemctl("stop", path.name)
    path.unlink()
    systemctl("daemon-reload")
    systemctl("reset-failed", path.name)
    remove(daemon, container)


def test_a_container_lives_and_ends_with_its_unit(daemon: Daemon, unit: tuple[str, str]) -> None:
    container, name = unit
    verified = subprocess.run(
        ["systemd-analyze", "verify", str(UNITS / name)], capture_output=True, text=True
    )
    assert verified.stderr == "", verified.stderr
    assert systemctl("start", name) == ""
    eventually(lambda: state(daemon, container)["Running"], "the container")
    assert systemctl("is-active", name) == "active"
    journal = ["journalctl", "--no-pager", "-u", name, "-o", "cat"]
    eventually(
        lambda: "hello from the unit" in subprocess.check_output(journal, text=True), "the journal's line"
    )
    assert systemctl("stop", name) == ""
    assert (state(daemon, container)["Status"], state(daemon, container)["ExitCode"]) == ("exited", 0)
    assert systemctl("is-active", name) == "inactive"
    assert "bye" in subprocess.check_output(journal, text=True)


def test_a_container_that_dies_is_started_again(daemon: Daemon, unit: tuple[str, str]) -> None:
    container, name = unit
    assert systemctl("start", name) == ""
    eventually(lambda: state(daemon, container)["Running"], "the container")
    first = state(daemon, container)["Pid"]
    assert daemon.http("POST", f"/containers/{container}/kill").status == 204
    eventually(lambda: state(daemon, container)["Pid"] not in (0, first), "another start")
    assert systemctl("is-active", name) == "active"
