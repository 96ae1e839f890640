"""The OCI runtime-spec configuration (config.json, version 1.2 and 1.3's additions).

Pure. Types follow https://github.com/opencontainers/runtime-spec (config.md, config-linux.md) field by
field; unknown fields are passed over when reading, as the specification demands (config.md,
"Extensibility"), absent ones keep their defaults and aren't written. Values are frozen and made of
tuples, so that constant parts are shared between containers and can be cache keys.

`parse_config` answers for shape, ranges and version; what must fit together is for oci_check.py, and what this
host lacks for host_check.py. Text comes from outside; a `Config` that the daemon makes itself is checked by its maker.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, TypeVar

import msgspec

from cove.runtime.capabilities import NUMBERS
from cove.runtime.oci_words import invalid

VERSION = "1.3.0"
MAX_BYTES = 16 << 20  # of a config.json; the largest real ones have some hundred kilobytes

U16 = Annotated[int, msgspec.Meta(ge=0, le=2**16 - 1)]
U32 = Annotated[int, msgspec.Meta(ge=0, le=2**32 - 1)]
I32 = Annotated[int, msgspec.Meta(ge=-(2**31), le=2**31 - 1)]
I64 = Annotated[int, msgspec.Meta(ge=-(2**63), le=2**63 - 1)]
U64 = Annotated[
    int, msgspec.Meta(ge=0)
]  # msgspec takes no bound above int64: _check_values has the upper one


class _Oci(msgspec.Struct, frozen=True, kw_only=True, rename="camel", omit_defaults=True):
    """Base of all parts: camelCase names in JSON, defaults left out."""


class IdMapping(_Oci, frozen=True, kw_only=True):
    """`size` ids from `container_id` on inside are those from `host_id` on outside (user_namespaces(7))."""

    container_id: U32 = msgspec.field(name="containerID")
    host_id: U32 = msgspec.field(name="hostID")
    size: U32


class Root(_Oci, frozen=True, kw_only=True):
    path: str
    readonly: bool = False


class Mount(_Oci, frozen=True, kw_only=True):
    """One mount, in the order in which it is made. `options` are mount(8)'s, as in the specification.

    `subpath` is Cove's: a path below a bind's source, at which the source is taken for the root. So is `layers`: the
    bind is of the overlay of these directories below the source, lowest first. With mappings the
    mount shows files of `container_id` as owned by `host_id` (options idmap, ridmap; mount_setattr(2)).
    """

    destination: str
    type: str = ""
    source: str = ""
    subpath: str = ""
    layers: tuple[str, ...] = ()
    options: tuple[str, ...] = ()
    uid_mappings: tuple[IdMapping, ...] = ()
    gid_mappings: tuple[IdMapping, ...] = ()


class User(_Oci, frozen=True, kw_only=True):
    """`username` is Cove's: "name", "uid:group" … not resolved yet; uid and gid count when it is ""."""

    uid: U32 = 0
    gid: U32 = 0
    umask: U32 | None = None
    additional_gids: tuple[U32, ...] = ()
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
    soft: U64
    hard: U64


class ConsoleSize(_Oci, frozen=True, kw_only=True):
    height: U16
    width: U16


class Scheduler(_Oci, frozen=True, kw_only=True):
    """sched_setattr(2); `policy` SCHED_OTHER …, flags SCHED_FLAG_*, times in nanoseconds."""

    policy: str
    nice: I32 = 0
    priority: I32 = 0
    flags: tuple[str, ...] = ()
    runtime: U64 = 0
    deadline: U64 = 0
    period: U64 = 0


class IoPriority(_Oci, frozen=True, kw_only=True):
    """ioprio_set(2); `io_class` IOPRIO_CLASS_RT, _BE or _IDLE."""

    io_class: str = msgspec.field(name="class")
    priority: I32 = 0


class ExecCpuAffinity(_Oci, frozen=True, kw_only=True):
    """Processors ("0-3,7") of an exec: until it is in the container's cgroup, and from then on."""

    initial: str = ""
    final: str = ""


