"""The known ways out of a container, tried for real: the runtime's program and descriptors, moving trees, sockets."""

from __future__ import annotations

import ctypes
import errno
import fcntl
import os
import re
import socket
import subprocess
from pathlib import Path
from typing import Any

import pytest

from tests.apikit import Call, create, eventually, logs, remove, wait
from tests.apikit import run as started
from tests.daemon import Daemon
from tests.leaks import unique_name
from tests.nanny import descendants
from tests.native_build import build
from tests.system import probes
from tests.system.test_security_container import run
from tests.system.test_security_exec import execute

LEAKED = range(3, 24)  # descriptors that a runtime might hold


def probe_bind() -> str:
    return f"{probes.probe()}:/probe:ro"


def of_the_host(daemon: Daemon) -> Path:
    """A directory outside of every container, with a secret in it."""
    outside = daemon.base / "outside"
    outside.mkdir(exist_ok=True)
    (outside / "secret").write_text("secret of the host")
    return outside


# --- the runtime's own program (CVE-2019-5736) ------------------------------------------------------


def sealed_program(daemon: Daemon) -> bytes:
    """What the daemon starts supervisors from, which nobody can change."""
    for entry in Path(f"/proc/{daemon.pid}/fd").iterdir():
        if os.readlink(entry).startswith("/memfd:cove-init"):
            with open(entry, "rb") as file:
                seals = fcntl.fcntl(file, fcntl.F_GET_SEALS)
                assert (
                    seals == fcntl.F_SEAL_SEAL | fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_WRITE
                )
                return file.read()
    raise AssertionError("the daemon has no copy of cove-init")


def test_nobody_overwrites_the_runtime_through_the_program_of_who_joins(daemon: Daemon, image: str) -> None:
    """A container that sees cove-init, as its small init and at each exec, and may trace it, opens it for writing;
    one of the programs that are executed there is cove-init itself, by way of a script's #!/proc/self/exe."""
    binary = build("native") / "cove-init"
    before = binary.read_bytes()
    script = "printf '#!/proc/self/exe\\n' > /self; busybox chmod 755 /self; exec /probe overwrite 2.5"
    container = started(
        daemon, image, "sh", "-c", script, Binds=[probe_bind()], Init=True, CapAdd=["SYS_PTRACE"]
    )
    try:
        eventually(lambda: b"up" in logs(daemon, container), "the attacker")
        for _ in range(12):
            assert execute(daemon, container, "true")[0] == 0
            assert execute(daemon, container, "/self")[0] != 0
        assert wait(daemon, container) == 0
        said = logs(daemon, container)
        assert b"overwritten" not in said and b"truncated" not in said, said
        seen, opened = said[said.index(b"seen ") :].split()[1:4:2]
        assert int(seen) > 0 and int(opened) > 0, "it never met cove-init: nothing was tried"
    finally:
        remove(daemon, container)
    assert binary.read_bytes() == before == sealed_program(daemon)


# --- descriptors (CVE-2024-21626, CVE-2016-9962) ----------------------------------------------------


def test_no_working_directory_of_a_container_is_a_descriptor_of_the_runtime(
    daemon: Daemon, image: str
) -> None:
    outside = of_the_host(daemon)
    script = f"busybox cat ../../../../../../../..{outside}/secret ./{outside}/secret; busybox ls; :"
    for number in LEAKED:
        code, said = run(daemon, image, "sh", "-c", script, body={"WorkingDir": f"/proc/self/fd/{number}"})
        assert code == -1 and "secret of the host" not in said, (number, said)
    for place in (
        "/dev/fd/7",
        "/proc/self/fd/7/.",
        "/proc/thread-self/fd/7",
        "/proc/1/fd/7",
        "/proc/self/cwd",
    ):
        code, said = run(daemon, image, "sh", "-c", script, body={"WorkingDir": place})
        assert code == -1 and "secret of the host" not in said, (place, said)
    # which is /proc/self of the container once it has been made shorter
    code, said = run(daemon, image, "sh", "-c", script, body={"WorkingDir": "/proc/self/fd/7/../.."})
    assert "secret of the host" not in said


