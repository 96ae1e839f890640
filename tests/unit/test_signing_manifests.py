"""Signatures in a registry: written as cosign has them, read from strangers."""

from __future__ import annotations

import asyncio
import hashlib
import json
from collections.abc import Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cove.image.registry.signatures import fetch_signatures, push_referrer, push_tagged, tagged_signatures
from cove.model.errors import Conflict, Invalid, NotFound, Unavailable
from cove.signing.keys import generate_key
from cove.signing.make import sign_image
from cove.signing.manifests import (
    MANIFEST_TYPE,
    SIGNATURE_ARTIFACT,
    Artifact,
    Subject,
    build_referrer,
    build_tagged,
    manifest_type,
    parse_manifest,
    parse_referrers,
    signature_tag,
)
from cove.signing.types import BUNDLE_TYPE, SIGNATURE_KEY, SIMPLE_TYPE, Signature

IMAGE = "sha256:" + "a" * 64
OTHER = "sha256:" + "b" * 64
SUBJECT = Subject(digest=IMAGE, size=7, media_type=MANIFEST_TYPE)
KEY = generate_key("ed25519")


def made(note: str = "") -> Signature:
    return sign_image(KEY, "r.example/app", IMAGE, {"n": note} if note else {})


def digest_of(data: bytes) -> str:
    return f"sha256:{hashlib.sha256(data).hexdigest()}"


class Shelf:
    """What a registry has, by path; a value may be an error."""

    def __init__(self) -> None:
        self.documents: dict[str, bytes | Exception] = {}
        self.asked: list[str] = []
        self.meddle: Callable[[str], object] | None = None

    def add(self, artifact: Artifact, reference: str = "") -> None:
        for digest, content in artifact.blobs:
            self.documents[f"blobs/{digest}"] = content
        self.documents[f"manifests/{reference or artifact.digest}"] = artifact.manifest

    def refer(self, *artifacts: Artifact, path: str = f"referrers/{IMAGE}") -> None:
        for artifact in artifacts:
            self.add(artifact)
        listed = [
            {"digest": one.digest, "size": len(one.manifest), "artifactType": one.artifact_type}
            for one in artifacts
        ]
        self.documents[path] = json.dumps({"schemaVersion": 2, "manifests": listed}).encode()

    async def get(self, path: str, *, accept: str = "", limit: int = 4 << 20) -> bytes:
        self.asked.append(path)
        found = self.documents.get(path, NotFound(f"{path}: not found"))
        if isinstance(found, Exception):
            raise found
        if len(found) > limit:
            raise Invalid(f"{path} has more than {limit} bytes")
        return found

    async def put_manifest(self, reference: str, data: bytes) -> None:
        digest = digest_of(data)
        document = json.loads(data)
        for one in (document.get("config"), *document.get("layers", ())):
            assert one is None or f"blobs/{one['digest']}" in self.documents, (
                "a manifest names what isn't there"
            )
        self.documents[f"manifests/{reference}"] = self.documents[f"manifests/{digest}"] = data
        if subject := document.get("subject"):
            path = f"referrers/{subject['digest']}"
            listed = json.loads(self.documents.get(path, b'{"manifests": []}'))["manifests"]  # type: ignore[arg-type]
            listed.append({"digest": digest, "size": len(data), "artifactType": document["artifactType"]})
            self.documents[path] = json.dumps({"manifests": listed}).encode()

    async def put(self, artifact: Artifact, *, tag: str = "") -> str:
        for blob in artifact.blobs:
            self.documents[f"blobs/{digest_of(blob)}"] = blob
        digest = digest_of(artifact.manifest)
        await self.put_manifest(tag or digest, artifact.manifest)
        if self.meddle is not None:
            self.meddle(tag)
        return digest

    def fetch(self) -> list[tuple[str, Signature]]:
        return asyncio.run(fetch_signatures(self, [IMAGE, OTHER]))


def test_the_tag_is_cosigns() -> None:
    assert signature_tag(IMAGE) == "sha256-" + "a" * 64 + ".sig"


def test_the_manifest_is_cosigns() -> None:
    artifact = build_tagged([made("1"), made("2")])
    manifest = json.loads(artifact.manifest)
    assert manifest["mediaType"] == MANIFEST_TYPE
    assert manifest["config"]["mediaType"] == "application/vnd.oci.image.config.v1+json"
    assert [layer["mediaType"] for layer in manifest["layers"]] == [SIMPLE_TYPE] * 2
    assert all(SIGNATURE_KEY in layer["annotations"] for layer in manifest["layers"])
    blobs = dict(artifact.blobs)
    config = json.loads(blobs[manifest["config"]["digest"]])
    assert config["rootfs"]["diff_ids"] == [layer["digest"] for layer in manifest["layers"]]
    assert all(digest_of(content) == digest for digest, content in artifact.blobs)
    assert build_tagged([made("1"), made("2")]) == artifact