class Process(_Oci, frozen=True, kw_only=True):
    """What runs in the container. `cwd` is written always: the specification requires it."""

    args: tuple[str, ...] = ()
    env: tuple[str, ...] = ()
    cwd: str
    terminal: bool = False
    console_size: ConsoleSize | None = None
    user: User = User()
    capabilities: Capabilities | None = None
    rlimits: tuple[Rlimit, ...] = ()
    no_new_privileges: bool = False
    apparmor_profile: str = ""
    selinux_label: str = ""
    oom_score_adj: I64 | None = None
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
    major: I64 = 0
    minor: I64 = 0
    file_mode: U32 = 0o666
    uid: U32 = 0
    gid: U32 = 0


class DeviceRule(_Oci, frozen=True, kw_only=True):
    """A rule of the devices controller; None means any number, `type` "a" or "" any type."""

    allow: bool
    type: str = ""
    major: I64 | None = None
    minor: I64 | None = None
    access: str = ""


class Memory(_Oci, frozen=True, kw_only=True):
    """Bytes; -1 is unlimited. `swap` is memory plus swap, as in cgroup v1."""

    limit: I64 | None = None
    reservation: I64 | None = None
    swap: I64 | None = None
    kernel: I64 | None = None
    kernel_tcp: I64 | None = msgspec.field(default=None, name="kernelTCP")
    swappiness: U64 | None = None
    disable_oom_killer: bool = msgspec.field(default=False, name="disableOOMKiller")
    use_hierarchy: bool = False
    check_before_update: bool = False


class Cpu(_Oci, frozen=True, kw_only=True):
    shares: U64 | None = None
    quota: I64 | None = None  # microseconds in a period; -1 is unlimited
    period: U64 | None = None
    realtime_runtime: I64 | None = None
    realtime_period: U64 | None = None
    burst: U64 | None = None  # microseconds
    idle: I64 | None = None  # 1: SCHED_IDLE for the cgroup
    cpus: str = ""
    mems: str = ""


class HugepageLimit(_Oci, frozen=True, kw_only=True):
    page_size: str  # 2MB, 1GB …
    limit: U64  # bytes


class InterfacePriority(_Oci, frozen=True, kw_only=True):
    name: str
    priority: U32


class NetworkLimits(_Oci, frozen=True, kw_only=True):
    """v1's net_cls and net_prio."""

    class_id: U32 | None = msgspec.field(default=None, name="classID")
    priorities: tuple[InterfacePriority, ...] = ()


class Rdma(_Oci, frozen=True, kw_only=True):
    hca_handles: U32 | None = None
    hca_objects: U32 | None = None


class Pids(_Oci, frozen=True, kw_only=True):
    limit: I64 | None = None  # less than 0 is unlimited


class IoWeightDevice(_Oci, frozen=True, kw_only=True):
    major: I64
    minor: I64
    weight: U16 | None = None
    leaf_weight: U16 | None = None  # CFQ's, before Linux 5.0


class IoThrottleDevice(_Oci, frozen=True, kw_only=True):
    major: I64
    minor: I64
    rate: U64


class BlockIo(_Oci, frozen=True, kw_only=True):
    weight: U16 | None = None
    leaf_weight: U16 | None = None
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
    index: U32
    value: U64
    value_two: U64 = 0
    op: str = "SCMP_CMP_EQ"


class SeccompSyscall(_Oci, frozen=True, kw_only=True):
    names: tuple[str, ...]
    action: str
    errno_ret: U32 | None = None
    args: tuple[SeccompArg, ...] = ()


class Seccomp(_Oci, frozen=True, kw_only=True):
    """`listener_path` is a unix socket that gets the descriptor of a filter with SCMP_ACT_NOTIFY."""

    default_action: str
    default_errno_ret: U32 | None = None
    architectures: tuple[str, ...] = ()
    flags: tuple[str, ...] = ()
    listener_path: str = ""
    listener_metadata: str = ""
    syscalls: tuple[SeccompSyscall, ...] = ()


