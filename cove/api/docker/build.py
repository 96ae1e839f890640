"""POST /build as Docker's classic builder has it, and POST /build/prune.

What a request asks for is decoded to plain values first; mistakes that can be found before the first step have a
status of their own, later ones are a line of the stream, as Docker's clients expect it.
"""

from __future__ import annotations

import base64
import binascii
import time
from collections.abc import Mapping, Sequence
from contextlib import AsyncExitStack
from typing import Any, NamedTuple, TypeVar

import msgspec

from cove.api.docker import wire
from cove.api.docker.buildstream import ClassicStream
from cove.api.docker.context import Api
from cove.api.docker.filters import parse_filters
from cove.api.docker.limits import decode_resources, decode_ulimits
from cove.api.docker.pulling import event_json, read_credentials
from cove.api.docker.text import parse_time, rfc3339
from cove.api.http import Query, Request, Response, Stream, encode_json, json_response
from cove.api.router import Route
from cove.build.builder import KINDS, Order
from cove.build.cache import Entry
from cove.build.context import SentContext, fetch_context, receive_archive
from cove.build.errors import BuildFailed
from cove.build.events import BuildEvent
from cove.build.graph import Graph
from cove.build.mounts import MountUse
from cove.build.planning import plan
from cove.build.request import PlanRequest
from cove.dockerfile.parser import parse_dockerfile
from cove.image.references import parse_tagged
from cove.image.registry import PullEvent
from cove.image.registry.auth import Credentials
from cove.model.container import ContainerSpec
from cove.model.errors import CoveError, Invalid, NotFound, NotImplementedHere
from cove.model.objects import Image

Json = dict[str, Any]
T = TypeVar("T")
MAX_NAMES = 128
_EPOCH = "SOURCE_DATE_EPOCH"
_PRUNE_KEYS = frozenset(("until", "unused-for", "id", "type"))


class Asked(NamedTuple):
    """The query of a build."""

    dockerfile: str
    names: tuple[str, ...]
    plan: PlanRequest
    spec: ContainerSpec
    epoch_s: int | None
    quiet: bool
    remove: bool
    pull: bool
    squash: bool


def decode_query(query: Query, *, cpus: int) -> Asked:
    """Raises Invalid with the parameter's name, NotImplementedHere for what Cove's builder hasn't."""
    if query.get("version", "1") not in ("1", ""):
        raise NotImplementedHere(
            "version=2 asks for BuildKit, whose builds come by /grpc: set DOCKER_BUILDKIT=0, or use cove build"
        )
    names = []
    for text in query.all("t"):
        if text:
            names.append(parse_tagged(text).familiar)
    if len(names) > MAX_NAMES:
        raise Invalid(f"query parameter t: there are {len(names)} names, the limit is {MAX_NAMES}")
    args = _decoded(query, "buildargs", dict[str, str | None])
    given = {key: value for key, value in args.items() if value is not None}
    network = query.get("networkmode")
    resources = wire.Resources(
        memory=query.integer("memory", 0, low=0, high=1 << 62),
        memory_swap=query.integer("memswap", 0, low=-1, high=1 << 62),
        cpu_shares=query.integer("cpushares", 0, low=0, high=1 << 32),
        cpu_period=query.integer("cpuperiod", 0, low=0, high=1 << 32),
        cpu_quota=query.integer("cpuquota", 0, low=-1, high=1 << 40),
        cpuset_cpus=query.get("cpusetcpus"),
        cpuset_mems=query.get("cpusetmems"),
    )
    ulimits = _decoded(query, "ulimits", list[wire.Ulimit])
    spec = ContainerSpec(
        image="",
        network_mode=network if network not in ("", "default") else "default",
        resources=decode_resources(resources, "", cpus=cpus),
        ulimits=decode_ulimits(ulimits),
        shm_size_bytes=query.integer("shmsize", 0, low=0, high=1 << 50) or 0,
        extra_hosts=tuple(host for text in query.all("extrahosts") for host in _hosts(text)),
        cgroup_parent=query.get("cgroupparent"),
    )
    return Asked(
        dockerfile=query.get("dockerfile") or "Dockerfile",
        names=tuple(dict.fromkeys(names)),
        plan=PlanRequest(
            build_args=given,
            target=query.get("target"),
            labels=_decoded(query, "labels", dict[str, str]),
            platform=query.get("platform").lower(),
            no_cache=query.flag("nocache"),
        ),
        spec=spec,
        epoch_s=parse_epoch(given.get(_EPOCH, "")),
        quiet=query.flag("q"),
        remove=query.flag("rm", True) or query.flag("forcerm"),
        pull=query.flag("pull"),
        squash=query.flag("squash"),
    )


