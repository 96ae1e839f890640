"""Containers: what a person asks for, what the engine decided, what was observed.

No I/O. Every type is frozen; a change makes a new value (`msgspec.structs.replace`). The
three records have three owners: a `ContainerSpec` is the caller's, a `Container` is written
by the engine at create, rename and update, a `State` is written at every transition.

    created ──start──> running ──exit──> exited ──start──> running
                       │  ▲ │            restarting ──back-off──> running
                 pause ▼  │ └─exit, restart policy──▲
                      paused             any ──rm──> removing ──> (gone), or dead if that failed
"""

from __future__ import annotations

from typing import Literal

import msgspec

from cove.model.base import Model as Model
from cove.model.extension import Extension, OnUnhealthy, Probe
from cove.model.recreation import Recreated

# --- mounts -------------------------------------------------------------------------------


class Bind(Model, frozen=True, kw_only=True, tag="bind"):
    """A host path shown in the container (`-v /src:/dst`, `--mount type=bind`)."""

    source: str
    target: str
    readonly: bool = False
    propagation: str = "rprivate"  # rprivate, private, rshared, shared, rslave, slave
    recursive: bool = True
    readonly_below: Literal["", "no", "force"] = (
        ""  # what is mounted below: as the kernel can, not, or refuse
    )
    create_source: bool = False  # -v makes a missing source directory, --mount refuses it


class Volume(Model, frozen=True, kw_only=True, tag="volume"):
    """A named volume; an anonymous one has the name "" until the engine gives it one."""

    name: str
    target: str
    readonly: bool = False
    copy_up: bool = True  # fill an empty volume with the image's content at `target`
    driver: str = ""
    driver_options: dict[str, str] = {}
    labels: dict[str, str] = {}
    subpath: str = ""


class Tmpfs(Model, frozen=True, kw_only=True, tag="tmpfs"):
    """A memory-backed mount (`--tmpfs`, `--mount type=tmpfs`)."""

    target: str
    size_bytes: int = 0  # 0: the kernel's default, half of the memory
    mode: int = 0o1777
    options: tuple[str, ...] = ()  # as in mount(8): noexec, uid=…; checked at the edge


class ImageMount(Model, frozen=True, kw_only=True, tag="image"):
    """Another image's files, read-only (`--mount type=image`)."""

    image: str  # the reference
    target: str
    subpath: str = ""


Mount = Bind | Volume | Tmpfs | ImageMount


class VolumesFrom(Model, frozen=True, kw_only=True):
    """`--volumes-from CONTAINER[:ro|rw]`."""

    container: str
    readonly: bool = False


# --- process, network, limits -------------------------------------------------------------


class HealthCheck(Model, frozen=True, kw_only=True):
    """`HEALTHCHECK` of an image or `--health-*`; an empty test inherits, ["NONE"] disables."""

    test: tuple[str, ...] = ()
    probe: Probe | None = None  # takes the test's place
    interval_ns: int = 0
    timeout_ns: int = 0
    start_period_ns: int = 0
    start_interval_ns: int = 0
    retries: int = 0


class PortBinding(Model, frozen=True, kw_only=True):
    """One published port; `host_port` 0 lets Cove choose, `host_ip` "" means every address."""

    container_port: int
    protocol: Literal["tcp", "udp", "sctp"] = "tcp"
    host_ip: str = ""
    host_port: int = 0
    host_port_end: int = 0  # a range to choose from: host_port … host_port_end, 0: just host_port


class EndpointSpec(Model, frozen=True, kw_only=True):
    """What the caller asked of one network attachment."""

    network: str  # name or id as given; "default" and "bridge" mean the default bridge
    aliases: tuple[str, ...] = ()
    ipv4: str = ""
    ipv6: str = ""
    mac: str = ""
    link_local: tuple[str, ...] = ()  # further addresses, of 169.254.0.0/16 or fe80::/64
    links: tuple[str, ...] = ()  # "CONTAINER:ALIAS": another container's names on this network, in /etc/hosts
    driver_options: dict[str, str] = {}
    gateway_priority: int = 0  # the network with the highest one gives the default route


class RestartPolicy(Model, frozen=True, kw_only=True):
    name: Literal["no", "always", "on-failure", "unless-stopped"] = "no"
    maximum_retries: int = 0


class LogConfig(Model, frozen=True, kw_only=True):
    """`--log-driver`; "" is the daemon's default (`local`)."""

    driver: str = ""
    options: dict[str, str] = {}


class Device(Model, frozen=True, kw_only=True):
    host_path: str
    container_path: str
    permissions: str = "rwm"


class DeviceRequest(Model, frozen=True, kw_only=True):
    """`--gpus`, or `--device vendor.com/class=name`: devices that a driver knows how to bring in."""

    driver: str = ""  # cdi; "" chooses by capabilities
    count: int = 0  # -1: all
    device_ids: tuple[str, ...] = ()
    capabilities: tuple[tuple[str, ...], ...] = ()  # alternatives; all words of one are needed
    options: dict[str, str] = {}


