"""One start: endpoints, files, the plan, the supervisor. On failure everything is taken back.

Order that must hold: the network namespace exists before the plan that joins it runs; the daemon's
copy of its descriptor is closed once a process lives in it, for the kernel frees the namespace with
its last holder.
"""

from __future__ import annotations

import asyncio
import errno
import os
import signal
from collections.abc import Awaitable, Callable, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass, replace
from pathlib import Path

import msgspec

from cove.engine.create import PlannedMount, tmpfs_point
from cove.engine.devices import find_device_edits, with_device_edits, with_device_nodes
from cove.engine.files import ContainerFiles, existing_files
from cove.engine.hooks import run_poststart_hooks, run_start_hooks, write_bundle
from cove.engine.links import check_linked, with_link_variables
from cove.engine.mounts import image_point
from cove.engine.parts import Parts
from cove.engine.remap import (
    check_userns,
    id_maps,
    in_user_namespace,
    joined_user,
    open_network,
    prepare_user_namespace,
    shifted_root,
)
from cove.engine.types import ExecSpec, View
from cove.model.container import (
    Bind,
    Container,
    ContainerSpec,
    Endpoint,
    EndpointSpec,
    ImageMount,
    MountPoint,
    PortBinding,
    StepFailure,
    Tmpfs,
    Volume,
)
from cove.model.errors import Conflict, CoveError, HostError, Invalid
from cove.network.model import Attachment
from cove.runtime import launch as runtime
from cove.runtime import oci, seccomp, users
from cove.runtime.cdi import Edits, with_edits
from cove.runtime.cgroups import find_exec_path
from cove.runtime.cgroups_limits import block_devices
from cove.runtime.facts import Host
from cove.runtime.host import find_block_numbers, find_devices
from cove.runtime.launch import Attach, StepFailed, StreamSetup, Task, launch
from cove.runtime.plan import plan_exec, plan_start
from cove.runtime.plan_inputs import Attached, IdMaps, Overlay, PlanFacts, Slot
from cove.runtime.seccomp_compile import compile_filter
from cove.runtime.seccomp_notify import process_state, send_listener
from cove.runtime.spec import StartFacts, container_capabilities, plan_exec_process, plan_facts, plan_spec
from cove.runtime.steps import Chdir, Exec, Plan
from cove.runtime.trees import check_propagation, open_slot

NOT_FOUND_CODE = 127
NOT_EXECUTABLE_CODE = 126
NOT_STARTED_CODE = 128


class StartRefused(Exception):
    """A start that failed, with the exit code that clients show for it and the error to raise."""

    def __init__(self, exit_code: int, cause: CoveError) -> None:
        super().__init__(exit_code, cause)
        self.exit_code = exit_code
        self.cause = cause
        self.failure: StepFailure | None = None  # the step, where it was one


@dataclass(frozen=True, slots=True, kw_only=True)
class Running:
    task: Task
    endpoints: tuple[Endpoint, ...]
    ports: tuple[PortBinding, ...]


async def launch_container(parts: Parts, container: Container, attaches: Sequence[Attach]) -> Running:
    """Start a container's first process. Raises StartRefused; then nothing of the start remains."""
    async with AsyncExitStack() as undo:
        try:
            return await _launch(parts, container, attaches, undo)
        except CoveError as error:
            raise refusal(error) from error
        except OSError as error:
            where = f"{error.filename}: " if error.filename else ""
            raise StartRefused(NOT_STARTED_CODE, HostError(f"{where}{error.strerror}")) from error
    raise AssertionError("unreachable")


