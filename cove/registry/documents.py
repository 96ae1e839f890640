"""What a pushed manifest says of itself: its type, what it needs, what it is about.

Pure. A manifest is kept byte by byte as it came; this is what the registry has to know of it. Read leniently (fields
that nobody knows stay) and strictly where other content is named: digests, sizes and counts are checked.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import msgspec

from cove.registry.names import parse_digest
from cove.registry.refusals import Refused

MANIFEST_BYTES_MAX = 4 << 20
DESCRIPTORS_MAX = 10_000
OCI_MANIFEST = "application/vnd.oci.image.manifest.v1+json"
OCI_INDEX = "application/vnd.oci.image.index.v1+json"
OCI_ARTIFACT = (
    "application/vnd.oci.artifact.manifest.v1+json"  # of 1.1's release candidates; some tools still write it
)
DOCKER_MANIFEST = "application/vnd.docker.distribution.manifest.v2+json"
DOCKER_LIST = "application/vnd.docker.distribution.manifest.list.v2+json"
IMAGES = (OCI_MANIFEST, DOCKER_MANIFEST)
INDEXES = (OCI_INDEX, DOCKER_LIST)
MEDIA_TYPES = (*IMAGES, *INDEXES, OCI_ARTIFACT)
_ELSEWHERE = ("nondistributable", "foreign.diff")  # layers that may not be pushed have their own URLs


@dataclass(frozen=True, slots=True, kw_only=True)
class Document:
    """A manifest's meaning. `blobs` must be in its repository, `children` (an index's manifests) need not."""

    media_type: str
    blobs: tuple[str, ...] = ()
    elsewhere: tuple[str, ...] = ()
    children: tuple[str, ...] = ()
    subject: str = ""
    artifact_type: str = ""
    annotations: Mapping[str, str] = field(default_factory=dict)


def parse_document(data: bytes, content_type: str) -> Document:
    """Read a manifest that was pushed with this Content-Type ("" without one). Refused: MANIFEST_INVALID."""
    try:
        raw = msgspec.json.decode(data)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise _invalid(f"it isn't JSON: {error}") from None
    if not isinstance(raw, dict):
        raise _invalid("it must be a JSON object")
    media_type = _media_type(raw, content_type.partition(";")[0].strip())
    if raw.get("schemaVersion", 2 if media_type == OCI_ARTIFACT else None) != 2:
        raise _invalid("schemaVersion must be 2; Docker's schema 1 isn't kept here")
    subject = raw.get("subject")
    config = raw.get("config")
    blobs: list[str] = []
    elsewhere: list[str] = []
    children: list[str] = []
    artifact_type = _text(raw, "artifactType")
    if media_type in INDEXES:
        children = [_descriptor(each, "manifests") for each in _list(raw, "manifests", wanted=True)]
    elif media_type == OCI_ARTIFACT:
        blobs = [_descriptor(each, "blobs") for each in _list(raw, "blobs")]
    else:
        blobs.append(_descriptor(config, "config"))
        assert isinstance(config, dict)
        artifact_type = artifact_type or _text(config, "mediaType")
        for each in _list(raw, "layers", wanted=True):
            digest = _descriptor(each, "layers")
            kind = each.get("mediaType") or ""
            (elsewhere if any(word in kind for word in _ELSEWHERE) else blobs).append(digest)
    return Document(
        media_type=media_type,
        blobs=tuple(dict.fromkeys(blobs)),
        elsewhere=tuple(dict.fromkeys(elsewhere)),
        children=tuple(dict.fromkeys(children)),
        subject=_descriptor(subject, "subject") if subject is not None else "",
        artifact_type=artifact_type,
        annotations=_annotations(raw),
    )


def _media_type(raw: dict[str, Any], content_type: str) -> str:
    said = _text(raw, "mediaType")
    if said and content_type and said != content_type and content_type != "application/json":
        raise _invalid(f"its mediaType is {said}, but it came with Content-Type: {content_type}")
    found = said or content_type
    if found in ("", "application/json", "application/octet-stream"):
        found = OCI_INDEX if "manifests" in raw else OCI_MANIFEST
    if found not in MEDIA_TYPES:
        raise _invalid(
            f"media type {found[:200]!r} isn't kept here; expected one of {', '.join(MEDIA_TYPES)}"
        )
    return found


def _descriptor(raw: object, where: str) -> str:
    """The digest that a descriptor names."""
    if not isinstance(raw, dict):
        raise _invalid(f"{where}: expected a descriptor, an object with mediaType, digest and size")
    size = raw.get("size")
    if not isinstance(size, int) or isinstance(size, bool) or not 0 <= size < 1 << 63:
        raise _invalid(f"{where}: a descriptor's size must be a number of bytes")
    _text(raw, "mediaType")
    digest = raw.get("digest")
    if not isinstance(digest, str):
        raise _invalid(f"{where}: a descriptor without a digest")
    try:
        return parse_digest(digest)
    except Refused as refused:
        raise _invalid(f"{where}: {refused.message}") from None


def _list(raw: dict[str, Any], key: str, *, wanted: bool = False) -> list[Any]:
    found = raw.get(key)
    if found is None and not wanted:
        return []
    if found is None and key == "layers":
        return []
    if not isinstance(found, list):
        raise _invalid(f"{key} must be a list")
    if len(found) > DESCRIPTORS_MAX:
        raise _invalid(f"{key} has {len(found)} entries, the limit is {DESCRIPTORS_MAX}")
    return found


def _text(raw: Mapping[str, Any], key: str) -> str:
    found = raw.get(key)
    if found is None:
        return ""
    if not isinstance(found, str) or not found.isprintable() or len(found) > 1024:
        raise _invalid(f"{key} must be a text without control characters of at most 1024 characters")
    return found


def _annotations(raw: Mapping[str, Any]) -> dict[str, str]:
    found = raw.get("annotations")
    if found is None:
        return {}
    if not isinstance(found, dict) or not all(isinstance(value, str) for value in found.values()):
        raise _invalid("annotations must be texts by name")
    return found


def _invalid(why: str) -> Refused:
    return Refused(400, "MANIFEST_INVALID", f"the manifest is invalid: {why}")
