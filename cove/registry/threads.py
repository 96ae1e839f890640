"""Where the server does what blocks: a few threads for files, and one alone for the catalog's changes."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import ParamSpec, TypeVar

P = ParamSpec("P")
T = TypeVar("T")
FILE_THREADS = 6


class Threads:
    """Both pools; `close` waits for what is under way."""

    def __init__(self) -> None:
        self._files = ThreadPoolExecutor(FILE_THREADS, "file")
        self._changes = ThreadPoolExecutor(1, "change")

    async def run(self, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Call a function that reads or writes files. Once begun, it runs to its end, whoever is cancelled."""
        return await _call(self._files, function, *args, **kwargs)

    async def change(self, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Call a function that changes the catalog: one after another."""
        return await _call(self._changes, function, *args, **kwargs)

    def close(self) -> None:
        self._changes.shutdown(wait=True)
        self._files.shutdown(wait=True)


async def _call(pool: ThreadPoolExecutor, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    return await asyncio.get_running_loop().run_in_executor(pool, lambda: function(*args, **kwargs))
