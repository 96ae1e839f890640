"""Plan a `docker save`: which members the archive has, and in which order.

Pure. The order is always the same (blobs by digest, then the documents), and so are the times, so that the
same images give the same bytes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from cove.image.jobs import Save, SaveMember
from cove.image.manifests import SavedImage, build_documents
from cove.image.records import ImageRecord, LayerRecord, hex_of
from cove.image.references import parse_reference


@dataclass(frozen=True, slots=True, kw_only=True)
class WantedImage:
    """An image to be saved, its layers lowest first, and the names to save it under."""

    record: ImageRecord
    layers: tuple[LayerRecord, ...]
    names: tuple[str, ...]


def plan_save(wanted: Sequence[WantedImage], *, root: str, blob_size: Callable[[str], int]) -> Save:
    """The job of the worker that writes the archive."""
    blobs: dict[str, SaveMember] = {}
    saved: list[SavedImage] = []
    for image in wanted:
        for digest in (image.record.id, image.record.manifest):
            blobs[digest] = _member(digest, blob_size(digest), blob=hex_of(digest))
        for layer in image.layers:
            if layer.compression:
                blobs[layer.blob] = _member(layer.blob, layer.blob_bytes, blob=hex_of(layer.blob))
            else:
                blobs[layer.blob] = _member(layer.blob, layer.blob_bytes, layer=layer.name, moved=layer.moved)
        saved.append(
            SavedImage(
                image_id=image.record.id,
                manifest_digest=image.record.manifest,
                manifest_size=blobs[image.record.manifest].size,
                layers=tuple(layer.blob for layer in image.layers),
                names=tuple(parse_reference(name) for name in image.names),
            )
        )
    documents = [SaveMember(name=name, size=len(data), data=data) for name, data in build_documents(saved)]
    directories = [SaveMember(name=name, size=0, directory=True) for name in ("blobs", "blobs/sha256")]
    return Save(root=root, members=(*directories, *(blobs[digest] for digest in sorted(blobs)), *documents))


def _member(digest: str, size: int, *, blob: str = "", layer: str = "", moved: bool = False) -> SaveMember:
    name = f"blobs/sha256/{hex_of(digest)}"
    return SaveMember(name=name, digest=digest, size=size, blob=blob, layer=layer, moved=moved)
