"""Images: list, inspect, tag, delete, and archives in and out."""

from __future__ import annotations

import contextlib
import fnmatch
import re
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import msgspec

from cove.api.docker.context import Api
from cove.api.docker.filters import boolean, matches_labels, parse_filters, prune_before
from cove.api.docker.pruning import IMAGE_PRUNE_KEYS, select_images
from cove.api.docker.pulling import pull
from cove.api.docker.text import NEVER, parse_rfc3339_seconds, rfc3339
from cove.api.http import Request, Response, Stream, encode_json, json_response
from cove.api.router import Route
from cove.engine.health import healthcheck_json
from cove.image.references import parse_reference
from cove.image.types import LayerProgress, LoadEvent, Removed, Use
from cove.model.errors import CoveError, Invalid, NotImplementedHere
from cove.model.objects import Image, ImageConfig
from cove.signing.payload import Claim, parse_payload
from cove.signing.types import Signature

Json = dict[str, Any]

LIST_KEYS = frozenset(("before", "dangling", "label", "reference", "since", "until"))


def uses(api: Api) -> Callable[[str], Sequence[Use]]:
    """The containers of an image, as the images' room wants to know them."""
    return api.engine.image_users


def count_uses(api: Api) -> dict[str, int]:
    counts: dict[str, int] = {}
    for view in api.engine.list():
        used = {view.container.image_id, *(point.image_id for point in view.container.mounts)}
        for image_id in used:
            counts[image_id] = counts.get(image_id, 0) + 1
    return counts


# --- reading ------------------------------------------------------------------------------


async def list_images(api: Api, request: Request) -> Response:
    query = request.query
    filters = parse_filters(query.get("filters"), LIST_KEYS)
    query.flag("all"), query.flag("digests"), query.flag("manifests")
    shared = api.engine.images.shared_sizes() if query.flag("shared-size") else {}
    if request.version < 1025 and query.get("filter"):
        filters.setdefault("reference", []).append(query.get("filter"))
    accepts = _image_filter(api, filters)
    counts = count_uses(api) if request.version >= 1051 else None
    found = [image for image in api.engine.images.list_images() if accepts(image)]
    found.sort(key=lambda image: parse_rfc3339_seconds(image.created), reverse=True)
    if patterns := filters.get("reference"):
        found = [_with_names(image, patterns) for image in found]
    answer = [summary_json(image, request.version, counts) for image in found]
    for entry in answer:
        entry["SharedSize"] = shared.get(entry["Id"], -1)
    return json_response(answer)


def summary_json(image: Image, version: int, counts: Mapping[str, int] | None) -> Json:
    """One entry of an image list; `counts` None: how many containers use it isn't told."""
    names: list[str] = list(image.names)
    digests: list[str] = list(image.repo_digests)
    if version < 1043:
        names = names or ["<none>:<none>"]
        digests = digests or ["<none>@<none>"]
    found: Json = {
        "Containers": -1 if counts is None else counts.get(image.id, 0),
        "Created": parse_rfc3339_seconds(image.created),
        "Id": image.id,
        "Labels": image.config.labels or None,
        "ParentId": image.parent,
        "RepoDigests": digests,
        "RepoTags": names,
        "SharedSize": -1,
        "Size": image.size_bytes,
    }
    if version < 1044:
        found["VirtualSize"] = image.size_bytes
    return found


def _image_filter(api: Api, filters: Mapping[str, Sequence[str]]) -> Callable[[Image], bool]:
    images = api.engine.images
    dangling = boolean(filters, "dangling", False) if "dangling" in filters else None
    labels = filters.get("label", ())
    patterns = filters.get("reference", ())
    before = min((_created(images.find_image(v)) for v in filters.get("before", ())), default=None)
    since = max((_created(images.find_image(v)) for v in filters.get("since", ())), default=None)
    until_ns = prune_before(filters, time.time_ns())

    def accepts(image: Image) -> bool:
        created = _created(image)
        return (
            (dangling is None or dangling == (not image.names))
            and matches_labels(image.config.labels, labels)
            and (not patterns or bool(_with_names(image, patterns).names))
            and (before is None or created < before)
            and (since is None or created > since)
            and created * 1_000_000_000 <= until_ns
        )

    return accepts


def _with_names(image: Image, patterns: Sequence[str]) -> Image:
    """The image with those of its names that a pattern matches."""
    names = tuple(name for name in image.names if any(matches_reference(name, p) for p in patterns))
    return msgspec.structs.replace(image, names=names)


def _created(image: Image) -> int:
    return parse_rfc3339_seconds(image.created)


def matches_reference(name: str, pattern: str) -> bool:
    """A familiar name against `debian`, `debian:*`, `*/app:1.?`; a star stops at a slash, as in Go's path.Match."""
    repository = name.rpartition(":")[0] if ":" in name.rpartition("/")[2] else name
    regex = fnmatch.translate(pattern).replace(".*", "[^/]*")
    try:
        compiled = re.compile(regex)
    except re.error:
        raise Invalid(f"invalid filter 'reference={pattern}', e.g. debian:*") from None
    return compiled.match(name) is not None or compiled.match(repository) is not None


