"""`--userns-remap`: containers whose root is nobody on the host, seen from inside and from the host."""

from __future__ import annotations

import io
import os
import signal
import socket
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from docker.errors import APIError
from docker.models.containers import Container

from tests.daemon import IMAGE, Daemon
from tests.dnskit import address, answered, eventually, found, servers
from tests.privatemounts import private_mounts

FIRST, COUNT = 1_200_000, 65536


class RemapDaemon(Daemon):
    """A daemon with the range FIRST … for its containers; /etc/subuid is its own, in a mount namespace of its own."""

    def __init__(self) -> None:
        super().__init__("--userns-remap=default")
        os.chmod(self.base, 0o711)  # the containers' root passes here to the run dir
        self._files = {}
        for name in ("subuid", "subgid"):
            (self.base / name).write_text(f"cove:{FIRST}:{COUNT}\n")
            self._files[f"/etc/{name}"] = self.base / name

    def _command(self) -> list[str]:
        return [*private_mounts(self._files), *super()._command()]


@pytest.fixture(scope="module")
def remapped() -> Iterator[Daemon]:
    with RemapDaemon() as running:
        running.load_image()
        yield running


def run(daemon: Daemon, script: str, **options: Any) -> str:
    output: bytes = daemon.client.containers.run(
        IMAGE, ["sh", "-c", script], remove=True, stderr=True, **options
    )
    return output.decode()


@pytest.fixture
def sleeper(remapped: Daemon) -> Iterator[Container]:
    container = remapped.client.containers.run(IMAGE, ["sleep", "1000"], detach=True)
    yield container
    container.remove(force=True)


def pid_of(container: Container) -> int:
    container.reload()
    pid: int = container.attrs["State"]["Pid"]
    return pid


def test_root_inside_is_a_subordinate_id_on_the_host(remapped: Daemon, sleeper: Container) -> None:
    pid = pid_of(sleeper)
    assert Path(f"/proc/{pid}/uid_map").read_text().split() == ["0", str(FIRST), str(COUNT)]
    assert Path(f"/proc/{pid}/gid_map").read_text().split() == ["0", str(FIRST), str(COUNT)]
    assert os.stat(f"/proc/{pid}").st_uid == FIRST
    assert os.readlink(f"/proc/{pid}/ns/user") != os.readlink("/proc/self/ns/user")
    assert run(remapped, "id -u; id -g; ls -ln / | grep bin").split()[:2] == ["0", "0"]
    assert "name=userns" in remapped.client.info()["SecurityOptions"]


def test_files_of_the_image_belong_to_the_containers_root_and_keep_their_ids_on_disk(
    remapped: Daemon,
) -> None:
    container = remapped.client.containers.create(
        IMAGE, ["sh", "-c", "stat -c %u:%g / /bin/busybox /etc/hosts; echo x >/made; chown 7:8 /made"]
    )
    try:
        container.start()
        assert container.wait()["StatusCode"] == 0, container.logs()
        assert container.logs().split() == [b"0:0"] * 3
        upper = remapped.data_root / "containers" / container.id / "upper"
        made = (upper / "made").stat()
        assert (made.st_uid, made.st_gid) == (7, 8)
        assert {"Path": "/made", "Kind": 1} in container.diff()
    finally:
        container.remove()


def test_a_bind_shows_the_hosts_owners_and_takes_the_subordinate_id(remapped: Daemon) -> None:
    shared = remapped.base / "shared"
    shared.mkdir()
    (shared / "of-root").write_text("secret")
    os.chmod(shared / "of-root", 0o600)
    os.chmod(shared, 0o777)
    said = run(
        remapped,
        "touch /s/made; stat -c %u /s/made /s/of-root; cat /s/of-root || echo refused",
        volumes={str(shared): {"bind": "/s", "mode": "rw"}},
    )
    assert said.split()[:2] == ["0", "65534"] and "refused" in said
    assert (shared / "made").stat().st_uid == FIRST