def test_no_working_directory_of_an_exec_is_a_descriptor_of_the_runtime(daemon: Daemon, image: str) -> None:
    outside = of_the_host(daemon)
    container = started(daemon, image, "sleep", "1000")
    try:
        script = f"busybox cat ../../../../../../../..{outside}/secret; busybox ls"
        for number in LEAKED:
            code, said = execute(daemon, container, "sh", "-c", script, WorkingDir=f"/proc/self/fd/{number}")
            assert code != 0 and b"secret of the host" not in said, (number, said)
    finally:
        remove(daemon, container)


def descriptors(said: bytes) -> set[str]:
    """The numbers in a long list of /proc/self/fd."""
    found = re.findall(
        r"^.*[lrwx-]{10} .* (\d+)(?: -> (.*?))?\r?$", said.decode(errors="replace"), re.MULTILINE
    )
    assert all(target.startswith(("/dev/", "pipe:", "/proc/")) or not target for _, target in found), said
    return {number for number, _ in found}


@pytest.mark.parametrize("options", [{}, {"Tty": True}, {"OpenStdin": True, "StdinOnce": True}])
def test_a_process_has_its_three_streams_and_no_other_descriptor(
    daemon: Daemon, image: str, options: dict[str, Any]
) -> None:
    list_own = ("sh", "-c", "exec busybox ls -l /proc/self/fd")  # ls has one more, of that directory
    container = create(daemon, image, *list_own, **options)
    try:
        daemon.http("POST", f"/containers/{container}/start")
        wait(daemon, container)
        assert descriptors(logs(daemon, container)) == {"0", "1", "2", "3"}
    finally:
        remove(daemon, container)
    container = started(daemon, image, "sleep", "1000")
    try:
        _, raw = execute(daemon, container, *list_own, Tty=bool(options.get("Tty")))
        assert descriptors(raw) == {"0", "1", "2", "3"}
    finally:
        remove(daemon, container)


# --- trees that move (CVE-2021-30465, CVE-2018-15664, CVE-2019-14271) ---------------------------------


def test_no_mount_leaves_its_container_while_a_neighbour_swaps_directories_for_links(
    daemon: Daemon, image: str
) -> None:
    """Targets, subpaths and working directories below a shared volume, in which another container exchanges a
    directory and a link to the host's path without pause."""
    outside = of_the_host(daemon)
    source = daemon.base / "source"
    source.mkdir(exist_ok=True)
    assert daemon.http("POST", "/volumes/create", {"Name": "moving"}).status == 201
    prepare = f"mkdir -p /v/sub/deep && busybox ln -s {outside} /v/link"
    swap = f"exec /probe repeat {probes.RENAMEAT2} {probes.AT_FDCWD} @/v/sub {probes.AT_FDCWD} @/v/link 2"
    attacker = started(daemon, image, "sh", "-c", f"{prepare}; {swap}", Binds=["moving:/v", probe_bind()])
    subpath = {"Type": "volume", "Source": "moving", "Target": "/s", "VolumeOptions": {"Subpath": "sub"}}
    look = (
        "busybox ls -R /s /x; busybox cat /s/secret /x/sub/secret; busybox touch /s/touched /x/sub/touched; :"
    )
    ran = 0
    try:
        for turn in range(24):
            body: dict[str, Any] = {"WorkingDir": "/x/sub"} if turn % 3 == 2 else {}
            binds = ["moving:/x"] + ([f"{source}:/x/sub/deep"] if turn % 3 == 1 else [])
            mounts = {"Mounts": [subpath]} if turn % 3 == 0 else {}
            host = {"NetworkMode": "none", "Binds": binds, **mounts}
            spec = {"Image": image, "Cmd": ["sh", "-c", look], "HostConfig": host, **body}
            made = daemon.http("POST", "/containers/create", spec)
            if made.status != 201:  # it looks at the subpath, too
                assert "does not exist in the volume" in made.message
                continue
            victim = made.json()["Id"]
            code = -1
            if daemon.http("POST", f"/containers/{victim}/start").status == 204:
                code = wait(daemon, victim)
            said = logs(daemon, victim).decode(errors="replace")
            remove(daemon, victim)
            ran += code == 0
            assert "secret of the host" not in said, said
        assert ran, "no start went through: nothing was tried"
        assert sorted(path.name for path in outside.iterdir()) == ["secret"]
        mountinfo = Path(f"/proc/{daemon.pid}/mountinfo").read_text()
        assert str(outside) not in mountinfo and "/x/sub" not in mountinfo
    finally:
        remove(daemon, attacker)
        assert daemon.http("DELETE", "/volumes/moving").status == 204


