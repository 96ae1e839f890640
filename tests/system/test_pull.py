"""Pulling from registries that do as badly as they can: what gets in, what is refused, and what remains."""

from __future__ import annotations

import asyncio
import gzip
import os
import random
import signal
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import zstandard

from cove.image.images import Images
from cove.image.references import Reference
from cove.image.registry import Documents, PullEvent, PullOptions
from cove.image.registry.auth import Credentials
from cove.image.registry.endpoints import Registries
from cove.image.registry.messages import Timing
from cove.model.errors import CoveError, Forbidden, HostError, Invalid, NotFound, Unavailable
from cove.store.sqlite import SqliteStore
from tests.imagekit import Dir, File, make_layer
from tests.nanny import descendants
from tests.registrykit import (
    INDEX,
    MANIFEST,
    HostileRegistry,
    Reply,
    Repository,
    Request,
    digest_of,
    error,
)

pytestmark = [
    pytest.mark.needs_root,
    pytest.mark.skipif(os.geteuid() != 0, reason="unpacking gives files their owners, which takes root"),
]

QUICK = Timing(
    connect_s=2,
    idle_s=1,
    head_s=3,
    document_s=3,
    window_s=1,
    least_bytes_per_s=1000,
    attempts=3,
    backoff_s=0.01,
)
BASE = make_layer([Dir("etc"), File("etc/motd", b"hello")])
NOISE = random.Random(7).randbytes(24 << 20)
LARGE = make_layer([File("noise", NOISE)])


@asynccontextmanager
async def opened(root: Path) -> AsyncIterator[Images]:
    root.mkdir(exist_ok=True)
    store = await SqliteStore.open(root / "state.db")
    try:
        images = await Images.open(root / "images", store)
        try:
            yield images
        finally:
            await images.close()
    finally:
        await store.close()


async def pull(images: Images, name: str, **options: Any) -> list[str]:
    """The lines of a pull, counts left out."""
    options.setdefault("timing", QUICK)
    events = [event async for event in images.pull(name, PullOptions(**options))]
    return [f"{e.id}: {e.status}" if e.id else e.status for e in events if not e.total]


def run(root: Path, name: str, **options: Any) -> list[str]:
    async def work() -> list[str]:
        async with opened(root) as images:
            return await pull(images, name, **options)

    return asyncio.run(work())


def refused(root: Path, name: str, kind: type[CoveError], sentence: str, **options: Any) -> None:
    """A pull must fail so, and leave nothing but what a later one may go on with."""

    async def work() -> None:
        async with opened(root) as images:
            with pytest.raises(kind, match=sentence):
                await pull(images, name, **options)
            assert images.list_images() == []
            await images.close()  # what is deleted behind
            report = await images.check()
            assert report.problems == () and report.layers == report.images == 0

    asyncio.run(work())
    assert descendants(os.getpid()) == []


def partials(root: Path) -> dict[str, int]:
    return {path.name: path.stat().st_size for path in (root / "images" / "partial").iterdir()}


def image_of(*layers: bytes, ranges: bool = True, level: int = 1) -> Repository:
    repository = Repository(ranges=ranges)
    repository.add_image([(layer, gzip.compress(layer, level, mtime=0), "+gzip") for layer in layers])
    return repository


@pytest.fixture
def serve() -> Iterator[Callable[[Callable[[Request], Reply]], HostileRegistry]]:
    running: list[HostileRegistry] = []

    def start(handler: Callable[[Request], Reply]) -> HostileRegistry:
        running.append(HostileRegistry(handler).__enter__())
        return running[-1]

    yield start
    for registry in running:
        registry.__exit__()


Serve = Callable[[Callable[[Request], Reply]], HostileRegistry]


# --- what gets in -------------------------------------------------------------------------


