"""The holder: a process that does nothing but keep a rootless daemon's namespaces (user, mount, network).

Containers outlive the daemon, so the namespaces have to as well, and the next daemon must be able to enter them:
through /proc/PID/ns of a process that is known, which no container is. What is known of it stands in a file of the
run dir; a number is trusted only with the time at which its process started (proc_pid_stat(5), field 22).

Order that must hold when it is made: fork; unshare(2); maps, by the parent, for only whoever stays outside may write
them; then the child becomes root of the new user namespace, and executes sleep(1).
"""

from __future__ import annotations

import ctypes
import os
import shutil
import signal
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import msgspec

from cove.model.errors import HostError, Unavailable
from cove.runtime.oci import IdMapping
from cove.runtime.subids import parse_subids, plan_map, read_subids
from cove.runtime.usermaps import write_maps

CLONE_NEWNS, CLONE_NEWUSER, CLONE_NEWNET = 0x00020000, 0x10000000, 0x40000000
_MS_REC, _MS_SLAVE = 0x4000, 1 << 19
_PR_SET_PDEATHSIG = 1
_KINDS = (("user", CLONE_NEWUSER), ("net", CLONE_NEWNET), ("mnt", CLONE_NEWNS))
_TITLE = "cove-rootless"
_END_BOUND_S = 5.0

_libc = ctypes.CDLL(None, use_errno=True)


class Process(msgspec.Struct, frozen=True):
    """A process by its number and its start, in clock ticks since the boot."""

    pid: int
    started: int

    @classmethod
    def of(cls, pid: int) -> Process | None:
        """The process that has this number now."""
        try:
            stat = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
        except OSError:
            return None
        fields = stat.rpartition(")")[2].split()  # from field 3 on; the name before may hold anything
        return None if fields[0] in "ZX" else cls(pid, int(fields[19]))

    def lives(self) -> bool:
        return Process.of(self.pid) == self

    def end(self) -> None:
        """SIGKILL, and wait until it is gone, for a bounded time."""
        try:
            pidfd = os.pidfd_open(self.pid)
        except ProcessLookupError:
            return
        try:
            if self.lives():
                signal.pidfd_send_signal(pidfd, signal.SIGKILL)
                deadline = time.monotonic() + _END_BOUND_S
                while self.lives() and time.monotonic() < deadline:
                    time.sleep(0.005)  # init reaps it when it isn't our child
                    _reap(self.pid)
        finally:
            os.close(pidfd)


class Holder(msgspec.Struct, frozen=True):
    """What RUN_DIR/rootless.json says: the holder, and the program that connects its network."""

    process: Process
    helper: Process | None = None


def read_holder(run_dir: Path) -> Holder | None:
    """The living holder of this run dir."""
    try:
        found = msgspec.json.decode(_file(run_dir).read_bytes(), type=Holder)
    except (OSError, msgspec.DecodeError):
        return None
    return found if found.process.lives() else None


def write_holder(run_dir: Path, holder: Holder) -> None:
    fresh = run_dir / "rootless.json.new"
    fresh.write_bytes(msgspec.json.encode(holder))
    fresh.rename(_file(run_dir))


def end_holder(run_dir: Path, holder: Holder) -> None:
    """Let the namespaces go; nothing lives in them any more."""
    for process in (holder.helper, holder.process):
        if process is not None:
            process.end()
    _file(run_dir).unlink(missing_ok=True)


def lodgers(holder: Holder, but: Sequence[int] = ()) -> list[int]:
    """The processes in the holder's user namespace, or in one below that a container has, beside itself."""
    own = _namespace("self")
    found = []
    for name in os.listdir("/proc"):
        if not name.isdecimal() or int(name) in (holder.process.pid, os.getpid(), *but):
            continue
        if holder.helper is not None and int(name) == holder.helper.pid:
            continue
        there = _namespace(name)
        if there and there != own and _descends(name, holder):
            found.append(int(name))
    return found


def make_holder() -> Holder:
    """A new holder. Raises Unavailable when this host gives an ordinary user no namespaces, HostError."""
    uids, gids = plan_maps()
    ready, told = os.pipe2(os.O_CLOEXEC)
    wait, go = os.pipe2(os.O_CLOEXEC)
    pid = os.fork()
    if pid == 0:
        os.close(ready)
        os.close(go)
        _hold(told, wait)
    os.close(told)
    os.close(wait)
    with os.fdopen(ready, "rb") as answers, os.fdopen(go, "wb", buffering=0) as orders:
        try:
            problem = answers.readline().decode().strip()
            if problem != "ready":
                raise Unavailable(
                    f"this host lets no ordinary user make namespaces ({problem or 'it ended'}): as root, "
                    "sysctl -w kernel.unprivileged_userns_clone=1 user.max_user_namespaces=65536"
                )
            write_maps(pid, uids, gids)
            orders.write(b"g")
            problem = answers.readline().decode().strip()  # "" when sleep(1) has taken over
            if problem:
                raise HostError(f"the namespaces for the daemon can't be set up: {problem}")
        except BaseException:
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
            raise
    process = Process.of(pid)
    if process is None:
        raise HostError("the process that holds the daemon's namespaces ended at once")
    return Holder(process)