def test_an_archive_is_taken_and_put_inside_while_the_container_moves_it(daemon: Daemon, image: str) -> None:
    """`docker cp` both ways against a running container whose directory is a link to the host at times."""
    outside = of_the_host(daemon)
    prepare = f"mkdir -p /d && echo mine > /d/secret && busybox ln -s {outside} /link"
    swap = f"exec /probe repeat {probes.RENAMEAT2} {probes.AT_FDCWD} @/d {probes.AT_FDCWD} @/link 2"
    container = started(daemon, image, "sh", "-c", f"{prepare}; {swap}", Binds=[probe_bind()])
    try:
        taken = daemon.http("GET", f"/containers/{container}/archive?path=/bin/busybox")
        assert taken.status == 200
        arrived = 0
        for attempt in range(100):
            if attempt >= 12 and arrived:
                break
            answer = daemon.http("GET", f"/containers/{container}/archive?path=/d/secret")
            arrived += answer.status == 200 and (b"mine" in answer.body or b"evil" in answer.body)
            assert b"secret of the host" not in answer.body
            put = daemon.http(
                "PUT",
                f"/containers/{container}/archive?path=/d",
                _one_file(),
                headers={"Content-Type": "application/x-tar"},
            )
            assert put.status in (200, 400, 404, 409, 500), put.status
        assert arrived, "no archive came: nothing was tried"
        assert sorted(path.name for path in outside.iterdir()) == ["secret"]
        assert (outside / "secret").read_text() == "secret of the host"
    finally:
        remove(daemon, container)


def _one_file() -> bytes:
    import io
    import tarfile

    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as tar:
        for name in ("secret", "new"):
            member = tarfile.TarInfo(name)
            member.size = 4
            tar.addfile(member, io.BytesIO(b"evil"))
    return out.getvalue()


def test_a_worker_runs_nothing_of_the_container(daemon: Daemon, image: str) -> None:
    """CVE-2019-14271: docker-tar loaded the container's libnss. Whatever a worker has mapped is the daemon's, too."""
    container = started(daemon, image, "sh", "-c", "busybox truncate -s 1000000000000 /big; exec sleep 1000")
    try:
        path = f"/containers/{container}/archive?path=/big"
        eventually(lambda: daemon.http("HEAD", path).status == 200, "the file")
        with daemon.connect() as sock:  # nobody reads on, so that the worker stays
            sock.sendall(f"GET {path} HTTP/1.1\r\nHost: x\r\n\r\n".encode())
            assert sock.recv(4096).startswith(b"HTTP/1.1 200")
            workers = [pid for pid in descendants(daemon.pid) if b"cove.image.process" in _command(pid)]
            assert workers
            devices = _mapped(daemon.pid)
            for worker in workers:
                assert _mapped(worker) <= devices
    finally:
        remove(daemon, container)


def _command(pid: int) -> bytes:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return b""


def _mapped(pid: int) -> set[str]:
    """The devices of the files that a process has mapped."""
    lines = (line.split() for line in Path(f"/proc/{pid}/maps").read_text().splitlines())
    return {fields[3] for fields in lines if fields[4] != "0"}


# --- what no mount namespace divides ------------------------------------------------------------------


