"""The engine's face: what the API calls. It finds the object, and hands the work to the room's part that owns it.

Reads are synchronous and come from committed state; they take no lock.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import secrets
import socket
import time
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Collection, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

import msgspec

from cove.engine import host as host_facts
from cove.engine.admission import Admission
from cove.engine.archive import Archives
from cove.engine.attach import attach_now, make_attach
from cove.engine.changes import Change
from cove.engine.commit import Commits
from cove.engine.connections import Connections
from cove.engine.create import plan_container, plan_mounts
from cove.engine.creating import NO_DATA, Creations, inherited_mounts
from cove.engine.deduping import Deduping
from cove.engine.defaults import with_defaults
from cove.engine.depends import Standing, find_by, standings
from cove.engine.execs import Execs
from cove.engine.fleeting import work_on
from cove.engine.health import Health
from cove.engine.lifecycle import Lifecycle
from cove.engine.links import link_names, shown_links
from cove.engine.live import Background
from cove.engine.live_changes import Changes, change
from cove.engine.names import check_name
from cove.engine.parts import Parts
from cove.engine.plays import Plays
from cove.engine.pods import Pods, is_infra_image
from cove.engine.reconcile import reconcile
from cove.engine.recording import Recordings
from cove.engine.recreate import Asked, Origin, Recreations
from cove.engine.secret_use import SecretRoom
from cove.engine.severity import severity_check
from cove.engine.siderun import SideRuns
from cove.engine.start import plan_only, warm_filters
from cove.engine.types import (
    AttachOptions,
    ContainerStats,
    ExecSpec,
    ExecView,
    HostInfo,
    Pruned,
    Settings,
    Top,
    View,
    WaitCondition,
    WaitHandle,
)
from cove.events.bus import Bus
from cove.image.tooljobs import Deduped, Recorded
from cove.image.types import PathStat, Use
from cove.logs.drivers import driver_names
from cove.logs.model import LogLine, LogQuery
from cove.logs.shipping.shipper import Totals
from cove.model.container import (
    Container,
    ContainerSpec,
    EndpointSpec,
    Resources,
    RestartPolicy,
    StepFailure,
)
from cove.model.errors import Conflict, Invalid, NotFound
from cove.model.objects import Event, Image
from cove.network.model import NetworkSettings
from cove.runtime.cgroups_stats import Stats, read_cpu_clock
from cove.runtime.steps import Plan
from cove.storage.layers import LayerUsage

T = TypeVar("T")


class Engine:
    """Containers, execs, images, volumes and networks of one daemon."""

    def __init__(self, parts: Parts, background: Background) -> None:
        self._parts = parts
        self._background = background
        self._lifecycle = Lifecycle(parts, background)
        self._execs = Execs(parts, background, lambda container_id: self._lifecycle.live(container_id).task)
        self._archives = Archives(parts)
        self._commits = Commits(parts, self._lifecycle)
        self._deduping = Deduping(parts, background, self.image_users)
        self._recordings = Recordings(parts, self._lifecycle)
        self._creations = Creations(parts)
        self._connections = Connections(parts, self._lifecycle)
        self._recreations = Recreations(parts, self._lifecycle, background, self._commits, self.create)
        parts.forget_execs = self._execs.forget_container
        self.images = parts.images
        self.networks = parts.networks
        self.volumes = parts.volumes
        self.secrets = SecretRoom(parts)
        self.pods = Pods(parts, self)
        self.plays = Plays(parts, self.pods, self, self.logs)
        self.side_runs = SideRuns(parts)
        self.meters = parts.meters
        self.events: Bus = parts.events
        self._started_ns = time.time_ns()
        self._id = secrets.token_hex(16)

    @property
    def settings(self) -> Settings:
        return self._parts.settings

    @property
    def store_revision(self) -> int:
        return self._parts.store.revision

    def count_supervisors(self) -> int:
        """How many containers and execs run."""
        return self._lifecycle.count_running() + self._execs.count_running()

    @property
    def admission(self) -> Admission:
        """Which images may be pulled and run."""
        return self._parts.admission

    def reload(self, settings: Settings, attributes: Mapping[str, str]) -> None:
        """Go by other settings from here on, and tell listeners; what was made at the start stays as it is."""
        self._parts.settings = self._parts.logs.settings = settings
        self.events.publish(
            Event(
                kind="daemon",
                action="reload",
                actor_id=self._id,
                attributes={"name": host_facts.host_name(), **attributes},
                time_ns=time.time_ns(),
            )
        )

    @classmethod
    async def open(cls, settings: Settings, network: NetworkSettings) -> Engine:
        """Open the rooms, find what is there, adopt what runs, start what policies want."""
        parts = await Parts.open(settings, network)
        engine = cls(parts, Background())
        try:
            engine._id = await parts.daemon_id()
            parts.admission.register("severity", severity_check(parts.images.scanning))
            parts.admission.except_own(is_infra_image(settings.native))
            policy = await parts.admission.read(settings.image_policy)
            parts.admission.use(settings.image_policy, policy)
            starts = await reconcile(parts, engine._lifecycle)
            await engine._execs.reconcile()
            await engine.plays.settle()
            for container_id in starts:
                engine._lifecycle.resume_restart(container_id)
            engine._background.spawn(
                asyncio.to_thread(warm_filters, parts.host), "compiling the default filter"
            )
        except BaseException:
            await engine.close()
            raise
        return engine

    async def close(self) -> None:
        """End the daemon's part; containers run on."""
        self._lifecycle.close()
        await self._background.close()
        await self._parts.close()

    async def stop_all(self) -> None:
        """Stop every container, for a daemon that ends without live-restore."""
        await self._lifecycle.stop_with_daemon(self.settings.shutdown_timeout_s)

    async def uninstall(self) -> None:
        """End every container and take down what the host holds for this daemon; data stays."""
        for view in self.list():
            if view.state.status in ("running", "paused", "restarting"):
                await self._lifecycle.halt(view.container.id)
        await self._parts.uninstall()

    # --- reads --------------------------------------------------------------------------------

    def find(self, reference: str) -> View:
        return self._parts.registry.find(reference)

    def list(self) -> list[View]:
        """Every container, newest first."""
        return sorted(self._parts.registry.views(), key=lambda view: view.container.created_ns, reverse=True)

    def _id_of(self, reference: str) -> str:
        return self._parts.registry.find(reference).container.id

    def health(self, container_id: str) -> Health | None:
        """A running container's health; None without a check."""
        return self._lifecycle.live(container_id).health

    def waits(self, reference: str) -> Sequence[Standing]:
        """How it stands with what a container's start waits for."""
        spec = self.find(reference).container.spec
        return standings(spec, find_by(self._parts), self._lifecycle.health_word)

    def link_names(self) -> dict[str, Sequence[str]]:
        """The names that legacy links give to containers, by container id: "/parent/alias"."""
        return link_names(self._parts.registry.views()) if self._parts.linking else {}

    def shown_links(self, view: View) -> Sequence[str]:
        """A container's legacy links as inspect shows them: "/child:/parent/alias"."""
        return shown_links(view.container, self.find) if view.container.spec.links else ()

    def exec_ids(self, container_id: str) -> Sequence[str]:
        """Execs of a container that haven't ended."""
        return self._execs.ids_of(container_id)

    def volume_users(self, name: str) -> Sequence[str]:
        """Ids of the containers that mount a volume, or are being created with it."""
        return self._parts.volume_users(name)

    def image_users(self, image_id: str) -> Sequence[Use]:
        """The containers that were made from an image, or mount it."""
        return self._parts.image_users(image_id)

    def publish_image(self, image: Image, action: str, name: str) -> None:
        """Tell listeners of an image that was made, or named."""
        self._parts.publish_image(image, action, name)

    # --- create -------------------------------------------------------------------------------

    async def create(
        self,
        spec: ContainerSpec,
        secret_data: Mapping[str, bytes] = NO_DATA,
        origin: Origin | None = None,
    ) -> tuple[Container, Sequence[str]]:
        """Create a container; returns it with warnings (creating.py)."""
        return await self._creations.create(spec, secret_data, origin)

    # --- transitions --------------------------------------------------------------------------

    async def start(self, reference: str, *, detach_keys: bytes = b"") -> None:
        await self._lifecycle.start(self._id_of(reference))

    async def stop(self, reference: str, *, timeout_s: float | None = None, signal: str = "") -> None:
        await self._lifecycle.stop(self._id_of(reference), timeout_s=timeout_s, signal_name=signal)

    async def restart(self, reference: str, *, timeout_s: float | None = None, signal: str = "") -> None:
        await self._lifecycle.restart(self._id_of(reference), timeout_s=timeout_s, signal_name=signal)

    async def kill(self, reference: str, signal: str = "KILL") -> None:
        await self._lifecycle.kill(self._id_of(reference), signal)

    async def pause(self, reference: str) -> None:
        await self._lifecycle.pause(self._id_of(reference))

    async def unpause(self, reference: str) -> None:
        await self._lifecycle.unpause(self._id_of(reference))

    async def remove(
        self, reference: str, *, force: bool = False, volumes: bool = False, link: bool = False
    ) -> None:
        if link:
            parent, _, alias = reference.removeprefix("/").rpartition("/")
            if not parent:
                raise Invalid(f"{reference}: a link has the name of its container too, e.g. web/db")
            await self._connections.unlink(self._id_of(parent), alias)
            return
        await self._lifecycle.remove(self._id_of(reference), force=force, volumes=volumes)

    async def rename(self, reference: str, new_name: str) -> None:
        view = self.find(reference)
        if not new_name.removeprefix("/"):
            raise Invalid("Neither old nor new names may be empty")
        name = check_name(new_name)
        if name == view.container.name:
            raise Invalid("Renaming a container with the same name as its current name")
        async with self._lifecycle.live(view.container.id).lock:  # who changes the record has read it before
            view = self.find(view.container.id)
            renamed = await self._parts.registry.rename(view.container.id, name)
            if view.state.pid:
                self._parts.naming.update(renamed, view.state.endpoints)
        self._parts.publish(renamed, "rename", oldName="/" + view.container.name)

    async def wait(self, reference: str, condition: WaitCondition = "not-running") -> WaitHandle:
        """Register a wait; it is registered once this returns."""
        return self._lifecycle.wait(self._id_of(reference), condition)

    async def update(
        self,
        reference: str,
        resources: Resources,
        restart: RestartPolicy | None,
        cleared: Collection[str] = (),
    ) -> Sequence[str]:
        """Change limits (those given, and those of the `cleared` fields to none) and the restart policy of a
        container; returns warnings."""
        return await self._lifecycle.update(self._id_of(reference), resources, restart, cleared)

    def prunable(self, accepts: Callable[[View], bool]) -> Sequence[View]:
        """The containers that `prune` would remove."""
        return [
            view
            for view in self.list()
            if view.state.status in ("created", "exited", "dead") and accepts(view)
        ]

    async def change(self, reference: str, changes: Changes) -> Container:
        """Change published ports, labels, health checks or start order of a container, running or not."""
        return await change(self._parts, self._lifecycle, self._id_of(reference), changes)

    async def recreate(self, reference: str, asked: Asked) -> tuple[Container, Sequence[str]]:
        """Have another container take this one's place; returns it with warnings. It goes on if the caller leaves."""
        return await self._recreations.recreate(self._id_of(reference), asked)

    async def prune(self, accepts: Callable[[View], bool]) -> Pruned:
        """Remove the containers that don't run and that `accepts` lets through."""
        deleted = []
        reclaimed = 0
        for view in self.prunable(accepts):
            try:
                size = await self.writable_size(view.container.id)
                await self._lifecycle.remove(view.container.id, force=False, volumes=False)
            except (Conflict, NotFound):
                continue  # somebody started or removed it meanwhile
            deleted.append(view.container.id)
            reclaimed += size
        return Pruned(deleted=deleted, reclaimed_bytes=reclaimed)

    async def connect_network(self, reference: str, request: EndpointSpec) -> None:
        await self._connections.connect(self._id_of(reference), request)

    async def disconnect_network(self, reference: str, network: str, *, force: bool = False) -> None:
        await self._connections.disconnect(self._id_of(reference), network)

    # --- streams ------------------------------------------------------------------------------

    async def resize(self, reference: str, rows: int, cols: int) -> None:
        container_id = self._id_of(reference)
        live = self._lifecycle.live(container_id)
        if live.task is None:
            raise Conflict(f"container {container_id} is not running")
        await live.task.resize(rows, cols)
        self._tell(container_id, "resize", height=str(rows), width=str(cols))

    def check_attach(self, reference: str) -> View:
        """Whether a client may attach now."""
        view = self.find(reference)
        if view.state.status == "paused":
            raise Conflict(f"Container {reference} is paused, unpause the container before attach.")
        if view.state.status == "restarting":
            raise Conflict(
                f"Container {reference} is restarting, wait until the container is running before attaching"
            )
        return view

    async def attach(
        self, reference: str, options: AttachOptions, sock: socket.socket, initial: bytes
    ) -> None:
        """Hand a client's socket over to the container, now or once it starts."""
        view = self.find(reference)
        live = self._lifecycle.live(view.container.id)
        if options.logs:
            await self._replay(view, options, sock)
        container_id = view.container.id
        view = self.find(container_id)  # it may be gone by now
        self._parts.publish(view.container, "attach")
        if not options.stream:
            sock.close()
            return
        tty = view.container.spec.tty
        if tty:
            options = replace(options, multiplex=False)
        attach = make_attach(options, sock, initial, tty=tty)
        attach.on_detach = lambda: self._tell(container_id, "detach")
        if live.task is None:
            live.add_pending(attach)
        else:
            await attach_now(live.task, attach)

    def _tell(self, reference: str, action: str, **attributes: str) -> None:
        """Publish an event of a container, if it's still there."""
        view = self._parts.registry.get(reference)
        if view is not None:
            self._parts.publish(view.container, action, **attributes)

    async def _replay(self, view: View, options: AttachOptions, sock: socket.socket) -> None:
        sock.setblocking(False)
        loop = asyncio.get_running_loop()
        query = LogQuery(stdout=options.stdout, stderr=options.stderr)
        framed = options.multiplex and not view.container.spec.tty
        async with contextlib.aclosing(self.logs(view.container.id, query)) as lines:
            async for line in lines:
                head = bytes((line.stream, 0, 0, 0)) + len(line.data).to_bytes(4, "big") if framed else b""
                await loop.sock_sendall(sock, head + line.data)

    def logs(self, reference: str, query: LogQuery) -> AsyncGenerator[LogLine, None]:
        view = self.find(reference)
        live = self._lifecycle.live(view.container.id)
        return self._parts.logs.read(view.container, query, live.ended)

    def log_totals(self) -> Totals:
        """What was sent of logs, and lost, since the daemon started."""
        return self._parts.logs.shipper.totals()

    def log_attributes(self, view: View) -> dict[str, str]:
        """What `logs --details` shows with each line of a container."""
        return self._parts.logs.attributes(view.container)

    # --- execs --------------------------------------------------------------------------------

    async def exec_create(self, reference: str, spec: ExecSpec) -> str:
        return self._execs.create(self._id_of(reference), spec)

    def exec_check_start(self, exec_id: str) -> ExecView:
        return self._execs.check_start(exec_id)

    async def exec_start(
        self,
        exec_id: str,
        *,
        detach: bool = False,
        tty: bool = False,
        rows: int = 0,
        cols: int = 0,
        sock: socket.socket | None = None,
        initial: bytes = b"",
    ) -> None:
        await self._execs.start(
            exec_id, detach=detach, tty=tty, rows=rows, cols=cols, sock=sock, initial=initial
        )

    def exec_inspect(self, exec_id: str) -> ExecView:
        return self._execs.inspect(exec_id)

    async def exec_settled(self, exec_id: str) -> ExecView:
        """Like `exec_inspect`, once what its supervisor has told so far is taken in."""
        return await self._execs.settled(exec_id)

    async def exec_resize(self, exec_id: str, rows: int, cols: int) -> None:
        await self._execs.resize(exec_id, rows, cols)

    async def commit(
        self,
        reference: str,
        *,
        given: Mapping[str, Any],
        changes: Sequence[str],
        comment: str,
        author: str,
        image: str,
        pause: bool,
    ) -> Image:
        """Make an image of a container, named `image` unless that is "". `given` is the configuration that the caller
        wants, `changes` are Dockerfile instructions on top of it."""
        return await self._work_on(
            reference,
            lambda view: self._commits.commit(
                view,
                given=given,
                changes=changes,
                comment=comment,
                author=author,
                reference=image,
                pause=pause,
            ),
        )

    async def dedupe(self, *, dry_run: bool = False) -> Deduped:
        """Have equal files of layers share their place on the disk. Conflict, HostError."""
        return await self._deduping.dedupe(dry_run=dry_run)

    async def record(self, reference: str, *, start: bool, for_s: float) -> tuple[Container, Recorded]:
        """What a container opens until it ends, or for a time (0: no bound). Conflict, Unavailable, HostError."""
        view = self.find(reference)
        return view.container, await self._recordings.record(view, start=start, for_s=for_s)

    # --- files --------------------------------------------------------------------------------

    async def archive_stat(self, reference: str, path: str) -> PathStat:
        return await self._work_on(reference, lambda view: self._archives.stat(view, path))

    async def archive_get(self, reference: str, path: str) -> tuple[PathStat, AsyncIterator[bytes]]:
        container_id = self._id_of(reference)
        found = await self._work_on(container_id, lambda view: self._archives.get(view, path))
        self._tell(container_id, "archive-path")
        return found

    async def archive_put(
        self,
        reference: str,
        path: str,
        chunks: AsyncIterator[bytes],
        *,
        no_overwrite_dir_non_dir: bool,
        copy_uid_gid: bool,
    ) -> None:
        container_id = self._id_of(reference)
        await self._work_on(
            container_id,
            lambda view: self._archives.put(
                view,
                path,
                chunks,
                no_overwrite_dir_non_dir=no_overwrite_dir_non_dir,
                copy_uid_gid=copy_uid_gid,
            ),
            again=False,  # the archive's bytes come once
        )
        self._tell(container_id, "extract-to-dir")

    async def changes(self, reference: str) -> Sequence[Change]:
        """What the container changed in its files, by path."""
        return await self._work_on(reference, self._archives.changes)

    async def export(self, reference: str) -> AsyncIterator[bytes]:
        """The container's files, without those of its mounts, as a tar stream."""
        container_id = self._id_of(reference)
        chunks = await self._work_on(container_id, self._archives.export)
        self._tell(container_id, "export")
        return chunks

    async def _work_on(
        self, reference: str, work: Callable[[View], Awaitable[T]], *, again: bool = True
    ) -> T:
        return await work_on(self._lifecycle, self.find, reference, work, again=again)

    # --- plans, statistics, the host ----------------------------------------------------------

    async def plan(self, spec: ContainerSpec) -> Plan:
        """The isolation plan that a container of this spec would start with; nothing is made."""
        image = self._parts.images.find_image(spec.image)
        spec, _ = self._parts.check(with_defaults(spec, self._parts.settings))
        if not (spec.command or spec.entrypoint or image.config.command or image.config.entrypoint):
            spec = msgspec.structs.replace(
                spec, command=("sh",)
            )  # an image without a command can be explained too
        container = plan_container(
            spec,
            image,
            container_id="0" * 64,
            name="plan",
            created_ns=0,
            mounts=(),
            log=self._parts.logs.choose(spec.log),
            host_name=host_facts.host_name(),
        )
        planned = plan_mounts(spec, image.config, inherited_mounts(self._parts, spec), lambda: "anonymous")
        return plan_only(self._parts, container, planned)

    def plan_existing(self, reference: str) -> tuple[Plan, StepFailure | None]:
        """The plan that a container would start with now, and the step at which its last start failed.

        Raises Conflict when it joins a container that doesn't run.
        """
        view = self.find(reference)
        return plan_only(self._parts, view.container, view.container.mounts), view.state.failure

    async def top(self, reference: str, ps_args: str) -> Top:
        """The container's processes as the host's ps(1) shows them. Conflict when it doesn't run."""
        view = self.find(reference)
        if view.state.status not in ("running", "paused"):
            raise Conflict(f"container {view.container.id} is not running")
        pids = self._parts.pids(view.container)
        found = await host_facts.list_processes(pids, ps_args)
        self._tell(view.container.id, "top")
        return found

    async def stats(self, reference: str) -> ContainerStats:
        """One reading of the counters; all zero when the container doesn't run."""
        view = self.find(reference)
        if view.state.status in ("running", "paused"):
            with contextlib.suppress(NotFound):  # its cgroup went with its last process
                return self._parts.stats(view.container)
        return ContainerStats(read_ns=time.time_ns(), cgroup=Stats(), clock=read_cpu_clock())

    def layer_usage(self, view: View) -> LayerUsage | None:
        """How full a container's writable layer is: bytes used, the limit, and whether that is `full`. None for one
        without a size."""
        return self._parts.layer_usage(view.container)

    async def log_size(self, view: View) -> int:
        """Bytes of a container's log on the disk."""
        return (await self._parts.meter.measure(self.settings.log_dir(view.container.id))).size_bytes

    async def trash_size(self) -> int:
        """Bytes that are given up and not deleted yet."""
        return (await self._parts.meter.measure(self.settings.data_root / "trash")).size_bytes

    async def writable_size(self, reference: str) -> int:
        """Bytes in the container's writable layer."""
        return await self._work_on(reference, lambda view: self._parts.writable_size(view.container))

    def info(self) -> HostInfo:
        states = [view.state.status for view in self._parts.registry.views()]
        name, version = host_facts.operating_system()
        uname = os.uname()
        return HostInfo(
            id=self._id,
            name=uname.nodename,
            kernel=uname.release,
            operating_system=name,
            os_version=version,
            architecture=uname.machine,
            cpus=os.cpu_count() or 1,
            memory_bytes=host_facts.memory_bytes(),
            cgroup_driver=self._parts.cgroups.driver,
            cgroup_version=self._parts.cgroups.layout.version,
            containers=len(states),
            running=sum(s in ("running", "restarting") for s in states),
            paused=states.count("paused"),
            stopped=sum(s in ("created", "exited", "dead", "removing") for s in states),
            images=len(self.images.list_images()),
            data_root=str(self.settings.data_root),
            default_log_driver=self.settings.default_log_driver,
            log_drivers=driver_names(),
            missing=self._parts.missing(),
            security=[
                f"name=seccomp,profile={self.settings.seccomp_name}",
                *(["name=no-new-privileges"] if self.settings.no_new_privileges else ()),
                *(["name=userns"] if self.settings.remap is not None else ()),
                *(["name=rootless"] if self._parts.host.in_user_namespace else ()),
                "name=cgroupns",
            ],
            started_ns=self._started_ns,
            open_files=_count_entries(Path("/proc/self/fd")),
            tasks=len(asyncio.all_tasks()),
        )


def _count_entries(directory: Path) -> int:
    return sum(1 for _ in directory.iterdir())