class TimeOffset(_Oci, frozen=True, kw_only=True):
    """What a clock of a time namespace is ahead of the host's (time_namespaces(7))."""

    secs: I64 = 0
    nanosecs: U32 = 0


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


class NetDevice(_Oci, frozen=True, kw_only=True):
    """A network device of the host that moves into the container; `name` is the one that it gets there."""

    name: str = ""


class Linux(_Oci, frozen=True, kw_only=True):
    namespaces: tuple[Namespace, ...] = ()
    uid_mappings: tuple[IdMapping, ...] = ()
    gid_mappings: tuple[IdMapping, ...] = ()
    time_offsets: Mapping[str, TimeOffset] = {}
    devices: tuple[LinuxDevice, ...] = ()
    net_devices: Mapping[str, NetDevice] = {}
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
    timeout: I64 | None = None


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


class _Head(msgspec.Struct):
    ociVersion: str = ""  # noqa: N815 - read first: another version's fields may mean other things


T = TypeVar("T", bound=_Oci)
_head_decoder = msgspec.json.Decoder(_Head)
_decoders: dict[type[_Oci], msgspec.json.Decoder[_Oci]] = {}
_encoder = msgspec.json.Encoder()


def parse_config(text: bytes | str, warnings: list[str] | None = None) -> Config:
    """Read a config.json: wrong types, numbers out of range and unknown versions raise Invalid with the path of the
    field, as `config.json: process.user.uid: expected a number, got a string`.

    What is taken in another form than it was given is said in `warnings`: destinations of mounts are made absolute
    (relative ones start at /, config.md, "Mounts"), unknown capabilities are left out (a newer kernel's, as runc does).
    """
    config = _parse(text, Config, "config.json", versioned=True)
    told = [] if warnings is None else warnings
    mounts = tuple(_settle_mount(index, mount, told) for index, mount in enumerate(config.mounts))
    return msgspec.structs.replace(
        config, mounts=mounts, process=_settle_process(config.process, "config.json: process.", told)
    )


def parse_process(text: bytes | str, warnings: list[str] | None = None) -> Process:
    """Read the `process` object alone, as `exec --process FILE` takes it. Raises Invalid as `parse_config`."""
    told = [] if warnings is None else warnings
    return _settle_process(_parse(text, Process, "process"), "process: ", told)


def parse_resources(text: bytes | str) -> Resources:
    """Read the `linux.resources` object alone, as `update --resources FILE` takes it. Raises Invalid."""
    return _parse(text, Resources, "resources")


def _parse(text: bytes | str, shape: type[T], name: str, *, versioned: bool = False) -> T:
    if len(text) > MAX_BYTES:
        raise invalid(f"{name}: {len(text)} bytes is too long: write less than {MAX_BYTES >> 20} MiB")
    try:
        data = text.encode() if isinstance(text, str) else text
        value = _decode(data, shape, name, versioned)
    except (msgspec.DecodeError, UnicodeError, RecursionError):
        from cove.runtime import oci_errors  # slow, and seldom wanted

        data = oci_errors.without_nulls(text, name)
        try:
            value = _decode(data, shape, name, versioned)
        except msgspec.ValidationError as error:
            raise oci_errors.explain(error, data, shape, name) from None
    if b"\\u0000" in data or _LONG_NUMBER in data.translate(_DIGITS):
        from cove.runtime import oci_errors

        oci_errors.check_values(value, name)
    return value


def _decode(data: bytes, shape: type[T], name: str, versioned: bool) -> T:
    if versioned:
        _check_version(_head_decoder.decode(data).ociVersion, name)
    decoder = _decoders.get(shape)
    if decoder is None:
        decoder = _decoders[shape] = msgspec.json.Decoder(shape)
    return decoder.decode(data)  # type: ignore[return-value]


_DIGITS = bytes(ord("0") if ord("0") <= byte <= ord("9") else byte for byte in range(256))
_LONG_NUMBER = b"0" * 20  # 2**64 and more


