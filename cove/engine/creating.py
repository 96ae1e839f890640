"""Create a container: settle what its specification leaves open, and put it on record.

Order that must hold: names are checked, secrets and mounts settled, the image is admitted, the directory made, and only
then the record inserted; whatever fails takes back what was made before it.
"""

from __future__ import annotations

import secrets
import time
from collections.abc import Mapping, Sequence
from contextlib import AsyncExitStack

import msgspec

from cove.engine import host as host_facts
from cove.engine.create import anonymous_names, is_init, plan_container, plan_mounts, volume_names
from cove.engine.defaults import with_defaults
from cove.engine.depends import check_depends, find_by
from cove.engine.links import has_links, settle_links
from cove.engine.mounts import settle_mounts
from cove.engine.names import check_name, choose_name, new_id
from cove.engine.parts import Parts
from cove.engine.pods import settle_pod
from cove.engine.recreate import Origin
from cove.engine.secret_use import settle_secrets
from cove.model.container import (
    Container,
    ContainerSpec,
    MountPoint,
    State,
)
from cove.model.errors import NotFound

NO_DATA: Mapping[str, bytes] = {}


class Creations:
    """Makes containers."""

    def __init__(self, parts: Parts) -> None:
        self._parts = parts

    async def create(
        self,
        spec: ContainerSpec,
        secret_data: Mapping[str, bytes] = NO_DATA,
        origin: Origin | None = None,
    ) -> tuple[Container, Sequence[str]]:
        """Create a container; returns it with warnings. Nothing is left when it raises.

        `secret_data` are the contents of its secrets that have no name, by target; `origin` is what it takes over
        from the container whose place it is to take.
        """
        name = check_name(spec.name) if spec.name else choose_name(self._parts.registry)
        if name in self._parts.registry:
            raise self._parts.registry.taken(name)
        container_id = origin.container_id if origin is not None else new_id()
        async with AsyncExitStack() as undo:
            try:
                if spec.extension.pod and not spec.extension.infra and origin is None:
                    spec = settle_pod(self._parts, spec)
                if spec.extension.secrets:
                    spec = await settle_secrets(self._parts, spec, secret_data, container_id, undo)
                container, warnings = await self._prepare(spec, name, container_id, undo, origin)
                if spec.extension.depends_on:
                    warnings = [*warnings, *check_depends(name, spec, find_by(self._parts))]
                container = self._parts.limited(container)
                undo.push_async_callback(self._parts.discard_container_dir, container.id)
                await self._parts.admission.check_container(container)
                await self._parts.make_container_dir(container)
                for image_id in (container.image_id, *(p.image_id for p in container.mounts if p.image_id)):
                    self._parts.images.image_by_id(image_id)  # still there: copying up takes its time
                await self._parts.registry.insert(container, State())
            finally:
                self._parts.claims.pop(container_id, None)
            if has_links(container):
                self._parts.linking.add(container.id)
            undo.pop_all()
        self._parts.publish(container, "create")
        return container, warnings

    async def _prepare(
        self,
        spec: ContainerSpec,
        name: str,
        container_id: str,
        undo: AsyncExitStack,
        origin: Origin | None,
    ) -> tuple[Container, Sequence[str]]:
        if origin is not None and origin.image_id:
            image = self._parts.images.image_by_id(origin.image_id)
        else:
            image = self._parts.images.find_image(spec.image)
        await self._parts.admission.check(image, spec.image)
        spec = with_defaults(spec, self._parts.settings)
        spec, warnings = self._parts.check(settle_links(self._settle_joined(spec), self._parts.registry.find))
        carried = origin.mounts if origin is not None else ()
        inherited = inherited_mounts(self._parts, spec) if origin is None or origin.inherits else ()
        planned = plan_mounts(spec, image.config, inherited, lambda: secrets.token_hex(32), carried)
        container = plan_container(
            spec,
            image,
            container_id=container_id,
            name=name,
            created_ns=time.time_ns(),
            mounts=(),
            log=self._parts.logs.choose(spec.log),
            host_name=host_facts.host_name(),
        )
        if spec.extension.init == "auto" and spec.init is None and not is_init(container.args):
            container = msgspec.structs.replace(container, spec=msgspec.structs.replace(spec, init=True))
        if origin is not None:
            container = msgspec.structs.replace(container, recreated=origin.recreated)
        self._parts.claims[container_id] = volume_names(planned)
        loose = anonymous_names(planned)
        if loose:
            await self._parts.registry.note_loose(container.id, loose)
            undo.push_async_callback(self._parts.settle_loose, container.id, loose)
        warnings = [*warnings, *self._parts.logs.check(container)]
        mounts = await settle_mounts(self._parts, planned, image, undo)
        return msgspec.structs.replace(container, mounts=mounts), warnings

    def _settle_joined(self, spec: ContainerSpec) -> ContainerSpec:
        """`container:NAME` modes by id, so that a later rename doesn't matter; a missing one fails the start."""
        changes: dict[str, str] = {}
        for field in ("network_mode", "pid_mode", "ipc_mode"):
            kind, colon, reference = getattr(spec, field).partition(":")
            if kind == "container" and colon:
                try:
                    changes[field] = f"container:{self._parts.registry.find(reference).container.id}"
                except NotFound:
                    continue
        return msgspec.structs.replace(spec, **changes) if changes else spec


def inherited_mounts(parts: Parts, spec: ContainerSpec) -> Sequence[MountPoint]:
    """The mounts of the containers that `volumes_from` names."""
    points = []
    for source in spec.volumes_from:
        for point in parts.registry.find(source.container).container.mounts:
            if point.kind == "tmpfs":
                continue
            points.append(msgspec.structs.replace(point, readonly=point.readonly or source.readonly))
    return points
