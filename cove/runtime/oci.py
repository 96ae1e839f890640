"""The OCI runtime-spec configuration (config.json, version 1.2), as far as Cove executes it.

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


class Root(_Oci, frozen=True, kw_only=True):
    path: str
    readonly: bool = False


class Mount(_Oci, frozen=True, kw_only=True):
    """One mount, in the order in which it is made. `options` are mount(8)'s, as in the specification.

    `subpath` is Cove's: a path below a bind's source, at which the source is taken for the root.
    """

    destination: str
    type: str = ""
    source: str = ""
    subpath: str = ""
    options: tuple[str, ...] = ()


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
    kernel_tcp: int | None = msgspec.field(default=None, name="kernelTCP")
    swappiness: int | None = None
    disable_oom_killer: bool = msgspec.field(default=False, name="disableOOMKiller")


class Cpu(_Oci, frozen=True, kw_only=True):
    shares: int | None = None
    quota: int | None = None  # microseconds in a period; -1 is unlimited
    period: int | None = None
    realtime_runtime: int | None = None
    realtime_period: int | None = None
    cpus: str = ""
    mems: str = ""


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
    default_action: str
    default_errno_ret: int | None = None
    architectures: tuple[str, ...] = ()
    flags: tuple[str, ...] = ()
    syscalls: tuple[SeccompSyscall, ...] = ()


class Linux(_Oci, frozen=True, kw_only=True):
    namespaces: tuple[Namespace, ...] = ()
    devices: tuple[LinuxDevice, ...] = ()
    cgroups_path: str = ""
    resources: Resources | None = None
    rootfs_propagation: str = ""
    seccomp: Seccomp | None = None
    sysctl: Mapping[str, str] = {}
    masked_paths: tuple[str, ...] = ()
    readonly_paths: tuple[str, ...] = ()


class Config(_Oci, frozen=True, kw_only=True):
    """A container's configuration: everything that a plan is made of."""

    oci_version: str = VERSION
    root: Root
    process: Process
    mounts: tuple[Mount, ...] = ()
    hostname: str = ""
    domainname: str = ""
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
