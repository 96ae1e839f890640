"""kill -9 of the daemon in the middle of what it was asked for, at many instants.

After each: what was acknowledged is there, what wasn't is there whole or not at all, and everything agrees
(tests/consistency.py). Instants come from a seeded generator, spread over the time that the operation takes, and from
what can be seen on the host while it goes on (a directory appears, a process starts).
"""

from __future__ import annotations

import os
import random
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests import apikit
from tests.apikit import Call, create, exists, inspect, remove, run, state
from tests.consistency import check_consistent, find_supervisors
from tests.daemon import Daemon, Response
from tests.imagekit import File, make_docker_archive

ROUNDS = 5
SIGHT_BOUND_S = 30.0
_ENDLESS = ("sleep", "100000")
_PORTS = {"PortBindings": {"80/tcp": [{"HostPort": ""}]}}


@dataclass(frozen=True)
class Case:
    """One operation: what it needs, the request, and what must hold when its answer came, or didn't."""

    prepare: Callable[[Daemon, str], str]  # returns what the next two are told: an id, a name
    request: Callable[[Daemon, str], Call]
    verify: Callable[[Daemon, str, Response | None], None]


def _started(daemon: Daemon, image: str) -> str:
    return run(daemon, image, *_ENDLESS, NetworkMode="bridge", **_PORTS)


def _runs(daemon: Daemon, container: str) -> None:
    pid = state(daemon, container)["Pid"]
    [supervisor] = [s for s in find_supervisors(daemon) if s.title == container]
    assert pid in supervisor.children


def _verify_create(daemon: Daemon, name: str, answer: Response | None) -> None:
    if answer is not None:
        assert answer.status == 201 and exists(daemon, answer.json()["Id"])
    if exists(daemon, name):
        apikit.start(daemon, name)
        remove(daemon, name)
    assert daemon.http("GET", "/volumes").json()["Volumes"] == []


def _verify_start(daemon: Daemon, container: str, answer: Response | None) -> None:
    if answer is not None:
        assert answer.status == 204 and state(daemon, container)["Status"] == "running"
    if state(daemon, container)["Status"] == "running":
        _runs(daemon, container)
    else:
        assert state(daemon, container)["Status"] == "created"
        apikit.start(daemon, container)
    remove(daemon, container)


def _verify_stop(daemon: Daemon, container: str, answer: Response | None) -> None:
    seen = state(daemon, container)
    if answer is not None:
        assert answer.status == 204 and seen["Status"] == "exited"
    if seen["Status"] == "running":
        _runs(daemon, container)
        assert daemon.http("POST", f"/containers/{container}/stop?t=0").status in (204, 304)
        seen = state(daemon, container)
    assert (seen["Status"], seen["ExitCode"]) == ("exited", 137)
    apikit.start(daemon, container)
    remove(daemon, container)


def _verify_remove(daemon: Daemon, container: str, answer: Response | None) -> None:
    if answer is not None:
        assert answer.status == 204 and not exists(daemon, container)
    if exists(daemon, container):
        remove(daemon, container)
    assert daemon.http("GET", "/volumes").json()["Volumes"] == []


def _verify_load(daemon: Daemon, name: str, answer: Response | None) -> None:
    seen = daemon.http("GET", f"/images/{name}/json")
    if answer is not None:
        assert answer.status == 200 and seen.status == 200
    if seen.status == 200:
        saved = daemon.http("GET", f"/images/{name}/get")
        assert saved.status == 200 and len(saved.body) > 2 << 20
        assert daemon.http("DELETE", f"/images/{name}").status == 200


def _prepare_exec(daemon: Daemon, image: str) -> str:
    container = run(daemon, image, *_ENDLESS)
    made = daemon.http("POST", f"/containers/{container}/exec", {"Cmd": [*_ENDLESS]})
    return f"{container} {made.json()['Id']}"


def _verify_exec(daemon: Daemon, told: str, answer: Response | None) -> None:
    container, exec_id = told.split()
    _runs(daemon, container)
    seen = daemon.http("GET", f"/exec/{exec_id}/json")
    if answer is not None:
        assert answer.status == 200 and seen.status == 200 and seen.json()["Running"]
    if seen.status == 200:
        assert inspect(daemon, container)["ExecIDs"] == [exec_id]
    remove(daemon, container)


