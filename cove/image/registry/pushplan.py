"""Decide a push: in which form each layer goes, where it may be there already, which manifest names it all.

Pure. An image's manifest goes as it came if every layer is at the registry as it came; else it is made anew, and the
same layers always give the same one. What was pushed is remembered by layer (`PushedRecord`), bounded.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import msgspec

from cove.image.manifests import DOCKER_MANIFEST_TYPE, MANIFEST_TYPE, LayerBlob, build_manifest
from cove.image.records import LayerRecord, PushedBlob, PushedRecord
from cove.image.references import Reference
from cove.model.errors import Invalid

GZIP_LEVELS, ZSTD_LEVELS = range(1, 10), range(1, 20)
DEFAULT_LEVELS = {"gzip": 2, "zstd": 3}  # measured: docs/decisions/0019
FORMS_MAX = 4  # of one layer that are remembered
REPOSITORIES_MAX = 16  # of one form
_REGISTRY_FORMS = ("gzip", "zstd")


@dataclass(frozen=True, slots=True, kw_only=True)
class Wanted:
    """How layers that aren't compressed yet are, and which kind of manifest is made; "" is the default."""

    compression: str = "gzip"
    level: int = DEFAULT_LEVELS["gzip"]
    format: str = ""  # oci or docker
    chosen: bool = False  # by the caller: layers in another form are compressed anew


