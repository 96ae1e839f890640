"""How signatures lie in a registry: their manifests, and where these are looked for. Pure.

Two places: the tag `sha256-HEX.sig` in the image's repository, one manifest whose layers are all its signatures
(sigstore/cosign, specs/SIGNATURE_SPEC.md, "Storage"); and the image's referrers, a manifest for each signature, whose
subject is the image's manifest (OCI image-spec 1.1, manifest.md; sigstore/cosign, specs/BUNDLE_SPEC.md).
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import msgspec

from cove.model.errors import Invalid
from cove.signing.types import (
    ANNOTATIONS_MAX,
    BUNDLE_TYPE,
    CONTENT_MAX,
    PER_IMAGE_MAX,
    SIMPLE_TYPE,
    Signature,
)

MANIFEST_TYPE = "application/vnd.oci.image.manifest.v1+json"
INDEX_TYPE = "application/vnd.oci.image.index.v1+json"
CONFIG_TYPE = "application/vnd.oci.image.config.v1+json"
EMPTY_TYPE = "application/vnd.oci.empty.v1+json"
SIGNATURE_ARTIFACT = "application/vnd.dev.cosign.artifact.sig.v1+json"
ARTIFACTS = (SIGNATURE_ARTIFACT, BUNDLE_TYPE)  # the artifact types among referrers that are signatures
MANIFEST_MAX = 4 << 20
_DIGEST = re.compile(r"sha256:[0-9a-f]{64}")
_BUNDLE_PREFIX = "application/vnd.dev.sigstore.bundle"


@dataclass(frozen=True, slots=True, kw_only=True)
class Subject:
    """What a referrer is about: the image's manifest."""

    digest: str
    size: int
    media_type: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Artifact:
    """A manifest and the blobs that it names, ready to be pushed; `artifact_type` "" for one under a tag."""

    manifest: bytes
    blobs: tuple[tuple[str, bytes], ...]  # digest, content
    artifact_type: str = ""

    @property
    def digest(self) -> str:
        return _digest(self.manifest)


@dataclass(frozen=True, slots=True, kw_only=True)
class Layer:
    """A signature in a manifest: where its content is, and what its descriptor says."""

    media_type: str
    digest: str
    size: int
    annotations: dict[str, str]

    def with_content(self, content: bytes) -> Signature:
        """The signature. Raises Invalid when the content isn't what the descriptor says."""
        if len(content) != self.size or _digest(content) != self.digest:
            raise Invalid(f"the signature's content isn't the blob {self.digest} of {self.size} bytes")
        kind = BUNDLE_TYPE if self.media_type.startswith(_BUNDLE_PREFIX) else SIMPLE_TYPE
        return Signature(media_type=kind, content=content, annotations=self.annotations)  # type: ignore[arg-type]


class _Descriptor(msgspec.Struct):
    digest: str
    size: int
    media_type: str = msgspec.field(name="mediaType", default="")
    annotations: dict[str, str] | None = None


class _Subject(msgspec.Struct):
    digest: str


class _Manifest(msgspec.Struct):
    layers: list[_Descriptor]
    subject: _Subject | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Referrer:
    """A manifest that is about an image, as a registry lists it."""

    digest: str
    size: int
    artifact_type: str


class _Kind(msgspec.Struct):
    media_type: str = msgspec.field(name="mediaType", default="")
    manifests: list[Any] | None = None


class _Index(msgspec.Struct):
    manifests: list[_Listed] | None = None


class _Listed(msgspec.Struct):
    digest: str
    size: int
    artifact_type: str = msgspec.field(name="artifactType", default="")


def parse_referrers(data: bytes) -> tuple[Referrer, ...]:
    """Those of an image's referrers that are signatures, as many as count. Raises Invalid."""
    if len(data) > MANIFEST_MAX:
        raise Invalid(f"a list of referrers has up to {MANIFEST_MAX} bytes, this one has {len(data)}")
    try:
        found = msgspec.json.decode(data, type=_Index)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise Invalid(f"the list of referrers is malformed: {error}") from None
    listed = [
        Referrer(digest=one.digest, size=one.size, artifact_type=one.artifact_type)
        for one in found.manifests or ()
        if one.artifact_type == SIGNATURE_ARTIFACT or one.artifact_type.startswith(_BUNDLE_PREFIX)
    ]
    for one in listed:
        if not _DIGEST.fullmatch(one.digest) or not 0 < one.size <= MANIFEST_MAX:
            raise Invalid(f"the list of referrers names {one.digest[:80]!r} of {one.size} bytes")
    return tuple(listed[-PER_IMAGE_MAX:])