def _verify_rename(daemon: Daemon, container: str, answer: Response | None) -> None:
    name = inspect(daemon, container)["Name"]
    assert name in ("/before", "/after") and inspect(daemon, name[1:])["Id"] == container
    if answer is not None:
        assert answer.status == 204 and name == "/after"
    remove(daemon, container)


def _verify_volume(daemon: Daemon, name: str, answer: Response | None) -> None:
    there = daemon.http("GET", f"/volumes/{name}").status == 200
    assert there or answer is None
    assert daemon.http("DELETE", f"/volumes/{name}?force=1").status == 204


def _verify_volume_removal(daemon: Daemon, name: str, answer: Response | None) -> None:
    there = daemon.http("GET", f"/volumes/{name}").status == 200
    assert answer is None or (answer.status == 204 and not there)
    assert daemon.http("DELETE", f"/volumes/{name}?force=1").status == 204


def _verify_network(daemon: Daemon, name: str, answer: Response | None) -> None:
    there = daemon.http("GET", f"/networks/{name}").status == 200
    assert there or answer is None
    if there:
        assert daemon.http("DELETE", f"/networks/{name}").status == 204


def _verify_network_removal(daemon: Daemon, name: str, answer: Response | None) -> None:
    there = daemon.http("GET", f"/networks/{name}").status == 200
    assert answer is None or (answer.status == 204 and not there)
    if there:
        assert daemon.http("DELETE", f"/networks/{name}").status == 204


def _made_volume(daemon: Daemon, image: str) -> str:
    assert daemon.http("POST", "/volumes/create", {"Name": "files"}).status == 201
    return "files"


def _made_network(daemon: Daemon, image: str) -> str:
    made = daemon.http("POST", "/networks/create", _network_body(daemon, "killed"))
    assert made.status == 201, made.message
    return "killed"


def _network_body(daemon: Daemon, name: str) -> dict[str, Any]:
    """With a link that tells whose it is."""
    return {"Name": name, "Options": {"com.docker.network.bridge.name": f"{daemon.names.bridge}n"}}


def _layered() -> bytes:
    """An image whose load takes a while: three layers that don't compress."""
    source = random.Random(1)
    layers = [[File(f"{number}/{i}", source.randbytes(100_000)) for i in range(8)] for number in range(3)]
    return make_docker_archive(layers, names=["layered:1"])


_LAYERED = _layered()
_WITH_VOLUMES = {"Volumes": {"/data": {}, "/more": {}}}


def _create_body(image: str) -> dict[str, Any]:
    return {"Image": image, "Cmd": [*_ENDLESS], "HostConfig": {"NetworkMode": "none"}, **_WITH_VOLUMES}