def test_a_bind_below_a_directory_that_only_root_may_pass(remapped: Daemon) -> None:
    hidden = remapped.base / "hidden"
    hidden.mkdir(mode=0o700)
    (hidden / "file").write_text("seen")
    os.chmod(hidden / "file", 0o644)
    assert run(remapped, "cat /f", volumes={str(hidden / "file"): {"bind": "/f", "mode": "ro"}}) == "seen"


def test_rights_end_at_the_namespace(remapped: Daemon) -> None:
    """With every capability that may be asked for, what is the host's stays the host's."""
    before = Path("/proc/self/mounts").read_text()
    core = Path("/proc/sys/kernel/core_pattern").read_text()
    said = run(
        remapped,
        "mount -t tmpfs none /mnt 2>/dev/null || { mkdir /mnt; mount -t tmpfs none /mnt; } && echo mounted;"
        "mknod /tmp/mem c 1 1 || echo no-device; echo x > /proc/sys/kernel/core_pattern || echo no-sysctl;"
        "umount /proc/keys 2>/dev/null; grep CapEff /proc/self/status",
        cap_add=["ALL"],
        security_opt=["seccomp=unconfined"],
    )
    assert "mounted" in said and "no-device" in said and "no-sysctl" in said, said
    assert Path("/proc/sys/kernel/core_pattern").read_text() == core
    assert Path("/proc/self/mounts").read_text().count("\nnone ") == before.count(
        "\nnone "
    )  # the source of its tmpfs


def test_containers_reach_each_other_and_a_published_port_reaches_them(remapped: Daemon) -> None:
    container = remapped.client.containers.run(
        IMAGE,
        ["sh", "-c", "while :; do echo hello | nc -l -p 8000; done"],
        detach=True,
        ports={"8000/tcp": ("127.0.0.1", None)},
    )
    try:
        container.reload()
        address = container.attrs["NetworkSettings"]["Networks"]["bridge"]["IPAddress"]
        assert address in container.exec_run("cat /etc/hosts").output.decode()
        port = int(container.attrs["NetworkSettings"]["Ports"]["8000/tcp"][0]["HostPort"])
        assert "1 packets received" in run(remapped, f"ping -c1 -W5 {address}")
        with socket.create_connection(("127.0.0.1", port), timeout=10) as connection:
            assert connection.recv(16) == b"hello\n"
    finally:
        container.remove(force=True)


def test_a_network_of_the_users_own_is_connected_and_disconnected(
    remapped: Daemon, sleeper: Container
) -> None:
    network = remapped.client.networks.create("second")
    try:
        network.connect(sleeper)
        assert "eth1" in sleeper.exec_run("sh -c 'ip -o link'").output.decode()
    finally:
        network.disconnect(sleeper)
        network.remove()


def test_exec_as_root_as_a_user_and_with_a_terminal(sleeper: Container) -> None:
    assert sleeper.exec_run("id -u").output == b"0\n"
    assert sleeper.exec_run("id -u", user="1000").output == b"1000\n"
    inside = sleeper.exec_run("sh -c 'readlink /proc/self/ns/user; readlink /proc/1/ns/user'").output.split()
    assert len(set(inside)) == 1
    code, said = sleeper.exec_run("sh -c 'test -t 0 && touch /from-exec && stat -c %u /from-exec'", tty=True)
    assert (code, said.strip()) == (0, b"0")
    pid = pid_of(sleeper)
    upper = Path(f"/proc/{pid}/root/from-exec")
    assert upper.stat().st_uid == FIRST


def test_other_users_of_the_container_are_mapped_too(remapped: Daemon) -> None:
    container = remapped.client.containers.run(IMAGE, ["sleep", "1000"], user="1000:1000", detach=True)
    try:
        assert os.stat(f"/proc/{pid_of(container)}").st_uid == FIRST + 1000
    finally:
        container.remove(force=True)


def test_a_terminal_is_the_containers_own(remapped: Daemon) -> None:
    assert run(remapped, "stat -c %u $(tty); test -c /dev/console && echo console", tty=True).split() == [
        "0",
        "console",
    ]


