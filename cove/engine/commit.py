"""`docker commit`: a container's files and settings as an image.

`merged_config` decides (pure; moby, daemon/commit.go); `Commits` freezes the container for as long as its writable
layer is read, unless told not to. A daemon that is killed meanwhile leaves no image, and the next one lets the
container go on.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Mapping, Sequence
from typing import Any

import msgspec

from cove.engine.create import merge_env
from cove.engine.health import healthcheck_json
from cove.engine.layerfacts import find_layer_facts
from cove.engine.lifecycle import Lifecycle
from cove.engine.parts import Parts
from cove.engine.types import View
from cove.image.changes import apply_changes
from cove.image.references import parse_tagged
from cove.image.types import Commit
from cove.image.worker import read_layer
from cove.model.container import Container
from cove.model.errors import Conflict, CoveError
from cove.model.objects import Image, ImageConfig

Config = dict[str, Any]  # an OCI image configuration's `config` object (image-spec, config.md)


def container_config(container: Container, image: ImageConfig) -> Config:
    """What a container runs with, as a configuration; what the image alone knows comes from there."""
    found: Config = {
        "User": container.user,
        "ExposedPorts": {port: {} for port in container.exposed_ports},
        "Env": list(container.env),
        "Entrypoint": list(container.entrypoint),
        "Cmd": list(container.command),
        "Volumes": {point.target: {} for point in container.mounts if point.anonymous}
        | {path: {} for path in image.volumes},
        "WorkingDir": container.working_dir if container.working_dir != "/" else image.working_dir,
        "Labels": dict(container.labels),
        "StopSignal": container.stop_signal if container.stop_signal != "SIGTERM" else image.stop_signal,
        "Shell": list(image.shell),
        "OnBuild": list(image.on_build),
    }
    if container.healthcheck is not None:
        found["Healthcheck"] = healthcheck_json(container.healthcheck)
    return {key: value for key, value in found.items() if value}


def merged_config(given: Config, container: Config, changes: Sequence[str]) -> Config:
    """The new image's configuration: `given` with `changes` (Dockerfile instructions) applied, and the container's for
    what that leaves out. Raises Invalid for a change that isn't one."""
    new = apply_changes(given or container, changes)
    merged = {**container, **{key: value for key, value in new.items() if value}}
    for key in ("ExposedPorts", "Volumes", "Labels"):
        if key in merged:
            merged[key] = {**container.get(key, {}), **(new.get(key) or {})}
    if new.get("Env"):
        merged["Env"] = list(merge_env(container.get("Env", ()), new["Env"]))
    if new.get("Entrypoint"):  # an entrypoint of the caller's drops the container's command
        merged.pop("Cmd", None)
        if new.get("Cmd"):
            merged["Cmd"] = new["Cmd"]
    if new.get("Healthcheck"):
        merged["Healthcheck"] = {**container.get("Healthcheck", {}), **new["Healthcheck"]}
    return merged


class Commits:
    """Makes images of containers."""

    def __init__(self, parts: Parts, lifecycle: Lifecycle) -> None:
        self._parts = parts
        self._lifecycle = lifecycle

    async def commit(
        self,
        view: View,
        *,
        given: Mapping[str, Any],
        changes: Sequence[str],
        comment: str,
        author: str,
        reference: str,
        pause: bool,
    ) -> Image:
        """Make an image of a container. Raises Invalid, Conflict, HostError; then there is none."""
        container = view.container
        if view.state.status in ("removing", "dead"):
            raise Conflict(f"You cannot commit container {container.id} which is being removed")
        name = parse_tagged(reference).familiar if reference else ""
        base = self._parts.images.image_by_id(container.image_id)
        config = merged_config(dict(given), container_config(container, base.config), changes)
        wanted = Commit(config=config, comment=comment, author=author, created_by=" ".join(container.args))
        async with self._still(view, pause):
            image = await self._read(container, base, wanted, name)
            self._parts.publish_image(image, "create", image.id)
            if name:
                self._parts.publish_image(image, "tag", name)
            self._parts.publish(container, "commit", comment=comment, imageID=image.id, imageRef=name)
        return image

    async def keep_files(self, container: Container) -> Image:
        """A nameless image with the files of a container that has ended, and its image's own configuration."""
        base = self._parts.images.image_by_id(container.image_id)
        config = msgspec.json.decode(self._parts.images.raw_config(base)).get("config") or {}
        return await self._read(
            container, base, Commit(config=config, created_by="cove recreate --keep-files"), ""
        )

    async def _read(self, container: Container, base: Image, wanted: Commit, name: str) -> Image:
        layers = [self._parts.images.layers_dir / path for path in self._parts.images.layer_paths(base)]
        await self._parts.ensure_layer(container)
        upper = self._parts.layer(container).upper
        facts = await asyncio.to_thread(find_layer_facts, upper, layers[::-1])
        async with contextlib.aclosing(read_layer(upper, facts.opaque, facts.left_out)) as chunks:
            return await self._parts.images.commit(chunks, base, wanted, name)

    @contextlib.asynccontextmanager
    async def _still(self, view: View, pause: bool) -> AsyncIterator[None]:
        """Keep a running container from changing its files; one that can't be frozen is read as it runs."""
        held = False
        if pause and view.state.status == "running":
            with contextlib.suppress(CoveError):
                await self._lifecycle.pause(view.container.id, held=True)
                held = True
        try:
            yield
        finally:
            if held:
                with contextlib.suppress(CoveError):  # somebody else let it go on, or removed it
                    await asyncio.shield(self._lifecycle.unpause(view.container.id))
