"""cgroup v1: the effects (see cgroups.py). Also hybrid hosts, whose v2 tree is left alone.

In the devices hierarchy PARENT/guarded holds the default rules; a child made there inherits them. It gets them
before the first container and is never changed afterwards.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
from dataclasses import replace

from cove.model.errors import HostError, NotFound, Unavailable
from cove.runtime import oci
from cove.runtime.cgroups import (
    Cgroups,
    OomWatch,
    make_directory,
    read_file,
    signal_all,
    subdirectories,
    wait_until_empty,
    write_file,
    write_limit,
)
from cove.runtime.cgroups_devices import DEFAULT_RULES, v1_lines
from cove.runtime.cgroups_stats import (
    CpuStats,
    IoStats,
    MemoryStats,
    PidsStats,
    Stats,
    parse_blkio,
    parse_flat,
    parse_number,
)
from cove.runtime.facts import GUARDED, check_parent
from cove.runtime.plan_cgroups import Write, limit_writes

# feature -> (controller, file of a child cgroup)
_FEATURE_FILES = {
    "memory": ("memory", ("memory.limit_in_bytes",)),
    "swap": ("memory", ("memory.memsw.limit_in_bytes",)),
    "reservation": ("memory", ("memory.soft_limit_in_bytes",)),
    "swappiness": ("memory", ("memory.swappiness",)),
    "oom_kill_disable": ("memory", ("memory.oom_control",)),
    "kernel_memory_tcp": ("memory", ("memory.kmem.tcp.limit_in_bytes",)),
    "cpu_shares": ("cpu", ("cpu.shares",)),
    "cpu_cfs": ("cpu", ("cpu.cfs_quota_us",)),
    "cpu_realtime": ("cpu", ("cpu.rt_runtime_us",)),
    "cpuset": ("cpuset", ("cpuset.cpus",)),
    "pids": ("pids", ("pids.max",)),
    "blkio_weight": ("blkio", ("blkio.weight", "blkio.bfq.weight")),
    "blkio_weight_device": ("blkio", ("blkio.weight_device", "blkio.bfq.weight_device")),
    "read_bps": ("blkio", ("blkio.throttle.read_bps_device",)),
    "write_bps": ("blkio", ("blkio.throttle.write_bps_device",)),
    "read_iops": ("blkio", ("blkio.throttle.read_iops_device",)),
    "write_iops": ("blkio", ("blkio.throttle.write_iops_device",)),
    "devices": ("devices", ("devices.deny",)),
    "freezer": ("freezer", ("freezer.state",)),
}


class CgroupsV1(Cgroups):
    def setup(self) -> None:
        self.ensure_parent(self.layout.parent)
        if "devices" in self.layout.controllers:
            self._setup_guarded()
        self.layout = replace(self.layout, features=self._find_features())

    def _setup_guarded(self) -> None:
        guarded = self.layout.directory("devices", f"{self.layout.parent}/{GUARDED}")
        make_directory(guarded)
        # "deny all" is refused once there are containers below; allowing again what is allowed is always fine, so
        # that a setup which was cut short is completed
        fresh = read_file(f"{guarded}/devices.list").split() == ["a", "*:*", "rwm"]
        for file, line in v1_lines(DEFAULT_RULES):
            if file == "devices.deny" and not fresh:
                continue
            try:
                write_file(f"{guarded}/{file}", line)
            except OSError as error:
                raise HostError(
                    f"cgroup {guarded}: can't write {line!r} to {file}: {error.strerror}"
                ) from None

    def _find_features(self) -> frozenset[str]:
        found = set()
        for feature, (controller, files) in _FEATURE_FILES.items():
            if controller in self.layout.controllers:
                directory = self.layout.directory(controller, self.layout.parent)
                if any(os.path.exists(f"{directory}/{file}") for file in files):
                    found.add(feature)
        return frozenset(found)

    def ensure_parent(self, parent: str) -> None:
        name = check_parent(parent)
        for hierarchy in self.layout.hierarchies:
            directory = f"{self.layout.root}/{hierarchy.directory}"
            for part in name.split("/"):
                directory = f"{directory}/{part}"
                make_directory(directory)
                if "cpuset" in hierarchy.controllers:
                    _fill_cpuset(directory)

    # --- limits -----------------------------------------------------------------------------------

    def update(self, path: str, resources: oci.Resources) -> None:
        writes = limit_writes(self.layout, resources)
        if not any(os.path.isdir(directory) for directory in self._directories(path)):
            raise NotFound(f"cgroup {path} does not exist: start the container first")
        for controller in {write.controller for write in writes}:
            self._join_late(controller, path)
        memory = resources.memory
        if memory is not None and memory.limit is not None and memory.swap is not None:
            writes = self._order_memory(path, memory.limit, writes)
        for write in writes:
            target = f"{self.layout.directory(write.controller, path)}/{write.file}"
            write_limit(target, write.value, optional=write.optional)

    def _join_late(self, controller: str, path: str) -> None:
        """A hierarchy that the container didn't join at its start (cpuset, without a need) is joined now."""
        directory = self.layout.directory(controller, path)
        if os.path.isdir(directory):
            return
        make_directory(directory)
        moved: set[int] = set()
        while new := set(self.list_pids(path)) - moved:
            for pid in new:
                try:
                    write_file(f"{directory}/cgroup.procs", str(pid))
                except ProcessLookupError:
                    continue
                except OSError as error:
                    raise HostError(
                        f"cgroup {directory}: can't move process {pid}: {error.strerror}"
                    ) from None
            moved |= new

    def _order_memory(self, path: str, limit: int, writes: list[Write]) -> list[Write]:
        """memory.limit_in_bytes may never exceed memory.memsw.limit_in_bytes: raise the second one first."""
        swap_file = f"{self.layout.directory('memory', path)}/memory.memsw.limit_in_bytes"
        current = parse_number(read_file(swap_file))
        if current and (limit < 0 or limit > current):
            first = [write for write in writes if write.file == "memory.memsw.limit_in_bytes"]
            return first + [write for write in writes if write not in first]
        return writes

    # --- processes --------------------------------------------------------------------------------

    async def freeze(self, path: str, timeout_s: float = 10.0) -> None:
        directory = self._freezer(path)
        loop = asyncio.get_running_loop()
        deadline, delay_s = loop.time() + timeout_s, 0.0005
        while True:
            # written again each time: a process that was being forked makes the state fall back to FREEZING
            self._set_frozen(directory, "FROZEN")
            if read_file(f"{directory}/freezer.state").strip() == "FROZEN":
                return
            if loop.time() >= deadline:
                self._set_frozen(directory, "THAWED")
                raise HostError(
                    f"cgroup {path}: not all processes could be frozen within {timeout_s:g} s, they run again"
                )
            await asyncio.sleep(delay_s)
            delay_s = min(delay_s * 2, 0.05)

    async def thaw(self, path: str, timeout_s: float = 10.0) -> None:
        directory = self._freezer(path)
        self._set_frozen(directory, "THAWED")
        if read_file(f"{directory}/freezer.state").strip() == "FROZEN":
            raise HostError(f"cgroup {path}: an outer cgroup is frozen, thaw that first")

    def is_frozen(self, path: str) -> bool:
        if "freezer" not in self.layout.controllers:
            return False
        state = read_file(f"{self.layout.directory('freezer', path)}/freezer.state").strip()
        return state in ("FROZEN", "FREEZING")

    def _freezer(self, path: str) -> str:
        if "freezer" not in self.layout.controllers:
            raise Unavailable("pausing needs the freezer cgroup, which is not mounted on this host")
        return self.layout.directory("freezer", path)

    def _set_frozen(self, directory: str, state: str) -> None:
        try:
            write_file(f"{directory}/freezer.state", state)
        except FileNotFoundError:
            raise NotFound(f"cgroup {directory} does not exist: start the container first") from None
        except OSError as error:
            raise HostError(f"cgroup {directory}: can't write {state}: {error.strerror}") from None

    async def kill(self, path: str, timeout_s: float = 10.0) -> None:
        if not self.list_pids(path):
            return
        # frozen processes can't fork away from the signals; they die when thawed
        if "freezer" in self.layout.controllers and os.path.isdir(self.layout.directory("freezer", path)):
            try:
                await self.freeze(path, min(timeout_s, 1.0))
            except (HostError, NotFound):  # the last process may have gone meanwhile, and the cgroup with it
                pass
            signal_all(self.list_pids(path))
            with contextlib.suppress(NotFound):
                await self.thaw(path)
        if not await wait_until_empty(self, path, timeout_s, killing=True):
            left = ", ".join(map(str, self.list_pids(path)[:8]))
            raise HostError(f"cgroup {path}: processes {left} did not die within {timeout_s:g} s of SIGKILL")

    # --- observation ------------------------------------------------------------------------------

    def read_stats(self, path: str) -> Stats:
        if not any(os.path.isdir(directory) for directory in self._directories(path)):
            raise NotFound(f"cgroup {path} does not exist: the container is not running")
        return Stats(cpu=self._cpu(path), memory=self._memory(path), pids=self._pids(path), io=self._io(path))

    def _file(self, controller: str, path: str, name: str) -> str:
        if controller not in self.layout.controllers:
            return ""
        return read_file(f"{self.layout.directory(controller, path)}/{name}")

    def _cpu(self, path: str) -> CpuStats:
        percpu = self._file("cpuacct", path, "cpuacct.usage_percpu").split()
        users = [
            line.split()
            for line in self._file("cpuacct", path, "cpuacct.usage_all").splitlines()
            if line[:1].isdigit()
        ]
        throttling = parse_flat(self._file("cpu", path, "cpu.stat"))
        return CpuStats(
            usage_ns=parse_number(self._file("cpuacct", path, "cpuacct.usage")),
            percpu_ns=tuple(int(value) for value in percpu),
            user_ns=sum(int(fields[1]) for fields in users),
            system_ns=sum(int(fields[2]) for fields in users),
            periods=throttling.get("nr_periods", 0),
            throttled_periods=throttling.get("nr_throttled", 0),
            throttled_ns=throttling.get("throttled_time", 0),
        )

    def _memory(self, path: str) -> MemoryStats:
        return MemoryStats(
            usage_bytes=parse_number(self._file("memory", path, "memory.usage_in_bytes")),
            max_usage_bytes=parse_number(self._file("memory", path, "memory.max_usage_in_bytes")),
            limit_bytes=parse_number(self._file("memory", path, "memory.limit_in_bytes")),
            failures=parse_number(self._file("memory", path, "memory.failcnt")),
            oom_kills=parse_flat(self._file("memory", path, "memory.oom_control")).get("oom_kill", 0),
            stat=parse_flat(self._file("memory", path, "memory.stat")),
        )

    def _pids(self, path: str) -> PidsStats:
        return PidsStats(
            current=parse_number(self._file("pids", path, "pids.current")),
            limit=parse_number(self._file("pids", path, "pids.max")),
        )

    def _io(self, path: str) -> IoStats:
        prefix = "blkio.throttle"
        return IoStats(
            bytes_recursive=parse_blkio(self._file("blkio", path, f"{prefix}.io_service_bytes_recursive")),
            operations_recursive=parse_blkio(self._file("blkio", path, f"{prefix}.io_serviced_recursive")),
        )

    def watch_oom(self, path: str) -> OomWatch:
        if "memory" not in self.layout.controllers:
            raise Unavailable("OOM events need the memory cgroup, which is not mounted on this host")
        return _OomWatchV1(self.layout.directory("memory", path))

    def _directories(self, path: str) -> list[str]:
        path = path.strip("/")
        directories = [f"{self.layout.root}/{each.directory}/{path}" for each in self.layout.hierarchies]
        parent, _, name = path.rpartition("/")
        if "devices" in self.layout.controllers and parent == self.layout.parent and name != GUARDED:
            directories.append(self.layout.directory("devices", f"{parent}/{GUARDED}/{name}"))
        return directories

    def list_containers(self) -> list[str]:
        found = set(super().list_containers())
        if "devices" in self.layout.controllers:
            guarded = self.layout.directory("devices", f"{self.layout.parent}/{GUARDED}")
            found.update(f"{self.layout.parent}/{name}" for name in subdirectories(guarded))
        return sorted(found)


