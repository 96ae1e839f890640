"""The daemon over TCP with TLS: clients with and without certificates, raw streams with half-close, reload, the end."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import socket
import ssl
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import docker
import pytest
from docker.tls import TLSConfig

from tests.daemon import IMAGE, ROOT, Daemon
from tests.tlskit import Authority

BOUND_S = 60.0


def eventually(condition: Callable[[], object], what: str) -> None:
    deadline = time.monotonic() + BOUND_S
    while not condition():
        assert time.monotonic() < deadline, what
        time.sleep(0.02)


class Secured:
    """A daemon with a TLS address, and certificates for and against it."""

    def __init__(self, directory: Path) -> None:
        self.ours = Authority(directory, "ours")
        self.server = self.ours.issue("server", "serverAuth")
        self.client = self.ours.issue("client", "clientAuth")
        self.stranger = Authority(directory, "theirs").issue("stranger", "clientAuth")
        with socket.create_server(("127.0.0.1", 0)) as probe:
            self.port = probe.getsockname()[1]
        self.host = f"tcp://127.0.0.1:{self.port}"
        self.daemon = Daemon(
            "-H", self.host, "--tlsverify", "--tlscacert", str(self.ours.certificate),
            "--tlscert", str(self.server / "cert.pem"), "--tlskey", str(self.server / "key.pem"),
        )  # fmt: skip

    def context(self, client: Path | None) -> ssl.SSLContext:
        context = ssl.create_default_context(cafile=str(self.ours.certificate))
        if client:
            context.load_cert_chain(client / "cert.pem", client / "key.pem")
        return context

    def connect(self, client: Path | None = None) -> ssl.SSLSocket:
        plain = socket.create_connection(("127.0.0.1", self.port), BOUND_S)
        return self.context(client or self.client).wrap_socket(plain, server_hostname="127.0.0.1")

    def environment(self, client: Path) -> dict[str, str]:
        return {
            **{
                name: value for name, value in os.environ.items() if not name.startswith(("DOCKER_", "COVE_"))
            },
            "DOCKER_HOST": self.host,
            "DOCKER_TLS_VERIFY": "1",
            "DOCKER_CERT_PATH": str(client),
        }

    def run(
        self, *command: str, client: Path | None = None, stdin: bytes = b""
    ) -> subprocess.CompletedProcess[bytes]:
        environment = self.environment(client or self.client)
        return subprocess.run(command, env=environment, input=stdin, capture_output=True, timeout=BOUND_S)


@pytest.fixture(scope="module")
def secured(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Secured]:
    found = Secured(tmp_path_factory.mktemp("tls"))
    with found.daemon:
        found.daemon.load_image()
        yield found


COVE = str(ROOT / "bin" / "cove")


@pytest.mark.parametrize("program", ["docker", COVE])
def test_command_lines_run_containers_with_input_that_ends(secured: Secured, program: str) -> None:
    data = os.urandom(3_000_000)
    done = secured.run(program, "run", "--rm", "-i", IMAGE, "sh", "-c", "cat; echo end >&2", stdin=data)
    assert (done.returncode, done.stdout == data, done.stderr) == (0, True, b"end\n")
    assert secured.run(program, "run", "--rm", IMAGE, "sh", "-c", "exit 7").returncode == 7


@pytest.mark.parametrize("program", ["docker", COVE])
def test_exec_cp_logs_and_events_work(secured: Secured, program: str, tmp_path: Path) -> None:
    name = "tls-" + Path(program).name
    assert (
        secured.run(
            program, "run", "-d", "--name", name, IMAGE, "sh", "-c", "echo hello; sleep 1000"
        ).returncode
        == 0
    )
    try:
        assert secured.run(program, "exec", "-i", name, "cat", stdin=b"x" * 200_000).stdout == b"x" * 200_000
        (tmp_path / "file").write_bytes(os.urandom(1_000_000))
        assert secured.run(program, "cp", str(tmp_path / "file"), f"{name}:/tmp/file").returncode == 0
        assert secured.run(program, "cp", f"{name}:/tmp/file", str(tmp_path / "back")).returncode == 0
        assert (tmp_path / "back").read_bytes() == (tmp_path / "file").read_bytes()
        assert secured.run(program, "logs", name).stdout == b"hello\n"
    finally:
        secured.run(program, "rm", "-f", name)
    now = str(int(time.time()) + 1)
    shown = secured.run(
        program, "events", "--since", "1h", "--until", now, "--filter", f"container={name}"
    ).stdout
    assert b"exec_start" in shown and b"destroy" in shown


def test_the_sdk_speaks_tls(secured: Secured, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE"):
        monkeypatch.delenv(name, raising=False)  # requests prefers them to the authority that it is given
    files = (str(secured.client / "cert.pem"), str(secured.client / "key.pem"))
    tls = TLSConfig(client_cert=files, ca_cert=str(secured.ours.certificate), verify=True)
    with contextlib.closing(docker.DockerClient(secured.host, tls=tls, version="auto", timeout=60)) as client:
        assert client.containers.run(IMAGE, ["echo", "hi"], remove=True) == b"hi\n"
        container = client.containers.run(IMAGE, ["sleep", "1000"], detach=True)
        try:
            code, output = container.exec_run(["sh", "-c", "echo out; echo err >&2"], demux=True)
            assert (code, output) == (0, (b"out\n", b"err\n"))
        finally:
            container.remove(force=True)


def test_who_has_no_certificate_of_the_authority_gets_nowhere(secured: Secured) -> None:
    done = secured.run(COVE, "ps", client=secured.stranger)
    assert done.returncode == 125 and b"certificate isn't trusted" in done.stderr, (
        "the stranger trusts another authority"
    )
    wrong = ["--tlscert", str(secured.stranger / "cert.pem"), "--tlskey", str(secured.stranger / "key.pem")]
    done = secured.run(COVE, "--tlscacert", str(secured.ours.certificate), *wrong, "ps")
    assert done.returncode == 125 and b"refused the TLS connection" in done.stderr, done.stderr
    for client in (None, secured.stranger):
        context = secured.context(client)
        plain = socket.create_connection(("127.0.0.1", secured.port), BOUND_S)
        with contextlib.suppress(OSError), context.wrap_socket(plain, server_hostname="127.0.0.1") as sock:
            sock.sendall(b"GET /_ping HTTP/1.1\r\nHost: x\r\n\r\n")
            assert sock.recv(100) == b"", "it got an answer"
        plain.close()
    old = secured.context(secured.client)
    old.minimum_version = ssl.TLSVersion.MINIMUM_SUPPORTED
    with pytest.warns(DeprecationWarning):
        old.maximum_version = ssl.TLSVersion.TLSv1_1
    with socket.create_connection(("127.0.0.1", secured.port), BOUND_S) as plain, pytest.raises(OSError):
        old.wrap_socket(plain, server_hostname="127.0.0.1")
    with socket.create_connection(("127.0.0.1", secured.port), BOUND_S) as plain:
        plain.sendall(b"GET /_ping HTTP/1.1\r\nHost: x\r\n\r\n")
        assert not plain.recv(1000).startswith(b"HTTP/1.1 200")


def relay_pids(daemon: Daemon) -> list[int]:
    found = []
    for pid in os.listdir("/proc"):
        with contextlib.suppress(OSError):
            if b"cove.tls.relay" in Path(f"/proc/{pid}/cmdline").read_bytes():
                parent = re.search(r"^PPid:\t(\d+)", Path(f"/proc/{pid}/status").read_text(), re.M)
                if parent and int(parent[1]) == daemon.pid:
                    found.append(int(pid))
    return found


def test_the_relay_is_nobody_and_has_a_successor_when_it_dies(secured: Secured) -> None:
    (pid,) = relay_pids(secured.daemon)
    status = Path(f"/proc/{pid}/status").read_text()
    assert "Uid:\t65534\t65534\t65534" in status and "CapEff:\t0000000000000000" in status
    os.kill(pid, signal.SIGKILL)
    eventually(lambda: relay_pids(secured.daemon) not in ([], [pid]), "no other relay")
    eventually(lambda: secured.run(COVE, "ps").returncode == 0, "the successor doesn't answer")


def attach(secured: Secured, container: str) -> ssl.SSLSocket:
    sock = secured.connect()
    head = f"POST /containers/{container}/attach?stream=1&stdin=1&stdout=1 HTTP/1.1\r\nHost: x\r\n"
    sock.sendall(f"{head}Connection: Upgrade\r\nUpgrade: tcp\r\n\r\n".encode())
    answer = b""
    while b"\r\n\r\n" not in answer:
        answer += sock.recv(4096)
    assert answer.startswith(b"HTTP/1.1 101")
    return sock


def test_an_attached_client_survives_reload_and_the_daemons_end(secured: Secured) -> None:
    daemon = secured.daemon
    container = daemon.client.containers.run(IMAGE, ["cat"], stdin_open=True, tty=True, detach=True)
    try:
        with attach(secured, container.id) as sock:

            def echoes(word: bytes) -> None:
                sock.sendall(word + b"\n")
                seen = b""
                while seen.count(word) < 2:  # the terminal's echo, and cat's
                    seen += sock.recv(4096)

            echoes(b"before")
            first = relay_pids(daemon)
            assert daemon.http("POST", "/cove/v1/reload").status == 200
            assert relay_pids(daemon) != first
            echoes(b"reloaded")
            daemon.kill9()
            echoes(b"killed")
            daemon.start()
            echoes(b"restarted")
            daemon.restart()
            echoes(b"terminated")
    finally:
        container.remove(force=True)
    assert secured.run(COVE, "ps", "-q").returncode == 0


def test_a_reload_takes_new_certificates_and_refuses_bad_ones(secured: Secured) -> None:
    def serial() -> int:
        with secured.connect() as sock:
            certificate = sock.getpeercert()
            assert certificate is not None
            return int(str(certificate["serialNumber"]), 16)

    before = serial()
    good = (secured.server / "cert.pem").read_bytes(), (secured.server / "key.pem").read_bytes()
    (secured.server / "cert.pem").write_text("nonsense")
    answer = secured.daemon.http("POST", "/cove/v1/reload")
    assert answer.status == 400 and "cert.pem" in answer.message
    assert serial() == before
    (secured.server / "cert.pem").write_bytes(good[0])
    secured.ours.issue("server", "serverAuth")
    assert secured.daemon.http("POST", "/cove/v1/reload").status == 200
    assert serial() != before


def test_clients_that_stall_hold_nobody_up(secured: Secured) -> None:
    silent = [socket.create_connection(("127.0.0.1", secured.port), BOUND_S) for _ in range(50)]
    halfway = [secured.connect() for _ in range(20)]
    for sock in halfway:
        sock.sendall(b"GET /conta")
    container = secured.daemon.client.containers.create(IMAGE, ["cat", "/dev/zero"])
    deaf = attach(secured, container.id)  # never reads
    try:
        container.start()
        begun = time.monotonic()
        with secured.connect() as sock:
            sock.sendall(b"GET /_ping HTTP/1.1\r\nHost: x\r\n\r\n")
            assert sock.recv(4096).startswith(b"HTTP/1.1 200")
        assert time.monotonic() - begun < 10
        for pid in relay_pids(secured.daemon):
            kib = int(re.search(r"VmRSS:\s+(\d+)", Path(f"/proc/{pid}/status").read_text())[1])  # type: ignore[index]
            assert kib < 64 << 10
    finally:
        for sock in (*silent, *halfway, deaf):
            sock.close()
        container.remove(force=True)


def test_tls_addresses_need_files_that_are_there(tmp_path: Path) -> None:
    options = ["--tlsverify", "--tlscert", str(tmp_path / "no.pem"), "--tlskey", str(tmp_path / "no.pem")]
    with (
        pytest.raises(
            AssertionError, match=r"tlscert .*no\.pem: can't be read: expected a file in PEM format"
        ),
        Daemon("-H", "tcp://127.0.0.1:0", *options),
    ):
        pass
