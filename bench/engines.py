"""An engine under test, seen through the Docker Engine API: Cove and dockerd look the same from here.

Owns the engine's room and directories; a subclass says how its daemon starts and which processes
are its daemon and its supervisors. Order that must hold at the end: containers are removed by the
API first, then the room is closed, then cgroups and directories go.
"""

from __future__ import annotations

import shutil
import time
from abc import ABC, abstractmethod
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from bench.client import ApiError, Client
from bench.images import BUSYBOX
from bench.procfs import Memory, Process, memory_of
from bench.room import Room, RoomError, remove_cgroups

START_TIMEOUT_S = 60.0


class EngineError(Exception):
    """An engine can't be started here; the sentence says why."""


FAILURES = (EngineError, ApiError, RoomError, OSError)


class Engine(ABC):
    """One daemon in a room of its own, with its data below `directory`."""

    name: str

    def __init__(self, directory: Path, cgroup_parent: str) -> None:
        self.directory = directory
        self.cgroup_parent = cgroup_parent
        self.socket = directory / "docker.sock"
        self.log = directory / "daemon.log"
        self.room: Room | None = None
        self.idle_memory = Memory()
        self.environment: dict[str, str] = {}
        self._daemons: list[int] = []

    @abstractmethod
    def daemon_commands(self) -> list[list[str]]:
        """The daemon's programs in the order of their start; the last one serves the API."""

    @abstractmethod
    def is_daemon(self, process: Process) -> bool: ...

    @abstractmethod
    def is_supervisor(self, process: Process) -> bool: ...

    def start(self) -> None:
        """Make the room, start the daemon and wait until it answers. Raises EngineError."""
        self.directory.mkdir(parents=True)
        try:
            self.room = Room()
            self.start_daemon(self.daemon_commands())
            self.idle_memory = self.daemon_memory()
        except FAILURES as error:
            self.stop()
            raise EngineError(f"{self.name} doesn't start: {error}") from error

    def start_daemon(self, commands: Sequence[Sequence[str]]) -> None:
        """Start programs in the room and wait for the API."""
        assert self.room is not None
        for command in commands:
            self._daemons.append(self.room.start(command, self.log, self.environment))
        deadline = time.monotonic() + START_TIMEOUT_S
        while True:
            try:
                with Client(self.socket) as client:
                    if client.exchange("GET", "/_ping", b"")[0] == 200:
                        return
            except OSError:
                pass
            if not self.daemon_pids():
                raise EngineError(f"the daemon ended; its log says: {self.last_words()}")
            if time.monotonic() > deadline:
                raise EngineError(f"no answer after {START_TIMEOUT_S:g} s; its log says: {self.last_words()}")
            time.sleep(0.005)

    def kill_api_daemon(self) -> None:
        """kill -9 of the program that serves the API."""
        assert self.room is not None
        self.room.kill(self._daemons.pop())

    def restart_api_daemon(self) -> None:
        """Start it again and wait until it answers."""
        self.start_daemon(self.daemon_commands()[-1:])

    def stop(self) -> None:
        """Take everything down: processes with the room, then cgroups, then the directory."""
        if self.room is not None:
            self.room.close()
            self.room = None
        remove_cgroups(self.cgroup_parent)
        shutil.rmtree(self.directory, ignore_errors=True)

    def last_words(self) -> str:
        """The end of the daemon's log, on one line."""
        try:
            lines = self.log.read_text(errors="replace").strip().splitlines()
        except FileNotFoundError:
            return "nothing"
        return lines[-1][-300:] if lines else "nothing"

    # --- what its processes take ----------------------------------------------------------

    def processes(self) -> list[Process]:
        return list(self.room.processes().values()) if self.room is not None else []

    def daemon_pids(self) -> list[int]:
        return [process.pid for process in self.processes() if self.is_daemon(process)]

    def daemon_memory(self) -> Memory:
        return memory_of(self.daemon_pids())

    def supervisor_pids(self) -> list[int]:
        return [process.pid for process in self.processes() if self.is_supervisor(process)]

    # --- the API --------------------------------------------------------------------------

    def client(self) -> Client:
        return Client(self.socket)

    def load(self, archive: Path) -> None:
        with self.client() as client:
            client.upload("/images/load?quiet=1", archive)

    def remove_image(self, name: str) -> None:
        with self.client() as client:
            client.call("DELETE", f"/images/{name}?force=1")

    def list_running(self, client: Client) -> int:
        """How many containers `GET /containers/json` shows: the running ones."""
        return len(client.call("GET", "/containers/json"))

    def remove_all(self, workers: int = 4) -> None:
        """Remove every container by force."""
        with self.client() as client:
            ids = [entry["Id"] for entry in client.call("GET", "/containers/json?all=1")]
        share(workers, ids, self, lambda client, name: remove(client, name))


def share(workers: int, items: Sequence[Any], engine: Engine, work: Any) -> list[Any]:
    """work(client, item) for every item, by so many connections at once; the results in the items' order."""

    def run(number: int) -> list[tuple[int, Any]]:
        with engine.client() as client:
            return [(index, work(client, items[index])) for index in range(number, len(items), workers)]

    with ThreadPoolExecutor(workers) as pool:
        done = [pair for part in pool.map(run, range(workers)) for pair in part]
    return [result for _, result in sorted(done, key=lambda pair: pair[0])]


# --- single calls -------------------------------------------------------------------------


def body(command: Sequence[str], network: str, **host_config: Any) -> dict[str, Any]:
    """A create request's body; `network` "none", "bridge" …"""
    return {
        "Image": BUSYBOX,
        "Cmd": list(command),
        "HostConfig": {"NetworkMode": network, **host_config},
    }


def create(client: Client, request: dict[str, Any]) -> str:
    """Create a container and return its id."""
    return str(client.call("POST", "/containers/create", request)["Id"])


def start(client: Client, name: str) -> None:
    client.call("POST", f"/containers/{name}/start")


def wait(client: Client, name: str) -> int:
    """Wait for the end and return the exit code."""
    return int(client.call("POST", f"/containers/{name}/wait")["StatusCode"])


def remove(client: Client, name: str) -> None:
    client.call("DELETE", f"/containers/{name}?force=1&v=1")


def run_whole_life(client: Client, request: dict[str, Any]) -> None:
    """create, start, wait, remove; ApiError when the process failed."""
    name = create(client, request)
    start(client, name)
    code = wait(client, name)
    client.call("DELETE", f"/containers/{name}")
    if code != 0:
        raise ApiError(f"run {request['Cmd']}", code, "is its exit code, expected 0")


def run_exec(client: Client, raw: Client, container: str, command: Sequence[str]) -> None:
    """exec create, start attached (on a connection of its own), inspect until it has ended."""
    request = {"AttachStdout": True, "AttachStderr": True, "Cmd": list(command)}
    name = client.call("POST", f"/containers/{container}/exec", request)["Id"]
    raw.hijack(f"/exec/{name}/start", {"Detach": False, "Tty": False})
    deadline = time.monotonic() + 30
    while (seen := client.call("GET", f"/exec/{name}/json"))["Running"] or seen["ExitCode"] is None:
        if time.monotonic() > deadline:
            raise ApiError(f"exec {command}", 0, "it still runs 30 s after its stream ended")
    if seen["ExitCode"] != 0:
        raise ApiError(f"exec {command}", seen["ExitCode"], "is its exit code, expected 0")
