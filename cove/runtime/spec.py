"""From a container to its OCI config: all of Docker's semantics, as data. Pure.

`check_spec` refuses at create what could never start. `plan_spec` is called at every start with the facts of
that start. What depends on the host or the mode alone is made once and shared between containers.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache

from msgspec.structs import replace

from cove.model.container import Container, ContainerSpec, MountPoint, Ulimit
from cove.model.errors import Invalid, Unavailable
from cove.runtime import capabilities, oci, seccomp
from cove.runtime.cgroups_devices import ALLOW_ALL, DEFAULT_RULES, parse_rule
from cove.runtime.cgroups_limits import plan_resources
from cove.runtime.facts import DEFAULT_SYSCTLS, READONLY_PATHS, Host, check_parent
from cove.runtime.plan_cgroups import NO_RESOURCES, device_rules
from cove.runtime.plan_inputs import IdMaps, Overlay, PlanFacts, RootSource
from cove.runtime.plan_mounts import RECURSIVE_SINCE
from cove.runtime.plan_process import RLIMITS
from cove.runtime.users import Resolved

DEFAULT_SHM_BYTES = 64 << 20
PLAN_GROUPS = 256  # of SetIds (native/src/process.c)
DEFAULT_PATH = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


@dataclass(frozen=True, slots=True, kw_only=True)
class StartFacts:
    """What one start knows beside the container's record."""

    root: RootSource
    cgroup_path: str  # relative to the hierarchies: "cove/ID"
    hosts_path: str = ""  # host files for /etc/hosts, /etc/hostname, /etc/resolv.conf; "" for none
    hostname_path: str = ""
    resolv_path: str = ""
    secrets_path: str = ""  # a host directory for /run/secrets; "" for none
    joined: Mapping[str, int] = field(
        default_factory=dict
    )  # "network", "pid", "ipc", "user" -> pid of the target
    id_maps: IdMaps | None = None  # of the user namespace that it gets, or joins; None: the host's is its own
    shm_path: str = ""  # host directory for /dev/shm: a shareable container's own, or the joined one's
    devices: tuple[oci.LinuxDevice, ...] = ()  # nodes to make (host.find_devices)
    device_rules: tuple[oci.DeviceRule, ...] = ()  # and the rules for them
    block_numbers: Mapping[str, tuple[int, int]] = field(default_factory=dict)  # cgroups_limits.block_devices
    rows: int = 0  # of the terminal
    cols: int = 0
    setgroups: bool = True  # Host.setgroups; else a user's further groups don't count
    identity: Resolved | None = None  # the user, when it was looked up before; else the plan asks


# --- at create --------------------------------------------------------------------------------------


def check_spec(spec: ContainerSpec, host: Host) -> list[str]:
    """Refuse what can't work, in Docker's words where it has some; returns warnings.

    Limits are checked by `cgroups_limits.check_resources`. Raises Invalid, or Unavailable for what this host
    lacks.
    """
    warnings: list[str] = []
    for field_name, mode, words in (
        ("PID", spec.pid_mode, ("", "host", "private")),
        ("IPC", spec.ipc_mode, ("", "none", "private", "shareable", "host")),
        ("UTS", spec.uts_mode, ("", "host", "private")),
        ("USER", spec.userns_mode, ("", "host")),
        ("cgroup namespace", spec.cgroupns_mode, ("", "private", "host")),
    ):
        joins = (
            field_name in ("PID", "IPC") and mode.startswith("container:") and len(mode) > len("container:")
        )
        if mode not in words and not joins:
            raise Invalid(f"invalid {field_name} mode: {mode}")
    bits = container_capabilities(spec, host)
    seccomp.select(_seccomp_text(spec, host), bits, host.architecture, host.kernel)
    if spec.apparmor not in ("", "unconfined") and "apparmor" not in host.security_modules:
        raise Unavailable(
            f"apparmor profile {spec.apparmor!r}: AppArmor is not enabled on this host, use apparmor=unconfined"
        )
    if not -1000 <= spec.oom_score_adj <= 1000:
        raise Invalid(f"Invalid value {spec.oom_score_adj}, range for oom score adj is [-1000, 1000]")
    if spec.shm_size_bytes < 0:
        raise Invalid("SHM size can not be less than 0")
    if spec.writable_cgroups and host.in_user_namespace:
        raise Invalid("option WritableCgroups conflicts with user namespaces and rootless mode")
    if len(spec.hostname) > 64:
        raise Invalid(f'hostname "{spec.hostname}" is too long (maximum 64 bytes)')
    if spec.uts_mode == "host" and spec.hostname:
        raise Invalid("conflicting options: hostname and the UTS mode")
    if spec.cgroup_parent:
        check_parent(spec.cgroup_parent)
    for rule in spec.device_cgroup_rules:
        parse_rule(rule)
    for device in spec.devices:
        if not device.permissions or set(device.permissions) - set("rwm"):
            raise Invalid(f"invalid device permissions {device.permissions!r}: use letters of rwm, e.g. rw")
    plan_rlimits(spec.ulimits, host)
    plan_sysctls(spec, host, own_network=_own_network(spec.network_mode))
    for key, value in spec.annotations.items():
        if not key:
            raise Invalid(
                f"annotation with value {value!r}: the key is empty, e.g. use org.example.key=value"
            )
    if spec.privileged and spec.device_cgroup_rules:
        warnings.append("Device cgroup rules are ignored in privileged mode.")
    return warnings


