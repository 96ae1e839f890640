"""Volumes: directories with a name that outlive containers.

Owns DATA_ROOT/volumes and the keys `volumes/NAME` (a VolumeRecord) and `volumes-removed/NAME` (a removal
under way). Work on one volume never waits for another's.

Orders that must hold, so that kill -9 at any instant leaves something that `open` can finish:
create: directories, then record. Remove: record becomes the removal's mark (one transaction), then
the directory goes into the trash, then the mark goes.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import secrets
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import msgspec

from cove.model.errors import Conflict, CoveError, HostError, Invalid, NotFound
from cove.model.objects import VolumeRecord
from cove.model.waiting import NamedLocks
from cove.storage.drivers import Drivers, DriverVolume, VolumeDriver
from cove.storage.mount_process import mount, unmount
from cove.storage.project_quota import ProjectQuotas, project_of
from cove.storage.sized_image import give_back, grow_image, grow_mounted, image_filesystem, make_image
from cove.storage.trash import Trash
from cove.storage.usage import Meter, Usage
from cove.storage.volume_mounts import InUse, VolumeMounts
from cove.storage.volume_options import (
    VolumeSource,
    check_name,
    parse_size,
    shown_options,
    volume_source,
)
from cove.store.interface import Delete, Exists, Put, Store, absent

DRIVER = "local"
ANONYMOUS_LABEL = "com.docker.volume.anonymous"
_KEYS = "volumes/"
_REMOVED_KEYS = "volumes-removed/"
_DATA = "_data"
_NAME_BYTES = 255
_IMAGE = "data.img"  # of a sized volume without project quotas
_NEW_IMAGE = "new.img"  # until the record is there

UsersOf = Callable[[str], Sequence[str]]  # volume name → ids of the containers that use it

_log = logging.getLogger(__name__)
_encode = msgspec.json.Encoder().encode
_decode = msgspec.json.Decoder(VolumeRecord).decode


class Pruned(msgspec.Struct, frozen=True):
    """What a prune removed."""

    names: tuple[str, ...]
    reclaimed_bytes: int


class Volumes:
    """All volumes of this daemon. Made by `open`; reads come from memory. `mounts` has those in use."""

    mounts: VolumeMounts

    def __init__(
        self, root: Path, store: Store, trash: Trash, quotas: ProjectQuotas | None, drivers: Drivers
    ) -> None:
        self.drivers = drivers
        self._root = root
        self._quotas = quotas
        self.meter = Meter()
        self._store = store
        self._trash = trash
        self._records: dict[str, VolumeRecord] = {}
        self._locks = NamedLocks()

    @classmethod
    async def open(
        cls,
        root: Path,
        store: Store,
        trash: Trash,
        quotas: ProjectQuotas | None = None,
        drivers: Drivers | None = None,
    ) -> Volumes:
        """Load the records and finish what a crash interrupted.

        A removal that had begun is completed. A directory without a record becomes a volume again when
        it holds data, and goes when it doesn't: its creation was never answered.
        """
        volumes = cls(root, store, trash, quotas, drivers or Drivers())
        try:
            root.mkdir(mode=0o701, exist_ok=True)
            volumes.mounts = await VolumeMounts.open(store, volumes._attach, volumes._detach)
            for pair in await store.range(_REMOVED_KEYS):
                await volumes._finish_removal(pair.key.removeprefix(_REMOVED_KEYS))
            for pair in await store.range(_KEYS):
                record = _decode(pair.value)
                volumes._records[record.name] = record
            for name in sorted(os.listdir(root)):
                if name not in volumes._records:
                    await volumes._adopt(name)
            for record in volumes._records.values():
                if record.driver != DRIVER:
                    continue
                volumes._make_directories(record.name)
                if record.sized == "image" and (root / record.name / _NEW_IMAGE).exists():
                    os.rename(root / record.name / _NEW_IMAGE, root / record.name / _IMAGE)
        except OSError as error:
            raise HostError(f"the volumes in {root} can't be used: {error.strerror}") from error
        return volumes

    async def close(self) -> None:
        """Wait for mounts that are being taken off."""
        await self.mounts.close()

    # --- reading --------------------------------------------------------------------------

    def find(self, name: str) -> VolumeRecord | None:
        """The volume with exactly this name."""
        return self._records.get(name)

    def get(self, name: str) -> VolumeRecord:
        """Like `find`; raises NotFound."""
        record = self._records.get(name)
        if record is None:
            raise NotFound(f"get {name}: no such volume")
        return record

    def list(self) -> list[VolumeRecord]:
        """All volumes, in order of their names."""
        return [self._records[name] for name in sorted(self._records)]

    def mountpoint(self, name: str) -> Path:
        """The host directory of a volume's data (its own one, also when options name another)."""
        return self._root / self.get(name).name / _DATA

    def source(self, name: str) -> VolumeSource:
        """What a container's plan mounts for this volume. Raises NotFound."""
        record = self.get(name)
        if record.driver != DRIVER:
            return VolumeSource(source=self.mounts.path(name) or record.mountpoint)
        source = volume_source(name, record.options, record.mountpoint)
        if record.sized == "image":
            return msgspec.structs.replace(source, filesystem=image_filesystem(self._root / name / _IMAGE))
        return source

    def needs_mount(self, name: str) -> bool:
        """Whether a volume's files are there only while `mounts` holds it. False for one that doesn't exist."""
        record = self._records.get(name)
        if record is None:
            return False
        if record.driver != DRIVER:
            return True
        return record.sized == "image" or (
            "type" in record.options and self.source(name).filesystem is not None
        )

    async def usage(self, name: str) -> Usage | None:
        """The disk space that a volume takes here. None where that can't be told: its files are elsewhere, or it
        is a file system that isn't mounted."""
        record = self.get(name)
        if record.sized == "project" and self._quotas is not None:
            with contextlib.suppress(OSError):
                return Usage(self._quotas.usage(project_of(self.mountpoint(name))).used_bytes)
        if record.sized == "image":
            with contextlib.suppress(OSError):
                return Usage(os.stat(self._root / name / _IMAGE).st_blocks * 512)
        if "type" in record.options or record.driver != DRIVER:
            return None
        return await self.meter.measure(self.mountpoint(name))

    def sized_trees(self) -> Sequence[Path]:
        """The directories of volumes that a project quota limits."""
        return [
            self._root / record.name / _DATA for record in self._records.values() if record.sized == "project"
        ]

    # --- writing --------------------------------------------------------------------------

    async def create(
        self,
        name: str = "",
        driver: str = "",
        options: Mapping[str, str] | None = None,
        labels: Mapping[str, str] | None = None,
        *,
        anonymous: bool = False,
    ) -> VolumeRecord:
        """Create a volume, or return the one that has the name already (its labels stay as they are).

        Without a name it gets 64 hex digits and is anonymous. Raises Invalid for a bad name or option,
        NotFound for an unknown driver, Conflict when the volume exists with other options.
        """
        if not name:
            name, anonymous = secrets.token_hex(32), True
        check_name(name)
        wanted = dict(options or {})
        if driver not in ("", DRIVER):
            return await self._create_elsewhere(name, driver, wanted, dict(labels or {}), anonymous)
        async with self._locks.alone(name):
            existing = self._records.get(name)
            if existing is None and not driver and not anonymous:
                existing = await self._adopt_elsewhere(name)
            if existing is None or existing.driver == DRIVER:
                volume_source(name, wanted, "")
            if existing is not None:
                if driver and existing.driver != driver:
                    raise _taken(existing)
                if wanted and wanted != existing.options:
                    raise Conflict(
                        f"create {name}: the volume exists with other options ({_told(existing.options)}):"
                        " remove it first, or take another name"
                    )
                return existing
            return await self._create(name, wanted, dict(labels or {}), anonymous)

    async def remove(self, name: str, *, force: bool = False, in_use: UsersOf) -> None:
        """Remove a volume; its data goes behind the caller's back.

        Raises NotFound (not with `force`) and Conflict while a container uses it (with `force`, too).
        """
        async with self._locks.alone(name):
            if name not in self._records:
                if force:
                    return
                raise NotFound(f"get {name}: no such volume")
            users = in_use(name)
            if users:
                raise Conflict(f"remove {name}: volume is in use - [{', '.join(users)}]")
            if self.needs_mount(name):
                async with self.mounts.unused(name):
                    pass
                users = in_use(name)
                if users:
                    raise Conflict(f"remove {name}: volume is in use - [{', '.join(users)}]")
            if self._records[name].driver != DRIVER:
                await self._remove_elsewhere(name, force=force)
            record = self._records.pop(name)
            try:
                await self._store.txn(
                    [Exists(_KEYS + name)], [Delete(_KEYS + name), Put(_REMOVED_KEYS + name, b"")]
                )
            except BaseException:
                self._records[name] = record
                raise
            if record.driver != DRIVER:
                await self._store.txn([], [Delete(_REMOVED_KEYS + name)])
                return
            self._free_project(record)
            await self._finish_removal(name)

    async def resize(self, name: str, size: str) -> VolumeRecord:
        """Change a sized volume's limit. Raises Invalid, NotFound, Conflict (it's in use, or fuller than that)."""
        what = f"update {name}"
        async with self._locks.alone(name):
            record = self.get(name)
            wanted = parse_size(size, what)
            if record.sized == "project" and self._quotas is not None:
                await asyncio.to_thread(self._limit_project, record, wanted)
            elif record.sized == "image":
                await self._grow_image(record, wanted)
            else:
                raise Conflict(f"{what}: only a volume that was made with --opt size=… has a size to change")
            changed = msgspec.structs.replace(
                record, size_bytes=wanted, options={**record.options, "size": size}
            )
            await self._store.txn([Exists(_KEYS + name)], [Put(_KEYS + name, _encode(changed))])
            self._records[name] = changed
            return changed

    async def prune(
        self,
        *,
        in_use: UsersOf,
        keep: Callable[[VolumeRecord], bool] = lambda record: False,
        named_too: bool = False,
    ) -> Pruned:
        """Remove the volumes that no container uses: anonymous ones, and others with `named_too`."""
        names: list[str] = []
        reclaimed = 0
        for record in self.list():
            if record.driver != DRIVER or not (record.anonymous or named_too):
                continue  # a driver's volumes are its own business, as in Docker
            if keep(record) or in_use(record.name):
                continue
            usage = await self.usage(record.name)
            try:
                await self.remove(record.name, in_use=in_use)
            except (NotFound, Conflict):
                continue  # removed or taken into use since
            names.append(record.name)
            reclaimed += usage.size_bytes if usage is not None else 0
        return Pruned(tuple(names), reclaimed)

    # --- inside ---------------------------------------------------------------------------

    async def _create(
        self, name: str, options: dict[str, str], labels: dict[str, str], anonymous: bool
    ) -> VolumeRecord:
        if anonymous:
            labels.setdefault(ANONYMOUS_LABEL, "")
        size_bytes = parse_size(options["size"], f"create {name}") if "size" in options else 0
        record = VolumeRecord(
            name=name,
            mountpoint=str(self._root / name / _DATA),
            created_ns=time.time_ns(),
            labels=labels,
            options=options,
            anonymous=anonymous,
            sized="" if not size_bytes else "project" if self._quotas is not None else "image",
            size_bytes=size_bytes,
        )
        try:
            try:
                self._make_directories(name)
                await self._limit(record)
            except OSError as error:
                raise HostError(f"create {name}: {error.strerror} in {self._root}") from error
            done = await self._store.txn([absent(_KEYS + name)], [Put(_KEYS + name, _encode(record))])
        except BaseException:
            self._free_project(record)
            self._trash.discard(self._root / name)
            raise
        if record.sized == "image":
            os.rename(self._root / name / _NEW_IMAGE, self._root / name / _IMAGE)
        assert done.succeeded, "a volume's key was written by somebody else"
        self._records[name] = record
        return record

    def _make_directories(self, name: str) -> None:
        (self._root / name).mkdir(mode=0o701, exist_ok=True)
        data = self._root / name / _DATA
        try:
            data.mkdir()
        except FileExistsError:
            return
        data.chmod(0o755)  # the umask took bits off

    async def _limit(self, record: VolumeRecord) -> None:
        """Keep a new volume to its size."""
        if record.sized == "image":
            directory = self._root / record.name
            if (directory / _IMAGE).exists():
                raise Conflict(
                    f"create {record.name}: {directory / _IMAGE} is there already: move it away first"
                )
            (directory / _NEW_IMAGE).unlink(missing_ok=True)
            await make_image(directory / _NEW_IMAGE, record.size_bytes, f"create {record.name}")
        elif record.sized == "project" and self._quotas is not None:
            self._quotas.assign([self._root / record.name / _DATA], record.size_bytes)

    def _free_project(self, record: VolumeRecord) -> None:
        project = project_of(self._root / record.name / _DATA) if record.sized == "project" else 0
        if project and self._quotas is not None:
            with contextlib.suppress(OSError):  # the next start sweeps
                self._quotas.free(project)

    def _limit_project(self, record: VolumeRecord, size_bytes: int) -> None:
        assert self._quotas is not None
        project = project_of(self._root / record.name / _DATA)
        try:
            used = self._quotas.usage(project).used_bytes
            if used > size_bytes:
                raise Conflict(
                    f"update {record.name}: it holds {used} bytes, more than {size_bytes}: delete some first"
                )
            self._quotas.limit(project, size_bytes)
        except OSError as error:
            raise HostError(f"update {record.name}: the quota can't be set: {error.strerror}") from error

    async def _grow_image(self, record: VolumeRecord, size_bytes: int) -> None:
        what = f"update {record.name}"
        if size_bytes < record.size_bytes:
            raise Conflict(
                f"{what}: it is an image of {record.size_bytes} bytes, which can only grow: make a new volume, and "
                "copy what is to stay"
            )
        image, place = self._root / record.name / _IMAGE, self._root / record.name / _DATA
        try:
            async with self.mounts.unused(record.name):
                await grow_image(image, size_bytes, what)
                return
        except InUse:
            pass
        await asyncio.to_thread(grow_mounted, image, place, size_bytes, what)

    # --- other drivers --------------------------------------------------------------------

    async def survey(self) -> tuple[Sequence[tuple[VolumeRecord, DriverVolume | None]], Sequence[str]]:
        """All volumes, those that only their drivers know among them, with what these tell; and warnings."""
        also = {record.driver for record in self._records.values()} - {DRIVER}
        if not also and not self.drivers.present():
            return [(record, None) for record in self.list()], ()
        told, warnings = await self.drivers.list(sorted(also))
        by_name = {(driver, one.name): one for driver, found in told.items() for one in found}
        entries = [(record, by_name.get((record.driver, record.name))) for record in self.list()]
        for (driver, name), one in by_name.items():
            if name and name not in self._records:
                entries.append((_foreign(driver, one), one))
        return sorted(entries, key=lambda entry: entry[0].name), warnings

    async def look(self, name: str) -> tuple[VolumeRecord, DriverVolume | None]:
        """A volume, and what its driver tells of it, where there is one that answers. Raises NotFound."""
        record = self._records.get(name)
        if record is None:
            record = await self._adopt_elsewhere(name) if len(name) <= _NAME_BYTES else None
            if record is None:
                raise NotFound(f"get {name}: no such volume")
        if record.driver == DRIVER:
            return record, None
        with contextlib.suppress(CoveError):
            driver = await self._driver(record.driver, f"get {name}")
            return record, await driver.get(name)
        return record, None

    async def _driver(self, name: str, what: str) -> VolumeDriver:
        try:
            return await self.drivers.find(name)
        except NotFound as error:
            raise NotFound(f"{what}: error looking up volume plugin {name}: {error}") from None

    async def _create_elsewhere(
        self, name: str, driver: str, options: dict[str, str], labels: dict[str, str], anonymous: bool
    ) -> VolumeRecord:
        async with self._locks.alone(name):
            existing = self._records.get(name)
            if existing is not None:
                if existing.driver != driver:
                    raise _taken(existing)
                return existing
            found = await self._driver(driver, f"create {name}")
            await found.create(name, options)
            if anonymous:
                labels.setdefault(ANONYMOUS_LABEL, "")
            mountpoint = ""
            with contextlib.suppress(CoveError):
                mountpoint = (await found.get(name)).mountpoint
            record = VolumeRecord(
                name=name,
                driver=driver,
                scope="global" if found.scope == "global" else "local",
                mountpoint=mountpoint,
                created_ns=time.time_ns(),
                labels=labels,
                options=options,
                anonymous=anonymous,
            )
            await self._put(record)
            return record

    async def _adopt_elsewhere(self, name: str) -> VolumeRecord | None:
        """A volume that only a driver knows gets its record."""
        if not self.drivers.present():
            return None
        told, _ = await self.drivers.list(())
        for driver, volumes in told.items():
            for one in volumes:
                if one.name == name:
                    record = _foreign(driver, one)
                    await self._put(record)
                    return record
        return None

    async def _remove_elsewhere(self, name: str, *, force: bool) -> None:
        try:
            driver = await self._driver(self._records[name].driver, f"remove {name}")
            await driver.remove(name)
        except CoveError as error:
            if not force:
                raise
            _log.warning("volume %s is forgotten, its driver says: %s", name, error)

    async def _put(self, record: VolumeRecord) -> None:
        await self._store.txn([], [Put(_KEYS + record.name, _encode(record))])
        self._records[record.name] = record

    # --- mounts ---------------------------------------------------------------------------

    async def _attach(self, name: str, user: str, others: int) -> str:
        record = self.get(name)
        if record.driver != DRIVER:
            driver = await self._driver(record.driver, f"mount {name}")
            path = await driver.mount(name, user)
            if path != record.mountpoint:
                await self._put(msgspec.structs.replace(record, mountpoint=path))
            return path
        source = self.source(name)
        if source.filesystem is not None and not os.path.ismount(source.source):
            await mount(name, source.filesystem, Path(source.source))
        return source.source

    async def _detach(self, name: str, user: str, others: int) -> None:
        record = self._records.get(name)
        if record is not None and record.driver != DRIVER:
            await (await self._driver(record.driver, f"unmount {name}")).unmount(name, user)
            return
        if not others:
            filesystem = self.source(name).filesystem if record is not None else None
            if filesystem is not None and filesystem.sized:
                await asyncio.to_thread(give_back, self._root / name / _IMAGE, self._root / name / _DATA)
            await unmount(name, self._root / name / _DATA, filesystem)

    async def _finish_removal(self, name: str) -> None:
        if os.path.ismount(self._root / name / _DATA):  # a crash in the middle
            await unmount(name, self._root / name / _DATA)
        self._trash.discard(self._root / name)
        await self._store.txn([], [Delete(_REMOVED_KEYS + name)])

    async def _adopt(self, name: str) -> None:
        """A directory without a record: a creation that a crash cut short, or data from a backup."""
        path = self._root / name
        try:
            check_name(name)
            content = os.listdir(path)
            data = os.listdir(path / _DATA) if content == [_DATA] else []
        except (Invalid, NotADirectoryError):
            return
        if data:
            _log.warning("volume %s has data but no record: it gets a new one", name)
            await self._create(name, {}, {}, anonymous=False)
        elif set(content) <= {_DATA, _NEW_IMAGE}:
            self._trash.discard(path)


def _taken(existing: VolumeRecord) -> Conflict:
    return Conflict(
        f"A volume named {existing.name} already exists with the {existing.driver} driver. Choose a different "
        "volume name."
    )


def _foreign(driver: str, one: DriverVolume) -> VolumeRecord:
    return VolumeRecord(name=one.name, driver=driver, mountpoint=one.mountpoint, created_ns=0)


def _told(options: Mapping[str, str]) -> str:
    return ", ".join(f"{key}={value}" for key, value in sorted(shown_options(options).items())) or "none"