async def _launch(
    parts: Parts, container: Container, attaches: Sequence[Attach], undo: AsyncExitStack
) -> Running:
    await parts.admission.check_container(container)
    check_linked(container, parts.registry.find)
    edits = Edits()
    if container.spec.device_requests:
        edits = await find_device_edits(container.spec.device_requests, parts.settings.cdi_spec_dirs)
        container = with_device_edits(container, edits)
    container = with_link_variables(_named(parts, container), parts.registry.find)
    spec = container.spec
    check_userns(parts.settings, spec)
    maps = id_maps(parts.settings, spec)
    requests = network_requests(container)
    bundle = parts.settings.container_dir(container.id)
    on_failure = await undo.enter_async_context(AsyncExitStack())
    attached = Attachment(namespace=-1, endpoints=(), ports=())

    async def connect(namespace: int = -1) -> Attachment:
        ports = spec.ports if not spec.publish_all else all_ports(container)
        attachment = await parts.networks.connect(
            container.id, requests, ports, container.hostname, namespace=namespace
        )
        on_failure.push_async_callback(parts.leave_networks, container.id)
        inside = namespace if namespace >= 0 else attachment.namespace
        try:
            await parts.naming.serve(container, attachment.endpoints, inside)
        except BaseException:
            if namespace < 0:
                os.close(attachment.namespace)
            raise
        return attachment

    async def on_pause(name: str, pid: int) -> bytes:
        nonlocal attached
        if name == "cgroup":
            await enter_cgroup(parts, config, pid)
            on_failure.push_async_callback(parts.cgroups.remove, config.linux.cgroups_path)
        if name == "user" and maps is not None:
            await prepare_user_namespace(pid, maps)
        if name in ("user", "network") and requests:
            namespace = open_network(pid)  # made by the clone: it belongs to the user namespace
            try:
                attached = await connect(namespace)
            finally:
                os.close(namespace)
            _files(parts, container, attached.endpoints)
        if name == "hooks":
            return await run_start_hooks(config.hooks, container, bundle, pid)
        if name == "record" and (recorder := parts.recorders.get(container.id)) is not None:
            await recorder.begin(pid, parts.layer(container).merged)
        return b""

    if requests and maps is None:
        attached = await connect()
        undo.callback(os.close, attached.namespace)
    files = _files(parts, container, attached.endpoints)
    container = await hold_volumes(parts, container, on_failure)
    if spec.extension.secrets:
        on_failure.push_async_callback(parts.secret_files.withdraw, container)
        await parts.secret_files.fill(container, maps)
    await parts.ensure_layer(container)
    if spec.cgroup_parent:
        parts.cgroups.ensure_parent(spec.cgroup_parent)
    check_propagation(container.mounts)
    facts = start_facts(parts, container, files, maps)
    if edits != Edits():
        facts = with_device_nodes(facts, edits)
    config = plan_spec(container, facts, parts.host)
    if edits != Edits():
        config = with_edits(config, edits)
        if edits.hooks:
            write_bundle(bundle, config)
    more = start_plan_facts(parts, container, facts, network_ready=bool(requests))
    plan, needed = plan_start(config, more, parts.host)
    root = -1
    if isinstance(facts.root, Attached):
        assert parts.shifted is not None, "a daemon that remaps has this open"
        root = await parts.shifted.mount(overlay_root(parts, container))
        undo.callback(os.close, root)
    handed = open_slots(needed, undo, network=attached.namespace, root=root)
    task = await launch(
        parts.launcher,
        plan,
        state_dir=parts.settings.state_dir(container.id),
        slots=handed,
        streams=StreamSetup(
            terminal=spec.tty,
            stdin=spec.open_stdin,
            stdin_once=spec.stdin_once,
            log=parts.logs.begin(container),
        ),
        resolve_user=user_resolver(
            container.user, spec.group_add, container.env, setgroups=parts.host.setgroups
        ),
        on_pause=on_pause,
        on_listener=listener_sender(config.linux.seccomp, container, "creating"),
        attach=attaches,
    )
    if config.hooks.poststart:
        try:
            await run_poststart_hooks(config.hooks, container, bundle, task.pid)
        except BaseException:
            await task.signal(signal.SIGKILL)
            await task.wait()
            raise
    on_failure.pop_all()
    parts.naming.watch(container.id, task)
    return Running(task=task, endpoints=attached.endpoints, ports=attached.ports)


async def hold_volumes(parts: Parts, container: Container, undo: AsyncExitStack) -> Container:
    """Have the volumes mounted that are only while a container uses them; the container with their places, and with
    its images' layers."""
    names = parts.mounted_volumes(container)
    if names:
        paths = await parts.volumes.mounts.hold(container.id, names)
        undo.callback(parts.volumes.mounts.release, container.id)
        points = (
            msgspec.structs.replace(point, source=paths[point.name]) if point.name in paths else point
            for point in container.mounts
        )
        container = msgspec.structs.replace(container, mounts=tuple(points))
        stored = parts.registry.get(container.id)
        if stored is not None and stored.container.mounts != container.mounts:  # a driver chose another place
            await parts.registry.set_container(
                msgspec.structs.replace(stored.container, mounts=container.mounts)
            )
    return parts.with_layers(container)


def _named(parts: Parts, container: Container) -> Container:
    """A container with another one's network has that one's host name too, as its hosts file says."""
    mode = container.spec.network_mode
    if not mode.startswith("container:") or container.spec.uts_mode == "host":
        return container
    target = parts.registry.find(mode.removeprefix("container:")).container
    return msgspec.structs.replace(container, hostname=target.hostname)