def container_capabilities(spec: ContainerSpec, host: Host) -> int:
    """The container's capabilities as a mask."""
    return capabilities.container_mask(
        add=spec.cap_add, drop=spec.cap_drop, privileged=spec.privileged, available=host.capabilities
    )


def _seccomp_text(spec: ContainerSpec, host: Host) -> str:
    """A privileged container has no filter unless one was given (as Docker)."""
    if not spec.seccomp:
        return "unconfined" if spec.privileged else host.default_seccomp
    return "" if spec.seccomp == "builtin" else spec.seccomp


_INFINITY = 2**64 - 1


def plan_rlimits(ulimits: Sequence[Ulimit], host: Host) -> tuple[oci.Rlimit, ...]:
    """`--ulimit`. Raises Invalid; Unavailable for a hard limit that this daemon may not raise."""
    result = []
    for limit in ulimits:
        number = RLIMITS.get(limit.name)
        if number is None:
            raise Invalid(f"invalid ulimit type: {limit.name}: use one of {', '.join(RLIMITS)}")
        soft = _INFINITY if limit.soft == -1 else limit.soft
        hard = _INFINITY if limit.hard == -1 else limit.hard
        if not (0 <= soft <= _INFINITY and 0 <= hard <= _INFINITY):
            raise Invalid(f"ulimit {limit.name}: give numbers from 0 up, or -1 for no limit")
        if soft > hard:
            raise Invalid(
                f"ulimit soft limit must be less than or equal to hard limit: {limit.soft} > {limit.hard}"
            )
        ceiling = dict(host.hard_limits).get(number, _INFINITY)
        if hard > ceiling:
            raise Unavailable(
                f"ulimit {limit.name}={limit.hard}: this daemon lacks CAP_SYS_RESOURCE and can't raise a "
                f"hard limit above its own, {ceiling}"
            )
        result.append(oci.Rlimit(type=f"RLIMIT_{limit.name.upper()}", soft=soft, hard=hard))
    return tuple(result)


_IPC_SYSCTLS = frozenset(
    f"kernel.{name}" for name in "msgmax msgmnb msgmni sem shmall shmmax shmmni shm_rmid_forced".split()
)
_PING, _MOST_PING = "net.ipv4.ping_group_range", 1 << 31
_SYSCTL_NAME = re.compile(r"[A-Za-z0-9_:@+-]+(?:[./][A-Za-z0-9_:@+-]+)+")


