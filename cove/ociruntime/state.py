"""A container's state directory, ROOT/ID (0700), and what can be told from it.

    state.json   written atomically, first before anything is made on the host: whatever kills the runtime, `delete
                 --force` finds in there what to take down
    config.json  the configuration that the container was made of
    go, status   the FIFOs of a container whose process waits for `start`

mkdir(2) of the directory claims the id. The status is never stored but computed, from the process (its start time tells
it from a later one with the same pid), the FIFO `go` (the waiting process holds it open) and the freezer.

    creating ──▶ created ──start──▶ running ◀──▶ paused
        └───────────┴──────────────────┴──────────▶ stopped ──delete──▶ (gone)
"""

from __future__ import annotations

import errno
import os
import select

from cove.model import wirejson
from cove.model.errors import Conflict, HostError, Invalid, NotFound
from cove.ociruntime import cgroup

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

_ALLOWED = frozenset("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_+-.")


class Container:
    """What state.json says. `data` has the keys

    ociVersion, id, bundle, rootfs, created, annotations   as `state` prints them
    pid, start     the first process and its start time in clock ticks (proc_pid_stat(5)); 0 until there is one
    maker          pid and start time of the runtime that makes it; null once it is made
    cgroup         its path in every hierarchy
    cgroups        directories that make up its cgroup, one in each hierarchy
    scope          its scope and that one's slice when systemd made the cgroup, else null
    mount_at       where its root is mounted on the host, "" when it has a mount namespace of its own
    freezer        control file of the freezer, "" without one
    own_pids       whether it has a pid namespace of its own: with the first process all others end
    poststart, poststop   whether there are such hooks
    after_hold     what the steps behind Hold do, by index, for the message of a start that fails
    """

    def __init__(self, directory: str, data: dict[str, Any]) -> None:
        self.directory = directory
        self.data = data

    @property
    def id(self) -> str:
        return str(self.data["id"])

    @property
    def pid(self) -> int:
        return int(self.data["pid"])

    @property
    def cgroup(self) -> str:
        """Its path in every hierarchy. Raises Conflict for a container without a cgroup."""
        if not self.data["cgroup"]:
            raise Conflict(
                f"container {self.id} has no cgroup, which its user couldn't make: have one delegated for that"
            )
        return str(self.data["cgroup"])

    def save(self) -> None:
        """Write state.json, atomically."""
        write_atomically(f"{self.directory}/state.json", wirejson.dumps(self.data))

    def status(self) -> str:
        """creating, created, running, paused or stopped."""
        if self.data["maker"] is not None:
            return "creating" if _lives(*self.data["maker"]) else "stopped"
        if not self.lives():
            return "stopped"
        if cgroup.is_frozen(self.data["freezer"]):
            return "paused"
        return "created" if self.waits() else "running"

    def lives(self) -> bool:
        """Whether the first process is there and no zombie."""
        return bool(self.pid) and _lives(self.pid, self.data["start"])

    def waits(self) -> bool:
        """Whether the process waits for its start: it has both ends of the FIFO open."""
        try:
            os.close(os.open(f"{self.directory}/go", os.O_WRONLY | os.O_NONBLOCK | os.O_CLOEXEC))
        except OSError as error:
            if error.errno in (errno.ENXIO, errno.ENOENT):
                return False
            raise
        return True

    def open_process(self) -> int:
        """A pidfd of the first process; the caller closes it. Raises Conflict when it has ended."""
        try:
            if not self.pid:
                raise ProcessLookupError
            pidfd = os.pidfd_open(self.pid)
        except ProcessLookupError:
            raise Conflict("container not running") from None
        if self.lives():  # asked after the pidfd was opened: it is that process
            return pidfd
        os.close(pidfd)
        raise Conflict("container not running")

    def end_maker(self) -> None:
        """Kill the runtime that still makes it, and wait for its end: cove-init undoes then what it has begun."""
        if self.data["maker"] is None:
            return
        pid, start = self.data["maker"]
        try:
            pidfd = os.pidfd_open(pid)
        except ProcessLookupError:
            return
        try:
            if _lives(pid, start):
                import _signal  # type: ignore[import-not-found]

                _signal.pidfd_send_signal(pidfd, 9)
                poll = select.poll()
                poll.register(pidfd, select.POLLIN)
                poll.poll(10_000)
        finally:
            os.close(pidfd)

    def public(self, status: str) -> dict[str, Any]:
        """The state of the specification (runtime.md, "State"), as hooks get it."""
        data = self.data
        state: dict[str, Any] = {"ociVersion": data["ociVersion"], "id": data["id"], "status": status}
        if status != "stopped" and self.pid:
            state["pid"] = self.pid
        state["bundle"] = data["bundle"]
        if data["annotations"]:
            state["annotations"] = data["annotations"]
        return state

    def remove(self) -> None:
        """Remove the state directory; what vanishes meanwhile is fine."""
        remove_directory(self.directory)


