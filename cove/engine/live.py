"""What the daemon holds of a container beside its committed record: locks, waiters, timers. Never stored.

`Background` owns every task that outlives the call which began it: a failure is logged with what it
was about, and closing ends them all.
"""

from __future__ import annotations

import asyncio
import contextvars
import logging
import select
import socket
from collections.abc import Coroutine
from typing import Any

from cove.engine.health import Health
from cove.engine.types import WaitHandle, WaitResult
from cove.model.errors import Conflict
from cove.runtime.launch import Attach, Task

log = logging.getLogger("cove.engine")

MAX_PENDING = 64  # as many clients as a supervisor serves (native/src/streams.h)


class Background:
    """The owner of background tasks."""

    def __init__(self) -> None:
        self._tasks: set[asyncio.Task[None]] = set()

    def spawn(self, work: Coroutine[Any, Any, None], about: str) -> asyncio.Task[None]:
        # a context of its own: what it logs later isn't about the request that began it
        task = asyncio.get_running_loop().create_task(
            self._guarded(work, about), context=contextvars.Context()
        )
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    async def _guarded(self, work: Coroutine[Any, Any, None], about: str) -> None:
        try:
            await work
        except asyncio.CancelledError:
            raise
        except Exception:
            log.exception("%s failed", about)

    async def close(self) -> None:
        """Cancel what still runs and wait for its end."""
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


class Live:
    """One container's locks, waiters and living task. `lock` guards transitions; reads need none."""

    __slots__ = (
        "ended",
        "health",
        "lock",
        "next_exit",
        "pending",
        "removed",
        "restart_timer",
        "restarting",
        "resumed",
        "saw_oom",
        "settled",
        "task",
        "watchers",
    )

    def __init__(self) -> None:
        self.lock = asyncio.Lock()
        self.task: Task | None = None
        self.ended = asyncio.Event()  # the process is gone: log followers finish
        self.ended.set()
        self.settled = asyncio.Event()  # its exit has been committed, and its endpoints are free
        self.settled.set()
        self.pending: list[Attach] = []  # clients that attached before the start
        self.next_exit: list[asyncio.Future[WaitResult]] = []
        self.removed: list[asyncio.Future[WaitResult]] = []
        self.restart_timer: asyncio.TimerHandle | None = None
        self.restarting = 0  # restarts and re-creations under way: --rm spares it until they are done
        self.resumed = False  # its restart is the daemon's start: it waits for what it depends on
        self.saw_oom = False  # the event was published for this run
        self.watchers: list[asyncio.Task[None]] = []  # OOM events, health: they end with the run
        self.health: Health | None = None

    def cancel_restart(self) -> None:
        if self.restart_timer is not None:
            self.restart_timer.cancel()
            self.restart_timer = None

    def wait_on(self, waiters: list[asyncio.Future[WaitResult]]) -> WaitHandle:
        future: asyncio.Future[WaitResult] = asyncio.get_running_loop().create_future()
        waiters.append(future)
        future.add_done_callback(lambda done: waiters.remove(done) if done in waiters else None)
        return WaitHandle(future)

    def end_watchers(self) -> None:
        for watcher in self.watchers:
            watcher.cancel()
        self.watchers.clear()
        self.health = None

    def add_pending(self, attach: Attach) -> None:
        """Keep a client until the start; those that hung up meanwhile go. Raises Conflict when too many wait."""
        for gone in [waiting for waiting in self.pending if _hung_up(waiting.sock)]:
            gone.sock.close()
            self.pending.remove(gone)
        if len(self.pending) >= MAX_PENDING:
            raise Conflict(
                f"{MAX_PENDING} clients are attached to the container already, the most there can be: "
                "start it, or end one of them"
            )
        self.pending.append(attach)

    def drop_pending(self) -> None:
        """Hang up on clients that attached to a container which won't start."""
        for attach in self.pending:
            attach.sock.close()
        self.pending.clear()


def _hung_up(sock: socket.socket) -> bool:
    """Whether the peer closed both directions; who closed only its own may still want the output."""
    poller = select.poll()
    poller.register(sock.fileno(), 0)
    return any(event & (select.POLLHUP | select.POLLERR) for _, event in poller.poll(0))


def wake(waiters: list[asyncio.Future[WaitResult]], result: WaitResult) -> None:
    for future in list(waiters):
        if not future.done():
            future.set_result(result)
    waiters.clear()


def done_wait(result: WaitResult) -> WaitHandle:
    """A wait that is over already."""
    future: asyncio.Future[WaitResult] = asyncio.get_running_loop().create_future()
    future.set_result(result)
    return WaitHandle(future)