def plan_sysctls(
    spec: ContainerSpec, host: Host, *, own_network: bool, groups: int = 1 << 32
) -> dict[str, str]:
    """Docker's default settings of a new network namespace, and `--sysctl`. Everybody may ping: the kernel takes no
    range with more than the `groups` of the user namespace.

    Only what belongs to a namespace of the container's own may be set. Raises Invalid.
    """
    result: dict[str, str] = {}
    if own_network:
        result = {key: value for key, value in DEFAULT_SYSCTLS.items() if key in host.sysctls}
        if _PING in result and groups <= _MOST_PING:
            result[_PING] = f"0 {groups - 1}"
    for key, value in spec.sysctls.items():
        if not _SYSCTL_NAME.fullmatch(key):
            raise Invalid(f'sysctl "{key}": give a name such as net.ipv4.ip_forward')
        if "\0" in value or "\n" in value:
            raise Invalid(f'sysctl "{key}": the value has to be one line')
        dotted = _dotted(key)
        if dotted in _IPC_SYSCTLS or dotted.startswith("fs.mqueue."):
            if spec.ipc_mode == "host":
                raise Invalid(f'sysctl "{key}" is not allowed in the hosts ipc namespace')
        elif dotted.startswith("net."):
            if spec.network_mode == "host":
                raise Invalid(f'sysctl "{key}" is not allowed in the host network namespace')
        elif dotted == "kernel.domainname":
            if spec.uts_mode == "host":
                raise Invalid(f'sysctl "{key}" is not allowed in the host UTS namespace')
        elif dotted == "kernel.hostname":
            raise Invalid(f'sysctl "{key}": use --hostname')
        else:
            raise Invalid(f'sysctl "{key}" is not in a separate kernel namespace')
        result[dotted] = value
    return result


def _dotted(key: str) -> str:
    """sysctl(8): when the first separator is a slash, slashes separate and dots are part of names."""
    slash, dot = key.find("/"), key.find(".")
    if slash >= 0 and (dot < 0 or slash < dot):
        return key.translate({ord("/"): ".", ord("."): "/"})
    return key


# --- at start ---------------------------------------------------------------------------------------


def plan_spec(container: Container, facts: StartFacts, host: Host) -> oci.Config:
    """The OCI config of one start. Raises Invalid for what `check_spec` would have refused."""
    spec = container.spec
    bits = container_capabilities(spec, host)
    root = facts.root.merged if isinstance(facts.root, Overlay) else facts.root.path
    own_network = _own_network(spec.network_mode) and not spec.network_disabled
    own_maps = facts.id_maps if "user" not in facts.joined else None
    return oci.Config(
        root=oci.Root(path=root, readonly=spec.readonly_rootfs),
        process=_plan_process(container, facts, bits, host),
        hostname="" if spec.uts_mode == "host" else container.hostname,
        domainname="" if spec.uts_mode == "host" else spec.domainname,
        mounts=_plan_mounts(container, facts, host),
        annotations=spec.annotations,
        linux=oci.Linux(
            namespaces=_plan_namespaces(spec, facts, host),
            uid_mappings=own_maps.uids if own_maps else (),
            gid_mappings=own_maps.gids if own_maps else (),
            devices=facts.devices,
            cgroups_path=f"/{facts.cgroup_path}",
            resources=_plan_resources(spec, facts, host),
            rootfs_propagation=_root_propagation(container.mounts),
            seccomp=seccomp.select(_seccomp_text(spec, host), bits, host.architecture, host.kernel),
            sysctl=plan_sysctls(spec, host, own_network=own_network, groups=_count_groups(facts, host)),
            masked_paths=_hidden(spec, spec.masked_paths, host.masked_paths),
            readonly_paths=_hidden(spec, spec.readonly_paths, READONLY_PATHS),
        ),
    )


def _count_groups(facts: StartFacts, host: Host) -> int:
    """How many group ids the container has."""
    if facts.id_maps is None:
        return host.groups
    return sum(mapping.size for mapping in facts.id_maps.gids)


def plan_facts(container: Container, start: StartFacts, *, network_ready: bool) -> PlanFacts:
    """The facts for a container's plan. `--init` counts only with a pid namespace of its own."""
    spec = container.spec
    return PlanFacts(
        id=container.id,
        root=start.root,
        network_ready=network_ready and start.id_maps is None,
        network_pause=network_ready and "user" in start.joined,
        setgroups=start.setgroups,
        init=bool(spec.init) and spec.pid_mode in ("", "private"),
        group_add=spec.group_add,
    )


def _own_network(mode: str) -> bool:
    return mode != "host" and not mode.startswith("container:")