def test_every_compression_and_a_second_pull_that_fetches_no_layer(tmp_path: Path, serve: Serve) -> None:
    layers = [make_layer([File(name, name.encode())]) for name in ("plain", "gzip", "zstd")]
    repository = Repository()
    digest = repository.add_image(
        [
            (layers[0], layers[0], ""),
            (layers[1], gzip.compress(layers[1]), "+gzip"),
            (layers[2], zstandard.ZstdCompressor().compress(layers[2]), "+zstd"),
        ]
    )
    registry = serve(repository)
    name = f"{registry.host}/app"

    async def work() -> None:
        async with opened(tmp_path) as images:
            lines = await pull(images, name)
            assert lines[0] == "latest: Pulling from app"
            assert lines[-2:] == [f"Digest: {digest}", f"Status: Downloaded newer image for {name}:latest"]
            [image] = images.list_images()
            assert image.repo_digests == (f"{name}@{digest}",) and image.names == (f"{name}:latest",)
            paths = [images.layers_dir / layer for layer in images.layer_paths(image)]
            assert [next(p.iterdir()).read_bytes() for p in paths] == [b"plain", b"gzip", b"zstd"]
            before = len(registry.requests)
            assert (await pull(images, name))[-1] == f"Status: Image is up to date for {name}:latest"
            assert len(registry.requests) == before + 1
            await images.close()
            assert (await images.check(deep=True)).problems == ()
        async with opened(tmp_path) as images:  # a restart
            assert images.find_image(f"{name}@{digest}").id == image.id
            assert partials(tmp_path) == {}
            await images.remove(f"{name}@{digest}", force=False, prune=True, in_use=lambda _: ())
            assert images.find_image(name).repo_digests == ()
            await images.remove(name, force=False, prune=True, in_use=lambda _: ())
            await images.close()
            assert (await images.check()).blobs == 0

    asyncio.run(work())


def test_an_index_and_its_platforms(tmp_path: Path, serve: Serve) -> None:
    repository = Repository()
    entries = []
    for architecture in ("arm64", "amd64"):
        layer = make_layer([File(architecture)])
        digest = repository.add_image(
            [(layer, gzip.compress(layer), "+gzip")], tag="", architecture=architecture
        )
        size = len(repository.manifests[digest][1])
        platform = {"os": "linux", "architecture": architecture}
        entries.append({"mediaType": MANIFEST, "digest": digest, "size": size, "platform": platform})
    index = {"schemaVersion": 2, "mediaType": INDEX, "manifests": entries}
    digest = repository.add_manifest(index, "latest", INDEX)
    registry = serve(repository)
    name = f"{registry.host}/app"

    async def work() -> None:
        async with opened(tmp_path) as images:
            await pull(images, name)
            image = images.find_image(name)
            assert image.architecture == "amd64" and image.repo_digests == (f"{name}@{digest}",)
            assert images.find_image(f"{name}@{entries[1]['digest']}").id == image.id
            assert set(images.image_digests(image)) == {digest, entries[1]["digest"]}
            await pull(images, f"{name}@{digest}", platform="linux/arm64")
            other = images.find_image(f"{name}@{digest}")
            assert other.architecture == "arm64" and images.find_image(name).id == image.id
            with pytest.raises(
                NotFound, match=r"no matching manifest for linux/riscv64 .*linux/amd64, linux/arm64"
            ):
                await pull(images, name, platform="linux/riscv64")
            await images.close()
            assert (await images.check(deep=True)).problems == ()
            for one in (image, other):
                await images.remove(one.id, force=True, prune=True, in_use=lambda _: ())
            await images.close()
            assert (await images.check()).blobs == 0

    asyncio.run(work())