def _check_version(version: str, name: str) -> None:
    """Any 1.x (semver.org): later ones only add fields, which are passed over."""
    if not version:
        raise invalid(
            f'{name}: ociVersion: is missing: name the version of the specification, e.g. "{VERSION}"'
        )
    numbers = version.partition("+")[0].partition("-")[0].split(".")
    if len(numbers) != 3 or not all(number.isascii() and number.isdigit() for number in numbers):
        raise invalid(
            f'{name}: ociVersion: "{version}" is no version of the specification: use e.g. "{VERSION}"'
        )
    if numbers[0] != "1":
        raise invalid(f'{name}: ociVersion: "{version}" is not supported: use 1.0.0 to 1.x, e.g. "{VERSION}"')


def _settle_mount(index: int, mount: Mount, warnings: list[str]) -> Mount:
    given = mount.destination
    if (
        given.startswith("/")
        and "//" not in given
        and "/." not in given
        and (given[-1] != "/" or given == "/")
    ):
        return mount
    if not given.startswith("/"):
        if not given:
            raise invalid(
                f"config.json: mounts[{index}].destination: is empty: give an absolute path, e.g. /data"
            )
        warnings.append(
            f'config.json: mounts[{index}].destination: "{given}" is relative, which is deprecated: '
            "it is taken as relative to /"
        )
    parts: list[str] = []
    for part in given.split("/"):
        if part == "..":
            del parts[-1:]
        elif part not in ("", "."):
            parts.append(part)
    return msgspec.structs.replace(mount, destination="/" + "/".join(parts))


def _settle_process(process: Process, place: str, warnings: list[str]) -> Process:
    if not process.args:
        raise invalid(f"{place}args: is empty: name the program to run")
    if not process.cwd.startswith("/"):
        raise invalid(f'{place}cwd: "{process.cwd}" must be an absolute path, e.g. /')
    if process.capabilities is None:
        return process
    sets = _settle_capabilities(process.capabilities, f"{place}capabilities", warnings)
    return process if sets is process.capabilities else msgspec.structs.replace(process, capabilities=sets)


def _settle_capabilities(sets: Capabilities, place: str, warnings: list[str]) -> Capabilities:
    """Leave out what no process can have: unknown ones, and, without a word, ambient ones that aren't permitted and
    inheritable (capabilities(7)): runc passes them over, too, and `runc spec` writes such configs."""
    raisable = set(sets.permitted) & set(sets.inheritable)
    kept = {}
    for kind in Capabilities.__struct_fields__:
        names: tuple[str, ...] = getattr(sets, kind)
        unknown = [name for name in names if name not in NUMBERS]
        if unknown:
            warnings.append(f"{place}.{kind}: left out, for they are unknown: {', '.join(unknown)}")
        possible = tuple(
            name for name in names if name in NUMBERS and (kind != "ambient" or name in raisable)
        )
        if possible != names:
            kept[kind] = possible
    return msgspec.structs.replace(sets, **kept) if kept else sets


def place_in_bundle(config: Config, bundle: str) -> Config:
    """The config with absolute host paths: root.path and sources of binds are relative to the bundle (config.md)."""
    mounts = tuple(
        msgspec.structs.replace(mount, source=f"{bundle}/{mount.source}")
        if mount.source
        and not mount.source.startswith("/")
        and (mount.type == "bind" or "bind" in mount.options or "rbind" in mount.options)
        else mount
        for mount in config.mounts
    )
    root = config.root
    if not root.path.startswith("/"):
        root = msgspec.structs.replace(root, path=f"{bundle}/{root.path}")
    return msgspec.structs.replace(config, root=root, mounts=mounts)


def encode_config(config: Config) -> bytes:
    """The config.json of `config`, with ociVersion first as every reader expects it."""
    raw = msgspec.to_builtins(config)
    return _encoder.encode({"ociVersion": config.oci_version, **raw})
