"""What a test left on the host: found by comparing before and after, and told as its failure.

Other tests and daemons run on the same machine at the same time, so only what belongs to this run
counts, by one of these signs:

- processes: descendants of this one (each daemon runs below a nanny, which keeps orphans; tests/nanny.py)
- links, nftables tables, named network namespaces, cgroups: a name that starts with an owned prefix
  (`unique_name`, `own_prefix`; a daemon owns the names that it derives from its run dir)
- mounts, loop devices: in or from an owned directory (pytest's temporary ones, a daemon's)
- files: entries of the directories named by `own_entries` (a daemon's containers, volumes and trash)
- descriptors of this process: namespaces, pidfds, inotify, memfds, and whatever lies in an owned directory

The kernel frees links and namespaces late, and so does the daemon, behind its callers' backs: what is new
gets BOUND_S to vanish.
"""

from __future__ import annotations

import contextlib
import gc
import itertools
import os
import secrets
import signal
import socket
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.nanny import descendants

BOUND_S = 60.0
FAILED_BOUND_S = 3.0
FAILED = pytest.StashKey[bool]()  # set by tests/conftest.py when a phase of a test has failed
_DNS_SERVER = (
    "cove-dns"  # a daemon's, of two processes: it is gone with the last container, and at the latest when the
)
# daemon is stopped, which its fixture checks
_CGROUPS = Path("/sys/fs/cgroup")
_RUN = "t" + secrets.token_hex(3)
_numbers = itertools.count()
_prefixes = {_RUN}
_directories: set[str] = set()
_entries: set[Path] = set()
_DESCRIPTORS = (
    "net:[",
    "mnt:[",
    "pid:[",
    "uts:[",
    "ipc:[",
    "cgroup:[",
    "anon_inode:[pidfd]",
    "anon_inode:inotify",
    "/memfd:",
)


def unique_name() -> str:
    """A short name (for a link, a table, a cgroup …) that no other test run has; it is owned."""
    return f"{_RUN}x{next(_numbers)}"


def own_prefix(prefix: str) -> None:
    """Links, tables, namespaces and cgroups whose name starts so are this run's."""
    assert len(prefix) >= 5, f"{prefix!r} may be the beginning of others' names"
    _prefixes.add(prefix)


def own_directory(directory: Path) -> None:
    """Mounts and loop devices in here, and descriptors of what is in here, are this run's."""
    _directories.add(os.path.realpath(directory))


def own_entries(directory: Path) -> None:
    """What appears directly in this directory must vanish again."""
    _entries.add(directory)


def disown_entries(directory: Path) -> None:
    """The directory's owner is gone, and took everything along."""
    _entries.discard(directory)


def snapshot() -> set[str]:
    """Everything on the host that is this run's, one line each."""
    return {
        *_processes(),
        *_cgroups(),
        *_links(),
        *_tables(),
        *_namespaces(),
        *_mounts(),
        *_loops(),
        *_files(),
        *_descriptors(),
    }


def wait_gone(before: set[str], bound_s: float = BOUND_S) -> list[str]:
    """What is there now and wasn't before, once it has had its time to vanish."""
    deadline = time.monotonic() + bound_s
    left = snapshot() - before
    pause_s = 0.01
    while left and time.monotonic() < deadline:
        gc.collect()  # sockets and descriptors of objects in cycles
        time.sleep(pause_s)  # nothing tells when the last link of a namespace has gone
        pause_s = min(pause_s * 1.5, 0.5)
        left = snapshot() - before
    return sorted(left)


