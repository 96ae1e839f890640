"""The OCI runtime-spec configuration (config.json, version 1.2 and 1.3's additions).

Pure. Types follow https://github.com/opencontainers/runtime-spec (config.md, config-linux.md) field by
field; unknown fields are passed over when reading, as the specification demands (config.md,
"Extensibility"), absent ones keep their defaults and aren't written. Values are frozen and made of
tuples, so that constant parts are shared between containers and can be cache keys.
"""

from __future__ import annotations

from collections.abc import Mapping

import msgspec

from cove.model.errors import Invalid

VERSION = "1.2.0"


class _Oci(msgspec.Struct, frozen=True, kw_only=True, rename="camel", omit_defaults=True):
    """Base of all parts: camelCase names in JSON, defaults left out."""


class IdMapping(_Oci, frozen=True, kw_only=True):
    """`size` ids from `container_id` on inside are those from `host_id` on outside (user_namespaces(7))."""

    container_id: int = msgspec.field(name="containerID")
    host_id: int = msgspec.field(name="hostID")
    size: int


class Root(_Oci, frozen=True, kw_only=True):
    path: str
    readonly: bool = False


class Mount(_Oci, frozen=True, kw_only=True):
    """One mount, in the order in which it is made. `options` are mount(8)'s, as in the specification.

    `subpath` is Cove's: a path below a bind's source, at which the source is taken for the root. With mappings the
    mount shows files of `container_id` as owned by `host_id` (options idmap, ridmap; mount_setattr(2)).
    """

    destination: str
    type: str = ""
    source: str = ""
    subpath: str = ""
    options: tuple[str, ...] = ()
    uid_mappings: tuple[IdMapping, ...] = ()
    gid_mappings: tuple[IdMapping, ...] = ()


class User(_Oci, frozen=True, kw_only=True):
    """`username` is Cove's: "name", "uid:group" … not resolved yet; uid and gid count when it is ""."""

    uid: int = 0
    gid: int = 0
    umask: int | None = None
    additional_gids: tuple[int, ...] = ()
    username: str = ""


class Capabilities(_Oci, frozen=True, kw_only=True):
    bounding: tuple[str, ...] = ()
    effective: tuple[str, ...] = ()
    inheritable: tuple[str, ...] = ()
    permitted: tuple[str, ...] = ()
    ambient: tuple[str, ...] = ()


class Rlimit(_Oci, frozen=True, kw_only=True):
    """`type` is RLIMIT_NOFILE …; limits are unsigned, 2**64-1 is infinity."""

    type: str
    soft: int
    hard: int


class ConsoleSize(_Oci, frozen=True, kw_only=True):
    height: int
    width: int


class Scheduler(_Oci, frozen=True, kw_only=True):
    """sched_setattr(2); `policy` SCHED_OTHER …, flags SCHED_FLAG_*, times in nanoseconds."""

    policy: str
    nice: int = 0
    priority: int = 0
    flags: tuple[str, ...] = ()
    runtime: int = 0
    deadline: int = 0
    period: int = 0


class IoPriority(_Oci, frozen=True, kw_only=True):
    """ioprio_set(2); `io_class` IOPRIO_CLASS_RT, _BE or _IDLE."""

    io_class: str = msgspec.field(name="class")
    priority: int = 0


class ExecCpuAffinity(_Oci, frozen=True, kw_only=True):
    """Processors ("0-3,7") of an exec: until it is in the container's cgroup, and from then on."""

    initial: str = ""
    final: str = ""


class Process(_Oci, frozen=True, kw_only=True):
    args: tuple[str, ...] = ()
    env: tuple[str, ...] = ()
    cwd: str = "/"
    terminal: bool = False
    console_size: ConsoleSize | None = None
    user: User = User()
    capabilities: Capabilities | None = None
    rlimits: tuple[Rlimit, ...] = ()
    no_new_privileges: bool = False
    apparmor_profile: str = ""
    selinux_label: str = ""
    oom_score_adj: int | None = None
    scheduler: Scheduler | None = None
    io_priority: IoPriority | None = None
    exec_cpu_affinity: ExecCpuAffinity | None = msgspec.field(default=None, name="execCPUAffinity")


class Namespace(_Oci, frozen=True, kw_only=True):
    """`type`: mount, pid, network, ipc, uts, cgroup, user or time; with a `path` that one is joined."""

    type: str
    path: str = ""


