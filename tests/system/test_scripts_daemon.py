"""The command line starts the default daemon where none runs: once, with its words where it can't, by root only."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from cove.daemon import plan_names
from tests import leaks

ROOT = Path(__file__).resolve().parents[2]
BOUND_S = 100.0


class Place:
    """A run dir and a data root of a test's own, and what a command needs to find them."""

    def __init__(self) -> None:
        self.base = Path(tempfile.mkdtemp(prefix="cove-cli-"))
        self.run_dir, self.data_root = self.base / "run", self.base / "data"
        self.names = plan_names(self.run_dir)
        self.env = {
            "PATH": os.environ["PATH"],
            "HOME": str(self.base),
            "COVE_RUN_DIR": str(self.run_dir),
            "COVE_DATA_ROOT": str(self.data_root),
        }
        leaks.own_directory(self.base)
        for name in (self.names.bridge, self.names.table, self.names.cgroup_parent):
            leaks.own_prefix(name)

    def run(self, *command: str, **options: object) -> subprocess.CompletedProcess[str]:
        return subprocess.run(  # type: ignore[call-overload, no-any-return]
            command,
            cwd=ROOT,
            env=self.env,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=BOUND_S,
            check=False,
            **options,
        )

    def cove(self, *arguments: str, **options: object) -> subprocess.CompletedProcess[str]:
        return self.run(str(ROOT / "bin" / "cove"), *arguments, **options)


@pytest.fixture
def place() -> Iterator[Place]:
    made = Place()
    yield made
    if made.data_root.is_dir():
        uninstalled = made.run("sh", "scripts/uninstall.sh")
        assert uninstalled.returncode == 0, uninstalled.stderr
        assert not made.run_dir.exists()
    subprocess.run(["rm", "-rf", "--one-file-system", str(made.base)], check=True)


def test_a_command_starts_the_daemon_and_the_next_one_finds_it(place: Place) -> None:
    first = place.cove("ps", "-q")
    assert (first.returncode, first.stdout, first.stderr) == (0, "", "")
    pid = (place.run_dir / "daemon.lock").read_text()
    assert place.cove("ps", "-q").returncode == 0
    assert (place.run_dir / "daemon.lock").read_text() == pid
    working_directory = os.readlink(f"/proc/{pid.strip()}/cwd")
    assert working_directory == "/", "a daemon must not keep its caller's file system busy"
    assert os.getsid(int(pid)) == int(pid)


def test_commands_that_race_start_one_daemon(place: Place) -> None:
    racers = [
        subprocess.Popen(
            [str(ROOT / "bin" / "cove"), "ps", "-q"],
            env=place.env,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        for _ in range(5)
    ]
    for racer in racers:
        out, err = racer.communicate(timeout=BOUND_S)
        assert (racer.returncode, out, err) == (0, b"", b"")
    log = (place.run_dir / "daemon.log").read_text()
    assert log.count("answers on") == 1, log


def test_a_daemon_that_cannot_start_says_why(place: Place) -> None:
    place.base.joinpath("file").write_text("")
    place.env["COVE_DATA_ROOT"] = str(place.base / "file" / "data")
    result = place.cove("ps")
    assert result.returncode == 125
    assert result.stderr.startswith("error: the daemon did not start: ")
    assert "Not a directory" in result.stderr
    assert str(place.run_dir / "daemon.log") in result.stderr
    assert result.stderr.count("\n") == 1


def test_without_root_there_is_one_clear_sentence(place: Place) -> None:
    if place.run("sh", "-c", f"cd {ROOT}", user=65534, group=65534, extra_groups=[]).returncode:
        pytest.skip("other users can't enter this checkout")
    os.chmod(place.base, 0o711)
    result = place.cove("ps", user=65534, group=65534, extra_groups=[])
    assert result.returncode == 125
    assert result.stderr == (
        f"error: no daemon runs at unix://{place.run_dir}/docker.sock, "
        "and only root can start one: use sudo cove …\n"
    )
    assert place.cove("ps", "-q").returncode == 0
    result = place.cove("ps", user=65534, group=65534, extra_groups=[])
    assert result.returncode == 125
    assert result.stderr == (
        f"error: no permission for {place.run_dir}/docker.sock: "
        "run as root (sudo), or join the group that owns it\n"
    )


def test_cove_daemon_becomes_the_daemon(place: Place) -> None:
    result = place.cove("daemon", "--help")
    assert result.returncode == 0
    assert "--data-root" in result.stdout
    assert "--uninstall" in result.stdout


def test_systemd_s_socket_is_taken_over(place: Place) -> None:
    place.run_dir.mkdir()
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    path = place.run_dir / "docker.sock"
    listener.bind(str(path))
    listener.listen(8)
    notify = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    notify.bind(str(place.base / "notify"))
    notify.settimeout(BOUND_S)

    def as_systemd_does() -> None:
        os.dup2(listener.fileno(), 3)

    with open(place.base / "log", "wb") as log:
        daemon = subprocess.Popen(
            ["sh", "-c", f"LISTEN_PID=$$ exec {ROOT}/bin/cove daemon"],
            env={**place.env, "LISTEN_FDS": "1", "NOTIFY_SOCKET": str(place.base / "notify")},
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            preexec_fn=as_systemd_does,
            pass_fds=(3,),
        )
    try:
        listener.close()
        assert b"READY=1" in notify.recv(4096)
        inode = path.stat().st_ino
        result = place.cove("-H", f"unix://{path}", "ps", "-q")
        assert (result.returncode, result.stderr) == (0, "")
        assert path.stat().st_ino == inode, "the socket is systemd's: it isn't made anew"
    finally:
        notify.close()
        daemon.terminate()
        daemon.wait(BOUND_S)


def test_units_are_filled_in(tmp_path: Path) -> None:
    subprocess.run(
        ["sh", str(ROOT / "scripts" / "install-systemd.sh")],
        env={"PATH": os.environ["PATH"], "DESTDIR": str(tmp_path)},
        check=True,
        timeout=60,
    )
    units = tmp_path / "etc" / "systemd" / "system"
    service = (units / "cove.service").read_text()
    assert f"ExecStart={ROOT}/bin/cove daemon\n" in service
    assert "KillMode=process" in service
    assert "@" not in service
    assert "ListenStream=/run/cove/docker.sock\n" in (units / "cove.socket").read_text()
    verify = shutil.which("systemd-analyze")
    if verify is not None:
        said = subprocess.run(
            [verify, "verify", str(units / "cove.service"), str(units / "cove.socket")],
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        assert "cove." not in said.stderr, said.stderr
