"""Results of steps, kept by key: the layers are held in the image store, the rest is a note with them.

    images/held/build/KEY   layers of the result, lowest first; Note

A record is used as long as all its layers are there. Bounded: `prune` removes what is wanted gone, and `collect`
removes the longest unused until the rest is below the size that is kept.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import NamedTuple

import msgspec

from cove.image.adding import Adding

WHO = "build"
_TOUCH_NS = 60 * 10**9  # uses within that time of the last one aren't written down


class Note(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What the cache knows of a result beside its layers."""

    kind: str  # exec, copy, directory, image
    description: str = ""
    created_ns: int
    used_ns: int
    uses: int = 0
    added: str = ""  # the diff id of the layer that the step made; "": none
    size_bytes: int = 0  # of that layer
    loose: bool = False  # of COPY --link: the layer goes onto any base
    stands_for: str = ""  # the key of the same result by what it was made of


class Entry(NamedTuple):
    key: str
    layers: tuple[str, ...]
    note: Note


class Cache:
    """The cache of one daemon's builds."""

    def __init__(self, images: Adding) -> None:
        self._images = images

    def find(self, key: str) -> Entry | None:
        """A result that can be used; its use is noted."""
        held = self._images.find_held(WHO, key)
        if held is None or not self._images.has_layers(held.layers):
            return None
        note = msgspec.json.decode(held.note, type=Note)
        now = time.time_ns()
        if now - note.used_ns > _TOUCH_NS or not note.uses:
            note = msgspec.structs.replace(note, used_ns=now, uses=note.uses + 1)
            self._images.hold(WHO, key, held.layers, note)
        return Entry(key, held.layers, note)

    def put(self, key: str, layers: Sequence[str], note: Note) -> Entry:
        """Keep a result; `save` makes it last."""
        self._images.hold(WHO, key, layers, note)
        return Entry(key, tuple(layers), note)

    async def save(self) -> None:
        """Write down what was kept since the last time."""
        await self._images.record_held()

    def entries(self) -> list[Entry]:
        """Everything there is, the longest unused first."""
        found = [
            Entry(key, held.layers, msgspec.json.decode(held.note, type=Note))
            for key, held in self._images.held(WHO).items()
        ]
        return sorted(found, key=lambda entry: (entry.note.used_ns, entry.key))

    def used_bytes(self) -> int:
        """What the layers take that no image has."""
        return sum(sizes for _, sizes in self._own_layers().items())

    def _own_layers(self) -> dict[str, int]:
        """The layers that only the cache holds, with their sizes."""
        found: dict[str, int] = {}
        held = {diff_id for entry in self.entries() for diff_id in entry.layers}
        for diff_id, size, users in self._images.layer_uses():
            if diff_id in held and not users:
                found[diff_id] = size
        return found

    async def prune(
        self, select: Callable[[Entry], bool] = lambda entry: True, *, keep_bytes: int = 0
    ) -> tuple[list[Entry], int]:
        """Remove what `select` wants gone, the longest unused first, until what stays takes at most `keep_bytes`.
        What went, and the bytes that it took."""
        own = self._own_layers()
        entries = self.entries()
        users: dict[str, int] = {}
        for entry in entries:
            for diff_id in entry.layers:
                users[diff_id] = users.get(diff_id, 0) + 1
        total, gone = sum(own.values()), []
        before = total
        for entry in entries:
            if keep_bytes and total <= keep_bytes:
                break
            if not select(entry):
                continue
            gone.append(entry)
            for diff_id in entry.layers:
                users[diff_id] -= 1
                if not users[diff_id]:
                    total -= own.get(diff_id, 0)
        await self._images.let_go(WHO, [entry.key for entry in gone])
        return gone, before - total
