"""What a prune of images would take: the same decisions as the removals, on a copy of what there is. Pure."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence

from cove.image.removal import Known, is_single, plan_removal
from cove.image.types import Removed, Use
from cove.model.errors import Conflict
from cove.model.objects import Image


def plan_prune(
    images: Iterable[Image], select: Callable[[Image], bool], uses: Callable[[str], Sequence[Use]]
) -> tuple[list[Removed], set[str]]:
    """Names and images that would go, in their order, and the ids of the images."""
    there = {image.id: image for image in images}
    names: dict[str, list[str]] = {image.id: [*image.names, *image.repo_digests] for image in there.values()}
    parents = {image.id: image.parent for image in there.values() if image.parent}
    lines: list[Removed] = []
    gone: set[str] = set()
    for image in there.values():
        if image.id in gone or not select(image) or uses(image.id):
            continue
        known = Known(names=names, parents=parents, uses=uses)
        try:
            force = bool(names[image.id]) and not is_single(names[image.id])
            removal = plan_removal(known, image.id, "", force=force, prune=True)
        except Conflict:
            continue
        lines += [
            Removed(untagged=v) if kind == "untagged" else Removed(deleted=v) for kind, v in removal.log
        ]
        for image_id in removal.delete:
            gone.add(image_id)
            names.pop(image_id, None)
            parents.pop(image_id, None)
    return lines, gone


def count_shared(images: Iterable[Image], sizes: Mapping[str, int]) -> dict[str, int]:
    """Bytes of each image's layers that another image has, too; `sizes` are the layers' by diff id."""
    users: dict[str, int] = {}
    found = list(images)
    for image in found:
        for diff_id in set(image.diff_ids):
            users[diff_id] = users.get(diff_id, 0) + 1
    return {
        image.id: sum(sizes.get(diff_id, 0) for diff_id in set(image.diff_ids) if users[diff_id] > 1)
        for image in found
    }