def parse_epoch(text: str) -> int | None:
    """SOURCE_DATE_EPOCH, in seconds. Raises Invalid."""
    if not text:
        return None
    if not text.isdecimal() or len(text) > 11:
        raise Invalid(f"{_EPOCH}: expected seconds since 1970, e.g. 1700000000, got {text[:40]!r}")
    return int(text)


def _hosts(text: str) -> list[str]:
    """Compose sends a list as JSON; the CLI one after the other."""
    if text.startswith("["):
        try:
            return msgspec.json.decode(text, type=list[str])
        except msgspec.DecodeError:
            raise Invalid(f"query parameter extrahosts: expected NAME:ADDRESS, got {text[:80]!r}") from None
    return [part for part in text.split(",") if part]


def _decoded(query: Query, name: str, kind: type[T]) -> T:
    text = query.get(name)
    if not text:
        return kind()
    try:
        found: T | None = msgspec.json.decode(text, type=kind | None)
    except msgspec.DecodeError as error:
        raise Invalid(f"query parameter {name}: {error}") from None
    return kind() if found is None else found


# --- the build ----------------------------------------------------------------------------


async def build(api: Api, request: Request) -> None:
    """Build an image of the archive in the body."""
    asked = decode_query(request.query, cpus=api.cpus)
    credentials = read_registry_config(request.headers.get("x-registry-config", ""))
    answer = Answer(request)
    async with AsyncExitStack() as undo:
        data: bytes | None = None
        if remote := request.query.get("remote"):
            request.bind_to_client(ends_clean=False)
            sent, data = await fetch_context(api.engine.images, remote, undo)
        else:
            sent = await receive_archive(api.engine.images, request.body, undo)
            request.bind_to_client(ends_clean=False)
        try:
            if data is None:
                data = _dockerfile(sent, asked.dockerfile)
            graph = await _plan(api, data, asked, credentials, answer)
        except CoveError as error:
            if not answer.begun:
                raise
            await answer.tell([error_line(error)])
            return
        order = Order(
            graph=graph,
            contexts={"": sent.open},
            names=asked.names,
            spec=asked.spec,
            source_date_epoch_s=asked.epoch_s,
        )
        await _run(api, answer, order, asked)


class Answer:
    """A stream of JSON lines that begins with the first of them."""

    def __init__(self, request: Request, content_type: str = "application/json") -> None:
        self._request = request
        self._type = content_type
        self._stream: Stream | None = None

    @property
    def begun(self) -> bool:
        return self._stream is not None

    async def tell(self, lines: Sequence[Json]) -> None:
        if self._stream is None:
            self._stream = await self._request.start_stream(self._type)
        await self._stream.write(b"".join(encode_json(line) + b"\n" for line in lines))


def read_registry_config(header: str) -> dict[str, Credentials]:
    """X-Registry-Config: base64url of {"HOST": what X-Registry-Auth has}. Invalid, which tells nothing of it."""
    if not header:
        return {}
    try:
        data = base64.b64decode(header.strip() + "=" * (-len(header.strip()) % 4), b"-_", validate=True)
        found = msgspec.json.decode(data or b"{}", type=dict[str, msgspec.Raw])
    except (binascii.Error, msgspec.MsgspecError, ValueError):
        raise Invalid("X-Registry-Config: expected base64url of a JSON object of registries") from None
    named = {}
    for name, auth in found.items():
        host = name.removeprefix("https://").removeprefix("http://").partition("/")[0]
        host = "docker.io" if host in ("index.docker.io", "registry-1.docker.io") else host
        named[host] = read_credentials(base64.urlsafe_b64encode(bytes(auth)).decode())
    return named


def _dockerfile(sent: SentContext, name: str) -> bytes:
    for path in (name, "dockerfile") if name == "Dockerfile" else (name,):
        try:
            return sent.read(path)
        except NotFound:
            continue
    raise Invalid(f"Cannot locate specified Dockerfile: {name}")


