"""System call filters in real containers: what they refuse, by every way in; agents that decide."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import os
import select
import socket
import struct
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.apikit import remove, wait
from tests.apikit import run as started
from tests.daemon import Daemon
from tests.system import probes
from tests.system.test_security_container import run

_RECEIVE, _SEND = 0xC0502100, 0xC0182101  # linux/seccomp.h: SECCOMP_IOCTL_NOTIF_RECV, _SEND
_NOTIFICATION = struct.Struct("=QIIiIQ6Q")
_ANSWER = struct.Struct("=QqiI")
_CONTINUE = 1  # SECCOMP_USER_NOTIF_FLAG_CONTINUE
MKDIR, RMDIR = 83, 84
BOUND_S = 60.0


class Agent:
    """Listens where profiles say, and answers: an errno, or None to let a call go on."""

    def __init__(self, path: Path, decide: Callable[[int], int | None]) -> None:
        self.path = path
        self.states: list[dict[str, Any]] = []
        self.asked: list[int] = []
        self._decide = decide
        self._listening = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._listening.bind(str(path))
        self._listening.listen(8)
        self._ending, self._end = os.pipe2(os.O_CLOEXEC)
        self._thread = threading.Thread(target=self._serve)
        self._thread.start()

    def close(self) -> None:
        os.close(self._end)
        self._thread.join(BOUND_S)
        assert not self._thread.is_alive()
        os.close(self._ending)
        self._listening.close()

    def _serve(self) -> None:
        listeners: list[int] = []
        poll = select.poll()
        poll.register(self._ending, select.POLLHUP)
        poll.register(self._listening, select.POLLIN)
        while True:
            for ready, event in poll.poll():
                if ready == self._ending:
                    for listener in listeners:
                        os.close(listener)
                    return
                if ready == self._listening.fileno():
                    listeners.append(self._accept())
                    poll.register(listeners[-1], select.POLLIN)
                elif event & select.POLLIN:
                    self._answer(ready)
                else:
                    poll.unregister(ready)  # nobody uses the filter any more

    def _accept(self) -> int:
        connection, _ = self._listening.accept()
        with connection:
            data, descriptors, _, _ = socket.recv_fds(connection, 1 << 16, 4)
            while more := connection.recv(1 << 16):
                data += more
        self.states.append(json.loads(data))
        (listener,) = descriptors
        return listener

    def _answer(self, listener: int) -> None:
        buffer = bytearray(_NOTIFICATION.size)
        try:
            fcntl.ioctl(listener, _RECEIVE, buffer)
            ident, _, _, number, *_ = _NOTIFICATION.unpack(buffer)
            self.asked.append(number)
            refused = self._decide(number)
            answer = (0, 0, _CONTINUE) if refused is None else (0, -refused, 0)
            fcntl.ioctl(listener, _SEND, _ANSWER.pack(ident, *answer))
        except OSError as error:  # the caller was killed meanwhile
            assert error.errno == errno.ENOENT


@pytest.fixture
def agent(tmp_path: Path) -> Iterator[Agent]:
    """Refuses mkdir(2) with an errno that nothing else gives, and lets everything else go on."""
    made = Agent(tmp_path / "agent.sock", lambda number: errno.ENETDOWN if number == MKDIR else None)
    try:
        yield made
    finally:
        made.close()


def notifying(path: Path, *names: str, **more: Any) -> str:
    rule = {"names": list(names), "action": "SCMP_ACT_NOTIFY"}
    return json.dumps(
        {
            "defaultAction": "SCMP_ACT_ALLOW",
            "listenerPath": str(path),
            "listenerMetadata": "of the test",
            "syscalls": [rule],
            **more,
        }
    )


def test_an_agent_decides_about_calls_and_knows_whose_they_are(
    daemon: Daemon, image: str, agent: Agent
) -> None:
    profile = notifying(agent.path, "mkdir", "rmdir", flags=["SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV"])
    script = "busybox mkdir /made; busybox rmdir /tmp2; echo $?"
    code, said = run(daemon, image, "sh", "-c", script, SecurityOpt=[f"seccomp={profile}"])
    assert code == 0 and "Network is down" in said and "No such file" in said, said
    assert agent.asked == [MKDIR, RMDIR]
    (state,) = agent.states
    assert (state["fds"], state["metadata"]) == (["seccompFd"], "of the test")
    assert state["state"]["status"] == "creating" and state["pid"] == state["state"]["pid"] > 1
    assert state["ociVersion"] == state["state"]["ociVersion"] and len(state["state"]["id"]) == 64


def test_a_start_of_which_every_call_is_asked_about_goes_through(
    daemon: Daemon, image: str, agent: Agent
) -> None:
    """What cove-init itself calls once the filter holds: identity, capabilities, the exec and its messages."""
    names = "setgroups setresgid setresuid capset prctl chdir fchdir getcwd close_range sendmsg recvmsg execve".split()
    profile = notifying(agent.path, *names, "close", "dup2", "openat2", "fcntl", "read")
    for privileges in ([], ["no-new-privileges"]):
        code, said = run(daemon, image, "echo", "through", SecurityOpt=[f"seccomp={profile}", *privileges])
        assert (code, said) == (0, "through\n")
    assert 59 in agent.asked  # execve
    assert len(agent.states) == 2


def test_an_exec_has_the_filter_and_its_agent(daemon: Daemon, image: str, agent: Agent) -> None:
    profile = notifying(agent.path, "mkdir")
    container = started(daemon, image, "sleep", "1000", SecurityOpt=[f"seccomp={profile}"])
    try:
        made = daemon.http(
            "POST", f"/containers/{container}/exec", {"Cmd": ["mkdir", "/made"], "AttachStderr": True}
        )
        said = daemon.http("POST", f"/exec/{made.json()['Id']}/start", {"Detach": False}).body
        assert b"Network is down" in said
        assert [state["state"]["status"] for state in agent.states] == ["creating", "running"]
        assert agent.states[1]["pid"] != agent.states[0]["pid"]
    finally:
        remove(daemon, container)


def test_without_its_agent_a_container_does_not_start(daemon: Daemon, image: str, tmp_path: Path) -> None:
    profile = notifying(tmp_path / "nobody.sock", "mkdir")
    code, said = run(daemon, image, "true", SecurityOpt=[f"seccomp={profile}"])
    assert code == -1 and f"listenerPath {tmp_path}/nobody.sock: the agent can't be reached" in said


def test_calls_of_an_agent_that_has_gone_do_not_exist(daemon: Daemon, image: str, tmp_path: Path) -> None:
    made = Agent(tmp_path / "agent.sock", lambda number: None)
    container = ""
    try:
        profile = notifying(made.path, "mkdir")
        script = "read line; busybox mkdir /made"
        container = started(
            daemon,
            image,
            "sh",
            "-c",
            script,
            SecurityOpt=[f"seccomp={profile}"],
            OpenStdin=True,
            StdinOnce=True,
        )
        with contextlib.closing(daemon.connect()) as client:
            made.close()
            client.sendall(
                f"POST /containers/{container}/attach?stdin=1&stream=1 HTTP/1.1\r\nHost: x\r\n"
                "Connection: Upgrade\r\nUpgrade: tcp\r\n\r\ngo\n".encode()
            )
            assert client.recv(4096).startswith(b"HTTP/1.1 101")
            assert wait(daemon, container) == 1
        assert (
            b"Function not implemented" in daemon.http("GET", f"/containers/{container}/logs?stderr=1").body
        )
    finally:
        remove(daemon, container)


# --- the default policy, by every way in ------------------------------------------------------------


def attempt(daemon: Daemon, image: str, *args: object, **host: Any) -> tuple[int, int]:
    """What a system call of the probe's gave: the result and the errno."""
    bind = f"{probes.probe()}:/probe:ro"
    code, said = run(daemon, image, "/probe", *map(str, args), Binds=[bind], **host)
    assert code == 0, said
    result, number = said.split()
    return int(result), int(number)


