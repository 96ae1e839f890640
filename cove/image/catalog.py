"""What images there are: their records in memory, from which every read is served without a lock.

    images/config/HEX  ImageRecord        images/layer/HEX  LayerRecord, by diff id
    images/name/REF    the image's id      images/held/WHO/KEY  HeldRecord: layers that no image needs to have
    images/digest/NAME@DIGEST  DigestRecord: what a registry calls an image

Layers are shared by their diff id and counted from the records, so nothing is counted twice after a crash. An image
that is removed by force while stopped containers were made from it is *hidden*: no listing and no name shows
it, its layers stay.
"""

from __future__ import annotations

import asyncio
import logging
import platform
from collections.abc import Sequence
from pathlib import Path

import msgspec

from cove.image import manifests
from cove.image.content import EMPTY_LAYER, Content
from cove.image.manifests import HistoryLine
from cove.image.pruning import count_shared
from cove.image.records import DigestRecord, HeldRecord, ImageRecord, LayerRecord, hex_of
from cove.image.references import Reference, id_prefix, is_image_id, parse_reference
from cove.image.types import Limits
from cove.model.errors import CoveError, HostError, Invalid, NotFound
from cove.model.objects import Image
from cove.store.interface import Delete, Store

_log = logging.getLogger(__name__)
CONFIG, LAYER, NAME, HELD = "images/config/", "images/layer/", "images/name/", "images/held/"
DIGEST = "images/digest/"
PUSHED = "images/pushed/"  # PushedRecord, by diff id: push.py reads and writes them
_ARCHITECTURES = {"x86_64": "amd64", "aarch64": "arm64", "armv7l": "arm", "riscv64": "riscv64"}