async def inspect(api: Api, request: Request) -> Response:
    image = api.engine.images.find_image(request.name)
    found: Json = {
        "Id": image.id,
        "RepoTags": list(image.names),
        "RepoDigests": list(image.repo_digests),
        "Parent": image.parent,
        "Comment": image.comment,
        "Created": image.created or NEVER,
        "DockerVersion": "",
        "Author": image.author,
        "Config": config_json(image.config, request.version),
        "Architecture": image.architecture,
        "Os": image.os,
        "Size": image.size_bytes,
        "GraphDriver": {"Data": {}, "Name": "overlay2"},
        "RootFS": {"Type": "layers", "Layers": list(image.diff_ids)},
        "Metadata": {"LastTagTime": rfc3339(image.last_tagged_ns)},
    }
    if image.variant:
        found["Variant"] = image.variant
    if request.version < 1044:
        found["VirtualSize"] = image.size_bytes
    if request.version < 1045:  # of the container that a builder made an image from
        found.update(Container="", ContainerConfig=config_json(ImageConfig(), request.version))
    else:  # docker-compose 1.29 speaks the newest API that it finds, and reads its Volumes all the same (KeyError)
        found["ContainerConfig"] = {"Volumes": {path: {} for path in image.config.volumes} or None}
    images = api.engine.images
    if signed := await images.signatures.list(images.image_digests(image)):
        found["Cove"] = {"Signatures": [claim_json(*one) for one in signed]}
    if request.version >= 1052:
        _omit_empty(found, ("Parent", "Comment", "DockerVersion", "Author"))
    return json_response(found)


def claim_json(digest: str, signature: Signature) -> Json:
    """What a signature claims; nobody has checked it."""
    claim = Claim(digests=(digest,))
    with contextlib.suppress(Invalid):
        claim = parse_payload(signature.content)
    return {
        "Digest": digest,
        "MediaType": signature.media_type,
        "Reference": claim.reference,
        "Annotations": {key: str(value) for key, value in claim.optional.items()},
    }


def _omit_empty(found: Json, names: Sequence[str]) -> None:
    for name in names:
        if not found[name]:
            del found[name]


_LEGACY_CONFIG: Json = {
    "Hostname": "",
    "Domainname": "",
    "AttachStdin": False,
    "AttachStdout": False,
    "AttachStderr": False,
    "Tty": False,
    "OpenStdin": False,
    "StdinOnce": False,
    "Image": "",
}


def config_json(config: ImageConfig, version: int) -> Json:
    found: Json = dict(_LEGACY_CONFIG) if version < 1050 else {}
    found.update(
        User=config.user,
        Env=list(config.env) or None,
        Cmd=list(config.command) or None,
        Volumes={path: {} for path in config.volumes} or None,
        WorkingDir=config.working_dir,
        Entrypoint=list(config.entrypoint) or None,
        OnBuild=list(config.on_build) or None,
        Labels=config.labels or None,
    )
    if version >= 1052:
        _omit_empty(found, tuple(found))
    if config.exposed_ports:
        found["ExposedPorts"] = {port: {} for port in config.exposed_ports}
    if config.stop_signal:
        found["StopSignal"] = config.stop_signal
    if config.shell:
        found["Shell"] = list(config.shell)
    if config.healthcheck is not None:
        found["Healthcheck"] = healthcheck_json(config.healthcheck)
    return found


async def history(api: Api, request: Request) -> Response:
    images = api.engine.images
    return json_response(
        [
            {
                "Id": line.id,
                "Created": parse_rfc3339_seconds(line.created),
                "CreatedBy": line.created_by,
                "Tags": list(line.names) or None,
                "Size": line.size_bytes,
                "Comment": line.comment,
            }
            for line in images.history(images.find_image(request.name))
        ]
    )


# --- changing -----------------------------------------------------------------------------


def _join(repository: str, tag: str) -> str:
    if not repository:
        raise Invalid("query parameter repo: a name is needed, e.g. repo=app&tag=1.0")
    return f"{repository}:{tag}" if tag else repository


async def tag(api: Api, request: Request) -> Response:
    target = _join(request.query.get("repo"), request.query.get("tag"))
    image = await api.engine.images.tag(request.name, target)
    api.publish("image", "tag", image.id, {**image.config.labels, "name": _familiar(target)})
    return Response(201)


def _familiar(text: str) -> str:
    return parse_reference(text).with_default_tag().familiar


async def remove(api: Api, request: Request) -> Response:
    query = request.query
    known = _by_name_and_id(api)
    removed = await api.engine.images.remove(
        request.name, force=query.flag("force"), prune=not query.flag("noprune"), in_use=uses(api)
    )
    return json_response(_removed_json(api, removed, known))


