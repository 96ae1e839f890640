"""What a push sends: the forms of layers, the manifest, and what is remembered."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cove.image.manifests import DOCKER_MANIFEST_TYPE, MANIFEST_TYPE, LayerBlob, build_manifest
from cove.image.records import LayerRecord, PushedRecord
from cove.image.references import parse_reference
from cove.image.registry.documents import ImageManifest, parse_manifest
from cove.image.registry.pushplan import (
    FORMS_MAX,
    REPOSITORIES_MAX,
    Wanted,
    choose_manifest,
    mountable,
    named_layers,
    parse_wanted,
    plan_layer,
    remember,
    share_out,
)
from cove.image.types import Limits
from cove.model.errors import Invalid

TARGET = parse_reference("r.example:5000/team/app:1")
PLAIN = LayerRecord(name="a", diff_id="sha256:d", blob="sha256:d", blob_bytes=100, size_bytes=90)
GZIP = LayerRecord(
    name="a", diff_id="sha256:d", blob="sha256:g", blob_bytes=50, size_bytes=90, compression="gzip"
)
XZ = LayerRecord(
    name="a", diff_id="sha256:d", blob="sha256:x", blob_bytes=40, size_bytes=90, compression="xz"
)


def digest(letter: str) -> str:
    return "sha256:" + letter * 64


def blob(letter: str, compression: str = "gzip") -> LayerBlob:
    return LayerBlob(digest=digest(letter), size=7, compression=compression)


def forms(layer: LayerRecord, **more: object) -> list[tuple[str, bool]]:
    arguments: dict[str, object] = {
        "named": None,
        "pushed": None,
        "wanted": Wanted(),
        "target": TARGET,
        **more,
    }
    return [(form.blob.digest, form.kept) for form in plan_layer(layer, **arguments).forms]  # type: ignore[arg-type]


def test_a_layer_that_came_compressed_goes_as_it_came() -> None:
    assert forms(GZIP) == [("sha256:g", True)]
    assert forms(PLAIN) == [] and forms(XZ) == []  # these are compressed
    assert forms(PLAIN, named=blob("a")) == [(digest("a"), False)]  # it may be there as it was pulled
    assert forms(PLAIN, named=blob("a", "")) == []


def test_what_was_pushed_before_is_looked_for_first() -> None:
    record = remember(None, "sha256:d", blob("a"), 2, "r.example:5000/team/base")
    plan = plan_layer(PLAIN, None, record, Wanted(), TARGET)
    assert [(form.blob.digest, form.repositories) for form in plan.forms] == [(digest("a"), ("team/base",))]
    assert forms(PLAIN, pushed=record, wanted=parse_wanted("gzip", 6, "")) == []  # made with another level
    assert forms(PLAIN, pushed=record, wanted=parse_wanted("zstd", None, "")) == []


def test_a_chosen_compression_counts_for_every_layer() -> None:
    assert forms(GZIP, wanted=parse_wanted("zstd", None, "")) == []
    assert forms(GZIP, wanted=parse_wanted("gzip", None, "")) == [("sha256:g", True)]
    zstd = LayerRecord(
        name="a", diff_id="sha256:d", blob="sha256:z", blob_bytes=50, size_bytes=90, compression="zstd"
    )
    assert forms(zstd) == [("sha256:z", True)]
    assert forms(zstd, wanted=parse_wanted("", None, "docker")) == []


@pytest.mark.parametrize(
    ("compression", "level", "format", "sentence"),
    [
        ("lz4", None, "", "compression: 'lz4' isn't one that registries know: use gzip or zstd"),
        ("gzip", 0, "", "compression-level: 0 is out of range: gzip has 1 to 9"),
        ("zstd", 20, "", "compression-level: 20 is out of range: zstd has 1 to 19"),
        ("zstd", None, "docker", "Docker's schema 2 knows no zstd"),
        ("", None, "v1", "format: 'v1' is no kind of manifest: use oci or docker"),
    ],
)
def test_what_can_t_be_made_is_refused(
    compression: str, level: int | None, format: str, sentence: str
) -> None:
    with pytest.raises(Invalid, match=sentence):
        parse_wanted(compression, level, format)


def test_only_repositories_of_the_same_registry_are_mounted_from() -> None:
    names = [
        "r.example:5000/a",
        "other.example/b",
        "r.example:5000/team/app",
        "r.example:5000/a",
        "docker.io/c",
    ]
    assert mountable(names, TARGET) == ("a",)


def test_a_manifest_goes_as_it_came_if_its_layers_do() -> None:
    came = build_manifest(digest("c"), 3, [blob("a"), blob("b", "zstd")])
    kind, named = named_layers(came)
    assert kind == MANIFEST_TYPE and named == (blob("a"), blob("b", "zstd"))
    digests = [layer.digest for layer in named]
    config = (digest("c"), 3)
    assert choose_manifest(came, digests, kind, config, named, Wanted()) == (came, kind)
    assert choose_manifest(came, digests, kind, config, named, Wanted(format="oci")) == (came, kind)
    other, kind = choose_manifest(came, digests, kind, config, [blob("e"), named[1]], Wanted())
    assert other != came and kind == MANIFEST_TYPE


@pytest.mark.parametrize(("format", "kind"), [("", MANIFEST_TYPE), ("docker", DOCKER_MANIFEST_TYPE)])
def test_a_manifest_that_is_made_is_one_that_registries_read(format: str, kind: str) -> None:
    data, found = choose_manifest(None, (), "", (digest("c"), 3), [blob("a")], Wanted(format=format))
    assert found == kind == json.loads(data)["mediaType"]
    parsed = parse_manifest(data, kind, Limits())
    assert isinstance(parsed, ImageManifest) and parsed.layers[0].digest == digest("a")
    assert named_layers(data) == (kind, (blob("a"),))


def test_what_is_remembered_is_bounded_and_the_newest_comes_first() -> None:
    record: PushedRecord | None = None
    for number in range(FORMS_MAX + 3):
        record = remember(record, "sha256:d", blob(f"{number:x}"), number, f"r/{number}")
    assert record is not None and len(record.blobs) == FORMS_MAX
    for number in range(REPOSITORIES_MAX + 3):
        record = remember(record, "sha256:d", blob("6"), 6, f"r/n{number}")
    assert record.blobs[0].digest == digest("6") and len(record.blobs) == FORMS_MAX
    assert record.blobs[0].repositories[0] == f"r/n{REPOSITORIES_MAX + 2}"
    assert len(record.blobs[0].repositories) == REPOSITORIES_MAX


@given(st.dictionaries(st.integers(0, 200), st.integers(0, 1 << 40), max_size=30), st.integers(1, 8))
def test_every_layer_is_compressed_by_one_worker(sizes: dict[int, int], workers: int) -> None:
    shares = share_out(sizes, workers)
    assert sorted(number for share in shares for number in share) == sorted(sizes)
    assert len(shares) <= workers
