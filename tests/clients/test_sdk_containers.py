"""The docker SDK for Python: containers, their streams and files, as programs use them."""

from __future__ import annotations

import contextlib
import io
import itertools
import json
import socket
import struct
import tarfile
import threading
import time
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import docker
import pytest
from docker.types import Healthcheck, LogConfig, Mount, Ulimit

from tests.clients.dockercli import BOUND_S, clean, eventually

if TYPE_CHECKING:
    from tests.daemon import Daemon


@pytest.fixture
def client(daemon: Daemon) -> Iterator[docker.DockerClient]:
    yield daemon.client
    clean(daemon.client)


def test_run_returns_the_output_and_raises_with_the_exit_code(
    client: docker.DockerClient, image: str
) -> None:
    assert client.containers.run(image, "echo hello", remove=True) == b"hello\n"
    assert (
        client.containers.run(image, ["sh", "-c", "echo e >&2"], stderr=True, stdout=False, remove=True)
        == b"e\n"
    )
    with pytest.raises(docker.errors.ContainerError) as caught:
        client.containers.run(image, ["sh", "-c", "echo why >&2; exit 3"], remove=True)
    assert (caught.value.exit_status, caught.value.stderr) == (3, b"why\n")
    assert client.containers.list(all=True) == []


def test_run_streams_and_detaches(client: docker.DockerClient, image: str) -> None:
    lines = client.containers.run(image, ["sh", "-c", "echo 1; echo 2"], stream=True, remove=True)
    assert b"".join(lines) == b"1\n2\n"
    container = client.containers.run(
        image, "sleep 600", detach=True, name="box", labels={"a": "b"}, environment=["A=b"]
    )
    assert (container.name, container.status, container.labels) == ("box", "created", {"a": "b"})
    container.reload()
    assert container.status == "running"
    assert client.containers.get("box").id == container.id
    assert [found.id for found in client.containers.list(filters={"label": "a=b"})] == [container.id]


def test_options_of_create_are_shown_again(client: docker.DockerClient, image: str) -> None:
    container = client.containers.create(
        image,
        "sleep 600",
        cap_add=["NET_ADMIN"],
        cpu_shares=512,
        devices=["/dev/null:/dev/mine:r"],
        dns=["192.0.2.1"],
        extra_hosts={"db": "192.0.2.2"},
        healthcheck=Healthcheck(test="true", interval=10**9),
        hostname="h",
        init=True,
        log_config=LogConfig(type="json-file", config={"max-size": "1m"}),
        mem_limit="64m",
        mounts=[Mount("/t", None, type="tmpfs", tmpfs_size=4096), Mount("/v", "named", labels={"x": "y"})],
        nano_cpus=500_000_000,
        pids_limit=100,
        ports={"80/tcp": ("127.0.0.1", None)},
        read_only=True,
        restart_policy={"Name": "on-failure", "MaximumRetryCount": 3},
        shm_size="8m",
        stop_signal="SIGUSR1",
        sysctls={"net.ipv4.ip_forward": "0"},
        tmpfs={"/x": "size=64k"},
        tty=True,
        ulimits=[Ulimit(name="nofile", soft=100, hard=200)],
        user="1000",
        volumes={"data": {"bind": "/data", "mode": "ro"}},
        working_dir="/tmp",
    )
    host, config = container.attrs["HostConfig"], container.attrs["Config"]
    assert host["CapAdd"] == ["NET_ADMIN"] and host["CpuShares"] == 512 and host["Init"] is True
    assert host["Devices"][0]["PathInContainer"] == "/dev/mine" and host["Dns"] == ["192.0.2.1"]
    assert host["ExtraHosts"] == ["db:192.0.2.2"] and host["LogConfig"]["Config"] == {"max-size": "1m"}
    assert (host["Memory"], host["NanoCpus"], host["PidsLimit"], host["ShmSize"]) == (
        64 << 20,
        5 * 10**8,
        100,
        8 << 20,
    )
    assert (
        host["PortBindings"] == {"80/tcp": [{"HostIp": "127.0.0.1", "HostPort": ""}]}
        and host["ReadonlyRootfs"]
    )
    assert host["RestartPolicy"] == {"Name": "on-failure", "MaximumRetryCount": 3}
    assert host["Sysctls"] == {"net.ipv4.ip_forward": "0"} and host["Tmpfs"] == {"/x": "size=64k"}
    assert host["Ulimits"] == [{"Name": "nofile", "Soft": 100, "Hard": 200}] and host["Binds"] == [
        "data:/data:ro"
    ]
    assert {mount["Target"] for mount in host["Mounts"]} == {"/t", "/v"}
    assert config["Hostname"] == "h" and config["StopSignal"] == "SIGUSR1" and config["Tty"] is True
    assert config["Healthcheck"]["Test"] == ["CMD-SHELL", "true"] and config["User"] == "1000"
    container.start()
    assert container.exec_run("cat /proc/self/limits").exit_code == 0


