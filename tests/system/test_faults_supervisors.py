"""kill -9 of supervisors and of containers' first processes, while a daemon watches and while none does."""

from __future__ import annotations

import os
import signal
import socket
import threading

import pytest

from tests.apikit import eventually, exists, inspect, logs, remove, run, start, state, wait
from tests.consistency import check_consistent, find_supervisors
from tests.daemon import Daemon

_ENDLESS = ("sleep", "100000")
_PORTS = {"PortBindings": {"80/tcp": [{"HostPort": ""}]}}


def supervisor_of(daemon: Daemon, title: str) -> int:
    [pid] = [s.pid for s in find_supervisors(daemon) if s.title == title]
    return pid


def attach(daemon: Daemon, container: str) -> socket.socket:
    """An attached client, past the answer's header."""
    sock = daemon.connect()
    sock.sendall(
        f"POST /containers/{container}/attach?stream=1&stdout=1 HTTP/1.1\r\nHost: x\r\n"
        "Connection: Upgrade\r\nUpgrade: tcp\r\n\r\n".encode()
    )
    head = b""
    while b"\r\n\r\n" not in head:
        got = sock.recv(1)
        assert got, head
        head += got
    assert head.startswith(b"HTTP/1.1 101"), head
    return sock


def drained(sock: socket.socket) -> bytes:
    """What comes until the other side closes."""
    data = b""
    with sock:
        while got := sock.recv(65536):
            data += got
    return data


def wait_in_thread(daemon: Daemon, container: str, codes: list[int]) -> threading.Thread:
    """A waiter that is registered once this returns; its code goes to `codes`."""
    sock = daemon.connect()
    sock.sendall(
        f"POST /containers/{container}/wait?condition=next-exit HTTP/1.1\r\nHost: x\r\n\r\n".encode()
    )
    stream = sock.makefile("rb")
    assert b"200" in stream.readline()

    def read() -> None:
        with sock, stream:
            for line in stream:
                if b"StatusCode" in line:
                    codes.append(int(line.partition(b'"StatusCode":')[2].partition(b",")[0].strip(b" }\r\n")))
                    return

    thread = threading.Thread(target=read, daemon=True)
    thread.start()
    return thread


@pytest.mark.parametrize("victim", ["supervisor", "process"])
def test_a_kill_from_outside_ends_the_container_with_137(daemon: Daemon, image: str, victim: str) -> None:
    container = run(daemon, image, *_ENDLESS, NetworkMode="bridge", **_PORTS)
    client = attach(daemon, container)
    codes: list[int] = []
    waiter = wait_in_thread(daemon, container, codes)
    pid = state(daemon, container)["Pid"]
    target = supervisor_of(daemon, container) if victim == "supervisor" else pid
    os.kill(target, signal.SIGKILL)
    waiter.join(60)
    assert codes == [137]
    assert drained(client) == b""
    seen = state(daemon, container)
    assert (seen["Status"], seen["ExitCode"], seen["OOMKilled"]) == ("exited", 137, False)
    if victim == "supervisor":
        assert seen["Error"].startswith(f"the container's supervisor (process {target}) was killed")
    else:
        assert seen["Error"] == ""
    check_consistent(daemon)
    start(daemon, container)
    assert state(daemon, container)["Error"] == ""
    check_consistent(daemon)
    remove(daemon, container)


@pytest.mark.parametrize("victim", ["supervisor", "process"])
def test_a_restart_policy_acts_on_a_kill_from_outside(daemon: Daemon, image: str, victim: str) -> None:
    container = run(daemon, image, *_ENDLESS, RestartPolicy={"Name": "on-failure"})
    pid = state(daemon, container)["Pid"]
    os.kill(supervisor_of(daemon, container) if victim == "supervisor" else pid, signal.SIGKILL)
    eventually(lambda: state(daemon, container)["RestartCount"] == 1)
    eventually(lambda: state(daemon, container)["Status"] == "running")
    assert state(daemon, container)["Pid"] != pid
    check_consistent(daemon)
    remove(daemon, container)


def test_a_supervisor_killed_with_rm_takes_the_container_along(daemon: Daemon, image: str) -> None:
    container = run(daemon, image, *_ENDLESS, AutoRemove=True, Volumes={"/data": {}})
    os.kill(supervisor_of(daemon, container), signal.SIGKILL)
    eventually(lambda: not exists(daemon, container))
    check_consistent(daemon)
    assert daemon.http("GET", "/volumes").json()["Volumes"] == []


def test_a_process_that_hides_from_the_supervisor_dies_with_it(daemon: Daemon, image: str) -> None:
    container = run(daemon, image, "sh", "-c", "sleep 100000 & echo up; wait", PidMode="host")
    eventually(lambda: b"up" in logs(daemon, container))
    os.kill(supervisor_of(daemon, container), signal.SIGKILL)
    assert wait(daemon, container) == 137
    check_consistent(daemon)
    remove(daemon, container)