def test_a_referrer_names_its_subject() -> None:
    artifact = build_referrer(made(), SUBJECT)
    manifest = json.loads(artifact.manifest)
    assert manifest["subject"] == {"mediaType": MANIFEST_TYPE, "digest": IMAGE, "size": 7}
    assert manifest["artifactType"] == manifest["config"]["mediaType"] == SIGNATURE_ARTIFACT
    bundle = build_referrer(Signature(media_type=BUNDLE_TYPE, content=b"{}"), SUBJECT)
    assert json.loads(bundle.manifest)["artifactType"] == BUNDLE_TYPE
    assert json.loads(bundle.manifest)["config"]["mediaType"] == "application/vnd.oci.empty.v1+json"


def test_both_ways_are_read_and_each_signature_once() -> None:
    shelf = Shelf()
    assert shelf.fetch() == []
    shelf.add(build_tagged([made("1"), made("2")]), signature_tag(IMAGE))
    shelf.refer(build_referrer(made("2"), SUBJECT), build_referrer(made("3"), SUBJECT))
    found = shelf.fetch()
    assert [json.loads(one.content)["optional"]["n"] for _, one in found] == ["1", "2", "3"]
    assert {digest for digest, _ in found} == {IMAGE}
    assert asyncio.run(tagged_signatures(shelf, IMAGE)) == [made("1"), made("2")]
    assert asyncio.run(tagged_signatures(shelf, OTHER)) == []


def test_referrers_by_their_tag_where_there_is_no_api() -> None:
    shelf = Shelf()
    shelf.refer(build_referrer(made("1"), SUBJECT), path="manifests/sha256-" + "a" * 64)
    assert len(shelf.fetch()) == 1


def test_other_referrers_are_passed_over() -> None:
    listed = [
        {"digest": OTHER, "size": 5, "artifactType": "application/spdx+json"},
        {"digest": OTHER, "size": 5},
    ]
    assert parse_referrers(json.dumps({"manifests": listed}).encode()) == ()
    shelf = Shelf()
    shelf.documents[f"referrers/{IMAGE}"] = json.dumps({"manifests": listed}).encode()
    assert shelf.fetch() == [] and f"manifests/{OTHER}" not in shelf.asked


def _swap(shelf: Shelf, path: str, value: bytes | Exception) -> None:
    shelf.documents[path] = value


GOOD = build_referrer(made("1"), SUBJECT)
[LAYER] = parse_manifest(GOOD.manifest, subject=IMAGE)


@pytest.mark.parametrize(
    ("spoil", "sentence"),
    [
        (lambda s: _swap(s, f"manifests/{GOOD.digest}", GOOD.manifest[:-1] + b" }"), "more than|another content"),
        (lambda s: _swap(s, f"manifests/{GOOD.digest}", b"{}"), "another content than its digest"),
        (lambda s: _swap(s, f"blobs/{LAYER.digest}", b"x" * LAYER.size), "isn't the blob"),
        (lambda s: _swap(s, f"blobs/{LAYER.digest}", b"x" * 10_000), "more than"),
        (lambda s: s.documents.pop(f"blobs/{LAYER.digest}"), "not found"),
        (lambda s: _swap(s, f"referrers/{IMAGE}", b"["), "list of referrers is malformed"),
        (
            lambda s: _swap(s, f"referrers/{IMAGE}", json.dumps(
                {"manifests": [{"digest": "../../x", "size": 1, "artifactType": SIGNATURE_ARTIFACT}]}).encode()),
            "names '../../x'",
        ),
        (
            lambda s: s.refer(build_referrer(made("1"), Subject(digest=OTHER, size=7, media_type=MANIFEST_TYPE))),
            f"isn't about {IMAGE}",
        ),
    ],
)  # fmt: skip
def test_what_a_bad_registry_says_is_told_and_does_not_hide_the_good(
    spoil: Callable[[Shelf], object], sentence: str
) -> None:
    shelf = Shelf()
    shelf.refer(GOOD)
    assert len(shelf.fetch()) == 1
    spoil(shelf)
    with pytest.raises(Invalid, match=sentence):
        shelf.fetch()
    shelf.add(build_tagged([made("2")]), signature_tag(IMAGE))
    assert len(shelf.fetch()) == 1


def test_a_registry_that_fails_is_no_image_without_signatures() -> None:
    shelf = Shelf()
    shelf.documents[f"manifests/{signature_tag(IMAGE)}"] = Unavailable("the registry answers 500")
    with pytest.raises(Unavailable, match="the registry answers 500"):
        shelf.fetch()


