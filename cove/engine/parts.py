"""The rooms that the engine works with, opened once, and the few calls to them that several parts share.

Order that must hold at opening: the store first, what is read from it next, the host's side (cgroups,
bridges) last; closing goes the other way.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import stat
import time
import uuid
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import msgspec

from cove.engine.admission import Admission
from cove.engine.files import ContainerFiles, write_files
from cove.engine.links import has_links, linked_hosts
from cove.engine.logs import ContainerLogs
from cove.engine.naming import Naming
from cove.engine.probes import Prober
from cove.engine.recorder import Recorder
from cove.engine.registry import Registry
from cove.engine.remap import check_userns
from cove.engine.secret_files import SecretFiles
from cove.engine.types import ContainerStats, Settings
from cove.events.bus import Bus
from cove.events.journal import Journal
from cove.image.images import Images
from cove.image.overlayfs import in_user_namespace
from cove.image.types import Use
from cove.metrics.meters import Meters
from cove.model.container import Container, ContainerSpec, Endpoint, Resources
from cove.model.errors import CoveError, HostError, Invalid, NotFound
from cove.model.objects import Event, Image, VolumeRecord
from cove.network.model import NetworkSettings
from cove.network.networks import Networks
from cove.network.statistics import read_interfaces
from cove.runtime.cgroups import Cgroups
from cove.runtime.cgroups_detect import detect_cgroups, detect_delegated
from cove.runtime.cgroups_limits import block_devices, check_resources, missing_features, plan_resources
from cove.runtime.cgroups_none import CgroupsNone
from cove.runtime.cgroups_stats import read_cpu_clock
from cove.runtime.host import Host, find_block_numbers, find_host
from cove.runtime.launch import Launcher, reconnect
from cove.runtime.plan_inputs import IdMaps
from cove.runtime.shifted import ShiftedRoots
from cove.runtime.spec import check_spec
from cove.runtime.users import Resolved, UserFiles, read_layered_user_files, resolve
from cove.storage.drivers import Drivers
from cove.storage.layers import (
    Layers,
    LayerUsage,
    WritableLayer,
    free_trash,
    prepare_writable,
    writable_layer,
)
from cove.storage.plugin_client import SOCKET_DIRECTORY
from cove.storage.project_quota import ProjectQuotas
from cove.storage.secrets import Secrets
from cove.storage.trash import Trash
from cove.storage.volumes import Volumes
from cove.store.interface import Put, Store, absent
from cove.store.sqlite import SqliteStore

_DAEMON_ID = "daemon/id"
_CACHED_IMAGES = 64
_PIDS_LOOK_S = 2.0


class Parts:
    """Everything below the engine, of one daemon."""

    def __init__(
        self,
        *,
        settings: Settings,
        store: Store,
        registry: Registry,
        images: Images,
        volumes: Volumes,
        secrets: Secrets,
        networks: Networks,
        trash: Trash,
        cgroups: Cgroups,
        host: Host,
        launcher: Launcher,
        shifted: ShiftedRoots | None,
        quotas: ProjectQuotas | None,
    ) -> None:
        self.settings = settings
        self.store = store
        self.registry = registry
        self.images = images
        self.admission = Admission(images)
        self.volumes = volumes
        self.secrets = secrets
        self.secret_files = SecretFiles(secrets, settings.run_dir / "secrets")
        self.networks = networks
        self.trash = trash
        self.cgroups = cgroups
        self.host = host
        self.launcher = launcher
        self.quotas = quotas
        self.meter = volumes.meter
        self.layers = Layers(quotas, images=shifted is None and not host.in_user_namespace)
        self.shifted = shifted  # with `--userns-remap`
        self.naming = Naming(
            settings.run_dir, networks.visit, networks.find_network, stub=not host.in_user_namespace
        )
        self.meters = Meters()
        self.events = Bus(journal=Journal(settings.data_root / "events"))
        self.prober = Prober()
        self.logs = ContainerLogs(settings)
        self.linking = {view.container.id for view in registry.views() if has_links(view.container)}
        self.recorders: dict[str, Recorder] = {}  # of what containers open, by container
        self.claims: dict[str, set[str]] = {}  # by container that is being created: its volumes
        if isinstance(cgroups, CgroupsNone):
            cgroups.find_first = self._first_process
        self.own_layers: dict[str, Sequence[str]] = {}  # by container: of those that are made from no image
        self._users: dict[str, UserFiles | None] = {}
        self.forget_execs: Callable[[str], None] = lambda container_id: None

    @classmethod
    async def open(cls, settings: Settings, network: NetworkSettings) -> Parts:
        """Open every room. Raises what the first that fails raises, with the earlier ones closed."""
        make_directories(settings)
        launcher = Launcher.open(settings.native)
        cgroups = find_cgroups(settings)
        async with contextlib.AsyncExitStack() as undo:
            store = await SqliteStore.open(settings.data_root / "state.db")
            undo.push_async_callback(store.close)
            cgroups.setup()  # a daemon that is refused its store makes nothing on the host
            with contextlib.suppress(FileNotFoundError):
                free_trash(settings.data_root / "trash")
            trash = await Trash.open(settings.data_root / "trash")
            undo.push_async_callback(trash.close)
            images = await Images.open(settings.data_root / "images", store)
            quotas = ProjectQuotas.find(settings.data_root)
            drivers = Drivers((settings.run_dir / "plugins", SOCKET_DIRECTORY))
            if quotas is not None:
                undo.callback(quotas.close)
            volumes = await Volumes.open(settings.data_root / "volumes", store, trash, quotas, drivers)
            registry = await Registry.open(store)
            secrets = await Secrets.open(settings.data_root / "secrets", store, registry.ids())
            if quotas is not None:
                quotas.sweep([*volumes.sized_trees(), *_limited_layers(settings, registry)])
            shifted = None
            if settings.remap is not None:
                make_root_point(settings.root_point, settings.remap)
                shifted = await ShiftedRoots.open(settings.data_root, settings.remap)
                undo.callback(shifted.close)
            networks = await Networks.open(store, settings=network, run_dir=str(settings.run_dir))
            undo.pop_all()
        return cls(
            settings=settings,
            store=store,
            registry=registry,
            images=images,
            volumes=volumes,
            secrets=secrets,
            networks=networks,
            trash=trash,
            cgroups=cgroups,
            host=replace(find_host(cgroups.layout), default_seccomp=settings.seccomp_profile),
            launcher=launcher,
            shifted=shifted,
            quotas=quotas,
        )

    async def close(self) -> None:
        self.prober.close()
        await self.logs.close()
        await self.naming.close()
        await self.networks.close()
        if self.shifted is not None:
            self.shifted.close()
        await self.volumes.close()
        await self.images.close()
        await self.trash.close()
        if self.quotas is not None:
            self.quotas.close()
        await self.events.close()
        await self.store.close()

    async def uninstall(self) -> None:
        """Take down what the host holds for this daemon; containers are gone by now."""
        await self.logs.close()
        await self.naming.uninstall()
        await self.networks.uninstall()
        await self.secret_files.sweep(())
        for view in self.registry.views():
            if view.container.layer == "image":
                await self.layers.take_down(self.settings.container_dir(view.container.id))
        for path in self.cgroups.list_containers():
            await self.cgroups.kill(path)
            await self.cgroups.remove(path)
        self.cgroups.teardown()

    async def daemon_id(self) -> str:
        """The identity of this data root, made once."""
        found = await self.store.get(_DAEMON_ID)
        if found is not None:
            return found.value.decode()
        made = str(uuid.uuid4())
        await self.store.txn([absent(_DAEMON_ID)], [Put(_DAEMON_ID, made.encode())])
        return made

    # --- events -------------------------------------------------------------------------------

    def publish(self, container: Container, action: str, **attributes: str) -> None:
        """Tell the bus what happened to a container; its labels go along, as in Docker."""
        merged = {**container.labels, "image": container.image_name, "name": container.name, **attributes}
        self.events.publish(
            Event(
                kind="container",
                action=action,
                actor_id=container.id,
                attributes=merged,
                time_ns=time.time_ns(),
            )
        )

    def publish_image(self, image: Image, action: str, name: str) -> None:
        self.events.publish(
            Event(
                kind="image",
                action=action,
                actor_id=image.id,
                attributes={**image.config.labels, "name": name},
                time_ns=time.time_ns(),
            )
        )

    def publish_volume(self, record: VolumeRecord, action: str) -> None:
        self.events.publish(
            Event(
                kind="volume",
                action=action,
                actor_id=record.name,
                attributes={"driver": record.driver},
                time_ns=time.time_ns(),
            )
        )

    # --- cgroups ------------------------------------------------------------------------------

    def cgroup(self, container: Container) -> str:
        """The path of a container's cgroup, relative to every hierarchy."""
        return self.cgroups.container_path(container.spec.cgroup_parent, container.id)

    def _first_process(self, path: str) -> int:
        """The first process of the container that has this cgroup; 0: it doesn't run."""
        view = self.registry.get(os.path.basename(path))
        return view.state.pid if view is not None else 0

    async def freeze(self, container: Container) -> None:
        await self.cgroups.freeze(self.cgroup(container))

    async def thaw(self, container: Container) -> None:
        await self.cgroups.thaw(self.cgroup(container))

    def is_frozen(self, container: Container) -> bool:
        return self.cgroups.is_frozen(self.cgroup(container))

    async def kill_all(self, container: Container) -> None:
        await self.cgroups.kill(self.cgroup(container))

    async def update_limits(self, container: Container, resources: Resources) -> None:
        """Change the limits of a running container."""
        limits = plan_resources(resources, find_block_numbers(block_devices(resources)), ())
        await asyncio.to_thread(self.cgroups.update, self.cgroup(container), limits)  # systemd may be slow

    def stats(self, container: Container) -> ContainerStats:
        """One reading of a running container's counters."""
        state = self.registry.find(container.id).state
        interfaces = read_interfaces(state.pid) if state.pid else ()
        return ContainerStats(
            read_ns=time.time_ns(),
            cgroup=self.cgroups.read_stats(self.cgroup(container)),
            clock=read_cpu_clock(),
            interfaces=tuple(interfaces),
        )

    def pids(self, container: Container) -> list[int]:
        return self.cgroups.list_pids(self.cgroup(container))

    async def watch_oom(self, container: Container, told: Callable[[], None]) -> None:
        """Call `told` each time the kernel killed a process of the container for want of memory, until cancelled."""
        try:
            watch = self.cgroups.watch_oom(self.cgroup(container))
        except CoveError:
            return  # no memory controller, or the container has ended already

        def look() -> None:  # at once: systemd takes the counter away soon after the last process
            if watch.take():
                told()

        loop = asyncio.get_running_loop()
        loop.add_reader(watch.fileno(), look)
        try:
            await loop.create_future()
        finally:
            loop.remove_reader(watch.fileno())
            watch.close()

    async def wait_pids_limit(self, container: Container) -> bool:
        """Return once the limit of processes has refused one to the container; False: nothing here tells."""
        try:
            watch = self.cgroups.watch_pids(self.cgroup(container))
        except CoveError:
            return False  # no such controller, or the container has ended already
        loop, changed = asyncio.get_running_loop(), asyncio.Event()
        loop.add_reader(watch.fileno(), changed.set)
        try:
            while not watch.take():
                changed.clear()
                with contextlib.suppress(TimeoutError):
                    # on v1, where not every kernel tells of it, its number is read again
                    async with asyncio.timeout(_PIDS_LOOK_S if self.cgroups.layout.version == 1 else None):
                        await changed.wait()
        finally:
            loop.remove_reader(watch.fileno())
            watch.close()
        return True

    async def clean_after_exit(self, container: Container, *, killed: bool = False) -> None:
        """Free what an ended container held: endpoints, and its cgroup when its supervisor couldn't."""
        path = self.cgroup(container)
        try:
            if killed or container.spec.pid_mode:
                await self.cgroups.kill(path)
            await self.cgroups.remove(path)
        finally:
            await self.secret_files.withdraw(container)
            self.volumes.mounts.release(container.id)
            await self.leave_networks(container.id)

    async def leave_networks(self, container_id: str) -> None:
        """Take back a container's endpoints, and what the DNS server has open in its namespace."""
        self.naming.leave(container_id)
        await self.networks.disconnect(container_id)

    # --- planning -----------------------------------------------------------------------------

    def check(self, spec: ContainerSpec) -> tuple[ContainerSpec, list[str]]:
        """What can never start is refused; the spec without the limits that this host ignores, and warnings."""
        check_userns(self.settings, spec)
        warnings = check_spec(spec, self.host)
        if spec.cgroup_parent:
            self.cgroups.check_parent(spec.cgroup_parent)
        resources, about_limits = check_resources(spec.resources, self.host.cgroups)
        return msgspec.structs.replace(spec, resources=resources), [*warnings, *about_limits]

    def identity(self, container: Container) -> Resolved | None:
        """The container's user, when image and writable layer tell it; None: ask its mounted root."""
        if any(covers_users(point.target) for point in container.mounts):
            return None
        upper = self.layer(container).upper
        if os.path.lexists(upper / "etc") or container.id in self.own_layers:
            files = read_layered_user_files([str(upper), *self._layers_from_top(container)])
        else:
            files = self._image_users(container.image_id)
        return resolve(files, container.user, container.spec.group_add) if files is not None else None

    def _image_users(self, image_id: str) -> UserFiles | None:
        """passwd and group of an image, read once."""
        if image_id not in self._users:
            if len(self._users) >= _CACHED_IMAGES:
                self._users.clear()
            layers = self.images.layer_paths(self.images.image_by_id(image_id))
            self._users[image_id] = read_layered_user_files(
                [str(self.images.layers_dir / layer) for layer in reversed(layers)]
            )
        return self._users[image_id]

    def lower_layers(self, container: Container) -> Sequence[str]:
        """The layers below the container's writable one, lowest first, relative to the images' `layers_dir`."""
        own = self.own_layers.get(container.id)
        if own is not None:
            return own
        return self.images.layer_paths(self.images.image_by_id(container.image_id))

    def _layers_from_top(self, container: Container) -> list[str]:
        return [str(self.images.layers_dir / layer) for layer in reversed(self.lower_layers(container))]

    def _root_mode(self, container: Container) -> int:
        """The mode of the image's root directory; the writable layer's root shows it."""
        layers = self._layers_from_top(container)
        return stat.S_IMODE(os.stat(layers[0]).st_mode) if layers else 0o755

    def gateways(self) -> list[str]:
        """What `host-gateway` stands for: the default bridge's own addresses, or those of the configuration."""
        if self.settings.host_gateways:
            return list(self.settings.host_gateways)
        pools = self.networks.find_network("bridge").ipam
        return [pool.gateway for pool in pools if pool.gateway]

    # --- directories --------------------------------------------------------------------------

    def limited(self, container: Container) -> Container:
        """A new container with what will keep its writable layer to a size. Raises Unavailable."""
        size = container.spec.storage_size_bytes or self.settings.default_storage_size_bytes
        if not size:
            return container
        return msgspec.structs.replace(container, layer=self.layers.choose(), layer_bytes=size)

    def layer(self, container: Container) -> WritableLayer:
        """Where the container's writable layer lies; `ensure_layer` first, where its files are wanted."""
        return writable_layer(self.settings.container_dir(container.id), container.layer)

    async def ensure_layer(self, container: Container) -> None:
        """Have the files of the writable layer there."""
        if container.layer == "image":
            await self.layers.ensure(self.settings.container_dir(container.id), container.layer)

    def layer_usage(self, container: Container) -> LayerUsage | None:
        """How full the writable layer is; None for one without a size. Quick: the file system counts."""
        if not container.layer:
            return None
        return self.layers.usage(self.settings.container_dir(container.id), container.layer)

    async def discard_container_dir(self, container_id: str) -> None:
        """A container's directory goes, with all that it takes; idempotent."""
        directory = self.settings.container_dir(container_id)
        await self.layers.take_down(directory)
        self.trash.discard(directory)

    async def make_container_dir(self, container: Container) -> None:
        """The container's directory: writable layer and log. Raises HostError (disk full)."""
        directory = self.settings.container_dir(container.id)
        try:
            os.mkdir(directory, 0o700)
            os.mkdir(directory / "log", 0o700)
        except OSError as error:
            raise HostError(f"container directory {directory}: {error.strerror}") from error
        mode = self._root_mode(container)
        if container.layer:
            await self.layers.prepare(
                directory, root_mode=mode, kind=container.layer, size_bytes=container.layer_bytes
            )
        else:
            prepare_writable(directory, root_mode=mode)

    def write_files(self, container: Container, endpoints: Sequence[Endpoint]) -> ContainerFiles:
        """The files that a container with these endpoints sees. Raises HostError, Invalid."""
        linked = linked_hosts(container, endpoints, self.registry.find)
        directory = self.settings.container_dir(container.id)
        client = self.naming.client(container, endpoints)
        return write_files(directory, container, endpoints, self.gateways(), linked, client)

    def refresh_hosts(self, started: Container) -> None:
        """Tell the running containers that have links of one that has just started."""
        for container_id in list(self.linking):
            view = self.registry.get(container_id)
            if view is None:
                self.linking.discard(container_id)
            elif view.state.pid and container_id != started.id:
                self.write_files(view.container, view.state.endpoints)

    async def writable_size(self, container: Container) -> int:
        """Bytes in the writable layer. Raises NotFound when the container has been removed."""
        if self.registry.get(container.id) is None:
            raise NotFound(f"No such container: {container.id}")
        await self.ensure_layer(container)
        if container.layer == "project" and (found := self.layer_usage(container)) is not None:
            return found.used_bytes
        usage = await self.meter.measure(self.layer(container).upper)
        return usage.size_bytes

    async def end_stray(self, state_dir: Path) -> None:
        """End a supervisor that belongs to no container."""
        task = await reconnect(state_dir)
        if task is not None:
            with contextlib.suppress(CoveError):
                await task.signal(9)
            await task.wait()

    # --- volumes ------------------------------------------------------------------------------

    def volume_users(self, name: str) -> Sequence[str]:
        """Ids of the containers that mount a volume, or are being created with it."""
        users = [
            view.container.id
            for view in self.registry.views()
            if any(point.name == name for point in view.container.mounts)
        ]
        return users + [container_id for container_id, names in self.claims.items() if name in names]

    def mounted_volumes(self, container: Container) -> set[str]:
        """The container's volumes that have to be mounted while it uses them."""
        return {
            point.name for point in container.mounts if point.name and self.volumes.needs_mount(point.name)
        }

    def with_layers(self, container: Container) -> Container:
        """The container, its image mounts with the layers that they show."""
        if not any(point.image_id for point in container.mounts):
            return container
        points = (
            msgspec.structs.replace(
                point, layers=tuple(self.images.layer_paths(self.images.image_by_id(point.image_id)))
            )
            if point.image_id
            else point
            for point in container.mounts
        )
        return msgspec.structs.replace(container, mounts=tuple(points))

    def image_users(self, image_id: str) -> Sequence[Use]:
        """The containers that were made from an image, or mount it."""
        return [
            Use(
                container_id=view.container.id,
                running=view.state.status in ("running", "paused", "restarting"),
            )
            for view in self.registry.views()
            if view.container.image_id == image_id
            or any(point.image_id == image_id for point in view.container.mounts)
        ]

    async def discard_volume(self, name: str) -> None:
        """Take back a volume that a failed create had made, unless another container took it up meanwhile."""
        with contextlib.suppress(CoveError):
            await self.volumes.remove(name, force=False, in_use=self.volume_users)

    async def settle_loose(self, container_id: str, names: Sequence[str]) -> None:
        """Forget the note of a failed create's volumes, unless one of them couldn't be taken back yet."""
        if not any(self.volumes.find(name) for name in names):
            with contextlib.suppress(CoveError):
                await self.registry.forget_loose(container_id)

    def missing(self) -> list[str]:
        """What this host can't do, as sentences."""
        return missing_features(self.host.cgroups)


