"""What the bus tells of a container's life, by the API: the actions and their order are Docker's."""

from __future__ import annotations

import json
import time
from typing import Any

from tests.daemon import Daemon


def events_of(daemon: Daemon, since: float) -> list[tuple[str, str]]:
    """What happened from `since` to now, as (type, action)."""
    path = f"/events?since={since:.9f}&until={time.time():.9f}"
    lines = daemon.http("GET", path).body.splitlines()
    found = [json.loads(line) for line in lines if line]
    return [(event["Type"], event["Action"]) for event in found]


def create(daemon: Daemon, image: str, *args: str, **host_config: Any) -> str:
    body = {"Image": image, "Cmd": list(args), "HostConfig": host_config}
    made = daemon.http("POST", "/containers/create", body)
    assert made.status == 201, made.message
    return str(made.json()["Id"])


def test_a_life_is_told_in_dockers_order(daemon: Daemon, image: str) -> None:
    since = time.time()
    container = create(daemon, image, "sleep", "1000", Binds=["made-for-events:/data:ro"])
    assert daemon.http("POST", f"/containers/{container}/start").status == 204
    assert daemon.http("GET", f"/containers/{container}/top").status == 200
    assert daemon.http("GET", f"/containers/{container}/archive?path=/etc/hostname").status == 200
    assert daemon.http("POST", f"/containers/{container}/stop?signal=KILL").status == 204
    assert daemon.http("DELETE", f"/containers/{container}").status == 204
    assert daemon.http("DELETE", "/volumes/made-for-events").status == 204
    assert events_of(daemon, since) == [
        ("volume", "create"),
        ("container", "create"),
        ("network", "connect"),
        ("volume", "mount"),
        ("container", "start"),
        ("container", "top"),
        ("container", "archive-path"),
        ("container", "kill"),
        ("container", "die"),
        ("network", "disconnect"),
        ("volume", "unmount"),
        ("container", "stop"),
        ("container", "destroy"),
        ("volume", "destroy"),
    ]


def test_a_restart_spares_a_container_with_rm(daemon: Daemon, image: str) -> None:
    since = time.time()
    container = create(daemon, image, "sleep", "1000", AutoRemove=True, NetworkMode="none")
    assert daemon.http("POST", f"/containers/{container}/start").status == 204
    assert daemon.http("POST", f"/containers/{container}/restart?t=0").status == 204
    assert daemon.http("GET", f"/containers/{container}/json").json()["State"]["Running"]
    actions = [action for kind, action in events_of(daemon, since) if kind == "container"]
    assert actions == ["create", "start", "kill", "kill", "die", "stop", "start", "restart"]
    assert daemon.http("DELETE", f"/containers/{container}?force=1").status == 204


def test_attach_resize_and_detach_are_told(daemon: Daemon, image: str) -> None:
    body = {
        "Image": image,
        "Cmd": ["cat"],
        "Tty": True,
        "OpenStdin": True,
        "HostConfig": {"NetworkMode": "none"},
    }
    container = str(daemon.http("POST", "/containers/create", body).json()["Id"])
    since = time.time()
    with daemon.connect() as attached:
        query = "stream=1&stdin=1&stdout=1&detachKeys=x"
        attached.sendall(
            f"POST /containers/{container}/attach?{query} HTTP/1.1\r\nHost: x\r\n"
            "Connection: Upgrade\r\nUpgrade: tcp\r\n\r\n".encode()
        )
        answer = attached.makefile("rb")
        assert answer.readline().split()[1] == b"101"
        assert daemon.http("POST", f"/containers/{container}/start").status == 204
        assert daemon.http("POST", f"/containers/{container}/resize?h=20&w=90").status == 200
        attached.sendall(b"x")
        answer.read()  # until the other side has let go
    actions: list[str] = []
    deadline = time.monotonic() + 60
    while "detach" not in actions:
        assert time.monotonic() < deadline, actions
        actions = [action for kind, action in events_of(daemon, since) if kind == "container"]
    assert actions == ["attach", "start", "resize", "detach"]
    assert daemon.http("DELETE", f"/containers/{container}?force=1").status == 204


def test_events_are_told_after_a_kill_of_the_daemon_and_a_listener_goes_on_where_it_was(
    fresh_daemon: Daemon, image: str
) -> None:
    daemon = fresh_daemon
    since = time.time()
    container = create(daemon, image, "true", NetworkMode="none")
    assert daemon.http("POST", f"/containers/{container}/start").status == 204
    assert daemon.http("POST", f"/containers/{container}/wait").status == 200
    told = [json.loads(line) for line in _events(daemon, f"{since:.9f}")]
    assert [event["Action"] for event in told if event["Type"] == "container"] == ["create", "start", "die"]
    daemon.kill9()
    daemon.start()
    assert [json.loads(line) for line in _events(daemon, f"{since:.9f}")] == told
    last_ns = told[-1]["timeNano"]
    assert daemon.http("DELETE", f"/containers/{container}").status == 204
    further = _events(daemon, f"{last_ns // 10**9}.{last_ns % 10**9 + 1:09}")
    assert [json.loads(line)["Action"] for line in further] == ["destroy"]
    only = daemon.http(
        "GET", f"/events?since={since:.9f}&until={time.time():.9f}&filters=" + '{"event":["die"]}'
    )
    assert [json.loads(line)["Action"] for line in only.body.splitlines()] == ["die"]


def _events(daemon: Daemon, since: str) -> list[bytes]:
    return daemon.http("GET", f"/events?since={since}&until={time.time():.9f}").body.splitlines()