def test_logs_are_whole_streamed_and_followed(client: docker.DockerClient, image: str) -> None:
    container = client.containers.run(
        image, ["sh", "-c", "echo 1; echo 2; echo e >&2; sleep 0.3; echo 3"], detach=True
    )
    assert b"".join(container.logs(stream=True, follow=True)).count(b"\n") == 4
    assert container.logs(stderr=False) == b"1\n2\n3\n"
    assert container.logs(stdout=False) == b"e\n"
    assert container.logs(tail=1, stderr=False) == b"3\n"
    stamped = container.logs(stderr=False, timestamps=True).splitlines()
    assert [line.split()[1] for line in stamped] == [b"1", b"2", b"3"]
    assert container.logs(since=int(time.time()) + 1000) == b""


def test_an_exec_has_exit_code_output_and_separate_streams(client: docker.DockerClient, image: str) -> None:
    container = client.containers.run(image, "sleep 600", detach=True)
    assert container.exec_run(["sh", "-c", "echo x; exit 4"]) == (4, b"x\n")
    assert container.exec_run(["sh", "-c", "echo o; echo e >&2"], demux=True) == (0, (b"o\n", b"e\n"))
    assert (
        container.exec_run("env", environment={"A": "b"}, user="1000", workdir="/tmp").output.count(b"A=b\n")
        == 1
    )
    code, chunks = container.exec_run(["sh", "-c", "echo 1; echo 2"], stream=True)
    assert code is None and b"".join(chunks) == b"1\n2\n"
    assert container.exec_run(["sh", "-c", "test -t 0"], tty=True, stdin=True).exit_code == 0
    assert container.exec_run("sleep 1", detach=True) == (None, "")
    for _ in range(10):
        assert container.exec_run(["sh", "-c", "echo now; exit 7"]) == (7, b"now\n")


def test_an_exec_s_socket_goes_both_ways(client: docker.DockerClient, image: str) -> None:
    container = client.containers.run(image, "sleep 600", detach=True)
    made = client.api.exec_create(container.id, "cat", stdin=True)
    raw = client.api.exec_start(made["Id"], socket=True)
    with contextlib.closing(raw):
        sock = raw._sock
        sock.settimeout(BOUND_S)
        sock.sendall(b"over and back")
        sock.shutdown(socket.SHUT_WR)
        assert read_frames(sock) == {1: b"over and back"}
    assert client.api.exec_inspect(made["Id"])["ExitCode"] == 0
    assert client.api.exec_inspect(made["Id"])["Running"] is False


def read_frames(sock: socket.socket) -> dict[int, bytes]:
    """A multiplexed stream until its end, by stream."""
    data = b""
    while chunk := sock.recv(65536):
        data += chunk
    found: dict[int, bytes] = {}
    while data:
        stream, length = struct.unpack(">BxxxL", data[:8])
        found[stream] = found.get(stream, b"") + data[8 : 8 + length]
        data = data[8 + length :]
    return found


