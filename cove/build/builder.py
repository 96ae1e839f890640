"""The builder's face: what the API calls. One for each daemon.

A build ends with the request that asked for it: what ran for it is killed, what it had received is thrown away, and
what it finished stays in the cache.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Awaitable, Callable, Collection, Coroutine, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from cove.build.cache import Cache, Entry
from cove.build.contexts import Contexts
from cove.build.copying import FileCopier
from cove.build.events import BuildEvent
from cove.build.graph import Graph
from cove.build.mounts import CacheMounts, Secrets
from cove.build.remote import Remotes
from cove.build.running import Runner
from cove.build.sharing import Shared
from cove.build.solver import Open, Solver, Solving
from cove.engine.engine import Engine
from cove.image.content import delete_tree
from cove.image.references import parse_reference
from cove.image.registry import PullEvent, PullOptions
from cove.image.registry.auth import Credentials
from cove.image.registry.endpoints import Registries
from cove.image.registry.messages import Timing
from cove.model.container import ContainerSpec
from cove.model.objects import Image

Emit = Callable[[BuildEvent], Coroutine[None, None, None]]

KINDS = ("regular", "exec.cachemount", "source.local")  # of what prune removes, as BuildKit calls them
_MEASURE_MOUNTS_S = 600.0


@dataclass(frozen=True, kw_only=True)
class Order:
    """A build that is to be done: its graph, and what a Graph can't say."""

    graph: Graph
    contexts: Mapping[str, Open] = field(default_factory=dict)
    names: tuple[str, ...] = ()
    spec: ContainerSpec = field(default_factory=lambda: ContainerSpec(image=""))
    source_date_epoch_s: int | None = None
    secrets: Mapping[str, bytes] = field(default_factory=dict)
    agents: Mapping[str, Path] = field(default_factory=dict)


class Builder:
    """See the module."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._images = engine.images
        self.cache = Cache(engine.images)
        self.mounts = CacheMounts(engine.settings.data_root / "builds" / "mounts")
        self.contexts = Contexts(engine.settings.data_root / "builds" / "contexts")
        self._shared = Shared()
        self._mounts_measured_s = -_MEASURE_MOUNTS_S
        self._run_dir = engine.settings.run_dir / "builds"

    async def build(self, order: Order, emit: Emit) -> Image:
        """Build it, telling `emit`. Raises BuildFailed, or what the host did; then nothing is left but the cache."""
        clamp_ns = None if order.source_date_epoch_s is None else order.source_date_epoch_s * 10**9
        runner = Runner(
            self._images,
            self._engine.side_runs,
            self.mounts,
            Secrets(self._run_dir, order.secrets, order.agents),
            order.spec,
            clamp_ns,
        )
        solving = Solving(
            graph=order.graph,
            contexts=order.contexts,
            fetch=Remotes(self._images, order.secrets).fetch,
            names=order.names,
            clamp_ns=clamp_ns,
            runner=runner,
            copier=FileCopier(self._images, clamp_ns),
            admit=self._engine.admission.check,
        )
        try:
            image = await Solver(self._images, self.cache, self._shared, solving, emit).solve()
        finally:
            await self._bound_cache()
        for name in order.names:
            self._engine.publish_image(image, "tag", name)
        return image

    async def _bound_cache(self) -> None:
        """Keep the cache to its size: the longest unused results go first."""
        keep = self._engine.settings.build_cache_bytes
        if not keep:
            return
        if self.cache.used_bytes() > keep:
            await self.cache.prune(keep_bytes=keep)
        if time.monotonic() - self._mounts_measured_s > _MEASURE_MOUNTS_S:  # reading all names takes its time
            self._mounts_measured_s = time.monotonic()
            await self.prune(lambda entry: True, keep_bytes=keep)

    async def pull(
        self,
        reference: str,
        platform: str,
        credentials: Mapping[str, Credentials],
        tell: Callable[[PullEvent], Awaitable[None]],
    ) -> Image:
        """Bring a base image from its registry; `credentials` by the registry's host. Raises what a pull raises."""
        settings = self._engine.settings
        parsed = parse_reference(reference).with_default_tag()
        options = PullOptions(
            platform=platform,
            credentials=credentials.get(parsed.name.partition("/")[0], Credentials()),
            registries=Registries(mirrors=settings.registry_mirrors, insecure=settings.insecure_registries),
            downloads=settings.max_downloads,
            timing=Timing(attempts=settings.download_attempts),
            check=self._engine.admission.pull_check,
        )
        async with contextlib.aclosing(self._images.pull(parsed.familiar, options)) as events:
            async for event in events:
                await tell(event)
        return self._images.find_image(parsed.familiar)

    async def prune(
        self,
        select: Callable[[Entry], bool],
        *,
        keep_bytes: int = 0,
        latest_ns: int | None = None,
        kinds: Collection[str] = KINDS,
        ids: Sequence[str] = (),
    ) -> tuple[list[str], int]:
        """Remove results that `select` takes, caches and contexts that were used last by `latest_ns`, results first,
        until what stays takes at most `keep_bytes`. What went, and the bytes that it took."""
        names: list[str] = []
        freed = 0
        mounts = await asyncio.to_thread(self.mounts.usage)
        if "regular" in kinds:
            others = sum(mount.size_bytes for mount in mounts)
            room = max(1, keep_bytes - others) if keep_bytes else 0
            gone, freed = await self.cache.prune(select, keep_bytes=room)
            names += [entry.key for entry in gone]
        if "exec.cachemount" in kinds:
            total = self.cache.used_bytes() + sum(mount.size_bytes for mount in mounts)
            for mount in sorted(mounts, key=lambda one: one.used_ns):
                if keep_bytes and total <= keep_bytes:
                    break
                if latest_ns is not None and mount.used_ns > latest_ns:
                    continue
                if ids and not any(mount.name.startswith(one) for one in ids):
                    continue
                place = self.mounts.give_up(mount.name)
                if place is not None:
                    total -= mount.size_bytes
                    freed += mount.size_bytes
                    names.append(mount.name)
            for place in self.mounts.given_up():
                await asyncio.to_thread(delete_tree, place)
        if "source.local" in kinds and not ids and latest_ns is None and not keep_bytes:
            freed += await asyncio.to_thread(self.contexts.prune)
        return names, freed