def network_requests(container: Container) -> list[EndpointSpec]:
    """The networks a start connects to, the network mode's first; host, none and container:ID have none."""
    spec = container.spec
    mode = spec.network_mode or "default"
    if spec.network_disabled or mode in ("none", "host") or mode.startswith("container:"):
        return []
    main = "bridge" if mode == "default" else mode
    asked = {("bridge" if e.network == "default" else e.network): e for e in spec.endpoints}
    first = asked.pop(main, EndpointSpec(network=main))
    return [first, *asked.values()]


def all_ports(container: Container) -> tuple[PortBinding, ...]:
    """`-P`: every exposed port that isn't published explicitly, on a host port of Cove's choice."""
    published = {(p.container_port, p.protocol) for p in container.spec.ports}
    extra = []
    for exposed in container.exposed_ports:
        number, _, protocol = exposed.partition("/")
        first, _, last = number.partition("-")
        for port in range(int(first), int(last or first) + 1):
            if (port, protocol or "tcp") not in published:
                extra.append(PortBinding(container_port=port, protocol=protocol or "tcp"))  # type: ignore[arg-type]
    return (*container.spec.ports, *extra)


def _files(parts: Parts, container: Container, endpoints: Sequence[Endpoint]) -> ContainerFiles:
    mode = container.spec.network_mode
    if mode.startswith("container:"):
        target = parts.registry.find(mode.removeprefix("container:")).container
        return existing_files(parts.settings.container_dir(target.id))
    return parts.write_files(container, endpoints)


def overlay_root(parts: Parts, container: Container) -> Overlay:
    """The container's root: its image's layers, and its writable one."""
    layer = parts.layer(container)
    return Overlay(
        lower=tuple(parts.lower_layers(container)),
        layers_dir=str(parts.images.layers_dir),
        upper=str(layer.upper),
        work=str(layer.work),
        merged=str(layer.merged),
        userxattr=parts.host.in_user_namespace,
    )


def start_facts(parts: Parts, container: Container, files: ContainerFiles, maps: IdMaps | None) -> StartFacts:
    """What this start knows of the host; `maps` with a user namespace. Raises Conflict when a container to join
    doesn't run, or can't be joined."""
    spec = container.spec
    joined: dict[str, int] = {}
    shm = ""
    for kind, mode in (("network", spec.network_mode), ("pid", spec.pid_mode), ("ipc", spec.ipc_mode)):
        if mode.startswith("container:"):
            target = parts.registry.find(mode.removeprefix("container:"))
            if target.state.status not in ("running", "paused"):
                raise Conflict(
                    f"cannot join {kind} of a non running container: {target.container.id}: start it first"
                )
            if kind == "ipc" and target.container.spec.ipc_mode not in ("shareable", "host"):
                raise Conflict(
                    f"cannot join IPC of container {target.container.id}: non-shareable IPC "
                    "(hint: use IpcMode:shareable for the donor container)"
                )
            joined[kind] = target.state.pid
            if kind == "ipc":
                shm = f"/proc/{target.state.pid}/root/dev/shm"
    user = joined_user(joined, maps)
    if user:
        joined["user"] = user
    devices, rules = find_devices(spec.devices, privileged=spec.privileged)
    return StartFacts(
        root=overlay_root(parts, container) if maps is None else shifted_root(parts.settings),
        cgroup_path=parts.cgroup(container),
        hosts_path=files.hosts,
        hostname_path=files.hostname,
        resolv_path=files.resolv,
        secrets_path=parts.secret_files.path(container),
        joined=joined,
        id_maps=maps,
        setgroups=parts.host.setgroups,
        shm_path=shm,
        devices=devices,
        device_rules=rules,
        block_numbers=find_block_numbers(block_devices(spec.resources)),
        rows=spec.console_rows,
        cols=spec.console_cols,
        identity=_permitted(parts.identity(container), parts.host),
    )


def start_plan_facts(
    parts: Parts, container: Container, facts: StartFacts, *, network_ready: bool
) -> PlanFacts:
    more = plan_facts(container, facts, network_ready=network_ready)
    return msgspec.structs.replace(
        more,
        cgroup_pause=parts.cgroups.driver == "systemd",
        record_pause=container.id in parts.recorders,
    )


async def enter_cgroup(parts: Parts, config: oci.Config, pid: int) -> None:
    """With systemd's driver: the waiting process gets its scope."""
    from cove.runtime.cgroups_scopes import CgroupsScopes

    assert isinstance(parts.cgroups, CgroupsScopes)
    await parts.cgroups.enter(config.linux.cgroups_path, pid, config.linux.resources or oci.Resources())