class Ulimit(Model, frozen=True, kw_only=True):
    name: str  # as in getrlimit(2), lower case, without RLIMIT_: nofile
    soft: int  # -1: unlimited
    hard: int


class ThrottleDevice(Model, frozen=True, kw_only=True):
    path: str
    rate: int  # bytes or operations a second


class WeightDevice(Model, frozen=True, kw_only=True):
    path: str
    weight: int


class Resources(Model, frozen=True, kw_only=True):
    """Limits of a cgroup. 0 (or "") means no limit was asked for; -1 lifts one."""

    nano_cpus: int = 0  # 1e9 is one CPU
    cpu_shares: int = 0
    cpu_period_us: int = 0
    cpu_quota_us: int = 0
    cpu_rt_period_us: int = 0
    cpu_rt_runtime_us: int = 0
    cpuset_cpus: str = ""
    cpuset_mems: str = ""
    memory_bytes: int = 0
    memory_swap_bytes: int = 0  # memory plus swap, as Docker's --memory-swap
    memory_reservation_bytes: int = 0
    memory_swappiness: int | None = None
    kernel_memory_tcp_bytes: int = 0
    oom_kill_disable: bool = False
    pids_limit: int = 0
    blkio_weight: int = 0
    blkio_weight_device: tuple[WeightDevice, ...] = ()
    read_bps: tuple[ThrottleDevice, ...] = ()
    write_bps: tuple[ThrottleDevice, ...] = ()
    read_iops: tuple[ThrottleDevice, ...] = ()
    write_iops: tuple[ThrottleDevice, ...] = ()


class ContainerSpec(Model, frozen=True, kw_only=True):
    """What `create` was asked for, decoded and validated; image defaults aren't merged yet."""

    image: str
    name: str = ""
    hostname: str = ""
    domainname: str = ""
    entrypoint: tuple[str, ...] | None = None  # None: the image's; (): none
    command: tuple[str, ...] | None = None
    env: tuple[str, ...] = ()
    working_dir: str = ""
    user: str = ""
    labels: dict[str, str] = {}
    annotations: dict[str, str] = {}
    tty: bool = False
    console_rows: int = 0  # the terminal's size at the start; 0: unknown
    console_cols: int = 0
    open_stdin: bool = False
    stdin_once: bool = False
    attach_stdout: bool = True
    attach_stderr: bool = True
    exposed_ports: tuple[str, ...] = ()  # "80/tcp"
    stop_signal: str = ""
    stop_timeout_s: int | None = None
    healthcheck: HealthCheck | None = None
    mounts: tuple[Mount, ...] = ()
    volumes_from: tuple[VolumesFrom, ...] = ()
    ports: tuple[PortBinding, ...] = ()
    publish_all: bool = False
    network_mode: str = "default"  # default, bridge, none, host, container:ID, or a network's name
    network_disabled: bool = False
    endpoints: tuple[EndpointSpec, ...] = ()
    links: tuple[str, ...] = ()  # "CONTAINER:ALIAS" on the default bridge; the engine puts ids in
    extra_hosts: tuple[str, ...] = ()  # "name:address"
    dns: tuple[str, ...] = ()
    dns_search: tuple[str, ...] = ()
    dns_options: tuple[str, ...] = ()
    restart: RestartPolicy = RestartPolicy()
    auto_remove: bool = False
    log: LogConfig = LogConfig()
    privileged: bool = False
    readonly_rootfs: bool = False
    cap_add: tuple[str, ...] = ()
    cap_drop: tuple[str, ...] = ()
    seccomp: str = ""  # "": the default profile, "unconfined", or a profile's JSON
    apparmor: str = ""
    no_new_privileges: bool | None = None  # None: the daemon's default
    writable_cgroups: bool | None = None  # /sys/fs/cgroup; None: when privileged
    masked_paths: tuple[str, ...] | None = None  # None: the default set
    readonly_paths: tuple[str, ...] | None = None
    init: bool | None = None  # None: the daemon's default
    devices: tuple[Device, ...] = ()
    device_requests: tuple[DeviceRequest, ...] = ()
    device_cgroup_rules: tuple[str, ...] = ()
    resources: Resources = Resources()
    ulimits: tuple[Ulimit, ...] = ()
    oom_score_adj: int = 0
    shm_size_bytes: int = 0  # 0: 64 MiB
    sysctls: dict[str, str] = {}
    group_add: tuple[str, ...] = ()
    pid_mode: str = ""  # "", host, container:ID
    ipc_mode: str = ""  # "", none, private, shareable, host, container:ID
    uts_mode: str = ""  # "", host
    userns_mode: str = ""  # "", host
    cgroupns_mode: str = ""  # "", private, host
    cgroup_parent: str = ""
    storage_size_bytes: int = 0  # of the writable layer; 0: the daemon's default
    extension: Extension = Extension()
    request: msgspec.Raw = msgspec.Raw(b"{}")  # as the API received it, for that API to show again


