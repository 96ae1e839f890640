"""Plan a start or an exec: from an OCI config to cove-init's steps. Pure (system call filters are compiled by
libseccomp, a function of their rules).

Order that must hold in the child, and why:

    cgroups          v1's first: their files are the host's; what the process does from here on is limited
    namespaces       a cgroup namespace after the process is in its cgroups: its root is decided then
    settings         host name, sysctls, oom_score_adj: they go by the host's /proc, before the pivot
    propagation      cut before anything is mounted, or the host would see the container's mounts
    root, mounts     parents before children; Docker's defaults first, then the caller's by depth
    devices          on the fresh /dev
    masks, read-only paths   after every mount that could lie under them
    terminal, user   they need the mounted root
    pivot, working directory, read-only root   the directory may have to be made
    limits, keyring
    bounding set     dropping needs CAP_SETPCAP, so before the identity changes
    filter           without no_new_privs it needs CAP_SYS_ADMIN: before identity and capabilities
    identity, capabilities
    no_new_privs, filter     with it the filter comes last, and needn't allow what comes before
    exec
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

from cove.model.container import Container
from cove.model.errors import Invalid, Unavailable
from cove.runtime import capabilities, oci
from cove.runtime.facts import Host
from cove.runtime.plan_cgroups import NO_RESOURCES, CgroupPlan, plan_cgroup, plan_join
from cove.runtime.plan_mounts import MS_PRIVATE, MS_REC, ROOT_PROPAGATION, plan_mount
from cove.runtime.seccomp_compile import compile_filter, filter_flags
from cove.runtime.spec import RLIMITS, Directory, Overlay, RootSource, StartFacts
from cove.runtime.steps import (
    BindRoot,
    Capabilities,
    Chdir,
    Domainname,
    DropBounding,
    Exec,
    Hostname,
    LinkUp,
    MakeDir,
    MakeNode,
    MakeSymlink,
    Mask,
    MountRoot,
    NoNewPrivs,
    PivotRoot,
    Plan,
    Propagate,
    ReadonlyPath,
    ResolveUser,
    Rlimit,
    RootPropagation,
    RootReadonly,
    Seccomp,
    SessionKeyring,
    SetIds,
    SetNs,
    Step,
    Sysctl,
    Terminal,
    Umask,
    Unshare,
    WriteSelf,
)

CLONE_FLAGS = {
    "mount": 0x00020000,
    "cgroup": 0x02000000,
    "uts": 0x04000000,
    "ipc": 0x08000000,
    "user": 0x10000000,
    "pid": 0x20000000,
    "network": 0x40000000,
    "time": 0x00000080,
}
_NEWPID, _NEWCGROUP = CLONE_FLAGS["pid"], CLONE_FLAGS["cgroup"]
_OVERLAY_OPTIONS_BYTES = 4095  # mount(2): one page with the NUL


@dataclass(frozen=True, slots=True, kw_only=True)
class Slot:
    """A descriptor that a plan needs; a plan names it by its position in the list.

    network    the ready network namespace that the network room handed out
    namespace  the namespace file at `path` (/proc/PID/ns/pid), opened while that process is known to live
    process    a pidfd of the container's first process (exec)
    tree       open_tree(2) of `path` with OPEN_TREE_CLONE, and AT_RECURSIVE when `recursive` (host.open_tree)
    """

    kind: Literal["network", "namespace", "process", "tree"]
    path: str = ""
    recursive: bool = False
    subpath: str = ""  # of a tree: below `path`, looked up as if that were the root


@dataclass(frozen=True, slots=True, kw_only=True)
class PlanFacts:
    """What a config doesn't say."""

    id: str
    root: RootSource | None = None  # None: the config's root.path as it is
    network_ready: bool = (
        False  # a ready network namespace is handed over; else the container gets an empty one
    )
    init: bool = False
    group_add: tuple[str, ...] = ()  # only to show what ResolveUser is about


def plan_facts(container: Container, start: StartFacts, *, network_ready: bool) -> PlanFacts:
    """The facts for a container's plan. `--init` counts only with a pid namespace of its own."""
    spec = container.spec
    return PlanFacts(
        id=container.id,
        root=start.root,
        network_ready=network_ready,
        init=spec.init and spec.pid_mode in ("", "private"),
        group_add=spec.group_add,
    )


class _Slots:
    """Numbers the descriptors in the order in which the plan needs them."""

    def __init__(self) -> None:
        self.needed: list[Slot] = []

    def add(self, slot: Slot) -> int:
        self.needed.append(slot)
        return len(self.needed) - 1


