"""What remains of a removed container goes: its directory, its state directory, anonymous volumes, addresses.

Runs after the record is gone from the store, so a crash in the middle leaves only what
`sweep_orphans` finds at the next start: directories without a record.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil

from cove.engine.parts import Parts
from cove.model.container import Container
from cove.model.errors import CoveError


async def remove_remains(parts: Parts, container: Container, *, volumes: bool) -> None:
    """Take down all that a container had; each part is idempotent."""
    await parts.networks.disconnect(container.id)
    parts.trash.discard(parts.settings.container_dir(container.id))
    shutil.rmtree(parts.settings.state_dir(container.id), ignore_errors=True)
    parts.forget_execs(container.id)
    await parts.images.release(parts.image_users)
    if volumes:
        for point in container.mounts:
            if point.kind == "volume" and point.anonymous:
                with contextlib.suppress(CoveError):  # in use by another (--volumes-from), or gone
                    await parts.volumes.remove(point.name, force=False, in_use=parts.volume_users)


async def sweep_orphans(parts: Parts) -> None:
    """Directories of containers that no record names: a create or a remove was cut off there."""
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
                parts.trash.discard(root / name)
            else:
                await parts.end_stray(root / name)
                shutil.rmtree(root / name, ignore_errors=True)
