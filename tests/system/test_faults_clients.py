"""The daemon dies while clients are served, many containers start, a policy backs off, containers end; and doubles."""

from __future__ import annotations

import os
import signal
import socket
import sqlite3
import subprocess
import sys
from pathlib import Path

from cove.daemon import plan_names
from tests.apikit import (
    Call,
    create,
    eventually,
    logs,
    remove,
    run,
    state,
    wait,
)
from tests.consistency import check_consistent, find_supervisors, read_store
from tests.daemon import ROOT, Daemon
from tests.native_build import build

_ENDLESS = ("sleep", "100000")
_TALKS = ("sh", "-c", "n=0; while :; do n=$((n+1)); echo line $n; sleep 0.02; done")
BOUND_S = 60.0


def open_stream(daemon: Daemon, request: str, *, upgrade: bool = False) -> socket.socket:
    """A streaming answer, past its header."""
    sock = daemon.connect(BOUND_S)
    more = "Connection: Upgrade\r\nUpgrade: tcp\r\n" if upgrade else ""
    sock.sendall(f"{request} HTTP/1.1\r\nHost: x\r\n{more}\r\n".encode())
    head = b""
    while b"\r\n\r\n" not in head:
        got = sock.recv(1)
        assert got, head
        head += got
    assert head.split()[1] in (b"200", b"101"), head
    return sock


def read_until(sock: socket.socket, wanted: bytes) -> bytes:
    """Everything up to the first read that brings `wanted`."""
    data = b""
    while wanted not in data:
        got = sock.recv(65536)
        assert got, f"the stream ended before {wanted!r}: {data[-200:]!r}"
        data += got
    return data


def ends(sock: socket.socket) -> bool:
    """Whether the stream comes to its end."""
    with sock:
        try:
            while sock.recv(65536):
                pass
        except ConnectionResetError:
            pass
    return True


def test_an_attached_client_outlives_the_daemon(daemon: Daemon, image: str) -> None:
    talks = run(daemon, image, *_TALKS)
    echoes = run(daemon, image, "cat", OpenStdin=True, StdinOnce=True, AttachStdin=True)
    output = open_stream(daemon, f"POST /containers/{talks}/attach?stream=1&stdout=1", upgrade=True)
    typed = open_stream(daemon, f"POST /containers/{echoes}/attach?stream=1&stdin=1&stdout=1", upgrade=True)
    read_until(output, b"line")
    daemon.kill9()
    read_until(output, b"line")  # the supervisor serves it, daemon or not
    typed.sendall(b"hello\n")
    assert read_until(typed, b"hello\n").endswith(b"hello\n")
    daemon.start()
    read_until(output, b"line")
    typed.sendall(b"again\n")
    read_until(typed, b"again\n")
    typed.shutdown(socket.SHUT_WR)
    assert ends(typed)
    assert wait(daemon, echoes) == 0
    check_consistent(daemon)
    remove(daemon, talks, echoes)
    assert ends(output)


def test_followers_waiters_and_listeners_are_cut_off_and_can_come_again(daemon: Daemon, image: str) -> None:
    container = run(daemon, image, *_TALKS)
    follower = open_stream(daemon, f"GET /containers/{container}/logs?follow=1&stdout=1")
    listener = open_stream(daemon, "GET /events")
    waiter = open_stream(daemon, f"POST /containers/{container}/wait")
    read_until(follower, b"line")
    daemon.kill9()
    assert ends(follower) and ends(listener) and ends(waiter)
    daemon.start()
    follower = open_stream(daemon, f"GET /containers/{container}/logs?follow=1&stdout=1")
    listener = open_stream(daemon, "GET /events")
    waiter = open_stream(daemon, f"POST /containers/{container}/wait")
    read_until(follower, b"line")
    assert daemon.http("POST", f"/containers/{container}/kill").status == 204
    read_until(waiter, b'"StatusCode":137')
    read_until(listener, b'"die"')
    read_until(follower, b"0\r\n\r\n")  # the last chunk
    for sock in (listener, waiter, follower):
        sock.close()
    numbers = [int(line.split()[-1]) for line in logs(daemon, container).splitlines()]
    assert numbers == list(range(1, len(numbers) + 1))  # not a line was lost
    remove(daemon, container)
    check_consistent(daemon)