class Catalog:
    """See the module. `cove.image.images` changes it."""

    def __init__(self, content: Content, store: Store, limits: Limits) -> None:
        self._content = content
        self._store = store
        self._limits = limits
        self._images: dict[str, Image] = {}
        self._records: dict[str, ImageRecord] = {}
        self._layers: dict[str, LayerRecord] = {}
        self._names: dict[str, str] = {}
        self._held: dict[str, HeldRecord] = {}
        self._digests: dict[str, DigestRecord] = {}
        self.architecture = _ARCHITECTURES.get(platform.machine(), platform.machine())

    @property
    def layers_dir(self) -> Path:
        """Where `layer_paths` are relative to."""
        return self._content.layers

    def list_images(self) -> list[Image]:
        """Every image, newest first; those without a name are dangling."""
        shown = [image for image in self._images.values() if not self._records[image.id].hidden]
        return sorted(shown, key=lambda image: (image.created, image.id), reverse=True)

    def find_image(self, reference: str) -> Image:
        """An image by name, name@digest, id or unique prefix of an id. NotFound, Invalid."""
        if is_image_id(reference):
            return self._by_id(f"sha256:{reference.removeprefix('sha256:')}", reference)
        if reference.startswith("sha256:") and (prefix := id_prefix(reference)):
            return self._by_prefix(prefix, reference)
        parsed = parse_reference(reference).with_default_tag()
        if parsed.digest:
            return self._by_digest(parsed)
        found = self._names.get(parsed.familiar)
        if found is not None:
            return self._images[found]
        if prefix := id_prefix(reference):
            return self._by_prefix(prefix, parsed.familiar)
        raise NotFound(f"No such image: {parsed.familiar}")

    def image_by_id(self, image_id: str) -> Image:
        """An image by its whole id, hidden ones too: what a container was made from. NotFound."""
        image = self._images.get(image_id)
        if image is None:
            raise NotFound(f"No such image: {image_id}")
        return image

    def layer_paths(self, image: Image) -> list[str]:
        """The image's layers, lowest first, relative to `layers_dir`; an empty one for an image without any."""
        return [self._layers[diff_id].name for diff_id in image.diff_ids] or [EMPTY_LAYER]

    def layer_sizes(self, image: Image) -> list[int]:
        """Bytes in the files of each layer, lowest first."""
        return [self._layers[diff_id].size_bytes for diff_id in image.diff_ids]

    @property
    def limits(self) -> Limits:
        return self._limits

    def has_layer(self, diff_id: str) -> bool:
        """Whether a layer's files are here."""
        return diff_id in self._layers

    def named(self, reference: Reference) -> str:
        """The id of the image that has this name, or this digest in this repository; "" for none."""
        if reference.digest:
            known = self._digests.get(f"{reference.familiar_name}@{reference.digest}")
            return known.image if known else ""
        return self._names.get(reference.familiar, "")

    def tags_of(self, reference: Reference) -> list[Reference]:
        """Every name that images here have in a repository."""
        found = (parse_reference(name) for name in self._names)
        return sorted((r for r in found if r.name == reference.name), key=lambda r: r.tag)

    def layer_record(self, diff_id: str) -> LayerRecord:
        """What is on record of a layer. NotFound."""
        record = self._layers.get(diff_id)
        if record is None:
            raise NotFound(f"No such layer: {diff_id}")
        return record

    def images_with(self, diff_id: str) -> list[Image]:
        """The images that have a layer."""
        return [image for image in self._images.values() if diff_id in image.diff_ids]

    def manifest_for(self, image: Image, reference: Reference) -> bytes:
        """The image's manifest as a registry knows it, this repository's first; else Cove's own. HostError."""
        prefix = f"{reference.familiar_name}@"
        found = sorted(
            (not name.startswith(prefix), name, known.documents[-1])
            for name, known in self._digests.items()
            if known.image == image.id and known.documents
        )
        return self._content.read_blob(found[0][2] if found else self._records[image.id].manifest)

    async def find_config(self, digest: str) -> bytes | None:
        """The configuration of an image that is here."""
        image = self._images.get(digest)
        return None if image is None else await asyncio.to_thread(self._content.read_blob, digest)

    def raw_config(self, image: Image) -> bytes:
        """The configuration blob. HostError when the disk lost it."""
        return self._content.read_blob(image.id)

    def manifest_digest(self, image: Image) -> str:
        """The digest of the image's manifest, as it came or as Cove wrote it."""
        return self._records[image.id].manifest

    def image_digests(self, image: Image) -> tuple[str, ...]:
        """The digests that stand for an image: its manifest's, and those that it was pulled or pushed by."""
        pulled = [
            digest
            for name, known in self._digests.items()
            if known.image == image.id
            for digest in (name.partition("@")[2], known.documents[-1])
        ]
        return tuple(dict.fromkeys((self._records[image.id].manifest, *pulled)))

    def all_digests(self) -> set[str]:
        """`image_digests` of every image, hidden ones too."""
        return {digest for image in self._images.values() for digest in self.image_digests(image)}

    def history(self, image: Image) -> list[HistoryLine]:
        """How the image came to be, newest first."""
        return manifests.history_of(image, self.layer_sizes(image))

    def size_on_disk(self) -> int:
        """Bytes that all layers take, shared ones once: files, and blobs that are kept beside them."""
        return sum(layer.disk_bytes for layer in self._layers.values())

    def shared_sizes(self) -> dict[str, int]:
        """By image: the bytes of its layers that another image has, too."""
        sizes = {diff_id: layer.size_bytes for diff_id, layer in self._layers.items()}
        return count_shared(self._images.values(), sizes)

    def layer_uses(self) -> list[tuple[str, int, list[Image]]]:
        """Every layer's diff id, the bytes it takes on the disk, and the images that have it (hidden ones, too)."""
        users: dict[str, list[Image]] = {diff_id: [] for diff_id in self._layers}
        for image in self._images.values():
            for diff_id in dict.fromkeys(image.diff_ids):
                users[diff_id].append(image)
        return [(diff_id, self._layers[diff_id].disk_bytes, found) for diff_id, found in users.items()]

    def _by_id(self, image_id: str, shown: str) -> Image:
        image = self._images.get(image_id)
        if image is None or self._records[image_id].hidden:
            raise NotFound(f"No such image: {shown}")
        return image

    def _by_prefix(self, prefix: str, shown: str) -> Image:
        found = [image for image in self.list_images() if image.id.startswith(f"sha256:{prefix}")]
        if len(found) > 1:
            raise Invalid(f"the id prefix {prefix} is ambiguous: {len(found)} images start with it")
        if not found:
            raise NotFound(f"No such image: {shown}")
        return found[0]

    def _by_digest(self, reference: Reference) -> Image:
        for name, record in self._digests.items():
            if name.partition("@")[0] == reference.familiar_name and reference.digest in (
                name.partition("@")[2],
                *record.documents,
            ):
                return self._by_id(record.image, reference.familiar)
        for image in self.list_images():
            named = any(parse_reference(name).name == reference.name for name in image.names)
            if named and reference.digest in (self._records[image.id].manifest, image.id):
                return image
        raise NotFound(f"No such image: {reference.familiar}")

    def saved_images(self, references: Sequence[str]) -> list[Image]:
        """The images that `save` writes for these references. NotFound, Invalid."""
        found = {image_id for reference in references for image_id, _ in self._saved_names(reference)}
        return [self._images[image_id] for image_id in sorted(found)]

    def _saved_names(self, reference: str) -> list[tuple[str, str]]:
        """The images a reference stands for, each with the name it is saved under, or ""."""
        if is_image_id(reference) or reference.startswith("sha256:"):
            return [(self.find_image(reference).id, "")]
        parsed = parse_reference(reference)
        if not parsed.tag and not parsed.digest:  # a name alone means every tag of the repository
            found = [n for n in self._names if parse_reference(n).name == parsed.name]
            if found:
                return [(self._names[name], name) for name in sorted(found)]
        image = self.find_image(reference)
        name = parsed.with_default_tag().familiar
        return [(image.id, name if name in image.names else "")]

    def _known_digests(self) -> dict[str, str]:
        known = {layer.blob: layer.diff_id for layer in self._layers.values()}
        return known | {
            layer.diff_id: layer.diff_id for layer in self._layers.values() if not layer.compression
        }

    async def _read_records(self) -> None:
        for item in await self._store.range(LAYER):
            layer = msgspec.json.decode(item.value, type=LayerRecord)
            if self._content.has_layer(layer.name):
                self._layers[layer.diff_id] = layer
        for item in await self._store.range(CONFIG):
            record = msgspec.json.decode(item.value, type=ImageRecord)
            try:
                image = manifests.parse_config(self._content.read_blob(record.id), record.id, self._limits)
                if lost := [diff_id for diff_id in image.diff_ids if diff_id not in self._layers]:
                    raise HostError(f"the image store lacks the layer {lost[0]}")
            except CoveError as error:
                _log.error("image %s can't be used, load it again: %s", record.id, error)
                continue
            self._records[record.id] = record
            self._images[record.id] = image
        for item in await self._store.range(HELD):
            held = msgspec.json.decode(item.value, type=HeldRecord)
            if all(diff_id in self._layers for diff_id in held.layers):
                self._held[item.key.removeprefix(HELD)] = held
            else:
                await self._store.txn([], [Delete(item.key)])
        wanted = self._wanted_layers()
        for diff_id in [diff_id for diff_id in self._layers if diff_id not in wanted]:
            del self._layers[diff_id]
            await self._store.txn([], [Delete(LAYER + hex_of(diff_id))])
        for item in await self._store.range(PUSHED):
            if f"sha256:{item.key.removeprefix(PUSHED)}" not in self._layers:
                await self._store.txn([], [Delete(item.key)])
        for item in await self._store.range(NAME):
            image_id = item.value.decode()
            if image_id in self._images:
                self._names[item.key.removeprefix(NAME)] = image_id
        for item in await self._store.range(DIGEST):
            known = msgspec.json.decode(item.value, type=DigestRecord)
            if known.image in self._images:
                self._digests[item.key.removeprefix(DIGEST)] = known
        for image_id in self._images:
            self._refresh(image_id)

    def _wanted_layers(self) -> set[str]:
        """The layers that an image has, or that are held."""
        wanted = {diff_id for image in self._images.values() for diff_id in image.diff_ids}
        return wanted.union(*(held.layers for held in self._held.values()))

    def _wanted_blobs(self) -> set[str]:
        wanted = {digest for record in self._records.values() for digest in (record.id, record.manifest)}
        wanted |= {digest for record in self._digests.values() for digest in record.documents}
        return wanted | {layer.blob for layer in self._layers.values() if layer.compression}

    def _set_names(self, names: dict[str, str]) -> None:
        affected = set(names.values())
        for name, image_id in names.items():
            if (old := self._names.get(name)) is not None:
                affected.add(old)
            self._names[name] = image_id
        for image_id in affected:
            self._refresh(image_id)

    def _refresh(self, image_id: str) -> None:
        """Write into an Image what isn't in its configuration."""
        image, record = self._images.get(image_id), self._records.get(image_id)
        if image is None or record is None:
            return
        self._images[image_id] = msgspec.structs.replace(
            image,
            names=tuple(sorted(name for name, target in self._names.items() if target == image_id)),
            repo_digests=tuple(
                sorted(name for name, known in self._digests.items() if known.image == image_id)
            ),
            size_bytes=sum(self.layer_sizes(image)),
            parent=record.parent,
            last_tagged_ns=record.last_tagged_ns,
        )