@pytest.mark.parametrize("family", [38, 40, 2**32 + 38, 2**32 + 40])
def test_no_kernel_crypto_socket_and_none_to_the_hypervisor(daemon: Daemon, image: str, family: int) -> None:
    """CVE-2026-31431; the kernel takes the lower half of the number."""
    assert attempt(daemon, image, "call", probes.SOCKET, family, 5, 0) == (-1, errno.EPERM)


def test_the_kernel_does_take_the_lower_half_only(daemon: Daemon, image: str) -> None:
    """So that the test above is about something."""
    unconfined = {"SecurityOpt": ["seccomp=unconfined"]}
    assert attempt(daemon, image, "call", probes.SOCKET, 2**32 + 1, 1, 0, **unconfined)[0] >= 0


def test_the_32_bit_way_in_is_filtered(daemon: Daemon, image: str) -> None:
    for family in (38, 1):
        made = attempt(daemon, image, "call32", probes.SOCKETCALL_32, 1, f"={family},1,0")
        assert made == (-1, errno.ENOSYS)
    assert attempt(daemon, image, "call32", 359, 38, 5, 0) == (-1, errno.EPERM)
    assert attempt(daemon, image, "call32", 359, 1, 1, 0)[0] >= 0
    mount_32 = 21
    assert attempt(daemon, image, "call32", mount_32, 0, 0, 0, 0, 0) == (-1, errno.EPERM)


@pytest.mark.parametrize(
    "call",
    [
        (probes.MOUNT, 0, 0, 0, 0),
        (probes.UNSHARE, 0x10000000),
        (probes.SETNS, 0, 0),
        (probes.BPF, 0, 0, 0),
        (probes.OPEN_BY_HANDLE_AT, -1, "%64", 0),
        (probes.KEYCTL, 0, -3, 0),
        (probes.ADD_KEY, "@user", "@a", "@b", 1, -3),
        (probes.PIDFD_GETFD, -1, 0, 0),
        (probes.IO_URING_SETUP, 1, "%120"),
    ],
    ids=lambda call: str(call[0]),
)
def test_what_opens_the_kernel_wide_is_refused(daemon: Daemon, image: str, call: tuple[object, ...]) -> None:
    """open_by_handle_at(2) reads the host's files by inode (shocker, 2014); add_key(2) meets a keyring that no
    namespace divides; a user namespace of one's own brings all capabilities in it."""
    assert attempt(daemon, image, "call", *call) == (-1, errno.EPERM)


@pytest.mark.parametrize("number", [700, 0x40000000 + 700])
def test_a_call_of_the_future_does_not_exist(daemon: Daemon, image: str, number: int) -> None:
    assert attempt(daemon, image, "call", number) == (-1, errno.ENOSYS)
    assert attempt(daemon, image, "call32", 700) == (-1, errno.ENOSYS)
