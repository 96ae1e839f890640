"""A daemon that an ordinary user starts: a fresh user, with subordinate ids, and nothing of root's."""

from __future__ import annotations

import contextlib
import io
import os
import select
import shutil
import signal
import socket
import stat
import subprocess
import sys
import tarfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from docker.errors import APIError
from docker.models.containers import Container

from tests import leaks
from tests.daemon import IMAGE, Daemon
from tests.dnskit import address, answered, eventually, found, servers
from tests.imagekit import Dir, File, busybox_layer, make_docker_archive
from tests.nanny import descendants
from tests.rootlesskit import COUNT, FIRST, USER, RootlessDaemon

for _program in ("newuidmap", "setpriv"):
    if shutil.which(_program) is None:
        pytest.skip(f"{_program} isn't installed (Debian: uidmap, util-linux)", allow_module_level=True)


@pytest.fixture(scope="module")
def rootless() -> Iterator[RootlessDaemon]:
    with RootlessDaemon() as running:
        running.load_image()
        yield running


@pytest.fixture
def sleeper(rootless: Daemon) -> Iterator[Container]:
    container = rootless.client.containers.run(IMAGE, ["sleep", "1000"], detach=True)
    yield container
    container.remove(force=True)


def run(daemon: Daemon, script: str, **options: Any) -> str:
    output: bytes = daemon.client.containers.run(
        IMAGE, ["sh", "-c", script], remove=True, stderr=True, **options
    )
    return output.decode()


def pid_of(container: Container) -> int:
    container.reload()
    pid: int = container.attrs["State"]["Pid"]
    return pid


def test_the_containers_root_is_the_user(rootless: Daemon, sleeper: Container) -> None:
    pid = pid_of(sleeper)
    assert os.stat(f"/proc/{pid}").st_uid == USER
    said = run(rootless, "id -u; cat /proc/self/uid_map; touch /x; stat -c %u:%g /x")
    assert said.split() == ["0", "0", str(USER), "1", "1", str(FIRST), str(COUNT), "0:0"]
    other = rootless.client.containers.run(IMAGE, ["sleep", "1000"], user="1000:1000", detach=True)
    try:
        assert os.stat(f"/proc/{pid_of(other)}").st_uid == FIRST + 999
    finally:
        other.remove(force=True)


def test_nothing_of_it_is_roots(rootless: RootlessDaemon) -> None:
    owners = {
        os.stat(f"/proc/{pid}").st_uid
        for pid in descendants(rootless.nanny_pid)
        if os.path.exists(f"/proc/{pid}")
    }
    assert 0 not in owners
    assert {path.stat().st_uid for path in rootless.run_dir.iterdir()} == {USER}
    assert stat.S_IMODE(rootless.run_dir.stat().st_mode) == 0o700


def test_info_says_what_it_is(rootless: Daemon) -> None:
    info = rootless.client.info()
    assert "name=rootless" in info["SecurityOptions"]
    assert info["CgroupDriver"] == "none"
    assert not info["MemoryLimit"] and not info["PidsLimit"]


def test_exec_terminal_logs_and_top(rootless: Daemon, sleeper: Container) -> None:
    assert sleeper.exec_run("id -u").output == b"0\n"
    assert sleeper.exec_run("id -u", user="7").output == b"7\n"
    code, said = sleeper.exec_run(["sh", "-c", "stat -c %u $(tty)"], tty=True)
    assert (code, said.strip()) == (0, b"0")
    assert any("sleep" in " ".join(row) for row in sleeper.top()["Processes"])
    talker = rootless.client.containers.run(IMAGE, ["echo", "said"], detach=True)
    try:
        assert talker.wait()["StatusCode"] == 0
        assert talker.logs() == b"said\n"
    finally:
        talker.remove()


def test_the_stock_command_line(rootless: Daemon) -> None:
    if shutil.which("docker") is None:
        pytest.skip("there is no docker command line here")
    done = subprocess.run(
        ["docker", "run", "--rm", "-i", IMAGE, "cat"],
        env={**os.environ, "DOCKER_HOST": rootless.host},
        input=b"through",
        capture_output=True,
        timeout=60,
    )
    assert (done.returncode, done.stdout) == (0, b"through"), done.stderr


