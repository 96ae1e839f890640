"""What a registry's documents say: manifests, indexes, platforms. Pure.

OCI image-spec 1.1 (manifest.md, image-index.md) and Docker's schema 2 (distribution, manifest-v2-2.md). Documents are
read leniently where Docker is (unknown fields) and strictly where it matters: digests, sizes, counts, kinds.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from typing import TypeVar

import msgspec

from cove.image.types import Limits
from cove.model.errors import Invalid, NotFound

OCI_INDEX = "application/vnd.oci.image.index.v1+json"
OCI_MANIFEST = "application/vnd.oci.image.manifest.v1+json"
OCI_CONFIG = "application/vnd.oci.image.config.v1+json"
DOCKER_LIST = "application/vnd.docker.distribution.manifest.list.v2+json"
DOCKER_MANIFEST = "application/vnd.docker.distribution.manifest.v2+json"
DOCKER_CONFIG = "application/vnd.docker.container.image.v1+json"
INDEX_TYPES = (OCI_INDEX, DOCKER_LIST)
MANIFEST_TYPES = (OCI_MANIFEST, DOCKER_MANIFEST)
ACCEPT = ", ".join((*MANIFEST_TYPES, *INDEX_TYPES))
INDEX_DEPTH_MAX = 4
INDEX_ENTRIES_MAX = 1000
_SCHEMA_1 = re.compile(r"application/vnd\.docker\.distribution\.manifest\.v1\+(?:json|prettyjws)")
_SHA256 = re.compile(r"sha256:[a-f0-9]{64}")
_LAYER_TYPE = re.compile(
    r"application/vnd\.(?:oci\.image\.layer\.(?:nondistributable\.)?v1\.tar(?P<oci>\+(?:gzip|zstd))?"
    r"|docker\.image\.rootfs\.(?P<foreign>foreign\.)?diff\.tar(?P<docker>[.+](?:gzip|zstd))?)"
)
_VARIANTS = {"arm64": "v8", "arm": "v7"}  # what a missing variant means (containerd/platforms)
_ATTESTATION = "vnd.docker.reference.type"
_T = TypeVar("_T")


class Platform(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """An operating system and an architecture, as Go names them."""

    os: str = ""
    architecture: str = ""
    variant: str = ""
    os_version: str = msgspec.field(name="os.version", default="")
    os_features: list[str] | None = msgspec.field(name="os.features", default=None)

    def __str__(self) -> str:
        return "/".join(part for part in (self.os, self.architecture, self.variant) if part)


class Descriptor(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What a document names (image-spec descriptor.md)."""

    digest: str
    size: int
    media_type: str = msgspec.field(name="mediaType", default="")
    urls: list[str] | None = None
    annotations: dict[str, str] | None = None
    platform: Platform | None = None
    artifact_type: str = msgspec.field(name="artifactType", default="")


class Index(msgspec.Struct, frozen=True, kw_only=True):
    """A document that names manifests by platform."""

    digest: str
    media_type: str
    manifests: tuple[Descriptor, ...]


class ImageManifest(msgspec.Struct, frozen=True, kw_only=True):
    """A document that names a configuration and layers."""

    digest: str
    media_type: str
    config: Descriptor
    layers: tuple[Descriptor, ...]


class _Document(msgspec.Struct):
    schema_version: int = msgspec.field(name="schemaVersion", default=0)
    media_type: str = msgspec.field(name="mediaType", default="")
    manifests: list[Descriptor] | None = None
    config: Descriptor | None = None
    layers: list[Descriptor] | None = None
    fs_layers: object = msgspec.field(name="fsLayers", default=None)


def digest_of(data: bytes) -> str:
    """The sha256 digest of a document."""
    return f"sha256:{hashlib.sha256(data).hexdigest()}"


def check_digest(data: bytes, digest: str, size: int, what: str) -> None:
    """Invalid unless the document is what was named; a negative size isn't known."""
    if size >= 0 and len(data) != size:
        raise Invalid(f"{what} {digest} has {len(data)} bytes and not the {size} that were named")
    if (actual := digest_of(data)) != digest:
        raise Invalid(f"{what} {digest} has another content than its name says: its digest is {actual}")


