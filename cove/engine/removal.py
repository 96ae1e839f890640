"""What remains of a removed container goes: its directory, its state directory, anonymous volumes, addresses.

Runs after the record is gone from the store, so a crash in the middle leaves only what
`sweep_orphans` finds at the next start: directories without a record, and volumes noted as loose.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
from collections.abc import Sequence

from cove.engine.parts import Parts
from cove.model.container import Container
from cove.model.errors import Conflict, NotFound


def anonymous_volumes(container: Container) -> tuple[str, ...]:
    """The volumes that were made for this container alone."""
    return tuple(point.name for point in container.mounts if point.kind == "volume" and point.anonymous)


async def remove_container(parts: Parts, container: Container, *, volumes: bool) -> None:
    """Forget a container and take down all that it had; each part is idempotent."""
    loose = anonymous_volumes(container) if volumes else ()
    await parts.registry.delete(container.id, loose=loose)
    await parts.leave_networks(container.id)
    parts.logs.keep_unsent(container.id)
    if container.layer:
        await parts.layers.take_down(parts.settings.container_dir(container.id))
    parts.trash.discard(parts.settings.container_dir(container.id))
    shutil.rmtree(parts.settings.state_dir(container.id), ignore_errors=True)
    parts.forget_execs(container.id)
    if container.spec.extension.secrets:
        await parts.secret_files.withdraw(container)
        await parts.secrets.remove_owned(container.id)
    await parts.images.release(parts.image_users)
    if loose:
        await _remove_loose(parts, container.id, loose)


async def _remove_loose(parts: Parts, container_id: str, volumes: Sequence[str]) -> None:
    for name in volumes:
        record = parts.volumes.find(name)
        if record is None:
            continue
        with contextlib.suppress(Conflict, NotFound):  # in use by another (--volumes-from), or gone
            await parts.volumes.remove(name, force=False, in_use=parts.volume_users)
            parts.publish_volume(record, "destroy")
    await parts.registry.forget_loose(container_id)


async def sweep_orphans(parts: Parts) -> None:
    """Directories and volumes of containers that no record names: a create or a remove was cut off there."""
    for container_id, volumes in (await parts.registry.list_loose()).items():
        await _remove_loose(parts, container_id, volumes)
    known = set(parts.registry.ids())
    for root in (parts.settings.containers_dir, parts.settings.run_dir / "containers"):
        try:
            names = await asyncio.to_thread(os.listdir, root)
        except FileNotFoundError:
            continue
        for name in names:
            if name in known:
                continue
            if root == parts.settings.containers_dir:
                parts.logs.keep_unsent(name)
                await parts.discard_container_dir(name)
            else:
                await parts.end_stray(root / name)
                shutil.rmtree(root / name, ignore_errors=True)
    shutil.rmtree(
        parts.settings.run_dir / "builds", ignore_errors=True
    )  # secrets of builds that were cut off
