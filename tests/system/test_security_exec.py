"""What a hostile container can do to a process that joins it: look at it, trace it, lie to it."""

from __future__ import annotations

import time
from typing import Any

from tests.daemon import Daemon

BOUND_S = 60.0

# looks through the root of every process that it sees, as fast as a shell can
_WATCH = """
echo up
while :; do
    for p in /proc/[0-9]*; do
        if test -e $p/root$MARK; then echo "escaped by $p"; exit; fi
    done
done
"""


def start(daemon: Daemon, image: str, *args: str, body: dict[str, Any] | None = None, **host: Any) -> str:
    spec = {"Image": image, "Cmd": list(args), "HostConfig": {"NetworkMode": "none", **host}, **(body or {})}
    made = daemon.http("POST", "/containers/create", spec)
    assert made.status == 201, made.message
    container = str(made.json()["Id"])
    started = daemon.http("POST", f"/containers/{container}/start")
    assert started.status == 204, started.message
    return container


def execute(daemon: Daemon, container: str, *args: str, **more: Any) -> tuple[int, bytes]:
    """Run a process in the container; its exit code and its raw output."""
    body = {"Cmd": list(args), "AttachStdout": True, "AttachStderr": True, **more}
    made = daemon.http("POST", f"/containers/{container}/exec", body)
    assert made.status == 201, made.message
    name = made.json()["Id"]
    answer = daemon.http("POST", f"/exec/{name}/start", {"Detach": False, "Tty": bool(more.get("Tty"))})
    assert answer.status == 200, answer.message
    return int(daemon.http("GET", f"/exec/{name}/json").json()["ExitCode"]), answer.body


def output(daemon: Daemon, container: str) -> bytes:
    return daemon.http("GET", f"/containers/{container}/logs?stdout=1&stderr=1").body


def await_output(daemon: Daemon, container: str, wanted: bytes) -> None:
    deadline = time.monotonic() + BOUND_S
    while wanted not in output(daemon, container):
        assert time.monotonic() < deadline, f"{wanted!r} wasn't said within {BOUND_S:.0f} s"
        time.sleep(0.02)  # logs have no event


def test_who_may_trace_a_container_sees_nothing_of_the_host_in_an_exec(daemon: Daemon, image: str) -> None:
    """CVE-2016-9962: CAP_SYS_PTRACE overrules the dumpable attribute, so a child that still had the host's mounts
    must not be among the container's processes."""
    mark = daemon.base / "of-the-host"
    mark.write_text("secret")
    watch = ("sh", "-c", _WATCH)
    container = start(daemon, image, *watch, body={"Env": [f"MARK={mark}"]}, CapAdd=["SYS_PTRACE"])
    try:
        await_output(daemon, container, b"up")
        for _ in range(40):
            assert execute(daemon, container, "true")[0] == 0
        assert b"escaped" not in output(daemon, container)
    finally:
        daemon.http("DELETE", f"/containers/{container}?force=1")


def test_an_exec_with_a_terminal_has_it_as_its_controlling_one(daemon: Daemon, image: str) -> None:
    """The process is split off by one that ends: a session's leader would take the terminal along."""
    container = start(daemon, image, "sleep", "1000")
    try:
        code, said = execute(
            daemon, container, "sh", "-c", "sleep 0.2; echo mine > /dev/tty; exit 7", Tty=True
        )
        assert (code, said.strip()) == (7, b"mine")
    finally:
        daemon.http("DELETE", f"/containers/{container}?force=1")


def test_an_exec_that_fails_at_the_last_moment_leaves_no_process(daemon: Daemon, image: str) -> None:
    container = start(daemon, image, "sleep", "1000")
    try:
        code, said = execute(daemon, container, "missing")
        assert code == 127 and b'exec: "missing"' in said
        _, said = execute(daemon, container, "sh", "-c", "echo /proc/[0-9]*")
        assert len(said.split(b"/proc/")) - 1 == 2, said  # the first process and the shell
    finally:
        daemon.http("DELETE", f"/containers/{container}?force=1")


def test_who_may_trace_a_container_sees_nothing_of_the_host_when_another_joins_it(
    daemon: Daemon, image: str
) -> None:
    """Joining a pid namespace at the start needs a /proc of it, which only a process that lives there can open."""
    mark = daemon.base / "of-the-host"
    mark.write_text("secret")
    watch = ("sh", "-c", _WATCH)
    container = start(daemon, image, *watch, body={"Env": [f"MARK={mark}"]}, CapAdd=["SYS_PTRACE"])
    try:
        await_output(daemon, container, b"up")
        for _ in range(10):
            joined = start(daemon, image, "sleep", "1000", PidMode=f"container:{container}")
            code, said = execute(daemon, joined, "sh", "-c", "busybox tr '\\0' ' ' < /proc/1/cmdline; mount")
            assert code == 0 and b"$MARK" in said, "its /proc isn't that of the namespace"
            assert b"proc on /proc type proc (rw,nosuid,nodev,noexec,relatime)" in said
            assert daemon.http("DELETE", f"/containers/{joined}?force=1").status == 204
        assert b"escaped" not in output(daemon, container)
    finally:
        daemon.http("DELETE", f"/containers/{container}?force=1")


def test_the_first_process_of_a_container_that_joined_another_has_its_terminal(
    daemon: Daemon, image: str
) -> None:
    container = start(daemon, image, "sleep", "1000")
    try:
        script = ("sh", "-c", "sleep 0.2; echo mine > /dev/tty; exit 7")
        joined = start(daemon, image, *script, body={"Tty": True}, PidMode=f"container:{container}")
        assert daemon.http("POST", f"/containers/{joined}/wait").json()["StatusCode"] == 7
        assert output(daemon, joined).strip() == b"mine"
        assert daemon.http("DELETE", f"/containers/{joined}").status == 204
    finally:
        daemon.http("DELETE", f"/containers/{container}?force=1")
