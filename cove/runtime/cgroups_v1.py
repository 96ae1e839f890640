"""cgroup v1: the effects (see cgroups.py). Also hybrid hosts, whose v2 tree is left alone.

In the devices hierarchy PARENT/guarded holds the default rules; a child made there inherits them. It gets them
before the first container and is never changed afterwards.
"""

from __future__ import annotations

import contextlib
import os
import time
from dataclasses import replace

from cove.model.errors import HostError, NotFound, Unavailable
from cove.runtime import oci
from cove.runtime.cgroups import Cgroups, Waits
from cove.runtime.cgroups_devices import DEFAULT_RULES, effective_rules, v1_changes, v1_lines
from cove.runtime.cgroups_files import (
    list_files,
    make_directory,
    read_file,
    signal_all,
    subdirectories,
    write_file,
    write_limits,
)
from cove.runtime.cgroups_stats import (
    CpuStats,
    HugePageStats,
    IoStats,
    MemoryStats,
    PidsStats,
    Stats,
    huge_page_stats,
    parse_blkio,
    parse_flat,
    parse_number,
    parse_rdma,
)
from cove.runtime.facts import GUARDED, check_parent
from cove.runtime.plan_limits import limit_writes

TYPE_CHECKING = False
if TYPE_CHECKING:
    from cove.runtime.cgroups_oom import OomWatch

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
                    _write_cpuset(directory, "cgroup.clone_children", "1")
                    _fill_cpuset(directory)

    def _make_way(self, path: str, made: list[str]) -> None:
        for hierarchy in self.layout.hierarchies:
            directory = f"{self.layout.root}/{hierarchy.directory}"
            for part in path.strip("/").split("/"):
                directory = f"{directory}/{part}"
                if make_directory(directory):
                    made.append(directory)
                if "cpuset" in hierarchy.controllers:
                    _fill_cpuset(directory)

    def _directory_of(self, path: str) -> dict[str, str]:
        path = path.strip("/")
        return {
            controller: f"{self.layout.root}/{hierarchy.directory}/{path}"
            for hierarchy in self.layout.hierarchies
            for controller in hierarchy.controllers
        }

    # --- limits -----------------------------------------------------------------------------------

    def update(self, path: str, resources: oci.Resources) -> None:
        writes = limit_writes(self.layout, resources)
        if not any(os.path.isdir(directory) for directory in self._directories(path)):
            raise NotFound(f"cgroup {path} does not exist: start the container first")
        for controller in {write.controller for write in writes}:
            self._join_late(controller, path)
        write_limits(self._directory_of(path), writes)
        if resources.devices and "devices" in self.layout.controllers:
            self._change_devices(self.layout.directory("devices", path.strip("/")), resources.devices)

    def _change_devices(self, directory: str, rules: tuple[oci.DeviceRule, ...]) -> None:
        for file, line in v1_changes(read_file(f"{directory}/devices.list"), effective_rules(rules)):
            try:
                write_file(f"{directory}/{file}", line)
            except OSError as error:
                raise HostError(
                    f"cgroup {directory}: can't write {line!r} to {file}: {error.strerror}"
                ) from None

    def _join_late(self, controller: str, path: str) -> None:
        """A hierarchy that the container didn't join at its start (cpuset, without a need) is joined now."""
        directory = self.layout.directory(controller, path)
        if os.path.isdir(directory):
            return
        make_directory(directory)
        if controller == "cpuset":
            _fill_cpuset(directory)
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

    # --- processes --------------------------------------------------------------------------------

    def freezing(self, path: str, timeout_s: float = 10.0) -> Waits:
        directory = self._freezer(path)
        deadline, delay_s = time.monotonic() + timeout_s, 0.0005
        while True:
            # written again each time: a process that was being forked makes the state fall back to FREEZING
            self._set_frozen(directory, "FROZEN")
            if read_file(f"{directory}/freezer.state").strip() == "FROZEN":
                return
            if time.monotonic() >= deadline:
                self._set_frozen(directory, "THAWED")
                raise HostError(
                    f"cgroup {path}: not all processes could be frozen within {timeout_s:g} s, they run again"
                )
            yield delay_s
            delay_s = min(delay_s * 2, 0.05)

    def thawing(self, path: str, timeout_s: float = 10.0) -> Waits:
        directory = self._freezer(path)
        self._set_frozen(directory, "THAWED")
        if read_file(f"{directory}/freezer.state").strip() == "FROZEN":
            raise HostError(f"cgroup {path}: an outer cgroup is frozen, thaw that first")
        yield from ()

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

    def killing(self, path: str, timeout_s: float = 10.0) -> Waits:
        if not self.list_pids(path):
            return
        # frozen processes can't fork away from the signals; they die when thawed
        if "freezer" in self.layout.controllers and os.path.isdir(self.layout.directory("freezer", path)):
            try:
                yield from self.freezing(path, min(timeout_s, 1.0))
            except (HostError, NotFound):  # the last process may have gone meanwhile, and the cgroup with it
                pass
            signal_all(self.list_pids(path))
            with contextlib.suppress(NotFound):
                yield from self.thawing(path)
        yield from self._emptying(path, timeout_s)

    # --- observation ------------------------------------------------------------------------------

    def read_stats(self, path: str) -> Stats:
        if not any(os.path.isdir(directory) for directory in self._directories(path)):
            raise NotFound(f"cgroup {path} does not exist: the container is not running")
        return Stats(
            cpu=self._cpu(path),
            memory=self._memory(path),
            pids=self._pids(path),
            io=self._io(path),
            huge_pages=self._huge_pages(path),
            rdma=parse_rdma(self._file("rdma", path, "rdma.current")),
        )

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
            bursts=throttling.get("nr_bursts", 0),
            burst_ns=throttling.get("burst_time", 0),
        )

    def _memory(self, path: str) -> MemoryStats:
        return MemoryStats(
            usage_bytes=parse_number(self._file("memory", path, "memory.usage_in_bytes")),
            max_usage_bytes=parse_number(self._file("memory", path, "memory.max_usage_in_bytes")),
            limit_bytes=parse_number(self._file("memory", path, "memory.limit_in_bytes")),
            failures=parse_number(self._file("memory", path, "memory.failcnt")),
            oom_kills=parse_flat(self._file("memory", path, "memory.oom_control")).get("oom_kill", 0),
            swap_usage_bytes=parse_number(self._file("memory", path, "memory.memsw.usage_in_bytes")),
            swap_limit_bytes=parse_number(self._file("memory", path, "memory.memsw.limit_in_bytes")),
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

    def _huge_pages(self, path: str) -> dict[str, HugePageStats]:
        if "hugetlb" not in self.layout.controllers:
            return {}
        directory = self.layout.directory("hugetlb", path.strip("/"))
        return huge_page_stats(
            list_files(directory),
            lambda name: read_file(f"{directory}/{name}"),
            "usage_in_bytes",
            "max_usage_in_bytes",
            "failcnt",
        )

    def watch_oom(self, path: str) -> OomWatch:
        if "memory" not in self.layout.controllers:
            raise Unavailable("OOM events need the memory cgroup, which is not mounted on this host")
        from cove.runtime.cgroups_oom import OomWatchV1

        return OomWatchV1(self.layout.directory("memory", path))

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


def _fill_cpuset(directory: str) -> None:
    """A new cpuset is empty and takes no process: it gets its parent's processors and nodes."""
    outer = os.path.dirname(directory)
    for name in ("cpuset.cpus", "cpuset.mems"):
        if not read_file(f"{directory}/{name}").strip():
            _write_cpuset(directory, name, read_file(f"{outer}/{name}").strip())


def _write_cpuset(directory: str, name: str, value: str) -> None:
    try:
        write_file(f"{directory}/{name}", value)
    except OSError as error:
        raise HostError(f"can't prepare cgroup {directory}: {name}: {error.strerror}") from None
