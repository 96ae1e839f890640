"""What the members of an image archive mean: manifests, indexes, configurations, and the way back.

Pure. Foreign documents are read leniently where Docker is (unknown fields, nulls) and strictly where it
matters: every digest that is named must be the content's, sizes and counts must agree.

Sources: OCI image-spec 1.1 (image-layout.md, image-index.md, manifest.md, config.md); moby's
image/tarexport for manifest.json and repositories.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import msgspec

from cove.image.jobs import Member
from cove.image.references import Reference, parse_reference
from cove.image.settings import check_settings
from cove.image.types import Commit, Limits
from cove.model.container import HealthCheck, Model
from cove.model.errors import Invalid
from cove.model.objects import HistoryEntry, Image, ImageConfig

MANIFEST_TYPE = "application/vnd.oci.image.manifest.v1+json"
CONFIG_TYPE = "application/vnd.oci.image.config.v1+json"
INDEX_TYPE = "application/vnd.oci.image.index.v1+json"
_LAYER_TYPE = "application/vnd.oci.image.layer.v1.tar"
DOCKER_MANIFEST_TYPE = "application/vnd.docker.distribution.manifest.v2+json"
_DOCKER_CONFIG_TYPE = "application/vnd.docker.container.image.v1+json"
_DOCKER_LAYER_TYPE = "application/vnd.docker.image.rootfs.diff.tar"
_INDEX_TYPES = (INDEX_TYPE, "application/vnd.docker.distribution.manifest.list.v2+json")
_NAME = "io.containerd.image.name"
_REF_NAME = "org.opencontainers.image.ref.name"
_REFERENCE_TYPE = "vnd.docker.reference.type"
EMPTY_DIFF_ID = "sha256:" + hashlib.sha256(bytes(1024)).hexdigest()  # of an archive without members
_DEPTH_MAX = 4
_MANIFESTS_MAX = 1000
_LINKS_MAX = 8
_T = TypeVar("_T")


class _Foreign(msgspec.Struct):
    """Base of documents that others write: unknown fields are passed over."""


class _DockerImage(_Foreign):
    config: str = msgspec.field(name="Config")
    tags: list[str] | None = msgspec.field(name="RepoTags", default=None)
    layers: list[str] | None = msgspec.field(name="Layers", default=None)


class _Platform(_Foreign):
    architecture: str = ""
    os: str = ""
    variant: str = ""


class Descriptor(_Foreign, omit_defaults=True):
    digest: str
    size: int = -1
    media_type: str = msgspec.field(name="mediaType", default="")
    annotations: dict[str, str] | None = None
    platform: _Platform | None = None


class _Index(_Foreign):
    manifests: list[Descriptor] | None = None


class _Manifest(_Foreign):
    config: Descriptor
    layers: list[Descriptor] | None = None


class _Health(_Foreign):
    test: list[str] | None = msgspec.field(name="Test", default=None)
    interval: int = msgspec.field(name="Interval", default=0)
    timeout: int = msgspec.field(name="Timeout", default=0)
    start_period: int = msgspec.field(name="StartPeriod", default=0)
    start_interval: int = msgspec.field(name="StartInterval", default=0)
    retries: int = msgspec.field(name="Retries", default=0)


class _Process(_Foreign):
    user: str | None = msgspec.field(name="User", default=None)
    ports: dict[str, object] | None = msgspec.field(name="ExposedPorts", default=None)
    env: list[str] | None = msgspec.field(name="Env", default=None)
    entrypoint: list[str] | None = msgspec.field(name="Entrypoint", default=None)
    command: list[str] | None = msgspec.field(name="Cmd", default=None)
    volumes: dict[str, object] | None = msgspec.field(name="Volumes", default=None)
    working_dir: str | None = msgspec.field(name="WorkingDir", default=None)
    labels: dict[str, str] | None = msgspec.field(name="Labels", default=None)
    stop_signal: str | None = msgspec.field(name="StopSignal", default=None)
    health: _Health | None = msgspec.field(name="Healthcheck", default=None)
    shell: list[str] | None = msgspec.field(name="Shell", default=None)
    on_build: list[str] | None = msgspec.field(name="OnBuild", default=None)


class _RootFs(_Foreign):
    diff_ids: list[str] | None = None


class _History(_Foreign):
    created: str | None = None
    created_by: str | None = None
    author: str | None = None
    comment: str | None = None
    empty_layer: bool | None = None


class _Config(_Foreign):
    rootfs: _RootFs
    architecture: str = ""
    variant: str | None = None
    os: str = ""
    author: str | None = None
    created: str | None = None
    comment: str | None = None
    config: _Process | None = None
    history: list[_History] | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class FoundImage:
    """An image of an archive, checked: its documents, and the members its layers are in."""

    image: Image
    config: bytes
    manifest: bytes | None  # as it came, if it came
    manifest_layers: tuple[str, ...]  # the blobs' digests which that manifest names
    layers: tuple[Member, ...]
    names: tuple[Reference, ...]
    parent: str = ""  # the id of the image it was made from here


# --- reading ------------------------------------------------------------------------------


class ArchiveIndex:
    """The members of an archive by name, links followed."""

    def __init__(self, members: Sequence[Member], known: Mapping[str, str], limits: Limits) -> None:
        """`known`: digests of blobs and layers that the store has already, and their diff ids."""
        self._members = {member.name: member for member in members}
        self._known = known
        self._limits = limits
        for member in members:
            wanted = member.name.removeprefix("blobs/sha256/")
            if wanted != member.name and not member.link and member.digest != f"sha256:{wanted}":
                raise Invalid(
                    f"{member.name} has another content than its name says: its digest is {member.digest}"
                )

    def images(self, architecture: str) -> list[FoundImage]:
        """Every image of the archive that this machine can use. Invalid when there is none."""
        if "manifest.json" in self._members:
            found = list(self._docker_images(architecture))
        elif "index.json" in self._members:
            found = list(self._oci_images(architecture))
        else:
            raise Invalid("the archive has neither manifest.json (docker save) nor index.json (OCI layout)")
        if not found:
            raise Invalid(f"the archive has no image for linux/{architecture}")
        return found

    def _docker_images(self, architecture: str) -> Iterator[FoundImage]:
        manifests = {
            manifest.config.digest: (data, manifest)
            for data, manifest, _ in (
                self._oci_manifests(architecture) if "index.json" in self._members else ()
            )
        }
        for item in _decode(self._data("manifest.json"), list[_DockerImage], "manifest.json"):
            config = self._member(item.config)
            stem = item.config.rpartition("/")[2].removesuffix(".json")
            if len(stem) == 64 and config.digest != f"sha256:{stem}":
                raise Invalid(
                    f"{item.config} has another content than its name says: its digest is {config.digest}"
                )
            layers = tuple(self._member(name) for name in item.layers or ())
            data, manifest = manifests.get(config.digest, (None, None))
            named = tuple(d.digest for d in manifest.layers or ()) if manifest else ()
            yield self._found(
                config, data, named, layers, tuple(parse_reference(tag) for tag in item.tags or ())
            )

    def _oci_images(self, architecture: str) -> Iterator[FoundImage]:
        for data, manifest, names in self._oci_manifests(architecture):
            config = self._blob(manifest.config)
            descriptors = manifest.layers or []
            yield self._found(
                config,
                data,
                tuple(d.digest for d in descriptors),
                tuple(self._blob(d) for d in descriptors),
                names,
            )

    def _oci_manifests(self, architecture: str) -> Iterator[tuple[bytes, _Manifest, tuple[Reference, ...]]]:
        found: dict[str, list[Reference]] = {}
        index = _decode(self._data("index.json"), _Index, "index.json")
        for descriptor in self._choose(index, architecture, 0):
            names = found.setdefault(descriptor.digest, [])
            if (name := _name_of(descriptor)) is not None and name not in names:
                names.append(name)
        for digest, names in found.items():
            data = self._data(_blob_name(digest))
            yield data, _decode(data, _Manifest, f"manifest {digest}"), tuple(names)

    def _choose(self, index: _Index, architecture: str, depth: int) -> Iterator[Descriptor]:
        manifests = index.manifests or []
        if depth > _DEPTH_MAX or len(manifests) > _MANIFESTS_MAX:
            raise Invalid(
                f"the archive's indexes nest deeper than {_DEPTH_MAX} levels "
                f"or name more than {_MANIFESTS_MAX} manifests"
            )
        for descriptor in manifests:
            platform = descriptor.platform
            if _REFERENCE_TYPE in (descriptor.annotations or {}):
                continue  # an attestation about another manifest
            if platform and (
                platform.os not in ("", "linux") or platform.architecture not in ("", architecture)
            ):
                continue
            if descriptor.media_type not in _INDEX_TYPES:
                yield descriptor
                continue
            nested = _decode(self._blob_data(descriptor), _Index, f"index {descriptor.digest}")
            for inner in self._choose(nested, architecture, depth + 1):
                merged = {**(inner.annotations or {}), **(descriptor.annotations or {})}
                yield msgspec.structs.replace(inner, annotations=merged)

    def _found(
        self,
        config: Member,
        manifest: bytes | None,
        named: tuple[str, ...],
        layers: tuple[Member, ...],
        names: tuple[Reference, ...],
    ) -> FoundImage:
        data = self._content(config)
        image = parse_config(data, config.digest, self._limits)
        if len(layers) != len(image.diff_ids):
            raise Invalid(
                f"image {config.digest} has {len(image.diff_ids)} layers by its configuration "
                f"and {len(layers)} by its manifest"
            )
        for number, (layer, wanted) in enumerate(zip(layers, image.diff_ids, strict=True)):
            actual = self._known.get(layer.digest, "") if layer.known else layer.diff_id
            if not actual:
                raise Invalid(f"layer {layer.name} isn't a tar archive, or compressed in an unknown way")
            if actual != wanted:
                raise Invalid(f"invalid diffID for layer {number}: expected {wanted!r}, got {actual!r}")
        for name in names:
            if name.digest:
                raise Invalid(f"an image can't be loaded under the digest reference {name.familiar}")
        return FoundImage(
            image=image,
            config=data,
            manifest=manifest,
            manifest_layers=named,
            layers=layers,
            names=tuple(name.with_default_tag() for name in names),
        )

    def _member(self, name: str) -> Member:
        name = name.removeprefix("./")
        for _ in range(_LINKS_MAX):
            member = self._members.get(name)
            if member is None:
                raise Invalid(f"the archive names {name} and doesn't have it: it is cut off or damaged")
            if not member.link:
                return member
            name = member.link
        raise Invalid(f"{name} is a chain of more than {_LINKS_MAX} links")

    def _blob(self, descriptor: Descriptor) -> Member:
        name = _blob_name(descriptor.digest)
        known = self._known.get(descriptor.digest)
        if name not in self._members and known is not None:
            return Member(name=name, digest=descriptor.digest, known=True)
        member = self._member(name)
        if descriptor.size >= 0 and not member.known and member.size != descriptor.size:
            raise Invalid(f"{name} has {member.size} bytes, not the {descriptor.size} its manifest says")
        return member

    def _blob_data(self, descriptor: Descriptor) -> bytes:
        return self._content(self._blob(descriptor))

    def _data(self, name: str) -> bytes:
        return self._content(self._member(name))

    def _content(self, member: Member) -> bytes:
        if member.data is not None:
            return member.data
        if member.size > self._limits.manifest_bytes:
            raise Invalid(
                f"{member.name} has {member.size} bytes; the limit is {self._limits.manifest_bytes}"
            )
        raise Invalid(f"{member.name} is a layer and not a document")


def parse_config(data: bytes, digest: str, limits: Limits) -> Image:
    """An image's configuration as an Image (its names and size unknown yet). Invalid."""
    raw = _decode(data, _Config, f"configuration {digest}")
    process = raw.config or _Process()
    diff_ids = tuple(raw.rootfs.diff_ids or ())
    if len(diff_ids) > limits.layers:
        raise Invalid(f"image {digest} has {len(diff_ids)} layers; the limit is {limits.layers}")
    if raw.os not in ("", "linux"):
        raise Invalid(f"cannot load {raw.os} image on linux")
    health = process.health
    config = ImageConfig(
        entrypoint=tuple(process.entrypoint or ()),
        command=tuple(process.command or ()),
        env=tuple(process.env or ()),
        working_dir=process.working_dir or "",
        user=process.user or "",
        labels=process.labels or {},
        exposed_ports=tuple(sorted(process.ports or ())),
        volumes=tuple(sorted(process.volumes or ())),
        stop_signal=process.stop_signal or "",
        healthcheck=HealthCheck(
            test=tuple(health.test or ()),
            interval_ns=health.interval,
            timeout_ns=health.timeout,
            start_period_ns=health.start_period,
            start_interval_ns=health.start_interval,
            retries=health.retries,
        )
        if health
        else None,
        shell=tuple(process.shell or ()),
        on_build=tuple(process.on_build or ()),
    )
    check_settings(config, digest)
    return Image(
        id=digest,
        created=raw.created or "",
        architecture=raw.architecture,
        variant=raw.variant or "",
        author=raw.author or "",
        comment=raw.comment or "",
        diff_ids=diff_ids,
        config=config,
        history=tuple(
            HistoryEntry(
                created=entry.created or "",
                created_by=entry.created_by or "",
                author=entry.author or "",
                comment=entry.comment or "",
                empty_layer=bool(entry.empty_layer),
            )
            for entry in raw.history or ()
        ),
    )


