"""cgroup v2, the unified tree: the effects (see cgroups.py).

The parent delegates its controllers to the containers' cgroups, so no process may live in it (the "no internal
processes" rule, cgroups(7)).
"""

from __future__ import annotations

import asyncio
import ctypes
import errno
import os
from dataclasses import replace

import msgspec.structs

from cove.model.errors import HostError, NotFound, Unavailable
from cove.runtime import oci
from cove.runtime.cgroups import (
    Cgroups,
    OomWatch,
    make_directory,
    read_file,
    signal_all,
    wait_until_empty,
    write_file,
    write_limit,
)
from cove.runtime.cgroups_stats import (
    CpuStats,
    MemoryStats,
    PidsStats,
    Stats,
    parse_flat,
    parse_io_stat,
    parse_number,
)
from cove.runtime.facts import check_parent
from cove.runtime.plan_cgroups import limit_writes

_CONTROLLERS = ("cpu", "cpuset", "io", "memory", "pids")

# feature -> a file of a child cgroup
_FEATURE_FILES = {
    "memory": "memory.max",
    "swap": "memory.swap.max",
    "reservation": "memory.low",
    "cpu_shares": "cpu.weight",
    "cpu_cfs": "cpu.max",
    "cpuset": "cpuset.cpus",
    "pids": "pids.max",
    "read_bps": "io.max",
    "write_bps": "io.max",
    "read_iops": "io.max",
    "write_iops": "io.max",
    "freezer": "cgroup.freeze",
}


