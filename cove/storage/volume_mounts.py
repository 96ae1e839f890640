"""Volumes that are mounted while somebody uses them: who uses which, across a daemon's death.

Owns the keys `volume-mounts/NAME/USER`. A user is a container, or a piece of work of the daemon's. The key is written
before the mount is asked for and goes after it was taken off: after a kill -9, `settle` takes off what
belongs to no running container. Work on one volume never waits for another's.

What a mount is lies with the callbacks: `attach(name, user, others)` gives the host path of the volume's files, and
`detach(name, user, others)` ends that; `others` is how many use the volume beside this user.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager

from cove.model.errors import Conflict, CoveError
from cove.model.waiting import NamedLocks
from cove.store.interface import Delete, Put, Store

_KEYS = "volume-mounts/"
_log = logging.getLogger(__name__)

Attach = Callable[[str, str, int], Awaitable[str]]
Detach = Callable[[str, str, int], Awaitable[None]]


class InUse(Conflict):
    """A volume is mounted for somebody."""


class VolumeMounts:
    """The users of volumes that have to be mounted. `open` reads who used them last; `settle` comes next."""

    def __init__(self, store: Store, attach: Attach, detach: Detach) -> None:
        self._store = store
        self._attach = attach
        self._detach = detach
        self._users: dict[str, dict[str, str]] = {}  # volume -> user -> host path
        self._locks = NamedLocks()
        self._leaving: set[tuple[str, str]] = set()  # let go of, and not taken up again since
        self._tasks: dict[asyncio.Task[None], str] = {}  # to the volume's name

    @classmethod
    async def open(cls, store: Store, attach: Attach, detach: Detach) -> VolumeMounts:
        self = cls(store, attach, detach)
        for pair in await store.range(_KEYS):
            name, _, user = pair.key.removeprefix(_KEYS).partition("/")
            self._users.setdefault(name, {})[user] = pair.value.decode()
        return self

    def settle(self, running: Iterable[str]) -> None:
        """Keep what running containers use; what others did is taken off, behind the caller's back."""
        alive = frozenset(running)
        for user in {user for users in self._users.values() for user in users} - alive:
            self.release(user)

    def users(self, name: str) -> Sequence[str]:
        return tuple(self._users.get(name, ()))

    def path(self, name: str) -> str:
        """Where a volume's files are now; "" while nobody uses it."""
        return next(iter(self._users.get(name, {}).values()), "")

    async def hold(self, user: str, names: Iterable[str]) -> Mapping[str, str]:
        """Have volumes mounted for a user; their host paths by name. Raises what a mount raises, with none held."""
        held: dict[str, str] = {}
        async with AsyncExitStack() as undo:
            for name in sorted(set(names)):
                undo.push_async_callback(self._let_go, name, user)
                held[name] = await self._take(name, user)
            undo.pop_all()
        return held

    def release(self, user: str) -> None:
        """Let go of all that a user has. The mounts are taken off behind the caller's back; idempotent."""
        for name, users in self._users.items():
            if user in users and (name, user) not in self._leaving:
                self._leaving.add((name, user))
                task = asyncio.get_running_loop().create_task(self._leave(name, user))
                self._tasks[task] = name
                task.add_done_callback(self._tasks.pop)

    @asynccontextmanager
    async def held(self, user: str, names: Iterable[str]) -> AsyncIterator[Mapping[str, str]]:
        """Mounted for the length of a block."""
        wanted = set(names)
        paths = await self.hold(user, wanted)
        try:
            yield paths
        finally:
            for name in wanted:
                await asyncio.shield(self._let_go(name, user))

    @asynccontextmanager
    async def unused(self, name: str) -> AsyncIterator[None]:
        """Nothing of a volume is mounted for the length of a block. Raises InUse."""
        leaving = [task for task, volume in self._tasks.items() if volume == name]
        if leaving:
            await asyncio.wait(leaving)
        async with self._locks.alone(name):
            users = self.users(name)
            if users:
                raise InUse(f"volume {name} is in use - [{', '.join(users)}]")
            yield

    async def close(self) -> None:
        """Wait for what is being taken off, for a while; the next start does the rest."""
        if self._tasks:
            _, left = await asyncio.wait(self._tasks, timeout=5)
            for task in left:
                task.cancel()
            await asyncio.gather(*left, return_exceptions=True)

    # --- inside ---------------------------------------------------------------------------

    async def _take(self, name: str, user: str) -> str:
        async with self._locks.alone(name):
            users = self._users.setdefault(name, {})
            self._leaving.discard((name, user))
            if users.get(user):
                return users[user]
            others = len(users.keys() - {user})
            users[user] = ""
            await self._store.txn([], [Put(f"{_KEYS}{name}/{user}", b"")])
            path = await self._attach(name, user, others)
            users[user] = path
            await self._store.txn([], [Put(f"{_KEYS}{name}/{user}", path.encode())])
            return path

    async def _leave(self, name: str, user: str) -> None:
        async with self._locks.alone(name):
            if (name, user) in self._leaving:
                self._leaving.discard((name, user))
                await self._take_off(name, user)

    async def _let_go(self, name: str, user: str) -> None:
        async with self._locks.alone(name):
            await self._take_off(name, user)

    async def _take_off(self, name: str, user: str) -> None:
        """Under the volume's lock."""
        users = self._users.get(name, {})
        if user not in users:
            return
        try:
            await self._detach(name, user, len(users) - 1)
        except CoveError as error:
            _log.warning("volume %s stays mounted: %s", name, error)
        with contextlib.suppress(CoveError):  # a disk that is full: the next start takes it off again
            await self._store.txn([], [Delete(f"{_KEYS}{name}/{user}")])
        del users[user]
        if not users:
            del self._users[name]