def parse_manifest(data: bytes, media_type: str, limits: Limits) -> Index | ImageManifest:
    """A manifest or an index, by its own word and its Content-Type, which must not disagree. Invalid."""
    digest = digest_of(data)
    media_type = media_type.partition(";")[0].strip()
    document = _decode(data, _Document, f"manifest {digest}")
    if _SCHEMA_1.fullmatch(media_type) or document.schema_version == 1 or document.fs_layers is not None:
        raise Invalid(
            "the image has a manifest of Docker's schema 1, which is no longer supported: "
            "push it again with a newer tool, which writes schema 2 or OCI manifests"
        )
    kind = document.media_type or media_type
    if media_type in (*INDEX_TYPES, *MANIFEST_TYPES) and kind != media_type:
        raise Invalid(
            f"manifest {digest} says that it is {_shown(kind)}, and the registry says {_shown(media_type)}"
        )
    if document.manifests is not None and document.layers is not None:
        raise Invalid(
            f"manifest {digest} names manifests and layers: it is one of an index and a manifest at most"
        )
    if kind in INDEX_TYPES or (
        kind not in MANIFEST_TYPES and document.manifests is not None and _vague(kind)
    ):
        return _index(document, digest, kind if kind in INDEX_TYPES else OCI_INDEX)
    if kind in MANIFEST_TYPES or (document.config is not None and _vague(kind)):
        return _manifest(document, digest, kind if kind in MANIFEST_TYPES else OCI_MANIFEST, limits)
    raise Invalid(f"manifest {digest} is of the type {_shown(kind)}, which is no image that Cove knows")


def _vague(kind: str) -> bool:
    """A type that says nothing: what a simple file server gives."""
    return kind in ("", "application/json", "application/octet-stream", "text/plain")


def _index(document: _Document, digest: str, kind: str) -> Index:
    manifests = tuple(document.manifests or ())
    if len(manifests) > INDEX_ENTRIES_MAX:
        raise Invalid(f"index {digest} names {len(manifests)} manifests; the limit is {INDEX_ENTRIES_MAX}")
    for descriptor in manifests:
        _check(descriptor, f"index {digest}")
    return Index(digest=digest, media_type=kind, manifests=manifests)


def _manifest(document: _Document, digest: str, kind: str, limits: Limits) -> ImageManifest:
    if document.config is None:
        raise Invalid(f"manifest {digest} names no configuration")
    layers = tuple(document.layers or ())
    _check(document.config, f"manifest {digest}")
    if document.config.media_type not in (OCI_CONFIG, DOCKER_CONFIG, "", "application/octet-stream"):
        raise Invalid(
            f"manifest {digest} has a configuration of the type {_shown(document.config.media_type)}: "
            "it is an artifact and no image"
        )
    if document.config.size > limits.manifest_bytes:
        raise Invalid(
            f"manifest {digest} names a configuration of {document.config.size} bytes; "
            f"the limit is {limits.manifest_bytes}"
        )
    if len(layers) > limits.layers:
        raise Invalid(f"manifest {digest} names {len(layers)} layers; the limit is {limits.layers}")
    for layer in layers:
        _check(layer, f"manifest {digest}")
        layer_compression(layer)
    return ImageManifest(digest=digest, media_type=kind, config=document.config, layers=layers)


def _check(descriptor: Descriptor, where: str) -> None:
    if not _SHA256.fullmatch(descriptor.digest):
        raise Invalid(
            f"{where} names content by {_shown(descriptor.digest)}: only sha256 digests are supported"
        )
    if not 0 <= descriptor.size < 1 << 62:
        raise Invalid(f"{where} names {descriptor.digest} with the impossible size {descriptor.size}")


def layer_compression(layer: Descriptor) -> str:
    """gzip, zstd or "" by the media type of a layer. Invalid for what is no layer. The bytes have the last word."""
    match = _LAYER_TYPE.fullmatch(layer.media_type)
    if match is None:
        raise Invalid(f"layer {layer.digest} is of the type {_shown(layer.media_type)}, which is no layer's")
    return (match["oci"] or match["docker"] or "").lstrip(".+")


