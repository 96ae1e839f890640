"""The stock command line on a terminal, and its streams: sizes, keys, signals, attach, logs that follow."""

from __future__ import annotations

import os
import signal
import termios
import threading
import time
from collections.abc import Iterator
from typing import TYPE_CHECKING

import pytest

from tests.clients.dockercli import BOUND_S, Docker, clean, eventually

if TYPE_CHECKING:
    from tests.daemon import Daemon

SHELL = "trap 'echo got int; exit 7' INT; trap 'echo got term; exit 8' TERM; echo ready; while :; do sleep 0.05; done"


@pytest.fixture(scope="module")
def docker(daemon: Daemon) -> Iterator[Docker]:
    docker = Docker(daemon.host)
    yield docker
    docker.close()


@pytest.fixture(autouse=True)
def cleaned(daemon: Daemon) -> Iterator[None]:
    yield
    clean(daemon.client)


def test_a_terminal_has_the_caller_s_size_follows_it_and_is_given_back(docker: Docker, image: str) -> None:
    with docker.terminal("run", "--rm", "-it", image, "sh") as terminal:
        # the client tells the size once the container runs; an old one not before
        terminal.enter(b"until stty size | grep '40 100'; do sleep 0.05; done\r")
        terminal.expect(b"\n40 100")
        terminal.resize(50, 120)
        terminal.enter(b"while ! stty size | grep '50 120'; do sleep 0.05; done; exit 3\r")
        while not terminal.ended():  # the first signal may come before the client listens
            terminal.process.send_signal(signal.SIGWINCH)
            time.sleep(0.05)
        assert terminal.wait() == 3
        assert termios.tcgetattr(terminal.slave) == terminal.before


def test_control_c_is_the_process_s_and_so_are_its_exit_codes(docker: Docker, image: str) -> None:
    with docker.terminal("run", "--rm", "-it", image, "sh", "-c", SHELL) as terminal:
        terminal.expect(b"ready")
        terminal.enter(b"\x03")
        terminal.expect(b"got int")
        assert terminal.wait() == 7
    with docker.terminal("run", "--rm", "-it", image, "cat") as terminal:
        terminal.enter(b"echoed\r")
        terminal.expect(b"echoed\r\nechoed")
        terminal.enter(b"\x04")
        assert terminal.wait() == 0


def test_detached_by_keys_it_runs_on_and_can_be_attached_to_again(docker: Docker, image: str) -> None:
    with docker.terminal("run", "-it", "--name", "box", image, "sh") as terminal:
        terminal.enter(b"echo fir''st\r")
        terminal.expect(b"first")
        terminal.enter(b"\x10\x11")
        assert terminal.wait() == 0
    assert docker("ps", "--format", "{{.Names}} {{.State}}").out == "box running\n"
    with docker.terminal("attach", "--detach-keys", "ctrl-x,q", "box") as terminal:
        terminal.enter(b"echo sec''ond\r")
        terminal.expect(b"second")
        terminal.enter(b"\x18q")
        terminal.wait()
    with docker.terminal("attach", "box") as terminal:
        terminal.enter(b"exit 4\r")
        assert terminal.wait() == 4
    assert docker("logs", "box").out.replace("\r", "").count("first") >= 1


def test_two_clients_see_the_same_output(docker: Docker, image: str) -> None:
    docker("run", "-dit", "--name", "box", image, "sh")
    with docker.terminal("attach", "box") as one, docker.terminal("attach", "box") as two:
        two.enter(b"echo li''stening\r")
        two.expect(b"listening")
        one.enter(b"echo fo''r both\r")
        one.expect(b"for both")
        two.expect(b"for both")
        two.enter(b"exit 5\r")
        assert (one.wait(), two.wait()) == (5, 5)


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 7), (signal.SIGTERM, 8)])
def test_signals_are_passed_on_to_the_process(docker: Docker, image: str, number: int, code: int) -> None:
    with docker.start("run", "--rm", image, "sh", "-c", SHELL, stdin=False) as process:
        assert process.line() == b"ready\n"
        process.process.send_signal(number)
        assert process.line().startswith(b"got ")
        assert process.wait() == code


def test_without_sig_proxy_a_signal_ends_the_client_alone(docker: Docker, image: str) -> None:
    docker("run", "-d", "--name", "box", image, "sh", "-c", "while :; do echo tick; sleep 0.1; done")
    arguments = ("attach", "--sig-proxy=false", "--no-stdin", "box")
    with docker.start(*arguments, stdin=False) as process:
        assert process.line() == b"tick\n"
        while process.process.poll() is None:  # newer command lines end at the third
            process.process.send_signal(signal.SIGINT)
            time.sleep(0.05)
    assert docker("inspect", "-f", "{{.State.Status}}", "box").word == "running"


def test_the_end_of_input_is_passed_on_while_output_goes_on(docker: Docker, image: str) -> None:
    script = "while read line; do echo got $line; done; echo end; sleep 0.1; echo after"
    with docker.start("run", "--rm", "-i", image, "sh", "-c", script) as process:
        process.write(b"one\n")
        assert process.line() == b"got one\n"
        process.close_input()
        assert process.rest() == b"end\nafter\n"
        assert process.wait() == 0


def test_a_client_that_leaves_doesn_t_hold_the_container_up(docker: Docker, image: str) -> None:
    script = "yes | head -c 3000000; touch /done; sleep 600"
    with docker.start("run", "--name", "box", image, "sh", "-c", script) as client:
        assert client.line() == b"y\n"
    eventually(lambda: docker("exec", "box", "ls", "/done", code=None).code == 0)