class LinuxDevice(_Oci, frozen=True, kw_only=True):
    """A node made in the container; `type` c, u, b or p."""

    path: str
    type: str
    major: int = 0
    minor: int = 0
    file_mode: int = 0o666
    uid: int = 0
    gid: int = 0


class DeviceRule(_Oci, frozen=True, kw_only=True):
    """A rule of the devices controller; None means any number, `type` "a" or "" any type."""

    allow: bool
    type: str = ""
    major: int | None = None
    minor: int | None = None
    access: str = ""


class Memory(_Oci, frozen=True, kw_only=True):
    """Bytes; -1 is unlimited. `swap` is memory plus swap, as in cgroup v1."""

    limit: int | None = None
    reservation: int | None = None
    swap: int | None = None
    kernel: int | None = None
    kernel_tcp: int | None = msgspec.field(default=None, name="kernelTCP")
    swappiness: int | None = None
    disable_oom_killer: bool = msgspec.field(default=False, name="disableOOMKiller")
    use_hierarchy: bool = False
    check_before_update: bool = False


class Cpu(_Oci, frozen=True, kw_only=True):
    shares: int | None = None
    quota: int | None = None  # microseconds in a period; -1 is unlimited
    period: int | None = None
    realtime_runtime: int | None = None
    realtime_period: int | None = None
    burst: int | None = None  # microseconds
    idle: int | None = None  # 1: SCHED_IDLE for the cgroup
    cpus: str = ""
    mems: str = ""


class HugepageLimit(_Oci, frozen=True, kw_only=True):
    page_size: str  # 2MB, 1GB …
    limit: int  # bytes


class InterfacePriority(_Oci, frozen=True, kw_only=True):
    name: str
    priority: int


class NetworkLimits(_Oci, frozen=True, kw_only=True):
    """v1's net_cls and net_prio."""

    class_id: int | None = msgspec.field(default=None, name="classID")
    priorities: tuple[InterfacePriority, ...] = ()


class Rdma(_Oci, frozen=True, kw_only=True):
    hca_handles: int | None = None
    hca_objects: int | None = None


class Pids(_Oci, frozen=True, kw_only=True):
    limit: int  # 0 or less is unlimited


class IoWeightDevice(_Oci, frozen=True, kw_only=True):
    major: int
    minor: int
    weight: int


class IoThrottleDevice(_Oci, frozen=True, kw_only=True):
    major: int
    minor: int
    rate: int


class BlockIo(_Oci, frozen=True, kw_only=True):
    weight: int | None = None
    leaf_weight: int | None = None
    weight_device: tuple[IoWeightDevice, ...] = ()
    throttle_read_bps_device: tuple[IoThrottleDevice, ...] = ()
    throttle_write_bps_device: tuple[IoThrottleDevice, ...] = ()
    throttle_read_iops_device: tuple[IoThrottleDevice, ...] = msgspec.field(
        default=(), name="throttleReadIOPSDevice"
    )
    throttle_write_iops_device: tuple[IoThrottleDevice, ...] = msgspec.field(
        default=(), name="throttleWriteIOPSDevice"
    )


class Resources(_Oci, frozen=True, kw_only=True):
    """Limits of the container's cgroup. No device rules at all mean the default set."""

    devices: tuple[DeviceRule, ...] = ()
    memory: Memory | None = None
    cpu: Cpu | None = None
    pids: Pids | None = None
    block_io: BlockIo | None = msgspec.field(default=None, name="blockIO")
    hugepage_limits: tuple[HugepageLimit, ...] = ()
    network: NetworkLimits | None = None
    rdma: Mapping[str, Rdma] = {}
    unified: Mapping[str, str] = {}


class SeccompArg(_Oci, frozen=True, kw_only=True):
    index: int
    value: int
    value_two: int = 0
    op: str = "SCMP_CMP_EQ"


class SeccompSyscall(_Oci, frozen=True, kw_only=True):
    names: tuple[str, ...]
    action: str
    errno_ret: int | None = None
    args: tuple[SeccompArg, ...] = ()


class Seccomp(_Oci, frozen=True, kw_only=True):
    """`listener_path` is a unix socket that gets the descriptor of a filter with SCMP_ACT_NOTIFY."""

    default_action: str
    default_errno_ret: int | None = None
    architectures: tuple[str, ...] = ()
    flags: tuple[str, ...] = ()
    listener_path: str = ""
    listener_metadata: str = ""
    syscalls: tuple[SeccompSyscall, ...] = ()