def is_foreign(layer: Descriptor) -> bool:
    """Whether a layer may have to be fetched from elsewhere, as its URLs say (a nondistributable layer)."""
    return "nondistributable" in layer.media_type or ".foreign." in layer.media_type


def choose_manifest(index: Index, wanted: Platform) -> Descriptor:
    """The entry of an index for a platform; attestations are passed over. NotFound says what there is instead."""
    entries = [
        d
        for d in index.manifests
        if not _is_attestation(d) and d.media_type in (*MANIFEST_TYPES, *INDEX_TYPES)
    ]
    scored = [
        (score, -number) for number, d in enumerate(entries) if (score := _score(d.platform, wanted)) > 0
    ]
    if not scored:
        there = sorted({str(d.platform) for d in entries if d.platform} - {"", "unknown/unknown"})
        has = f": it has {', '.join(there[:20])}" if there else ""
        raise NotFound(f"no matching manifest for {wanted} in the manifest list entries{has}")
    return entries[-max(scored)[1]]


def _is_attestation(descriptor: Descriptor) -> bool:
    return _ATTESTATION in (descriptor.annotations or {}) or (
        descriptor.platform is not None and descriptor.platform.os == "unknown"
    )


def _score(offered: Platform | None, wanted: Platform) -> int:
    """How well an offer fits; 0: not at all. A smaller variant of the same architecture runs, too."""
    if offered is None or (not offered.os and not offered.architecture):
        return 1  # an entry without a platform may be anything: the last resort, the configuration tells
    if offered.os != wanted.os or normal_architecture(offered.architecture) != wanted.architecture:
        return 0
    have = offered.variant or _VARIANTS.get(wanted.architecture, "")
    want = wanted.variant or _VARIANTS.get(wanted.architecture, "")
    if have == want:
        return 100
    if wanted.architecture == "amd64":
        return 99 if not have else 0 if not want else _lesser(have, want)
    return _lesser(have, want)


def _lesser(have: str, want: str) -> int:
    numbers = [int(text[1:]) if re.fullmatch(r"v[0-9]", text) else 0 for text in (have, want)]
    return 50 + numbers[0] if 0 < numbers[0] <= numbers[1] else 0


def normal_architecture(name: str) -> str:
    """Go's name of an architecture (containerd/platforms, database.go)."""
    return {
        "x86_64": "amd64",
        "x86-64": "amd64",
        "aarch64": "arm64",
        "armhf": "arm",
        "armel": "arm",
        "i386": "386",
    }.get(name.lower(), name.lower())


def parse_platform(text: str, architecture: str) -> Platform:
    """`os/arch[/variant]`, `os` or `arch`, as people write it; "" is this machine's. Invalid."""
    parts = text.lower().split("/") if text else ["linux", architecture]
    if len(parts) > 3 or not all(re.fullmatch(r"[a-z0-9_.-]{1,32}", part) for part in parts):
        raise Invalid(f"platform: {_shown(text)} is no platform such as linux/amd64 or linux/arm/v7")
    if len(parts) == 1:
        parts = (
            [parts[0], architecture] if parts[0] in ("linux", "windows", "darwin") else ["linux", parts[0]]
        )
    system, name, variant = (*parts, "")[:3]
    if name in ("armhf", "armel"):
        variant = "v7" if name == "armhf" else "v6"
    name = normal_architecture(name)
    if (name, variant) in (("arm64", "8"), ("arm", "5"), ("arm", "6"), ("arm", "7")):
        variant = f"v{variant}"
    if variant == _VARIANTS.get(name) == "v8":
        variant = ""
    return Platform(os=system, architecture=name, variant=variant)


class _Tags(msgspec.Struct):
    tags: list[str] | None = None


def parse_tags(data: bytes) -> Sequence[str]:
    """The tags of a `tags/list`. Invalid."""
    return _decode(data, _Tags, "list of tags").tags or ()


def _decode(data: bytes, kind: type[_T], what: str) -> _T:
    try:
        decoded: _T = msgspec.json.decode(data, type=kind)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise Invalid(f"the registry's {what} is malformed: {str(error)[:200]}") from error
    return decoded


def _shown(text: str) -> str:
    return repr(text if len(text) <= 100 else text[:99] + "…")