def plan_start(config: oci.Config, facts: PlanFacts, host: Host) -> tuple[Plan, tuple[Slot, ...]]:
    """The plan of a container's start, and the descriptors it needs.

    Raises Invalid for a config that can't be executed, Unavailable when this host lacks what it needs.
    """
    slots = _Slots()
    cgroup = _plan_cgroup(config, host)
    namespaces = _plan_namespaces(config, facts, slots)
    child = (
        *cgroup.child,
        *namespaces.child,
        *_plan_settings(config, namespaces.own_network, host),
        Propagate(flags=MS_REC | MS_PRIVATE),
        *_plan_root(config, facts),
        *_plan_filesystem(config, slots, host),
        *_plan_user_lookup(config.process, facts.group_add),
        *_plan_pivot(config),
        *_plan_identity(config.process, config.linux.seccomp, facts.id),
        Exec(args=config.process.args, env=config.process.env, init=int(facts.init)),
    )
    plan = Plan(
        clone_flags=namespaces.clone_flags,
        cgroup_path=cgroup.clone_into,
        before=cgroup.before,
        child=child,
        exit=cgroup.exit,
    )
    return plan, tuple(slots.needed)


def plan_exec(
    config: oci.Config, process: oci.Process, facts: PlanFacts, host: Host
) -> tuple[Plan, tuple[Slot, ...]]:
    """The plan of another process in a running container: slot 0 is a pidfd of its first process.

    It joins the namespaces that the container doesn't share with the host; the pid namespace last of all, by
    the fork at the exec, for until then the process has rights that the container's processes must not get at.
    """
    kinds = {namespace.type for namespace in config.linux.namespaces}
    flags = 0
    for kind in kinds:
        flags |= _flag(kind)
    cgroup = CgroupPlan()
    if config.linux.cgroups_path:
        cgroup = plan_join(
            host.cgroups,
            config.linux.cgroups_path,
            config.linux.resources or NO_RESOURCES,
            everything=_writable_cgroups(config),
        )
    child: list[Step] = list(cgroup.child)
    if process.oom_score_adj is not None and process.oom_score_adj != host.oom_score_adj:
        # by the host's /proc: the container's is a stranger's
        child.append(WriteSelf(name="oom_score_adj", data=str(process.oom_score_adj), optional=1))
    child.append(SetNs(slot=0, flags=flags))
    child += _plan_terminal(process, console=False)
    child += _plan_user_lookup(process, facts.group_add)
    child.append(Chdir(path=process.cwd))
    child += _plan_identity(process, config.linux.seccomp, facts.id)
    child.append(Exec(args=process.args, env=process.env))
    plan = Plan(clone_flags=0, cgroup_path=cgroup.clone_into, child=tuple(child))
    return plan, (Slot(kind="process"),)


# --- cgroups and namespaces -------------------------------------------------------------------------


def _writable_cgroups(config: oci.Config) -> bool:
    """Whether the container may manage cgroups below its own: then it joins every hierarchy."""
    return any(mount.type == "cgroup" and "ro" not in mount.options for mount in config.mounts)


def _plan_cgroup(config: oci.Config, host: Host) -> CgroupPlan:
    if not config.linux.cgroups_path:
        return CgroupPlan()
    resources = config.linux.resources or NO_RESOURCES
    return plan_cgroup(
        host.cgroups, config.linux.cgroups_path, resources, everything=_writable_cgroups(config)
    )


def _flag(kind: str) -> int:
    flag = CLONE_FLAGS.get(kind)
    if flag is None or kind in ("user", "time"):
        raise Unavailable(f"linux.namespaces: type {kind!r} is not supported, leave it out of the config")
    return flag


@dataclass(frozen=True, slots=True, kw_only=True)
class _Namespaces:
    clone_flags: int
    child: tuple[Step, ...]
    own_network: bool  # an empty network namespace was made


def _plan_namespaces(config: oci.Config, facts: PlanFacts, slots: _Slots) -> _Namespaces:
    clone, own_network = 0, False
    child: list[Step] = []
    seen: set[str] = set()
    for namespace in config.linux.namespaces:
        kind, flag = namespace.type, _flag(namespace.type)
        if kind in seen:
            raise Invalid(f"linux.namespaces: {kind} is there twice, leave one out")
        seen.add(kind)
        if namespace.path:
            step: Step = SetNs(slot=slots.add(Slot(kind="namespace", path=namespace.path)), flags=flag)
            if kind == "mount":
                raise Unavailable(
                    "linux.namespaces: joining a mount namespace is not supported, leave its path out"
                )
            child.append(step)
        elif kind == "network" and facts.network_ready:
            child.append(SetNs(slot=slots.add(Slot(kind="network")), flags=flag))
        elif kind == "cgroup":
            child.append(Unshare(flags=flag))
        else:
            clone |= flag
            own_network = own_network or kind == "network"
    if "mount" not in seen:
        raise Invalid("linux.namespaces: mount is missing, add it: the container's mounts are its own")
    return _Namespaces(clone_flags=clone, child=tuple(child), own_network=own_network)