def _hold(told: int, wait: int) -> None:
    """The child's part; doesn't return."""
    try:
        os.setsid()
        _check(_libc.unshare(CLONE_NEWUSER | CLONE_NEWNS | CLONE_NEWNET), "unshare")
        os.write(told, b"ready\n")
        if os.read(wait, 1) != b"g":
            os._exit(1)
        become_root()
        # a slave: what the host mounts and unmounts goes here, too
        _check(
            _libc.mount(b"", b"/", b"", ctypes.c_ulong(_MS_REC | _MS_SLAVE), None), "mount --make-rslave /"
        )
        null = os.open("/dev/null", os.O_RDWR)
        for fd in range(3):
            os.dup2(null, fd)
        os.chdir("/")
        signal.signal(signal.SIGHUP, signal.SIG_IGN)
        os.closerange(3, told)
        sleep = shutil.which("sleep", path="/usr/bin:/bin") or "/bin/sleep"
        os.execve(sleep, [_TITLE, "infinity"], {})  # noqa: S606 - no shell is wanted
    except OSError as error:
        os.write(told, f"{error.filename or 'execve'}: {error.strerror}\n".encode())
    finally:
        os._exit(1)


def become_root() -> None:
    """User and group 0 of the user namespace that was entered."""
    try:
        os.setgroups([])
    except PermissionError:
        pass  # a map that an ordinary user may write alone forbids it (user_namespaces(7))
    os.setresgid(0, 0, 0)
    os.setresuid(0, 0, 0)


def enter(holder: Holder) -> None:
    """Put this process, which has a single thread, into the holder's namespaces and make it root there. OSError."""
    opened = [
        (os.open(f"/proc/{holder.process.pid}/ns/{name}", os.O_RDONLY | os.O_CLOEXEC), flag, name)
        for name, flag in _KINDS
    ]
    if not holder.process.lives():
        raise ProcessLookupError(3, "No such process", _TITLE)
    for fd, flag, name in opened:
        _check(_libc.setns(fd, flag), f"setns {name}")
        os.close(fd)
    become_root()


def die_with_parent() -> None:
    """SIGTERM when whoever started this process is gone. After `become_root`, which would undo it (prctl(2))."""
    _check(_libc.prctl(_PR_SET_PDEATHSIG, int(signal.SIGTERM), 0, 0, 0), "prctl")


# --- maps -------------------------------------------------------------------------------------------


def plan_maps() -> tuple[tuple[IdMapping, ...], tuple[IdMapping, ...]]:
    """The maps of uids and gids: root is the user, the rest are the user's subordinate ids; just root, and a warning,
    without those or without newuidmap(1)."""
    user, group = os.getuid(), os.getgid()
    owners = {str(user), _user_name(user)}
    uids = parse_subids(read_subids(Path("/etc/subuid")), owners)
    gids = parse_subids(read_subids(Path("/etc/subgid")), owners)
    missing = ""
    if not (shutil.which("newuidmap") and shutil.which("newgidmap")):
        missing = "newuidmap is missing (Debian: apt install uidmap)"
    elif not (uids and gids):
        missing = f"/etc/subuid and /etc/subgid have no range for {_user_name(user)} (as root: usermod --add-subuids)"
    if missing:
        print(
            f"cove daemon: warning: {missing}: containers have the one user 0, and images with files of others "
            "can't be loaded",
            file=sys.stderr,
        )
        uids = gids = ()
    root = IdMapping(container_id=0, host_id=user, size=1), IdMapping(container_id=0, host_id=group, size=1)
    return (root[0], *plan_map(uids, first=1)), (root[1], *plan_map(gids, first=1))


def _user_name(user: int) -> str:
    import pwd

    try:
        return pwd.getpwuid(user).pw_name
    except KeyError:
        return str(user)


# --- helpers ----------------------------------------------------------------------------------------


def _file(run_dir: Path) -> Path:
    return run_dir / "rootless.json"


def _namespace(pid: str | int) -> str:
    try:
        return os.readlink(f"/proc/{pid}/ns/user")
    except OSError:
        return ""


_NS_GET_PARENT = 0xB702  # ioctl_ns(2)


def _descends(pid: str, holder: Holder) -> bool:
    """Whether a process's user namespace is the holder's or lies below it."""
    wanted = _namespace(holder.process.pid)
    try:
        fd = os.open(f"/proc/{pid}/ns/user", os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return False
    while True:
        try:
            if os.readlink(f"/proc/self/fd/{fd}") == wanted:
                return True
            above: int = _libc.ioctl(fd, _NS_GET_PARENT)
        finally:
            os.close(fd)
        if above < 0:
            return False
        fd = above


def _reap(pid: int) -> None:
    try:
        os.waitpid(pid, os.WNOHANG)
    except ChildProcessError:
        pass


def _check(result: int, what: str) -> None:
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number), what)