class TimeOffset(_Oci, frozen=True, kw_only=True):
    """What a clock of a time namespace is ahead of the host's (time_namespaces(7))."""

    secs: int = 0
    nanosecs: int = 0


class IntelRdt(_Oci, frozen=True, kw_only=True):
    """A group of the resctrl file system, and the lines of its schemata."""

    clos_id: str = msgspec.field(default="", name="closID")
    schemata: tuple[str, ...] = ()
    l3_cache_schema: str = ""
    mem_bw_schema: str = ""
    enable_cmt: bool = msgspec.field(default=False, name="enableCMT")
    enable_mbm: bool = msgspec.field(default=False, name="enableMBM")
    enable_monitoring: bool = False


class Personality(_Oci, frozen=True, kw_only=True):
    """personality(2); `domain` LINUX or LINUX32."""

    domain: str
    flags: tuple[str, ...] = ()


class MemoryPolicy(_Oci, frozen=True, kw_only=True):
    """set_mempolicy(2); `mode` MPOL_BIND …, `nodes` "0-3,7", flags MPOL_F_*."""

    mode: str
    nodes: str = ""
    flags: tuple[str, ...] = ()


class Linux(_Oci, frozen=True, kw_only=True):
    namespaces: tuple[Namespace, ...] = ()
    uid_mappings: tuple[IdMapping, ...] = ()
    gid_mappings: tuple[IdMapping, ...] = ()
    time_offsets: Mapping[str, TimeOffset] = {}
    devices: tuple[LinuxDevice, ...] = ()
    cgroups_path: str = ""
    resources: Resources | None = None
    rootfs_propagation: str = ""
    seccomp: Seccomp | None = None
    sysctl: Mapping[str, str] = {}
    masked_paths: tuple[str, ...] = ()
    readonly_paths: tuple[str, ...] = ()
    mount_label: str = ""
    intel_rdt: IntelRdt | None = None
    personality: Personality | None = None
    memory_policy: MemoryPolicy | None = None


class Hook(_Oci, frozen=True, kw_only=True):
    """`args` is the whole argv ((): the path alone); `timeout` seconds, None is no limit."""

    path: str
    args: tuple[str, ...] = ()
    env: tuple[str, ...] = ()
    timeout: int | None = None


class Hooks(_Oci, frozen=True, kw_only=True):
    """config.md, "POSIX-platform Hooks": prestart, create_runtime, poststart and poststop run on the host;
    create_container in the container's namespaces before the pivot, start_container after it."""

    prestart: tuple[Hook, ...] = ()
    create_runtime: tuple[Hook, ...] = ()
    create_container: tuple[Hook, ...] = ()
    start_container: tuple[Hook, ...] = ()
    poststart: tuple[Hook, ...] = ()
    poststop: tuple[Hook, ...] = ()


class Config(_Oci, frozen=True, kw_only=True):
    """A container's configuration: everything that a plan is made of."""

    oci_version: str = VERSION
    root: Root
    process: Process
    mounts: tuple[Mount, ...] = ()
    hostname: str = ""
    domainname: str = ""
    hooks: Hooks = Hooks()
    annotations: Mapping[str, str] = {}
    linux: Linux = Linux()


_decoder = msgspec.json.Decoder(Config)
_encoder = msgspec.json.Encoder()


def parse_config(text: bytes | str) -> Config:
    """Read a config.json. Raises Invalid with the path of the wrong field."""
    try:
        config = _decoder.decode(text)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise Invalid(f"config.json: {error}") from None
    if not config.process.args:
        raise Invalid("config.json: process.args is empty: name the program to run")
    if not config.process.cwd.startswith("/"):
        raise Invalid(f"config.json: process.cwd {config.process.cwd!r} must be an absolute path, e.g. /")
    for mount in config.mounts:
        if not mount.destination.startswith("/"):
            raise Invalid(
                f"config.json: mount destination {mount.destination!r} must be absolute, e.g. /data"
            )
    return config


def encode_config(config: Config) -> bytes:
    """The config.json of `config`, with ociVersion first as every reader expects it."""
    raw = msgspec.to_builtins(config)
    return _encoder.encode({"ociVersion": config.oci_version, **raw})
