"""Take interfaces, addresses and tracked connections back, behind the callers' backs.

Owns what is doomed. An endpoint's life ends in this order: its interface is gone from the host, its
addresses from the store, and only then may they be given out again. What ends with its namespace is left
to the kernel, which is why a round waits a moment first.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Coroutine, Iterable, Sequence

from cove.model.container import Endpoint
from cove.model.errors import CoveError, HostError
from cove.network import conntrack
from cove.network.endpoints import address_keys
from cove.network.namespaces import Workshop
from cove.store.interface import Delete, Store

log = logging.getLogger(__name__)

_GATHER_S = 0.2
_RETRY_S = 2.0
_FLUSH_ROUNDS = 4
_OPERATIONS = 500  # of one transaction of the store


class Reaper:
    """See the module. `free` is called for each endpoint whose addresses can be given out again."""

    def __init__(
        self, workshop: Workshop, store: Store, group: int, free: Callable[[Endpoint], None]
    ) -> None:
        self._workshop = workshop
        self._store = store
        self._group = group
        self._free = free
        self._doomed: list[Endpoint] = []
        self._udp: set[int] = set()
        self._wanted = asyncio.Event()
        self._now = asyncio.Event()
        self._done = asyncio.Event()
        self._busy = False
        self._tasks: set[asyncio.Task[None]] = set()

    def start(self) -> None:
        self._spawn(self._reap_forever())

    async def close(self) -> None:
        """Stop; what is doomed still is taken back by the next daemon's reconcile."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    @property
    def idle(self) -> bool:
        """Whether there is nothing to take back."""
        return not self._doomed and not self._busy

    def bury(self, endpoint: Endpoint, *, alive: bool = False) -> None:
        """Have an endpoint taken back; `alive`: its namespace stays, so that there is nothing to wait for."""
        self._doomed.append(endpoint)
        self._wanted.set()
        if alive:
            self._now.set()

    def forget_udp(self, ports: Iterable[int]) -> None:
        """Have the kernel forget who sent to these UDP ports: at once, but nobody waits (it takes 20 ms)."""
        wanted = set(ports)
        if wanted:
            self._spawn(self._forget_udp(wanted))

    async def flush(self) -> None:
        """Wait until everything buried so far is taken back; gives up when it fails again and again."""
        for _ in range(_FLUSH_ROUNDS):
            if self.idle:
                return
            self._done.clear()
            self._now.set()
            await self._done.wait()

    async def delete_links(self, host_names: Sequence[str]) -> None:
        """Delete interfaces that no endpoint knows of. Raises HostError."""
        await self._in_thread(self._workshop.reap, host_names, self._group)

    async def delete_keys(self, keys: Sequence[str]) -> None:
        """Delete keys of the store, in transactions that are small enough."""
        for start in range(0, len(keys), _OPERATIONS):
            await self._store.txn([], [Delete(key) for key in keys[start : start + _OPERATIONS]])

    async def _reap_forever(self) -> None:
        while True:
            await self._wanted.wait()
            try:
                async with asyncio.timeout(_GATHER_S):
                    await self._now.wait()
            except TimeoutError:
                pass
            self._wanted.clear()
            self._now.clear()
            doomed, self._doomed = self._doomed, []
            self._busy = True
            try:
                await self._reap(doomed)
            except (CoveError, OSError) as error:
                log.error("interfaces of stopped containers can't be taken back, trying again: %s", error)
                self._doomed += doomed
                self._wanted.set()
                await asyncio.sleep(_RETRY_S)
            finally:
                self._busy = False
                self._done.set()

    async def _reap(self, doomed: Sequence[Endpoint]) -> None:
        await self.delete_links([endpoint.host_interface for endpoint in doomed])
        await self.delete_keys([key for endpoint in doomed for key in address_keys(endpoint)])
        for endpoint in doomed:
            self._free(endpoint)

    async def _forget_udp(self, ports: set[int]) -> None:
        try:
            await self._in_thread(conntrack.forget_udp, ports)
        except (HostError, OSError) as error:
            log.warning("UDP clients from before may not reach ports %s: %s", sorted(ports), error)

    async def _in_thread(self, work: Callable[..., None], *arguments: object) -> None:
        await asyncio.get_running_loop().run_in_executor(self._workshop.reaper, work, *arguments)

    def _spawn(self, work: Coroutine[object, object, None]) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
