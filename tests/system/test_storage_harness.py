"""The leak checker finds each kind of leak, and a daemon leaves nothing."""

from __future__ import annotations

import os
import socket
import subprocess
from pathlib import Path

import pytest

from tests import leaks
from tests.daemon import Daemon


def new_since(before: set[str]) -> list[str]:
    return sorted(leaks.snapshot() - before)


def test_a_mount_is_found(tmp_path: Path) -> None:
    before = leaks.snapshot()
    target = tmp_path / "with a space"
    target.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "tmpfs", target], check=True)
    try:
        assert new_since(before) == [f"mount {target} (tmpfs)"]
    finally:
        subprocess.run(["umount", target], check=True)
    assert new_since(before) == []


def test_a_cgroup_is_found() -> None:
    before = leaks.snapshot()
    outer = Path("/sys/fs/cgroup/pids") / leaks.unique_name()
    if not outer.parent.is_dir():
        outer = Path("/sys/fs/cgroup") / outer.name
    (outer / "inner").mkdir(parents=True)
    try:
        assert new_since(before) == [f"cgroup {outer}", f"cgroup {outer}/inner"]
    finally:
        (outer / "inner").rmdir()
        outer.rmdir()
    assert new_since(before) == []


def test_a_link_and_a_table_are_found() -> None:
    before, name = leaks.snapshot(), leaks.unique_name()
    subprocess.run(["ip", "link", "add", name, "type", "bridge"], check=True)
    subprocess.run(["nft", "add", "table", "inet", name], check=True)
    try:
        assert new_since(before) == [f"link {name}", f"nftables table inet {name}"]
    finally:
        subprocess.run(["nft", "delete", "table", "inet", name], check=True)
        subprocess.run(["ip", "link", "delete", name], check=True)
    assert new_since(before) == []


def test_a_process_is_found_also_as_a_zombie() -> None:
    before = leaks.snapshot()
    process = subprocess.Popen(["sleep", "600"])
    try:
        (found,) = new_since(before)
        assert found.startswith(f"process {process.pid} ") and "sleep 600" in found
        process.kill()
        os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
        (found,) = new_since(before)
        assert "ended and not reaped" in found
    finally:
        process.wait()
    assert new_since(before) == []


def test_a_descriptor_of_a_namespace_is_found() -> None:
    before = leaks.snapshot()
    descriptor = os.open("/proc/self/ns/net", os.O_RDONLY)
    try:
        (found,) = new_since(before)
        assert found.startswith("descriptor of net:[")
    finally:
        os.close(descriptor)


def test_a_file_in_a_daemon_s_directory_is_found(tmp_path: Path) -> None:
    leaks.own_entries(tmp_path)
    before = leaks.snapshot()
    try:
        (tmp_path / "left").touch()
        assert new_since(before) == [f"file {tmp_path / 'left'}"]
        assert leaks.wait_gone(before, bound_s=0.1) == [f"file {tmp_path / 'left'}"]
    finally:
        leaks.disown_entries(tmp_path)


def test_a_daemon_that_cannot_start_says_why_and_leaves_nothing() -> None:
    with pytest.raises(AssertionError, match=r"(?s)the daemon ended:.*--no-such-option"):
        Daemon("--no-such-option").__enter__()


def test_a_daemon_answers_survives_kill_9_and_leaves_nothing(image: str) -> None:
    with Daemon() as daemon:
        assert daemon.http("GET", "/_ping").body == b"OK"
        assert daemon.load_image() == image
        created = daemon.http("POST", "/containers/create", {"Image": image, "Cmd": ["sleep", "600"]})
        assert created.status == 201, created.body
        container = created.json()["Id"]
        assert daemon.http("POST", f"/containers/{container}/start").status == 204
        daemon.kill9()
        with pytest.raises(OSError):
            daemon.connect()
        daemon.start()
        state = daemon.http("GET", f"/containers/{container}/json").json()["State"]
        assert state["Running"]
        with daemon.connect() as sock:
            sock.sendall(b"GET /_ping HTTP/1.0\r\n\r\n")
            assert sock.recv(100).startswith(b"HTTP/1.")
            sock.shutdown(socket.SHUT_RDWR)
        base = daemon.base
    assert not base.exists()