def test_a_volume_is_shared_with_a_container_of_the_hosts_user_namespace(remapped: Daemon) -> None:
    volume = remapped.client.volumes.create("shared")
    try:
        mounts: dict[str, Any] = {"volumes": {"shared": {"bind": "/v", "mode": "rw"}}}
        assert run(remapped, "echo a > /v/a; chown 5:6 /v/a; stat -c %u:%g /v /v/a", **mounts).split() == [
            "0:0",
            "5:6",
        ]
        said = run(
            remapped,
            "stat -c %u:%g /v/a; cat /proc/self/uid_map; echo b > /v/b",
            userns_mode="host",
            **mounts,
        )
        assert said.split()[:4] == ["5:6", "0", "0", "4294967295"]
        assert run(remapped, "stat -c %u /v/b; rm /v/b && echo gone", **mounts).split() == ["0", "gone"]
    finally:
        volume.remove()


@pytest.mark.parametrize("running", [True, False])
def test_cp_shows_and_takes_the_containers_ids(remapped: Daemon, running: bool) -> None:
    script = "echo x > /x; chown 7:8 /x; sleep 1000" if running else "echo x > /x; chown 7:8 /x"
    container = remapped.client.containers.run(IMAGE, ["sh", "-c", script], detach=True)
    try:
        if running:
            container.exec_run(["sh", "-c", 'until [ "$(stat -c %u /x)" = 7 ]; do :; done'])
        else:
            container.wait()
        stream, _ = container.get_archive("/x")
        with tarfile.open(fileobj=io.BytesIO(b"".join(stream))) as archive:
            [member] = archive.getmembers()
        assert (member.uid, member.gid) == (7, 8)
        content = io.BytesIO()
        with tarfile.open(fileobj=content, mode="w") as archive:
            info = tarfile.TarInfo("y")
            info.uid, info.gid = 9, 10
            archive.addfile(info)
        assert container.put_archive("/", content.getvalue())
        placed = (remapped.data_root / "containers" / container.id / "upper" / "y").stat()
        assert (placed.st_uid, placed.st_gid) == (9, 10)
    finally:
        container.remove(force=True)


def test_namespaces_of_another_container_are_joined_with_its_user_namespace(remapped: Daemon) -> None:
    donor = remapped.client.containers.run(IMAGE, ["sleep", "1000"], detach=True, ipc_mode="shareable")
    try:
        user = os.readlink(f"/proc/{pid_of(donor)}/ns/user")
        for option in ("network_mode", "pid_mode", "ipc_mode"):
            said = run(
                remapped, "readlink /proc/self/ns/user; ip -o link", **{option: f"container:{donor.id}"}
            )
            assert said.splitlines()[0] == user, option
            assert "eth0" in said, option  # joined, or connected of its own
        assert "sleep" in run(remapped, "ps", pid_mode=f"container:{donor.id}")
        joined = f"container:{donor.id}"
        said = run(remapped, "cat /proc/self/uid_map", userns_mode="host", network_mode=joined)
        assert said.split() == ["0", "0", "4294967295"]
    finally:
        donor.remove(force=True)


def test_a_container_of_the_hosts_user_namespace_is_not_joined_from_another(remapped: Daemon) -> None:
    donor = remapped.client.containers.run(IMAGE, ["sleep", "1000"], detach=True, userns_mode="host")
    other = remapped.client.containers.create(IMAGE, ["true"], network_mode=f"container:{donor.id}")
    try:
        with pytest.raises(APIError, match="use --userns=host"):
            other.start()
    finally:
        other.remove()
        donor.remove(force=True)


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"privileged": True}, "privileged mode is incompatible with user namespaces"),
        (
            {"network_mode": "host"},
            "cannot share the host's network namespace when user namespaces are enabled",
        ),
        ({"pid_mode": "host"}, "cannot share the host's PID namespace when user namespaces are enabled"),
        ({"ipc_mode": "host"}, "cannot share the host's IPC namespace when user namespaces are enabled"),
    ],
)
def test_what_needs_the_hosts_user_namespace_says_so(
    remapped: Daemon, options: dict[str, Any], sentence: str
) -> None:
    with pytest.raises(APIError, match=sentence):
        remapped.client.containers.create(IMAGE, ["true"], **options)
    said = run(remapped, "cat /proc/self/uid_map", userns_mode="host", **options)
    assert said.split() == ["0", "0", "4294967295"]