def test_two_pulls_of_a_layer_fetch_it_once_and_one_may_leave(tmp_path: Path, serve: Serve) -> None:
    gate = threading.Event()
    repository = image_of(LARGE)
    blob = gzip.compress(LARGE, 1, mtime=0)
    big = digest_of(blob)
    repository.add_image([(BASE, gzip.compress(BASE), "+gzip"), (LARGE, blob, "+gzip")], "b")

    def handler(request: Request) -> Reply:
        if big in request.target:
            gate.wait(20)
        return repository(request)

    registry = serve(handler)
    name = f"{registry.host}/app"

    async def work() -> None:
        async with opened(tmp_path) as images:
            first = asyncio.ensure_future(pull(images, name))
            others = [asyncio.ensure_future(pull(images, f"{name}:b")) for _ in range(2)]
            while registry.count("GET", "manifests/") < 3:
                await asyncio.sleep(0.01)
            works = images.puller._arrivals._works
            while big not in works or works[big].users < 3:
                await asyncio.sleep(0.01)
            first.cancel()
            await asyncio.gather(first, return_exceptions=True)
            gate.set()
            for lines in await asyncio.gather(*others):
                assert lines[-1].startswith("Status: ")
            assert [image.names for image in images.list_images()] == [(f"{name}:b",)]
            await images.close()
            assert (await images.check(deep=True)).problems == ()

    asyncio.run(work())
    begins = [r.headers.get("range", "bytes=0-") for r in registry.requests if big in r.target]
    assert len(begins) == len(set(begins))  # each piece once


def test_a_blob_of_this_machine_s_registry_is_linked_and_verified(tmp_path: Path, serve: Serve) -> None:
    repository = image_of(BASE, LARGE)
    shared = tmp_path / "registry" / "blobs" / "sha256"
    shared.mkdir(parents=True)
    large, base = (digest_of(gzip.compress(layer, 1, mtime=0)) for layer in (LARGE, BASE))
    (shared / large[7:]).write_bytes(repository.blobs[large])
    (shared / base[7:]).write_bytes(b"x" * len(repository.blobs[base]))  # damaged: fetched after all
    registry = serve(repository)
    run(tmp_path, f"{registry.host}/app")
    assert registry.count("GET", large) == 0 and registry.count("GET", base) == 1
    kept = tmp_path / "images" / "blobs" / "sha256" / large[7:]
    assert kept.stat().st_ino == (shared / large[7:]).stat().st_ino
    assert (shared / base[7:]).read_bytes().startswith(b"xxx")


def test_a_check_sees_the_manifest_before_any_layer(tmp_path: Path, serve: Serve) -> None:
    repository = image_of(BASE)
    registry = serve(repository)
    seen: list[tuple[str, str, str]] = []

    async def check(
        reference: Reference, digest: str, manifest: bytes, index_digest: str, documents: Documents
    ) -> None:
        assert digest_of(manifest) == digest and (await documents.get(f"manifests/{digest}")) == manifest
        seen.append((reference.familiar, digest, index_digest))
        raise Forbidden("nobody signed it")

    refused(tmp_path, f"{registry.host}/app", Forbidden, "nobody signed it", check=check)
    assert seen == [(f"{registry.host}/app:latest", digest_of(repository.manifests["latest"][1]), "")]
    assert registry.count("GET", "/blobs/") == 0


def test_mirrors_come_first_without_credentials_and_fail_over(tmp_path: Path, serve: Serve) -> None:
    repository = image_of(BASE)
    mirror, broken, registry = serve(repository), serve(lambda r: Reply(500)), serve(repository)
    options = {"credentials": Credentials(username="ada", password="s3cret")}
    mirrors = Registries(mirrors=(f"{registry.host}={broken.url}", f"{registry.host}={mirror.url}"))
    run(tmp_path, f"{registry.host}/app", registries=mirrors, **options)
    assert registry.requests == [] and mirror.count("GET", f"?ns={registry.host}") == 3
    assert broken.count("GET", "/blobs/") == 0  # not asked again
    assert not [r for r in mirror.requests + broken.requests if "authorization" in r.headers]


# --- what breaks --------------------------------------------------------------------------


@pytest.mark.parametrize("ranges", [True, False])
def test_a_blob_that_breaks_off_goes_on(tmp_path: Path, serve: Serve, ranges: bool) -> None:
    repository = image_of(LARGE, ranges=ranges)
    broken: list[str] = []

    def handler(request: Request) -> Reply:
        reply = repository(request)
        large = "/blobs/" in request.target and isinstance(reply.body, bytes) and len(reply.body) > 1 << 20
        if large and len(broken) < (3 if ranges else 2):
            assert isinstance(reply.body, bytes)
            broken.append(request.headers.get("range", ""))
            return Reply(reply.status, reply.headers, [reply.body[:900_000]], length=len(reply.body))
        return reply

    registry = serve(handler)
    run(tmp_path, f"{registry.host}/app")
    assert len(broken) == (3 if ranges else 2)
    asked = [r.headers["range"] for r in registry.requests if "range" in r.headers]
    assert any(text.startswith("bytes=900000-") for text in asked)  # asked, whether it is answered or not