class _OomWatchV1(OomWatch):
    """memory.oom_control by cgroup.event_control and an eventfd(2) (cgroup-v1/memory.rst of the kernel).

    The counter goes up by one each time memory runs out, before the kill, and by one more when the cgroup is
    removed: that one is taken off.
    """

    def __init__(self, directory: str) -> None:
        self._control = f"{directory}/memory.oom_control"
        self._signals = self._told = 0
        self._event = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        try:
            control = os.open(self._control, os.O_RDONLY | os.O_CLOEXEC)
            try:
                write_file(f"{directory}/cgroup.event_control", f"{self._event} {control}")
            finally:
                os.close(control)
        except FileNotFoundError:
            self.close()
            raise NotFound(f"cgroup {directory} does not exist: start the container first") from None
        except OSError as error:
            self.close()
            raise HostError(f"cgroup {directory}: no OOM events: {error.strerror}") from None

    def fileno(self) -> int:
        return self._event

    def take(self) -> bool:
        try:
            self._signals += os.eventfd_read(self._event)
        except BlockingIOError:
            pass
        # looked at after the counter: a removal in between makes us tell later, never wrongly
        happened = self._signals if os.path.exists(self._control) else self._signals - 1
        before, self._told = self._told, max(happened, self._told)
        return self._told > before

    def close(self) -> None:
        if self._event >= 0:
            os.close(self._event)
            self._event = -1


def _fill_cpuset(directory: str) -> None:
    """A new cpuset is empty and takes no process; children made later are to be like their parent."""
    outer = os.path.dirname(directory)
    try:
        write_file(f"{directory}/cgroup.clone_children", "1")
        for name in ("cpuset.cpus", "cpuset.mems"):
            if not read_file(f"{directory}/{name}").strip():
                write_file(f"{directory}/{name}", read_file(f"{outer}/{name}").strip())
    except OSError as error:
        raise HostError(f"can't prepare cgroup {directory}: {error.strerror}") from None
