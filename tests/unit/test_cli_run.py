"""run, exec, attach and friends against a fake daemon: the order of requests, streams, signals, the terminal."""

from __future__ import annotations

import fcntl
import json
import os
import select
import signal
import socket
import struct
import subprocess
import sys
import termios
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.unit.cli_fake_daemon import ROOT, Answer, FakeDaemon, Request, frame, run_cove

ID = "c" * 64
BOUND_S = 30.0


class Container:
    """The daemon's side of one container: what its process does is up to the test."""

    def __init__(self, path: Path, process: Callable[[Request, Container], int]) -> None:
        self.process = process
        self.exit: int | None = None
        self.ended = threading.Event()
        self.signals: list[str] = []
        self.signalled = threading.Event()
        self.sizes: list[tuple[str, str]] = []
        self.resized = threading.Event()
        self.start: Answer = (204, None)
        self.started = threading.Event()
        self.daemon = FakeDaemon(
            path,
            {
                "POST /containers/create": lambda _: (201, {"Id": ID, "Warnings": []}),
                f"POST /containers/{ID}/attach": self._attach,
                f"POST /containers/{ID}/wait": self._wait,
                f"POST /containers/{ID}/start": self._start,
                f"POST /containers/{ID}/kill": self._kill,
                f"POST /containers/{ID}/resize": self._resize,
            },
        )

    def _attach(self, request: Request) -> None:
        request.sock.sendall(b"HTTP/1.1 101 UPGRADED\r\nConnection: Upgrade\r\nUpgrade: tcp\r\n\r\n")
        if not self.started.wait(BOUND_S):
            return
        self.exit = self.process(request, self)
        request.sock.shutdown(socket.SHUT_RDWR)
        self.ended.set()

    def _wait(self, request: Request) -> None:
        request.sock.sendall(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
        self.ended.wait(BOUND_S)
        data = json.dumps({"StatusCode": self.exit}).encode()
        request.sock.sendall(b"%x\r\n%s\r\n0\r\n\r\n" % (len(data), data))

    def _start(self, request: Request) -> Answer:
        if self.start[0] == 204:
            self.started.set()
        return self.start

    def _kill(self, request: Request) -> Answer:
        self.signals += request.query["signal"]
        self.signalled.set()
        return 204, None

    def _resize(self, request: Request) -> Answer:
        self.sizes.append((request.query["h"][0], request.query["w"][0]))
        self.resized.set()
        return 200, None

    def close(self) -> None:
        self.started.set()
        self.ended.set()
        self.daemon.close()


@pytest.fixture
def make(tmp_path: Path) -> Iterator[Callable[[Callable[[Request, Container], int]], Container]]:
    made: list[Container] = []

    def build(process: Callable[[Request, Container], int]) -> Container:
        made.append(Container(tmp_path / "d.sock", process))
        return made[-1]

    yield build
    for container in made:
        container.close()


Make = Callable[[Callable[[Request, Container], int]], Container]


def hello(request: Request, _: Container) -> int:
    request.sock.sendall(frame(1, b"out 1\n") + frame(2, b"err\n")[:5])
    request.sock.sendall(frame(2, b"err\n")[5:] + frame(1, b"out 2\n"))
    return 7


def cat(request: Request, _: Container) -> int:
    """Echo standard input until its end, then say so."""
    while data := request.sock.recv(65536):
        request.sock.sendall(frame(1, data))
    request.sock.sendall(frame(1, b"<end>"))
    return 0


def test_run_attaches_and_waits_before_it_starts(make: Make) -> None:
    container = make(hello)
    result = run_cove("run", "--rm", "debian", "sh", host=container.daemon.address)
    assert result.stderr == b"err\n"
    assert result.stdout == b"out 1\nout 2\n"
    assert result.returncode == 7
    paths = [request.path.rsplit("/", 1)[1] for request in container.daemon.requests]
    assert paths[0] == "create"
    assert set(paths[1:3]) == {"attach", "wait"}
    assert paths[3] == "start"
    wait = container.daemon.find("POST", "/wait")
    assert wait.query["condition"] == ["removed"]
    attach = container.daemon.find("POST", "/attach")
    assert attach.query == {"stream": ["1"], "stdout": ["1"], "stderr": ["1"]}


def test_run_without_rm_waits_for_the_next_exit(make: Make) -> None:
    container = make(hello)
    assert run_cove("run", "debian", host=container.daemon.address).returncode == 7
    assert container.daemon.find("POST", "/wait").query["condition"] == ["next-exit"]


def test_detached_run_prints_the_id_and_attaches_nothing(make: Make, tmp_path: Path) -> None:
    container = make(hello)
    cidfile = tmp_path / "cid"
    result = run_cove("run", "-d", "--cidfile", str(cidfile), "debian", host=container.daemon.address)
    assert (result.returncode, result.stdout.decode()) == (0, ID + "\n")
    assert cidfile.read_text() == ID
    assert [request.path.rsplit("/", 1)[1] for request in container.daemon.requests] == ["create", "start"]


def test_an_existing_cidfile_is_refused_before_anything_is_created(make: Make, tmp_path: Path) -> None:
    container = make(hello)
    cidfile = tmp_path / "cid"
    cidfile.write_text("old")
    result = run_cove("run", "-d", "--cidfile", str(cidfile), "debian", host=container.daemon.address)
    assert result.returncode == 125
    assert result.stderr.decode() == f"error: --cidfile {cidfile}: File exists; remove it, or name another\n"
    assert container.daemon.requests == []
    assert cidfile.read_text() == "old"


def test_a_cidfile_goes_away_when_create_fails(make: Make, tmp_path: Path) -> None:
    container = make(hello)
    container.daemon.handlers["POST /containers/create"] = lambda _: (409, {"message": "name in use"})
    result = run_cove("run", "--cidfile", str(tmp_path / "cid"), "debian", host=container.daemon.address)
    assert (result.returncode, result.stderr) == (125, b"error: name in use\n")
    assert not (tmp_path / "cid").exists()


@pytest.mark.parametrize(
    ("message", "status"),
    [
        ('exec: "nope": executable file not found in $PATH', 127),
        ("exec /x: permission denied", 126),
        ("port 80 is in use", 125),
    ],
)
def test_a_failed_start_has_the_shell_s_exit_status(make: Make, message: str, status: int) -> None:
    container = make(hello)
    container.start = (400, {"message": message})
    result = run_cove("run", "debian", "nope", host=container.daemon.address)
    assert (result.returncode, result.stderr.decode()) == (status, f"error: {message}\n")


def test_an_unknown_image_says_what_to_do(make: Make) -> None:
    container = make(hello)
    container.daemon.handlers["POST /containers/create"] = lambda _: (
        404,
        {"message": "No such image: x:latest"},
    )
    result = run_cove("run", "--pull", "never", "x", host=container.daemon.address)
    assert result.returncode == 125
    assert result.stderr.decode().startswith(
        "error: No such image: x:latest; cove images lists what is there"
    )


def test_input_is_passed_on_and_its_end_too(make: Make) -> None:
    container = make(cat)
    data = os.urandom(1 << 20)
    result = run_cove("run", "-i", "debian", "cat", host=container.daemon.address, input=data)
    assert result.returncode == 0
    assert result.stdout == data + b"<end>"
    assert container.daemon.find("POST", "/create").json()["StdinOnce"] is True


def test_an_end_of_the_process_ends_run_though_input_goes_on(make: Make) -> None:
    container = make(hello)
    read_end, write_end = os.pipe()
    try:
        result = run_cove("run", "-i", "debian", host=container.daemon.address, stdin=read_end)
    finally:
        os.close(read_end)
        os.close(write_end)
    assert result.returncode == 7


def test_a_closed_output_ends_run_quietly(make: Make) -> None:
    def yes(request: Request, _: Container) -> int:
        try:
            while True:
                request.sock.sendall(frame(1, b"y\n" * 4096))
        except OSError:
            return 0

    container = make(yes)
    command = [sys.executable, "-I", "-S", str(ROOT / "cove/cli/boot.py"), "run", "debian"]
    with subprocess.Popen(
        command,
        env={"COVE_HOST": container.daemon.address},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    ) as process:
        assert process.stdout is not None and process.stderr is not None
        assert process.stdout.read(4) == b"y\ny\n"
        process.stdout.close()
        assert process.wait(BOUND_S) == 141
        assert process.stderr.read() == b""


@pytest.mark.parametrize("closed", ["0<&-", "1>&-", "2>&-", "0<&- 1>&- 2>&-"])
def test_closed_standard_streams_do_no_harm(make: Make, closed: str) -> None:
    container = make(cat)
    command = f"exec {sys.executable} -I -S {ROOT}/cove/cli/boot.py run -i debian cat {closed}"
    result = subprocess.run(
        ["sh", "-c", command],
        env={"COVE_HOST": container.daemon.address},
        input=b"data",
        capture_output=True,
        timeout=BOUND_S,
    )
    assert (result.returncode, result.stderr) == (0, b"")
    if "1>&-" not in closed:
        assert result.stdout == (b"<end>" if "0<&-" in closed else b"data<end>")


def test_signals_are_passed_on(make: Make) -> None:
    def until_signalled(request: Request, container: Container) -> int:
        request.sock.sendall(frame(1, b"ready\n"))
        container.signalled.wait(BOUND_S)
        return 143

    container = make(until_signalled)
    command = [sys.executable, "-I", "-S", str(ROOT / "cove/cli/boot.py"), "run", "debian"]
    with subprocess.Popen(
        command,
        env={"COVE_HOST": container.daemon.address},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"ready\n"
        process.send_signal(signal.SIGTERM)
        assert process.wait(BOUND_S) == 143
    assert container.signals == ["SIGTERM"]


def test_a_terminal_is_required_for_it(make: Make) -> None:
    container = make(hello)
    result = run_cove("run", "-it", "debian", host=container.daemon.address)
    assert result.returncode == 1
    assert b"the input device is not a TTY" in result.stderr
    assert container.daemon.requests == []


# --- the terminal -------------------------------------------------------------------------


class Terminal:
    """A command on a pseudo-terminal of its own."""

    def __init__(self, arguments: list[str], host: str, environment: dict[str, str] | None = None) -> None:
        self.master, self.slave = os.openpty()
        fcntl.ioctl(self.slave, termios.TIOCSWINSZ, struct.pack("HHHH", 40, 100, 0, 0))
        self.before = termios.tcgetattr(self.slave)
        self.process = subprocess.Popen(
            [sys.executable, "-I", "-S", str(ROOT / "cove/cli/boot.py"), *arguments],
            env={"COVE_HOST": host, "TERM": "xterm", **(environment or {})},
            stdin=self.slave,
            stdout=self.slave,
            stderr=self.slave,
            start_new_session=True,
        )
        self.seen = b""

    def expect(self, text: bytes) -> None:
        deadline = time.monotonic() + BOUND_S
        while text not in self.seen:
            ready, _, _ = select.select([self.master], [], [], max(deadline - time.monotonic(), 0))
            assert ready, f"{text!r} did not come; there was {self.seen!r}"
            self.seen += os.read(self.master, 65536)

    def type(self, keys: bytes) -> None:
        os.write(self.master, keys)

    def __enter__(self) -> Terminal:
        return self

    def __exit__(self, *_: object) -> None:
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait(BOUND_S)
        os.close(self.master)
        os.close(self.slave)


def shell(request: Request, container: Container) -> int:
    """Answers `size`, ends at `exit`, and is left by ctrl-p ctrl-q, as the daemon does it."""
    request.sock.sendall(b"$ ")
    seen = b""
    while data := request.sock.recv(4096):
        seen += data
        if b"\x10\x11" in seen:
            request.sock.shutdown(socket.SHUT_RDWR)
            container.ended.wait(BOUND_S)  # it goes on
            return 0
        request.sock.sendall(data)
        if seen.endswith(b"exit\r"):
            return 3
    return 1


def test_a_terminal_is_raw_meanwhile_and_restored_afterwards(make: Make) -> None:
    container = make(shell)
    with Terminal(["run", "-it", "debian"], container.daemon.address) as terminal:
        terminal.expect(b"$ ")
        terminal.type(b"\x03exit\r")  # ctrl-c is the process's: it isn't a signal for the command line
        assert terminal.process.wait(BOUND_S) == 3
        terminal.expect(b"exit\r")
        assert termios.tcgetattr(terminal.slave) == terminal.before
    body = container.daemon.find("POST", "/create").json()
    assert (body["Tty"], body["HostConfig"]["ConsoleSize"]) == (True, [40, 100])
    assert container.sizes[0] == ("40", "100")


def test_a_new_size_is_passed_on(make: Make) -> None:
    container = make(shell)
    with Terminal(["run", "-it", "debian"], container.daemon.address) as terminal:
        terminal.expect(b"$ ")
        assert container.resized.wait(BOUND_S)
        container.resized.clear()
        fcntl.ioctl(terminal.slave, termios.TIOCSWINSZ, struct.pack("HHHH", 50, 120, 0, 0))
        terminal.process.send_signal(signal.SIGWINCH)
        assert container.resized.wait(BOUND_S)
        assert container.sizes[-1] == ("50", "120")
        terminal.type(b"exit\r")
        assert terminal.process.wait(BOUND_S) == 3


def test_detach_keys_leave_the_container_and_restore_the_terminal(make: Make) -> None:
    container = make(shell)
    with Terminal(["run", "-it", "debian"], container.daemon.address) as terminal:
        terminal.expect(b"$ ")
        terminal.type(b"\x10\x11")
        assert terminal.process.wait(BOUND_S) == 0
        assert termios.tcgetattr(terminal.slave) == terminal.before
    assert not container.ended.is_set()


def test_being_killed_softly_restores_the_terminal(make: Make) -> None:
    container = make(shell)
    with Terminal(["run", "-it", "debian"], container.daemon.address) as terminal:
        terminal.expect(b"$ ")
        terminal.process.send_signal(signal.SIGTERM)
        assert terminal.process.wait(BOUND_S) == 128 + signal.SIGTERM
        assert termios.tcgetattr(terminal.slave) == terminal.before


# --- exec, logs, wait ---------------------------------------------------------------------


def test_exec_has_the_exit_status_of_its_process(make: Make) -> None:
    container = make(hello)

    # the daemon may notice the end of the process after the end of its output
    states = [(200, {"ExitCode": None, "Running": True}), (200, {"ExitCode": 9, "Running": False})]

    def start(request: Request) -> None:
        request.sock.sendall(b"HTTP/1.1 101 UPGRADED\r\n\r\n")
        hello(request, container)
        request.sock.shutdown(socket.SHUT_RDWR)

    container.daemon.handlers |= {
        "POST /containers/web/exec": lambda _: (201, {"Id": "e1"}),
        "POST /exec/e1/start": start,
        "GET /exec/e1/json": lambda _: states.pop(0),
    }
    result = run_cove(
        "exec", "-e", "A=b", "-w", "/srv", "web", "sh", "-c", "x", host=container.daemon.address
    )
    assert (result.returncode, result.stdout, result.stderr) == (9, b"out 1\nout 2\n", b"err\n")
    body = container.daemon.find("POST", "/exec").json()
    assert (body["Cmd"], body["Env"], body["WorkingDir"]) == (["sh", "-c", "x"], ["A=b"], "/srv")


def test_logs_keep_streams_apart(make: Make) -> None:
    container = make(hello)
    container.daemon.handlers |= {
        "GET /containers/web/json": lambda _: (200, {"Config": {"Tty": False}}),
        "GET /containers/web/logs": lambda _: (200, frame(1, b"a\n") + frame(2, b"b\n") + frame(1, b"c\n")),
    }
    result = run_cove("logs", "--tail", "5", "-t", "web", host=container.daemon.address)
    assert (result.returncode, result.stdout, result.stderr) == (0, b"a\nc\n", b"b\n")
    query = container.daemon.find("GET", "/logs").query
    assert (query["tail"], query["timestamps"]) == (["5"], ["1"])


@pytest.mark.parametrize(
    ("given", "sent"),
    [("2026-01-31T09:30:00Z", "1769851800"), ("1700000000.5", "1700000000.5"), ("2026-01-31", "1769817600")],
)
def test_times_are_sent_as_seconds(make: Make, given: str, sent: str) -> None:
    container = make(hello)
    container.daemon.handlers |= {
        "GET /containers/web/json": lambda _: (200, {"Config": {"Tty": True}}),
        "GET /containers/web/logs": lambda _: (200, b""),
    }
    assert run_cove("logs", "--since", given, "web", host=container.daemon.address).returncode == 0
    assert container.daemon.find("GET", "/logs").query["since"] == [sent]


def test_one_failure_does_not_stop_the_others(make: Make) -> None:
    container = make(hello)
    container.daemon.handlers |= {
        "POST /containers/a/stop": lambda _: (204, None),
        "POST /containers/b/stop": lambda _: (404, {"message": "No such container: b"}),
        "POST /containers/c/stop": lambda _: (304, None),
    }
    result = run_cove("stop", "-t", "3", "a", "b", "c", host=container.daemon.address)
    assert result.returncode == 1
    assert result.stdout == b"a\nc\n"
    assert result.stderr == b"error: No such container: b\n"


# --- finding the daemon -------------------------------------------------------------------


def test_the_daemon_is_found_by_flag_then_cove_host_then_docker_host(tmp_path: Path) -> None:
    daemons: list[FakeDaemon] = []
    try:
        for name in ("flag", "cove", "docker"):
            answer: Any = (200, [{"Id": name * 12, "Names": ["/" + name], "Created": 0}])
            handlers = {"GET /containers/json": lambda _, answer=answer: answer}
            daemons.append(FakeDaemon(tmp_path / name, handlers))
        flag, cove, docker = (daemon.address for daemon in daemons)
        names = "--format={{.Names}}"
        assert run_cove("-H", flag, "ps", names, host=cove, env={"DOCKER_HOST": docker}).stdout == b"flag\n"
        assert run_cove("ps", names, host=cove, env={"DOCKER_HOST": docker}).stdout == b"cove\n"
        assert run_cove("ps", names, host="", env={"DOCKER_HOST": docker}).stdout == b"docker\n"
    finally:
        for daemon in daemons:
            daemon.close()


@pytest.mark.parametrize(
    ("host", "sentence"),
    [
        ("unix:///nowhere/d.sock", "no daemon listens at unix:///nowhere/d.sock: start one"),
        ("tcp://127.0.0.1:1", "no daemon listens at tcp://127.0.0.1:1: start one"),
        ("ftp://x", "ftp://x: expected unix:///path, tcp://host:port or ssh://user@host"),
        ("tcp://x:99999", "tcp://x:99999: expected a port from 1 to 65535"),
        ("unix:///nowhere/" + "x" * 200, "no daemon listens at unix:///nowhere/xxx"),
    ],
)
def test_no_daemon_is_one_clear_sentence(host: str, sentence: str) -> None:
    result = run_cove("ps", host=host)
    assert result.returncode == 125
    assert sentence in result.stderr.decode()
    assert result.stderr.count(b"\n") == 1


def test_a_socket_with_a_long_path_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    directory = tmp_path / ("long" * 30)
    directory.mkdir()
    monkeypatch.chdir(directory)
    daemon = FakeDaemon(Path("d.sock"), {"GET /containers/json": lambda _: (200, [])})
    try:
        assert run_cove("ps", "-q", host=f"unix://{directory}/d.sock").returncode == 0
    finally:
        daemon.close()


def test_an_answer_that_is_not_http_is_one_clear_sentence(tmp_path: Path) -> None:
    def nonsense(request: Request) -> None:
        request.sock.sendall(b"220 mail.example.org ESMTP\r\n")
        request.sock.shutdown(socket.SHUT_RDWR)

    daemon = FakeDaemon(tmp_path / "d.sock", {"GET /containers/json": nonsense})
    try:
        result = run_cove("ps", host=daemon.address)
    finally:
        daemon.close()
    assert result.returncode == 125
    assert b"is this a daemon's socket?" in result.stderr


def test_the_command_line_s_own_start_loads_nothing_heavy() -> None:
    code = (
        f"import sys; sys.path.append({str(ROOT)!r}); import cove.cli.main, cove.cli.run; "
        "heavy = {'re', 'enum', 'json', 'socket', 'argparse', 'typing', 'dataclasses', 'msgspec', 'signal'};"
        "print(sorted(heavy & set(sys.modules)))"
    )
    result = subprocess.run(
        [sys.executable, "-I", "-S", "-c", code], capture_output=True, text=True, timeout=60, check=True
    )
    assert result.stdout == "[]\n"
