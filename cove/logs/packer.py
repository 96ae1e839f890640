"""When to pack rotated logs: a process for each rotation (pack.py), one after the other, none of it at a start.

A container's directory is watched from WATCH_AFTER_S on, so that one which is gone by then costs a timer.
"""

from __future__ import annotations

import asyncio
import logging
import os
import subprocess
import sys
from contextlib import suppress
from contextvars import Context
from pathlib import Path

from cove.logs.inotify import watched
from cove.model.errors import HostError

WATCH_AFTER_S = 1.0
_SETTLE_S = 0.2  # files of one rotation move one after the other
_ROOT = str(Path(__file__).resolve().parents[2])
_START = "import sys; sys.path.insert(0, sys.argv.pop(1)); from cove.logs.pack import main; main()"

_log = logging.getLogger("cove.logs")


class Packer:
    """Packs what the logs of a daemon's running containers rotate away."""

    def __init__(self) -> None:
        self._timers: dict[str, asyncio.TimerHandle] = {}
        self._tasks: dict[str, asyncio.Task[None]] = {}
        self._turn = asyncio.Semaphore(1)
        self._told = False

    def watch(self, container_id: str, log_dir: Path, name: str) -> None:
        """From soon on. `name` is the file that is written."""
        self.forget(container_id)
        loop = asyncio.get_running_loop()
        self._timers[container_id] = loop.call_later(
            WATCH_AFTER_S, self._begin, container_id, log_dir, name, context=Context()
        )

    def forget(self, container_id: str) -> None:
        """The container has ended. What is being packed is finished."""
        timer = self._timers.pop(container_id, None)
        if timer is not None:
            timer.cancel()
        task = self._tasks.pop(container_id, None)
        if task is not None:
            task.cancel()

    async def close(self) -> None:
        tasks = list(self._tasks.values())
        for container_id in [*self._timers, *self._tasks]:
            self.forget(container_id)
        await asyncio.gather(*tasks, return_exceptions=True)

    def _begin(self, container_id: str, log_dir: Path, name: str) -> None:
        del self._timers[container_id]
        work = self._watch(log_dir, name)
        self._tasks[container_id] = asyncio.get_running_loop().create_task(work)

    async def _watch(self, log_dir: Path, name: str) -> None:
        try:
            with watched(log_dir, renames=True) as watch:
                again = (log_dir / f"{name}.1").exists()
                while not watch.gone:
                    if again:
                        await asyncio.sleep(_SETTLE_S)
                        watch.changed.clear()
                        async with self._turn:
                            await _pack(log_dir, name)
                    await watch.changed.wait()
                    again = True
        except (HostError, OSError) as error:
            if not self._told:
                self._told = True
                _log.warning("rotated logs stay unpacked: %s", error)


async def _pack(log_dir: Path, name: str) -> None:
    directory = os.open(log_dir, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        process = subprocess.Popen(
            [sys.executable, "-P", "-S", "-c", _START, _ROOT, str(directory), name],
            stdin=subprocess.DEVNULL,
            pass_fds=(directory,),
            env={},
        )
    finally:
        os.close(directory)
    ended = asyncio.get_running_loop().run_in_executor(None, process.wait)
    try:
        await asyncio.shield(ended)
    except asyncio.CancelledError:
        process.terminate()  # it leaves the log as it was
        with suppress(asyncio.CancelledError):
            await ended
        raise
