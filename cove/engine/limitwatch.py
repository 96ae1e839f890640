"""What a run came up against: memory, processes, the size of its writable layer. It's told by an event and recorded.

The kernel tells of the first two; a layer's file system is asked now and then, and at the end of the run.
"""

from __future__ import annotations

import asyncio

import msgspec

from cove.engine.live import Background, Live
from cove.engine.parts import Parts
from cove.model.container import Container, Limit, State

DISK_INTERVAL_S = 5.0


class LimitWatch:
    """Watches the limits that a container has."""

    def __init__(self, parts: Parts, background: Background) -> None:
        self._parts = parts
        self._background = background

    def begin(self, container: Container, live: Live) -> None:
        """Watch a run until its watchers are ended."""
        resources, name = container.spec.resources, container.short_id
        if resources.memory_bytes > 0:
            work = self._watch_memory(container, live)
            live.watchers.append(self._background.spawn(work, f"OOM events of {name}"))
        if resources.pids_limit > 0:
            work = self._watch_pids(container, live)
            live.watchers.append(self._background.spawn(work, f"refused forks of {name}"))
        if container.layer:
            work = self._watch_disk(container, live)
            live.watchers.append(self._background.spawn(work, f"the writable layer of {name}"))

    def ended(self, container: Container, state: State) -> State:
        """The state with what can be seen of the limits once the run has ended."""
        usage = self._parts.layer_usage(container)
        if usage is None or not usage.full or "disk" in state.limited:
            return state
        self._tell(container, "disk", usage.limit_bytes)
        return msgspec.structs.replace(state, limited=(*state.limited, "disk"))

    async def _watch_memory(self, container: Container, live: Live) -> None:
        def told() -> None:
            view = self._parts.registry.get(container.id)
            if view is not None:
                live.saw_oom = True
                self._parts.publish(view.container, "oom")
                self._note(container, live, "memory")

        await self._parts.watch_oom(container, told)

    async def _watch_pids(self, container: Container, live: Live) -> None:
        if not await self._parts.wait_pids_limit(container):
            return
        view = self._parts.registry.get(container.id)
        if view is not None and "pids" not in view.state.limited:
            self._tell(view.container, "pids", view.container.spec.resources.pids_limit)
            self._note(container, live, "pids")

    async def _watch_disk(self, container: Container, live: Live) -> None:
        while True:
            await asyncio.sleep(DISK_INTERVAL_S)
            usage = await asyncio.to_thread(self._parts.layer_usage, container)
            view = self._parts.registry.get(container.id)
            if view is None or "disk" in view.state.limited:
                return
            if usage is not None and usage.full:
                self._tell(view.container, "disk", usage.limit_bytes)
                self._note(container, live, "disk")
                return

    def _tell(self, container: Container, resource: Limit, limit: int) -> None:
        self._parts.publish(container, "limit", resource=resource, limit=str(limit))

    def _note(self, container: Container, live: Live, limit: Limit) -> None:
        """Record that this run came up against a limit, even if it has ended by then."""
        view = self._parts.registry.get(container.id)
        if view is None:
            return
        started_ns = view.state.started_ns

        async def note() -> None:
            async with live.lock:
                view = self._parts.registry.get(container.id)
                if view is None or view.state.started_ns != started_ns or limit in view.state.limited:
                    return
                limited = (*view.state.limited, limit)
                await self._parts.registry.set_state(
                    container.id, msgspec.structs.replace(view.state, limited=limited)
                )

        self._background.spawn(note(), f"noting the {limit} limit of {container.short_id}")
