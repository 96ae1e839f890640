"""The jobs of builds, inside a worker: layers made by copies, layers adopted, contexts indexed.

Imported by a worker that has such a job, before its walls close; other workers don't pay for it.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Sequence

import msgspec

from cove.image import overlayfs, sandbox
from cove.image.adopt import adopt_layer
from cove.image.decode import Read
from cove.image.jobs import (
    Adopt,
    Adopted,
    CopyFiles,
    Digested,
    DigestItems,
    Done,
    IndexContext,
    Member,
)
from cove.image.sandbox import MS_BIND, MS_RDONLY, MS_REMOUNT
from cove.image.selection import Excludes, find_items, kept_name
from cove.image.tarindex import index_archive
from cove.image.treecopy import Copier, SnapshotTree
from cove.image.treeindex import FileEntry, entry_digest
from cove.model.errors import HostError

_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY
_PIECE = 1 << 20


def adopt(job: Adopt, close_walls: Callable[[], None]) -> Adopted:
    sandbox.unshare_all()
    sandbox.pivot_into(job.staging)
    root = os.open("/", _DIRECTORY)
    close_walls()
    return Adopted(
        member=adopt_layer(
            root, 0, opaque=frozenset(job.opaque), left_out=job.left_out, clamp_ns=job.clamp_ns
        )
    )


def copy_files(job: CopyFiles, close_walls: Callable[[], None]) -> Adopted:
    sandbox.unshare_all()
    staging = os.open(job.staging, _DIRECTORY)
    trees = _mount_trees(job.staging, job.layers_dir, job.trees)
    upper, place = f"{job.staging}/0", f"{job.staging}/root"
    os.mkdir(place)
    if job.lower:
        os.mkdir(f"{job.staging}/work")
        lower = ":".join(reversed(job.lower))
        options = f"lowerdir={lower},upperdir={upper},workdir={job.staging}/work{overlayfs.mount_options()}"
        sandbox.mount("overlay", place, "overlay", 0, options)
    else:
        sandbox.mount(upper, place, "", MS_BIND)
    sandbox.pivot_into(place, bind=False)
    root = os.open("/", _DIRECTORY)
    close_walls()
    Copier(job, root, trees).run()
    if not os.listdir(os.open("0", _DIRECTORY, dir_fd=staging)):
        return Adopted(member=None)
    member: Member = adopt_layer(staging, 0, opaque=(), left_out=(), clamp_ns=job.clamp_ns)
    return Adopted(member=member)


def digest_items(job: DigestItems, close_walls: Callable[[], None]) -> Digested:
    """The digest of what items stand for, contents included; times don't count."""
    sandbox.unshare_all()
    trees = [SnapshotTree(fd) for fd in _mount_trees(job.staging, job.layers_dir, job.trees)]
    place = f"{job.staging}/root"
    os.mkdir(place)
    sandbox.pivot_into(place)
    close_walls()
    digest = hashlib.sha256()
    excludes = Excludes(job.excludes, rooted=job.parents)
    for item in job.items:
        for found in find_items(trees[item.tree], item.path):
            shown = kept_name(item.pivot, found.name)
            for entry, directory, base in trees[item.tree].entries(found):
                if excludes.leaves_out(shown, entry.path):
                    continue
                if entry.kind == "file":
                    entry = msgspec.structs.replace(entry, digest=_content_digest(directory, base))
                digest.update(entry_digest(entry, shown + b"/" + entry.path, owner=job.owner))
    return Digested(digest=digest.hexdigest())


def index_context(job: IndexContext, receive: Read, close_walls: Callable[[], None]) -> Done:
    sandbox.unshare_all()
    sandbox.pivot_into(job.staging)
    close_walls()
    with open("/pack", "xb") as pack:

        def write(data: bytes | memoryview) -> None:
            try:
                pack.write(data)
            except OSError as error:
                raise HostError(
                    f"the build context can't be written: {error.strerror}: free some space on the disk"
                ) from error

        entries = index_archive(receive, write, job.limits, budget_bytes=job.budget_bytes)
    with open("/index", "xb") as index:
        index.write(encode_index(entries))
    return Done()


def encode_index(entries: Sequence[FileEntry]) -> bytes:
    """An index as a file."""
    return msgspec.msgpack.encode(entries)


def _mount_trees(staging: str, layers_dir: str, trees: Sequence[Sequence[str]]) -> list[int]:
    """Mount snapshots read-only; a descriptor of each. The layers' directory is the working one from here on."""
    os.chdir(layers_dir)
    opened = []
    for number, layers in enumerate(trees):
        place = f"{staging}/tree{number}"
        os.mkdir(place)
        if len(layers) > 1:
            lower = ":".join(reversed(layers))
            options = f"lowerdir={lower}{overlayfs.mount_options()}"
            sandbox.mount("overlay", place, "overlay", MS_RDONLY, options)
        else:
            sandbox.mount(layers[0], place, "", MS_BIND)
            sandbox.mount("", place, "", MS_REMOUNT | MS_BIND | MS_RDONLY)
        opened.append(os.open(place, os.O_RDONLY | os.O_DIRECTORY))
    return opened


def _content_digest(directory: int, base: bytes) -> bytes:
    fd = os.open(base, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK, dir_fd=directory)
    digest = hashlib.sha256()
    try:
        while piece := os.read(fd, _PIECE):
            digest.update(piece)
    finally:
        os.close(fd)
    return digest.digest()


__all__ = ["adopt", "copy_files", "digest_items", "encode_index", "index_context"]
