"""COPY, ADD and WORKDIR: a worker copies onto a snapshot, and what that made becomes a layer.

The daemon decides which files of packed trees are meant (for the key it has to know anyway); what a snapshot's paths
mean the worker finds out. Names of owners are looked up in the snapshot that is copied to.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable, Sequence

import msgspec

from cove.build.graph import Copy, MakeDirectory
from cove.build.keys import owner_ids
from cove.build.sources import PackedTree, Snapshot, Tree
from cove.engine.layerfacts import settle_opaque
from cove.image.images import Images
from cove.image.jobs import Adopted, CopyFiles, Digested, DigestItems, Member, PackedItem, TreeItem
from cove.image.types import Limits
from cove.image.worker import Worker
from cove.model.errors import Invalid
from cove.runtime.users import UserFiles, read_layered_user_files, resolve

Sources = Callable[[int], Tree]


class FileCopier:
    """Copies files for one build."""

    def __init__(self, images: Images, clamp_ns: int | None) -> None:
        self._images = images
        self._clamp_ns = clamp_ns

    async def copy(self, operation: Copy, base: Snapshot, sources: Sources) -> Member | None:
        """Do it; the layer that it made, which is relied on, or None when it changed nothing."""
        items, trees, packs = await asyncio.to_thread(self._items, operation, sources)
        free = operation.link and owner_ids(operation.owner) is not None
        return await self._make(
            base,
            operation.owner,
            onto=() if operation.link else base.layers,
            free=free,
            items=items,
            trees=trees,
            packs=packs,
            target=os.fsencode(operation.target),
            keep_owner=operation.keep_owner,
            mode=operation.mode,
            excludes=operation.excludes,
            parents=operation.parents,
        )

    async def make_directory(self, operation: MakeDirectory, base: Snapshot) -> Member | None:
        """WORKDIR."""
        return await self._make(
            base,
            operation.owner,
            onto=base.layers,
            target=os.fsencode(operation.path),
            directory_only=True,
        )

    async def digest(self, operation: Copy, sources: Sources) -> str:
        """The digest of what a copy from snapshots takes."""
        items, trees, _ = await asyncio.to_thread(self._items, operation, sources)
        async with self._images.staging() as staging:
            job = DigestItems(
                staging=str(staging),
                layers_dir=str(self._images.layers_dir),
                trees=trees,
                items=tuple(item for item in items if isinstance(item, TreeItem)),
                owner=operation.keep_owner,
                excludes=operation.excludes,
                parents=operation.parents,
            )
            async with Worker(job) as worker:
                answer = await worker.last()
        assert isinstance(answer, Digested)
        return answer.digest

    def _items(
        self, operation: Copy, sources: Sources
    ) -> tuple[tuple[PackedItem | TreeItem, ...], tuple[tuple[str, ...], ...], tuple[int, ...]]:
        items: list[PackedItem | TreeItem] = []
        trees: list[tuple[str, ...]] = []
        packs: list[int] = []
        places: dict[int, int] = {}  # of a step: its first pack, or its tree
        for item in operation.items:
            tree = sources(item.source)
            if isinstance(tree, PackedTree):
                if item.source not in places:
                    places[item.source] = len(packs)
                    packs += tree.packs
                items += [_moved(packed, places[item.source]) for packed in tree.select(item)]
                continue
            if item.source not in places:
                places[item.source] = len(trees)
                trees.append(tuple(self._images.names_of_layers(tree.layers)))
            items.append(
                TreeItem(
                    tree=places[item.source],
                    path=os.fsencode(item.path),
                    pivot=os.fsencode(item.pivot),
                    unpack=item.unpack,
                )
            )
        return tuple(items), tuple(trees), tuple(packs)

    async def _make(
        self,
        base: Snapshot,
        owner: str,
        *,
        onto: Sequence[str],
        target: bytes,
        free: bool = False,
        items: tuple[PackedItem | TreeItem, ...] = (),
        trees: tuple[tuple[str, ...], ...] = (),
        packs: tuple[int, ...] = (),
        keep_owner: bool = False,
        mode: str = "",
        excludes: tuple[str, ...] = (),
        parents: bool = False,
        directory_only: bool = False,
    ) -> Member | None:
        ids = None
        if owner:
            ids = owner_ids(owner) if free else await self._ids(owner, base)
        names = tuple(self._images.names_of_layers(onto)) if onto else ()
        async with self._images.staging() as staging:
            os.mkdir(staging / "0")
            mode_of_root = 0o755
            if names:
                mode_of_root = os.stat(self._images.layers_dir / names[-1]).st_mode & 0o7777
            os.chmod(staging / "0", mode_of_root)
            job = CopyFiles(
                staging=str(staging),
                layers_dir=str(self._images.layers_dir),
                lower=names,
                trees=trees,
                items=items,
                packs=packs,
                target=target,
                directory_only=directory_only,
                owner=ids,
                keep_owner=keep_owner,
                mode=mode,
                excludes=excludes,
                parents=parents,
                clamp_ns=self._clamp_ns,
                budget_bytes=self._images.budget_bytes(),
                limits=Limits(),
            )
            async with Worker(job, handed=packs) as worker:
                answer = await worker.last()
            assert isinstance(answer, Adopted)
            if answer.member is None:
                return None
            await asyncio.to_thread(settle_opaque, staging / "0", [])
            await self._images.place_layer(staging, answer.member)
            self._images.rely_on((answer.member.diff_id,))
            return answer.member

    async def _ids(self, owner: str, base: Snapshot) -> tuple[int, int]:
        """--chown: names by the snapshot's own files."""
        ids = owner_ids(owner)
        if ids is not None and ":" in owner:
            return ids
        names = reversed(self._images.names_of_layers(base.layers))
        layers = [str(self._images.layers_dir / name) for name in names]
        files = await asyncio.to_thread(read_layered_user_files, layers)
        if files is None:
            raise Invalid(
                f"--chown={owner}: /etc/passwd or /etc/group of the image is a link or was taken away: use numbers"
            )
        user, colon, group = owner.partition(":")
        if ids is not None:  # a number alone is the group, too (docs of COPY --chown)
            return ids
        found = resolve(files or UserFiles(), f"{user}:{group}" if colon else user)
        return found.uid, found.gid


def _moved(item: PackedItem, first_pack: int) -> PackedItem:
    """The item, its packs counted from another number."""
    if not first_pack:
        return item
    entries = tuple(msgspec.structs.replace(entry, pack=entry.pack + first_pack) for entry in item.entries)
    return msgspec.structs.replace(item, entries=entries)