def _hidden(spec: ContainerSpec, given: tuple[str, ...] | None, default: tuple[str, ...]) -> tuple[str, ...]:
    if given is not None:
        return given
    return () if spec.privileged else default


def plan_environment(container: Container, *, tty: bool, extra: Sequence[str] = ()) -> tuple[str, ...]:
    """PATH, HOSTNAME and TERM, then image and caller: a later value replaces an earlier one in its place,
    a name without "=" removes it (as Docker). HOME comes with the user."""
    env = {"PATH": DEFAULT_PATH, "HOSTNAME": f"HOSTNAME={container.hostname}"}
    if tty:
        env["TERM"] = "TERM=xterm"
    for item in (*container.env, *extra):
        name, equals, _ = item.partition("=")
        if equals:
            env[name] = item
        else:
            env.pop(name, None)
    return tuple(env.values())


def _plan_process(container: Container, facts: StartFacts, bits: int, host: Host) -> oci.Process:
    spec = container.spec
    env = plan_environment(container, tty=spec.tty)
    user, env = plan_user(container.user, facts.identity, env)
    return oci.Process(
        args=container.args,
        env=env,
        cwd=container.working_dir or "/",
        terminal=spec.tty,
        console_size=oci.ConsoleSize(height=facts.rows, width=facts.cols)
        if spec.tty and facts.rows
        else None,
        user=user,
        capabilities=_capability_sets(bits),
        rlimits=plan_rlimits(spec.ulimits, host) if spec.ulimits else (),
        no_new_privileges=bool(spec.no_new_privileges),
        apparmor_profile="" if spec.apparmor == "unconfined" else spec.apparmor,
        oom_score_adj=spec.oom_score_adj,
    )


def plan_user(user: str, identity: Resolved | None, env: tuple[str, ...]) -> tuple[oci.User, tuple[str, ...]]:
    """The user of a process, and its environment with HOME; without `identity` the plan will ask. It also asks
    when there are more groups than a plan can carry."""
    if identity is None or len(identity.groups) > PLAN_GROUPS:
        return oci.User(username=user or "0"), env
    resolved = oci.User(uid=identity.uid, gid=identity.gid, additional_gids=identity.groups)
    return resolved, (*env, *identity.environment(env))


def plan_exec_process(
    container: Container,
    config: oci.Config,
    *,
    args: tuple[str, ...],
    env: tuple[str, ...] = (),
    working_dir: str = "",
    user: str = "",
    tty: bool = False,
    privileged: bool = False,
    rows: int = 0,
    cols: int = 0,
    identity: Resolved | None = None,
    host: Host,
) -> oci.Process:
    """The process of `docker exec`: like the container's first one, but for what was asked."""
    full_env = plan_environment(container, tty=tty, extra=env)
    oci_user, full_env = plan_user(user or container.user, identity, full_env)
    return replace(
        config.process,
        args=args,
        env=full_env,
        cwd=working_dir or config.process.cwd,
        terminal=tty,
        console_size=oci.ConsoleSize(height=rows, width=cols) if tty and rows else None,
        user=oci_user,
        capabilities=_capability_sets(host.capabilities) if privileged else config.process.capabilities,
    )


@lru_cache(maxsize=256)
def _capability_sets(bits: int) -> oci.Capabilities:
    """Bounding, permitted and effective; nothing is inheritable (CVE-2022-24769) or ambient."""
    names = capabilities.names(bits)
    return oci.Capabilities(bounding=names, effective=names, permitted=names)


# --- namespaces and limits --------------------------------------------------------------------------

_NS_FILES = {"network": "net", "pid": "pid", "ipc": "ipc"}


def _plan_namespaces(spec: ContainerSpec, facts: StartFacts, host: Host) -> tuple[oci.Namespace, ...]:
    private_cgroup = spec.cgroupns_mode == "private" or (
        spec.cgroupns_mode == "" and host.cgroups.version == 2
    )
    result = [oci.Namespace(type="mount")]
    if facts.id_maps is not None:
        user = facts.joined.get("user")
        result.append(oci.Namespace(type="user", path=f"/proc/{user}/ns/user" if user else ""))
    for kind, mode in (("network", spec.network_mode), ("pid", spec.pid_mode), ("ipc", spec.ipc_mode)):
        if mode.startswith("container:"):
            pid = facts.joined.get(kind)
            if pid is None:
                raise Invalid(f"{kind} mode {mode}: the container to join is not running, start it first")
            result.append(oci.Namespace(type=kind, path=f"/proc/{pid}/ns/{_NS_FILES[kind]}"))
        elif mode != "host":
            result.append(oci.Namespace(type=kind))
    if spec.uts_mode != "host":
        result.append(oci.Namespace(type="uts"))
    if private_cgroup:
        result.append(oci.Namespace(type="cgroup"))
    return tuple(result)


