"""A fake engine for the API's tests: real models and the real bus, containers that are only records.

`ApiFixture` serves it on a unix socket, in a loop and a thread of its own, so that tests use plain
blocking sockets, each with a timeout.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import json
import os
import shutil
import socket
import tempfile
import threading
import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Coroutine, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import msgspec
import uvloop

from cove.api.server import ApiServer
from cove.engine.admission import Admission
from cove.engine.changes import Change
from cove.engine.health import Health
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
    WaitHandle,
    WaitResult,
)
from cove.events.bus import Bus
from cove.image.images import Images
from cove.image.manifests import HistoryLine, history_of
from cove.image.registry.push import PushEvent
from cove.image.registry.search import Found, split_term
from cove.image.types import Loaded, PathStat, Removed, Use
from cove.logs.model import LogLine, LogQuery
from cove.metrics.meters import Meters
from cove.model.container import (
    Container,
    ContainerSpec,
    Endpoint,
    EndpointSpec,
    LogConfig,
    MountPoint,
    Resources,
    RestartPolicy,
    State,
    StepFailure,
    Volume,
)
from cove.model.errors import Conflict, Invalid, NotFound, NotModified
from cove.model.objects import HistoryEntry, Image, ImageConfig, IpamPool, Network, VolumeRecord
from cove.runtime.cgroups_stats import CpuClock, CpuStats, MemoryStats, Pressure, PressureLine, Stats
from cove.runtime.steps import Hostname, MakeHostDir, Plan
from cove.storage.drivers import Drivers
from cove.storage.volume_options import parse_size
from cove.storage.volumes import Pruned as PrunedVolumes

TIMEOUT_S = 30.0
IMAGE = Image(
    id="sha256:" + "ab" * 32,
    names=("debian:latest",),
    created="2024-01-02T03:04:05Z",
    architecture="amd64",
    config=ImageConfig(command=("bash",), env=("PATH=/bin",), labels={"from": "image"}),
    diff_ids=("sha256:" + "cd" * 32,),
    history=(HistoryEntry(created="2024-01-02T03:04:05Z", created_by="mmdebstrap"),),
    size_bytes=1000,
)
PLAN = Plan(clone_flags=0, before=(MakeHostDir(path="/x"),), child=(Hostname(name="h"),))


class FakePuller:
    async def distribution(self, reference: str, options: Any) -> Any:
        raise NotFound(f"manifest for {reference} not found: manifest unknown")


class FakeSignatures:
    """No image has any."""

    async def list(self, digests: object) -> list[object]:
        return []


class FakeImages:
    def __init__(self) -> None:
        self.images = [IMAGE]
        self.puller = FakePuller()
        self.signatures = FakeSignatures()
        self.received = b""
        self.load_error: Exception | None = None

    def find_image(self, reference: str) -> Image:
        for image in self.images:
            names = (image.id, image.id[7:], *image.names, *(n.removesuffix(":latest") for n in image.names))
            if reference in names or (len(reference) > 3 and image.id[7:].startswith(reference)):
                return image
        raise NotFound(f"No such image: {reference if ':' in reference else reference + ':latest'}")

    async def push(self, reference: str, options: Any) -> AsyncGenerator[Any, None]:
        yield PushEvent(status=f"The push refers to repository [{reference}]")
        raise NotFound(f"An image does not exist locally with the tag: {reference}")

    async def search(self, wish: Any, options: Any) -> list[Any]:
        split_term(wish.term)
        return [Found(name="debian", description="a system", stars=7, official=True)]

    def list_images(self) -> list[Image]:
        return list(self.images)

    def image_by_id(self, image_id: str) -> Image:
        return self.find_image(image_id)

    def image_digests(self, image: Image) -> tuple[str, ...]:
        return (image.id,)

    def history(self, image: Image) -> list[HistoryLine]:
        return history_of(image, [image.size_bytes])

    def size_on_disk(self) -> int:
        return sum(image.size_bytes for image in self.images)

    def plan_prune(self, select: Callable[[Image], bool], in_use: Any) -> tuple[list[Removed], int]:
        gone = [image for image in self.images if select(image) and not in_use(image.id)]
        return [Removed(deleted=image.id) for image in gone], sum(image.size_bytes for image in gone)

    def shared_sizes(self) -> dict[str, int]:
        return {image.id: 0 for image in self.images}

    def held(self, who: str) -> dict[str, object]:
        return {}

    async def let_go(self, who: str, keys: Sequence[str]) -> None:
        assert not keys, "nothing is held here"

    def layer_uses(self) -> list[tuple[str, int, list[Image]]]:
        return [(image.id, image.size_bytes, [image]) for image in self.images]

    async def prune(self, select: Callable[[Image], bool], in_use: Any) -> tuple[list[Removed], int]:
        gone = [image for image in self.images if select(image) and not in_use(image.id)]
        self.images = [image for image in self.images if image not in gone]
        return [Removed(deleted=image.id) for image in gone], sum(image.size_bytes for image in gone)

    async def tag(self, source: str, target: str) -> Image:
        return self.find_image(source)

    async def remove(self, reference: str, *, force: bool, prune: bool, in_use: Any) -> list[Removed]:
        image = self.find_image(reference)
        users = in_use(image.id)
        if users and not force:
            raise Conflict(f"conflict: image is being used by container {users[0].container_id[:12]}")
        self.images.remove(image)
        return [Removed(untagged=image.names[0]), Removed(deleted=image.id)]

    async def load(self, chunks: AsyncIterator[bytes]) -> AsyncGenerator[Loaded, None]:
        async for chunk in chunks:
            self.received += chunk
        if self.load_error is not None:
            raise self.load_error
        yield Loaded(image_id=IMAGE.id, name="debian:latest")

    async def import_image(
        self, chunks: AsyncIterator[bytes], reference: str, message: str, changes: Sequence[str]
    ) -> Image:
        async for chunk in chunks:
            self.received += chunk
        return IMAGE

    def saved_images(self, names: Sequence[str]) -> list[Image]:
        return [self.find_image(name) for name in names]

    def save(self, references: Sequence[str]) -> AsyncGenerator[bytes, None]:
        for reference in references:
            self.find_image(reference)
        return self._save(references)

    async def _save(self, references: Sequence[str]) -> AsyncGenerator[bytes, None]:
        yield b"tar:"
        yield ",".join(references).encode()


class FakeVolumes:
    def __init__(self) -> None:
        self.records: dict[str, VolumeRecord] = {}
        self.drivers = Drivers(())

    async def survey(self) -> tuple[Sequence[tuple[VolumeRecord, None]], Sequence[str]]:
        return [(record, None) for record in self.list()], ()

    async def look(self, name: str) -> tuple[VolumeRecord, None]:
        return self.get(name), None

    def find(self, name: str) -> VolumeRecord | None:
        return self.records.get(name)

    def get(self, name: str) -> VolumeRecord:
        if name not in self.records:
            raise NotFound(f"get {name}: no such volume")
        return self.records[name]

    def list(self) -> list[VolumeRecord]:
        return [self.records[name] for name in sorted(self.records)]

    async def create(
        self, name: str, driver: str, options: Mapping[str, str], labels: Mapping[str, str]
    ) -> VolumeRecord:
        name = name or "f" * 64
        record = VolumeRecord(name=name, mountpoint=f"/v/{name}/_data", created_ns=1, labels=dict(labels))
        return self.records.setdefault(name, record)

    async def remove(self, name: str, *, force: bool, in_use: Callable[[str], Sequence[str]]) -> None:
        if users := in_use(name):
            raise Conflict(f"remove {name}: volume is in use - [{', '.join(users)}]")
        if name not in self.records and not force:
            raise NotFound(f"get {name}: no such volume")
        self.records.pop(name, None)

    async def resize(self, name: str, size: str) -> VolumeRecord:
        record = self.get(name)
        return msgspec.structs.replace(record, size_bytes=parse_size(size, f"update {name}"))

    async def prune(self, *, in_use: Any, keep: Any, named_too: bool) -> PrunedVolumes:
        names = tuple(r.name for r in self.list() if (r.anonymous or named_too) and not keep(r))
        for name in names:
            del self.records[name]
        return PrunedVolumes(names, 0)

    async def usage(self, name: str) -> Any:
        return msgspec.structs.replace(PrunedUsage())


class PrunedUsage(msgspec.Struct):
    size_bytes: int = 7


def network(name: str) -> Network:
    return Network(
        id=hashlib.sha256(name.encode()).hexdigest(),
        name=name,
        driver=name if name in ("bridge", "host", "none") else "bridge",
        created_ns=1_700_000_000_000_000_000,
        ipam=(IpamPool(subnet="172.30.0.0/16", gateway="172.30.0.1"),),
    )


class FakeNetworks:
    def firewall(self) -> str:
        return "docker"

    def __init__(self) -> None:
        self.networks = [network(n) for n in ("bridge", "host", "none")]

    def list_networks(self) -> list[Network]:
        return list(self.networks)

    def find_network(self, name_or_id: str) -> Network:
        name = "bridge" if name_or_id == "default" else name_or_id
        for found in self.networks:
            if name in (found.name, found.id) or (len(name) > 3 and found.id.startswith(name)):
                return found
        raise NotFound(f"network {name_or_id} not found")

    def members(self, network_id: str) -> list[tuple[str, Endpoint]]:
        return []

    async def create(self, name: str, **options: Any) -> Network:
        made = network(name)
        self.networks.append(made)
        return made

    async def remove(self, name_or_id: str) -> Network:
        found = self.find_network(name_or_id)
        self.networks.remove(found)
        return found


@dataclass
class FakeEngine:
    """Enough of `cove.engine.engine.Engine` for its callers; `calls` says what was asked of it."""

    settings: Settings
    images: FakeImages = field(default_factory=FakeImages)
    networks: FakeNetworks = field(default_factory=FakeNetworks)
    volumes: FakeVolumes = field(default_factory=FakeVolumes)
    events: Bus = field(default_factory=Bus)
    meters: Meters = field(default_factory=Meters)
    views: dict[str, View] = field(default_factory=dict)
    waits: dict[str, asyncio.Future[WaitResult]] = field(default_factory=dict)
    execs: dict[str, ExecView] = field(default_factory=dict)
    healths: dict[str, Health] = field(default_factory=dict)
    log: list[LogLine] = field(default_factory=list)
    log_error: Exception | None = None
    attach_error: Exception | None = None
    calls: list[tuple[Any, ...]] = field(default_factory=list)
    ended: threading.Event = field(default_factory=threading.Event)  # a stream, wait or upload was left
    entered: threading.Event = field(default_factory=threading.Event)
    go: asyncio.Event = field(default_factory=asyncio.Event)
    received: bytes = b""

    @property
    def admission(self) -> Admission:
        return Admission(cast(Images, self.images))

    # --- reads
    def find(self, reference: str) -> View:
        name = reference.removeprefix("/")
        matches = [
            v
            for v in self.views.values()
            if v.container.name == name or v.container.id.startswith(name or "-")
        ]
        if len(matches) != 1:
            raise NotFound(f"No such container: {reference}")
        return matches[0]

    def list(self) -> list[View]:
        return sorted(self.views.values(), key=lambda v: v.container.created_ns, reverse=True)

    def link_names(self) -> dict[str, Sequence[str]]:
        return {}

    def shown_links(self, view: View) -> Sequence[str]:
        return ()

    def volume_users(self, name: str) -> Sequence[str]:
        return [v.container.id for v in self.list() if any(m.name == name for m in v.container.mounts)]

    def image_users(self, image_id: str) -> Sequence[Use]:
        return [
            Use(container_id=v.container.id, running=v.state.status == "running")
            for v in self.list()
            if v.container.image_id == image_id
        ]

    def layer_usage(self, view: View) -> None:
        return None

    async def log_size(self, view: View) -> int:
        return 3

    async def trash_size(self) -> int:
        return 0

    def exec_ids(self, container_id: str) -> Sequence[str]:
        return []

    def health(self, container_id: str) -> Health | None:
        return self.healths.get(container_id)

    async def writable_size(self, reference: str) -> int:
        return 5

    # --- containers
    async def create(
        self, spec: ContainerSpec, secret_data: Mapping[str, bytes] | None = None
    ) -> tuple[Container, Sequence[str]]:
        image = self.images.find_image(spec.image)
        name = spec.name or f"c{len(self.views)}"
        for view in self.views.values():
            if view.container.name == name:
                raise Conflict(
                    f'Conflict. The container name "/{name}" is already in use by container "{view.container.id}". '
                    "You have to remove (or rename) that container to be able to reuse that name."
                )
        container_id = hashlib.sha256(name.encode()).hexdigest()
        container = Container(
            id=container_id,
            name=name,
            created_ns=1_700_000_000_000_000_000 + len(self.views),
            image_id=image.id,
            image_name=spec.image,
            spec=spec,
            args=spec.command or image.config.command,
            command=spec.command or image.config.command,
            env=image.config.env + spec.env,
            hostname=spec.hostname or container_id[:12],
            labels=spec.labels,
            exposed_ports=spec.exposed_ports,
            healthcheck=spec.healthcheck,
            log=LogConfig(driver=spec.log.driver or "local"),
            mounts=tuple(
                MountPoint(kind="volume", target=m.target, name=m.name)
                for m in spec.mounts
                if isinstance(m, Volume)
            ),
        )
        self.views[container_id] = View(container, State())
        self.calls.append(("create", spec))
        return container, []

    def _set(self, reference: str, **changes: Any) -> None:
        view = self.find(reference)
        state = msgspec.structs.replace(view.state, **changes)
        self.views[view.container.id] = View(view.container, state)

    async def start(self, reference: str, *, detach_keys: bytes = b"") -> None:
        view = self.find(reference)
        if view.state.status == "running":
            raise NotModified("already running")
        found = self.networks.find_network("bridge")
        endpoint = Endpoint(
            network_id=found.id,
            network_name="bridge",
            ipv4="172.30.0.2",
            ipv4_prefix=16,
            gateway4="172.30.0.1",
        )
        self._set(
            reference,
            status="running",
            pid=4242,
            started_ns=time.time_ns(),
            has_been_started=True,
            endpoints=(endpoint,),
            ports=view.container.spec.ports,
        )

    async def stop(self, reference: str, *, timeout_s: float | None = None, signal: str = "") -> None:
        if self.find(reference).state.status != "running":
            raise NotModified("not running")
        self.calls.append(("stop", timeout_s, signal))
        self._set(reference, status="exited", pid=0, exit_code=143, finished_ns=time.time_ns(), endpoints=())

    async def restart(self, reference: str, *, timeout_s: float | None = None, signal: str = "") -> None:
        self.find(reference)
        self.calls.append(("restart", timeout_s, signal))

    async def kill(self, reference: str, signal: str = "KILL") -> None:
        if self.find(reference).state.status != "running":
            raise Conflict(f"cannot kill container: {reference}: container {reference} is not running")
        self.calls.append(("kill", signal))

    async def pause(self, reference: str) -> None:
        """Holds until `go`: a change that a client may leave in the middle."""
        self.find(reference)
        self.entered.set()
        await self.go.wait()
        self._set(reference, status="paused")

    async def unpause(self, reference: str) -> None:
        self._set(reference, status="running")

    async def rename(self, reference: str, new_name: str) -> None:
        view = self.find(reference)
        if not new_name:
            raise Invalid("Neither old nor new names may be empty")
        self.views[view.container.id] = View(
            msgspec.structs.replace(view.container, name=new_name), view.state
        )

    async def remove(
        self, reference: str, *, force: bool = False, volumes: bool = False, link: bool = False
    ) -> None:
        view = self.find(reference)
        if view.state.status == "running" and not force:
            raise Conflict(f"cannot remove container {reference}: container is running")
        self.calls.append(("remove", force, volumes, link))
        del self.views[view.container.id]

    async def wait(self, reference: str, condition: str = "not-running") -> WaitHandle:
        self.find(reference)
        future: asyncio.Future[WaitResult] = asyncio.get_running_loop().create_future()
        self.waits[condition] = future
        future.add_done_callback(lambda f: self.ended.set() if f.cancelled() else None)
        return WaitHandle(future)

    async def resize(self, reference: str, rows: int, cols: int) -> None:
        self.find(reference)
        self.calls.append(("resize", rows, cols))

    async def update(
        self,
        reference: str,
        resources: Resources,
        restart: RestartPolicy | None,
        cleared: Sequence[str] = (),
    ) -> Sequence[str]:
        self.find(reference)
        self.calls.append(("update", resources, restart, *cleared))
        return []

    def prunable(self, accepts: Callable[[View], bool]) -> Sequence[View]:
        return [v for v in self.list() if v.state.status != "running" and accepts(v)]

    async def prune(self, accepts: Callable[[View], bool]) -> Pruned:
        deleted = [v.container.id for v in self.list() if v.state.status != "running" and accepts(v)]
        for container_id in deleted:
            del self.views[container_id]
        return Pruned(deleted=deleted, reclaimed_bytes=0)

    async def top(self, reference: str, ps_args: str) -> Top:
        self.find(reference)
        return Top(titles=["PID", "CMD"], processes=[["1", ps_args]])

    async def stats(self, reference: str) -> ContainerStats:
        self.find(reference)
        waited = Pressure(some=PressureLine(avg10=1.5, total_us=70), full=PressureLine())
        cgroup = Stats(cpu=CpuStats(usage_ns=100), memory=MemoryStats(usage_bytes=4096, pressure=waited))
        return ContainerStats(read_ns=time.time_ns(), cgroup=cgroup, clock=CpuClock(10, 2))

    async def plan(self, spec: ContainerSpec) -> Plan:
        self.images.find_image(spec.image)
        return PLAN

    def plan_existing(self, reference: str) -> tuple[Plan, StepFailure | None]:
        return PLAN, self.find(reference).state.failure

    # --- streams
    def check_attach(self, reference: str) -> View:
        view = self.find(reference)
        if view.state.status == "paused":
            raise Conflict(f"Container {reference} is paused, unpause the container before attach.")
        return view

    async def attach(
        self, reference: str, options: AttachOptions, sock: socket.socket, initial: bytes
    ) -> None:
        if self.attach_error is not None:
            sock.close()
            raise self.attach_error
        self.calls.append(("attach", options))
        self._echo(sock, initial)

    def _echo(self, sock: socket.socket, initial: bytes) -> None:
        """A client's peer: sends back what came, and at the end of input how much it was."""

        def run() -> None:
            with sock, contextlib.suppress(OSError):  # the client may be gone
                sock.settimeout(TIMEOUT_S)
                total = len(initial)
                if initial:
                    sock.sendall(initial)
                while data := sock.recv(65536):
                    total += len(data)
                    sock.sendall(data)
                sock.sendall(b"<end %d>" % total)

        threading.Thread(target=run, daemon=True).start()

    def log_attributes(self, view: View) -> dict[str, str]:
        return {"b": "2", "a": "x y,z"}

    async def logs(self, reference: str, query: LogQuery) -> AsyncIterator[LogLine]:
        self.calls.append(("logs", query))
        if self.log_error is not None:
            raise self.log_error
        try:
            for line in self.log:
                yield line
            if query.follow:
                await asyncio.Event().wait()
        finally:
            self.ended.set()

    # --- execs
    async def exec_create(self, reference: str, spec: ExecSpec) -> str:
        view = self.find(reference)
        exec_id = hashlib.sha256(str(len(self.execs)).encode()).hexdigest()
        self.execs[exec_id] = ExecView(id=exec_id, container_id=view.container.id, spec=spec)
        return exec_id

    def exec_check_start(self, exec_id: str) -> ExecView:
        view = self.exec_inspect(exec_id)
        if view.started:
            raise Conflict(f"exec command {exec_id} has already run")
        return view

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
        view = self.exec_check_start(exec_id)
        self.calls.append(("exec_start", detach, rows, cols))
        if view.spec.args == ("missing",):
            if sock is not None:
                sock.close()
            raise Invalid("exec: missing: executable file not found in $PATH")
        self.execs[exec_id] = ExecView(
            id=exec_id, container_id=view.container_id, spec=view.spec, started=True, exit_code=0
        )
        if sock is not None and view.spec.attach_stdin:
            self._echo(sock, initial)
        elif sock is not None:
            sock.close()

    async def exec_settled(self, exec_id: str) -> ExecView:
        return self.exec_inspect(exec_id)

    def exec_inspect(self, exec_id: str) -> ExecView:
        if exec_id not in self.execs:
            raise NotFound(f"No such exec instance: {exec_id}")
        return self.execs[exec_id]

    async def exec_resize(self, exec_id: str, rows: int, cols: int) -> None:
        self.exec_inspect(exec_id)

    # --- files, networks, host
    async def archive_stat(self, reference: str, path: str) -> PathStat:
        self.find(reference)
        return PathStat(name=path.rpartition("/")[2], size=3, mode=0o644, mtime_ns=1_700_000_000_000_000_000)

    async def changes(self, reference: str) -> Sequence[Change]:
        self.find(reference)
        return [Change("/etc", 0), Change("/etc/new", 1)]

    async def export(self, reference: str) -> AsyncIterator[bytes]:
        self.find(reference)

        async def chunks() -> AsyncIterator[bytes]:
            yield b"tar:"
            yield b"all"

        return chunks()

    async def archive_get(self, reference: str, path: str) -> tuple[PathStat, AsyncIterator[bytes]]:
        stat = await self.archive_stat(reference, path)

        async def chunks() -> AsyncIterator[bytes]:
            yield b"tar"

        return stat, chunks()

    async def archive_put(
        self, reference: str, path: str, chunks: AsyncIterator[bytes], **options: bool
    ) -> None:
        """Waits for `go` after the first piece, so that tests see how much a slow reader lets in."""
        self.find(reference)
        try:
            async for chunk in chunks:
                self.received += chunk
                self.entered.set()
                await self.go.wait()
        finally:
            self.ended.set()

    async def connect_network(self, reference: str, endpoint: EndpointSpec) -> None:
        self.calls.append(("connect", reference, endpoint))

    async def disconnect_network(self, reference: str, network: str, *, force: bool = False) -> None:
        self.calls.append(("disconnect", reference, network, force))

    def info(self) -> HostInfo:
        return HostInfo(
            id="fake",
            name="host",
            kernel="6.1.0",
            operating_system="Debian",
            os_version="12",
            architecture="x86_64",
            cpus=2,
            memory_bytes=1 << 30,
            cgroup_driver="cgroupfs",
            cgroup_version=2,
            containers=len(self.views),
            running=0,
            paused=0,
            stopped=0,
            images=1,
            data_root="/data",
            default_log_driver="local",
            log_drivers=["local"],
        )