def test_a_slow_reader_gets_everything(docker: Docker, image: str) -> None:
    with docker.start("run", "--rm", image, "sh", "-c", "yes 0123456 | head -n 200000") as process:
        assert process.line() == b"0123456\n"
        time.sleep(0.3)  # the reader is the slow one
        assert len(process.rest()) == 200_000 * 8 - 8
        assert process.wait() == 0


def test_start_attached_brings_output_input_and_the_exit_code(docker: Docker, image: str) -> None:
    docker("create", "-i", "--name", "box", image, "sh", "-c", "cat; echo end; exit 6")
    assert docker("start", "-ai", "box", input=b"into it\n", code=6).out == "into it\nend\n"
    assert docker("start", "-ai", "box", input=b"", code=6).out == "end\n"
    assert docker("start", "box").out == "box\n"


def test_exec_attached_detached_and_on_a_terminal(docker: Docker, image: str) -> None:
    docker("run", "-d", "--name", "box", "-e", "OUTER=1", image, "sleep", "600")
    result = docker(
        "exec", "-w", "/tmp", "-e", "A=b", "-u", "1000", "box", "sh", "-c",
        "pwd; echo $A$OUTER; id -u >&2; exit 9", code=9,
    )  # fmt: skip
    assert (result.out, result.err) == ("/tmp\nb1\n", "1000\n")
    data = os.urandom(1 << 20)
    assert docker("exec", "-i", "box", "cat", input=data).raw == data
    assert docker("exec", "-d", "box", "sh", "-c", "touch /tmp/made").out == ""
    eventually(lambda: docker("exec", "box", "ls", "/tmp/made", code=None).code == 0)
    with docker.terminal("exec", "-it", "box", "sh") as terminal:
        terminal.enter(b"until stty size | grep '40 100'; do sleep 0.05; done; exit 5\r")
        terminal.expect(b"40 100")
        assert terminal.wait() == 5
    assert (
        "executable file not found"
        in docker("exec", "box", "nosuch", code=127).out + docker("exec", "box", "nosuch", code=127).err
    )
    assert docker("exec", "box", "/etc", code=126).code == 126
    caps = "grep CapEff /proc/self/status"
    plain = docker("exec", "box", "sh", "-c", caps).out
    assert int(docker("exec", "--privileged", "box", "sh", "-c", caps).out.split()[1], 16) > int(
        plain.split()[1], 16
    )
    assert "No such container: nobody" in docker("exec", "nobody", "true", code=1).err
    docker("stop", "-t", "0", "box")
    assert "is not running" in docker("exec", "box", "true", code=1).err


def test_exec_on_a_terminal_can_be_detached_from(docker: Docker, image: str) -> None:
    docker("run", "-d", "--name", "box", image, "sleep", "600")
    with docker.terminal("exec", "-it", "--detach-keys", "ctrl-a,d", "box", "sh") as terminal:
        terminal.enter(b"echo he''re; touch /tmp/mark\r")
        terminal.expect(b"here")
        terminal.enter(b"\x01d")
        terminal.wait()
    assert "sh" in docker("top", "box", "-eo", "pid,comm").out


def test_logs_are_chosen_by_time_count_and_stream(docker: Docker, image: str) -> None:
    docker("run", "--name", "box", image, "sh", "-c", "for i in 1 2 3; do echo $i; done; echo e >&2")
    assert docker("logs", "box").out == "1\n2\n3\n"
    assert docker("logs", "box").err == "e\n"
    assert docker("logs", "-n", "2", "box").out + docker("logs", "--tail", "2", "box").err == "3\ne\n"
    assert docker("logs", "--tail", "0", "box").out == ""
    stamped = docker("logs", "-t", "box").lines
    assert [line.split()[1] for line in stamped] == ["1", "2", "3"]
    first = stamped[0].split()[0]
    assert docker("logs", "--since", "10m", "box").lines == ["1", "2", "3"]
    assert docker("logs", "--until", "10m", "box").out == ""
    assert docker("logs", "--since", first, "box").lines == ["1", "2", "3"]
    assert docker("logs", "--since", "2099-01-01T00:00:00Z", "box").out == ""
    assert "invalid" in docker("logs", "--since", "yesterday", "box", code=1).err
    assert "No such container: nobody" in docker("logs", "nobody", code=1).err


def test_logs_follow_a_container_to_its_end(docker: Docker, image: str) -> None:
    script = "echo up; while read l; do echo got $l; done; echo end"
    with docker.start("run", "-i", "--name", "box", image, "sh", "-c", script) as feeder:
        assert feeder.line() == b"up\n"
        with docker.start("logs", "-f", "--tail", "1", "box") as follower:
            assert follower.line() == b"up\n"
            feeder.write(b"one\n")
            assert follower.line() == b"got one\n"
            feeder.close_input()
            assert feeder.wait() == 0
            assert follower.rest() == b"end\n"
            assert follower.wait() == 0


def test_wait_ends_with_the_container_and_tells_its_code(docker: Docker, image: str) -> None:
    docker("run", "-d", "--name", "box", image, "sleep", "600")
    results: list[str] = []
    waiter = threading.Thread(target=lambda: results.append(docker("wait", "box").out))
    waiter.start()
    docker("kill", "box")
    waiter.join(BOUND_S)
    assert results == ["137\n"]