def check_id(name: str) -> str:
    """An id that is a plain name of a directory. Raises Invalid."""
    if not name:
        raise Invalid("container id cannot be empty")
    if not _ALLOWED.issuperset(name) or name in (".", "..") or len(name) > 1024:
        raise Invalid(f"invalid container ID format: {name!r} may have letters, digits, _, +, - and . alone")
    return name


def claim(root: str, name: str) -> str:
    """Make the state directory of a new container. Raises Conflict when the id is taken."""
    check_id(name)
    directory = f"{root}/{name}"
    umask = os.umask(0o077)  # the caller's may give others the directories above, or us nothing
    try:
        os.makedirs(root, exist_ok=True)
        os.mkdir(directory)
    except FileExistsError:
        raise Conflict(f"container with given ID already exists: {name}") from None
    except OSError as error:
        raise HostError(f"mkdir {directory}: {(error.strerror or '').lower()}") from None
    finally:
        os.umask(umask)
    return directory


def load(root: str, name: str) -> Container:
    """Read a container. Raises NotFound when there is none."""
    directory = f"{root}/{check_id(name)}"
    try:
        with open(f"{directory}/state.json", encoding="utf-8", errors="surrogateescape") as file:
            text = file.read()
    except FileNotFoundError:
        raise NotFound(f"container does not exist: {name}") from None
    try:
        return Container(directory, wirejson.loads(text))
    except ValueError as error:
        raise HostError(f"{directory}/state.json: {error}") from None


def list_ids(root: str) -> list[str]:
    """The ids of all containers, in order."""
    try:
        entries = os.listdir(root)
    except FileNotFoundError:
        return []
    return sorted(name for name in entries if os.path.exists(f"{root}/{name}/state.json"))


def start_time(pid: int) -> int:
    """Field 22 of proc_pid_stat(5): clock ticks after the boot. 0 when the process is gone or a zombie."""
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            fields = file.read().rpartition(b")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return 0
    return 0 if fields[0] in (b"Z", b"X") else int(fields[19])


def _lives(pid: int, start: int) -> bool:
    return start != 0 and start_time(pid) == start


def write_atomically(path: str, text: str, mode: int = 0o600) -> None:
    """Write a file under another name, then rename it: a reader finds all of it or none."""
    directory, _, name = path.rpartition("/")
    temporary = f"{directory or '.'}/.{name}.{os.getpid()}"
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, mode)
    try:
        try:
            data = text.encode(errors="surrogateescape")
            while data:  # a disk that is nearly full takes a part
                data = data[os.write(descriptor, data) :]
        finally:
            os.close(descriptor)
        os.rename(temporary, path)
    except BaseException:
        try:
            os.unlink(temporary)
        except FileNotFoundError:
            pass  # a `delete --force` has taken the directory
        raise


def remove_directory(directory: str) -> None:
    """Remove a state directory, the plain files in it, and the directory `root` that was mounted upon."""
    try:
        entries = os.listdir(directory)
    except FileNotFoundError:
        return
    for name in entries:
        try:
            if name == "root":
                os.rmdir(f"{directory}/{name}")
            else:
                os.unlink(f"{directory}/{name}")
        except FileNotFoundError:
            pass
    try:
        os.rmdir(directory)
    except FileNotFoundError:
        pass