def _permitted(identity: users.Resolved | None, host: Host) -> users.Resolved | None:
    """Without the groups that a rootless daemon can't give, for want of subordinate ids."""
    return identity if identity is None or host.setgroups else replace(identity, groups=())


def open_slots(
    needed: Sequence[Slot], undo: AsyncExitStack, *, network: int = -1, process: int = -1, root: int = -1
) -> list[int]:
    """The descriptors that a plan asks for: those handed in, and namespaces and mount trees opened here."""
    handed = []
    for slot in needed:
        match slot.kind:
            case "network":
                handed.append(network)
            case "process":
                handed.append(process)
            case "root":
                handed.append(root)
            case "namespace":
                handed.append(os.open(slot.path, os.O_RDONLY | os.O_CLOEXEC))
                undo.callback(os.close, handed[-1])
            case "tree":
                handed.append(open_slot(slot))
                undo.callback(os.close, handed[-1])
    return handed


def user_resolver(
    user: str, group_add: Sequence[str], env: Sequence[str], *, setgroups: bool
) -> Callable[[int], Awaitable[runtime.Resolved]]:
    """Answers the plan's sync point: the user as the container's own root has it."""

    async def resolve(root_fd: int) -> runtime.Resolved:
        found = users.resolve_user(root_fd, user, group_add)
        groups = found.groups if setgroups else ()
        return runtime.Resolved(uid=found.uid, gid=found.gid, groups=groups, env=found.environment(env))

    return resolve


def listener_sender(
    filter_: oci.Seccomp | None, container: Container, status: str
) -> Callable[[int, int], Awaitable[None]]:
    """Sends a filter's listener to the agent that its profile names."""

    async def send(listener: int, pid: int) -> None:
        assert filter_ is not None
        state = {
            "ociVersion": oci.VERSION,
            "id": container.id,
            "status": status,
            "pid": pid,
            "annotations": dict(container.spec.annotations),
        }
        told = process_state(pid, filter_.listener_metadata, state)
        await asyncio.to_thread(send_listener, filter_.listener_path, listener, told)  # the agent may be slow

    return send


def warm_filters(host: Host) -> None:
    """Compile the default system call filter, which takes some milliseconds, before the first start wants it."""
    spec = ContainerSpec(image="")
    profile = seccomp.select(
        host.default_seccomp, container_capabilities(spec, host), host.architecture, host.kernel
    )
    if profile is not None:
        compile_filter(profile)


# --- execs --------------------------------------------------------------------------------------


async def launch_exec(
    parts: Parts,
    view: View,
    task: Task,
    spec: ExecSpec,
    state_dir: Path,
    attaches: Sequence[Attach],
    *,
    keep_stdin: bool,
    rows: int,
    cols: int,
) -> Task:
    """Start a further process in a running container. Raises StartRefused."""
    async with AsyncExitStack() as undo:
        try:
            return await _launch_exec(
                parts,
                view,
                task,
                spec,
                state_dir,
                attaches,
                undo,
                keep_stdin=keep_stdin,
                rows=rows,
                cols=cols,
            )
        except CoveError as error:
            raise refusal(error) from error
        except OSError as error:
            raise StartRefused(NOT_STARTED_CODE, HostError(f"exec: {error.strerror}")) from error
    raise AssertionError("unreachable")


