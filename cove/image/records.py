"""What the store keeps of images and layers. No I/O.

A record names content; content without a record is garbage (content.py).
"""

from __future__ import annotations

import msgspec


class ImageRecord(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, omit_defaults=True):
    """What the store knows of an image beyond its configuration blob."""

    id: str
    manifest: str  # digest of a blob
    parent: str = ""
    last_tagged_ns: int = 0
    hidden: bool = False


class DigestRecord(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, omit_defaults=True):
    """What a registry calls an image: under `name@digest`, which is the record's key.

    `documents` are the digests of the indexes that led to the manifest, and of the manifest, which is the last.
    """

    image: str
    documents: tuple[str, ...]


class LayerRecord(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, omit_defaults=True):
    """A layer that is unpacked. Without `compression` its blob is the plain tar, kept as files and frame."""

    name: str
    diff_id: str
    blob: str  # digest
    blob_bytes: int
    size_bytes: int  # of the files
    compression: str = ""
    moved: bool = False

    @property
    def disk_bytes(self) -> int:
        """The files, and the blob where it is kept beside them."""
        return self.size_bytes + (self.blob_bytes if self.compression else 0)


class HeldRecord(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, omit_defaults=True):
    """Layers that somebody beside the images holds on to (a build's cache), and what that one notes with it."""

    layers: tuple[str, ...]  # diff ids, lowest first
    note: msgspec.Raw = msgspec.Raw(b"null")


def encode_record(record: ImageRecord | LayerRecord | HeldRecord | DigestRecord) -> bytes:
    """A record as the store's value."""
    return msgspec.json.encode(record)


def hex_of(digest: str) -> str:
    """The hex digits of a sha256 digest."""
    return digest.removeprefix("sha256:")


class PushedBlob(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, omit_defaults=True):
    """One form in which a layer was pushed, and repositories that have it by their full names, the newest first."""

    digest: str
    size: int
    compression: str  # gzip or zstd
    level: int = 0  # it was made with; 0: it came so
    repositories: tuple[str, ...] = ()


class PushedRecord(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, omit_defaults=True):
    """What is known at registries of a layer, the newest first. Never the only trace of anything: it saves work."""

    diff_id: str
    blobs: tuple[PushedBlob, ...] = ()