def test_the_hosts_abstract_sockets_are_out_of_reach_and_cove_has_none(daemon: Daemon, image: str) -> None:
    """CVE-2020-15257: the name space of abstract sockets is that of the network."""
    name = f"cove-{unique_name()}"
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listener:
        listener.bind(f"\0{name}")
        listener.listen()
        said = {
            mode: run(daemon, image, "/probe", "connect", name, Binds=[probe_bind()], NetworkMode=mode)[1]
            for mode in ("none", "host")
        }
    assert said == {"none": f"-1 {errno.ECONNREFUSED}\n", "host": "0 0\n"}
    container = started(daemon, image, "sleep", "1000")
    try:
        bound = [line.split()[-1] for line in Path("/proc/net/unix").read_text().splitlines()]
        ours = str(daemon.base)
        assert not [path for path in bound if path.startswith("@") and (ours in path or "cove-init" in path)]
        assert any(path.startswith(ours) for path in bound)
    finally:
        remove(daemon, container)


def test_the_hosts_keys_are_not_a_containers(daemon: Daemon, image: str) -> None:
    """Keyrings have no namespace: the filter refuses the calls, and without it the session's keyring is a new one."""
    libc = ctypes.CDLL(None, use_errno=True)
    name = f"cove-{unique_name()}".encode()
    session, get_id, revoke, search, no_key = -3, 0, 3, 10, 126
    ring = libc.syscall(probes.KEYCTL, get_id, session, 0, 0, 0)  # the daemon's, too: none is made
    key = libc.syscall(probes.ADD_KEY, b"user", name, b"secret", 6, ring)
    if key < 0:
        pytest.skip(f"this kernel has no keys for us: {os.strerror(ctypes.get_errno())}")
    try:
        assert libc.syscall(probes.KEYCTL, search, session, b"user", name, 0) == key
        call = (
            "/probe",
            "call",
            str(probes.KEYCTL),
            str(search),
            str(session),
            "@user",
            f"@{name.decode()}",
            "0",
        )
        ordinary = subprocess.run([probes.probe(), *call[1:]], capture_output=True, text=True, timeout=60)
        assert ordinary.stdout == f"{key} 0\n"  # any other process of this user finds it
        assert run(daemon, image, *call, Binds=[probe_bind()])[1] == f"-1 {errno.EPERM}\n"
        unconfined = run(daemon, image, *call, Binds=[probe_bind()], SecurityOpt=["seccomp=unconfined"])[1]
        assert unconfined == f"-1 {no_key}\n"
        code, said = run(daemon, image, "cat", "/proc/keys")
        assert code == 0 and name.decode() not in said
    finally:
        libc.syscall(probes.KEYCTL, revoke, key, 0, 0, 0)


# --- bombs --------------------------------------------------------------------------------------------


def test_a_fork_bomb_fills_its_own_limit_and_nothing_else(daemon: Daemon, image: str) -> None:
    container = started(daemon, image, "/probe", "fork", Binds=[probe_bind()], PidsLimit=48)
    try:
        eventually(lambda: f"47 {errno.EAGAIN}\n".encode() in logs(daemon, container), "the bomb")
        assert daemon.http("GET", "/_ping").status == 200
        code, said = execute(daemon, container, "true")
        assert code != 0, said  # no process more, whoever asks
        assert run(daemon, image, "true")[0] == 0
        removed = Call(daemon, "DELETE", f"/containers/{container}?force=1").result()
        assert removed is not None and removed.status == 204
    finally:
        remove(daemon, container)


def test_a_memory_bomb_ends_its_own_container_and_nothing_else(daemon: Daemon, image: str) -> None:
    neighbour = started(daemon, image, "sleep", "1000")
    limits: dict[str, Any] = {"Memory": 24 << 20, "MemorySwap": 24 << 20}
    container = started(daemon, image, "/probe", "eat", "512", Binds=[probe_bind()], **limits)
    try:
        assert wait(daemon, container) == 137
        state = daemon.http("GET", f"/containers/{container}/json").json()["State"]
        assert state["OOMKilled"] and b"ate" not in logs(daemon, container)
        assert daemon.http("GET", f"/containers/{neighbour}/json").json()["State"]["Running"]
    finally:
        remove(daemon, container, neighbour)