def test_twenty_starts_at_once_are_cut_off(daemon: Daemon, image: str) -> None:
    ports = {"80/tcp": [{"HostPort": ""}]}
    containers = [
        create(daemon, image, *_ENDLESS, NetworkMode="bridge", PortBindings=ports) for _ in range(20)
    ]
    calls = [Call(daemon, "POST", f"/containers/{container}/start") for container in containers]
    eventually(lambda: sum(not call.is_alive() for call in calls) >= 5, "the first answers")
    daemon.kill9()
    acknowledged = [c for c, call in zip(containers, calls, strict=True) if call.result() is not None]
    daemon.start()
    check_consistent(daemon)
    assert len(acknowledged) >= 5
    assert all(state(daemon, container)["Status"] == "running" for container in acknowledged)
    for container in containers:
        assert daemon.http("POST", f"/containers/{container}/start").status in (204, 304)
    check_consistent(daemon)
    remove(daemon, *containers)
    check_consistent(daemon)


def test_a_back_off_goes_on_after_the_daemons_death(daemon: Daemon, image: str) -> None:
    container = run(daemon, image, "sh", "-c", "exit 3", RestartPolicy={"Name": "always"})
    eventually(lambda: state(daemon, container)["RestartCount"] >= 4, "some restarts")
    daemon.kill9()
    daemon.start()
    seen = state(daemon, container)["RestartCount"]
    assert seen >= 4
    eventually(lambda: state(daemon, container)["RestartCount"] > seen, "one more restart")
    assert daemon.http("POST", f"/containers/{container}/stop").status in (204, 304)
    daemon.restart()
    eventually(lambda: state(daemon, container)["RestartCount"] >= 1, "always starts at the daemon's start")
    remove(daemon, container)
    check_consistent(daemon)


def test_a_paused_container_stays_paused(daemon: Daemon, image: str) -> None:
    container = run(daemon, image, *_TALKS)
    assert daemon.http("POST", f"/containers/{container}/pause").status == 204
    pid = state(daemon, container)["Pid"]
    daemon.kill9()
    daemon.start()
    check_consistent(daemon)
    seen = state(daemon, container)
    assert (seen["Status"], seen["Pid"]) == ("paused", pid)
    length = len(logs(daemon, container))
    assert daemon.http("POST", f"/containers/{container}/unpause").status == 204
    eventually(lambda: len(logs(daemon, container)) > length, "output after unpausing")
    remove(daemon, container)
    check_consistent(daemon)


def test_what_ends_while_no_daemon_runs_is_settled_at_the_next_start(daemon: Daemon, image: str) -> None:
    script = "trap 'exit 21' USR1; echo up; while :; do sleep 0.05; done"
    plain = run(daemon, image, "sh", "-c", script)
    published = run(
        daemon, image, "sh", "-c", script, NetworkMode="bridge", PortBindings={"80/tcp": [{"HostPort": ""}]}
    )
    again = run(daemon, image, "sh", "-c", script, RestartPolicy={"Name": "on-failure"})
    gone = run(daemon, image, "sh", "-c", script, AutoRemove=True)
    asked = run(daemon, image, "sh", "-c", script, RestartPolicy={"Name": "unless-stopped"})
    everyone = (plain, published, again, gone, asked)
    for container in everyone:
        eventually(lambda c=container: b"up" in logs(daemon, c), "the trap")  # type: ignore[misc]
    pids = {container: state(daemon, container)["Pid"] for container in everyone}
    Call(daemon, "POST", f"/containers/{asked}/stop?t=-1&signal=USR2")  # which the first process ignores
    states = daemon.data_root / "state.db"
    eventually(
        lambda: not read_store(states).objects("states/")[asked].get("wanted"), "the wish to stop, committed"
    )
    daemon.kill9()
    for container in everyone:
        os.kill(pids[container], signal.SIGUSR1)
    exits = [daemon.run_dir / "containers" / container / "exit" for container in everyone]
    eventually(lambda: all(path.exists() for path in exits), "the exit files")
    daemon.start()
    for container in (plain, published, asked):
        seen = state(daemon, container)
        assert (seen["Status"], seen["ExitCode"], seen["Error"]) == ("exited", 21, "")
        assert seen["FinishedAt"] > seen["StartedAt"]
        assert wait(daemon, container) == 21
    eventually(lambda: state(daemon, again)["Status"] == "running", "the restart by policy")
    assert daemon.http("GET", f"/containers/{gone}/json").status == 404
    check_consistent(daemon)
    remove(daemon, *everyone)
    check_consistent(daemon)


