"""Decide what `rmi` takes away: names, images, or nothing because of a conflict.

Pure; the rules and the wording are Docker's (moby daemon/images/image_delete.go). A *hard* conflict (a
running container, a child image) stands against `force` too, a *soft* one gives way to it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from cove.image.types import Use
from cove.model.errors import Conflict


@dataclass(frozen=True, slots=True, kw_only=True)
class Known:
    """What there is: names of each image (`name:tag`, and `name@digest` for what came from a registry), its parent
    ("" for none), and the containers made from it."""

    names: Mapping[str, Sequence[str]]
    parents: Mapping[str, str]
    uses: Callable[[str], Sequence[Use]]


@dataclass(slots=True, kw_only=True)
class Removal:
    """What goes, in this order."""

    untag: list[str] = field(default_factory=list)
    delete: list[str] = field(default_factory=list)
    log: list[tuple[str, str]] = field(default_factory=list)  # ("untagged", name) or ("deleted", id)


class _Refused(Exception):
    def __init__(self, sentence: str, *, used: bool) -> None:
        super().__init__(sentence)
        self.used = used


def plan_removal(known: Known, image_id: str, name: str, *, force: bool, prune: bool) -> Removal:
    """What removing an image means. `name` is the familiar reference given, "" when it was an id. Conflict."""
    removal = Removal()
    names = list(known.names.get(image_id, ()))
    try:
        if name:
            if not force and is_single(names) and (uses := known.uses(image_id)):
                raise Conflict(
                    f'conflict: unable to remove repository reference "{name}" (must force) - '
                    f"container {uses[0].container_id[:12]} is using its referenced image {_short(image_id)}"
                )
            _untag(removal, [name])
            names.remove(name)
            if "@" not in name and not any(
                repository_of(n) == repository_of(name) for n in names if "@" not in n
            ):
                # The last tag of a repository takes its digests there along.
                gone = [n for n in names if repository_of(n) == repository_of(name)]
                _untag(removal, gone)
                names = [n for n in names if n not in gone]
            if names:
                return removal
        elif is_single(names):
            _check(known, image_id, names, active=False, soft=not force)
            _untag(removal, names)
            names = []
        _delete(known, removal, image_id, names, force=force, prune=prune, quiet=bool(name))
    except _Refused as refused:
        raise Conflict(str(refused)) from refused
    return removal


def _delete(
    known: Known, removal: Removal, image_id: str, names: list[str], *, force: bool, prune: bool, quiet: bool
) -> None:
    try:
        _check(known, image_id, names, active=True, soft=not force, gone=removal.delete)
    except _Refused as refused:
        # The name is off, which is what was asked for; that a container keeps the image isn't worth an error.
        if quiet and (names or refused.used):
            return
        raise
    _untag(removal, names)
    removal.delete.append(image_id)
    removal.log.append(("deleted", image_id))
    parent = known.parents.get(image_id, "")
    if prune and parent and parent in known.names:
        parent_names = list(known.names[parent])
        try:
            _delete(known, removal, parent, parent_names, force=False, prune=True, quiet=True)
        except _Refused:
            return  # others still need it


def _check(
    known: Known, image_id: str, names: Sequence[str], *, active: bool, soft: bool, gone: Sequence[str] = ()
) -> None:
    uses = known.uses(image_id)
    if any(parent == image_id and child not in gone for child, parent in known.parents.items()):
        raise _refuse(image_id, "cannot be forced", "image has dependent child images")
    for use in uses:
        if use.running:
            reason = f"image is being used by running container {use.container_id[:12]}"
            raise _refuse(image_id, "cannot be forced", reason, used=True)
    if soft and active and names:
        raise _refuse(image_id, "must be forced", "image is referenced in multiple repositories")
    if soft and uses:
        reason = f"image is being used by stopped container {uses[0].container_id[:12]}"
        raise _refuse(image_id, "must be forced", reason, used=True)


def _refuse(image_id: str, force: str, reason: str, *, used: bool = False) -> _Refused:
    return _Refused(f"conflict: unable to delete {_short(image_id)} ({force}) - {reason}", used=used)


def _untag(removal: Removal, names: Sequence[str]) -> None:
    for name in names:
        removal.untag.append(name)
        removal.log.append(("untagged", name))


def repository_of(name: str) -> str:
    """The repository in `name:tag` or `name@digest`."""
    head = name.partition("@")[0]
    return head if head != name or ":" not in head.rpartition("/")[2] else head.rpartition(":")[0]


def is_single(names: Sequence[str]) -> bool:
    """Whether these are one tag at most and digests of its repository, or digests of one repository."""
    tags = [name for name in names if "@" not in name]
    return bool(names) and len(tags) <= 1 and len({repository_of(name) for name in names}) == 1


def _short(image_id: str) -> str:
    return image_id.removeprefix("sha256:")[:12]
