"""Names of the OCI distribution specification, and what a request's path and method ask for.

Pure. The grammars are those of the specification's "Pulling manifests" (repositories, tags) and of the image
specification's descriptor.md (digests); of the algorithms, those that it registers and Python has everywhere. A path
is read from its right end, since a repository's name may hold any of the API's own words.
"""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass

from cove.registry.refusals import Refused, invalid_digest, invalid_name, not_found

NAME_LENGTH_MAX = 255
TAG_LENGTH_MAX = 128
ALGORITHMS = {"sha256": 64, "sha512": 128}  # hex digits

_PART = r"[a-z0-9]+(?:(?:\.|_|__|-+)[a-z0-9]+)*"
_NAME = re.compile(rf"{_PART}(?:/{_PART})*", re.ASCII)
_TAG = re.compile(r"[a-zA-Z0-9_][a-zA-Z0-9._-]{0,127}", re.ASCII)
_HEX = re.compile(r"[a-f0-9]+", re.ASCII)
_UPLOAD = re.compile(r"[a-f0-9]{8}-[a-f0-9]{4}-[a-f0-9]{4}-[a-f0-9]{4}-[a-f0-9]{12}", re.ASCII)
PREFIX = "/v2/"


@dataclass(frozen=True, slots=True)
class Base:
    """`/v2/`: whether this is a registry, and who may come in."""


@dataclass(frozen=True, slots=True)
class Catalog:
    """`/v2/_catalog`: the repositories' names."""


@dataclass(frozen=True, slots=True)
class Manifest:
    """A manifest by `tag` or `digest`; the other one is ""."""

    name: str
    tag: str = ""
    digest: str = ""


@dataclass(frozen=True, slots=True)
class Blob:
    name: str
    digest: str


@dataclass(frozen=True, slots=True)
class Uploads:
    """Where an upload begins."""

    name: str


@dataclass(frozen=True, slots=True)
class Upload:
    """An upload under way."""

    name: str
    session: str


@dataclass(frozen=True, slots=True)
class Tags:
    name: str


@dataclass(frozen=True, slots=True)
class Referrers:
    name: str
    digest: str


Target = Base | Catalog | Manifest | Blob | Uploads | Upload | Tags | Referrers
METHODS: dict[type[Target], tuple[str, ...]] = {
    Base: ("GET", "HEAD"),
    Catalog: ("GET", "HEAD"),
    Manifest: ("GET", "HEAD", "PUT", "DELETE"),
    Blob: ("GET", "HEAD", "DELETE"),
    Uploads: ("POST",),
    Upload: ("GET", "HEAD", "PATCH", "PUT", "DELETE"),
    Tags: ("GET", "HEAD"),
    Referrers: ("GET", "HEAD"),
}


def parse_target(path: str) -> Target:
    """What a decoded path names. Refused: 404 for no page of the API, 400 for a name outside the grammar."""
    if path in ("/v2", PREFIX):
        return Base()
    if not path.startswith(PREFIX):
        raise not_found(f"{path[:100]!r}: no such page; a registry's API begins with /v2/")
    rest = path[len(PREFIX) :]
    if rest == "_catalog":
        return Catalog()
    parts = rest.split("/")
    if parts[-2:] == ["tags", "list"] and len(parts) > 2:
        return Tags(parse_name("/".join(parts[:-2])))
    if parts[-2:] == ["blobs", "uploads"] and len(parts) > 2:
        return Uploads(parse_name("/".join(parts[:-2])))
    if parts[-3:-1] == ["blobs", "uploads"] and len(parts) > 3:
        name = parse_name("/".join(parts[:-3]))
        return Upload(name, parse_session(parts[-1])) if parts[-1] else Uploads(name)
    if len(parts) > 2 and parts[-2] in ("manifests", "blobs", "referrers"):
        name, last = parse_name("/".join(parts[:-2])), parts[-1]
        if parts[-2] == "blobs":
            return Blob(name, parse_digest(last))
        if parts[-2] == "referrers":
            return Referrers(name, parse_digest(last))
        if ":" in last:
            return Manifest(name, digest=parse_digest(last))
        return Manifest(name, tag=parse_tag(last))
    raise not_found(f"{path[:100]!r}: no such page")


def parse_name(text: str) -> str:
    """A repository's name, unchanged. Refused: NAME_INVALID."""
    if len(text) > NAME_LENGTH_MAX:
        raise invalid_name(
            f"a repository's name has at most {NAME_LENGTH_MAX} characters, this one has {len(text)}"
        )
    if not _NAME.fullmatch(text):
        raise invalid_name(
            f"{text!r} is no repository's name: lower-case letters and digits, with . _ __ or - between them, "
            "in parts with / between them, e.g. team/app"
        )
    return text


def parse_tag(text: str) -> str:
    """A tag, unchanged. Refused: MANIFEST_INVALID."""
    if not _TAG.fullmatch(text):
        raise Refused(
            400,
            "MANIFEST_INVALID",
            f"{text[:140]!r} is neither a tag (letters, digits, _ . -; at most {TAG_LENGTH_MAX}) nor a digest",
        )
    return text


def parse_digest(text: str) -> str:
    """A digest, unchanged. Refused: DIGEST_INVALID."""
    algorithm, colon, value = text.partition(":")
    length = ALGORITHMS.get(algorithm)
    if not colon or length is None:
        raise invalid_digest(f"{text[:150]!r}: expected sha256:<64 hex digits> or sha512:<128 hex digits>")
    if len(value) != length or not _HEX.fullmatch(value):
        raise invalid_digest(
            f"{text[:150]!r}: {algorithm} has {length} lower-case hex digits after the colon"
        )
    return text


def parse_algorithm(text: str) -> str:
    """A digest's algorithm, sha256 without one. Refused: DIGEST_INVALID."""
    if text and text not in ALGORITHMS:
        raise invalid_digest(f"digest-algorithm {text[:50]!r}: expected {' or '.join(ALGORITHMS)}")
    return text or "sha256"


def parse_session(text: str) -> str:
    """An upload's id. Refused: BLOB_UPLOAD_UNKNOWN, for what the registry can't have given out."""
    if not _UPLOAD.fullmatch(text):
        raise Refused(404, "BLOB_UPLOAD_UNKNOWN", "no such upload: begin one with POST")
    return text


def digest_of(data: bytes, algorithm: str = "sha256") -> str:
    """The digest of a document."""
    return f"{algorithm}:{hashlib.new(algorithm, data).hexdigest()}"
