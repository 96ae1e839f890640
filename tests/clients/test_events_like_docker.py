"""The events of one long script on Cove and on dockerd: the same types, actions and attributes in the same order.

What differs is in DIFFERENT, with the reason, and is left out.
"""

from __future__ import annotations

import difflib
import io
import tarfile
import time
from typing import Any

import docker
import pytest

from tests.clients.engines import Engine, missing_program, running_engine

Told = tuple[str, str, tuple[str, ...]]

# (type, action) → how Cove's differs from dockerd 20.10's, and why. These are left out of the comparison.
DIFFERENT: dict[tuple[str, str], str] = {
    ("volume", "create"): "dockerd tells it again when a container is created with a volume that exists",
    ("volume", "mount"): "dockerd mounts a volume for each docker cp, too",
    ("volume", "unmount"): "dockerd mounts a volume for each docker cp, too",
    ("network", "disconnect"): "dockerd 20.10 tells it twice of a disconnect by hand",
    ("image", "create"): "dockerd tells it from version 25 on",
    ("container", "die"): "execDuration came with API 1.42",
}


def script(engine: Engine) -> list[Told]:
    """Everything that makes an event, and what was told of it."""
    client = engine.client
    since = time.time()
    image = client.images.get("busybox:latest")
    image.tag("events", "1")
    network = client.networks.create("events-net", driver="bridge", labels={"a": "b"})
    volume = client.volumes.create("events-volume", labels={"a": "b"})
    container = client.containers.create(
        "events:1",
        ["sleep", "1000"],
        name="events",
        labels={"tier": "front"},
        volumes={"events-volume": {"bind": "/v", "mode": "ro"}},
    )
    container.start()
    network.connect(container)
    network.disconnect(container)
    container.pause()
    container.unpause()
    container.rename("events-2")
    container.update(cpu_shares=512)
    container.exec_run(["true"])
    container.top()
    container.put_archive("/tmp" if _has(container, "/tmp") else "/", _archive())
    container.get_archive("/bin/busybox")[0].close()  # type: ignore[attr-defined]
    container.kill("CONT")
    container.restart(timeout=0)
    for _ in container.export():
        pass
    made = container.commit("events-made", "1", message="m", author="Ada")
    container.stop(timeout=0)
    container.remove()
    for _ in made.save():
        pass
    client.images.remove("events-made:1")
    client.images.remove("events:1")
    network.remove()
    volume.remove()
    client.containers.prune()
    client.volumes.prune()
    client.networks.prune()
    client.images.prune()
    found = client.events(since=f"{since:.6f}", until=f"{time.time() + 1:.6f}", decode=True)
    return [_told(event) for event in found if event["Type"] in ("container", "image", "volume", "network")]


def _has(container: Any, path: str) -> bool:
    try:
        container.get_archive(path)[0].close()
    except docker.errors.NotFound:
        return False
    return True


def _archive() -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as tar:
        tar.addfile(tarfile.TarInfo("empty"))
    return out.getvalue()


def _told(event: dict[str, Any]) -> Told:
    action = event["Action"].partition(":")[0]
    return event["Type"], action, tuple(sorted(event["Actor"]["Attributes"]))


@pytest.fixture(scope="module")
def both() -> dict[str, list[Told]]:
    if problem := missing_program("dockerd", "containerd"):
        pytest.skip(f"{problem} isn't installed: apt-get install docker.io")
    found = {}
    for name in ("cove", "dockerd"):
        for engine in running_engine(name):
            found[name] = script(engine)
    return found


def test_the_same_is_told(both: dict[str, list[Told]]) -> None:
    kept = {name: [told for told in tolds if told[:2] not in DIFFERENT] for name, tolds in both.items()}
    lines = {
        name: [f"{kind} {action} {' '.join(keys)}" for kind, action, keys in tolds]
        for name, tolds in kept.items()
    }
    difference = difflib.unified_diff(lines["dockerd"], lines["cove"], "dockerd", "cove", lineterm="", n=2)
    assert lines["cove"] == lines["dockerd"], "\n".join(difference)