def test_an_attached_socket_is_the_process_s_input_and_output(
    client: docker.DockerClient, image: str
) -> None:
    command = ["sh", "-c", "read a; echo got $a; echo err >&2; cat"]
    container = client.containers.create(image, command, stdin_open=True)
    raw = container.attach_socket(params={"stdin": 1, "stdout": 1, "stderr": 1, "stream": 1})
    with contextlib.closing(raw):
        container.start()
        sock = raw._sock
        sock.settimeout(BOUND_S)
        sock.sendall(b"line\nrest")
        eventually(lambda: b"rest" in container.logs())
        container.kill()
        assert read_frames(sock) == {1: b"got line\nrest", 2: b"err\n"}


def test_attach_brings_what_was_and_what_comes(client: docker.DockerClient, image: str) -> None:
    container = client.containers.create(image, ["sh", "-c", "echo before; sleep 0.3; echo after"])
    stream = container.attach(stream=True, logs=True)
    container.start()
    assert b"".join(stream) == b"before\nafter\n"
    container.wait()
    assert container.attach(stdout=True, stderr=True, logs=True, stream=False) == b"before\nafter\n"


def test_files_go_in_and_out_as_archives(client: docker.DockerClient, image: str) -> None:
    container = client.containers.create(image, "true")
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w") as tar:
        for name, data in (("one", b"1"), ("deep/two", b"22")):
            member = tarfile.TarInfo(name)
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
    assert container.put_archive("/tmp", packed.getvalue()) is True
    chunks, stat = container.get_archive("/tmp/deep")
    assert (stat["name"], stat["linkTarget"]) == ("deep", "")
    with tarfile.open(fileobj=io.BytesIO(b"".join(chunks))) as tar:
        assert tar.getnames() == ["deep", "deep/two"]
    with pytest.raises(docker.errors.NotFound):
        container.get_archive("/nothing")
    with pytest.raises(docker.errors.APIError) as caught:
        container.put_archive("/etc/passwd", packed.getvalue())
    assert "not a directory" in caught.value.explanation
    assert container.diff() == [
        {"Path": path, "Kind": kind}
        for path, kind in (("/tmp", 0), ("/tmp/deep", 1), ("/tmp/deep/two", 1), ("/tmp/one", 1))
    ]
    with tarfile.open(fileobj=io.BytesIO(b"".join(container.export()))) as tar:
        assert "tmp/one" in tar.getnames()


def test_stats_are_read_once_and_streamed(client: docker.DockerClient, image: str) -> None:
    container = client.containers.run(image, "sleep 600", detach=True)
    once: dict[str, Any] = container.stats(stream=False)
    assert once["memory_stats"]["usage"] > 0 and once["precpu_stats"]["cpu_usage"]["total_usage"] > 0
    assert once["networks"]["eth0"]["rx_bytes"] >= 0 and once["pids_stats"]["current"] == 1
    readings = list(itertools.islice(container.stats(decode=True), 2))
    assert readings[0]["read"] < readings[1]["read"] and readings[1]["name"] == f"/{container.name}"


def test_every_wait_ends_when_it_should(client: docker.DockerClient, image: str) -> None:
    container = client.containers.run(image, ["sh", "-c", "sleep 0.3; exit 5"], detach=True)
    results: dict[str, Any] = {}

    def wait(condition: str) -> None:
        results[condition] = container.wait(condition=condition)["StatusCode"]

    threads = [threading.Thread(target=wait, args=(c,)) for c in ("next-exit", "not-running", "removed")]
    for thread in threads:
        thread.start()
    assert container.wait()["StatusCode"] == 5
    container.remove()
    for thread in threads:
        thread.join(BOUND_S)
    assert results["removed"] == results["not-running"] == 5