# --- what the engine decided --------------------------------------------------------------


class MountPoint(Model, frozen=True, kw_only=True):
    """A mount with its source settled: the mount table that inspect shows and the plan uses."""

    kind: Literal["bind", "volume", "tmpfs", "image"]
    target: str
    source: str = ""  # host path; "" for tmpfs
    subpath: str = ""  # below `source`, whose content is a stranger's: resolved at each use, within `source`
    name: str = ""  # the volume's
    driver: str = ""
    readonly: bool = False
    propagation: str = ""
    recursive: bool = True
    readonly_below: Literal["", "no", "force"] = ""  # of a read-only bind: as in Bind
    options: tuple[str, ...] = ()  # tmpfs: size=…, mode=… and the caller's
    anonymous: bool = False
    image: str = ""  # of an image mount: the reference that the caller gave
    image_id: str = ""
    layers: tuple[str, ...] = ()  # of an image mount, below `source`, lowest first; never stored


class Endpoint(Model, frozen=True, kw_only=True):
    """One network attachment while the container runs (addresses as text)."""

    network_id: str
    network_name: str
    endpoint_id: str = ""
    mac: str = ""
    ipv4: str = ""
    ipv4_prefix: int = 0
    gateway4: str = ""
    ipv6: str = ""
    ipv6_prefix: int = 0
    gateway6: str = ""
    interface: str = "eth0"  # its name in the container
    host_interface: str = ""
    aliases: tuple[str, ...] = ()
    link_local: tuple[str, ...] = ()
    gateway_priority: int = 0


class Container(Model, frozen=True, kw_only=True):
    """A container as created. `args` is entrypoint and command with image defaults merged."""

    id: str  # 64 hex digits
    name: str  # without the leading slash
    created_ns: int  # since the epoch
    image_id: str  # "sha256:…"
    image_name: str  # the reference that create was given
    spec: ContainerSpec
    args: tuple[str, ...]
    entrypoint: tuple[str, ...] = ()
    command: tuple[str, ...] = ()
    env: tuple[str, ...] = ()
    working_dir: str = "/"
    user: str = ""
    hostname: str = ""
    labels: dict[str, str] = {}
    exposed_ports: tuple[str, ...] = ()
    stop_signal: str = "SIGTERM"
    mounts: tuple[MountPoint, ...] = ()
    layer: Literal["", "project", "image"] = ""  # what keeps its writable layer to a size
    layer_bytes: int = 0
    log: LogConfig = LogConfig(driver="local")
    healthcheck: HealthCheck | None = None
    recreated: Recreated | None = None  # it took another container's place

    @property
    def short_id(self) -> str:
        return self.id[:12]


Limit = Literal["memory", "pids", "disk"]
Status = Literal["created", "running", "paused", "restarting", "removing", "exited", "dead"]


class ProbeResult(Model, frozen=True, kw_only=True):
    started_ns: int
    ended_ns: int
    exit_code: int  # 0 healthy; -1 when it exceeded its time or couldn't be run
    output: str


class HealthRecord(Model, frozen=True, kw_only=True):
    """What a container's health was when it ended."""

    failing_streak: int = 0
    results: tuple[ProbeResult, ...] = ()


class StepFailure(Model, frozen=True, kw_only=True):
    """The step of its plan at which a start failed; `describe` tells it from another one at that place."""

    section: str  # before, clone, parent, child, exit
    index: int  # within its section
    describe: str
    errno: int


class State(Model, frozen=True, kw_only=True):
    """What was observed of a container, as of its last transition."""

    status: Status = "created"
    pid: int = 0  # of the container's first process, in the host's pid namespace
    supervisor_pid: int = 0
    exit_code: int = 0
    error: str = ""
    oom_killed: bool = False
    started_ns: int = 0  # 0: never
    finished_ns: int = 0
    restart_count: int = 0
    failures_in_row: int = 0  # feeds the back-off
    wanted: bool = False  # start was asked for and stop wasn't: what restart policies go by
    has_been_started: bool = False
    endpoints: tuple[Endpoint, ...] = ()
    ports: tuple[PortBinding, ...] = ()  # with the host ports that were chosen
    live_mounts: dict[str, int] = {}  # added while it runs: the mount ids by target
    held: bool = False  # paused for a commit alone: a daemon that finds it so lets it go on
    failure: StepFailure | None = None  # of the last start, where one of its steps failed
    unhealthy: OnUnhealthy = "none"  # what is being done about a run that became unhealthy, or ended it
    limited: tuple[Limit, ...] = ()  # the limits that this run came up against
    health: HealthRecord | None = None  # of the last run, once that has ended