def _plan_settings(config: oci.Config, own_network: bool, host: Host) -> Iterator[Step]:
    own_uts = any(namespace.type == "uts" and not namespace.path for namespace in config.linux.namespaces)
    if own_uts and config.hostname:
        yield Hostname(name=config.hostname)
    if own_uts and config.domainname:
        yield Domainname(name=config.domainname)
    if own_network:
        yield LinkUp(name="lo")
    for key, value in config.linux.sysctl.items():
        yield Sysctl(key=sysctl_path(key), value=value)
    score = config.process.oom_score_adj
    if score is not None and score != host.oom_score_adj:
        yield WriteSelf(name="oom_score_adj", data=str(score), optional=1)


def sysctl_path(key: str) -> str:
    """net.ipv4.conf.eth0/1.forwarding -> net/ipv4/conf/eth0.1/forwarding. Raises Invalid."""
    path = key.translate({ord("."): "/", ord("/"): "."})
    if any(part in ("", ".", "..") for part in path.split("/")):
        raise Invalid(f'sysctl "{key}": give a name such as net.ipv4.ip_forward')
    return path


# --- root and mounts --------------------------------------------------------------------------------


def _plan_root(config: oci.Config, facts: PlanFacts) -> Iterator[Step]:
    root = facts.root or Directory(path=config.root.path)
    if isinstance(root, Directory):
        yield BindRoot(path=root.path)
        return
    data = overlay_options(root)
    if len(data.encode()) > _OVERLAY_OPTIONS_BYTES:
        raise Unavailable(
            f"the image has {len(root.lower)} layers, too many for one overlay mount "
            f"({len(data.encode())} bytes of options, the kernel takes {_OVERLAY_OPTIONS_BYTES}): squash some"
        )
    yield MountRoot(
        fstype="overlay", source="overlay", target=root.merged, flags=0, data=data, cwd=root.layers_dir or "/"
    )


def overlay_options(root: Overlay) -> str:
    """The options of overlayfs: lowerdir names the highest layer first."""
    lower = ":".join(_escape(layer) for layer in reversed(root.lower))
    data = f"lowerdir={lower},upperdir={_escape(root.upper)},workdir={_escape(root.work)},index=off"
    return f"{data},volatile" if root.volatile else data


def _escape(path: str) -> str:
    """overlayfs takes a backslash before its separators."""
    for character in "\\:,":
        if character in path:
            path = path.replace(character, f"\\{character}")
    return path


# name, major, minor
_DEFAULT_NODES = (
    ("null", 1, 3),
    ("zero", 1, 5),
    ("full", 1, 7),
    ("random", 1, 8),
    ("urandom", 1, 9),
    ("tty", 5, 0),
)
_DEFAULT_DEVICES: tuple[Step, ...] = (
    *(
        MakeNode(path=f"/dev/{name}", mode=0o020666, major=major, minor=minor)
        for name, major, minor in _DEFAULT_NODES
    ),
    MakeSymlink(target="pts/ptmx", path="/dev/ptmx"),
    MakeSymlink(target="/proc/self/fd", path="/dev/fd"),
    MakeSymlink(target="/proc/self/fd/0", path="/dev/stdin"),
    MakeSymlink(target="/proc/self/fd/1", path="/dev/stdout"),
    MakeSymlink(target="/proc/self/fd/2", path="/dev/stderr"),
    MakeSymlink(target="/proc/kcore", path="/dev/core"),
)
_DEFAULT_PATHS = frozenset(f"/dev/{name}" for name, _, _ in _DEFAULT_NODES) | {"/dev/ptmx", "/dev/console"}
_TYPE_BITS = {"c": 0o020000, "u": 0o020000, "b": 0o060000, "p": 0o010000}