def test_volumes_binds_and_cp(rootless: Daemon) -> None:
    volume = rootless.client.volumes.create("kept")
    shared = rootless.base / "shared"
    shared.mkdir()
    os.chown(shared, USER, USER)
    try:
        mounts = {"kept": {"bind": "/v", "mode": "rw"}, str(shared): {"bind": "/s", "mode": "rw"}}
        run(rootless, "echo a > /v/a; chown 5:6 /v/a; echo b > /s/b", volumes=mounts)
        assert run(rootless, "stat -c %u:%g /v/a", volumes=mounts) == "5:6\n"
        assert (shared / "b").stat().st_uid == USER
    finally:
        volume.remove()
    container = rootless.client.containers.create(IMAGE, ["true"])
    try:
        content = io.BytesIO()
        with tarfile.open(fileobj=content, mode="w") as archive:
            info = tarfile.TarInfo("y")
            info.uid, info.gid = 9, 10
            archive.addfile(info)
        assert container.put_archive("/", content.getvalue())
        stream, _ = container.get_archive("/y")
        with tarfile.open(fileobj=io.BytesIO(b"".join(stream))) as archive:
            assert (archive.getmembers()[0].uid, archive.getmembers()[0].gid) == (9, 10)
        assert container.diff() == [{"Path": "/y", "Kind": 1}]
    finally:
        container.remove()


def test_layers_hide_what_is_below(rootless: Daemon) -> None:
    """Whiteouts and opaque directories are user.overlay's here (option userxattr)."""
    lower = [*busybox_layer(), Dir("d"), File("d/old", b"old"), Dir("e"), File("e/gone", b"gone")]
    upper = [Dir("d"), File("d/.wh..wh..opq", b""), File("d/new", b"new"), File("e/.wh.gone", b"")]
    archive = make_docker_archive([lower, upper], names=["hidden:latest"])
    answer = rootless.http(
        "POST", "/images/load?quiet=1", archive, headers={"Content-Type": "application/x-tar"}
    )
    assert answer.status == 200 and b'"error"' not in answer.body, answer.body
    said = rootless.client.containers.run(
        "hidden:latest", ["sh", "-c", "ls /d /e; rm -r /d; mkdir /d; ls /d"], remove=True
    )
    assert said.split() == [b"/d:", b"new", b"/e:"]
    rootless.client.images.remove("hidden:latest")


def take_once(sock: socket.socket, taken: list[bytes]) -> threading.Thread:
    """Take what one client sends. Nothing is sent back: pasta of 2023 repeats what comes together with the end."""

    def work() -> None:
        connection, _ = sock.accept()
        with connection:
            connection.settimeout(30)
            while data := connection.recv(64):
                taken.append(data)

    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    return thread


OUTSIDE = "198.51.100.77"


@pytest.fixture
def outside() -> Iterator[str]:
    """An address of this machine that isn't the one which pasta shows inside."""
    name = leaks.unique_name()
    for words in (["link", "add", name, "type", "bridge"], ["addr", "add", f"{OUTSIDE}/32", "dev", name]):
        subprocess.run(["ip", *words], check=True)
    yield OUTSIDE
    subprocess.run(["ip", "link", "del", name], check=True)


@pytest.mark.parametrize("program", ["pasta", "slirp4netns"])
def test_the_way_out(program: str, outside: str) -> None:
    """From a container, over its bridge and the tap device, to a server outside."""
    if shutil.which(program) is None:
        pytest.skip(f"{program} isn't installed")
    if not os.path.exists("/dev/net/tun"):
        pytest.skip("this machine has no /dev/net/tun")
    with RootlessDaemon(network=program) as daemon, socket.create_server((outside, 0)) as server:
        daemon.load_image()
        taken: list[bytes] = []
        thread = take_once(server, taken)
        assert run(daemon, f"echo inside | timeout 60 nc -w 10 {outside} {server.getsockname()[1]}") == ""
        thread.join(30)
        assert b"".join(taken) == b"inside\n"


