"""The command line against a real daemon: terminals, signals, big streams, files."""

from __future__ import annotations

import fcntl
import hashlib
import os
import signal
import struct
import subprocess
import sys
import termios
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.unit.cli_fake_daemon import ROOT, run_cove
from tests.unit.test_cli_run import BOUND_S, Terminal

if TYPE_CHECKING:
    from tests.daemon import Daemon


@pytest.fixture(autouse=True)
def clean(daemon: Daemon) -> Iterator[None]:
    yield
    for container in daemon.client.containers.list(all=True):
        container.remove(force=True, v=True)


def cove(daemon: Daemon, *arguments: str, **options: object) -> subprocess.CompletedProcess[bytes]:
    return run_cove(*arguments, host=daemon.host, **options)


def test_a_terminal_has_the_caller_s_size_and_follows_it(daemon: Daemon, image: str) -> None:
    with Terminal(["run", "--rm", "-it", image, "sh"], daemon.host) as terminal:
        terminal.type(b"stty size\r")
        terminal.expect(b"40 100")
        fcntl.ioctl(terminal.slave, termios.TIOCSWINSZ, struct.pack("HHHH", 50, 120, 0, 0))
        terminal.process.send_signal(signal.SIGWINCH)
        terminal.type(b"while ! stty size | grep '50 120'; do :; done; exit 3\r")
        assert terminal.process.wait(BOUND_S) == 3
        assert termios.tcgetattr(terminal.slave) == terminal.before


def test_detached_by_keys_it_goes_on_and_attach_comes_back(daemon: Daemon, image: str) -> None:
    with Terminal(["run", "-it", "--name", "shell", image, "sh"], daemon.host) as terminal:
        terminal.type(b"echo fir''st\r")
        terminal.expect(b"first")
        terminal.type(b"\x10\x11")
        assert terminal.process.wait(BOUND_S) == 0
    assert cove(daemon, "ps", "--format", "{{.Names}} {{.State}}").stdout == b"shell running\n"
    with Terminal(["attach", "--detach-keys", "ctrl-x,x", "shell"], daemon.host) as terminal:
        terminal.type(b"echo sec''ond\r")
        terminal.expect(b"second")
        terminal.type(b"\x18x")
        assert terminal.process.wait(BOUND_S) == 0
    with Terminal(["attach", "shell"], daemon.host) as terminal:
        terminal.type(b"exit 4\r")
        assert terminal.process.wait(BOUND_S) == 4


def test_ctrl_c_in_a_terminal_is_the_process_s(daemon: Daemon, image: str) -> None:
    script = "trap 'echo inter''rupted; exit 7' INT; echo rea''dy; while :; do sleep 1; done"
    with Terminal(["run", "--rm", "-it", image, "sh", "-c", script], daemon.host) as terminal:
        terminal.expect(b"ready")
        terminal.type(b"\x03")
        terminal.expect(b"interrupted")
        assert terminal.process.wait(BOUND_S) == 7


def test_exec_has_a_terminal_of_its_own(daemon: Daemon, image: str) -> None:
    cove(daemon, "run", "-d", "--name", "box", image, "sleep", "600")
    with Terminal(["exec", "-it", "box", "sh"], daemon.host) as terminal:
        terminal.type(b"stty size; exit 5\r")
        terminal.expect(b"40 100")
        assert terminal.process.wait(BOUND_S) == 5


def test_exec_has_the_exit_status_of_its_process_every_time(daemon: Daemon, image: str) -> None:
    cove(daemon, "run", "-d", "--name", "box", image, "sleep", "600")
    statuses = [cove(daemon, "exec", "box", "sh", "-c", "exit 9").returncode for _ in range(20)]
    assert statuses == [9] * 20


