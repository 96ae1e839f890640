"""Secrets as the API asks for them: made, changed, removed, and given to containers."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from contextlib import AsyncExitStack

import msgspec

from cove.engine.parts import Parts
from cove.engine.secret_files import TARGET
from cove.engine.types import View
from cove.model.container import ContainerSpec
from cove.model.errors import Invalid
from cove.model.objects import Event
from cove.storage.secrets import SecretRecord


async def settle_secrets(
    parts: Parts, spec: ContainerSpec, data: Mapping[str, bytes], container_id: str, undo: AsyncExitStack
) -> ContainerSpec:
    """The spec of a new container with its own secrets made. Raises NotFound for a name that there isn't."""
    if any(mount.target.rstrip("/") == TARGET for mount in spec.mounts):
        raise Invalid(f"secrets: something else is mounted on {TARGET}: leave one out")
    names = {use.name: parts.secrets.find_named(use.name).name for use in spec.extension.secrets if use.name}
    settled = []
    undo.push_async_callback(parts.secrets.remove_owned, container_id)
    for use in spec.extension.secrets:
        if use.name:
            settled.append(msgspec.structs.replace(use, name=names[use.name]))
            continue
        record = await parts.secrets.create("", data[use.target], {}, owner=container_id)
        settled.append(msgspec.structs.replace(use, id=record.id))
    extension = msgspec.structs.replace(spec.extension, secrets=tuple(settled))
    return msgspec.structs.replace(spec, extension=extension)


class SecretRoom:
    """What the API calls. No content ever comes back."""

    def __init__(self, parts: Parts) -> None:
        self._parts = parts

    def list(self) -> Sequence[SecretRecord]:
        return self._parts.secrets.list()

    def find(self, name: str) -> SecretRecord:
        return self._parts.secrets.find(name)

    def users(self, name: str) -> Sequence[str]:
        """Ids of the containers that have a secret."""
        return [view.container.id for view in self._views_with(name)]

    def _views_with(self, name: str) -> Sequence[View]:
        return [
            view
            for view in self._parts.registry.views()
            if any(use.name == name for use in view.container.spec.extension.secrets)
        ]

    async def create(self, name: str, content: bytes, labels: Mapping[str, str]) -> SecretRecord:
        record = await self._parts.secrets.create(name, content, labels)
        self._publish(record, "create")
        return record

    async def update(self, name: str, content: bytes) -> SecretRecord:
        """Commit new content, then give it to the containers that run, or are about to."""
        record = await self._parts.secrets.update(name, content)
        self._publish(record, "update")
        for view in self._views_with(record.name):
            await self._parts.secret_files.refresh(view.container, self._parts.settings.remap)
        return record

    async def remove(self, name: str) -> None:
        self._publish(await self._parts.secrets.remove(name, self.users), "remove")

    def _publish(self, record: SecretRecord, action: str) -> None:
        self._parts.events.publish(
            Event(
                kind="secret",
                action=action,
                actor_id=record.id,
                attributes={**record.labels, "name": record.name},
                time_ns=time.time_ns(),
            )
        )
