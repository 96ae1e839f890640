"""The pure parts of the image tools: what a check finds, squashed configurations, what differs between two."""

from __future__ import annotations

import json
from typing import Any

import pytest

from cove.image.checking import documents_of, find_problems, without
from cove.image.checktypes import Listing, Records
from cove.image.hostmounts import mounted_images
from cove.image.records import ImageRecord, LayerRecord
from cove.image.rewriting import config_changes, squashed_config

LAYER = LayerRecord(
    name="aaaa", diff_id="sha256:d1", blob="sha256:b1", blob_bytes=10, size_bytes=5, compression="gzip"
)
PLAIN = LayerRecord(name="bbbb", diff_id="sha256:d2", blob="sha256:d2", blob_bytes=20, size_bytes=5)
IMAGE = ImageRecord(id="sha256:c1", manifest="sha256:m1")
DOCUMENTS = {
    "sha256:c1": json.dumps({"rootfs": {"diff_ids": ["sha256:d1", "sha256:d2"]}}).encode(),
    "sha256:m1": json.dumps(
        {"config": {"digest": "sha256:c1"}, "layers": [{"digest": "sha256:b1"}, {"digest": "sha256:d2"}]}
    ).encode(),
}
RECORDS = Records(images=(IMAGE,), layers=(LAYER, PLAIN), names={"app:1": "sha256:c1"})
LISTING = Listing(
    blobs={"c1": 1, "m1": 1, "b1": 10},
    layers=frozenset({"0", "aaaa", "bbbb"}),
    frames=frozenset({"bbbb"}),
    staging=frozenset(),
    trash=frozenset(),
)


def changed(kind: Any, **more: Any) -> Any:
    import msgspec

    return msgspec.structs.replace(kind, **more)


def test_a_store_in_order_has_no_problems() -> None:
    assert list(find_problems(RECORDS, LISTING, DOCUMENTS)) == []
    assert documents_of(RECORDS) == ["sha256:c1", "sha256:m1"]


@pytest.mark.parametrize(
    ("records", "listing", "expected"),
    [
        ({}, {"blobs": {"c1": 1, "m1": 1}}, {("missing", "blob")}),
        ({}, {"blobs": {"c1": 1, "m1": 1, "b1": 9}}, {("damaged", "blob")}),
        ({}, {"frames": frozenset()}, {("missing", "frame")}),
        ({}, {"layers": frozenset({"aaaa", "bbbb"})}, {("missing", "layer")}),
        ({}, {"built": frozenset({"cccc"})}, {("left", "erofs")}),
        ({}, {"scans": frozenset({"cccc.1", "aaaa.1"})}, {("left", "scan")}),
        ({}, {"frames": frozenset({"bbbb", "cccc.moved"})}, {("left", "frame")}),
        ({"names": {"x": "sha256:other"}}, {}, {("dangling", "name")}),
        ({"images": (changed(IMAGE, parent="sha256:gone"),)}, {}, {("dangling", "image")}),
        ({"layers": (PLAIN,)}, {}, {("dangling", "image"), ("left", "layer"), ("left", "blob")}),
        (
            {"layers": (changed(LAYER, blob="sha256:b2"), PLAIN)},
            {},
            {("damaged", "manifest"), ("missing", "blob"), ("left", "blob")},
        ),
        (
            {},
            {"staging": frozenset({"t"}), "trash": frozenset({"u"})},
            {("left", "staging"), ("left", "trash")},
        ),
    ],
)
def test_each_disagreement_is_found(
    records: dict[str, Any], listing: dict[str, Any], expected: set[tuple[str, str]]
) -> None:
    found = find_problems(changed(RECORDS, **records), changed(LISTING, **listing), DOCUMENTS)
    assert {(one.kind, one.what) for one in found} == expected


def test_what_is_under_way_or_waits_for_its_collection_is_no_problem() -> None:
    busy = changed(LISTING, staging=frozenset({"t"}), trash=frozenset({"u"}))
    assert list(find_problems(RECORDS, busy, DOCUMENTS, running=True)) == []
    loose = changed(
        LISTING,
        blobs={**LISTING.blobs, "b9": 1},
        layers=LISTING.layers | {"cccc"},
        frames=LISTING.frames | {"cccc", "cccc.moved"},
        built=frozenset({"cccc"}),
    )
    assert list(find_problems(RECORDS, without(loose, {"cccc"}, {"b9"}), DOCUMENTS)) == []


@pytest.mark.parametrize(
    "document", [b"[]", b'{"rootfs": 3}', b'{"rootfs": {"diff_ids": [1]}}', b"\xff", b"{"]
)
def test_a_configuration_that_is_none_is_damage(document: bytes) -> None:
    found = list(find_problems(RECORDS, LISTING, {**DOCUMENTS, "sha256:c1": document}))
    assert [(one.kind, one.what) for one in found] == [("damaged", "image")]


def test_a_squashed_configuration_keeps_its_history_and_its_lower_layers() -> None:
    base = {
        "created": "2024-01-02T03:04:05Z",
        "config": {"Cmd": ["sh"]},
        "history": [
            {"created_by": "one"},
            {"created_by": "env", "empty_layer": True},
            {"created_by": "two"},
            {"created_by": "three"},
        ],
        "rootfs": {"type": "layers", "diff_ids": ["a", "b", "c"]},
    }
    made = squashed_config(json.dumps(base).encode(), 1, ["new"], "merge")
    assert made["rootfs"]["diff_ids"] == ["a", "new"]
    assert [bool(line.get("empty_layer")) for line in made["history"]] == [False, True, True, True, False]
    assert made["history"][-1] == {"created": "2024-01-02T03:04:05Z", "comment": "merge"}
    assert made["config"] == base["config"] and made["created"] == base["created"]
    nothing = squashed_config(json.dumps(base).encode(), 2, [], "merge")
    assert nothing["rootfs"]["diff_ids"] == ["a", "b"] and nothing["history"][-1]["empty_layer"] is True


def test_settings_that_differ_are_told_by_their_names() -> None:
    one = {"os": "linux", "config": {"Env": ["A=1", "B=2"], "ExposedPorts": {"80/tcp": {}}, "Labels": None}}
    two = {"os": "linux", "config": {"Env": ["B=2", "A=3"], "Labels": {"x": "y"}, "User": ""}, "history": [1]}
    assert config_changes(json.dumps(one).encode(), json.dumps(two).encode()) == [
        {"Key": "Env.A", "Before": "1", "After": "3"},
        {"Key": "ExposedPorts.80/tcp", "Before": True, "After": None},
        {"Key": "Labels.x", "Before": None, "After": "y"},
    ]
    assert config_changes(json.dumps(one).encode(), json.dumps(one).encode()) == []


def test_mounted_images_are_read_from_mountinfo() -> None:
    text = (
        "36 25 0:33 / /mnt\\040a ro,nosuid,nodev - overlay cove-image:abc ro,lowerdir=1:2\n"
        "37 25 0:34 / /x rw shared:1 - overlay overlay rw\n"
        "38 25 0:35 / /y rw - ext4 cove-image:nope rw\n"
        "broken\n"
    )
    assert mounted_images(text) == {"sha256:abc": "/mnt a"}
