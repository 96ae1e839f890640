"""The engines that clients are tried on: Cove, and Debian's dockerd beside it, where both have to look alike.

    @pytest.fixture(scope="module", params=ENGINES)
    def engine(request): yield from running_engine(request.param)

dockerd lives in a room (bench/room.py), and its published ports in that room's network: `engine.here` does
something where they are.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
import urllib.request
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing
from pathlib import Path
from typing import TypeVar

import docker
import pytest

from bench.peers import Dockerd
from tests import leaks
from tests.clients.oci_engines import missing_program
from tests.daemon import Daemon
from tests.imagekit import busybox_archive
from tests.nethelp import inside
from tests.system.oci_support import make_cgroups

T = TypeVar("T")
ENGINES = ("cove", "dockerd")
# What costs dockerd half a minute, and tells little that the others don't, is compared where that is asked for.
COMPARED_ON_DEMAND = ENGINES if os.environ.get("COVE_TEST_PEERS") else ("cove",)
BOUND_S = 60.0


class Engine:
    """A running engine as a client sees it."""

    def __init__(self, name: str, host: str, inner_pid: int = 0) -> None:
        self.name = name
        self.host = host
        self.client = docker.DockerClient(base_url=host, version="auto", timeout=120)
        self._inner_pid = inner_pid

    @property
    def socket(self) -> Path:
        return Path(self.host.removeprefix("unix://"))

    @property
    def inner_pid(self) -> int:
        """A process in the network that its published ports are in; 0: the host's."""
        return self._inner_pid

    def load(self, archive: bytes) -> None:
        """Load images from a docker-archive."""
        self.client.images.load(archive)

    def here(self, work: Callable[[], T]) -> T:
        """Do something in the network that this engine's published ports are in."""
        if not self._inner_pid:
            return work()
        namespace = os.open(f"/proc/{self._inner_pid}/ns/net", os.O_RDONLY | os.O_CLOEXEC)
        try:
            return inside(namespace, work)
        finally:
            os.close(namespace)

    def run(self, command: Sequence[str], environment: Mapping[str, str]) -> str:
        """What a program printed that speaks with this engine and its published ports; it has to end with 0."""
        enter = ["nsenter", "--net", "--target", str(self._inner_pid)] if self._inner_pid else []
        done = subprocess.run(
            [*enter, *command],
            env={**os.environ, "DOCKER_HOST": self.host, **environment},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=2 * BOUND_S,
        )
        assert done.returncode == 0, f"{' '.join(command)}: {done.returncode}\n{done.stdout}\n{done.stderr}"
        return done.stdout

    def fetch(self, address: str) -> str:
        """The page at HOST:PORT/PATH."""

        def get() -> str:
            with urllib.request.urlopen(f"http://{address}", timeout=BOUND_S) as answer:
                return str(answer.read().decode())

        return self.here(get)


class _PlainDockerd(Dockerd):
    def __init__(self) -> None:
        directory = Path(tempfile.mkdtemp(prefix="cove-test-", dir="/var/tmp")) / "d"
        leaks.own_directory(directory.parent)
        super().__init__(directory, leaks.unique_name())
        make_cgroups(self.cgroup_parent)

    def stop(self) -> None:
        if self.room is not None and self.daemon_pids():
            self.remove_all()
        super().stop()
        shutil.rmtree(self.directory.parent, ignore_errors=True)


def running_engine(name: str) -> Iterator[Engine]:
    """One engine with the busybox image, taken down at the end; for a fixture of a module."""
    if name == "cove":
        with Daemon() as daemon:
            daemon.load_image()
            engine = Engine(name, daemon.host)
            with closing(engine.client):
                yield engine
        return
    if problem := missing_program("dockerd", "containerd"):
        pytest.skip(f"{problem} isn't installed: apt-get install docker.io")
    dockerd = _PlainDockerd()
    dockerd.start()
    try:
        engine = Engine(name, f"unix://{dockerd.socket}", dockerd.daemon_pids()[0])
        with closing(engine.client):
            engine.load(busybox_archive())
            yield engine
    finally:
        dockerd.stop()