@pytest.fixture(autouse=True)
def no_leaks(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Fails the test that leaves something behind, and kills the processes among that."""
    if os.geteuid() != 0:
        pytest.skip("drives the real kernel: run it as root")
    own_directory(tmp_path_factory.getbasetemp())
    before = snapshot()
    yield
    # A test that failed midway has left what it hadn't come to remove: that isn't worth a long wait.
    bound_s = FAILED_BOUND_S if request.node.stash.get(FAILED, False) else BOUND_S
    left = wait_gone(before, bound_s)
    if left:
        for line in left:
            if line.startswith("process "):
                _kill(line)
        pytest.fail(f"left behind after {bound_s:.0f} s:\n  " + "\n  ".join(left), pytrace=False)


def _kill(line: str) -> None:
    """End a process by its line in a snapshot, unless the pid has another owner by now."""
    pid = int(line.split()[1])
    if line in set(_processes()):
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


# --- one kind each ------------------------------------------------------------------------


def _owned(name: str) -> bool:
    return name.startswith(tuple(_prefixes))


def _inside(path: str) -> bool:
    return any(path == directory or path.startswith(directory + "/") for directory in _directories)


def _processes() -> Iterator[str]:
    """Daemons and their workers are their fixtures' business; supervisors and containers are the test's."""
    from tests.daemon import running_pids

    daemons = running_pids()
    for pid in descendants(os.getpid()):
        try:
            stat = Path(f"/proc/{pid}/stat").read_text()
            command = Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
        except (FileNotFoundError, ProcessLookupError):
            continue
        name = stat.partition("(")[2].rpartition(")")[0]
        fields = stat.rpartition(")")[2].split()
        if pid in daemons or (int(fields[1]) in daemons and name != "cove-init") or name == _DNS_SERVER:
            continue
        # Whether it runs or sleeps changes by itself, and doesn't make another process of it.
        ended = ", ended and not reaped" if fields[0] == "Z" else ""
        yield f"process {pid} (started {fields[19]}, below {fields[1]}{ended}): {name}: {command}"


def _cgroups() -> Iterator[str]:
    for hierarchy in _CGROUPS.iterdir():
        if hierarchy.is_symlink() or not hierarchy.is_dir():
            continue
        for top in hierarchy.iterdir():
            if top.is_dir() and _owned(top.name):
                yield from (f"cgroup {path}" for path, _, _ in os.walk(top))


def _links() -> Iterator[str]:
    return (f"link {name}" for _, name in socket.if_nameindex() if _owned(name))


def _tables() -> Iterator[str]:
    """By netlink, without loading libnftables: a dump of NFT_MSG_GETTABLE."""
    for family, name in _dump_tables():
        if _owned(name):
            yield f"nftables table {family} {name}"


def _namespaces() -> Iterator[str]:
    try:
        names = os.listdir("/run/netns")
    except FileNotFoundError:
        return
    for name in names:
        if _owned(name):
            yield f"network namespace {name}"


def _mounts() -> Iterator[str]:
    for line in Path("/proc/thread-self/mountinfo").read_text().splitlines():
        fields = line.split()
        target = fields[4].encode().decode("unicode_escape")
        if _inside(target):
            yield f"mount {target} ({fields[fields.index('-') + 1]})"


def _loops() -> Iterator[str]:
    for backing in Path("/sys/block").glob("loop*/loop/backing_file"):
        try:
            path = backing.read_text().strip()
        except OSError:
            continue
        if _inside(path):
            yield f"loop device {backing.parts[3]} of {path}"


def _files() -> Iterator[str]:
    for directory in _entries:
        try:
            yield from (f"file {directory / name}" for name in os.listdir(directory))
        except FileNotFoundError:
            continue


def _descriptors() -> Iterator[str]:
    seen: dict[str, int] = {}
    for entry in os.listdir("/proc/self/fd"):
        try:
            target = os.readlink(f"/proc/self/fd/{entry}")
        except FileNotFoundError:
            continue
        if target.startswith(_DESCRIPTORS) or _inside(target):
            seen[target] = seen.get(target, 0) + 1
            yield f"descriptor of {target}, number {seen[target]}"


def _dump_tables() -> Iterator[tuple[str, str]]:
    import struct

    nfnl_subsys_nftables, get_table, request, dump = 10, 1, 0x1, 0x300
    families = {1: "inet", 2: "ip", 3: "arp", 5: "netdev", 7: "bridge", 10: "ip6"}
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, 12) as netlink:
        netlink.settimeout(BOUND_S)
        kind = nfnl_subsys_nftables << 8 | get_table
        netlink.send(struct.pack("=IHHIIBBH", 20, kind, request | dump, 1, 0, 0, 0, 0))
        while True:
            data = netlink.recv(1 << 16)
            while len(data) >= 16:
                length, kind, _, _, _ = struct.unpack_from("=IHHII", data)
                if kind in (2, 3):  # NLMSG_ERROR, NLMSG_DONE
                    return
                family = families.get(data[16], str(data[16]))
                body = data[20:length]
                while len(body) >= 4:
                    size, attribute = struct.unpack_from("=HH", body)
                    if attribute & 0x3FFF == 1:  # NFTA_TABLE_NAME
                        yield family, body[4:size].rstrip(b"\0").decode()
                    body = body[(size + 3) & ~3 :]
                data = data[(length + 3) & ~3 :]
