"""`cove update --mount-add` and `--mount-rm`: mounts that come and go while a container runs, and attacks on that."""

from __future__ import annotations

import subprocess
from pathlib import Path
from typing import Any

import pytest

from tests.apikit import create, eventually, exists, inspect, remove, start, state
from tests.daemon import Daemon

ROOT = Path(__file__).resolve().parents[2]

# exchanges a directory and a link to /etc for ever
EXCHANGE = """
mkdir -p /swap/real
while :; do
  mv /swap/real /swap/kept && ln -s /etc /swap/real && rm /swap/real && mv /swap/kept /swap/real
done
"""


def change(daemon: Daemon, container: str, **body: Any) -> Any:
    return daemon.http("POST", f"/cove/v1/update?container={container}", body)


def add(
    daemon: Daemon, container: str, source: str | Path, target: str, kind: str = "bind", **more: Any
) -> Any:
    mount = {"Type": kind, "Source": str(source), "Target": target, **more}
    return change(daemon, container, MountsAdd=[mount])


def sleeper(daemon: Daemon, image: str, script: str = "", **more: Any) -> str:
    container = create(daemon, image, "sh", "-c", script + "sleep 99999", StopSignal="KILL", **more)
    start(daemon, container)
    return container


def inside(daemon: Daemon, container: str) -> Path:
    return Path(f"/proc/{state(daemon, container)['Pid']}/root")


def mounted(daemon: Daemon, container: str) -> list[str]:
    """All mount points of a container, in the order of their mounting."""
    lines = Path(f"/proc/{state(daemon, container)['Pid']}/mountinfo").read_text().splitlines()
    return [line.split()[4] for line in lines]


def shell(daemon: Daemon, container: str, script: str) -> bool:
    command = [str(ROOT / "bin/cove"), "-H", daemon.host, "exec", container, "sh", "-c", script]
    return subprocess.run(command, capture_output=True, timeout=60, check=False).returncode == 0


def test_mounts_come_and_go_and_stay_for_the_next_start(daemon: Daemon, image: str, tmp_path: Path) -> None:
    (tmp_path / "dir").mkdir()
    (tmp_path / "dir/note").write_text("hello")
    (tmp_path / "file").write_text("one file")
    container = sleeper(daemon, image)
    before = mounted(daemon, container)
    assert add(daemon, container, tmp_path / "dir", "/made/rw").status == 200
    assert add(daemon, container, tmp_path / "dir", "/ro", ReadOnly=True).status == 200
    assert add(daemon, container, tmp_path / "file", "/etc/added").status == 200
    assert add(daemon, container, f"live-{container[:8]}", "/vol", kind="volume").status == 200
    try:
        assert shell(
            daemon, container, "echo new >/made/rw/new && echo data >/vol/data && cat /ro/note /etc/added"
        )
        assert (tmp_path / "dir/new").read_text() == "new\n"
        assert not shell(daemon, container, "echo >/ro/new") and not shell(
            daemon, container, "mount -o remount,rw /ro"
        )
        assert daemon.http("DELETE", f"/volumes/live-{container[:8]}").status == 409
        shown = inspect(daemon, container)
        assert {m["Destination"] for m in shown["Mounts"]} == {"/made/rw", "/ro", "/etc/added", "/vol"}
        assert len(shown["HostConfig"]["Mounts"]) == 4

        assert change(daemon, container, MountsRemove=["/etc/added"]).status == 200
        assert (inside(daemon, container) / "etc/added").read_text() == ""
        assert daemon.http("POST", f"/containers/{container}/restart?t=0").status == 204
        assert shell(daemon, container, "test -e /made/rw/new && test -e /vol/data && ! echo >/ro/new")
        refused = change(daemon, container, MountsRemove=["/ro"])
        assert refused.status == 409 and "cove recreate --mount-rm /ro" in refused.json()["message"]

        daemon.http("POST", f"/containers/{container}/stop?t=0")
        assert change(daemon, container, MountsRemove=["/ro", "/vol", "/made/rw"]).status == 200
        start(daemon, container)
        assert sorted(mounted(daemon, container)) == sorted(before)
        assert not inspect(daemon, container)["HostConfig"]["Mounts"]
    finally:
        remove(daemon, container)
        assert daemon.http("DELETE", f"/volumes/live-{container[:8]}").status == 204


