"""Trees that builds copy from: an index and the packs that hold the contents, or a snapshot's layers. No I/O here but
the closing of packs."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass

import msgspec

from cove.build.graph import Item
from cove.image.jobs import PackedItem
from cove.image.selection import Excludes, Fact, Found, find_items, kept_name
from cove.image.treeindex import TreeIndex, digest_entries


@dataclass(frozen=True, slots=True, kw_only=True)
class Snapshot:
    """Files as layers show them, lowest first, by diff id. `key` is what it is known by."""

    layers: tuple[str, ...]
    key: str


class PackedTree:
    """Files as an index and packs (descriptors, which it closes)."""

    def __init__(self, index: TreeIndex, packs: Sequence[int] = (), key: str = "") -> None:
        self.index = index
        self.packs = tuple(packs)
        self.key = key

    def close(self) -> None:
        for fd in self.packs:
            os.close(fd)
        self.packs = ()

    # what find_items asks

    def fact(self, path: bytes) -> Fact | None:
        entry = self.index.find(path)
        return None if entry is None else Fact(entry.kind, entry.link)

    def names(self, path: bytes) -> Sequence[bytes]:
        return self.index.names(path)

    def select(self, item: Item) -> list[PackedItem]:
        """What a source of a copy stands for. NotFound, Invalid."""
        pattern = os.fsencode(item.path)
        return [self._packed(found, item) for found in find_items(self, pattern)]

    def _packed(self, found: Found, item: Item) -> PackedItem:
        top = self.index.find(found.path)
        assert top is not None, "find_items has just found it"
        cut = len(found.path) + 1 if found.path else 0
        entries = [msgspec.structs.replace(top, path=b"")]
        if top.kind == "dir":
            entries += [
                msgspec.structs.replace(entry, path=entry.path[cut:])
                for entry in self.index.below(found.path)
            ]
        return PackedItem(
            name=found.path.rpartition(b"/")[2],
            shown=kept_name(os.fsencode(item.pivot), found.name),
            directory=top.kind == "dir",
            unpack=item.unpack,
            entries=tuple(entries),
        )


Tree = Snapshot | PackedTree


def items_digest(
    items: Sequence[PackedItem], excludes: Excludes | None = None, *, owner: bool, names: bool
) -> str:
    """The digest of what a copy takes; with `names` the sources' own names count (they show at the target)."""
    return digest_entries(
        (
            ((item.shown if names or not item.directory else b"") + b"\0" + entry.path, entry)
            for item in items
            for entry in item.entries
            if excludes is None or not excludes.leaves_out(item.shown, entry.path)
        ),
        owner=owner,
    )