async def _launch_exec(
    parts: Parts,
    view: View,
    task: Task,
    spec: ExecSpec,
    state_dir: Path,
    attaches: Sequence[Attach],
    undo: AsyncExitStack,
    *,
    keep_stdin: bool,
    rows: int,
    cols: int,
) -> Task:
    state = view.state
    container = with_link_variables(view.container, parts.registry.find)
    pid = state.pid
    root_fd = os.open(f"/proc/{pid}/root", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    undo.callback(os.close, root_fd)
    if not task.lives():
        raise Conflict(f"container {container.id} is not running")
    found = users.resolve_user(root_fd, spec.user or container.user, container.spec.group_add)
    identity = _permitted(found, parts.host)
    maps = IdMaps((), ()) if in_user_namespace(pid) else None  # as it runs, whatever this daemon was told
    facts = start_facts(parts, container, existing_files(parts.settings.container_dir(container.id)), maps)
    config = plan_spec(container, facts, parts.host)
    path = find_exec_path(parts.host.cgroups, config.linux.cgroups_path, pid)
    config = msgspec.structs.replace(config, linux=msgspec.structs.replace(config.linux, cgroups_path=path))
    process = plan_exec_process(
        container,
        config,
        args=spec.args,
        env=spec.env,
        working_dir=spec.working_dir,
        user=spec.user,
        tty=spec.tty,
        privileged=spec.privileged,
        rows=rows,
        cols=cols,
        identity=identity,
        host=parts.host,
    )
    more = plan_facts(container, facts, network_ready=False)
    plan, needed = plan_exec(config, process, more, parts.host)
    return await launch(
        parts.launcher,
        plan,
        state_dir=state_dir,
        slots=open_slots(needed, undo, process=task.pidfd),
        streams=StreamSetup(terminal=spec.tty, stdin=keep_stdin and spec.attach_stdin, stdin_once=True),
        on_listener=listener_sender(config.linux.seccomp, view.container, "running"),
        attach=attaches,
    )


# --- failures, dry runs -------------------------------------------------------------------------


def refusal(error: CoveError) -> StartRefused:
    """The exit code and the sentence for a failed start, as Docker's clients read them; and the step."""
    refused = _refusal(error)
    if isinstance(error, StepFailed):
        describe = error.step.describe() if error.step else ""
        refused.failure = StepFailure(
            section=error.section, index=error.index, describe=describe, errno=error.errno
        )
    return refused


def _refusal(error: CoveError) -> StartRefused:
    if isinstance(error, StepFailed) and isinstance(error.step, Exec):
        name = error.step.args[0]
        if error.errno == errno.ENOENT:
            where = ": no such file or directory" if "/" in name else ": executable file not found in $PATH"
            return StartRefused(NOT_FOUND_CODE, Invalid(f'exec: "{name}"{where}'))
        if error.errno in (errno.EACCES, errno.EISDIR):
            return StartRefused(NOT_EXECUTABLE_CODE, Invalid(f'exec: "{name}": permission denied'))
        if error.errno == errno.ENOEXEC:
            return StartRefused(
                NOT_EXECUTABLE_CODE,
                Invalid(f'exec: "{name}": exec format error: permission denied to run it'),
            )
        return StartRefused(NOT_EXECUTABLE_CODE, Invalid(f'exec: "{name}": {os.strerror(error.errno)}'))
    if isinstance(error, StepFailed) and isinstance(error.step, Chdir):
        code = {errno.ENOTDIR: NOT_FOUND_CODE, errno.EACCES: NOT_EXECUTABLE_CODE}
        about = f'the working directory "{error.step.path}" can\'t be entered: {os.strerror(error.errno)}'
        return StartRefused(code.get(error.errno, NOT_STARTED_CODE), Invalid(about))
    if isinstance(error, StepFailed) and error.errno == errno.ENOTDIR and error.step is not None:
        about = (
            f"{error.step.describe()}: Not a directory: Are you trying to mount a directory onto a file "
            "(or vice-versa)? Check if the specified host path exists and is the expected type"
        )
        return StartRefused(NOT_FOUND_CODE, Invalid(about))
    return StartRefused(NOT_STARTED_CODE, error)


def plan_only(parts: Parts, container: Container, mounts: Sequence[PlannedMount | MountPoint]) -> Plan:
    """The plan of a container that isn't started: volumes and files have the paths they have or would get."""
    points = []
    for item in mounts:
        if isinstance(item, MountPoint):
            points.append(item)
            continue
        match item.mount:
            case Bind(source=source, target=target, readonly=readonly, propagation=propagation):
                points.append(
                    MountPoint(
                        kind="bind", target=target, source=source, readonly=readonly, propagation=propagation
                    )
                )
            case Tmpfs():
                points.append(tmpfs_point(item.mount))
            case ImageMount():
                points.append(image_point(parts, item.mount))
            case Volume(name=name, target=target, readonly=readonly, subpath=subpath):
                source = str(parts.settings.data_root / "volumes" / name / "_data")
                points.append(
                    MountPoint(
                        kind="volume",
                        target=target,
                        source=source,
                        subpath=subpath,
                        name=name,
                        readonly=readonly,
                    )
                )
    dry = msgspec.structs.replace(_named(parts, container), mounts=tuple(points))
    files = existing_files(parts.settings.container_dir(container.id))
    facts = start_facts(parts, dry, files, id_maps(parts.settings, dry.spec))
    more = start_plan_facts(parts, dry, facts, network_ready=bool(network_requests(dry)))
    plan, _ = plan_start(plan_spec(dry, facts, parts.host), more, parts.host)
    return plan