def test_what_can_not_be_is_refused_and_leaves_nothing(daemon: Daemon, image: str, tmp_path: Path) -> None:
    (tmp_path / "shared").mkdir()
    script = "ln -s /etc /link; ln -s /proc/1/root /out; mkdir -p /real; ln -s ../etc /real/up; touch /plain;"
    container = sleeper(daemon, image, script + "touch /ready;", Binds=[f"{tmp_path}:/given"])
    try:
        eventually(lambda: (inside(daemon, container) / "ready").exists())
        before = mounted(daemon, container)
        for target, said in (
            ("/", "can't be '/'"),
            ("/proc", "nothing is mounted"),
            ("/proc/kcore", "nothing is mounted"),
            ("/x/../sys/firmware", "nothing is mounted"),
            ("/dev/shm", "nothing is mounted"),
            ("/given", "already"),
            ("/etc/hosts", "already"),
            ("/link", "symlink"),
            ("/link/x", "symlink"),
            ("/out/tmp", "symlink"),
            ("/real/up/x", "symlink"),
            ("/plain/x", "no directory"),
            ("/plain", "alike"),
            ("relative", "absolute"),
        ):
            refused = add(daemon, container, tmp_path, target)
            assert refused.status == 400 and said in refused.json()["message"], (target, refused.json())
        for body in (
            {"Type": "tmpfs", "Target": "/t"},
            {"Type": "volume", "Target": "/t"},
            {"Type": "bind", "Source": str(tmp_path / "none"), "Target": "/t"},
            {
                "Type": "bind",
                "Source": str(tmp_path),
                "Target": "/t",
                "BindOptions": {"Propagation": "rshared"},
            },
        ):
            assert change(daemon, container, MountsAdd=[body]).status == 400, body
        assert change(daemon, container, MountsRemove=["/none"]).status == 400
        for target in ("/proc/kcore", "/etc/hosts"):
            assert change(daemon, container, MountsRemove=[target]).status == 400
        # the second of two fails: the first, and the volume made for it, go again
        volume = {"Type": "volume", "Source": f"gone-{container[:8]}", "Target": "/t"}
        bad = {"Type": "bind", "Source": str(tmp_path), "Target": "/link"}
        assert change(daemon, container, MountsAdd=[volume, bad]).status == 400
        assert daemon.http("GET", f"/volumes/gone-{container[:8]}").status == 404
        assert mounted(daemon, container) == before
        assert len(inspect(daemon, container)["Mounts"]) == 1
    finally:
        remove(daemon, container)


def test_a_read_only_root_gets_no_new_target(daemon: Daemon, image: str, tmp_path: Path) -> None:
    container = sleeper(daemon, image, ReadonlyRootfs=True)
    try:
        refused = add(daemon, container, tmp_path, "/not/there")
        assert refused.status == 400 and "read-only" in refused.json()["message"]
        assert daemon.http("POST", f"/containers/{container}/pause").status == 204
        assert add(daemon, container, tmp_path, "/tmp").status == 200
        assert daemon.http("POST", f"/containers/{container}/unpause").status == 204
        assert change(daemon, container, MountsRemove=["/tmp"]).status == 200
    finally:
        remove(daemon, container)


def test_a_container_that_exchanges_its_target_gets_a_mount_there_or_none(
    daemon: Daemon, image: str, tmp_path: Path
) -> None:
    (tmp_path / "secret").write_text("x")
    container = sleeper(daemon, image, EXCHANGE)
    try:
        before = mounted(daemon, container)
        for _ in range(12):
            answer = add(daemon, container, tmp_path, "/swap/real")
            assert answer.status in (200, 400, 409), answer.json()
            if answer.status == 200:
                change(daemon, container, MountsRemove=["/swap/real"])
            more = [place for place in mounted(daemon, container) if place not in before]
            assert all(place.startswith("/swap/") for place in more)
            assert not (inside(daemon, container) / "etc/secret").exists()
        assert set(before) <= set(mounted(daemon, container))
    finally:
        remove(daemon, container)


def test_what_covers_an_added_mount_is_not_detached(daemon: Daemon, image: str, tmp_path: Path) -> None:
    container = sleeper(daemon, image, CapAdd=["SYS_ADMIN"], SecurityOpt=["seccomp=unconfined"])
    try:
        assert add(daemon, container, tmp_path, "/x").status == 200
        if not shell(daemon, container, "mount -t tmpfs none /x"):
            pytest.skip("the image's mount(8) can't mount here")
        assert change(daemon, container, MountsRemove=["/x"]).status == 409
        assert shell(daemon, container, "umount /x && umount /x && rmdir /x && ln -s /proc /x")
        assert change(daemon, container, MountsRemove=["/x"]).status == 400
        assert "/proc" in mounted(daemon, container)
    finally:
        remove(daemon, container)


def test_a_daemon_that_is_killed_keeps_what_it_added(
    fresh_daemon: Daemon, image: str, tmp_path: Path
) -> None:
    daemon = fresh_daemon
    container = sleeper(daemon, image)
    before = mounted(daemon, container)
    assert add(daemon, container, tmp_path, "/x").status == 200
    daemon.kill9()
    daemon.start()
    assert exists(daemon, container) and "/x" in mounted(daemon, container)
    assert change(daemon, container, MountsRemove=["/x"]).status == 200
    assert mounted(daemon, container) == before