def _by_name_and_id(api: Api) -> dict[str, Image]:
    """The images by each of their names, and by their ids."""
    images = api.engine.images.list_images()
    return {key: image for image in images for key in (image.id, *image.names)}


def _removed_json(api: Api, removed: Sequence[Removed], known: Mapping[str, Image]) -> list[Json]:
    """What went, for the caller and for the bus. `known` is what there was before; layers go to the caller only."""
    answer: list[Json] = []
    for line in removed:
        if line.untagged:
            answer.append({"Untagged": line.untagged})
            if (image := known.get(line.untagged)) is not None:
                api.publish("image", "untag", image.id, {**image.config.labels, "name": image.id})
        if line.deleted:
            answer.append({"Deleted": line.deleted})
            if line.deleted in known:
                api.publish("image", "delete", line.deleted, {"name": line.deleted})
    return answer


async def prune(api: Api, request: Request) -> Response:
    """Remove images without names that no container uses; with dangling=false, those with names too."""
    filters = parse_filters(request.query.get("filters"), IMAGE_PRUNE_KEYS)
    known = _by_name_and_id(api)
    removed, reclaimed = await api.engine.images.prune(select_images(filters), uses(api))
    deleted = _removed_json(api, removed, known)
    api.publish("image", "prune", "", {"reclaimed": str(reclaimed)})
    return json_response({"ImagesDeleted": deleted or None, "SpaceReclaimed": reclaimed})


# --- archives -----------------------------------------------------------------------------


async def create(api: Api, request: Request) -> Response | None:
    """Pull an image (`fromImage`), or import an archive (`fromSrc=-`)."""
    query = request.query
    if name := query.get("fromImage"):
        await pull(api, request, name, query.get("tag"))
        return None
    source = query.get("fromSrc")
    if not source:
        raise Invalid("images/create: one of the query parameters fromImage and fromSrc is needed")
    if source != "-":
        raise NotImplementedHere(
            "images/create: Cove imports what is sent to it (fromSrc=-); download the archive first"
        )
    repository = query.get("repo")
    reference = _join(repository, query.get("tag")) if repository else ""
    image = await api.engine.images.import_image(
        request.body, reference, query.get("message"), query.all("changes")
    )
    api.publish("image", "import", image.id, {"name": _familiar(reference) if reference else image.id})
    stream = await request.start_stream("application/json")
    await stream.write(encode_json({"status": image.id}) + b"\n")
    return None


async def load(api: Api, request: Request) -> None:
    """Progress and results as they come. A failure is a line of the stream, as clients expect it: the SDK for
    Python raises ImageLoadError for a line, and another error for a status."""
    quiet = request.query.flag("quiet")
    stream: Stream | None = None
    try:
        async with contextlib.aclosing(api.engine.images.load(request.body)) as events:
            async for event in events:
                if isinstance(event, LayerProgress) and quiet:
                    continue
                if stream is None:
                    stream = await request.start_stream("application/json")
                if not isinstance(event, LayerProgress):
                    api.publish("image", "load", event.image_id, {"name": event.name or event.image_id})
                await stream.write(encode_json(load_json(event)) + b"\n")
    except CoveError as error:
        if stream is None:
            stream = await request.start_stream("application/json")
        message = str(error)
        await stream.write(encode_json({"errorDetail": {"message": message}, "error": message}) + b"\n")
        return
    if stream is None:
        await request.start_stream("application/json")


def load_json(event: LoadEvent) -> Json:
    if not isinstance(event, LayerProgress):
        return {"stream": event.text + "\n"}
    return {
        "status": "Loading layer",
        "progressDetail": {"current": event.current, "total": event.total},
        "progress": f"{event.current}/{event.total} B",
        "id": event.id,
    }


async def save(api: Api, request: Request) -> None:
    await _save(api, request, [request.name])


async def save_many(api: Api, request: Request) -> None:
    names = [name for value in request.query.all("names") for name in value.split(",") if name]
    if not names:
        raise Invalid("images/get: the query parameter names is needed, e.g. names=debian:latest")
    await _save(api, request, names)


async def _save(api: Api, request: Request, names: Sequence[str]) -> None:
    saved = api.engine.images.saved_images(names)
    async with contextlib.aclosing(api.engine.images.save(names)) as chunks:
        first = await anext(chunks, b"")  # what fails before it has a status of its own
        stream = await request.start_stream("application/x-tar")
        await stream.write(first)
        async for chunk in chunks:
            await stream.write(chunk)
    for image in saved:
        api.publish("image", "save", image.id, {**image.config.labels, "name": image.id})


ROUTES: tuple[Route[Api], ...] = (
    ("GET", "/images/json", list_images),
    ("POST", "/images/create", create),
    ("POST", "/images/load", load),
    ("POST", "/images/prune", prune),
    ("GET", "/images/get", save_many),
    ("GET", "/images/{name}/json", inspect),
    ("GET", "/images/{name}/history", history),
    ("GET", "/images/{name}/get", save),
    ("POST", "/images/{name}/tag", tag),
    ("DELETE", "/images/{name}", remove),
)