class Answer:
    """A response as read from a socket."""

    def __init__(self, status: int, headers: dict[str, str], body: bytes) -> None:
        self.status, self.headers, self.body = status, headers, body

    @property
    def json(self) -> Any:
        return json.loads(self.body)

    @property
    def message(self) -> str:
        return str(self.json["message"])


class Client:
    """One raw connection; every wait is bounded."""

    def __init__(self, path: Path) -> None:
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(TIMEOUT_S)
        self.sock.connect(os.fspath(path))
        self.buffer = b""

    def close(self) -> None:
        self.sock.close()

    def send(self, data: bytes) -> None:
        self.sock.sendall(data)

    def more(self) -> bytes:
        data = self.sock.recv(65536)
        self.buffer += data
        return data

    def until(self, mark: bytes) -> bytes:
        while mark not in self.buffer:
            if not self.more():
                raise AssertionError(f"the server closed before {mark!r}; got {self.buffer!r}")
        found, _, self.buffer = self.buffer.partition(mark)
        return found + mark

    def exactly(self, count: int) -> bytes:
        while len(self.buffer) < count:
            if not self.more():
                raise AssertionError(f"the server closed early; got {self.buffer!r}")
        found, self.buffer = self.buffer[:count], self.buffer[count:]
        return found

    def rest(self) -> bytes:
        """Everything up to the server's end of the stream."""
        with contextlib.suppress(ConnectionResetError):
            while self.more():
                pass
        found, self.buffer = self.buffer, b""
        return found

    def head(self) -> tuple[int, dict[str, str]]:
        lines = self.until(b"\r\n\r\n").decode("latin-1").split("\r\n")
        headers = dict(line.split(": ", 1) for line in lines[1:] if line)
        return int(lines[0].split(" ")[1]), {key.lower(): value for key, value in headers.items()}

    def chunk(self) -> bytes:
        size = int(self.until(b"\r\n"), 16)
        return self.exactly(size + 2)[:-2]

    def answer(self, *, method: str = "GET") -> Answer:
        status, headers = self.head()
        if method == "HEAD" or status in (204, 304):
            return Answer(status, headers, b"")
        if headers.get("transfer-encoding") == "chunked":
            body = b""
            while piece := self.chunk():
                body += piece
            return Answer(status, headers, body)
        if "content-length" in headers:
            return Answer(status, headers, self.exactly(int(headers["content-length"])))
        return Answer(status, headers, self.rest())


