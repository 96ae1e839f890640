"""What a prune of images would take, and which layers are shared."""

from __future__ import annotations

from cove.image.pruning import count_shared, plan_prune
from cove.image.types import Removed, Use
from cove.model.objects import Image


def image(letter: str, *names: str, parent: str = "", layers: str = "") -> Image:
    return Image(id=f"sha256:{letter * 64}", names=names, parent=parent, diff_ids=tuple(layers))


A, B, C = (f"sha256:{letter * 64}" for letter in "abc")


def test_what_nobody_uses_goes_with_its_unnamed_parents() -> None:
    images = [image("a"), image("b", parent=A), image("c", "kept:1")]
    lines, gone = plan_prune(images, lambda one: not one.names, lambda image_id: ())
    assert gone == {A, B}
    assert lines == [Removed(deleted=B), Removed(deleted=A)]


def test_a_used_image_and_its_parent_stay() -> None:
    images = [image("a"), image("b", parent=A), image("c", "one:1", "two:1")]
    used = {B: (Use(container_id="f" * 64, running=False),)}
    lines, gone = plan_prune(images, lambda one: True, lambda image_id: used.get(image_id, ()))
    assert gone == {C}
    assert lines == [Removed(untagged="one:1"), Removed(untagged="two:1"), Removed(deleted=C)]


def test_shared_layers_count_for_each_image_that_has_them() -> None:
    images = [image("a", layers="xy"), image("b", layers="xz"), image("c", layers="w")]
    assert count_shared(images, {"x": 5, "y": 7, "z": 11, "w": 13}) == {A: 5, B: 5, C: 0}
