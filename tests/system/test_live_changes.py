"""`cove update`: published ports, labels, health checks and start order of a container that runs."""

from __future__ import annotations

import contextlib
import socket
import subprocess
from pathlib import Path
from typing import Any

import pytest

from tests.apikit import create, eventually, inspect, remove, start, state
from tests.daemon import Daemon
from tests.system.test_faults_reboot import free_port

ROOT = Path(__file__).resolve().parents[2]
MS = 10**6


def answers(port: int) -> bool:
    with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=5) as sock:
        sock.sendall(b"GET / HTTP/1.0\r\n\r\n")
        return sock.recv(100).startswith(b"HTTP/1")
    return False


def change(daemon: Daemon, container: str, **body: Any) -> Any:
    return daemon.http("POST", f"/cove/v1/update?container={container}", body)


def web(daemon: Daemon, image: str, **more: Any) -> str:
    container = create(
        daemon,
        image,
        "sh",
        "-c",
        "echo ok >/ok; exec httpd -f -p 80 -h /",
        NetworkMode="default",
        StopSignal="KILL",
        **more,
    )
    start(daemon, container)
    return container


def published(daemon: Daemon, container: str) -> dict[str, Any]:
    return dict(inspect(daemon, container)["NetworkSettings"]["Ports"])


def test_ports_come_and_go_while_it_runs_and_stay_so(fresh_daemon: Daemon, image: str) -> None:
    daemon, first, second = fresh_daemon, free_port(), free_port()
    container = web(daemon, image, PortBindings={"80/tcp": [{"HostIp": "127.0.0.1", "HostPort": str(first)}]})
    pid = state(daemon, container)["Pid"]
    eventually(lambda: answers(first))
    added = {"80/tcp": [{"HostIp": "127.0.0.1", "HostPort": str(second)}]}
    assert change(daemon, container, PublishRemove=["80"], PublishAdd=added).status == 200
    assert answers(second)
    assert not answers(first)
    assert [one["HostPort"] for one in published(daemon, container)["80/tcp"]] == [str(second)]
    assert inspect(daemon, container)["HostConfig"]["PortBindings"] == added
    daemon.kill9()
    daemon.start()
    assert answers(second)
    assert state(daemon, container)["Pid"] == pid
    daemon.http("POST", f"/containers/{container}/restart?t=0")
    eventually(lambda: answers(second))
    remove(daemon, container)


def test_what_can_not_be_changes_nothing(daemon: Daemon, image: str) -> None:
    container = web(daemon, image)
    with socket.create_server(("127.0.0.1", 0)) as taken:
        busy = {"80/tcp": [{"HostIp": "127.0.0.1", "HostPort": str(taken.getsockname()[1])}]}
        refused = change(daemon, container, PublishAdd=busy, LabelsAdd={"a": "b"})
        assert refused.status >= 400
    for body, said in (
        ({"PublishRemove": ["81/tcp"]}, "port 81/tcp isn't published; published are none"),
        ({"LabelsRemove": ["nosuch"]}, "the container doesn't have it"),
        ({"LabelsAdd": {"cove.pod": "x"}}, "it is a setting"),
        ({"Cove": {"secrets": "x"}}, "create it again with it"),
        ({"Cove": {"health.on-failure": "reboot"}}, "expected none, kill, stop, restart"),
    ):
        answer = change(daemon, container, **body)
        assert (answer.status, said in answer.message) == (400, True), answer.message
    shown = inspect(daemon, container)
    assert shown["Config"]["Labels"] == {}
    assert published(daemon, container) == {}
    assert "Cove" not in shown
    remove(daemon, container)


@pytest.mark.parametrize("before", [{}, {"Healthcheck": {"Test": ["CMD", "true"], "Interval": 20 * MS}}])
def test_a_health_check_is_given_to_one_that_runs(daemon: Daemon, image: str, before: dict[str, Any]) -> None:
    container = web(daemon, image, **before)
    pid = state(daemon, container)["Pid"]
    assert (
        change(
            daemon,
            container,
            Cove={"health.probe": "http://:80/nosuch", "health.on-failure": "restart"},
            Healthcheck={"Interval": 20 * MS, "Retries": 1},
        ).status
        == 200
    )
    eventually(lambda: state(daemon, container)["RestartCount"] >= 1)
    eventually(lambda: state(daemon, container)["Pid"] not in (0, pid))
    assert change(daemon, container, Cove={"health.probe": "http://:80/ok"}).status == 200
    assert change(daemon, container, Cove={"health.on-failure": "none"}).status == 200
    eventually(lambda: (state(daemon, container).get("Health") or {}).get("Status") == "healthy")
    assert inspect(daemon, container)["Cove"]["health.probe"] == "http://:80/ok"
    remove(daemon, container)


def test_the_command_line_changes_all_of_it(daemon: Daemon, image: str) -> None:
    container = web(daemon, image, Labels={"old": "1", "cove.health.on-failure": "stop"})
    port = free_port()
    done = subprocess.run(
        [
            *(ROOT / "bin/cove", "-H", daemon.host, "update", "--publish-add", f"127.0.0.1:{port}:80"),
            *("--label-add", "tier=web", "--label-rm", "old", "--health-on-failure", "kill", "-m", "64m"),
            container,
        ],
        capture_output=True,
        text=True,
        timeout=100,
    )
    assert (done.returncode, done.stdout.strip()) == (0, container), done.stderr
    eventually(lambda: answers(port))
    shown = inspect(daemon, container)
    assert shown["Config"]["Labels"] == {"tier": "web", "cove.health.on-failure": "kill"}
    assert shown["Cove"] == {"health.on-failure": "kill"}
    assert shown["HostConfig"]["Memory"] == 64 << 20
    remove(daemon, container)