def test_published_ports_are_the_hosts(rootless: RootlessDaemon) -> None:
    serving = ["sh", "-c", "while :; do echo hello | nc -l -p 8000; done"]
    container = rootless.client.containers.run(
        IMAGE, serving, detach=True, ports={"8000/tcp": ("127.0.0.1", None)}
    )
    try:
        container.reload()
        port = int(container.attrs["NetworkSettings"]["Ports"]["8000/tcp"][0]["HostPort"])
        assert read_port(port) == b"hello\n"
        with pytest.raises(APIError, match=f"Bind for 127.0.0.1:{port} failed: port is already allocated"):
            rootless.client.containers.run(
                IMAGE, serving, detach=True, ports={"8000/tcp": ("127.0.0.1", port)}
            )
        with socket.create_server(("127.0.0.1", 0)) as taken:
            used = taken.getsockname()[1]
            with pytest.raises(
                APIError, match=f"failed to bind host port 127.0.0.1:{used}/tcp: address already"
            ):
                rootless.client.containers.run(
                    IMAGE, serving, detach=True, ports={"8000/tcp": ("127.0.0.1", used)}
                )
        with pytest.raises(APIError, match="cannot expose privileged port 81: use one from 1024 on"):
            rootless.client.containers.run(IMAGE, serving, detach=True, ports={"8000/tcp": ("127.0.0.1", 81)})
        container.stop(timeout=0)
        with socket.create_server(("127.0.0.1", port)):
            pass
    finally:
        for each in rootless.client.containers.list(all=True, filters={"ancestor": IMAGE}):
            if each.attrs["Config"]["Cmd"] == serving:
                each.remove(force=True)


_TELL_PEER = """
import socket
with socket.create_server(("0.0.0.0", 8000)) as server:
    print("ready", flush=True)
    connection, peer = server.accept()
    connection.sendall(peer[0].encode())
    connection.close()
"""


def test_a_published_port_shows_the_container_its_client(rootless: Daemon, outside: str) -> None:
    container = rootless.client.containers.run(
        IMAGE, ["sleep", "1000"], detach=True, ports={"8000/tcp": (outside, None)}
    )
    tell = subprocess.Popen(
        ["nsenter", f"--net=/proc/{pid_of(container)}/ns/net", sys.executable, "-c", _TELL_PEER],
        stdout=subprocess.PIPE,
    )
    try:
        assert tell.stdout is not None and tell.stdout.readline() == b"ready\n"
        container.reload()
        port = int(container.attrs["NetworkSettings"]["Ports"]["8000/tcp"][0]["HostPort"])
        with socket.create_connection((outside, port), timeout=20, source_address=(outside, 0)) as connection:
            assert connection.recv(64).decode() == outside
    finally:
        tell.kill()
        tell.communicate()
        container.remove(force=True)


def read_port(port: int) -> bytes:
    """What the server there says, once it is up."""
    for _ in range(100):
        with (
            contextlib.suppress(OSError),
            socket.create_connection(("127.0.0.1", port), timeout=10) as connection,
        ):
            if data := connection.recv(64):
                return data
        time.sleep(0.05)  # the container's server listens between two clients only
    raise AssertionError(f"nobody answers on {port}")


_ECHO = """
import socket
sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
sock.bind(("0.0.0.0", 8000))
print("ready", flush=True)
while True:
    data, peer = sock.recvfrom(64)
    sock.sendto(data, peer)
"""


def test_a_published_datagram_port(rootless: Daemon) -> None:
    container = rootless.client.containers.run(
        IMAGE, ["sleep", "1000"], detach=True, ports={"8000/udp": ("127.0.0.1", None)}
    )
    echo = subprocess.Popen(
        ["nsenter", f"--net=/proc/{pid_of(container)}/ns/net", sys.executable, "-c", _ECHO],
        stdout=subprocess.PIPE,
    )
    try:
        assert echo.stdout is not None and echo.stdout.readline() == b"ready\n"
        container.reload()
        port = int(container.attrs["NetworkSettings"]["Ports"]["8000/udp"][0]["HostPort"])
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
            sock.settimeout(10)
            sock.sendto(b"ping", ("127.0.0.1", port))
            assert sock.recv(64) == b"ping"
    finally:
        echo.kill()
        echo.communicate()
        container.remove(force=True)


def test_containers_reach_each_other_and_the_rest_of_the_network_works(rootless: Daemon) -> None:
    network = rootless.client.networks.create("inner")
    first = rootless.client.containers.run(IMAGE, ["sleep", "1000"], detach=True, network="inner")
    try:
        first.reload()
        address = first.attrs["NetworkSettings"]["Networks"]["inner"]["IPAddress"]
        assert "1 packets received" in run(rootless, f"ping -c1 -W5 {address}", network="inner")
        assert "eth0" in run(rootless, "ip -o link", network_mode=f"container:{first.id}")
    finally:
        first.remove(force=True)
        network.remove()