def _decode(data: bytes, kind: type[_T], what: str) -> _T:
    try:
        decoded: _T = msgspec.json.decode(data, type=kind)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise Invalid(f"the archive's {what} is malformed: {error}") from error
    return decoded


def _blob_name(digest: str) -> str:
    algorithm, _, value = digest.partition(":")
    if algorithm != "sha256" or len(value) != 64 or not value.isalnum():
        raise Invalid(f"the archive names a blob by the unsupported digest {digest[:80]!r}")
    return f"blobs/sha256/{value}"


def _name_of(descriptor: Descriptor) -> Reference | None:
    annotations = descriptor.annotations or {}
    if name := annotations.get(_NAME):
        return parse_reference(name)
    name = annotations.get(_REF_NAME, "")
    return parse_reference(name) if ":" in name or "/" in name else None  # often it's a tag alone


# --- writing ------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerBlob:
    """A layer as it is saved: the digest and size of its blob, and whether that is compressed."""

    digest: str
    size: int
    compression: str = ""


def build_manifest(
    config_digest: str, config_size: int, layers: Sequence[LayerBlob], *, docker: bool = False
) -> bytes:
    """An OCI manifest, or one of Docker's schema 2; the same input always gives the same bytes."""
    layer_type = _DOCKER_LAYER_TYPE if docker else _LAYER_TYPE
    separator = "." if docker else "+"
    return msgspec.json.encode(
        {
            "schemaVersion": 2,
            "mediaType": DOCKER_MANIFEST_TYPE if docker else MANIFEST_TYPE,
            "config": {
                "mediaType": _DOCKER_CONFIG_TYPE if docker else CONFIG_TYPE,
                "digest": config_digest,
                "size": config_size,
            },
            "layers": [
                {
                    "mediaType": layer_type
                    + (f"{separator}{layer.compression}" if layer.compression else ""),
                    "digest": layer.digest,
                    "size": layer.size,
                }
                for layer in layers
            ],
        }
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class SavedImage:
    """One image of an archive to be written."""

    image_id: str
    manifest_digest: str
    manifest_size: int
    layers: tuple[str, ...]  # digests of blobs
    names: tuple[Reference, ...]


def build_documents(images: Sequence[SavedImage]) -> list[tuple[str, bytes]]:
    """The documents beside the blobs, by name: an archive of docker save and an OCI layout at once."""
    manifests: list[dict[str, object]] = []
    docker: list[dict[str, object]] = []
    repositories: dict[str, dict[str, str]] = {}
    for saved in images:
        base = {"mediaType": MANIFEST_TYPE, "digest": saved.manifest_digest, "size": saved.manifest_size}
        for name in saved.names:
            annotations = {_NAME: f"{name.name}:{name.tag}", _REF_NAME: name.tag}
            manifests.append({**base, "annotations": annotations})
            top = saved.layers[-1] if saved.layers else saved.image_id
            repositories.setdefault(name.familiar_name, {})[name.tag] = top.removeprefix("sha256:")
        if not saved.names:
            manifests.append({**base})
        docker.append(
            {
                "Config": _blob_name(saved.image_id),
                "RepoTags": [name.familiar for name in saved.names] or None,
                "Layers": [_blob_name(digest) for digest in saved.layers],
            }
        )
    documents = [
        ("index.json", {"schemaVersion": 2, "mediaType": INDEX_TYPE, "manifests": manifests}),
        ("manifest.json", docker),
        ("oci-layout", {"imageLayoutVersion": "1.0.0"}),
        ("repositories", repositories),
    ]
    return [(name, msgspec.json.encode(document)) for name, document in documents]


# --- facts about an image -----------------------------------------------------------------


def chain_ids(diff_ids: Sequence[str]) -> list[str]:
    """The chain id of each layer, lowest first (image-spec config.md, "Layer ChainID")."""
    chains: list[str] = []
    for diff_id in diff_ids:
        text = f"{chains[-1]} {diff_id}" if chains else diff_id
        chains.append(f"sha256:{hashlib.sha256(text.encode()).hexdigest()}" if chains else diff_id)
    return chains


class HistoryLine(Model, frozen=True, kw_only=True):
    """A line of `docker history`, newest first; only the newest has an id."""

    id: str = "<missing>"
    created: str = ""
    created_by: str = ""
    comment: str = ""
    size_bytes: int = 0
    names: tuple[str, ...] = ()


def history_of(image: Image, layer_sizes: Sequence[int]) -> list[HistoryLine]:
    """How an image came to be; layers without an entry of their own get an empty one."""
    sizes = list(layer_sizes)
    lines: list[HistoryLine] = []
    for entry in image.history:
        size = 0 if entry.empty_layer or not sizes else sizes.pop(0)
        lines.append(
            HistoryLine(
                created=entry.created, created_by=entry.created_by, comment=entry.comment, size_bytes=size
            )
        )
    lines += [HistoryLine(created=image.created, size_bytes=size) for size in sizes]
    if not lines:
        lines = [HistoryLine(created=image.created)]
    lines[-1] = msgspec.structs.replace(lines[-1], id=image.id, names=image.names)
    return lines[::-1]


def committed_config(base: bytes, layer: Sequence[str], commit: Commit, created: str) -> dict[str, Any]:
    """The configuration of an image made from a container: the base's, with one more line of history, and a layer
    unless `layer` is empty. `created` is RFC 3339."""
    document: dict[str, Any] = msgspec.json.decode(base, type=dict[str, Any])
    line = {
        "created": created,
        "created_by": commit.created_by,
        "author": commit.author,
        "comment": commit.comment,
        "empty_layer": not layer,
    }
    document.update(
        created=created,
        author=commit.author,
        comment=commit.comment,
        config=commit.config,
        history=[*(document.get("history") or ()), {key: value for key, value in line.items() if value}],
    )
    document.pop("container", None)
    document.pop("container_config", None)
    document["rootfs"]["diff_ids"] = [*(document["rootfs"].get("diff_ids") or ()), *layer]
    return document
