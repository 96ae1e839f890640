"""What containers open while they run: the recordings of one daemon (recorder.py)."""

from __future__ import annotations

import asyncio
import contextlib
from pathlib import Path

from cove.engine.lifecycle import Lifecycle
from cove.engine.parts import Parts
from cove.engine.recorder import Recorder
from cove.engine.types import View
from cove.image.tooljobs import Recorded
from cove.model.errors import Conflict

MAX_S = 24 * 3600.0


class Recordings:
    """Records containers."""

    def __init__(self, parts: Parts, lifecycle: Lifecycle) -> None:
        self._parts = parts
        self._lifecycle = lifecycle

    async def record(self, view: View, *, start: bool, for_s: float) -> Recorded:
        """Record a container until it ends, or for a time. `start` starts it. Conflict, Unavailable, HostError."""
        container = view.container
        if container.id in self._parts.recorders:
            raise Conflict(f"container {container.name} is being recorded: wait until that has ended")
        running = view.state.status == "running"
        if start and running:
            raise Conflict(
                f"container {container.name} runs already: leave start out to record it as it runs"
            )
        if not start and not running:
            raise Conflict(f"container {container.name} isn't running: start it, or say start=1")
        recorder = Recorder()
        self._parts.recorders[container.id] = recorder
        try:
            if start:
                await self._lifecycle.start(container.id)
            else:
                await recorder.begin(view.state.pid, Path("/"))
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(min(for_s or MAX_S, MAX_S)):
                    await self._wait_ended(container.id)
            return await recorder.end()
        finally:
            del self._parts.recorders[container.id]
            await recorder.drop()

    async def _wait_ended(self, container_id: str) -> None:
        await self._lifecycle.live(container_id).ended.wait()
