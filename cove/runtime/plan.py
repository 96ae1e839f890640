"""Plan a start or an exec: from an OCI config to cove-init's steps. Pure.

Order that must hold in the child, and why:

    cgroups          v1's first: their files are the host's; what the process does from here on is limited
    namespaces       a user namespace first: its root does the rest; a cgroup namespace after the process is in its
                     cgroups: its root is decided then (plan_namespaces.py)
    settings         host name, sysctls, oom_score_adj: they go by the host's /proc, before the pivot
    propagation      cut before anything is mounted, or the host would see the container's mounts
    root, mounts     parents before children; Docker's defaults first, then the caller's by depth
    devices          on the fresh /dev
    masks, read-only paths   after every mount that could lie under them
    terminal, user   they need the mounted root
    hooks            of the host and then of the container: everything is mounted, the host still in reach
    labels           by the host's /proc
    pivot, working directory, read-only root   the directory may have to be made
    limits, scheduling, keyring
    bounding set     dropping needs CAP_SETPCAP, so before the identity changes
    filter           without no_new_privs it needs CAP_SYS_ADMIN: before identity and capabilities
    identity, capabilities
    no_new_privs, filter     with it the filter comes last, and needn't allow what comes before
    hold             the container is created: it has no right that it isn't to keep
    startContainer hooks
    exec
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from functools import lru_cache

from cove.model.errors import Invalid, Unavailable
from cove.runtime import oci
from cove.runtime.facts import Host
from cove.runtime.plan_cgroups import CLONE_INTO_CGROUP, NO_RESOURCES, CgroupPlan, plan_cgroup, plan_join
from cove.runtime.plan_devices import plan_default_devices, plan_devices
from cove.runtime.plan_inputs import Attached, Directory, Overlay, PlanFacts, Slot, Slots
from cove.runtime.plan_mounts import (
    MS_BIND,
    MS_PRIVATE,
    MS_REC,
    ROOT_PROPAGATION,
    finish_mounts,
    is_bind,
    plan_mount,
)
from cove.runtime.plan_namespaces import (
    flag_of,
    has_user_namespace,
    mount_mode,
    plan_namespaces,
    plan_oom_score,
    plan_settings,
)
from cove.runtime.plan_process import (
    Compile,
    plan_affinity,
    plan_identity,
    plan_labels,
    plan_raised_limits,
    plan_terminal,
    plan_user_lookup,
)
from cove.runtime.plan_resctrl import plan_resctrl
from cove.runtime.seccomp_compile import compile_filter
from cove.runtime.steps import (
    AttachRoot,
    BecomeRoot,
    BindRoot,
    Chdir,
    Chroot,
    Exec,
    Hold,
    Mask,
    MountRoot,
    Pause,
    PivotRoot,
    Plan,
    Propagate,
    ReadonlyPath,
    RootPropagation,
    RootReadonly,
    RunHook,
    SetNs,
    Step,
    UnmountHost,
)

_OVERLAY_OPTIONS_BYTES = 4095  # mount(2): one page with the NUL
DEFAULT_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


def plan_start(
    config: oci.Config, facts: PlanFacts, host: Host, compile_: Compile = compile_filter
) -> tuple[Plan, tuple[Slot, ...]]:
    """The plan of a container's start, and the descriptors it needs.

    Raises Invalid for a config that can't be executed, Unavailable when this host lacks what it needs.
    """
    slots = Slots()
    cgroup = _plan_cgroup(config, facts, host)
    namespaces = plan_namespaces(config, facts, slots)
    resctrl = plan_resctrl(config.linux.intel_rdt, facts.id, host)
    process = config.process
    unmount = [UnmountHost(path=facts.mount_at)] if namespaces.mount == "host" else []
    child = [
        *cgroup.child,
        *namespaces.child,
        *plan_settings(config, namespaces, host),
    ]
    if namespaces.mount == "own":
        child.append(Propagate(flags=MS_REC | MS_PRIVATE))
    child += _plan_root(config, facts, slots, namespaces.mount)
    bound = namespaces.user or host.in_user_namespace
    child += _plan_filesystem(config, slots, host, bound=bound, all_cgroups=facts.all_cgroups)
    child += plan_user_lookup(process, facts.group_add)
    child += _plan_hooks(config.hooks)
    if facts.record_pause:
        child.append(Pause(name="record"))
    child += plan_labels(process, host)
    child += _plan_entry(config, "" if namespaces.mount == "own" else facts.mount_at or config.root.path)
    child += plan_identity(config, process, facts, host, compile_, user_ns=namespaces.user)
    child += _plan_end(config, facts, slots)
    plan = Plan(
        clone_flags=namespaces.clone_flags,
        cgroup_path=cgroup.clone_into,
        before=(*cgroup.before, *resctrl.before, *namespaces.before),
        parent=(*resctrl.parent, *(plan_raised_limits(process, host) if namespaces.user else ())),
        child=tuple(child),
        exit=(*cgroup.exit, *resctrl.exit, *unmount),
    )
    return plan, tuple(slots.needed)


def plan_exec(
    config: oci.Config,
    process: oci.Process,
    facts: PlanFacts,
    host: Host,
    compile_: Compile = compile_filter,
) -> tuple[Plan, tuple[Slot, ...]]:
    """The plan of another process in a running container: slot 0 is a pidfd of its first process.

    It joins the namespaces that the container doesn't share with the host; the pid namespace last of all, by
    the fork at the exec, for until then the process has rights that the container's processes must not get at.
    """
    flags = 0
    for namespace in config.linux.namespaces:
        flags |= flag_of(namespace.type)
    cgroup = CgroupPlan()
    if config.linux.cgroups_path:
        cgroup = plan_join(
            host.cgroups,
            config.linux.cgroups_path,
            config.linux.resources or NO_RESOURCES,
            everything=facts.all_cgroups or _writable_cgroups(config),
            clone_into=host.kernel >= CLONE_INTO_CGROUP,
        )
    affinity = process.exec_cpu_affinity or oci.ExecCpuAffinity()
    user_ns = has_user_namespace(config)
    child: list[Step] = [
        *plan_affinity(affinity.initial, "process.execCPUAffinity.initial"),
        *cgroup.child,
        *plan_affinity(affinity.final, "process.execCPUAffinity.final"),
        # by the host's /proc: the container's is a stranger's
        *plan_oom_score(process, host),
        *plan_labels(process, host),
        SetNs(slot=0, flags=flags),
    ]
    if mount_mode(config) != "own":
        child.append(Chroot(path=facts.mount_at or config.root.path))
    if user_ns:
        child.append(BecomeRoot())
    child += plan_terminal(process, console=False)
    child += plan_user_lookup(process, facts.group_add)
    child.append(Chdir(path=process.cwd))
    child += plan_identity(config, process, facts, host, compile_, user_ns=user_ns)
    child.append(Exec(args=process.args, env=process.env))
    plan = Plan(
        clone_flags=0,
        cgroup_path=cgroup.clone_into,
        parent=tuple(plan_raised_limits(process, host)) if user_ns else (),
        child=tuple(child),
    )
    return plan, (Slot(kind="process"),)


# --- cgroups ----------------------------------------------------------------------------------------


def _writable_cgroups(config: oci.Config) -> bool:
    """Whether the container may manage cgroups below its own: then it joins every hierarchy."""
    return any(mount.type == "cgroup" and "ro" not in mount.options for mount in config.mounts)


def _plan_cgroup(config: oci.Config, facts: PlanFacts, host: Host) -> CgroupPlan:
    if not config.linux.cgroups_path:
        return CgroupPlan()
    return plan_cgroup(
        host.cgroups,
        config.linux.cgroups_path,
        config.linux.resources or NO_RESOURCES,
        everything=facts.all_cgroups or _writable_cgroups(config),
        clone_into=host.kernel >= CLONE_INTO_CGROUP,
        systemd=facts.cgroup_pause,
    )


# --- root and mounts --------------------------------------------------------------------------------


def _plan_root(config: oci.Config, facts: PlanFacts, slots: Slots, mount: str) -> Iterator[Step]:
    root = facts.root or Directory(path=config.root.path)
    if mount == "host":
        if not facts.mount_at:
            raise Invalid("linux.namespaces: mount is missing, add it: the container's mounts are its own")
        flags = MS_BIND | MS_REC
        yield MountRoot(fstype="", source=config.root.path, target=facts.mount_at, flags=flags, data="")
        return
    match root:
        case Directory():
            yield BindRoot(path=root.path)
        case Attached():
            yield AttachRoot(slot=slots.add(Slot(kind="root")), target=root.path)
        case Overlay():
            yield _plan_overlay(root)


def _plan_overlay(root: Overlay) -> Step:
    data = overlay_options(root)
    if len(data.encode()) > _OVERLAY_OPTIONS_BYTES:
        raise Unavailable(
            f"the image has {len(root.lower)} layers, too many for one overlay mount "
            f"({len(data.encode())} bytes of options, the kernel takes {_OVERLAY_OPTIONS_BYTES}): squash some"
        )
    return MountRoot(
        fstype="overlay", source="overlay", target=root.merged, flags=0, data=data, cwd=root.layers_dir or "/"
    )


def overlay_options(root: Overlay) -> str:
    """The options of overlayfs: lowerdir names the highest layer first."""
    lower = ":".join(_escape(layer) for layer in reversed(root.lower))
    data = f"lowerdir={lower},upperdir={_escape(root.upper)},workdir={_escape(root.work)},index=off"
    return data + (",volatile" if root.volatile else "") + (",userxattr" if root.userxattr else "")


def _escape(path: str) -> str:
    """overlayfs takes a backslash before its separators."""
    for character in "\\:,":
        if character in path:
            path = path.replace(character, f"\\{character}")
    return path


def _plan_filesystem(
    config: oci.Config, slots: Slots, host: Host, *, bound: bool, all_cgroups: bool
) -> Iterator[Step]:
    """Mounts, devices (none when the caller brings a /dev of its own), masks, terminal."""
    own_dev = False
    for mount in config.mounts:
        yield from plan_mount(mount, config, host, slots, all_cgroups=all_cgroups)
        if mount.destination == "/dev":
            own_dev = is_bind(mount)
    if not own_dev:
        yield from plan_default_devices(bound=bound)
    if config.linux.devices:
        yield from plan_devices(config.linux.devices, bound=bound)
    yield from _hide_paths(config.linux.masked_paths, config.linux.readonly_paths)
    yield from plan_terminal(config.process, console=not own_dev)
    yield from finish_mounts(config)


@lru_cache(maxsize=64)
def _hide_paths(masked: tuple[str, ...], readonly: tuple[str, ...]) -> tuple[Step, ...]:
    return (*(ReadonlyPath(path=path) for path in readonly), *(Mask(path=path) for path in masked))


def _plan_entry(config: oci.Config, root: str) -> Iterator[Step]:
    """Enter the root: by pivot_root(2), or, in a mount namespace of others, by chroot(2) to `root`."""
    yield Chroot(path=root) if root else PivotRoot()
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


# --- hooks and the end ------------------------------------------------------------------------------


def _plan_hooks(hooks: oci.Hooks) -> Iterator[Step]:
    """Those of the host are the caller's matter, at the pause, whose answer is the input of the others."""
    if hooks.prestart or hooks.create_runtime or hooks.create_container:
        yield Pause(name="hooks")
    yield from _run_hooks(hooks.create_container)


def _run_hooks(hooks: Iterable[oci.Hook]) -> Iterator[Step]:
    for hook in hooks:
        yield RunHook(path=hook.path, args=hook.args, env=hook.env, timeout_ms=(hook.timeout or 0) * 1000)


def _plan_end(config: oci.Config, facts: PlanFacts, slots: Slots) -> Iterator[Step]:
    process = config.process
    if facts.held:
        path = next((item[5:] for item in process.env if item.startswith("PATH=")), DEFAULT_PATH)
        go, status = slots.add(Slot(kind="go")), slots.add(Slot(kind="status"))
        yield Hold(go=go, status=status, program=process.args[0], path=path)
    yield from _run_hooks(config.hooks.start_container)
    yield Exec(args=process.args, env=process.env, init=int(facts.init))
