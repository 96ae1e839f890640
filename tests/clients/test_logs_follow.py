"""Following logs by real clients: the daemon goes away and comes back, the container starts again, files rotate."""

from __future__ import annotations

import subprocess
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any

import pytest

from tests.daemon import Daemon

ROOT = Path(__file__).resolve().parents[2]
BOUND_S = 60.0
SLOW = "i=0; while [ $i -lt 80 ]; do echo line $i; echo err $i >&2; i=$((i+1)); sleep 0.03; done"


class Follower:
    """A client that follows, and what it has written so far."""

    def __init__(self, *command: str, env: dict[str, str]) -> None:
        self.process = subprocess.Popen(
            command,
            env={"PATH": "/usr/bin:/bin:/usr/local/bin", **env},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        self.out, self.err = bytearray(), bytearray()
        self._threads = [
            self._reader(self.process.stdout, self.out),
            self._reader(self.process.stderr, self.err),
        ]

    def _reader(self, stream: IO[bytes] | None, into: bytearray) -> threading.Thread:
        assert stream is not None

        def read() -> None:
            while data := stream.read1(65536):  # type: ignore[attr-defined]
                into.extend(data)

        thread = threading.Thread(target=read, daemon=True)
        thread.start()
        return thread

    def wait(self) -> int:
        status = self.process.wait(BOUND_S)
        for thread in self._threads:
            thread.join(BOUND_S)
        return status

    def __enter__(self) -> Follower:
        return self

    def __exit__(self, *_: object) -> None:
        self.process.kill()
        self.process.wait()
        for stream in (self.process.stdout, self.process.stderr):
            assert stream is not None
            stream.close()


def eventually(condition: Callable[[], object]) -> None:
    deadline = time.monotonic() + BOUND_S
    while not condition():
        assert time.monotonic() < deadline, "it didn't come about"
        time.sleep(0.02)


def cove_logs(daemon: Daemon, *arguments: str) -> Follower:
    return Follower(str(ROOT / "bin/cove"), "logs", *arguments, env={"COVE_HOST": daemon.host})


@pytest.mark.parametrize(("how", "tty"), [("kill9", False), ("terminate", True)])
def test_cove_logs_goes_on_when_the_daemon_comes_back(
    fresh_daemon: Daemon, image: str, how: str, tty: bool
) -> None:
    daemon = fresh_daemon
    made = daemon.client.containers.create(image, ["sh", "-c", SLOW], tty=tty)
    made.start()
    with cove_logs(daemon, "-f", made.name) as follower:
        for number in (5, 30):
            eventually(lambda number=number: b"line %d" % number in follower.out)  # type: ignore[misc]
            getattr(daemon, how)()
            time.sleep(0.1)  # lines are written meanwhile
            daemon.start()
        assert follower.wait() == 0, follower.err
    end = b"\r\n" if tty else b"\n"
    both = b"".join(b"line %d" % n + end + (b"err %d" % n + end if tty else b"") for n in range(80))
    assert bytes(follower.out) == both
    assert tty or bytes(follower.err) == b"".join(b"err %d\n" % n for n in range(80))
    daemon.client.containers.get(made.id).remove(force=True)


def test_a_follower_of_a_container_that_is_removed_ends(daemon: Daemon, image: str) -> None:
    made = daemon.client.containers.run(image, ["sh", "-c", "echo one; sleep 600"], detach=True)
    with (
        cove_logs(daemon, "--follow", made.id) as ours,
        Follower("docker", "logs", "--follow", made.id, env={"DOCKER_HOST": daemon.host}) as theirs,
    ):
        eventually(lambda: ours.out == theirs.out == b"one\n")
        made.remove(force=True)
        assert ours.wait() == 0 and theirs.wait() == 0
        assert bytes(ours.out) == bytes(theirs.out) == b"one\n"


def test_what_a_second_run_prints_follows_the_first(daemon: Daemon, image: str) -> None:
    made = daemon.client.containers.run(image, ["sh", "-c", "echo run; printf half; sleep 600"], detach=True)
    try:
        eventually(lambda: made.logs() == b"run\nhalf")
        made.restart(timeout=0)
        eventually(lambda: made.logs() == b"run\nhalfrun\nhalf")
        assert made.logs(tail=0) == b""
        assert made.logs(tail=1) == b"half"
    finally:
        made.remove(force=True)


def test_times_with_fractions_select_lines(daemon: Daemon, image: str) -> None:
    script = "for i in 1 2 3 4; do echo $i; sleep 0.3; done"
    made = daemon.client.containers.run(image, ["sh", "-c", script], detach=True)
    try:
        made.wait(timeout=60)
        stamps = [line.split()[0].decode() for line in made.logs(timestamps=True).splitlines()]

        def logs(**query: str) -> bytes:
            text = "&".join(f"{name}={value}" for name, value in query.items())
            return daemon.http("GET", f"/containers/{made.id}/logs?stdout=1&{text}").body[8:]

        def epoch(stamp: str) -> str:
            second = time.strptime(stamp[:19], "%Y-%m-%dT%H:%M:%S")
            import calendar

            return f"{calendar.timegm(second)}.{stamp[20:29]}"

        assert logs(since=epoch(stamps[2]), until=epoch(stamps[2])) == b"3\n"
        assert logs(since=epoch(stamps[3])) == b"4\n"
        assert logs(until=epoch(stamps[0])) == b"1\n"
        assert logs(until=stamps[0]) == b"1\n"
    finally:
        made.remove(force=True)


def test_details_are_what_the_options_choose(daemon: Daemon, image: str) -> None:
    config: Any = {"Type": "local", "Config": {"labels": "team", "env": "STAGE", "tag": "{{.Name}}"}}
    made = daemon.client.containers.create(
        image,
        ["echo", "hi"],
        log_config=config,
        labels={"team": "a b"},
        environment={"STAGE": "x,y"},
        name="detailed",
    )
    try:
        made.start()
        made.wait(timeout=60)
        command = ["docker", "logs", "--details", made.name]
        shown = subprocess.run(command, env={"DOCKER_HOST": daemon.host, "PATH": "/usr/local/bin:/usr/bin"},
                               capture_output=True, timeout=60).stdout  # fmt: skip
        assert shown == b"STAGE=x%2Cy,tag=detailed,team=a+b hi\n"
    finally:
        made.remove(force=True)
