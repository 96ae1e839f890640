"""What a check of the image store finds: records, and what is on the disk, compared.

`find_problems` is pure. `read_listing` looks at the disk, `read_documents` hashes configurations and manifests;
what takes long, reading layers again, is layercheck.py's. A check repairs nothing: what is *left* goes at the next
collection or start of the daemon, what is *missing* or *damaged* has to be loaded or pulled again.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from pathlib import Path

import msgspec

from cove.image.checktypes import Listing, Problem, Records, Report
from cove.image.content import EMPTY_LAYER
from cove.image.records import ImageRecord, LayerRecord, hex_of

_DOCUMENT_MAX = 64 << 20
_PROBLEMS_MAX = 10_000  # beyond it a store is beyond a list
LayerCheck = Callable[[LayerRecord], Iterable[Problem]]


class Document(msgspec.Struct, frozen=True, kw_only=True):
    """A configuration or manifest as it was read; `data` is None where it can't be."""

    digest: str
    data: bytes | None
    problem: Problem | None = None


class _Descriptor(msgspec.Struct, frozen=True):
    digest: str = ""


class _Manifest(msgspec.Struct):
    config: _Descriptor = _Descriptor()
    layers: list[_Descriptor] | None = None


class _RootFs(msgspec.Struct, frozen=True):
    diff_ids: list[str] | None = None


class _Config(msgspec.Struct):
    rootfs: _RootFs = _RootFs()


def read_listing(root: Path) -> Listing:
    """What is in the store's directories now. OSError."""
    with os.scandir(root / "blobs" / "sha256") as entries:
        blobs = {entry.name: entry.stat(follow_symlinks=False).st_size for entry in entries}
    built, scans = root / "erofs", root / "scans"
    return Listing(
        blobs=blobs,
        layers=frozenset(os.listdir(root / "layers")),
        frames=frozenset(os.listdir(root / "frames")),
        staging=frozenset(os.listdir(root / "loading")),
        trash=frozenset(os.listdir(root / "trash")),
        built=frozenset(os.listdir(built)) if built.exists() else frozenset(),
        scans=frozenset(os.listdir(scans)) if scans.exists() else frozenset(),
    )


def without(listing: Listing, layers: Collection[str], blobs: Collection[str]) -> Listing:
    """The listing without what waits to be thrown away: layers by name, blobs by hex digits."""
    return msgspec.structs.replace(
        listing,
        blobs={name: size for name, size in listing.blobs.items() if name not in blobs},
        layers=listing.layers.difference(layers),
        frames=frozenset(name for name in listing.frames if name.removesuffix(".moved") not in layers),
        built=listing.built.difference(layers),
        scans=frozenset(name for name in listing.scans if name.partition(".")[0] not in layers),
    )


def check_store(
    root: Path, records: Records, listing: Listing, *, running: bool, deep: LayerCheck | None = None
) -> Report:
    """All of it: documents are hashed, and `deep` reads each layer again."""
    read_bytes = 0
    problems: list[Problem] = []
    documents: dict[str, bytes] = {}
    for document in read_documents(root, documents_of(records)):
        if document.data is not None:
            documents[document.digest] = document.data
            read_bytes += len(document.data)
        if document.problem is not None:
            problems.append(document.problem)
    problems += find_problems(records, listing, documents, running=running)
    for layer in records.layers if deep is not None else ():
        assert deep is not None
        if layer.name in listing.layers:
            problems += deep(layer)
            read_bytes += layer.blob_bytes
    return Report(
        images=len(records.images),
        layers=len(records.layers),
        blobs=len(listing.blobs),
        read_bytes=read_bytes,
        problems=tuple(problems[:_PROBLEMS_MAX]),
    )


def documents_of(records: Records) -> list[str]:
    """The digests of all configurations and manifests."""
    found = {digest for image in records.images for digest in (image.id, image.manifest)}
    return sorted(found.union(*(record.documents for record in records.digests.values())))


def read_documents(root: Path, digests: Sequence[str]) -> Iterator[Document]:
    """Read and hash them; what is missing or another's is a problem."""
    for digest in digests:
        path = root / "blobs" / "sha256" / hex_of(digest)
        try:
            with open(path, "rb") as stream:
                data = stream.read(_DOCUMENT_MAX + 1)
        except FileNotFoundError:
            yield Document(digest=digest, data=None)  # find_problems tells of it
            continue
        except OSError as error:
            yield Document(
                digest=digest, data=None, problem=_damaged(digest, f"can't be read: {error.strerror}")
            )
            continue
        found = f"sha256:{hashlib.sha256(data).hexdigest()}"
        if found != digest:
            yield Document(digest=digest, data=None, problem=_damaged(digest, f"has the digest {found}"))
            continue
        yield Document(digest=digest, data=data)


def _damaged(digest: str, text: str) -> Problem:
    return Problem(kind="damaged", what="blob", name=digest, text=f"the blob {digest} {text}")


def find_problems(
    records: Records, listing: Listing, documents: Mapping[str, bytes], *, running: bool = False
) -> Iterator[Problem]:
    """Every disagreement between records, disk and documents. `running`: loads, pulls or builds are under way, so
    that their staging and the trash are no sign of anything."""
    yield from _names(records)
    yield from _images(records, documents)
    yield from _content(records, listing)
    yield from _left(records, listing, running=running)