def test_devices_and_limits(remapped: Daemon) -> None:
    said = run(
        remapped,
        "test -c /dev/kmsg && echo device; ulimit -n; cat /sys/fs/cgroup/memory/memory.limit_in_bytes",
        devices=["/dev/null:/dev/kmsg"],
        mem_limit="64m",
    )
    assert "device" in said and str(64 << 20) in said


def test_a_daemon_without_remapping_finds_the_containers_again() -> None:
    with RemapDaemon() as daemon:
        daemon.load_image()
        container = daemon.client.containers.run(
            IMAGE, ["sleep", "1000"], detach=True, ports={"8000/tcp": None}, name="kept"
        )
        before = pid_of(container)
        daemon.kill9()
        daemon.start()
        container = daemon.client.containers.get("kept")
        assert pid_of(container) == before
        assert container.exec_run("id -u").output == b"0\n"
        daemon.terminate()
        daemon._options = ()
        daemon.start()
        container = daemon.client.containers.get("kept")
        assert container.exec_run("sh -c 'cat /proc/self/uid_map'").output.split()[1] == str(FIRST).encode()
        container.restart(timeout=0)
        said = container.exec_run("cat /proc/self/uid_map").output.split()
        assert said == [b"0", b"0", b"4294967295"]  # the same files, unshifted
        container.remove(force=True)


def test_a_missing_range_and_a_closed_run_dir_are_told() -> None:
    import subprocess

    with RemapDaemon() as daemon:
        daemon.terminate()
        os.chmod(daemon.base, 0o700)
        done = subprocess.run(
            [*daemon._command(), "--userns-remap=default"], capture_output=True, text=True, timeout=60
        )
        assert done.returncode == 1
        assert f"user {FIRST}, the containers' root, may not pass {daemon.base}: chmod o+x" in done.stderr
        done = subprocess.run(
            [*daemon._command(), "--userns-remap=no-such-user"], capture_output=True, text=True, timeout=60
        )
        assert "no user no-such-user: make it with useradd" in done.stderr
        os.chmod(daemon.base, 0o711)


def test_names_on_a_network_of_ones_own(remapped: Daemon) -> None:
    network = remapped.client.networks.create("named", driver="bridge")
    made = [
        remapped.client.containers.run(IMAGE, ["sleep", "1000"], name=name, network="named", detach=True)
        for name in ("web", "db")
    ]
    try:
        assert found(made[0], "db") == found(made[0], "db.named", tcp=True) == [address(made[1], "named")]
        os.kill(servers(remapped)[0], signal.SIGKILL)
        eventually(lambda: answered(made[1], "web"))
        network.disconnect(made[1])
        network.connect(made[1])
        assert found(made[1], "web") == [address(made[0], "named")]
    finally:
        for container in made:
            container.remove(force=True)
        network.remove()


def test_mounts_of_a_running_container_are_not_changed(remapped: Daemon) -> None:
    container = remapped.client.containers.run(IMAGE, ["sleep", "1000"], detach=True)
    body = {"MountsAdd": [{"Type": "volume", "Source": "late", "Target": "/late"}]}
    path = f"/cove/v1/update?container={container.id}"
    try:
        refused = remapped.http("POST", path, body)
        assert refused.status == 503 and "stop it first" in refused.json()["message"]
        container.kill()
        container.wait()
        assert remapped.http("POST", path, body).status == 200
        container.start()
        assert container.exec_run(["touch", "/late/file"]).exit_code == 0
    finally:
        container.remove(force=True)
    remapped.client.volumes.get("late").remove()