CASES = {
    "create": Case(
        lambda d, i: "made",
        lambda d, n: Call(d, "POST", f"/containers/create?name={n}", _create_body("busybox:latest")),
        _verify_create,
    ),
    "start": Case(
        lambda d, i: create(d, i, *_ENDLESS, NetworkMode="bridge", **_PORTS),
        lambda d, c: Call(d, "POST", f"/containers/{c}/start"),
        _verify_start,
    ),
    "stop": Case(_started, lambda d, c: Call(d, "POST", f"/containers/{c}/stop?t=0"), _verify_stop),
    "remove": Case(
        lambda d, i: run(d, i, *_ENDLESS, NetworkMode="bridge", **_PORTS, **_WITH_VOLUMES),
        lambda d, c: Call(d, "DELETE", f"/containers/{c}?force=1&v=1"),
        _verify_remove,
    ),
    "load": Case(
        lambda d, i: "layered:1",
        lambda d, n: Call(
            d, "POST", "/images/load?quiet=1", _LAYERED, headers={"Content-Type": "application/x-tar"}
        ),
        _verify_load,
    ),
    "exec": Case(
        _prepare_exec,
        lambda d, told: Call(d, "POST", f"/exec/{told.split()[1]}/start", {"Detach": True}),
        _verify_exec,
    ),
    "rename": Case(
        lambda d, i: create(d, i, *_ENDLESS, name="before"),
        lambda d, c: Call(d, "POST", f"/containers/{c}/rename?name=after"),
        _verify_rename,
    ),
    "volume create": Case(
        lambda d, i: "files", lambda d, n: Call(d, "POST", "/volumes/create", {"Name": n}), _verify_volume
    ),
    "volume remove": Case(
        _made_volume, lambda d, n: Call(d, "DELETE", f"/volumes/{n}"), _verify_volume_removal
    ),
    "network create": Case(
        lambda d, i: "killed",
        lambda d, n: Call(d, "POST", "/networks/create", _network_body(d, n)),
        _verify_network,
    ),
    "network remove": Case(
        _made_network, lambda d, n: Call(d, "DELETE", f"/networks/{n}"), _verify_network_removal
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_a_daemon_killed_at_any_instant_leaves_all_or_nothing(daemon: Daemon, image: str, name: str) -> None:
    case = CASES[name]
    random_instants = random.Random(f"{name} 1")
    told = case.prepare(daemon, image)
    began = time.monotonic()
    answer = case.request(daemon, told).result()
    took_s = time.monotonic() - began
    assert answer is not None and answer.status < 400, answer
    case.verify(daemon, told, answer)
    for number in range(ROUNDS):
        instant_s = took_s * (number + random_instants.random()) / ROUNDS * 1.2
        told = case.prepare(daemon, image)
        call = case.request(daemon, told)
        time.sleep(instant_s)  # the instant is what this test is about
        daemon.kill9()
        answer = call.result()
        daemon.start()
        check_consistent(daemon)
        case.verify(daemon, told, answer)
        check_consistent(daemon)


# --- instants that are seen on the host -----------------------------------------------------------


def _appears(directory: Path) -> Callable[[], bool]:
    """Something that wasn't in this directory is."""
    before = set(os.listdir(directory))
    return lambda: bool(set(os.listdir(directory)) - before)


def _supervised(daemon: Daemon) -> Callable[[], bool]:
    before = {s.pid for s in find_supervisors(daemon)}
    return lambda: any(s.pid not in before for s in find_supervisors(daemon))


INSTANTS: dict[str, tuple[str, Callable[[Daemon, str], Callable[[], bool]]]] = {
    "a volume of a create": ("create", lambda d, t: _appears(d.data_root / "volumes")),
    "the directory of a create": ("create", lambda d, t: _appears(d.data_root / "containers")),
    "the state directory of a start": ("start", lambda d, t: _appears(d.run_dir / "containers")),
    "the supervisor of a start": ("start", lambda d, t: _supervised(d)),
    "the exit file of a stop": ("stop", lambda d, t: (d.run_dir / "containers" / t / "exit").exists),
    "the directory of a removal": (
        "remove",
        lambda d, t: lambda: not (d.data_root / "containers" / t).exists(),
    ),
    "the worker of a load": ("load", lambda d, t: _appears(d.data_root / "images/loading")),
    "a layer of a load": ("load", lambda d, t: _appears(d.data_root / "images/layers")),
    "the state directory of an exec": ("exec", lambda d, t: _appears(d.run_dir / "exec")),
    "the supervisor of an exec": ("exec", lambda d, t: _supervised(d)),
    "the link of a network": (
        "network create",
        lambda d, t: Path("/sys/class/net", f"{d.names.bridge}n").exists,
    ),
    "the removal of a link": (
        "network remove",
        lambda d, t: lambda: not Path("/sys/class/net", f"{d.names.bridge}n").exists(),
    ),
}


@pytest.mark.parametrize("name", INSTANTS)
def test_a_daemon_killed_when_something_appears_leaves_all_or_nothing(
    daemon: Daemon, image: str, name: str
) -> None:
    operation, watch = INSTANTS[name]
    case = CASES[operation]
    told = case.prepare(daemon, image)
    seen = watch(daemon, told)
    call = case.request(daemon, told)
    deadline = time.monotonic() + SIGHT_BOUND_S
    while not seen() and call.is_alive() and time.monotonic() < deadline:
        pass  # milliseconds at most: the instant is gone soon
    daemon.kill9()
    answer = call.result()
    daemon.start()
    check_consistent(daemon)
    case.verify(daemon, told, answer)
    check_consistent(daemon)