# --- daemons that must not start ------------------------------------------------------------------


def refused_start(daemon: Daemon, *options: str) -> str:
    """What a second daemon says when it may not start."""
    done = subprocess.run(
        [sys.executable, "-m", "cove.daemon", "--native", str(build("native") / "cove-init"), *options],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=BOUND_S,
    )
    assert done.returncode == 1 and done.stderr.count("\n") == 1, done.stderr
    return done.stderr.strip()


def test_a_second_daemon_is_refused_and_disturbs_nothing(daemon: Daemon, image: str, tmp_path: Path) -> None:
    container = run(daemon, image, *_ENDLESS, NetworkMode="bridge")
    pid = state(daemon, container)["Pid"]
    data, run_dir = str(daemon.data_root), str(daemon.run_dir)
    said = refused_start(daemon, "--data-root", str(tmp_path / "other"), "--run-dir", run_dir)
    assert said == (
        f"cove daemon: a daemon is running already in {run_dir}: stop it, or choose another --run-dir"
    )
    said = refused_start(daemon, "--data-root", data, "--run-dir", str(tmp_path / "run"))
    assert said == (
        f"cove daemon: the store {data}/state.db is in use by another Cove daemon: "
        "stop that one, or give this one another --data-root"
    )
    parent = plan_names(tmp_path / "run").cgroup_parent
    assert not list(Path("/sys/fs/cgroup").glob(f"**/{parent}")), "the refused daemon left a cgroup"
    assert state(daemon, container)["Pid"] == pid
    check_consistent(daemon)
    remove(daemon, container)


def test_a_damaged_store_is_told_and_nothing_is_destroyed(daemon: Daemon, image: str) -> None:
    container = run(daemon, image, *_ENDLESS)
    pid = state(daemon, container)["Pid"]
    daemon.terminate()
    store = daemon.data_root / "state.db"
    good = store.read_bytes()
    options = ("--data-root", str(daemon.data_root), "--run-dir", str(daemon.run_dir))
    damages = {
        "is damaged": b"\0" * 4096 + good[4096:],
        "another program": _foreign_database(daemon.base / "foreign.db"),
    }
    try:
        for words, content in damages.items():
            store.write_bytes(content)
            said = refused_start(daemon, *options)
            assert words in said and str(store) in said, said
            assert store.read_bytes() == content
            assert (daemon.data_root / "containers" / container).is_dir()
            assert [s.title for s in find_supervisors(daemon)] == [container]
    finally:
        store.write_bytes(good)
        for end in ("-wal", "-shm"):
            Path(f"{store}{end}").unlink(missing_ok=True)
    with sqlite3.connect(store) as database:  # a record that no Cove wrote, in a store that is whole
        [(value,)] = database.execute("SELECT value FROM kv WHERE key = ?", (f"states/{container}",))
        database.execute("UPDATE kv SET value = ? WHERE key = ?", (b'{"status": 7}', f"states/{container}"))
    database.close()
    said = refused_start(daemon, *options)
    assert f"states/{container}" in said and "status" in said, said
    with sqlite3.connect(store) as database:
        database.execute("UPDATE kv SET value = ? WHERE key = ?", (value, f"states/{container}"))
    database.close()
    daemon.start()
    assert state(daemon, container)["Pid"] == pid
    check_consistent(daemon)
    remove(daemon, container)


def _foreign_database(path: Path) -> bytes:
    with sqlite3.connect(path) as database:
        database.execute("CREATE TABLE other (x)")
    database.close()
    return path.read_bytes()
