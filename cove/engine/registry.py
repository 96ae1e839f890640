"""The committed containers: an index in memory over the store. Reads take no lock.

A write commits to the store first and is then shown, with no await in between, so that a reader
sees either the old or the new record, never a half. Names are claimed by the same transaction.

Beside the records it keeps which anonymous volumes are loose: made for a container that isn't committed yet, or
left by one whose record is gone. A crash in between leaves the note, and the next start removes them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeVar

import msgspec

from cove.engine.types import View
from cove.model.container import Container, State
from cove.model.errors import Conflict, HostError, Invalid, NotFound
from cove.model.recreation import Recreation
from cove.store.interface import Delete, KeyValue, Op, Put, Store, absent

T = TypeVar("T")
_CONTAINERS = "containers/"
_STATES = "states/"
_NAMES = "names/"
_LOOSE = "loose/"
_RECREATIONS = "recreations/"

_encode = msgspec.json.Encoder().encode
_decode_container = msgspec.json.Decoder(Container).decode
_decode_state = msgspec.json.Decoder(State).decode
_decode_names = msgspec.json.Decoder(tuple[str, ...]).decode
_decode_recreation = msgspec.json.Decoder(Recreation).decode


class Registry:
    """Every container of this daemon, by id and by name."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._views: dict[str, View] = {}
        self._names: dict[str, str] = {}

    @classmethod
    async def open(cls, store: Store) -> Registry:
        """Read all containers that the store holds. Raises HostError for a record that makes no sense."""
        registry = cls(store)
        states = {kv.key[len(_STATES) :]: _read(kv, _decode_state) for kv in await store.range(_STATES)}
        for kv in await store.range(_CONTAINERS):
            container = _read(kv, _decode_container)
            state = states.get(container.id, State())
            registry._views[container.id] = View(container, state)
            registry._names[container.name] = container.id
        return registry

    def get(self, container_id: str) -> View | None:
        return self._views.get(container_id)

    def views(self) -> list[View]:
        return list(self._views.values())

    def ids(self) -> list[str]:
        return list(self._views)

    def find(self, reference: str) -> View:
        """By full id, name (a leading "/" is passed over), or a prefix of exactly one id.

        Raises NotFound, or Invalid for an empty or an ambiguous reference.
        """
        if not reference:
            raise Invalid("container name cannot be empty: give a name or an id, e.g. web")
        view = self._views.get(reference)
        if view is not None:
            return view
        owner = self._names.get(reference.removeprefix("/"))
        if owner is not None:
            return self._views[owner]
        found = [i for i in self._views if i.startswith(reference)]
        if len(found) == 1:
            return self._views[found[0]]
        if len(found) > 1:
            raise Invalid(f"Multiple IDs found with provided prefix: {reference}")
        raise NotFound(f"No such container: {reference}")

    def __contains__(self, name: str) -> bool:
        return name in self._names

    async def note_loose(self, container_id: str, volumes: Sequence[str]) -> None:
        """Commit that these anonymous volumes are about to be made for a container."""
        await self._store.txn([], [Put(_LOOSE + container_id, _encode(volumes))])

    async def forget_loose(self, container_id: str) -> None:
        """Its loose volumes are gone; that there were none is fine."""
        await self._store.txn([], [Delete(_LOOSE + container_id)])

    async def list_loose(self) -> dict[str, tuple[str, ...]]:
        """The loose volumes by the id of the container that had them, or was to have them."""
        return {kv.key[len(_LOOSE) :]: _decode_names(kv.value) for kv in await self._store.range(_LOOSE)}

    async def insert(self, container: Container, state: State) -> None:
        """Commit a new container, claim its name and its volumes; Conflict when the name is taken."""
        if container.name in self._names:
            raise self.taken(container.name)
        result = await self._store.txn(
            [absent(_NAMES + container.name)],
            [
                Put(_CONTAINERS + container.id, _encode(container)),
                Put(_STATES + container.id, _encode(state)),
                Put(_NAMES + container.name, container.id.encode()),
                Delete(_LOOSE + container.id),
            ],
        )
        if not result.succeeded:
            raise self.taken(container.name)
        self._views[container.id] = View(container, state)
        self._names[container.name] = container.id

    async def set_state(self, container_id: str, state: State) -> None:
        """Commit a transition."""
        view = self._views.get(container_id)
        if view is None:
            raise NotFound(f"No such container: {container_id}")
        if view.state == state:
            return
        await self._store.txn([], [Put(_STATES + container_id, _encode(state))])
        self._views[container_id] = View(self._views[container_id].container, state)

    async def set_container(self, container: Container) -> None:
        """Commit a changed record (update); the name must be the same."""
        await self._store.txn([], [Put(_CONTAINERS + container.id, _encode(container))])
        self._views[container.id] = View(container, self._views[container.id].state)

    async def rename(self, container_id: str, new_name: str) -> Container:
        """Commit a new name, atomically with the release of the old one; Conflict when it's taken."""
        view = self._views[container_id]
        old = view.container.name
        if new_name in self._names:
            raise self.taken(new_name)
        renamed = msgspec.structs.replace(view.container, name=new_name)
        result = await self._store.txn(
            [absent(_NAMES + new_name)],
            [
                Put(_CONTAINERS + container_id, _encode(renamed)),
                Put(_NAMES + new_name, container_id.encode()),
                Delete(_NAMES + old),
            ],
        )
        if not result.succeeded:
            raise self.taken(new_name)
        self._names.pop(old, None)
        self._names[new_name] = container_id
        self._views[container_id] = View(renamed, self._views[container_id].state)
        return renamed

    async def note_recreation(self, record: Recreation) -> None:
        """Commit that a container is about to be re-created; Conflict when it is being so already."""
        key = _RECREATIONS + record.old
        result = await self._store.txn([absent(key)], [Put(key, _encode(record))])
        if not result.succeeded:
            raise Conflict(f"container {record.name} is being re-created already: wait until that is done")

    async def forget_recreation(self, record: Recreation) -> None:
        """It is finished or taken back; twice is fine."""
        await self._store.txn([], [Delete(_RECREATIONS + record.old)])

    async def list_recreations(self) -> list[Recreation]:
        """Those that were under way when the last daemon ended."""
        return [_read(kv, _decode_recreation) for kv in await self._store.range(_RECREATIONS)]

    async def exchange(self, record: Recreation) -> Recreation:
        """Commit that the new container has the name and the old one stands aside, or the reverse, as one.

        Raises NotFound when one of them is gone, Conflict when it was renamed or a name is taken.
        """
        back = record.exchanged
        held = {
            record.old: record.aside if back else record.name,
            record.new: record.name if back else record.fresh,
        }
        wanted = {
            record.old: record.name if back else record.aside,
            record.new: record.fresh if back else record.name,
        }
        views = {}
        for container_id, name in held.items():
            view = self._views.get(container_id)
            if view is None:
                raise NotFound(f"container {name} was removed while it was re-created")
            if view.container.name != name:
                raise Conflict(
                    f"container {name} was renamed to {view.container.name} while it was re-created"
                )
            views[container_id] = view
        free = next(name for name in wanted.values() if name not in held.values())
        if free in self._names:
            raise self.taken(free)
        renamed = {i: msgspec.structs.replace(v.container, name=wanted[i]) for i, v in views.items()}
        left = next(name for name in held.values() if name not in wanted.values())
        turned = msgspec.structs.replace(record, exchanged=not back)
        result = await self._store.txn(
            [absent(_NAMES + free)],
            [
                *(Put(_CONTAINERS + i, _encode(container)) for i, container in renamed.items()),
                *(Put(_NAMES + name, i.encode()) for i, name in wanted.items()),
                Delete(_NAMES + left),
                Put(_RECREATIONS + record.old, _encode(turned)),
            ],
        )
        if not result.succeeded:
            raise self.taken(free)
        self._names.pop(left, None)
        for container_id, container in renamed.items():
            self._names[container.name] = container_id
            self._views[container_id] = View(container, self._views[container_id].state)
        return turned

    async def delete(self, container_id: str, *, loose: Sequence[str] = ()) -> None:
        """Forget a container and its name, and note the volumes that are to go with it; twice is fine."""
        view = self._views.get(container_id)
        if view is None:
            return
        ops: list[Op] = [
            Delete(_CONTAINERS + container_id),
            Delete(_STATES + container_id),
            Delete(_NAMES + view.container.name),
        ]
        if loose:
            ops.append(Put(_LOOSE + container_id, _encode(loose)))
        await self._store.txn([], ops)
        self._views.pop(container_id, None)
        self._names.pop(view.container.name, None)

    def taken(self, name: str) -> Conflict:
        """The error for a name that is in use."""
        owner = self._names.get(name, "unknown")
        return Conflict(
            f'Conflict. The container name "/{name}" is already in use by container "{owner}". '
            "You have to remove (or rename) that container to be able to reuse that name."
        )


def _read(pair: KeyValue, decode: Callable[[bytes], T]) -> T:
    try:
        return decode(pair.value)
    except msgspec.DecodeError as error:
        raise HostError(
            f"the store's record {pair.key} can't be read ({error}): restore the store from a backup, "
            "or run the version of Cove that wrote it"
        ) from error