def _plan_resources(spec: ContainerSpec, facts: StartFacts, host: Host) -> oci.Resources:
    if (
        spec.privileged or host.in_user_namespace
    ):  # there, bpf(2) is refused, and a device is only what was bound
        rules: tuple[oci.DeviceRule, ...] = (ALLOW_ALL,)
    else:
        given = tuple(parse_rule(rule) for rule in spec.device_cgroup_rules)
        rules = device_rules(host.cgroups, facts.cgroup_path, DEFAULT_RULES + facts.device_rules + given)
    resources = plan_resources(spec.resources, facts.block_numbers, rules)
    return NO_RESOURCES if resources == NO_RESOURCES else resources


# --- mounts -----------------------------------------------------------------------------------------


_DEV_OPTIONS = ("nosuid", "strictatime", "mode=755", "size=65536k")
_PTS_OPTIONS = ("nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620")
_TTY_GROUP = 5
_SECRETS = "/run/secrets"
_SHM = "/dev/shm"  # noqa: S108


@lru_cache(maxsize=64)
def _default_mounts(
    privileged: bool, readonly_rootfs: bool, shm_bytes: int, mqueue: bool, tty_group: bool, cgroups: bool
) -> tuple[oci.Mount, ...]:
    """Docker's default mounts, in their order; `shm_bytes` -1 leaves /dev/shm out, `cgroups` makes theirs writable."""
    sys_options: tuple[str, ...] = ("nosuid", "noexec", "nodev")
    cgroup_options = sys_options
    if not privileged:
        sys_options += ("ro",)
    if not cgroups:
        cgroup_options += ("ro",)
    pts_options = (*_PTS_OPTIONS, f"gid={_TTY_GROUP}") if tty_group else _PTS_OPTIONS
    mounts = [
        oci.Mount(destination="/proc", type="proc", source="proc", options=("nosuid", "noexec", "nodev")),
        oci.Mount(destination="/dev", type="tmpfs", source="tmpfs", options=_DEV_OPTIONS),
        oci.Mount(destination="/dev/pts", type="devpts", source="devpts", options=pts_options),
        oci.Mount(destination="/sys", type="sysfs", source="sysfs", options=sys_options),
        oci.Mount(destination="/sys/fs/cgroup", type="cgroup", source="cgroup", options=cgroup_options),
    ]
    if mqueue:
        options: tuple[str, ...] = ("nosuid", "noexec", "nodev")
        mounts.append(oci.Mount(destination="/dev/mqueue", type="mqueue", source="mqueue", options=options))
    if shm_bytes >= 0:
        options = ("nosuid", "noexec", "nodev", "mode=1777", f"size={shm_bytes}")
        mounts.append(oci.Mount(destination=_SHM, type="tmpfs", source="shm", options=options))
    return tuple(mounts)