def parse_wanted(compression: str, level: int | None, format: str) -> Wanted:
    """What a caller asks for. Invalid names the field and what it takes."""
    if compression not in ("", *_REGISTRY_FORMS):
        raise Invalid(f"compression: {compression[:64]!r} isn't one that registries know: use gzip or zstd")
    if format not in ("", "oci", "docker"):
        raise Invalid(f"format: {format[:64]!r} is no kind of manifest: use oci or docker")
    kind = compression or "gzip"
    if kind == "zstd" and format == "docker":
        raise Invalid("compression: Docker's schema 2 knows no zstd: use format oci, or gzip")
    levels = GZIP_LEVELS if kind == "gzip" else ZSTD_LEVELS
    if level is not None and level not in levels:
        raise Invalid(f"compression-level: {level} is out of range: {kind} has {levels[0]} to {levels[-1]}")
    return Wanted(
        compression=kind,
        level=DEFAULT_LEVELS[kind] if level is None else level,
        format=format,
        chosen=bool(compression) or level is not None,
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Form:
    """One way for a layer to be at the registry; `kept` says that its bytes are here as they are."""

    blob: LayerBlob
    kept: bool = False
    level: int = 0
    repositories: tuple[str, ...] = ()  # of the same registry, to mount from


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerPlan:
    """A layer's forms, the best first; with none of them at the registry or kept here it is compressed."""

    layer: LayerRecord
    forms: tuple[Form, ...]


def plan_layer(
    layer: LayerRecord,
    named: LayerBlob | None,
    pushed: PushedRecord | None,
    wanted: Wanted,
    target: Reference,
    also: Iterable[str] = (),
) -> LayerPlan:
    """The forms of a layer. `named`: what the image's manifest calls it, if that goes to registries; `also`: full
    names of repositories that it came from."""
    forms: dict[str, Form] = {}
    remembered = {blob.digest: blob for blob in pushed.blobs} if pushed else {}
    came_from = tuple(also)

    def add(blob: LayerBlob, *, kept: bool = False, level: int = 0) -> None:
        if blob.compression not in _REGISTRY_FORMS or blob.digest in forms:
            return
        if wanted.format == "docker" and blob.compression == "zstd":
            return
        known = remembered.get(blob.digest)
        names = (*(known.repositories if known else ()), *(came_from if not level else ()))
        forms[blob.digest] = Form(blob=blob, kept=kept, level=level, repositories=mountable(names, target))

    if layer.compression:
        blob = LayerBlob(digest=layer.blob, size=layer.blob_bytes, compression=layer.compression)
        if not wanted.chosen or layer.compression == wanted.compression:
            add(blob, kept=True)
    if named is not None and not wanted.chosen:
        add(named)
    for one in remembered.values():
        if one.compression == wanted.compression and one.level in (0, wanted.level):
            blob = LayerBlob(digest=one.digest, size=one.size, compression=one.compression)
            add(blob, level=one.level)
    return LayerPlan(layer=layer, forms=tuple(forms.values()))


def mountable(names: Iterable[str], target: Reference) -> tuple[str, ...]:
    """The paths of repositories in the target's registry, the target's own left out."""
    prefix = f"{target.domain}/"
    paths = (name.removeprefix(prefix) for name in names if name.startswith(prefix))
    return tuple(path for path in dict.fromkeys(paths) if path != target.path)


def choose_manifest(
    came: bytes | None,
    came_layers: Sequence[str],
    came_type: str,
    config: tuple[str, int],
    layers: Sequence[LayerBlob],
    wanted: Wanted,
) -> tuple[bytes, str]:
    """The manifest to push, and its media type. `came`: the image's own one, `came_layers` the blobs it names."""
    format = "docker" if came_type == DOCKER_MANIFEST_TYPE else "oci"
    same = tuple(came_layers) == tuple(layer.digest for layer in layers)
    if came is not None and same and wanted.format in ("", format):
        return came, came_type
    docker = wanted.format == "docker"
    data = build_manifest(config[0], config[1], layers, docker=docker)
    return data, DOCKER_MANIFEST_TYPE if docker else MANIFEST_TYPE


class _Layer(msgspec.Struct):
    digest: str
    size: int = -1
    media_type: str = msgspec.field(name="mediaType", default="")


class _Manifest(msgspec.Struct):
    layers: list[_Layer] | None = None
    media_type: str = msgspec.field(name="mediaType", default="")


def named_layers(manifest: bytes) -> tuple[str, tuple[LayerBlob, ...]]:
    """A manifest's media type and its layers; those of an image that is on record, so it was checked before."""
    try:
        found = msgspec.json.decode(manifest, type=_Manifest)
    except (msgspec.MsgspecError, UnicodeDecodeError):
        return MANIFEST_TYPE, ()
    layers = tuple(
        LayerBlob(digest=layer.digest, size=layer.size, compression=_compression(layer.media_type))
        for layer in found.layers or ()
    )
    return found.media_type or MANIFEST_TYPE, layers


def _compression(media_type: str) -> str:
    ending = media_type.replace(".", "+").rpartition("+")[2]
    return ending if ending in _REGISTRY_FORMS else ""


def remember(
    record: PushedRecord | None, diff_id: str, blob: LayerBlob, level: int, repository: str
) -> PushedRecord:
    """The record after `blob` was found or put in `repository` (its full name)."""
    old = {one.digest: one for one in record.blobs} if record else {}
    before = old.pop(blob.digest, None)
    names = dict.fromkeys((repository, *(before.repositories if before else ())))
    newest = PushedBlob(
        digest=blob.digest,
        size=blob.size,
        compression=blob.compression,
        level=level,
        repositories=tuple(names)[:REPOSITORIES_MAX],
    )
    return PushedRecord(diff_id=diff_id, blobs=(newest, *old.values())[:FORMS_MAX])


def share_out(sizes: Mapping[int, int], workers: int) -> list[list[int]]:
    """Which worker compresses what: the largest first, each to the one with the least."""
    shares: list[tuple[int, list[int]]] = [(0, []) for _ in range(max(1, min(workers, len(sizes))))]
    for number in sorted(sizes, key=lambda n: (-sizes[n], n)):
        place = min(range(len(shares)), key=lambda i: shares[i][0])
        total, share = shares[place]
        shares[place] = (total + sizes[number], [*share, number])
    return [share for _, share in shares if share]