def _limited_layers(settings: Settings, registry: Registry) -> list[Path]:
    """The writable layers that a project quota limits."""
    return [
        settings.container_dir(view.container.id) / "upper"
        for view in registry.views()
        if view.container.layer == "project"
    ]


def find_cgroups(settings: Settings) -> Cgroups:
    """What this host has, by the driver that the daemon was told. Raises Unavailable, Invalid."""
    if in_user_namespace():
        return detect_delegated(parent=settings.cgroup_parent)
    if settings.cgroup_driver == "systemd":
        from cove.runtime.cgroups_scopes import detect_scopes

        return detect_scopes(settings.cgroup_parent, settings.scope_prefix)
    return detect_cgroups(parent=settings.cgroup_parent)


def make_root_point(path: Path, maps: IdMaps) -> None:
    """The directory that `Settings.root_point` is. Raises Invalid when the containers' root may not get there."""
    path.mkdir(exist_ok=True, mode=0o711)
    for directory in (path, *path.parents):
        if not directory.stat().st_mode & 0o001:
            raise Invalid(
                f"--userns-remap: user {maps.root[0]}, the containers' root, may not pass {directory}: "
                f"chmod o+x {directory}, or choose another --run-dir, e.g. /run/cove"
            )


def covers_users(target: str) -> bool:
    """Whether a mount there hides passwd or group of the image."""
    return target in ("/etc", "/etc/passwd", "/etc/group")


def make_directories(settings: Settings) -> None:
    """DATA_ROOT and RUN_DIR with what belongs below. Raises HostError."""
    try:
        # nobody else may pass: a container's setuid program would be one of the host's (CVE-2021-41091)
        settings.data_root.mkdir(parents=True, exist_ok=True, mode=0o700)
        os.chmod(settings.data_root, 0o700)
        for name in ("images", "containers", "volumes", "trash"):
            (settings.data_root / name).mkdir(exist_ok=True, mode=0o711)
        settings.run_dir.mkdir(parents=True, exist_ok=True, mode=0o711)
        for name in ("containers", "exec"):
            (settings.run_dir / name).mkdir(exist_ok=True, mode=0o700)
    except OSError as error:
        raise HostError(f"{error.filename}: {error.strerror}") from error