def request_bytes(
    method: str, target: str, body: bytes | Any = None, headers: Mapping[str, str] | None = None
) -> bytes:
    """A request; a body that isn't bytes is sent as JSON."""
    lines = [f"{method} {target} HTTP/1.1", "Host: cove"]
    data = b""
    if body is not None:
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        if not headers or "Content-Type" not in headers:
            lines.append("Content-Type: application/json")
        lines.append(f"Content-Length: {len(data)}")
    lines += [f"{key}: {value}" for key, value in (headers or {}).items()]
    return "\r\n".join(lines).encode() + b"\r\n\r\n" + data


class ApiFixture:
    """The API over a fake engine, served in a thread of its own."""

    def __init__(self) -> None:
        self.directory = Path(tempfile.mkdtemp(prefix="cove-api-", dir="/tmp"))
        self.path = self.directory / "api.sock"
        self._ready = threading.Event()
        self._clients: list[Client] = []
        self._thread = threading.Thread(target=lambda: uvloop.run(self._main()), daemon=True)
        self._thread.start()
        assert self._ready.wait(TIMEOUT_S)

    async def _main(self) -> None:
        self.loop = asyncio.get_running_loop()
        self._stop = asyncio.Event()
        self.engine = FakeEngine(
            Settings(data_root=Path("/data"), run_dir=Path("/run/fake"), native=Path("/bin/true"))
        )
        self.server = ApiServer(self.engine)  # type: ignore[arg-type]
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        sock.bind(os.fspath(self.path))
        await self.server.listen(sock)
        self._ready.set()
        await self._stop.wait()
        await self.server.close(grace_s=TIMEOUT_S)

    def close(self) -> None:
        for client in self._clients:
            client.close()
        self.loop.call_soon_threadsafe(self.engine.go.set)
        self.loop.call_soon_threadsafe(self._stop.set)
        self._thread.join(TIMEOUT_S)
        assert not self._thread.is_alive(), "the server didn't end"
        shutil.rmtree(self.directory)

    def run(self, work: Coroutine[Any, Any, Any]) -> Any:
        return asyncio.run_coroutine_threadsafe(work, self.loop).result(TIMEOUT_S)

    def call(self, function: Callable[..., Any], *args: Any) -> None:
        self.loop.call_soon_threadsafe(function, *args)

    def connect(self) -> Client:
        client = Client(self.path)
        self._clients.append(client)
        return client

    def ask(
        self, method: str, target: str, body: bytes | Any = None, headers: Mapping[str, str] | None = None
    ) -> Answer:
        client = self.connect()
        client.send(request_bytes(method, target, body, headers))
        answer = client.answer(method=method)
        client.close()
        return answer

    def create(self, name: str = "web", **body: Any) -> str:
        answer = self.ask("POST", f"/containers/create?name={name}", {"Image": "debian", **body})
        assert answer.status == 201, answer.body
        return str(answer.json["Id"])


@contextlib.contextmanager
def serving() -> Iterator[ApiFixture]:
    fixture = ApiFixture()
    try:
        yield fixture
    finally:
        fixture.close()