class CgroupsV2(Cgroups):
    def setup(self) -> None:
        self.ensure_parent(self.layout.parent)
        directory = f"{self.layout.root}/{self.layout.parent}"
        # features are those of a container's cgroup, so look into one
        probe = f"{directory}/probe"
        make_directory(probe)
        try:
            found = {name for name, file in _FEATURE_FILES.items() if os.path.exists(f"{probe}/{file}")}
            if any(os.path.exists(f"{probe}/{file}") for file in ("io.weight", "io.bfq.weight")):
                found.add("blkio_weight")
            if os.path.exists(f"{probe}/io.bfq.weight"):
                found.add("blkio_weight_device")
        finally:
            os.rmdir(probe)
        self.layout = replace(self.layout, features=frozenset({*found, "devices"}))

    def ensure_parent(self, parent: str) -> None:
        directory = self.layout.root
        self._delegate(directory)
        for part in check_parent(parent).split("/"):
            directory = f"{directory}/{part}"
            make_directory(directory)
            self._delegate(directory)

    def _delegate(self, directory: str) -> None:
        """Enable the controllers for the cgroups below; one at a time, as one refused refuses all."""
        have = read_file(f"{directory}/cgroup.subtree_control").split()
        available = read_file(f"{directory}/cgroup.controllers").split()
        for controller in _CONTROLLERS:
            if controller not in available or controller in have:
                continue
            try:
                write_file(f"{directory}/cgroup.subtree_control", f"+{controller}")
            except OSError as error:
                if error.errno == errno.EBUSY and directory != self.layout.root:
                    raise HostError(
                        f"cgroup {directory} has processes of its own, so it can't be a parent: move them to a "
                        "cgroup below it, or use another --cgroup-parent"
                    ) from None
                # the limits that need this controller are reported as missing

    # --- limits and processes ---------------------------------------------------------------------

    def update(self, path: str, resources: oci.Resources) -> None:
        directory = self._existing(path)
        memory = resources.memory
        if memory is not None and memory.swap is not None and memory.limit is None:
            # swap is given together with memory, and written without: it takes the limit that holds
            limit = parse_number(read_file(f"{directory}/memory.max")) or -1
            kept = msgspec.structs.replace(memory, limit=limit)
            resources = msgspec.structs.replace(resources, memory=kept)
        for write in limit_writes(self.layout, resources):
            write_limit(f"{directory}/{write.file}", write.value, optional=write.optional)

    async def freeze(self, path: str, timeout_s: float = 10.0) -> None:
        try:
            await self._set_frozen(path, True, timeout_s)
        except HostError:
            write_file(f"{self._existing(path)}/cgroup.freeze", "0")
            raise

    async def thaw(self, path: str, timeout_s: float = 10.0) -> None:
        await self._set_frozen(path, False, timeout_s)

    async def _set_frozen(self, path: str, frozen: bool, timeout_s: float) -> None:
        directory = self._existing(path)
        loop = asyncio.get_running_loop()
        deadline, delay_s = loop.time() + timeout_s, 0.0005
        try:
            write_file(f"{directory}/cgroup.freeze", str(int(frozen)))
        except OSError as error:
            raise HostError(f"cgroup {directory}: can't be frozen or thawed: {error.strerror}") from None
        while parse_flat(read_file(f"{directory}/cgroup.events")).get("frozen") != int(frozen):
            if loop.time() >= deadline:
                done = "frozen" if frozen else "thawed"
                raise HostError(f"cgroup {path}: not all processes were {done} within {timeout_s:g} s")
            await asyncio.sleep(delay_s)
            delay_s = min(delay_s * 2, 0.05)

    def is_frozen(self, path: str) -> bool:
        return read_file(f"{self.layout.root}/{path.strip('/')}/cgroup.freeze").strip() == "1"

    async def kill(self, path: str, timeout_s: float = 10.0) -> None:
        directory = f"{self.layout.root}/{path.strip('/')}"
        if not self.list_pids(path):
            return
        try:
            write_file(f"{directory}/cgroup.kill", "1")  # Linux 5.14
        except OSError:
            signal_all(self.list_pids(path))
        if not await wait_until_empty(self, path, timeout_s, killing=True):
            left = ", ".join(map(str, self.list_pids(path)[:8]))
            raise HostError(f"cgroup {path}: processes {left} did not die within {timeout_s:g} s of SIGKILL")

    # --- observation ------------------------------------------------------------------------------

    def _existing(self, path: str) -> str:
        directory = f"{self.layout.root}/{path.strip('/')}"
        if not os.path.isdir(directory):
            raise NotFound(f"cgroup {path} does not exist: the container is not running")
        return directory

    def read_stats(self, path: str) -> Stats:
        directory = self._existing(path)
        cpu = parse_flat(read_file(f"{directory}/cpu.stat"))
        events = parse_flat(read_file(f"{directory}/memory.events"))
        return Stats(
            cpu=CpuStats(
                usage_ns=cpu.get("usage_usec", 0) * 1000,
                user_ns=cpu.get("user_usec", 0) * 1000,
                system_ns=cpu.get("system_usec", 0) * 1000,
                periods=cpu.get("nr_periods", 0),
                throttled_periods=cpu.get("nr_throttled", 0),
                throttled_ns=cpu.get("throttled_usec", 0) * 1000,
            ),
            memory=MemoryStats(
                usage_bytes=parse_number(read_file(f"{directory}/memory.current")),
                max_usage_bytes=parse_number(read_file(f"{directory}/memory.peak")),  # Linux 5.19
                limit_bytes=parse_number(read_file(f"{directory}/memory.max")),
                failures=events.get("max", 0),
                oom_kills=events.get("oom_kill", 0),
                stat=parse_flat(read_file(f"{directory}/memory.stat")),
            ),
            pids=PidsStats(
                current=parse_number(read_file(f"{directory}/pids.current")),
                limit=parse_number(read_file(f"{directory}/pids.max")),
            ),
            io=parse_io_stat(read_file(f"{directory}/io.stat")),
        )

    def watch_oom(self, path: str) -> OomWatch:
        events = f"{self._existing(path)}/memory.events"
        if not os.path.exists(events):
            raise Unavailable("OOM events need the memory controller, which this host's cgroups don't have")
        return _OomWatchV2(events)

    def _directories(self, path: str) -> list[str]:
        return [f"{self.layout.root}/{path.strip('/')}"]


_IN_MODIFY = 0x2
_IN_NONBLOCK, _IN_CLOEXEC = os.O_NONBLOCK, os.O_CLOEXEC
_libc = ctypes.CDLL(None, use_errno=True)


class _OomWatchV2(OomWatch):
    """memory.events is "modified" when one of its numbers grows (cgroup-v2.rst of the kernel): inotify(7)."""

    def __init__(self, events: str) -> None:
        self._events = events
        self._inotify = _libc.inotify_init1(_IN_NONBLOCK | _IN_CLOEXEC)
        if self._inotify < 0 or _libc.inotify_add_watch(self._inotify, os.fsencode(events), _IN_MODIFY) < 0:
            number = ctypes.get_errno()
            self.close()
            raise HostError(f"no OOM events of {events}: {os.strerror(number)}")
        self._seen = self._kills()

    def _kills(self) -> int:
        return parse_flat(read_file(self._events)).get("oom_kill", 0)

    def fileno(self) -> int:
        return int(self._inotify)

    def take(self) -> bool:
        try:
            while os.read(self._inotify, 4096):
                pass
        except BlockingIOError:
            pass
        before, self._seen = self._seen, max(self._kills(), self._seen)
        return self._seen > before

    def close(self) -> None:
        if self._inotify >= 0:
            os.close(self._inotify)
            self._inotify = -1
