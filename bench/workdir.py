"""The run's directory: a filesystem made for it, a lock that says it is in use, and sweeping after a kill.

Every side works on one fresh ext4 with a journal (Debian's default), on a loop device. The machine's own
filesystem would tell its history: an ext4 without a journal, as virtual machine images have, doesn't give
out the number of a file that was removed in the last minutes, and searches past thousands of them at every
creation (`recently_deleted` in the kernel's fs/ext4/ialloc.c), so that each round would slow down the next.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import subprocess
from pathlib import Path

from bench.room import remove_cgroups

WORK = Path("/var/tmp")
PREFIX = "cove-bench-"
SIZE_BYTES = 16 << 30  # sparse: what isn't used takes no space
MOUNT_POINT = "fs"


def make_filesystem(directory: Path) -> Path | None:
    """Make and mount a filesystem below `directory`; None where that isn't possible (no loop device)."""
    image, mount_point = directory / "fs.img", directory / MOUNT_POINT
    mount_point.mkdir()
    with image.open("wb") as file:
        file.truncate(SIZE_BYTES)
    try:
        run(["mkfs.ext4", "-q", "-F", "-E", "lazy_itable_init=0,lazy_journal_init=0", str(image)])
        run(["mount", "-o", "loop", str(image), str(mount_point)])
    except (OSError, subprocess.SubprocessError):
        image.unlink()
        mount_point.rmdir()
        return None
    return mount_point


def unmount(mount_point: Path) -> None:
    """Unmount; lazily where a process that was just killed still has it open. Its loop device goes with it."""
    run(["umount", "--lazy", str(mount_point)])


def run(argv: list[str]) -> None:
    path = os.environ.get("PATH", "") + ":/usr/sbin:/sbin"
    subprocess.run(argv, check=True, capture_output=True, timeout=120, env=os.environ | {"PATH": path})


def lock(directory: Path) -> int:
    """A descriptor that marks a run's directory as in use while it is open; BlockingIOError if it is."""
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(descriptor)
        raise
    return descriptor


def sweep(work: Path) -> None:
    """Remove directories, mounts and cgroups of runs that were killed: their rooms went with them."""
    for directory in work.glob(f"{PREFIX}*"):
        try:
            if not any(directory.iterdir()):
                continue  # another run is about to lock it
            held = lock(directory)
        except OSError:
            continue
        try:
            for side in ("cove", "dockerd", "floor", "runc", "runtime"):
                remove_cgroups(f"{directory.name}-{side}")
            if os.path.ismount(directory / MOUNT_POINT):
                unmount(directory / MOUNT_POINT)
            shutil.rmtree(directory, ignore_errors=True)
        finally:
            os.close(held)