def manifest_type(data: bytes) -> str:
    """The media type that a manifest says it is of; an OCI manifest or index need not say so. Raises Invalid."""
    try:
        found = msgspec.json.decode(data, type=_Kind)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise Invalid(f"the image's manifest is malformed: {error}") from None
    return found.media_type or (MANIFEST_TYPE if found.manifests is None else INDEX_TYPE)


def referrers_tag(digest: str) -> str:
    """The tag of the list of referrers in a registry that has no API for it (distribution-spec 1.1)."""
    return digest.replace(":", "-")


def signature_tag(digest: str) -> str:
    """The tag of the older scheme for an image's manifest."""
    return digest.replace(":", "-") + ".sig"


def build_tagged(signatures: Sequence[Signature]) -> Artifact:
    """The manifest for the tag scheme: every signature a layer. Bundles aren't for it, and are left out."""
    simple = [signature for signature in signatures if signature.media_type == SIMPLE_TYPE]
    config = msgspec.json.encode(
        {
            "architecture": "",
            "created": "0001-01-01T00:00:00Z",
            "history": [{"created": "0001-01-01T00:00:00Z"} for _ in simple],
            "os": "",
            "rootfs": {"type": "layers", "diff_ids": [_digest(one.content) for one in simple]},
            "config": {},
        }
    )
    document = {
        "schemaVersion": 2,
        "mediaType": MANIFEST_TYPE,
        "config": _describe(CONFIG_TYPE, config),
        "layers": [_layer(one) for one in simple],
    }
    return Artifact(
        manifest=msgspec.json.encode(document),
        blobs=_blobs([config, *(one.content for one in simple)]),
    )


def build_referrer(signature: Signature, subject: Subject) -> Artifact:
    """The manifest of one signature as a referrer of the image."""
    artifact_type = BUNDLE_TYPE if signature.media_type == BUNDLE_TYPE else SIGNATURE_ARTIFACT
    config = b"{}"
    document = {
        "schemaVersion": 2,
        "mediaType": MANIFEST_TYPE,
        "artifactType": artifact_type,
        "config": _describe(EMPTY_TYPE if artifact_type == BUNDLE_TYPE else SIGNATURE_ARTIFACT, config),
        "layers": [_layer(signature)],
        "subject": {"mediaType": subject.media_type, "digest": subject.digest, "size": subject.size},
    }
    if artifact_type == BUNDLE_TYPE:
        document["annotations"] = {"dev.sigstore.bundle.content": "dsse-envelope"}
    return Artifact(
        manifest=msgspec.json.encode(document),
        blobs=_blobs([config, signature.content]),
        artifact_type=artifact_type,
    )


def parse_manifest(data: bytes, *, subject: str = "") -> tuple[Layer, ...]:
    """The signatures that a manifest names. Raises Invalid; also where it has a subject other than `subject`."""
    if len(data) > MANIFEST_MAX:
        raise Invalid(f"a manifest of signatures has up to {MANIFEST_MAX} bytes, this one has {len(data)}")
    try:
        found = msgspec.json.decode(data, type=_Manifest)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise Invalid(f"the manifest of signatures is malformed: {error}") from None
    if subject and (found.subject is None or found.subject.digest != subject):
        raise Invalid(f"the manifest of signatures isn't about {subject}")
    if len(found.layers) > PER_IMAGE_MAX:
        raise Invalid(f"the manifest has {len(found.layers)} signatures; the limit is {PER_IMAGE_MAX}")
    layers = []
    for one in found.layers:
        if one.media_type != SIMPLE_TYPE and not one.media_type.startswith(_BUNDLE_PREFIX):
            continue  # something else that is kept beside signatures
        notes = one.annotations or {}
        if not _DIGEST.fullmatch(one.digest):
            raise Invalid(f"the manifest of signatures names a blob by {one.digest[:80]!r}")
        if not 0 <= one.size <= CONTENT_MAX or sum(len(v) for v in notes.values()) > ANNOTATIONS_MAX:
            raise Invalid(
                f"the signature {one.digest[:80]} has {one.size} bytes; the limit is {CONTENT_MAX}, "
                f"and {ANNOTATIONS_MAX} of annotations"
            )
        layers.append(Layer(media_type=one.media_type, digest=one.digest, size=one.size, annotations=notes))
    return tuple(layers)


def _layer(signature: Signature) -> dict[str, Any]:
    described = _describe(signature.media_type, signature.content)
    if signature.annotations:
        described["annotations"] = dict(sorted(signature.annotations.items()))
    return described


def _describe(media_type: str, content: bytes) -> dict[str, Any]:
    return {"mediaType": media_type, "size": len(content), "digest": _digest(content)}


def _blobs(contents: Sequence[bytes]) -> tuple[tuple[str, bytes], ...]:
    return tuple({_digest(content): content for content in contents}.items())


def _digest(content: bytes) -> str:
    return f"sha256:{hashlib.sha256(content).hexdigest()}"
