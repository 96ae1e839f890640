"""Artifacts beside images: put into registries with and without the API for referrers, and listed again."""

from __future__ import annotations

import asyncio
import json
import subprocess
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import TypeVar

import pytest

from cove.image.images import Images
from cove.image.registry import PullOptions
from cove.image.registry.artifacts import Artifact
from cove.image.registry.push import PushedTag, PushOptions
from cove.image.registry.search import Wish
from cove.model.errors import Conflict, NotFound
from cove.store.sqlite import SqliteStore
from tests.imagekit import File, chunks_of, digest_of, make_docker_archive
from tests.pushkit import PushRegistry
from tests.registrykit import docker_registry

KIND = "application/vnd.example.note"
OPTIONS = PullOptions()
_T = TypeVar("_T")


def artifact(subject: str, text: str) -> Artifact:
    blob = text.encode()
    document = {
        "schemaVersion": 2,
        "mediaType": "application/vnd.oci.image.manifest.v1+json",
        "artifactType": KIND,
        "config": {
            "mediaType": "application/vnd.oci.empty.v1+json",
            "digest": digest_of(b"{}"),
            "size": 2,
        },
        "layers": [{"mediaType": "text/plain", "digest": digest_of(blob), "size": len(blob)}],
        "subject": {
            "mediaType": "application/vnd.oci.image.manifest.v1+json",
            "digest": subject,
            "size": 7,
        },
    }
    return Artifact(manifest=json.dumps(document).encode(), blobs=(b"{}", blob))


def with_images(directory: Path, work: Callable[[Images], Awaitable[_T]]) -> _T:
    """Do something with an image store of the test's own."""

    async def run() -> _T:
        store = await SqliteStore.open(directory / "store.db")
        images = await Images.open(directory / "images", store)
        try:
            return await work(images)
        finally:
            await images.close()
            await store.close()

    return asyncio.run(run())


async def push_image(images: Images, name: str) -> str:
    """Push a small image; its digest."""
    async for _ in images.load(chunks_of(make_docker_archive([[File("a", b"x")]], names=[name]))):
        pass
    events = [event async for event in images.push(name, PushOptions(target=OPTIONS))]
    assert isinstance(events[-1], PushedTag)
    return events[-1].digest


def check(directory: Path, host: str) -> str:
    """Push an image and two artifacts for it; the image's digest."""

    async def work(images: Images) -> str:
        subject = await push_image(images, f"{host}/app:1")
        assert await images.referrers(f"{host}/app", subject, OPTIONS) == []
        first = await images.push_artifact(f"{host}/app", artifact(subject, "one"), OPTIONS)
        again = await images.push_artifact(f"{host}/app", artifact(subject, "one"), OPTIONS)
        second = await images.push_artifact(f"{host}/app:note", artifact(subject, "two"), OPTIONS)
        found = await images.referrers(f"{host}/app", subject, OPTIONS)
        assert first == again and [one.digest for one in found] == [first, second]
        assert {one.artifact_type for one in found} == {KIND}
        assert await images.referrers(f"{host}/app", subject, OPTIONS, artifact_type="other") == []
        async with images.artifacts.repository(f"{host}/app", OPTIONS) as repository:
            assert await repository.get(f"manifests/{first}") == artifact(subject, "one").manifest
            assert await repository.get(f"blobs/{digest_of(b'two')}") == b"two"
            with pytest.raises(NotFound):
                await repository.get("manifests/nothing")
        return subject

    return with_images(directory, work)


def test_a_registry_that_lists_referrers(tmp_path: Path) -> None:
    with PushRegistry(referrers=True) as registry:
        check(tmp_path, registry.host)
        assert not any(tag.startswith("sha256-") for tag in registry.manifests["app"])


def test_docker_registry_gets_a_tag_that_lists_them(tmp_path: Path) -> None:
    with docker_registry(tmp_path / "registry") as host:
        subject = check(tmp_path, host)
        reference = f"docker://{host}/app:{subject.replace(':', '-')}"
        done = subprocess.run(
            ["skopeo", "inspect", "--raw", "--tls-verify=false", reference],
            capture_output=True,
            timeout=60,
            check=True,
        )
        assert len(json.loads(done.stdout)["manifests"]) == 2


def test_entries_that_others_write_at_the_same_time_stay(tmp_path: Path) -> None:
    with PushRegistry() as registry:

        async def work(images: Images) -> None:
            subject = await push_image(images, f"{registry.host}/app:1")
            name = f"{registry.host}/app"
            await asyncio.gather(
                *(images.push_artifact(name, artifact(subject, str(n)), OPTIONS) for n in range(3))
            )
            assert len(await images.referrers(name, subject, OPTIONS)) == 3

            registry.lose_manifests = subject.replace(":", "-")
            with pytest.raises(Conflict, match="at the same time"):
                await images.push_artifact(name, artifact(subject, "more"), OPTIONS)

        with_images(tmp_path, work)


def test_a_search_reads_the_names_of_a_registry_without_one(tmp_path: Path) -> None:
    with docker_registry(tmp_path / "registry") as host:

        async def work(images: Images) -> list[str]:
            for name in ("team/app", "team/web", "other"):
                await push_image(images, f"{host}/{name}:1")
            return [one.name for one in await images.search(Wish(term=f"{host}/TEAM"), OPTIONS)]

        assert with_images(tmp_path, work) == [f"{host}/team/app", f"{host}/team/web"]
