"""How much disk a tree takes: for `ps -s`, `system df` and `volume prune`."""

from __future__ import annotations

import asyncio
import os
import stat
import time
from pathlib import Path

import msgspec

from cove.storage.beneath import open_beneath

WALKS = 2
REST = 9
QUICK_S = 0.05
REMEMBERED = 4096


class Usage(msgspec.Struct, frozen=True):
    """Bytes of the files' contents (directories don't count, a hard link counts once), and entries."""

    size_bytes: int = 0
    entries: int = 0


class Meter:
    """Measures trees in threads, a few at a time.

    Who asks for a tree that is being measured gets that answer, and a tree that took long is measured again only after
    REST times as long: asking all the time costs a tenth of a processor at most.
    """

    def __init__(self) -> None:
        self._slots = asyncio.Semaphore(WALKS)
        self._running: dict[Path, asyncio.Task[Usage]] = {}
        self._known: dict[Path, tuple[Usage, float]] = {}  # until when (monotonic)

    async def measure(self, path: Path) -> Usage:
        """See `measure_tree`; a missing tree takes nothing."""
        known = self._known.get(path)
        if known is not None:
            if known[1] > time.monotonic():
                return known[0]
            del self._known[path]
        running = self._running.get(path)
        if running is None:
            running = self._running[path] = asyncio.get_running_loop().create_task(self._walk(path))
            running.add_done_callback(lambda _: self._running.pop(path, None))
        return await asyncio.shield(running)

    async def _walk(self, path: Path) -> Usage:
        async with self._slots:
            begun_s = time.monotonic()
            usage = await asyncio.to_thread(measure_tree, path)
        now_s = time.monotonic()
        if now_s - begun_s > QUICK_S:
            if len(self._known) >= REMEMBERED:
                self._known.clear()
            self._known[path] = (usage, now_s + REST * (now_s - begun_s))
        return usage


def measure_tree(path: Path) -> Usage:
    """Blocking. Symlinks aren't followed and mounts aren't entered; what vanishes meanwhile isn't counted."""
    try:
        root = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except OSError:
        return Usage()
    size = entries = 0
    linked: set[int] = set()
    directories = ["."]
    try:
        while directories:
            directory = directories.pop()
            try:
                descriptor = open_beneath(root, directory, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
            except OSError:
                continue  # gone, a mount, or deeper than a path can name
            try:
                with os.scandir(descriptor) as found:
                    for entry in found:
                        entries += 1
                        try:
                            status = os.stat(entry.name, dir_fd=descriptor, follow_symlinks=False)
                        except OSError:
                            continue
                        if stat.S_ISDIR(status.st_mode):
                            directories.append(f"{directory}/{entry.name}")
                        elif status.st_nlink == 1 or status.st_ino not in linked:
                            size += status.st_size
                            if status.st_nlink > 1:
                                linked.add(status.st_ino)
            finally:
                os.close(descriptor)
    finally:
        os.close(root)
    return Usage(size, entries)