def _names(records: Records) -> Iterator[Problem]:
    ids = {image.id for image in records.images}
    pulled = {name: record.image for name, record in records.digests.items()}
    for name, image_id in {**records.names, **pulled}.items():
        if image_id not in ids:
            yield Problem(
                kind="dangling",
                what="name",
                name=name,
                text=f"the name {name} means {image_id}, which isn't there",
            )
    for image in records.images:
        if image.parent and image.parent not in ids:
            text = f"the image {image.id} has the parent {image.parent}, which isn't there"
            yield Problem(kind="dangling", what="image", name=image.id, text=text)


def _images(records: Records, documents: Mapping[str, bytes]) -> Iterator[Problem]:
    layers = {layer.diff_id: layer for layer in records.layers}
    for image in records.images:
        data = documents.get(image.id)
        if data is None:
            continue
        try:
            diff_ids = msgspec.json.decode(data, type=_Config).rootfs.diff_ids or []
        except msgspec.MsgspecError as error:
            yield Problem(
                kind="damaged", what="image", name=image.id, text=f"the configuration of {image.id}: {error}"
            )
            continue
        for lost in [diff_id for diff_id in diff_ids if diff_id not in layers]:
            text = f"the image {image.id} lacks the layer {lost}"
            yield Problem(kind="dangling", what="image", name=image.id, text=text)
        yield from _manifest(image, diff_ids, layers, documents)


def _manifest(
    image: ImageRecord,
    diff_ids: Sequence[str],
    layers: Mapping[str, LayerRecord],
    documents: Mapping[str, bytes],
) -> Iterator[Problem]:
    data = documents.get(image.manifest)
    if data is None:
        return
    try:
        manifest = msgspec.json.decode(data, type=_Manifest)
    except msgspec.MsgspecError as error:
        yield Problem(kind="damaged", what="manifest", name=image.manifest, text=f"{image.manifest}: {error}")
        return
    named = [descriptor.digest for descriptor in manifest.layers or ()]
    kept = [layers[diff_id].blob for diff_id in diff_ids if diff_id in layers]
    if manifest.config.digest != image.id or (len(kept) == len(diff_ids) and named != kept):
        text = f"the manifest {image.manifest} names other contents than the image {image.id} has"
        yield Problem(kind="damaged", what="manifest", name=image.manifest, text=text)


def _content(records: Records, listing: Listing) -> Iterator[Problem]:
    for digest in documents_of(records):
        if hex_of(digest) not in listing.blobs:
            yield Problem(kind="missing", what="blob", name=digest, text=f"the blob {digest} isn't there")
    if EMPTY_LAYER not in listing.layers:
        yield Problem(kind="missing", what="layer", name=EMPTY_LAYER, text="the empty layer isn't there")
    for layer in records.layers:
        if layer.name not in listing.layers:
            text = f"the files of the layer {layer.diff_id} (layers/{layer.name}) aren't there"
            yield Problem(kind="missing", what="layer", name=layer.diff_id, text=text)
        if layer.compression:
            yield from _blob(layer, listing)
        else:
            for name in (layer.name, *((f"{layer.name}.moved",) if layer.moved else ())):
                if name not in listing.frames:
                    text = f"the frame of the layer {layer.diff_id} (frames/{name}) isn't there"
                    yield Problem(kind="missing", what="frame", name=layer.diff_id, text=text)


def _blob(layer: LayerRecord, listing: Listing) -> Iterator[Problem]:
    size = listing.blobs.get(hex_of(layer.blob))
    if size is None:
        text = f"the blob {layer.blob} of the layer {layer.diff_id} isn't there"
        yield Problem(kind="missing", what="blob", name=layer.blob, text=text)
    elif size != layer.blob_bytes:
        text = f"the blob {layer.blob} has {size} bytes and should have {layer.blob_bytes}"
        yield Problem(kind="damaged", what="blob", name=layer.blob, text=text)


def _left(records: Records, listing: Listing, *, running: bool) -> Iterator[Problem]:
    names = {EMPTY_LAYER, *(layer.name for layer in records.layers)}
    wanted = {hex_of(digest) for digest in documents_of(records)}
    wanted |= {hex_of(layer.blob) for layer in records.layers if layer.compression}
    yield from _loose("blob", "blobs/sha256", set(listing.blobs) - wanted)
    yield from _loose("layer", "layers", listing.layers - names)
    yield from _loose("frame", "frames", {n for n in listing.frames if n.removesuffix(".moved") not in names})
    yield from _loose("erofs", "erofs", listing.built - names)
    yield from _loose("scan", "scans", {n for n in listing.scans if n.partition(".")[0] not in names})
    if not running:
        yield from _loose("staging", "loading", listing.staging)
        yield from _loose("trash", "trash", listing.trash)


def _loose(what: str, where: str, names: Collection[str]) -> Iterator[Problem]:
    for name in sorted(names):
        yield Problem(kind="left", what=what, name=name, text=f"{where}/{name} is on no record")