async def _plan(
    api: Api,
    data: bytes,
    asked: Asked,
    credentials: Mapping[str, Credentials],
    answer: Answer,
) -> Graph:
    dockerfile = parse_dockerfile(data, asked.dockerfile)
    request = msgspec.structs.replace(asked.plan, build_platform=f"linux/{api.engine.images.architecture}")

    async def told(event: PullEvent) -> None:
        if not asked.quiet:
            await answer.tell([event_json(event)])

    async def pull(reference: str, platform: str) -> Image:
        return await api.builder.pull(reference, platform, credentials, told)

    return await plan(
        api.engine.images, dockerfile, request, pull, api.engine.admission.check, always=asked.pull
    )


async def _run(api: Api, answer: Answer, order: Order, asked: Asked) -> None:
    shown = ClassicStream(order.graph, remove=asked.remove)
    held: list[Json] = []  # with q: shown when it fails

    async def tell(lines: Sequence[Json]) -> None:
        if asked.quiet:
            held.extend(lines)
            del held[:-200]
        elif lines:
            await answer.tell(lines)

    async def emit(event: BuildEvent) -> None:
        await tell(list(shown.feed(event)))

    try:
        await tell(list(shown.begin()))
        image = await api.builder.build(order, emit)
    except CoveError as error:
        if isinstance(error, BuildFailed):
            await tell(list(shown.failed(error.step)))
        await answer.tell([*held, error_line(error)])
        return
    if asked.quiet:
        await answer.tell([{"stream": f"{image.id}\n"}])


def error_line(error: CoveError) -> Json:
    """A failure as a line of the stream."""
    message = str(error)
    detail: Json = {"message": message}
    if isinstance(error, BuildFailed) and error.exit_code:
        detail["code"] = error.exit_code
    return {"errorDetail": detail, "error": message}


# --- the cache ----------------------------------------------------------------------------


async def prune(api: Api, request: Request) -> Response:
    query = request.query
    filters = parse_filters(query.get("filters"), _PRUNE_KEYS)
    keep = max(
        query.integer(name, 0, low=0, high=1 << 62) or 0
        for name in ("keep-storage", "reserved-space", "max-used-space")
    )
    now_ns = time.time_ns()
    latest_ns = now_ns
    for value in (*filters.get("until", ()), *filters.get("unused-for", ())):
        latest_ns = min(latest_ns, parse_time(value, "until", now_ns))
    ids = filters.get("id", ())

    def select(entry: Entry) -> bool:
        return entry.note.used_ns <= latest_ns and (not ids or any(entry.key.startswith(i) for i in ids))

    kinds = filters.get("type", ()) or KINDS
    if unknown := [kind for kind in kinds if kind not in KINDS]:
        raise Invalid(f"invalid filter 'type={unknown[0]}', expected one of {', '.join(KINDS)}")
    names, freed = await api.builder.prune(
        select,
        keep_bytes=keep,
        latest_ns=latest_ns if latest_ns < now_ns else None,
        kinds=kinds,
        ids=ids,
    )
    return json_response({"CachesDeleted": names or None, "SpaceReclaimed": freed})


def mount_json(mount: MountUse) -> Json:
    """A cache of RUN --mount=type=cache."""
    return {
        "ID": mount.name[:25],
        "Type": "exec.cachemount",
        "Description": "cache mount",
        "InUse": False,
        "Shared": False,
        "Size": mount.size_bytes,
        "CreatedAt": rfc3339(mount.used_ns),
        "LastUsedAt": rfc3339(mount.used_ns),
        "UsageCount": 1,
        "Parents": None,
    }


def cache_json(entry: Entry, shared: frozenset[str]) -> Json:
    """One entry of GET /system/df's BuildCache."""
    return {
        "ID": entry.key[:25],
        "Type": "regular",
        "Description": entry.note.description,
        "InUse": False,
        "Shared": entry.note.added in shared,
        "Size": entry.note.size_bytes,
        "CreatedAt": rfc3339(entry.note.created_ns),
        "LastUsedAt": rfc3339(entry.note.used_ns),
        "UsageCount": entry.note.uses,
        "Parents": None,
    }


ROUTES: tuple[Route[Api], ...] = (
    ("POST", "/build", build),
    ("POST", "/build/prune", prune),
)
