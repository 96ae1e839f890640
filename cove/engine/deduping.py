"""Equal files of layers: which layers are in use when they are joined, and joining by itself after a load.

With the key `dedupe` new layers are compared with all others once nothing is loaded, pulled or built any more. What is
missed (a daemon that ends meanwhile, layers that were in use) `cove image dedupe` finds.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Callable, Sequence

from cove.engine.live import Background
from cove.engine.parts import Parts
from cove.image.hostmounts import read_mounted
from cove.image.tooljobs import Deduped
from cove.image.types import Use
from cove.model.errors import Conflict, CoveError

log = logging.getLogger(__name__)
_PAUSE_S = 1.0  # between looks whether the images' room is idle


class Deduping:
    """See the module."""

    def __init__(self, parts: Parts, background: Background, users: Callable[[str], Sequence[Use]]) -> None:
        """`users`: the containers of an image."""
        self._parts = parts
        self._background = background
        self._users = users
        self._fresh: set[str] = set()
        self._runs = False
        parts.images.on_layers = self._added

    async def dedupe(self, *, fresh: set[str] | None = None, dry_run: bool = False) -> Deduped:
        """Have equal files share their place on the disk. Conflict, HostError."""
        images = self._parts.images
        hosts = read_mounted()
        everything = {one.id: one for _, _, users in images.layer_uses() for one in users}  # hidden ones, too
        mounted = [
            one
            for one in everything.values()
            if one.id in hosts or any(use.running for use in self._users(one.id))
        ]
        return await images.dedupe(mounted, fresh=fresh, dry_run=dry_run)

    def _added(self, diff_ids: Sequence[str]) -> None:
        if not self._parts.settings.dedupe:
            return
        self._fresh.update(diff_ids)
        if not self._runs and self._fresh:
            self._runs = True
            self._background.spawn(self._run(), "joining equal files of layers")

    async def _run(self) -> None:
        try:
            while self._fresh:
                await asyncio.sleep(_PAUSE_S)
                if self._parts.images.is_busy:
                    continue
                fresh, self._fresh = self._fresh, set()
                with contextlib.suppress(Conflict):  # somebody was quicker
                    found = await self.dedupe(fresh=fresh)
                    log.info("%d files of new layers joined: %d bytes saved", found.joined, found.saved_bytes)
        except CoveError as error:
            log.warning("equal files of layers can't be joined: %s", error)
        finally:
            self._runs = False
