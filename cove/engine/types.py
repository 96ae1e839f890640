"""What the engine takes and gives beside the stored objects: options, handles, answers. No I/O."""

from __future__ import annotations

from asyncio import Future
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, NamedTuple

from cove.model.container import Container, Model, State, Ulimit
from cove.network.model import InterfaceStatistics
from cove.runtime.cgroups_stats import CpuClock, Stats
from cove.runtime.plan_inputs import IdMaps

WaitCondition = Literal["not-running", "next-exit", "removed"]


class View(NamedTuple):
    """A container as committed: its record and its state, read without a lock."""

    container: Container
    state: State


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """What a daemon was started with; every name is this daemon's own."""

    data_root: Path
    run_dir: Path
    native: Path  # cove-init's file
    cgroup_parent: str = "cove"  # with systemd's driver: a slice, "" for system.slice
    cgroup_driver: Literal["cgroupfs", "systemd"] = "cgroupfs"
    scope_prefix: str = "cove"  # of the names of scopes
    remap: IdMaps | None = None  # `--userns-remap`
    debug: bool = False
    labels: tuple[str, ...] = ()  # the daemon's own, NAME=VALUE
    live_restore: bool = True  # False: containers are stopped when the daemon ends
    shutdown_timeout_s: float = 15.0  # of that; negative: for ever
    default_stop_timeout_s: float = 10.0
    # what a container gets that doesn't say otherwise (engine/defaults.py)
    default_log_driver: str = "local"
    default_log_options: Mapping[str, str] = field(default_factory=dict)
    default_ulimits: tuple[Ulimit, ...] = ()
    default_shm_size_bytes: int = 0  # 0: as the plan has it
    default_ipc_mode: str = ""
    default_cgroupns_mode: str = ""
    default_storage_size_bytes: int = 0  # of a writable layer; 0: no limit
    init: bool = False
    no_new_privileges: bool = False
    seccomp_profile: str = ""  # "", "unconfined", or a profile's JSON
    seccomp_name: str = "builtin"  # what `info` calls it
    dns: tuple[str, ...] = ()
    dns_search: tuple[str, ...] = ()
    dns_options: tuple[str, ...] = ()
    publish_address: str = ""  # of the host, for ports that name none; "": all
    host_gateways: tuple[str, ...] = ()  # what host-gateway stands for; (): the default bridge's addresses
    cdi_spec_dirs: tuple[str, ...] = ("/etc/cdi", "/var/run/cdi")
    dedupe: bool = False  # after a load, pull or build
    image_policy: str = ""  # the file that says which images may be pulled and run
    # registries
    registry_mirrors: tuple[str, ...] = ()  # URL (of Docker Hub), or HOST=URL
    insecure_registries: tuple[str, ...] = ()
    max_downloads: int = 3  # layers at a time
    build_cache_bytes: int = 20 << 30  # what builds may keep that no image has; 0: no limit
    max_uploads: int = 5  # layers of a push at a time
    download_attempts: int = 5

    @property
    def root_point(self) -> Path:
        """An empty directory on which roots of containers in a user namespace are attached: its root may not pass
        the data root."""
        return self.run_dir / "root"

    @property
    def containers_dir(self) -> Path:
        return self.data_root / "containers"

    def container_dir(self, container_id: str) -> Path:
        return self.containers_dir / container_id

    def log_dir(self, container_id: str) -> Path:
        return self.containers_dir / container_id / "log"

    @property
    def unsent_dir(self) -> Path:
        """Logs of removed containers that aren't sent yet."""
        return self.data_root / "unsent"

    def state_dir(self, container_id: str) -> Path:
        return self.run_dir / "containers" / container_id

    def exec_dir(self, exec_id: str) -> Path:
        return self.run_dir / "exec" / exec_id


@dataclass(frozen=True, slots=True, kw_only=True)
class AttachOptions:
    """Which streams a client wants, and how they are framed."""

    stdin: bool = False
    stdout: bool = False
    stderr: bool = False
    multiplex: bool = True  # 8-byte frames; ignored (off) for a terminal
    detach_keys: bytes | None = None  # None: ctrl-p ctrl-q
    stream: bool = True
    logs: bool = False


@dataclass(frozen=True, slots=True)
class WaitResult:
    exit_code: int
    error: str = ""


@dataclass(slots=True)
class WaitHandle:
    """A registered wait: made before the answer's header goes out, so that no exit is missed."""

    future: Future[WaitResult]

    async def result(self) -> WaitResult:
        return await self.future

    def cancel(self) -> None:
        self.future.cancel()


class ExecSpec(Model, frozen=True, kw_only=True):
    """What `exec_create` was asked for."""

    args: tuple[str, ...]
    env: tuple[str, ...] = ()
    user: str = ""
    working_dir: str = ""
    tty: bool = False
    privileged: bool = False
    attach_stdin: bool = False
    attach_stdout: bool = False
    attach_stderr: bool = False
    detach_keys: str = ""
    rows: int = 0  # the terminal's size unless the start gives one; 0: unknown
    cols: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class ExecView:
    id: str
    container_id: str
    spec: ExecSpec
    running: bool = False
    started: bool = False
    exit_code: int | None = None
    pid: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Top:
    """`docker top`: the columns' titles and a row for each process."""

    titles: list[str]
    processes: list[list[str]]


@dataclass(frozen=True, slots=True, kw_only=True)
class ContainerStats:
    """One reading of a container's counters: what `Engine.stats` gives. All zero when it doesn't run."""

    read_ns: int  # since the epoch
    cgroup: Stats
    clock: CpuClock  # the host's, read together with the cgroup
    interfaces: tuple[InterfaceStatistics, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class HostInfo:
    """What `docker info` shows of this host and daemon."""

    id: str
    name: str
    kernel: str
    operating_system: str
    os_version: str
    architecture: str
    cpus: int
    memory_bytes: int
    cgroup_driver: str  # cgroupfs, systemd, none
    cgroup_version: int
    containers: int
    running: int
    paused: int
    stopped: int
    images: int
    data_root: str
    default_log_driver: str
    log_drivers: list[str]
    missing: list[str] = field(default_factory=list)  # limits and features this host lacks, as sentences
    security: list[str] = field(default_factory=list)
    started_ns: int = 0
    open_files: int = 0
    tasks: int = 0
    event_listeners: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Pruned:
    deleted: list[str]
    reclaimed_bytes: int