@pytest.mark.parametrize("victim", ["supervisor", "process"])
def test_a_paused_container_whose_supervisor_is_killed_ends(daemon: Daemon, image: str, victim: str) -> None:
    container = run(daemon, image, *_ENDLESS)
    assert daemon.http("POST", f"/containers/{container}/pause").status == 204
    pid = state(daemon, container)["Pid"]
    os.kill(supervisor_of(daemon, container) if victim == "supervisor" else pid, signal.SIGKILL)
    if victim == "process":  # a frozen process dies when it is thawed
        assert daemon.http("POST", f"/containers/{container}/unpause").status == 204
    eventually(lambda: state(daemon, container)["Status"] == "exited", "the end of the paused container")
    assert state(daemon, container)["ExitCode"] == 137
    check_consistent(daemon)
    remove(daemon, container)


def test_the_supervisor_of_an_exec_is_killed_and_the_container_lives(daemon: Daemon, image: str) -> None:
    container = run(daemon, image, *_ENDLESS)
    made = daemon.http("POST", f"/containers/{container}/exec", {"Cmd": [*_ENDLESS]}).json()["Id"]
    assert daemon.http("POST", f"/exec/{made}/start", {"Detach": True}).status == 200
    check_consistent(daemon)
    os.kill(supervisor_of(daemon, made), signal.SIGKILL)
    eventually(lambda: not daemon.http("GET", f"/exec/{made}/json").json()["Running"])
    assert daemon.http("GET", f"/exec/{made}/json").json()["ExitCode"] == 137
    assert state(daemon, container)["Status"] == "running"
    assert inspect(daemon, container)["ExecIDs"] is None
    check_consistent(daemon)
    remove(daemon, container)


@pytest.mark.parametrize("paused", [False, True])
def test_supervisors_killed_while_no_daemon_watches(daemon: Daemon, image: str, paused: bool) -> None:
    plain = run(daemon, image, *_ENDLESS, NetworkMode="bridge", **_PORTS)
    wanted = run(daemon, image, *_ENDLESS, RestartPolicy={"Name": "always"})
    exec_id = daemon.http("POST", f"/containers/{plain}/exec", {"Cmd": [*_ENDLESS]}).json()["Id"]
    assert daemon.http("POST", f"/exec/{exec_id}/start", {"Detach": True}).status == 200
    if paused:
        for container in (plain, wanted):
            assert daemon.http("POST", f"/containers/{container}/pause").status == 204
    victims = [supervisor_of(daemon, title) for title in (plain, wanted, exec_id)]
    daemon.kill9()
    for pid in victims:
        os.kill(pid, signal.SIGKILL)
    daemon.start()
    seen = state(daemon, plain)
    assert (seen["Status"], seen["ExitCode"], seen["Pid"]) == ("exited", 137, 0)
    assert "supervisor" in seen["Error"]
    eventually(lambda: state(daemon, wanted)["Status"] == "running")
    assert daemon.http("GET", f"/exec/{exec_id}/json").json()["ExitCode"] == 137
    check_consistent(daemon)
    remove(daemon, plain, wanted)


def test_a_supervisor_that_hangs_does_not_keep_the_daemon_from_starting(daemon: Daemon, image: str) -> None:
    hangs = run(daemon, image, *_ENDLESS)
    lives = run(daemon, image, *_ENDLESS)
    pid = state(daemon, lives)["Pid"]
    made = daemon.http("POST", f"/containers/{lives}/exec", {"Cmd": [*_ENDLESS]}).json()["Id"]
    assert daemon.http("POST", f"/exec/{made}/start", {"Detach": True}).status == 200
    supervisor = supervisor_of(daemon, hangs)
    os.kill(supervisor, signal.SIGSTOP)
    os.kill(supervisor_of(daemon, made), signal.SIGSTOP)
    daemon.kill9()
    daemon.start()
    assert state(daemon, lives)["Pid"] == pid
    seen = state(daemon, hangs)
    assert (seen["Status"], seen["ExitCode"]) == ("exited", 137)
    assert f"supervisor (process {supervisor}) did not answer" in seen["Error"]
    assert daemon.http("GET", f"/exec/{made}/json").json()["ExitCode"] == 137
    check_consistent(daemon)
    remove(daemon, hangs, lives)


def test_a_kill_after_the_end_is_refused_whoever_has_the_pid_now(daemon: Daemon, image: str) -> None:
    container = run(daemon, image, *_ENDLESS)
    assert daemon.http("POST", f"/containers/{container}/kill").status == 204
    refused = daemon.http("POST", f"/containers/{container}/kill")
    assert refused.status == 409 and "is not running" in refused.message
    assert state(daemon, container)["Pid"] == 0
    remove(daemon, container)