def test_a_signature_joins_those_under_the_tag() -> None:
    shelf = Shelf()
    asyncio.run(push_tagged(shelf, IMAGE, [made("1")]))
    asyncio.run(push_tagged(shelf, IMAGE, [made("2")]))
    asyncio.run(push_tagged(shelf, IMAGE, [made("1")]))
    assert asyncio.run(tagged_signatures(shelf, IMAGE)) == [made("1"), made("2")]
    shelf.documents[f"blobs/{digest_of(made('1').content)}"] = b"another"
    with pytest.raises(Invalid, match="isn't the blob"):  # nothing is thrown away that can't be read
        asyncio.run(push_tagged(shelf, IMAGE, [made("3")]))


def test_another_signer_at_the_same_moment_loses_nothing() -> None:
    shelf = Shelf()
    left = [made("other")]

    def overwrite(tag: str) -> None:
        if left:
            shelf.add(build_tagged([left.pop()]), tag)

    shelf.meddle = overwrite
    asyncio.run(push_tagged(shelf, IMAGE, [made("mine")]))
    assert asyncio.run(tagged_signatures(shelf, IMAGE)) == [made("other"), made("mine")]
    shelf.meddle = lambda tag: shelf.add(build_tagged([made("again")]), tag)
    with pytest.raises(Conflict, match="others write the signatures of"):
        asyncio.run(push_tagged(shelf, IMAGE, [made("x")]))


def test_a_signature_becomes_a_referrer() -> None:
    shelf = Shelf()
    image = b'{"an": "image"}'
    digest = digest_of(image)
    shelf.documents[f"manifests/{digest}"] = image
    for note in ("1", "2"):
        asyncio.run(push_referrer(shelf, digest, made(note)))
    found = asyncio.run(fetch_signatures(shelf, [digest]))
    assert [json.loads(one.content)["optional"]["n"] for _, one in found] == ["1", "2"]
    one = next(d for p, d in shelf.documents.items() if p.startswith("manifests/") and b'"subject"' in d)  # type: ignore[operator]
    assert json.loads(one)["subject"] == {"mediaType": MANIFEST_TYPE, "digest": digest, "size": len(image)}  # type: ignore[arg-type]
    shelf.documents[f"manifests/{digest}"] = b"{}"
    with pytest.raises(Invalid, match="has another manifest under"):
        asyncio.run(push_referrer(shelf, digest, made("3")))


def test_the_type_of_a_manifest() -> None:
    assert manifest_type(b'{"mediaType": "a/b"}') == "a/b"
    assert manifest_type(b'{"layers": []}') == MANIFEST_TYPE
    assert manifest_type(b'{"manifests": []}') == "application/vnd.oci.image.index.v1+json"
    with pytest.raises(Invalid, match="malformed"):
        manifest_type(b"[")


def test_counts_are_bounded() -> None:
    shelf = Shelf()
    shelf.refer(*(build_referrer(made(str(n)), SUBJECT) for n in range(100)))
    assert len(shelf.fetch()) == 64
    assert len(shelf.asked) < 200
    many = build_tagged([made(str(n)) for n in range(65)])
    with pytest.raises(Invalid, match="has 65 signatures; the limit is 64"):
        parse_manifest(many.manifest)
    with pytest.raises(Invalid, match="up to 4194304 bytes"):
        parse_manifest(b" " * (4 << 20) + b"{}")


@pytest.mark.parametrize(
    ("layer", "sentence"),
    [
        ({"digest": "sha256:abc", "size": 5}, "names a blob by 'sha256:abc'"),
        ({"digest": IMAGE, "size": 1 << 20}, "has 1048576 bytes; the limit is 131072"),
        ({"digest": IMAGE, "size": -1}, "has -1 bytes"),
        ({"digest": IMAGE, "size": 5, "annotations": {"x": "y" * 70_000}}, "65536 of annotations"),
        ({"digest": IMAGE, "size": 5, "annotations": {"x": 1}}, "is malformed"),
        ({"digest": IMAGE}, "is malformed"),
    ],
)
def test_layers_that_are_no_signature(layer: dict[str, object], sentence: str) -> None:
    document = json.dumps({"layers": [{"mediaType": SIMPLE_TYPE, **layer}]}).encode()
    with pytest.raises(Invalid, match=sentence):
        parse_manifest(document)


@settings(max_examples=200, deadline=None)
@given(
    st.binary(max_size=300)
    | st.recursive(
        st.none() | st.integers() | st.text(max_size=12),
        lambda inner: (
            st.lists(inner, max_size=3)
            | st.dictionaries(
                st.sampled_from(
                    ["layers", "manifests", "digest", "size", "mediaType", "artifactType", "subject"]
                ),
                inner,
                max_size=4,
            )
        ),
        max_leaves=12,
    ).map(lambda value: json.dumps(value).encode())
)
def test_no_document_breaks_the_parsers(data: bytes) -> None:
    for parse in (parse_manifest, parse_referrers):
        try:
            parse(data)
        except Invalid:
            pass
