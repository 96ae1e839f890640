"""The trash: trees are renamed into it at once and deleted behind the caller's back.

Owns DATA_ROOT/trash and one thread that empties it. The thread runs at a low priority and sleeps as
long as it works, so that deleting a big layer takes half of one processor at most. What is left when
the daemon ends is found at the next open; so is what couldn't be deleted.

Order that must hold: whoever gives a tree up records that first, then calls `discard`.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
import os
import queue
import secrets
import threading
import time
from contextlib import suppress
from pathlib import Path

from cove.model.errors import HostError
from cove.storage.erase import Stopped, erase

_log = logging.getLogger(__name__)
_BURST_S = 0.005  # of processor time, then a pause as long as that
_QUIET_S = 0.002  # before each tree: the removal that gave it up is still being answered
_NICENESS = 5


class Trash:
    """A directory whose entries are being deleted. Made by `open`."""

    def __init__(self, root: Path) -> None:
        self._root = root
        self._descriptor = os.open(root, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        self._loop = asyncio.get_running_loop()
        self._names: queue.SimpleQueue[str | None] = queue.SimpleQueue()
        self._numbers = itertools.count()
        self._prefix = secrets.token_hex(8)  # names of an earlier run are never taken again
        self._pending = 0
        self._idle = asyncio.Event()
        self._idle.set()
        self._stop = threading.Event()
        self._burst_start = 0.0  # by the thread's own processor time
        self._thread = threading.Thread(target=self._empty, name="trash", daemon=True)
        self._thread.start()

    @classmethod
    async def open(cls, root: Path) -> Trash:
        """Make the directory when missing, and go on with what an earlier run left there."""
        try:
            root.mkdir(mode=0o700, exist_ok=True)
            trash = cls(root)
            for name in os.listdir(root):
                trash._add(name)
        except OSError as error:
            raise HostError(f"the trash {root} can't be used: {error.strerror}") from error
        return trash

    def discard(self, path: Path) -> None:
        """Rename a tree (or a file) into the trash; it is gone from its place when this returns.

        A path that doesn't exist is fine. It must be on the trash's filesystem and no mount point.
        """
        name = self._new_name()
        try:
            os.rename(path, name, dst_dir_fd=self._descriptor)
        except FileNotFoundError:
            return
        except OSError as error:
            raise HostError(f"{path} can't be moved into {self._root}: {error.strerror}") from error
        self._add(name)

    async def wait_empty(self) -> None:
        """Return once everything that was discarded is deleted, or has turned out not to be deletable."""
        await self._idle.wait()

    async def close(self) -> None:
        """Stop after the entry that is being deleted; the rest is for the next open. Idempotent."""
        if self._stop.is_set():
            return
        self._stop.set()
        self._names.put(None)
        await asyncio.to_thread(self._thread.join)
        os.close(self._descriptor)
        self._idle.set()

    def _new_name(self) -> str:
        return f"{self._prefix}-{next(self._numbers)}"

    def _add(self, name: str) -> None:
        self._pending += 1
        self._idle.clear()
        self._names.put(name)

    def _done(self) -> None:
        self._pending -= 1
        if not self._pending:
            self._idle.set()

    # --- in the thread --------------------------------------------------------------------

    def _empty(self) -> None:
        with suppress(OSError):
            os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), _NICENESS)
        while (name := self._names.get()) is not None:
            self._stop.wait(_QUIET_S)
            try:
                self._erase(name)
            except Stopped:
                return
            except Exception:
                _log.exception("deleting %s/%s failed", self._root, name)
            with suppress(RuntimeError):  # the loop has ended without closing the trash
                self._loop.call_soon_threadsafe(self._done)

    def _erase(self, name: str) -> None:
        """Delete one entry, and the directories that were moved up from inside it."""
        left = [name]

        def move_up(directory: int, deep: str) -> None:
            up = self._new_name()
            os.rename(deep, up, src_dir_fd=directory, dst_dir_fd=self._descriptor)
            left.append(up)

        while left:
            failures = erase(self._descriptor, left.pop(), self._pace, move_up)
            for failure in failures[:3]:
                _log.warning(
                    "%s can't be deleted from %s: %s", failure.filename, self._root, failure.strerror
                )

    def _pace(self) -> None:
        if self._stop.is_set():
            raise Stopped
        if time.thread_time() - self._burst_start >= _BURST_S:
            self._stop.wait(_BURST_S)
            self._burst_start = time.thread_time()