def _plan_mounts(container: Container, facts: StartFacts, host: Host) -> tuple[oci.Mount, ...]:
    """The default mounts that the user didn't replace, then everything else with parents before children."""
    spec = container.spec
    shm_bytes = spec.shm_size_bytes or DEFAULT_SHM_BYTES
    if spec.ipc_mode == "none" or facts.shm_path or spec.ipc_mode == "host":
        shm_bytes = -1
    tty_group = _count_groups(facts, host) > _TTY_GROUP
    default = _default_mounts(
        spec.privileged,
        spec.readonly_rootfs,
        shm_bytes,
        "mqueue" in host.filesystems,
        tty_group,
        spec.privileged if spec.writable_cgroups is None else spec.writable_cgroups,
    )

    chosen = {_clean(mount.target): mount for mount in container.mounts}
    readonly = "rro" if host.kernel >= RECURSIVE_SINCE else "ro"
    others = [_plan_mount(target, mount, facts.id_maps, readonly) for target, mount in chosen.items()]
    maps = facts.id_maps or IdMaps((), ())
    file_options = ("rbind", "rprivate", readonly) if spec.readonly_rootfs else ("rbind", "rprivate")
    for target, source in (
        ("/etc/hosts", facts.hosts_path),
        ("/etc/hostname", facts.hostname_path),
        ("/etc/resolv.conf", facts.resolv_path),
    ):
        if source and target not in chosen:
            others.append(
                oci.Mount(
                    destination=target,
                    type="bind",
                    source=source,
                    options=file_options,
                    uid_mappings=maps.uids,
                    gid_mappings=maps.gids,
                )
            )
    if facts.secrets_path and _SECRETS not in chosen:
        others.append(
            oci.Mount(
                destination=_SECRETS,
                type="bind",
                source=facts.secrets_path,
                options=("rbind", "rprivate", readonly, "nosuid", "nodev", "noexec"),
            )
        )
    shm_source = facts.shm_path or (_SHM if spec.ipc_mode == "host" else "")
    if shm_source and _SHM not in chosen:
        others.append(
            oci.Mount(destination=_SHM, type="bind", source=shm_source, options=("rbind", "rprivate"))
        )
    others.sort(key=lambda mount: mount.destination.count("/"))

    if chosen:
        own_dev = "/dev" in chosen
        default = tuple(
            mount
            for mount in default
            if mount.destination not in chosen and not (own_dev and mount.destination.startswith("/dev/"))
        )
    return (*default, *others)


def _clean(target: str) -> str:
    """An absolute path without ., .., double or trailing slashes. Raises Invalid for other ones."""
    parts: list[str] = []
    for part in target.split("/"):
        if part == "..":
            del parts[-1:]
        elif part not in ("", "."):
            parts.append(part)
    if not target.startswith("/") or not parts or "\0" in target:
        raise Invalid(f"invalid mount target {target!r}: it has to be an absolute path below /, e.g. /data")
    return "/" + "/".join(parts)


_TMPFS_DEFAULTS = {"noexec": "exec", "nosuid": "suid", "nodev": "dev"}


def _plan_mount(target: str, mount: MountPoint, maps: IdMaps | None, readonly: str) -> oci.Mount:
    """`readonly` is the word for a whole tree: before Linux 5.12 what is mounted below stays writable, as Docker has
    it there. A volume's files keep the container's ids on disk, so that containers of both kinds share them; the
    host's own files, bound, are what they are."""
    if mount.kind == "tmpfs":
        options = [word for word, opposite in _TMPFS_DEFAULTS.items() if opposite not in mount.options]
        options += [word for word in mount.options if word not in options]
        if mount.readonly and "ro" not in options:
            options.append("ro")
        return oci.Mount(destination=target, type="tmpfs", source="tmpfs", options=tuple(options))
    bind = ["rbind" if mount.recursive else "bind"]
    if mount.readonly:
        bind.append(_readonly_word(mount, readonly))
    bind.append(mount.propagation or "rprivate")
    shifted = maps if maps is not None and mount.kind in ("volume", "image") else IdMaps((), ())
    return oci.Mount(
        destination=target,
        type="bind",
        source=mount.source,
        subpath=mount.subpath,
        layers=mount.layers,
        options=tuple(bind),
        uid_mappings=shifted.uids,
        gid_mappings=shifted.gids,
    )


def _readonly_word(mount: MountPoint, readonly: str) -> str:
    if mount.readonly_below == "force" and readonly != "rro":
        raise Unavailable(
            f"mount {mount.target}: ReadOnlyForceRecursive needs Linux 5.12: leave it out, and what is mounted below "
            "stays writable"
        )
    return readonly if mount.recursive and mount.readonly_below != "no" else "ro"


def _root_propagation(mounts: Sequence[MountPoint]) -> str:
    """The root has to propagate at least as much as the mounts below it (as Docker)."""
    modes = {mount.propagation for mount in mounts if mount.kind != "tmpfs"}
    if modes & {"shared", "rshared"}:
        return "shared"
    return "rslave" if modes & {"slave", "rslave"} else ""
