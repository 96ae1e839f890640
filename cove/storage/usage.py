"""How much disk a tree takes: for `ps -s`, `system df` and `volume prune`."""

from __future__ import annotations

import asyncio
import os
import stat
from pathlib import Path

import msgspec

from cove.storage.beneath import open_beneath


class Usage(msgspec.Struct, frozen=True):
    """Bytes of the files' contents (directories don't count, a hard link counts once), and entries."""

    size_bytes: int = 0
    entries: int = 0


async def disk_usage(path: Path) -> Usage:
    """Measure a tree in a thread; a missing one takes nothing.

    Symlinks aren't followed and mounts aren't entered; what vanishes while this looks isn't counted.
    """
    return await asyncio.to_thread(_measure, path)


def _measure(path: Path) -> Usage:
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
