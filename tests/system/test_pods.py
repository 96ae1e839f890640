"""Pods: containers that share a network, IPC and a host name; they survive what containers survive."""

from __future__ import annotations

import json
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest

from tests.apikit import create, eventually, inspect, logs, remove, run, state, wait
from tests.daemon import Daemon
from tests.system.test_faults_reboot import cut_power, free_port

ROOT = Path(__file__).resolve().parents[2]


def make(daemon: Daemon, name: str, **body: Any) -> Any:
    answer = daemon.http("POST", f"/cove/v1/pods?name={name}", body)
    assert answer.status == 201, answer.message
    return answer.json()


def show(daemon: Daemon, name: str) -> Any:
    return daemon.http("GET", f"/cove/v1/pods/inspect?name={name}").json()


def drop(daemon: Daemon, *names: str) -> None:
    for name in names:
        daemon.http("DELETE", f"/cove/v1/pods?name={name}&force=1")
    for image in daemon.http("GET", "/images/json").json():
        if any(tag.startswith("cove.local/pod") for tag in image["RepoTags"] or ()):
            daemon.http("DELETE", f"/images/{quote(image['Id'])}?force=1")


@pytest.fixture
def pod(daemon: Daemon) -> Iterator[str]:
    make(daemon, "shop", Hostname="till")
    yield "shop"
    drop(daemon, "shop")


def member(daemon: Daemon, image: str, *command: str, name: str = "", **more: Any) -> str:
    return create(
        daemon, image, *command, name=name, NetworkMode="default", **{"Cove": {"pod": "shop"}, **more}
    )


def test_its_containers_share_loopback_ports_host_name_and_memory(daemon: Daemon, image: str) -> None:
    port = free_port()
    bindings = {"80/tcp": [{"HostIp": "127.0.0.1", "HostPort": str(port)}]}
    make(daemon, "shop", Hostname="till", HostConfig={"PortBindings": bindings})
    web = member(daemon, image, "sh", "-c", "echo hi >/index.html; httpd -f -p 80 -h /", name="web")
    script = "hostname; until wget -qO- http://127.0.0.1:80/; do sleep 0.05; done; echo mark >/dev/shm/x"
    other = member(daemon, image, "sh", "-c", script)
    assert show(daemon, "shop")["Status"] == "created"
    assert daemon.http("POST", "/cove/v1/pods/start?name=shop").status == 204
    assert wait(daemon, other) == 0
    told = logs(daemon, other)
    assert b"till\n" in told
    assert b"hi\n" in told
    late = member(daemon, image, "cat", "/dev/shm/x")
    daemon.http("POST", f"/containers/{late}/start")
    wait(daemon, late)
    assert b"mark" in logs(daemon, late)
    with socket.create_connection(("127.0.0.1", port), timeout=20) as sock:
        sock.sendall(b"GET / HTTP/1.0\r\n\r\n")
        assert b"200 OK" in sock.recv(4096)
    shown = show(daemon, "shop")
    assert (shown["Status"], shown["Ports"]) == ("degraded", [f"127.0.0.1:{port}->80/tcp"])
    assert [one["Id"] for one in shown["Containers"]] == [web, other, late]
    filters = quote(json.dumps({"id": [web]}))
    assert daemon.http("GET", f"/containers/json?filters={filters}").json()[0]["Cove"] == {"Pod": "shop"}
    refused = daemon.http("DELETE", "/cove/v1/pods?name=shop")
    assert (refused.status, "web is running" in refused.message) == (409, True)
    drop(daemon, "shop")
    assert daemon.http("GET", "/containers/json?all=1").json() == []


