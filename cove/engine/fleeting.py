"""Work on a container's files, which doesn't hold its lock: it may start, end or be removed meanwhile.

Then the files are elsewhere, or gone, and what failed was no fault of the host's: the work is done once more where
they are now, or the caller is told what has become of the container.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import TypeVar

from cove.engine.lifecycle import Lifecycle
from cove.engine.types import View
from cove.model.errors import Conflict, HostError

T = TypeVar("T")
MAX_TRIES = 3
SETTLE_BOUND_S = 10.0


async def work_on(
    lifecycle: Lifecycle,
    find: Callable[[str], View],
    reference: str,
    work: Callable[[View], Awaitable[T]],
    *,
    again: bool = True,
) -> T:
    """What `work` returns of the container as it is now; `again` unless it can be done only once.

    Raises what `find` raises when it has been removed, Conflict when it started or ended once more at each try, and
    what `work` raises otherwise.
    """
    view = find(reference)
    for number in range(1, MAX_TRIES + 1):
        try:
            return await work(view)
        except HostError:
            before, view = view, find(view.container.id)
            task = lifecycle.live(view.container.id).task
            if task is not None and task.ends():  # which is on record in a moment
                await _settle(lifecycle, view)
                view = find(view.container.id)
            if view.state.pid == before.state.pid and view.state.status == before.state.status:
                raise
            if not again or number == MAX_TRIES:
                raise Conflict(
                    f"container {view.container.id} started or ended meanwhile: try again"
                ) from None
    raise AssertionError("unreachable")


async def _settle(lifecycle: Lifecycle, view: View) -> None:
    try:
        async with asyncio.timeout(SETTLE_BOUND_S):
            await lifecycle.live(view.container.id).settled.wait()
    except TimeoutError:
        return
