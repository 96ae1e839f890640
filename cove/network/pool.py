"""Ready network namespaces of the default bridge: made before they are needed.

Owns the ready ones and the decision how many there should be: `size` when it is quiet, up to MOST after a
start found none (the next start then finds one, also when many come at once). A ready namespace is a
descriptor and an endpoint; when it isn't wanted any more, closing the descriptor is all it takes.
"""

from __future__ import annotations

import asyncio
import logging
import os
from collections import deque
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from cove.model.container import Endpoint
from cove.model.errors import CoveError

log = logging.getLogger(__name__)

MOST = 32
QUIET_S = 0.03  # how long a replacement waits, as long as there are enough


@dataclass(frozen=True, slots=True)
class Ready:
    """A namespace that waits for its container."""

    namespace: int
    endpoint: Endpoint


class NamespacePool:
    """See the module. `make` makes one; `discard` takes back what belonged to one that is closed."""

    def __init__(
        self, size: int, make: Callable[[], Awaitable[Ready]], discard: Callable[[Endpoint], None]
    ) -> None:
        self._size = size
        self._target = size
        self._make = make
        self._discard = discard
        self._ready: deque[Ready] = deque()
        self._wanted = asyncio.Event()
        self._full = asyncio.Event()
        self._low = asyncio.Event()  # half of them are taken
        self._missed = False
        self._filler: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Begin to fill, behind the caller's back."""
        if self._size > 0:
            self._wanted.set()
            self._filler = asyncio.get_running_loop().create_task(self._fill())

    def take(self) -> Ready | None:
        """A ready one, or None; a replacement is made behind."""
        if self._size == 0:
            return None
        self._wanted.set()
        self._full.clear()
        if len(self._ready) * 2 <= self._target + 2:
            self._low.set()
        if self._ready:
            return self._ready.popleft()
        self._missed = True
        self._target = min(max(self._target * 2, 1), MOST)
        return None

    def names(self) -> set[str]:
        """The host ends of the ready ones."""
        return {ready.endpoint.host_interface for ready in self._ready}

    async def wait_full(self) -> None:
        """Wait until as many are ready as there should be, or until one couldn't be made."""
        if self._filler is not None:
            await self._full.wait()

    def relax(self) -> None:
        """Called now and then: go back to `size` when no start had to wait since the last call."""
        if not self._missed:
            self._target = self._size
            while len(self._ready) > self._target:
                self._drop(self._ready.pop())
        self._missed = False

    async def close(self) -> None:
        """Stop filling and close what is ready."""
        if self._filler is not None:
            self._filler.cancel()
            await asyncio.gather(self._filler, return_exceptions=True)
            self._filler = None
        while self._ready:
            self._drop(self._ready.pop())

    async def _fill(self) -> None:
        while True:
            await self._wanted.wait()
            self._wanted.clear()
            await self._wait_quiet()
            try:
                while len(self._ready) < self._target:
                    self._ready.append(await self._make())
            except CoveError as error:
                # The next start tries for itself, and tells its caller what is wrong.
                log.warning("no network namespace can be kept ready: %s", error)
            self._full.set()

    async def _wait_quiet(self) -> None:
        """Let the start that took one have the processors to itself, unless many come at once."""
        if self._ready and not self._low.is_set():
            try:
                async with asyncio.timeout(QUIET_S):
                    await self._low.wait()
            except TimeoutError:
                pass
        self._low.clear()

    def _drop(self, ready: Ready) -> None:
        os.close(ready.namespace)
        self._discard(ready.endpoint)
