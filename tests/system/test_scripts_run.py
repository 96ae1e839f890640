"""The scripts that people run first: setup on a prepared or poor machine, and from a checkout to containers."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from tests.system.test_scripts_daemon import ROOT, Place

CACHE = Path(os.environ.get("COVE_CACHE", "/var/cache/cove"))


@pytest.fixture
def place() -> Iterator[Place]:
    made = Place()
    yield made
    subprocess.run(["rm", "-rf", "--one-file-system", str(made.base)], check=True)


def reach_mirror() -> bool:
    """Whether the mirror that this host's apt uses answers."""
    found = subprocess.run(
        ["sh", "-c", ". scripts/debian.sh; find_mirror bookworm"], cwd=ROOT, capture_output=True, text=True
    )
    mirror = urlsplit(found.stdout.strip())
    try:
        port = mirror.port or (443 if mirror.scheme == "https" else 80)
        socket.create_connection((mirror.hostname or "", port), timeout=10).close()
    except OSError:
        return False
    return bool(mirror.hostname)


@pytest.mark.timeout(900)
def test_run_goes_from_a_checkout_to_containers_and_leaves_nothing(place: Place) -> None:
    if not (CACHE / "debian.tar").exists() and not reach_mirror():
        pytest.skip("there is no Debian archive from an earlier run, and no mirror to make one from")
    done = subprocess.run(
        ["sh", "scripts/run.sh"],
        cwd=ROOT,
        env={**place.env, "COVE_RUN_STOP": "1", "COVE_CACHE": str(CACHE)},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=800,
        check=False,
    )
    assert done.returncode == 0, done.stdout
    for text in (
        "hello from Debian GNU/Linux",
        ":67108864",
        "reads: written by",
        "hello over HTTP",
        "everything worked; the daemon was stopped",
    ):
        assert text in done.stdout, done.stdout
    assert not place.run_dir.exists()


def test_setup_leaves_a_prepared_checkout_alone() -> None:
    stamp = ROOT / ".venv" / "cove-stamp"
    if not stamp.exists():
        pytest.skip("scripts/setup.sh hasn't prepared this checkout")
    before = stamp.stat().st_mtime_ns
    done = subprocess.run(
        ["sh", str(ROOT / "scripts" / "setup.sh"), "run"],
        cwd="/",
        env={"PATH": os.environ["PATH"]},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "installing" not in done.stdout
    assert stamp.stat().st_mtime_ns == before


class PoorMachine:
    """A copy of what setup.sh needs, with programs of the test's own in front of the host's."""

    def __init__(self, base: Path) -> None:
        self.checkout = base / "checkout"
        self.checkout.mkdir()
        for name in ("scripts", "requirements"):
            shutil.copytree(ROOT / name, self.checkout / name)
        self.programs = base / "programs"
        self.programs.mkdir()
        self.program("dpkg-query", "exit 1")  # nothing is installed

    def program(self, name: str, body: str) -> None:
        path = self.programs / name
        path.write_text(f"#!/bin/sh\n{body}\n")
        path.chmod(0o755)

    def setup(self, level: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            ["sh", "scripts/setup.sh", level],
            cwd=self.checkout,
            env={"PATH": f"{self.programs}:{os.environ['PATH']}"},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=100,
            check=False,
        )


@pytest.fixture
def machine(tmp_path: Path) -> PoorMachine:
    return PoorMachine(tmp_path)


def test_setup_without_a_network_says_so(machine: PoorMachine) -> None:
    machine.program("apt-get", 'echo "E: Could not resolve mirror.example"; exit 100')
    done = machine.setup("run")
    assert done.returncode == 1
    assert "E: Could not resolve mirror.example" in done.stderr
    assert done.stderr.splitlines()[-1].startswith(
        "setup: apt-get could not install python3 python3-venv gcc "
    )
    assert "check the network" in done.stderr.splitlines()[-1]


def test_setup_without_root_names_what_is_missing(machine: PoorMachine) -> None:
    machine.program("id", "echo 1000")
    machine.program("apt-get", "echo must not be called >&2; exit 1")
    done = machine.setup("run")
    assert done.returncode == 1
    assert done.stderr.startswith("setup: these packages are missing: python3 python3-venv gcc ")
    assert done.stderr.endswith("; run it as root: sudo sh scripts/setup.sh run\n")


def test_setup_installs_only_what_is_missing(machine: PoorMachine) -> None:
    machine.program("dpkg-query", 'shift 3; for p in "$@"; do [ "$p" = mmdebstrap ] || echo "ii $p"; done')
    machine.program("apt-get", f'echo "$@" >>{machine.programs}/calls; [ "$1" = update ] || exit 1')
    machine.setup("run")
    calls = (machine.programs / "calls").read_text().splitlines()
    assert calls == ["update -q", "install -q -y --no-install-recommends mmdebstrap"]


def test_setup_refuses_another_level(machine: PoorMachine) -> None:
    done = machine.setup("everything")
    assert (done.returncode, done.stderr) == (2, "setup: everything: expected run, test or bench\n")


def test_every_script_is_valid_posix_shell() -> None:
    for script in [*(ROOT / "scripts").glob("*.sh"), ROOT / ".ci" / "run", ROOT / "bin" / "cove"]:
        subprocess.run(["dash", "-n", str(script)], check=True, timeout=60)
