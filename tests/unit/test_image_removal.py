"""What rmi takes away, and Docker's words when it doesn't."""

from __future__ import annotations

import pytest

from cove.image.removal import Known, plan_removal
from cove.image.types import Use
from cove.model.errors import Conflict

A, B = "sha256:" + "a" * 64, "sha256:" + "b" * 64
SHORT = "a" * 12
STOPPED = Use(container_id="c" * 64, running=False)
RUNNING = Use(container_id="d" * 64, running=True)


def plan(names, *, name="", force=False, prune=True, uses=(), parents=None, others=None):
    known = Known(
        names={A: names, **(others or {})},
        parents=parents or {},
        uses=lambda image_id: uses if image_id == A else (),
    )
    removal = plan_removal(known, A, name, force=force, prune=prune)
    return removal.untag, removal.delete


def test_one_of_two_names_comes_off_and_the_image_stays() -> None:
    assert plan(["x:1", "x:2"], name="x:1", uses=[RUNNING]) == (["x:1"], [])


def test_the_last_name_takes_the_image_along() -> None:
    assert plan(["x:1"], name="x:1") == (["x:1"], [A])
    assert plan(["x:1"]) == (["x:1"], [A])
    assert plan([]) == ([], [A])


def test_force_takes_every_name() -> None:
    assert plan(["x:1", "y:1"], force=True) == (["x:1", "y:1"], [A])


def test_a_forced_name_of_a_used_image_leaves_the_image() -> None:
    assert plan(["x:1"], name="x:1", force=True, uses=[RUNNING]) == (["x:1"], [])


def test_a_forced_id_of_a_stopped_containers_image_goes() -> None:
    assert plan(["x:1"], force=True, uses=[STOPPED]) == (["x:1"], [A])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            {"names": ["x:1"], "name": "x:1", "uses": [STOPPED]},
            'conflict: unable to remove repository reference "x:1" (must force) - '
            f"container {'c' * 12} is using its referenced image {SHORT}",
        ),
        (
            {"names": ["x:1", "y:1"]},
            f"conflict: unable to delete {SHORT} (must be forced) - image is referenced in multiple repositories",
        ),
        (
            {"names": ["x:1"], "force": True, "uses": [RUNNING]},
            f"conflict: unable to delete {SHORT} (cannot be forced) - "
            f"image is being used by running container {'d' * 12}",
        ),
        (
            {"names": [], "uses": [STOPPED]},
            f"conflict: unable to delete {SHORT} (must be forced) - "
            f"image is being used by stopped container {'c' * 12}",
        ),
        (
            {"names": [], "force": True, "parents": {B: A}, "others": {B: []}},
            f"conflict: unable to delete {SHORT} (cannot be forced) - image has dependent child images",
        ),
    ],
)
def test_a_conflict_has_dockers_words(arguments: dict, message: str) -> None:
    with pytest.raises(Conflict) as caught:
        plan(arguments.pop("names"), **arguments)
    assert str(caught.value) == message


def test_pruning_takes_nameless_parents_and_stops_at_a_named_one() -> None:
    parents = {A: B}
    assert plan(["x"], name="x", parents=parents, others={B: []}) == (["x"], [A, B])
    assert plan(["x"], name="x", parents=parents, others={B: ["y:1"]}) == (["x"], [A])
    assert plan(["x"], name="x", prune=False, parents=parents, others={B: []}) == (["x"], [A])


DIGEST = "sha256:" + "e" * 64


@pytest.mark.parametrize(
    ("names", "arguments", "untagged", "deleted"),
    [
        # The last tag of a repository takes its digests along; a digest of another repository keeps the image.
        (["x:1", f"x@{DIGEST}"], {"name": "x:1"}, ["x:1", f"x@{DIGEST}"], [A]),
        (["x:1", "x:2", f"x@{DIGEST}"], {"name": "x:1"}, ["x:1"], []),
        (["x:1", f"x@{DIGEST}", f"y@{DIGEST}"], {"name": "x:1"}, ["x:1", f"x@{DIGEST}"], []),
        (
            ["h:5000/x:1", f"h:5000/x@{DIGEST}"],
            {"name": "h:5000/x:1"},
            ["h:5000/x:1", f"h:5000/x@{DIGEST}"],
            [A],
        ),
        # A digest comes off alone; the last one takes the image along.
        (["x:1", f"x@{DIGEST}"], {"name": f"x@{DIGEST}"}, [f"x@{DIGEST}"], []),
        ([f"x@{DIGEST}"], {"name": f"x@{DIGEST}"}, [f"x@{DIGEST}"], [A]),
        # By id: one tag and digests of its repository are one reference.
        (["x:1", f"x@{DIGEST}"], {}, ["x:1", f"x@{DIGEST}"], [A]),
    ],
)
def test_digests_go_with_the_last_tag_of_their_repository(
    names: list[str], arguments: dict[str, str], untagged: list[str], deleted: list[str]
) -> None:
    assert plan(names, **arguments) == (untagged, deleted)


def test_digests_of_two_repositories_are_two_references() -> None:
    with pytest.raises(Conflict, match="referenced in multiple repositories"):
        plan([f"x@{DIGEST}", f"y@{DIGEST}"])
    assert plan([f"x@{DIGEST}", f"y@{DIGEST}"], force=True)[1] == [A]
    with pytest.raises(Conflict, match=r"unable to remove repository reference \"x:1\" \(must force\)"):
        plan(["x:1", f"x@{DIGEST}"], name="x:1", uses=[STOPPED])
