"""Images to and from a registry: load, push, pull, and a run after a pull that finds everything here."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from urllib.parse import quote

from bench.cases import Case
from bench.client import ApiError, Client
from bench.context import Bench, Measure
from bench.engines import Engine, body, run_whole_life
from bench.images import DEBIAN, SMALL, debian_archive, small_archive
from bench.registry import Registry
from bench.stats import Row, Target, TimesFaster

ARCHIVES: dict[str, Callable[[Path], Path]] = {DEBIAN: debian_archive, SMALL: small_archive}
TITLES = {DEBIAN: "Debian's image", SMALL: "an image of 20,000 small files"}
SIDES = ("Cove", "dockerd")


def stream(client: Client, path: str, data: bytes = b"{}") -> None:
    """POST, read the answer's JSON lines to their end; ApiError for one that is an error."""
    status, content = client.exchange("POST", path, data)
    for line in content.splitlines():
        if line.strip() and "error" in (found := json.loads(line)):
            raise ApiError(f"POST {path}", status, str(found["error"])[:300])
    if status >= 400:
        raise ApiError(f"POST {path}", status, content.decode("utf-8", "replace")[:300])


def pull(engine: Engine, reference: str) -> None:
    name, _, tag = reference.rpartition(":")
    with engine.client() as client:
        stream(client, f"/images/create?fromImage={quote(name, safe='')}&tag={tag}")


def push(engine: Engine, reference: str) -> None:
    name, _, tag = reference.rpartition(":")
    with engine.client() as client:
        stream(client, f"/images/{name}/push?tag={tag}")


def tag(engine: Engine, image: str, reference: str) -> None:
    name, _, version = reference.rpartition(":")
    with engine.client() as client:
        client.call("POST", f"/images/{image}/tag?repo={quote(name, safe='')}&tag={version}")


def loads(bench: Bench) -> Iterator[Row]:
    for image in (DEBIAN, SMALL):
        archive = ARCHIVES[image](bench.cache)

        def side(name: str, image: str = image, archive: Path = archive) -> Measure:
            engine = bench.engine(name)

            def measure() -> Iterator[float]:
                begin = time.perf_counter()
                engine.load(archive)
                yield time.perf_counter() - begin
                engine.remove_image(image)

            return measure

        yield from compare(bench, f"load of {TITLES[image]}", side, "POST /images/load of a docker-archive")


def pushes(bench: Bench) -> Iterator[Row]:
    """Each push goes to a registry that is empty and that the engine doesn't know."""
    for image in (DEBIAN, SMALL):
        archive = ARCHIVES[image](bench.cache)

        def side(name: str, image: str = image, archive: Path = archive) -> Measure:
            engine = bench.engine(name)
            engine.load(archive)

            def measure() -> Iterator[float]:
                directory = engine.directory.parent / f"push-{engine.name}"
                registry = Registry(engine, directory, directory / "storage")
                reference = registry.name(image)
                try:
                    tag(engine, image, reference)
                    begin = time.perf_counter()
                    push(engine, reference)
                    yield time.perf_counter() - begin
                    engine.remove_image(reference)
                finally:
                    registry.close()
                    shutil.rmtree(directory, ignore_errors=True)

            return measure

        yield from compare(
            bench, f"push of {TITLES[image]}", side, "to an empty docker-registry on the loopback device"
        )
        for name in SIDES:
            bench.engine(name).remove_image(image)


def pulls(bench: Bench) -> Iterator[Row]:
    """What dockerd pushed is pulled by both, each from a docker-registry in its own room over the same directory."""
    storage = bench.directory / "registry"
    dockerd = bench.dockerd()
    registries = {"dockerd": Registry(dockerd, bench.directory / "registry-dockerd", storage)}
    for image in (DEBIAN, SMALL):
        dockerd.load(ARCHIVES[image](bench.cache))
        tag(dockerd, image, registries["dockerd"].name(image))
        push(dockerd, registries["dockerd"].name(image))
        dockerd.remove_image(registries["dockerd"].name(image))
        dockerd.remove_image(image)
    registries["Cove"] = Registry(bench.cove(), bench.directory / "registry-Cove", storage)
    try:
        for image in (DEBIAN, SMALL):

            def side(name: str, image: str = image) -> Measure:
                engine, reference = bench.engine(name), registries[name].name(image)

                def measure() -> Iterator[float]:
                    begin = time.perf_counter()
                    pull(engine, reference)
                    yield time.perf_counter() - begin
                    engine.remove_image(reference)

                return measure

            note = "gzip layers that dockerd pushed, from docker-registry on the loopback device"
            yield from compare(bench, f"pull of {TITLES[image]}", side, note, TimesFaster(2))

        def warm(name: str) -> Measure:
            engine, reference = bench.engine(name), registries[name].name(DEBIAN)
            pull(engine, reference)
            request = body(["true"], "none") | {"Image": reference}

            def measure() -> Iterator[float]:
                with engine.client() as client:
                    begin = time.perf_counter()
                    pull(engine, reference)
                    run_whole_life(client, request)
                    yield time.perf_counter() - begin

            return measure

        note = "pull that finds every layer here, then create, start, wait, remove `true` without network"
        yield from compare(bench, "pull of a warm image and a run", warm, note)
    finally:
        for name, registry in registries.items():
            bench.engine(name).remove_all()
            registry.close()


def compare(
    bench: Bench, what: str, side: Callable[[str], Measure], note: str, *targets: Target
) -> Iterator[Row]:
    samples = bench.measure(
        bench.size(5, 1), {"Cove": lambda: side("Cove"), "dockerd": lambda: side("dockerd")}
    )
    note += f"; {samples.describe('Cove', 's')}, {samples.describe('dockerd', 's')}"
    yield bench.row(what, "s", samples, targets=tuple(targets), note=note)


CASES = (
    Case("load-trees", "load of Debian's image and of 20,000 small files", loads),
    Case("push", "push of both to docker-registry", pushes),
    Case("pull", "pull of both from docker-registry, and a run after a warm pull", pulls),
)