def test_a_failed_pull_is_gone_on_with_by_the_next(tmp_path: Path, serve: Serve) -> None:
    repository = image_of(LARGE)
    blob = next(blob for blob in repository.blobs.values() if len(blob) > 1 << 20)
    healthy = threading.Event()

    def handler(request: Request) -> Reply:
        reply = repository(request)
        if healthy.is_set() or digest_of(blob) not in request.target:
            return reply
        first = int(request.headers["range"].removeprefix("bytes=").partition("-")[0])
        return reply if first < 8 << 20 else Reply(500)

    registry = serve(handler)
    refused(tmp_path, f"{registry.host}/app", Unavailable, "status 500")
    assert partials(tmp_path) == {digest_of(blob)[7:]: 8 << 20}
    healthy.set()
    before = len(registry.requests)
    run(tmp_path, f"{registry.host}/app")
    assert partials(tmp_path) == {}
    starts = [r.headers.get("range", "") for r in registry.requests[before:] if digest_of(blob) in r.target]
    assert starts[0].startswith(f"bytes={8 << 20}-")


def test_a_spoiled_part_from_before_is_fetched_anew(tmp_path: Path, serve: Serve) -> None:
    repository = image_of(LARGE)
    digest = digest_of(gzip.compress(LARGE, 1, mtime=0))
    (tmp_path / "images" / "partial").mkdir(parents=True)
    (tmp_path / "images" / "partial" / digest[7:]).write_bytes(os.urandom(5 << 20))
    registry = serve(repository)
    run(tmp_path, f"{registry.host}/app")
    assert partials(tmp_path) == {}


def spoiled(change: Callable[[Repository, HostileRegistry, Request, Reply], Reply | None]) -> Any:
    """A repository of two layers whose answers a function changes."""

    def make(serve: Serve) -> HostileRegistry:
        repository = image_of(BASE, LARGE)

        def handler(request: Request) -> Reply:
            reply = repository(request)
            return change(repository, registry, request, reply) or reply

        registry = serve(handler)
        return registry

    return make


def blobs(request: Request) -> bool:
    return "/blobs/" in request.target and "range" in request.headers


def wrong_bytes(_: Repository, __: HostileRegistry, request: Request, reply: Reply) -> Reply | None:
    if blobs(request):
        assert isinstance(reply.body, bytes)
        reply.body = bytes(len(reply.body))
    return None


def flipped_end(_: Repository, __: HostileRegistry, request: Request, reply: Reply) -> Reply | None:
    if blobs(request) and reply.headers["Content-Range"].partition("/")[0].endswith(
        str(int(reply.headers["Content-Range"].partition("/")[2]) - 1)
    ):
        assert isinstance(reply.body, bytes)
        reply.body = reply.body[:-1] + bytes([reply.body[-1] ^ 1])
    return None


def other_range(_: Repository, __: HostileRegistry, request: Request, reply: Reply) -> Reply | None:
    if blobs(request):
        reply.headers["Content-Range"] = "bytes 5-4194308/99999999"
    return None


def other_size(_: Repository, __: HostileRegistry, request: Request, reply: Reply) -> Reply | None:
    if blobs(request):
        reply.headers["Content-Range"] = reply.headers["Content-Range"].partition("/")[0] + "/99999999999"
    return None


def longer(_: Repository, __: HostileRegistry, request: Request, reply: Reply) -> Reply | None:
    return Reply(200, {"Connection": "close"}, [bytes(1 << 20)] * 64) if blobs(request) else None


def stalls(_: Repository, registry: HostileRegistry, request: Request, reply: Reply) -> Reply | None:
    return Reply(reply.status, reply.headers, registry.stall(30), length=4 << 20) if blobs(request) else None


