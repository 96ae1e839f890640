"""Mounts and unmounts (`mounter`): by a helper process with a bound on its time, or by a thread.

A thread does what can't hang and has no stranger's content: a tmpfs, and an image of Cove's own. It saves the 40 ms
that a process takes to start.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import sys
from pathlib import Path

import msgspec

from cove.model.errors import HostError
from cove.storage.mounter import Failure, Job, MountJob, UnmountJob, run
from cove.storage.volume_options import Filesystem, hide_secrets

_ROOT = str(Path(__file__).resolve().parents[2])
_START = "import sys; sys.path.insert(0, sys.argv.pop(1)); from cove.storage.mounter import main; main()"
_BOUND_S = 100.0  # an NFS server that is down takes its time to be given up
_ENVIRONMENT = {"LC_ALL": "C.UTF-8", "PATH": "/usr/sbin:/usr/bin:/sbin:/bin"}


async def mount(name: str, filesystem: Filesystem, target: Path) -> None:
    """Mount a volume's file system on its directory. Raises HostError, which says what the kernel refused."""
    job = MountJob(filesystem=filesystem, target=str(target))
    failure = await (_run_here(job) if is_quick(filesystem) else _run(job))
    if failure.errno:
        options = ",".join(key if value is None else f"{key}={value}" for key, value in filesystem.parameters)
        told = f"{filesystem.source} of type {filesystem.type}" + (f" with {options}" if options else "")
        raise HostError(
            f"error while mounting volume '{name}': failed to mount local volume: mount {hide_secrets(told)}: "
            f"{hide_secrets(failure.message)}"
        )


async def unmount(name: str, target: Path, filesystem: Filesystem | None = None) -> None:
    """Take it off again; that nothing is mounted there is fine. Raises HostError."""
    job = UnmountJob(target=str(target))
    quick = filesystem is not None and is_quick(filesystem)
    failure = await (_run_here(job) if quick else _run(job))
    if failure.errno:
        raise HostError(f"volume {name} can't be unmounted: {failure.message}")


def is_quick(filesystem: Filesystem) -> bool:
    """Whether a thread does it."""
    return filesystem.sized or filesystem.type == "tmpfs"


async def _run_here(job: Job) -> Failure:
    try:
        await asyncio.to_thread(run, job)
    except OSError as error:
        return Failure(errno=error.errno or errno.EIO, message=error.strerror or str(error))
    return Failure()


async def _run(job: Job) -> Failure:
    try:
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            "-I",
            "-c",
            _START,
            _ROOT,
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.DEVNULL,
            env=_ENVIRONMENT,
            cwd="/",
        )
    except OSError as error:
        raise HostError(f"a helper that mounts can't be started: {error.strerror}") from error
    try:
        async with asyncio.timeout(_BOUND_S):
            answer, _ = await process.communicate(msgspec.json.encode(job))
    except TimeoutError:
        return Failure(errno=errno.ETIMEDOUT, message=f"no answer within {_BOUND_S:.0f} s")
    finally:
        if process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                process.kill()
    if process.returncode or not answer:
        return Failure(errno=errno.EIO, message=f"the helper ended with status {process.returncode}")
    return msgspec.json.decode(answer, type=Failure)
