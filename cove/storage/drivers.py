"""Volume drivers beside the local one: plugins that speak Docker's protocol, and Python ones by entry point.

A driver that didn't answer is left alone for SILENT_S where nothing was asked of it by name (lists): it holds up nobody
but who wants its volumes.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import msgspec

from cove.model.errors import CoveError, HostError, NotFound, Unavailable
from cove.storage.plugin_client import SOCKET_DIRECTORY, Plugin, call, find_plugin, list_plugins

ENTRY_POINTS = "cove.volume_drivers"
LIST_S = 10.0
SHORT_S = 60.0
LONG_S = 120.0
SILENT_S = 30.0
_PATH_BYTES = 4095
_VOLUMES = 10_000


class DriverVolume(msgspec.Struct, frozen=True, kw_only=True):
    """A volume as its driver tells of it."""

    name: str
    mountpoint: str = ""  # "" while it isn't mounted, where the driver says so
    created: str = ""  # RFC 3339
    status: dict[str, Any] = {}


class VolumeDriver(Protocol):
    """What keeps volumes. Every call may raise CoveError; `user` names a mount, once for each container."""

    scope: str  # "local", or "global" when every machine sees the same volumes

    async def create(self, name: str, options: Mapping[str, str]) -> None: ...
    async def remove(self, name: str) -> None: ...
    async def mount(self, name: str, user: str) -> str: ...  # the host directory of its files
    async def unmount(self, name: str, user: str) -> None: ...
    async def get(self, name: str) -> DriverVolume: ...
    async def list(self) -> list[DriverVolume]: ...


class PluginDriver:
    """A volume plugin: VolumeDriver.* (docs.docker.com, "Docker volume plugins")."""

    def __init__(self, plugin: Plugin, scope: str) -> None:
        self.plugin = plugin
        self.scope = scope

    async def create(self, name: str, options: Mapping[str, str]) -> None:
        await self._call("Create", LONG_S, Name=name, Opts=dict(options))

    async def remove(self, name: str) -> None:
        await self._call("Remove", SHORT_S, Name=name)

    async def mount(self, name: str, user: str) -> str:
        answer = await self._call("Mount", LONG_S, Name=name, ID=user)
        return _check_path(self.plugin.name, answer.get("Mountpoint"))

    async def unmount(self, name: str, user: str) -> None:
        await self._call("Unmount", SHORT_S, Name=name, ID=user)

    async def get(self, name: str) -> DriverVolume:
        found = (await self._call("Get", SHORT_S, Name=name)).get("Volume")
        if not isinstance(found, dict):
            raise NotFound(f"get {name}: no such volume")
        return _volume(found)

    async def list(self) -> list[DriverVolume]:
        found = (await self._call("List", LIST_S)).get("Volumes") or []
        if not isinstance(found, list):
            raise HostError(f"plugin {self.plugin.name}: VolumeDriver.List: expected a list")
        return [_volume(one) for one in found[:_VOLUMES] if isinstance(one, dict)]

    async def _call(self, method: str, bound_s: float, **body: Any) -> dict[str, Any]:
        return await call(self.plugin, f"VolumeDriver.{method}", body, bound_s)


def _volume(found: Mapping[str, Any]) -> DriverVolume:
    status = found.get("Status")
    return DriverVolume(
        name=str(found.get("Name") or "")[:255],
        mountpoint=str(found.get("Mountpoint") or "")[:_PATH_BYTES],
        created=str(found.get("CreatedAt") or "")[:64],
        status=status if isinstance(status, dict) else {},
    )


def _check_path(plugin: str, path: Any) -> str:
    if not isinstance(path, str) or not path.startswith("/") or "\0" in path or len(path) > _PATH_BYTES:
        raise HostError(
            f"plugin {plugin}: VolumeDriver.Mount: its Mountpoint {path!r:.80} is no absolute path"
        )
    return path


class _Silence(NamedTuple):
    """A driver that doesn't list its volumes; `why` is "" where there is no such driver."""

    why: str


class Drivers:
    """The drivers of this host, found by name when they are wanted."""

    def __init__(self, sockets: Sequence[Path] = (SOCKET_DIRECTORY,)) -> None:
        self._sockets = sockets
        self._known: dict[str, VolumeDriver] = {}
        self._silent: dict[str, float] = {}  # until when (monotonic)

    def present(self) -> bool:
        """Whether there may be any driver beside the local one; a few look-ups in directories."""
        return bool(self._known) or bool(list_plugins(self._sockets))

    def names(self) -> Sequence[str]:
        """The plugins that there are, of whatever kind they turn out to be."""
        return list_plugins(self._sockets)

    async def find(self, name: str) -> VolumeDriver:
        """Raises NotFound, Unavailable (a plugin that doesn't answer)."""
        known = self._known.get(name)
        if known is not None and not isinstance(known, PluginDriver):
            return known
        try:
            plugin = await asyncio.to_thread(find_plugin, name, self._sockets)
        except NotFound:
            self._known.pop(name, None)
            driver = await asyncio.to_thread(_load, name)
            if driver is None:
                raise
            self._known[name] = driver
            return driver
        if isinstance(known, PluginDriver) and known.plugin == plugin:
            return known
        activated = await call(plugin, "Plugin.Activate", {}, SHORT_S)
        if "VolumeDriver" not in (activated.get("Implements") or ()):
            raise NotFound(f'plugin "{name}" is no volume driver')
        found = self._known[name] = PluginDriver(plugin, await _scope(plugin))
        return found

    async def list(self, also: Sequence[str]) -> tuple[Mapping[str, Sequence[DriverVolume]], Sequence[str]]:
        """All volumes by driver, those of `also` among them, and a warning for each driver that doesn't tell."""
        names = sorted({*await asyncio.to_thread(list_plugins, self._sockets), *also, *self._known})
        answers = await asyncio.gather(*(self._list(name) for name in names))
        found: dict[str, Sequence[DriverVolume]] = {}
        warnings = []
        for name, answer in zip(names, answers, strict=True):
            if isinstance(answer, _Silence):
                warnings += [answer.why] if answer.why else []
            else:
                found[name] = answer
        return found, warnings

    async def _list(self, name: str) -> Sequence[DriverVolume] | _Silence:
        if self._silent.get(name, 0) > time.monotonic():
            return _Silence(f"volume driver {name} doesn't answer")
        try:
            async with asyncio.timeout(LIST_S):
                return await (await self.find(name)).list()
        except NotFound:
            return _Silence("")  # a plugin of another kind, or one that is gone
        except (CoveError, TimeoutError) as error:
            self._silent[name] = time.monotonic() + SILENT_S
            return _Silence(f"volume driver {name}: {error or 'no answer'}")


async def _scope(plugin: Plugin) -> str:
    try:
        answer = await call(plugin, "VolumeDriver.Capabilities", {}, SHORT_S)
    except (NotFound, HostError):
        return "local"  # it need not have that call
    except Unavailable:
        return "local"
    told = answer.get("Capabilities")
    scope = told.get("Scope") if isinstance(told, dict) else ""
    return "global" if str(scope).lower() == "global" else "local"


def _load(name: str) -> VolumeDriver | None:
    from importlib.metadata import entry_points  # takes a while, and few hosts have any

    for point in entry_points(group=ENTRY_POINTS, name=name):
        driver: VolumeDriver = point.load()()
        return driver
    return None