def test_states_change_and_are_told(client: docker.DockerClient, image: str) -> None:
    container = client.containers.run(image, "sleep 600", detach=True, name="box")
    container.pause()
    container.reload()
    assert container.status == "paused"
    container.unpause()
    container.rename("crate")
    assert container.top()["Processes"]
    container.update(mem_limit="100m", memswap_limit="200m")
    container.restart(timeout=0)
    container.kill(signal="TERM")
    container.stop(timeout=0)
    container.reload()
    assert (container.status, container.name) == ("exited", "crate")
    container.start()
    with pytest.raises(docker.errors.APIError) as caught:
        container.remove()
    assert caught.value.response.status_code == 409
    container.remove(force=True)
    assert client.containers.prune()["ContainersDeleted"] is None


def test_terminals_are_resized(client: docker.DockerClient, image: str) -> None:
    container = client.containers.run(image, "sh", tty=True, stdin_open=True, detach=True)
    container.resize(33, 77)
    made = client.api.exec_create(container.id, ["sh", "-c", "read x; stty size"], stdin=True, tty=True)
    raw = client.api.exec_start(made["Id"], socket=True, tty=True)
    with contextlib.closing(raw):
        client.api.exec_resize(made["Id"], height=44, width=88)
        sock = raw._sock
        sock.settimeout(BOUND_S)
        sock.sendall(b"\n")
        data = b""
        while chunk := sock.recv(4096):
            data += chunk
        assert b"44 88" in data


@pytest.mark.parametrize(
    ("call", "error", "words"),
    [
        (lambda c: c.containers.get("nothing"), docker.errors.NotFound, "No such container: nothing"),
        (lambda c: c.containers.create("no/image"), docker.errors.ImageNotFound, "No such image: no/image"),
        (lambda c: c.images.get("nothing"), docker.errors.ImageNotFound, "No such image: nothing"),
        (lambda c: c.volumes.get("nothing"), docker.errors.NotFound, "no such volume"),
        (lambda c: c.networks.get("nothing"), docker.errors.NotFound, "network nothing not found"),
    ],
)
def test_what_is_missing_raises_the_class_for_it(
    client: docker.DockerClient, call: Any, error: type[Exception], words: str
) -> None:
    with pytest.raises(error) as caught:
        call(client)
    assert words in str(getattr(caught.value, "explanation", caught.value))


def test_what_is_wrong_raises_with_one_sentence(client: docker.DockerClient, image: str) -> None:
    client.containers.create(image, name="taken")
    with pytest.raises(docker.errors.APIError) as caught:
        client.containers.create(image, name="taken")
    assert caught.value.response.status_code == 409 and "is already in use" in caught.value.explanation
    with pytest.raises(docker.errors.APIError) as caught:
        client.containers.create(image, name="a b")
    assert (
        caught.value.response.status_code == 400
        and "Invalid container name (a b)" in caught.value.explanation
    )
    with pytest.raises(docker.errors.APIError) as caught:
        client.containers.create(image, mem_limit=1)
    assert "Minimum memory limit allowed is 6MB" in caught.value.explanation
    with pytest.raises(docker.errors.APIError) as caught:
        client.containers.run(image, "nosuchcommand")
    assert 'exec: "nosuchcommand": executable file not found in $PATH' in caught.value.explanation


def test_the_low_level_client_s_odd_spellings_are_understood(client: docker.DockerClient, image: str) -> None:
    container = client.containers.run(image, "sleep 600", detach=True)
    client.api._general_configs["detachKeys"] = "ctrl-p"
    try:
        made = client.api.exec_create(container.id, "cat", stdin=True, tty=True)
    finally:
        del client.api._general_configs["detachKeys"]
    raw = client.api.exec_start(made["Id"], tty=True, socket=True)
    with contextlib.closing(raw):
        raw._sock.settimeout(BOUND_S)
        raw._sock.sendall(b"\x10")
        while raw._sock.recv(4096):
            pass
    assert json.loads(json.dumps(client.api.exec_inspect(made["Id"])))["DetachKeys"] == "ctrl-p"
