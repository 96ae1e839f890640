"""What a check of the image store is given and gives back. No I/O."""

from __future__ import annotations

from typing import Literal

import msgspec

from cove.image.records import DigestRecord, ImageRecord, LayerRecord

Kind = Literal["missing", "damaged", "left", "dangling"]


class Problem(msgspec.Struct, frozen=True, kw_only=True):
    """One disagreement. `kind`: content is missing or damaged; nobody needs what is left; a name, parent or layer
    that a record dangles from isn't there."""

    kind: Kind
    what: str  # image, manifest, layer, blob, frame, name, staging, trash
    name: str
    text: str

    @property
    def is_loss(self) -> bool:
        """Whether an image can't be relied on; otherwise it only takes space."""
        return self.kind != "left"


class Records(msgspec.Struct, frozen=True, kw_only=True):
    """Everything on record of the store."""

    images: tuple[ImageRecord, ...]
    layers: tuple[LayerRecord, ...]
    names: dict[str, str]
    digests: dict[str, DigestRecord] = {}  # by name@digest


class Listing(msgspec.Struct, frozen=True, kw_only=True):
    """What is on the disk, by name."""

    blobs: dict[str, int]  # hex digits: bytes
    layers: frozenset[str]
    frames: frozenset[str]
    staging: frozenset[str]
    trash: frozenset[str]
    built: frozenset[str] = frozenset()  # EROFS images, by their layer
    scans: frozenset[str] = frozenset()  # what was found in a layer, LAYER.FORM


class Report(msgspec.Struct, frozen=True, kw_only=True):
    """What was looked at, and what isn't as it should be."""

    images: int
    layers: int
    blobs: int
    read_bytes: int  # that were read again and hashed
    problems: tuple[Problem, ...]

    @property
    def losses(self) -> list[Problem]:
        return [problem for problem in self.problems if problem.is_loss]
