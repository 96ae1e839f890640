"""The command line starts the default daemon where none runs: once, with its words where it can't, by root only."""

from __future__ import annotations

import os
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from cove.daemon import plan_names
from tests import leaks

ROOT = Path(__file__).resolve().parents[2]
BOUND_S = 100.0


class Place:
    """A run dir and a data root of a test's own, and what a command needs to find them."""

    def __init__(self) -> None:
        self.base = Path(tempfile.mkdtemp(prefix="cove-cli-"))
        self.run_dir, self.data_root = self.base / "run", self.base / "data"
        self.names = plan_names(self.run_dir)
        self.env = {
            "PATH": os.environ["PATH"],
            "HOME": str(self.base),
            "COVE_RUN_DIR": str(self.run_dir),
            "COVE_DATA_ROOT": str(self.data_root),
        }
        leaks.own_directory(self.base)
        for name in (self.names.bridge, self.names.table, self.names.cgroup_parent):
            leaks.own_prefix(name)

    def run(self, *command: str, **options: object) -> subprocess.CompletedProcess[str]:
        return subprocess.run(  # type: ignore[call-overload, no-any-return]
            command,
            cwd=ROOT,
            env=self.env,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=BOUND_S,
            check=False,
            **options,
        )

    def cove(self, *arguments: str, **options: object) -> subprocess.CompletedProcess[str]:
        return self.run(str(ROOT / "bin" / "cove"), *arguments, **options)


@pytest.fixture
def place() -> Iterator[Place]:
    made = Place()
    yield made
    if made.data_root.is_dir():
        uninstalled = made.run("sh", "scripts/uninstall.sh")
        assert uninstalled.returncode == 0, uninstalled.stderr
        assert not made.run_dir.exists()
    subprocess.run(["rm", "-rf", "--one-file-system", str(made.base)], check=True)


def test_a_command_starts_the_daemon_and_the_next_one_finds_it(place: Place) -> None:
    first = place.cove("ps", "-q")
    assert (first.returncode, first.stdout, first.stderr) == (0, "", "")
    pid = (place.run_dir / "daemon.lock").read_text()
    assert place.cove("ps", "-q").returncode == 0
    assert (place.run_dir / "daemon.lock").read_text() == pid
    working_directory = os.readlink(f"/proc/{pid.strip()}/cwd")
    assert working_directory == "/", "a daemon must not keep its caller's file system busy"
    assert os.getsid(int(pid)) == int(pid)


def test_commands_that_race_start_one_daemon(place: Place) -> None:
    racers = [
        subprocess.Popen(
            [str(ROOT / "bin" / "cove"), "ps", "-q"],
            env=place.env,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        for _ in range(5)
    ]
    for racer in racers:
        out, err = racer.communicate(timeout=BOUND_S)
        assert (racer.returncode, out, err) == (0, b"", b"")
    log = (place.run_dir / "daemon.log").read_text()
    assert log.count("answers on") == 1, log


def test_a_daemon_that_cannot_start_says_why(place: Place) -> None:
    place.base.joinpath("file").write_text("")
    place.env["COVE_DATA_ROOT"] = str(place.base / "file" / "data")
    result = place.cove("ps")
    assert result.returncode == 125
    assert result.stderr.startswith("error: the daemon did not start: ")
    assert "Not a directory" in result.stderr
    assert str(place.run_dir / "daemon.log") in result.stderr
    assert result.stderr.count("\n") == 1


def test_without_root_there_is_one_clear_sentence(place: Place) -> None:
    if place.run("sh", "-c", f"cd {ROOT}", user=65534, group=65534, extra_groups=[]).returncode:
        pytest.skip("other users can't enter this checkout")
    os.chmod(place.base, 0o711)
    result = place.cove("ps", user=65534, group=65534, extra_groups=[])
    assert result.returncode == 125
    assert result.stderr == (
        f"error: no daemon runs at unix://{place.run_dir}/docker.sock, "
        "and only root can start one: use sudo cove …\n"
    )
    assert place.cove("ps", "-q").returncode == 0
    result = place.cove("ps", user=65534, group=65534, extra_groups=[])
    assert result.returncode == 125
    assert result.stderr == (
        f"error: no permission for {place.run_dir}/docker.sock: "
        "run as root (sudo), or join the group that owns it\n"
    )


def test_cove_daemon_becomes_the_daemon(place: Place) -> None:
    result = place.cove("daemon", "--help")
    assert result.returncode == 0
    assert "--data-root" in result.stdout
    assert "--uninstall" in result.stdout