def test_it_stops_in_order_and_a_member_s_start_brings_it_up(daemon: Daemon, image: str, pod: str) -> None:
    first = member(daemon, image, "sleep", "1000", StopSignal="KILL")
    second = member(daemon, image, "sleep", "1000", StopSignal="KILL")
    for container in (first, second):
        assert daemon.http("POST", f"/containers/{container}/start").status == 204
    infra = show(daemon, pod)["InfraID"]
    assert state(daemon, infra)["Status"] == "running"
    assert daemon.http("POST", f"/cove/v1/pods/stop?name={pod}").status == 204
    ended = [state(daemon, container)["FinishedAt"] for container in (second, first, infra)]
    assert ended == sorted(ended)
    assert state(daemon, infra)["ExitCode"] == 0  # it heeds its stop signal
    assert daemon.http("POST", f"/cove/v1/pods/stop?name={pod}").status == 304
    assert show(daemon, pod)["Status"] == "stopped"


def test_it_is_there_after_a_kill_and_after_a_reboot(fresh_daemon: Daemon, image: str) -> None:
    make(fresh_daemon, "shop")
    web = member(fresh_daemon, image, "sleep", "1000", RestartPolicy={"Name": "always"})
    fresh_daemon.http("POST", f"/containers/{web}/start")
    pid = state(fresh_daemon, web)["Pid"]
    fresh_daemon.kill9()
    fresh_daemon.start()
    assert show(fresh_daemon, "shop")["Status"] == "running"
    assert state(fresh_daemon, web)["Pid"] == pid
    cut_power(fresh_daemon, keep_run_dir=False)
    fresh_daemon.start()
    eventually(lambda: show(fresh_daemon, "shop")["Status"] == "running")
    eventually(lambda: state(fresh_daemon, web)["Status"] == "running")
    network = [
        Path(f"/proc/{state(fresh_daemon, one)['Pid']}/ns/net").readlink() for one in (web, "shop-infra")
    ]
    assert network[0] == network[1]
    drop(fresh_daemon, "shop")


@pytest.mark.parametrize(
    ("more", "said"),
    [
        ({"NetworkMode": "host"}, "a network is for the pod"),
        ({"PortBindings": {"80/tcp": [{}]}}, "published ports is for the pod"),
        ({"Dns": ["9.9.9.9"]}, "DNS settings is for the pod"),
        ({"IpcMode": "host"}, "an IPC mode is for the pod"),
    ],
)
def test_what_is_the_pod_s_is_refused_to_its_containers(
    daemon: Daemon, image: str, pod: str, more: dict[str, Any], said: str
) -> None:
    body = {"Image": image, "Cmd": ["true"], "HostConfig": more, "Labels": {"cove.pod": pod}}
    answer = daemon.http("POST", "/containers/create", body)
    assert (answer.status, said in answer.message) == (400, True), answer.message


def test_a_pod_s_name_is_its_own(daemon: Daemon, image: str, pod: str) -> None:
    assert daemon.http("POST", f"/cove/v1/pods?name={pod}", {}).status == 409
    assert daemon.http("POST", "/cove/v1/pods?name=a/b", {}).status == 400
    missing = daemon.http("POST", "/containers/create", {"Image": image, "Cove": {"pod": "nosuch"}})
    assert (missing.status, "No such pod: nosuch" in missing.message) == (404, True)
    plain = run(daemon, image, "true")
    assert "Cove" not in inspect(daemon, plain)
    remove(daemon, plain)


def test_the_command_line_makes_and_removes_one(daemon: Daemon, image: str) -> None:
    def cove(*arguments: str) -> str:
        done = subprocess.run(
            [ROOT / "bin/cove", "-H", daemon.host, *arguments], capture_output=True, text=True, timeout=100
        )
        assert done.returncode == 0, done.stderr
        return done.stdout.strip()

    assert cove("pod", "create", "-l", "a=b", "shop") == "shop"
    assert cove("run", "--rm", "--pod", "shop", image, "sh", "-c", "hostname") == "shop"
    assert cove("pod", "ls", "--format", "{{.Name}} {{.Status}} {{.Labels}}") == "shop running a=b"
    assert cove("pod", "rm", "-f", "shop") == "shop"
    drop(daemon)