def _plan_filesystem(config: oci.Config, slots: _Slots, host: Host) -> Iterator[Step]:
    """Mounts, devices (none when the caller brings a /dev of its own), masks, terminal."""

    def add_tree(path: str, recursive: bool, subpath: str) -> int:
        return slots.add(Slot(kind="tree", path=path, recursive=recursive, subpath=subpath))

    own_dev = False
    for mount in config.mounts:
        yield from plan_mount(mount, config, host, add_tree)
        if mount.destination == "/dev":
            own_dev = mount.type == "bind"
    if not own_dev:
        yield from _DEFAULT_DEVICES
    if config.linux.devices:
        yield from _plan_devices(config.linux.devices)
    yield from _hide_paths(config.linux.masked_paths, config.linux.readonly_paths)
    yield from _plan_terminal(config.process, console=not own_dev)


def _plan_devices(devices: Iterable[oci.LinuxDevice]) -> Iterator[Step]:
    for device in devices:
        if device.path in _DEFAULT_PATHS:
            continue
        kind = _TYPE_BITS.get(device.type)
        if kind is None:
            raise Invalid(f"linux.devices: {device.path}: type {device.type!r} is none of c, u, b, p")
        parent = device.path.rpartition("/")[0]
        if parent not in ("", "/dev"):
            yield MakeDir(path=parent)
        yield MakeNode(
            path=device.path,
            mode=kind | device.file_mode & 0o7777,
            major=device.major,
            minor=device.minor,
            uid=device.uid,
            gid=device.gid,
        )


@lru_cache(maxsize=64)
def _hide_paths(masked: tuple[str, ...], readonly: tuple[str, ...]) -> tuple[Step, ...]:
    return (*(ReadonlyPath(path=path) for path in readonly), *(Mask(path=path) for path in masked))


def _plan_terminal(process: oci.Process, *, console: bool) -> Iterator[Step]:
    if process.terminal:
        size = process.console_size
        yield Terminal(
            rows=size.height if size else 0,
            cols=size.width if size else 0,
            console=int(console),
            uid=0 if process.user.username else process.user.uid,
        )


def _plan_user_lookup(process: oci.Process, group_add: tuple[str, ...]) -> Iterator[Step]:
    if process.user.username:
        yield ResolveUser(user=process.user.username, groups=group_add)


def _plan_pivot(config: oci.Config) -> Iterator[Step]:
    yield PivotRoot()
    yield Chdir(path=config.process.cwd, create=1)
    if config.root.readonly:
        yield RootReadonly()
    if config.linux.rootfs_propagation:
        flags = ROOT_PROPAGATION.get(config.linux.rootfs_propagation)
        if flags is None:
            raise Invalid(
                f"linux.rootfsPropagation {config.linux.rootfs_propagation!r}: "
                f"use one of {', '.join(ROOT_PROPAGATION)}"
            )
        yield RootPropagation(flags=flags)


# --- the process ------------------------------------------------------------------------------------


def _plan_identity(process: oci.Process, filter_: oci.Seccomp | None, name: str) -> Iterator[Step]:
    for limit in process.rlimits:
        number = RLIMITS.get(limit.type.removeprefix("RLIMIT_").lower())
        if number is None:
            raise Invalid(f"process.rlimits: {limit.type!r} is unknown, e.g. use RLIMIT_NOFILE")
        yield Rlimit(resource=number, soft=limit.soft, hard=limit.hard)
    yield Umask(mask=0o022 if process.user.umask is None else process.user.umask & 0o777)
    yield SessionKeyring(name=f"_ses.{name}")
    seccomp = None
    if filter_ is not None:
        seccomp = Seccomp(program=compile_filter(filter_), flags=filter_flags(filter_))
    sets = _capability_masks(process.capabilities)
    yield DropBounding(bounding=sets.bounding)
    if seccomp is not None and not process.no_new_privileges:
        yield seccomp
    user = process.user
    groups = user.additional_gids or (user.gid,)
    yield SetIds(uid=user.uid, gid=user.gid, groups=tuple(map(str, groups)))
    yield Capabilities(
        effective=sets.effective,
        permitted=sets.permitted,
        inheritable=sets.inheritable,
        ambient=sets.ambient,
    )
    if process.no_new_privileges:
        yield NoNewPrivs()
        if seccomp is not None:
            yield seccomp


@dataclass(frozen=True, slots=True)
class _Masks:
    bounding: int = 0
    effective: int = 0
    permitted: int = 0
    inheritable: int = 0
    ambient: int = 0


@lru_cache(maxsize=256)
def _capability_masks(sets: oci.Capabilities | None) -> _Masks:
    if sets is None:
        return _Masks()
    return _Masks(
        *(
            capabilities.mask(names)
            for names in (sets.bounding, sets.effective, sets.permitted, sets.inheritable, sets.ambient)
        )
    )