def test_limits_are_discarded_with_a_warning_and_a_pause_is_refused(
    rootless: Daemon, sleeper: Container
) -> None:
    made = rootless.http(
        "POST",
        "/containers/create",
        {"Image": IMAGE, "Cmd": ["true"], "HostConfig": {"Memory": 64 << 20, "PidsLimit": 10}},
    ).json()
    rootless.client.containers.get(made["Id"]).remove()
    said = " ".join(made["Warnings"])
    assert "Your kernel does not support memory limit capabilities or the cgroup is not mounted" in said
    assert "PIDs limit discarded" in said
    with pytest.raises(APIError, match="a container can't be paused without the freezer cgroup"):
        sleeper.pause()
    stats = sleeper.stats(stream=False)
    assert stats["pids_stats"]["current"] == 1


def test_killing_takes_every_process_along(rootless: Daemon) -> None:
    container = rootless.client.containers.run(
        IMAGE, ["sh", "-c", "sleep 1001 & sleep 1001 & wait"], detach=True
    )
    try:
        while len(container.top()["Processes"]) < 3:
            pass
        pids = [int(row[1]) for row in container.top()["Processes"]]
        container.kill()
        assert not [pid for pid in pids if os.path.exists(f"/proc/{pid}")]
    finally:
        container.remove(force=True)


@pytest.mark.parametrize("how", ["terminated", "killed", "outside killed"])
def test_containers_outlive_the_daemon(how: str) -> None:
    with RootlessDaemon() as daemon:
        daemon.load_image()
        serving = "echo begun; while :; do echo hello | nc -l -p 8000; done"
        container = daemon.client.containers.run(
            IMAGE, ["sh", "-c", serving], detach=True, ports={"8000/tcp": ("127.0.0.1", None)}, name="kept"
        )
        pid = pid_of(container)
        port = int(container.attrs["NetworkSettings"]["Ports"]["8000/tcp"][0]["HostPort"])
        if how == "terminated":
            daemon.terminate()
        elif how == "killed":
            os.kill(daemon.inner_pid(), signal.SIGKILL)
            daemon.terminate()
        else:
            inner = os.pidfd_open(daemon.inner_pid())
            daemon.kill9()
            assert select.select([inner], [], [], 30)[0], "the daemon outlived its bootstrap"
            os.close(inner)
        assert os.path.exists(f"/proc/{pid}")
        daemon.start()
        container = daemon.client.containers.get("kept")
        assert pid_of(container) == pid
        assert container.status == "running"
        assert container.exec_run("id -u").output == b"0\n"
        assert read_port(port) == b"hello\n"
        assert b"begun\n" in container.logs()
        container.remove(force=True)
        daemon.terminate()
        left = [each for each in descendants(daemon.nanny_pid) if os.path.exists(f"/proc/{each}/exe")]
        assert not left, [Path(f"/proc/{each}/cmdline").read_bytes() for each in left]
        assert not (daemon.run_dir / "rootless.json").exists()


def test_without_subordinate_ids_there_is_root_alone() -> None:
    with RootlessDaemon(ranges=False, network="none") as daemon:
        daemon.load_image()
        assert run(daemon, "id -u; cat /proc/self/uid_map").split() == ["0", "0", str(USER), "1"]
        assert "/etc/subuid and /etc/subgid have no range for walker" in daemon.log_text()


def test_a_second_daemon_and_a_strangers_run_dir_are_refused(rootless: RootlessDaemon) -> None:
    done = subprocess.run(
        rootless._command(), capture_output=True, text=True, timeout=60, env=rootless._environment
    )
    assert done.returncode == 1
    assert f"a daemon is running already in {rootless.run_dir}" in done.stderr
    stranger = rootless.base / "stranger"
    stranger.mkdir()
    done = subprocess.run(
        [*rootless._command(), "--run-dir", str(stranger)],
        capture_output=True,
        text=True,
        timeout=60,
        env=rootless._environment,
    )
    assert done.returncode == 1
    assert f"{stranger} isn't this user's alone" in done.stderr


def test_names_on_a_network_of_ones_own(rootless: Daemon) -> None:
    network = rootless.client.networks.create("named", driver="bridge")
    made = [
        rootless.client.containers.run(IMAGE, ["sleep", "1000"], name=name, network="named", detach=True)
        for name in ("web", "db")
    ]
    try:
        assert found(made[0], "db") == found(made[0], "db.named", tcp=True) == [address(made[1], "named")]
        os.kill(servers(rootless)[0], signal.SIGKILL)
        eventually(lambda: answered(made[1], "web"))
        network.disconnect(made[1])
        network.connect(made[1])
        assert found(made[1], "web") == [address(made[0], "named")]
    finally:
        for container in made:
            container.remove(force=True)
        network.remove()