def drips(_: Repository, registry: HostileRegistry, request: Request, reply: Reply) -> Reply | None:
    return (
        Reply(reply.status, reply.headers, registry.drip(bytes(99), 0.2), length=4 << 20)
        if blobs(request)
        else None
    )


def circle(_: Repository, __: HostileRegistry, request: Request, reply: Reply) -> Reply | None:
    return Reply(307, {"Location": request.target}) if "/blobs/" in request.target else None


def to_file(_: Repository, __: HostileRegistry, request: Request, reply: Reply) -> Reply | None:
    return Reply(307, {"Location": "file:///etc/shadow"}) if "/blobs/" in request.target else None


def wrong_manifest_digest(_: Repository, __: HostileRegistry, request: Request, reply: Reply) -> Reply | None:
    if "/manifests/" in request.target:
        reply.headers["Docker-Content-Digest"] = "sha256:" + "0" * 64
    return None


def huge_manifest(_: Repository, __: HostileRegistry, request: Request, reply: Reply) -> Reply | None:
    return (
        Reply(200, {"Content-Type": MANIFEST}, [b" " * (1 << 20)] * 8)
        if "/manifests/" in request.target
        else None
    )


def huge_headers(_: Repository, __: HostileRegistry, request: Request, reply: Reply) -> Reply | None:
    return Reply(raw=[b"HTTP/1.1 200 OK\r\n", *[b"X-A: " + b"a" * 1000 + b"\r\n"] * 1000])


def wrong_type(_: Repository, __: HostileRegistry, request: Request, reply: Reply) -> Reply | None:
    if "/manifests/" in request.target:
        reply.headers["Content-Type"] = INDEX
    return None


def other_config(repository: Repository, __: HostileRegistry, request: Request, reply: Reply) -> Reply | None:
    if "/blobs/" in request.target and "range" not in request.headers and isinstance(reply.body, bytes):
        reply.body = reply.body.replace(b"amd64", b"arm64")
    return None


def missing_blob(_: Repository, __: HostileRegistry, request: Request, reply: Reply) -> Reply | None:
    return error(404, "BLOB_UNKNOWN", "blob unknown") if blobs(request) else None


@pytest.mark.parametrize(
    ("change", "kind", "sentence"),
    [
        (wrong_bytes, Invalid, "isn't a tar|has another content than its name says|ends inside|damaged"),
        (flipped_end, Invalid, "has another content than its name says|damaged"),
        (other_range, Invalid, "with another one"),
        (other_size, Invalid, r"has 99999999999 bytes at the registry and \d+ by its manifest"),
        (longer, Invalid, "isn't a tar|is longer than|longer than the"),
        (stalls, Unavailable, "no byte came for 1 s"),
        (drips, Unavailable, "bytes a second; the least is 1000"),
        (circle, Unavailable, "redirects in a circle"),
        (to_file, Unavailable, "no http or https address"),
        (wrong_manifest_digest, Invalid, "the registry says that the manifest is"),
        (huge_manifest, Invalid, "more than 4194304 bytes"),
        (huge_headers, Unavailable, "isn't HTTP as it should be"),
        (wrong_type, Invalid, "and the registry says"),
        (other_config, Invalid, "has another content than its name says"),
        (missing_blob, NotFound, "blob unknown"),
    ],
)
def test_a_registry_that_does_badly(
    tmp_path: Path, serve: Serve, change: Any, kind: type[CoveError], sentence: str
) -> None:
    registry = spoiled(change)(serve)
    refused(tmp_path, f"{registry.host}/app", kind, sentence)


def test_indexes_that_nest_without_an_end(tmp_path: Path, serve: Serve) -> None:
    repository = Repository()
    digest, size = "sha256:" + "0" * 64, 2
    for level in range(8):
        document = {
            "schemaVersion": 2,
            "mediaType": INDEX,
            "manifests": [{"mediaType": INDEX, "digest": digest, "size": size}],
            "annotations": {"level": str(level)},
        }
        digest = repository.add_manifest(document, "latest", INDEX)
        size = len(repository.manifests[digest][1])
    registry = serve(repository)
    refused(tmp_path, f"{registry.host}/app", Invalid, "nest deeper than 4 levels")
    assert len(registry.requests) <= 6


