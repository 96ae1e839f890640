"""Pods: containers that share a network, IPC and a host name, held by a container of their own.

A pod is that container, NAME-infra: its process is cove-init in the role of a pause, in an image that has nothing
else and is made when it is first needed. Ports, addresses and the host name are its; the others join it. So a pod
needs no record of its own: it survives whatever containers survive, and `docker ps` shows what it's made of.

    create: the infra container            start: infra, then the others, oldest first (what waits, waits)
    stop: the others, newest first, then infra       remove: the same way
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import io
import tarfile
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import msgspec

from cove.engine.parts import Parts
from cove.engine.types import View
from cove.model.container import Container, ContainerSpec
from cove.model.errors import Conflict, Invalid, NotFound, NotModified
from cove.model.objects import Image

SUFFIX = "-infra"
IMAGE = "cove.local/pod"
PROGRAM = ("/cove-init", "pause")


class Containers(Protocol):
    """What a pod does with its containers: the engine."""

    async def create(self, spec: ContainerSpec) -> tuple[Container, Sequence[str]]: ...
    async def start(self, reference: str) -> None: ...
    async def stop(self, reference: str, *, timeout_s: float | None = None) -> None: ...
    async def remove(self, reference: str, *, force: bool = False, volumes: bool = False) -> None: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Pod:
    """A pod as it is now; `members` are oldest first, without the infra container."""

    name: str
    infra: View
    members: tuple[View, ...]

    @property
    def status(self) -> str:
        """created, running, degraded (some run), or stopped."""
        runs = [view.state.pid > 0 for view in self.members]
        if self.infra.state.pid:
            return "running" if all(runs) else "degraded"
        return "stopped" if self.infra.state.has_been_started else "created"


class Pods:
    """All pods of this daemon."""

    def __init__(self, parts: Parts, containers: Containers) -> None:
        self._parts = parts
        self._containers = containers

    def list(self) -> Sequence[Pod]:
        """By name."""
        infra = [view for view in self._parts.registry.views() if view.container.spec.extension.infra]
        return sorted((self._pod(view) for view in infra), key=lambda pod: pod.name)

    def find(self, name: str) -> Pod:
        """Raises NotFound."""
        return self._pod(find_infra(self._parts, name))

    def _pod(self, infra: View) -> Pod:
        name = infra.container.spec.extension.pod
        members = [
            view
            for view in self._parts.registry.views()
            if view.container.spec.extension.pod == name and not view.container.spec.extension.infra
        ]
        members.sort(key=lambda view: view.container.created_ns)
        return Pod(name=name, infra=infra, members=tuple(members))

    async def create(self, name: str, spec: ContainerSpec) -> tuple[Pod, Sequence[str]]:
        """Make a pod: `spec` says ports, networks, host name and labels; its image and command are put in here."""
        if not name:
            raise Invalid("pod: a name is needed, e.g. cove pod create web")
        if spec.extension.pod:
            raise Invalid("pod: a pod can't be in another one")
        with contextlib.suppress(NotFound):
            find_infra(self._parts, name)
            raise Conflict(f"pod {name} exists already: remove it, or choose another name")
        spec = msgspec.structs.replace(
            spec,
            name=name + SUFFIX,
            image=await self._image(),
            entrypoint=(),
            command=PROGRAM,
            hostname=spec.hostname or name[:63],
            ipc_mode="host" if spec.ipc_mode == "host" else "shareable",
            init=False,
            extension=msgspec.structs.replace(spec.extension, pod=name, infra=True),
        )
        container, warnings = await self._containers.create(spec)
        return self.find(container.spec.extension.pod), warnings

    async def start(self, name: str) -> None:
        """Start what doesn't run."""
        pod = self.find(name)
        for view in (pod.infra, *pod.members):
            with contextlib.suppress(NotModified):
                await self._containers.start(view.container.id)

    async def stop(self, name: str, *, timeout_s: float | None = None) -> None:
        """Stop what runs. NotModified when nothing did."""
        pod = self.find(name)
        stopped = False
        for view in (*reversed(pod.members), pod.infra):
            with contextlib.suppress(NotModified):
                await self._containers.stop(view.container.id, timeout_s=timeout_s)
                stopped = True
        if not stopped:
            raise NotModified(f"pod {name} is not running")

    async def remove(self, name: str, *, force: bool) -> None:
        """Remove a pod with its containers. Conflict when one of them runs and `force` isn't given."""
        pod = self.find(name)
        members = [view for view in pod.members if view.state.pid]
        if not force and members:
            raise Conflict(
                f"pod {name}: {members[0].container.name} is running: stop the pod before removing it, or force remove"
            )
        for view in (*reversed(pod.members), pod.infra):
            with contextlib.suppress(NotFound):  # --rm: its end removed it
                await self._containers.remove(view.container.id, force=True, volumes=True)

    async def _image(self) -> str:
        """The image of infra containers, by this cove-init's digest."""
        program = self._parts.settings.native.read_bytes()
        name = f"{IMAGE}:{hashlib.sha256(program).hexdigest()[:12]}"
        with contextlib.suppress(NotFound):
            return self._parts.images.find_image(name).id
        image = await self._parts.images.import_image(_chunks(program), name, "holds a pod's namespaces")
        return image.id


def is_infra_image(native: Path) -> Callable[[Image], bool]:
    """Whether an image is this daemon's own for pods: of one layer, with nothing but its cove-init. Read at need."""

    @functools.cache
    def diff_id() -> str:
        return f"sha256:{hashlib.sha256(_archive(native.read_bytes())).hexdigest()}"

    return lambda image: len(image.diff_ids) == 1 and image.diff_ids[0] == diff_id()


async def _chunks(program: bytes) -> AsyncIterator[bytes]:
    yield _archive(program)


def _archive(program: bytes) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        entry = tarfile.TarInfo(Path(PROGRAM[0]).name)
        entry.mode, entry.size = 0o555, len(program)
        archive.addfile(entry, io.BytesIO(program))
    return buffer.getvalue()


def find_infra(parts: Parts, name: str) -> View:
    """The container that holds a pod. Raises NotFound."""
    for view in parts.registry.views():
        extension = view.container.spec.extension
        if extension.infra and extension.pod == name:
            return view
    raise NotFound(f"No such pod: {name[:80]}: cove pod ls lists them, cove pod create makes one")


def settle_pod(parts: Parts, spec: ContainerSpec) -> ContainerSpec:
    """The spec of a new member: it joins the pod. Raises NotFound, or Invalid for what is the pod's to say."""
    name = spec.extension.pod
    infra = find_infra(parts, name).container.id
    for given, what in (
        (spec.network_mode not in ("", "default"), "a network"),
        (bool(spec.ports) or spec.publish_all, "published ports"),
        (bool(spec.hostname), "a host name"),
        (spec.ipc_mode not in ("", f"container:{infra}"), "an IPC mode"),
        (bool(spec.dns or spec.dns_search or spec.dns_options or spec.extra_hosts), "DNS settings"),
    ):
        if given:
            raise Invalid(
                f"pod {name}: {what} is for the pod to have, not for a container in it: cove pod create"
            )
    joined = f"container:{infra}"
    return msgspec.structs.replace(spec, network_mode=joined, ipc_mode=joined)