def test_signals_reach_the_process(daemon: Daemon, image: str) -> None:
    script = "trap 'echo got it; exit 6' TERM; echo ready; while :; do sleep 0.1; done"
    with subprocess.Popen(
        [
            sys.executable,
            "-I",
            "-S",
            str(ROOT / "cove/cli/boot.py"),
            "run",
            "--rm",
            image,
            "sh",
            "-c",
            script,
        ],
        env={"COVE_HOST": daemon.host},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"ready\n"
        process.send_signal(signal.SIGTERM)
        assert process.stdout.readline() == b"got it\n"
        assert process.wait(BOUND_S) == 6


def test_big_streams_come_through_whole(daemon: Daemon, image: str) -> None:
    data = os.urandom(8 << 20)
    result = cove(daemon, "run", "--rm", "-i", image, "cat", input=data)
    assert result.returncode == 0
    assert hashlib.sha256(result.stdout).digest() == hashlib.sha256(data).digest()


def test_the_end_of_input_is_seen_while_output_goes_on(daemon: Daemon, image: str) -> None:
    result = cove(daemon, "run", "--rm", "-i", image, "sh", "-c", "wc -c; echo after", input=b"12345")
    assert (result.returncode, result.stdout.split()) == (0, [b"5", b"after"])


def test_logs_follow_until_the_end(daemon: Daemon, image: str) -> None:
    cove(
        daemon,
        "run",
        "-d",
        "--name",
        "counter",
        image,
        "sh",
        "-c",
        "for i in 1 2 3; do echo $i; sleep 0.2; done",
    )
    result = cove(daemon, "logs", "-f", "counter")
    assert (result.returncode, result.stdout) == (0, b"1\n2\n3\n")


def test_a_failed_start_is_127_or_126_and_leaves_nothing(daemon: Daemon, image: str) -> None:
    missing = cove(daemon, "run", "--rm", image, "no-such-command")
    assert missing.returncode == 127
    assert b"no-such-command" in missing.stderr
    directory = cove(daemon, "run", "--rm", image, "/bin")
    assert directory.returncode == 126, directory.stderr
    assert cove(daemon, "ps", "-aq").stdout == b""


def test_copies_keep_trees_as_they_are(daemon: Daemon, image: str, tmp_path: Path) -> None:
    source = tmp_path / "source"
    (source / "deep" / "er").mkdir(parents=True)
    (source / "deep" / "er" / "big").write_bytes(os.urandom(3 << 20))
    (source / "link").symlink_to("deep/er/big")
    (source / "run").write_text("#!/bin/sh\necho ran\n")
    (source / "run").chmod(0o755)
    assert cove(daemon, "run", "-d", "--name", "box", image, "sleep", "600").returncode == 0
    assert cove(daemon, "cp", f"{source}/.", "box:/into").stderr == b""
    assert cove(daemon, "exec", "box", "/into/run").stdout == b"ran\n"
    assert cove(daemon, "cp", "box:/into", str(tmp_path / "back")).stderr == b""
    back = tmp_path / "back"
    assert (back / "deep/er/big").read_bytes() == (source / "deep/er/big").read_bytes()
    assert os.readlink(back / "link") == "deep/er/big"
    assert (back / "run").stat().st_mode & 0o777 == 0o755
    assert cove(daemon, "cp", "-L", "box:/into/link", str(tmp_path / "followed")).returncode == 0
    assert (tmp_path / "followed").read_bytes() == (source / "deep/er/big").read_bytes()


def test_images_go_through_a_pipe(daemon: Daemon, image: str) -> None:
    saved = cove(daemon, "save", image)
    assert saved.returncode == 0
    assert cove(daemon, "load", input=saved.stdout).stdout == f"Loaded image: {image}\n".encode()
    broken = cove(daemon, "load", input=saved.stdout[: len(saved.stdout) // 2])
    assert broken.returncode == 1
    assert broken.stderr.startswith(b"error: ")


def test_a_plan_is_printed_and_explained(daemon: Daemon, image: str) -> None:
    result = cove(daemon, "plan", "--read-only", "--network", "none", image, "true")
    assert result.returncode == 0, result.stderr
    text = result.stdout.decode()
    assert "pivot" in text
    assert "/ID" in text
    assert text.count("\n") > 20
    assert cove(daemon, "ps", "-aq").stdout == b"", "a plan creates nothing"
    unknown = cove(daemon, "plan", "no-such-image")
    assert unknown.returncode == 1
    assert b"No such image" in unknown.stderr


def test_events_until_now_end(daemon: Daemon, image: str) -> None:
    cove(daemon, "run", "--rm", "--name", "short", image, "true")
    result = cove(
        daemon,
        "events",
        "--since",
        "1h",
        "--until",
        "0s",
        "--filter",
        "container=short",
        "--format",
        "{{.Action}}",
    )
    actions = result.stdout.decode().split()
    assert [action for action in actions if action in ("create", "start", "die", "destroy")] == [
        "create",
        "start",
        "die",
        "destroy",
    ]


def test_an_attached_run_goes_on_while_the_daemon_is_killed_and_started(
    fresh_daemon: Daemon, image: str
) -> None:
    """Its streams are the supervisor's; its exit code comes from the new daemon, though --rm removed it."""
    script = "echo first; read word; echo $word; exit 7"
    command = [sys.executable, "-I", "-S", str(ROOT / "cove/cli/boot.py")]
    with subprocess.Popen(
        [*command, "-H", fresh_daemon.host, "run", "--rm", "-i", image, "sh", "-c", script],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    ) as process:
        assert process.stdin is not None and process.stdout is not None
        assert process.stdout.readline() == b"first\n"
        fresh_daemon.kill9()
        process.stdin.write(b"second\n")
        process.stdin.flush()
        assert process.stdout.readline() == b"second\n"
        fresh_daemon.start()
        output, error = process.communicate(timeout=BOUND_S)
        assert (process.returncode, output, error) == (7, b"", b"")
    assert fresh_daemon.http("GET", "/containers/json?all=1").json() == []


def test_a_password_is_asked_for_and_not_shown(daemon: Daemon, tmp_path: Path) -> None:
    from tests.pushkit import PushRegistry

    with PushRegistry(password="ada:s3cret") as registry:
        command = ["login", registry.host]
        with Terminal(command, daemon.host, {"DOCKER_CONFIG": str(tmp_path)}) as terminal:
            terminal.expect(b"Username: ")
            terminal.type(b"ada\r")
            terminal.expect(b"Password: ")
            terminal.type(b"s3cret\r")
            terminal.expect(b"Login Succeeded")
            assert terminal.process.wait(BOUND_S) == 0
            assert b"s3cret" not in terminal.seen and b"stored unencrypted" in terminal.seen
            assert termios.tcgetattr(terminal.slave) == terminal.before
        assert registry.host in (tmp_path / "config.json").read_text()