def test_a_bomb_is_stopped(tmp_path: Path, serve: Serve) -> None:
    bomb = gzip.compress(bytes(64 << 20), 9)
    repository = Repository()
    head = make_layer([File("a", b"")])[:512].replace(b"0000000\x0000", b"0000000\x0000")
    layer = make_layer([File("zeros", bytes(1 << 20))])
    members = [gzip.compress(layer[:-1024]), *[bomb] * 6]  # what follows the file is no tar
    repository.add_image([(layer, b"".join(members), "+gzip")])
    assert head
    registry = serve(repository)
    refused(tmp_path, f"{registry.host}/app", Invalid, "bomb|another content|garbage|invalid diffID|damaged")


def test_another_layer_than_the_configuration_says(tmp_path: Path, serve: Serve) -> None:
    repository = Repository()
    repository.add_image([(LARGE, gzip.compress(BASE), "+gzip")])
    registry = serve(repository)
    refused(tmp_path, f"{registry.host}/app", Invalid, "invalid diffID for layer")
    assert partials(tmp_path) == {}


# --- who is killed ------------------------------------------------------------------------


@pytest.mark.parametrize("which", ["fetch", "unpack"])
def test_a_worker_that_is_killed_fails_the_pull_and_leaves_a_part(
    tmp_path: Path, serve: Serve, which: str
) -> None:
    repository = image_of(LARGE)
    digest = digest_of(gzip.compress(LARGE, 1, mtime=0))
    reached, go_on = threading.Event(), threading.Event()

    def handler(request: Request) -> Reply:
        reply = repository(request)
        if digest in request.target and not request.headers["range"].startswith("bytes=0-"):
            reached.set()
            go_on.wait(20)
        return reply

    registry = serve(handler)
    name = f"{registry.host}/app"

    async def work() -> None:
        async with opened(tmp_path) as images:
            pulling = asyncio.ensure_future(pull(images, name))
            await asyncio.to_thread(reached.wait, 20)
            while sum(partials(tmp_path).values()) < 1 << 20:
                await asyncio.sleep(0.01)
            workers = descendants(os.getpid())
            assert len(workers) == 2
            os.kill(workers[0] if which == "fetch" else workers[1], signal.SIGKILL)
            with pytest.raises(HostError, match="worker"):
                await pulling
            assert partials(tmp_path)
            assert images.list_images() == []
            go_on.set()
            assert (await pull(images, name))[-1].startswith("Status: Downloaded")
            await images.close()
            assert (await images.check(deep=True)).problems == ()

    asyncio.run(work())


def test_old_parts_and_too_many_are_swept(tmp_path: Path) -> None:
    async def work() -> None:
        async with opened(tmp_path) as images:
            content = images._content
            directory = tmp_path / "images" / "partial"
            for number, age in enumerate((0, 10, 20, 10**7)):
                path = directory / f"{number}"
                path.write_bytes(b"x" * 100)
                os.utime(path, (10**9 - age, 10**9 - age))
            content.sweep_partials(10**9, ["sha256:2"], total=150)
            assert sorted(os.listdir(directory)) == ["0", "2"]

    asyncio.run(work())


def test_every_event_has_docker_s_words(tmp_path: Path, serve: Serve) -> None:
    registry = serve(image_of(BASE))

    async def work() -> list[PullEvent]:
        async with opened(tmp_path) as images:
            return [e async for e in images.pull(f"{registry.host}/app", PullOptions(timing=QUICK))]

    events = asyncio.run(work())
    words = [event.status for event in events]
    assert [w for w in words if not w.startswith(("Digest", "Status"))] == [
        "Pulling from app",
        "Pulling fs layer",
        "Downloading",
        "Verifying Checksum",
        "Download complete",
        "Extracting",
        "Pull complete",
    ]
