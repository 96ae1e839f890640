"""cgroup v2, the unified tree: the effects (see cgroups.py).

The parent delegates its controllers to the containers' cgroups, so no process may live in it (the "no internal
processes" rule, cgroups(7)).
"""

from __future__ import annotations

import errno
import os
import time
from collections.abc import Iterable
from dataclasses import replace

import msgspec.structs

from cove.model.errors import HostError, Invalid, NotFound, Unavailable
from cove.runtime import oci
from cove.runtime.cgroups import Cgroups, Waits
from cove.runtime.cgroups_devices import effective_rules, is_unrestricted, v2_program
from cove.runtime.cgroups_files import (
    list_files,
    make_directory,
    read_file,
    read_pids,
    signal_all,
    write_file,
    write_limits,
)
from cove.runtime.cgroups_stats import (
    CpuStats,
    HugePageStats,
    MemoryStats,
    PidsStats,
    Stats,
    huge_page_stats,
    parse_flat,
    parse_io_stat,
    parse_number,
    parse_pressure,
    parse_rdma,
)
from cove.runtime.facts import check_parent
from cove.runtime.plan_limits import limit_writes

TYPE_CHECKING = False
if TYPE_CHECKING:
    from cove.runtime.cgroups_oom import OomWatch

_CONTROLLERS = ("cpu", "cpuset", "io", "memory", "pids")
_ALWAYS_WRITABLE = (
    "cpu",
    "cpuset",
    "io",
    "memory",
    "pids",
    "hugetlb",
    "rdma",
)  # what limits name, there or not

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
            self._find_features(probe)
        finally:
            os.rmdir(probe)

    def _find_features(self, probe: str) -> None:
        found = {name for name, file in _FEATURE_FILES.items() if os.path.exists(f"{probe}/{file}")}
        if any(os.path.exists(f"{probe}/{file}") for file in ("io.weight", "io.bfq.weight")):
            found.add("blkio_weight")
        if os.path.exists(f"{probe}/io.bfq.weight"):
            found.add("blkio_weight_device")
        self.layout = replace(self.layout, features=frozenset({*found, "devices"}))

    def ensure_parent(self, parent: str) -> None:
        directory = self.layout.root
        self._delegate(directory, _CONTROLLERS)
        for part in check_parent(parent).split("/"):
            directory = f"{directory}/{part}"
            make_directory(directory)
            if not self._delegate(directory, _CONTROLLERS):
                raise HostError(
                    f"cgroup {directory} has processes of its own, so it can't be a parent: move them to a "
                    "cgroup below it, or use another --cgroup-parent"
                )

    def _make_way(self, path: str, made: list[str]) -> None:
        """All controllers there are, for what the container may ask for later. What can't be enabled above a cgroup
        (which has processes of its own, say) is missed when a limit needs it."""
        directory = self.layout.root
        for part in path.strip("/").split("/"):
            self._delegate(directory, read_file(f"{directory}/cgroup.controllers").split())
            directory = f"{directory}/{part}"
            if make_directory(directory):
                made.append(directory)
            kind = read_file(f"{directory}/cgroup.type").strip()
            if kind in ("domain invalid", "threaded"):
                raise Invalid(
                    f"linux.cgroupsPath: {directory} is {kind}, it takes threads only: name a path that isn't below a "
                    "threaded cgroup (cgroups(7), cgroup.type)"
                )

    def _delegate(self, directory: str, controllers: Iterable[str]) -> bool:
        """Enable controllers for the cgroups below; one at a time, as one refused refuses all. False when it has
        processes of its own; the limits that need controllers that are refused are reported as missing.

        With processes the kernel would take the controllers that threads can be divided by (cpu, cpuset, pids) and
        make the cgroup a threaded one, so that none below takes a process any more (cgroups(7)): it isn't even tried.
        """
        have = read_file(f"{directory}/cgroup.subtree_control").split()
        available = read_file(f"{directory}/cgroup.controllers").split()
        missing = [name for name in controllers if name in available and name not in have]
        if missing and directory != self.layout.root and read_pids(directory):
            return False
        for controller in missing:
            try:
                write_file(f"{directory}/cgroup.subtree_control", f"+{controller}")
            except OSError as error:
                if error.errno == errno.EBUSY and directory != self.layout.root:
                    return False
        return True

    def _directory_of(self, path: str) -> dict[str, str]:
        directory = f"{self.layout.root}/{path.strip('/')}"
        return dict.fromkeys(("cgroup", *self.layout.controllers, *_ALWAYS_WRITABLE), directory)

    # --- limits and processes ---------------------------------------------------------------------

    def update(self, path: str, resources: oci.Resources) -> None:
        directory = self._existing(path)
        memory = resources.memory
        if memory is not None and memory.swap is not None and memory.limit is None:
            # swap is given together with memory, and written without: it takes the limit that holds
            limit = parse_number(read_file(f"{directory}/memory.max")) or -1
            memory = msgspec.structs.replace(memory, limit=limit)
            resources = msgspec.structs.replace(resources, memory=memory)
        if memory is not None and memory.check_before_update and memory.limit is not None:
            used = parse_number(read_file(f"{directory}/memory.current"))
            if 0 < memory.limit < used:
                raise Invalid(
                    f"linux.resources.memory.limit: {memory.limit} is less than the {used} bytes in use: give more, or "
                    "leave checkBeforeUpdate out to have the container's processes reclaimed from or killed"
                )
        write_limits(self._directory_of(path), limit_writes(self.layout, resources))
        if resources.devices:
            from cove.runtime.cgroups_bpf import replace_programs

            rules = effective_rules(resources.devices)
            replace_programs(directory, None if is_unrestricted(rules) else v2_program(rules))

    def freezing(self, path: str, timeout_s: float = 10.0) -> Waits:
        try:
            yield from self._set_frozen(path, True, timeout_s)
        except HostError:
            write_file(f"{self._existing(path)}/cgroup.freeze", "0")
            raise

    def thawing(self, path: str, timeout_s: float = 10.0) -> Waits:
        yield from self._set_frozen(path, False, timeout_s)

    def _set_frozen(self, path: str, frozen: bool, timeout_s: float) -> Waits:
        directory = self._existing(path)
        deadline, delay_s = time.monotonic() + timeout_s, 0.0005
        try:
            write_file(f"{directory}/cgroup.freeze", str(int(frozen)))
        except OSError as error:
            raise HostError(f"cgroup {directory}: can't be frozen or thawed: {error.strerror}") from None
        while parse_flat(read_file(f"{directory}/cgroup.events")).get("frozen") != int(frozen):
            if time.monotonic() >= deadline:
                done = "frozen" if frozen else "thawed"
                raise HostError(f"cgroup {path}: not all processes were {done} within {timeout_s:g} s")
            yield delay_s
            delay_s = min(delay_s * 2, 0.05)

    def is_frozen(self, path: str) -> bool:
        return read_file(f"{self.layout.root}/{path.strip('/')}/cgroup.freeze").strip() == "1"

    def killing(self, path: str, timeout_s: float = 10.0) -> Waits:
        directory = f"{self.layout.root}/{path.strip('/')}"
        if not self.list_pids(path):
            return
        try:
            write_file(f"{directory}/cgroup.kill", "1")  # Linux 5.14
        except OSError:
            signal_all(self.list_pids(path))
        yield from self._emptying(path, timeout_s)

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
                bursts=cpu.get("nr_bursts", 0),
                burst_ns=cpu.get("burst_usec", 0) * 1000,
                pressure=parse_pressure(read_file(f"{directory}/cpu.pressure")),
            ),
            memory=MemoryStats(
                usage_bytes=parse_number(read_file(f"{directory}/memory.current")),
                max_usage_bytes=parse_number(read_file(f"{directory}/memory.peak")),  # Linux 5.19
                limit_bytes=parse_number(read_file(f"{directory}/memory.max")),
                failures=events.get("max", 0),
                oom_kills=events.get("oom_kill", 0),
                swap_usage_bytes=parse_number(read_file(f"{directory}/memory.swap.current")),
                swap_limit_bytes=parse_number(read_file(f"{directory}/memory.swap.max")),
                stat=parse_flat(read_file(f"{directory}/memory.stat")),
                pressure=parse_pressure(read_file(f"{directory}/memory.pressure")),
            ),
            pids=PidsStats(
                current=parse_number(read_file(f"{directory}/pids.current")),
                limit=parse_number(read_file(f"{directory}/pids.max")),
            ),
            io=msgspec.structs.replace(
                parse_io_stat(read_file(f"{directory}/io.stat")),
                pressure=parse_pressure(read_file(f"{directory}/io.pressure")),
            ),
            huge_pages=self._huge_pages(directory),
            rdma=parse_rdma(read_file(f"{directory}/rdma.current")),
        )

    def _huge_pages(self, directory: str) -> dict[str, HugePageStats]:
        if "hugetlb" not in self.layout.controllers:
            return {}
        return huge_page_stats(
            list_files(directory), lambda name: read_file(f"{directory}/{name}"), "current", "", "events"
        )

    def watch_oom(self, path: str) -> OomWatch:
        events = f"{self._existing(path)}/memory.events"
        if not os.path.exists(events):
            raise Unavailable("OOM events need the memory controller, which this host's cgroups don't have")
        from cove.runtime.cgroups_oom import OomWatchV2

        return OomWatchV2(events)

    def _directories(self, path: str) -> list[str]:
        return [f"{self.layout.root}/{path.strip('/')}"]
