"""Plays: the pods and volumes of a Kubernetes file, made as one. What they are is planned by cove.kube.

    play: a note in the store, volumes with their files, pods, containers, starts in order, the note goes
    down: pods (stopped first), then volumes but those of claims

Whatever a play that fails has made is taken back; for one that a crash cut short, the next start of the daemon does
so, by its note. A pod or volume belongs to the object that its label names, and no play touches that of another.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import secrets
import stat
from collections.abc import AsyncGenerator, Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import msgspec

from cove.engine.parts import Parts
from cove.engine.pods import Containers, Pods
from cove.kube.types import LABEL, HostPath, VolumePlan
from cove.logs.model import LogLine, LogQuery
from cove.model.container import ContainerSpec
from cove.model.errors import Conflict, CoveError, HostError, Invalid, NotFound, NotModified
from cove.storage.beneath import open_beneath
from cove.store.interface import Delete, Put

log = logging.getLogger("cove.engine")

Logs = Callable[[str, LogQuery], AsyncGenerator[LogLine, None]]
_KEYS = "plays/"
_SHOWN_LINES = 5
_SHOWN_CHARS = 500
_KINDS = {
    "Directory": (stat.S_ISDIR, "a directory"),
    "File": (stat.S_ISREG, "a file"),
    "Socket": (stat.S_ISSOCK, "a socket"),
    "BlockDevice": (stat.S_ISBLK, "a block device"),
    "CharDevice": (stat.S_ISCHR, "a character device"),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class PlayedPod:
    """A pod to make: what holds it, and its containers in the order of their start."""

    name: str
    owner: str
    infra: ContainerSpec
    containers: tuple[ContainerSpec, ...]
    host_paths: tuple[HostPath, ...] = ()


class _Note(msgspec.Struct, frozen=True):
    """What a play is about to make, by name and owner."""

    pods: dict[str, str]
    volumes: dict[str, str]


class _Work:
    """A play or a taking down that is under way."""

    __slots__ = ("ended", "unwanted")

    def __init__(self) -> None:
        self.unwanted = asyncio.Event()  # its starts are not to be waited for any longer
        self.ended = asyncio.Event()


class Plays:
    """All plays of this daemon; it keeps nothing of them but labels once they have ended."""

    def __init__(self, parts: Parts, pods: Pods, containers: Containers, logs: Logs) -> None:
        self._parts = parts
        self._pods = pods
        self._containers = containers
        self._logs = logs
        self._busy: dict[str, _Work] = {}

    def check(
        self, volumes: Sequence[VolumePlan], pods: Sequence[PlayedPod], *, replace: bool = False
    ) -> None:
        """Refuse what can be told beforehand: images and paths that aren't here, names that are taken."""
        for pod in pods:
            for spec in pod.containers:
                self._parts.images.find_image(spec.image)
            for path in pod.host_paths:
                _check_host_path(path)
            if self._owned(pod.name, pod.owner) and not replace:
                raise Conflict(
                    f"{pod.owner}: pod {pod.name} exists already: play it with --replace, or take it down first"
                )
        for volume in volumes:
            known = self._parts.volumes.find(volume.name)
            if (
                known is not None
                and not volume.kept
                and not (replace and known.labels.get(LABEL) == volume.owner)
            ):
                raise Conflict(
                    f"{volume.owner}: volume {volume.name} exists already: remove it, or rename the file's"
                )

    def _owned(self, name: str, owner: str) -> bool:
        """Whether a pod exists. Conflict for one that another object, or nobody's file, has made."""
        try:
            infra = self._pods.find(name).infra.container
        except NotFound:
            return False
        made_by = infra.spec.labels.get(LABEL, "")
        if made_by != owner:
            raise Conflict(
                f"{owner}: pod {name} exists already, made by {made_by[:80] or 'no file'}: rename one of them"
            )
        return True

    async def play(
        self,
        volumes: Sequence[VolumePlan],
        pods: Sequence[PlayedPod],
        *,
        replace: bool = False,
        start: bool = True,
    ) -> Sequence[str]:
        """Make everything, and start it; returns warnings. Nothing is left of it when it raises."""
        with self._alone([*(pod.name for pod in pods), *(volume.name for volume in volumes)]) as work:
            self.check(volumes, pods, replace=replace)
            if replace:
                await self._take_down(volumes, [(pod.name, pod.owner) for pod in pods], claims=False)
            fresh = [volume for volume in volumes if self._parts.volumes.find(volume.name) is None]
            note = _Note({pod.name: pod.owner for pod in pods}, {one.name: one.owner for one in fresh})
            key = _KEYS + secrets.token_hex(8)
            await self._parts.store.txn([], [Put(key, msgspec.json.encode(note))])
            warnings: list[str] = []
            try:
                for volume in volumes:
                    await self._make_volume(volume, volume in fresh)
                for pod in pods:
                    await asyncio.to_thread(_make_host_paths, pod.host_paths)
                    warnings += await self._make_pod(pod)
                for pod in pods if start else ():
                    await self._start(pod, work)
            except BaseException:
                await self._take_back(key, note)
                raise
            await self._parts.store.txn([], [Delete(key)])
            return warnings

    @contextlib.contextmanager
    def _alone(self, names: Iterable[str]) -> Iterator[_Work]:
        wanted = set(names)
        for name in sorted(wanted & self._busy.keys()):
            raise Conflict(f"{name} is being played or taken down at the moment: wait, and try again")
        work = _Work()
        self._busy.update(dict.fromkeys(wanted, work))
        try:
            yield work
        finally:
            for name in wanted:
                del self._busy[name]
            work.ended.set()

    async def _make_volume(self, plan: VolumePlan, fresh: bool) -> None:
        volumes = self._parts.volumes
        record = volumes.find(plan.name)
        if record is None:
            labels = {**plan.labels, LABEL: plan.owner}
            record = await volumes.create(plan.name, "", plan.options, labels)
            self._parts.publish_volume(record, "create")
        if not volumes.needs_mount(plan.name):
            where = Path(volumes.source(plan.name).source)
            try:
                await asyncio.to_thread(_fill, where, plan, fresh)
            except OSError as error:
                raise HostError(
                    f"{plan.owner}: volume {plan.name}: {error.filename}: {error.strerror}"
                ) from error

    async def _make_pod(self, pod: PlayedPod) -> Sequence[str]:
        _, warnings = await self._pods.create(pod.name, pod.infra)
        told = list(warnings)
        for spec in pod.containers:
            _, warnings = await self._containers.create(spec)
            told += warnings
        return [f"{pod.owner}: {warning}" for warning in told]

    async def _discard_pod(self, name: str) -> None:
        with contextlib.suppress(NotFound):
            await self._pods.remove(name, force=True)

    async def _start(self, pod: PlayedPod, work: _Work) -> None:
        starting = asyncio.ensure_future(self._pods.start(pod.name))
        unwanted = asyncio.ensure_future(work.unwanted.wait())
        try:
            await asyncio.wait((starting, unwanted), return_when=asyncio.FIRST_COMPLETED)
            if not starting.done():
                raise Conflict("it was taken down before it had started")
            await starting
        except CoveError as error:
            raise type(error)(f"{pod.owner}: {error}{await self._last_words(pod)}") from error
        finally:
            for task in (starting, unwanted):
                task.cancel()
            await asyncio.gather(starting, unwanted, return_exceptions=True)

    async def _last_words(self, pod: PlayedPod) -> str:
        """What a container wrote that has failed, for it will be gone with its log."""
        for view in self._pods.find(pod.name).members:
            if view.state.status != "exited" or not view.state.exit_code:
                continue
            query = LogQuery(tail=_SHOWN_LINES)
            lines = [line.data async for line in self._logs(view.container.id, query)]
            text = b"".join(lines).decode("utf-8", "replace").strip()[-_SHOWN_CHARS:]
            return f"; its last words: {text}" if text else ""
        return ""

    async def down(
        self, volumes: Sequence[VolumePlan], pods: Sequence[tuple[str, str]], *, claims: bool
    ) -> Sequence[str]:
        """Remove what a play has made, and isn't gone; with `claims` their volumes, too. Returns what went.

        A play that still waits for its starts is given up, and takes back what it has made itself.
        """
        names = [*(name for name, _ in pods), *(volume.name for volume in volumes)]
        while works := [self._busy[name] for name in names if name in self._busy]:
            works[0].unwanted.set()
            await works[0].ended.wait()
        with self._alone(names):
            return await self._take_down(volumes, pods, claims=claims)

    async def _take_down(
        self, volumes: Sequence[VolumePlan], pods: Sequence[tuple[str, str]], *, claims: bool
    ) -> Sequence[str]:
        there = [name for name, owner in pods if self._owned(name, owner)]
        await asyncio.gather(*(self._stop(name) for name in there))
        gone = []
        for name in reversed(there):
            await self._discard_pod(name)
            gone.append(f"pod {name}")
        for volume in volumes:
            record = self._parts.volumes.find(volume.name)
            if record is None or record.labels.get(LABEL) != volume.owner or (volume.kept and not claims):
                continue
            await self._parts.volumes.remove(volume.name, in_use=self._parts.volume_users)
            self._parts.publish_volume(record, "destroy")
            gone.append(f"volume {volume.name}")
        return gone

    async def _stop(self, name: str) -> None:
        with contextlib.suppress(NotModified, NotFound):
            await self._pods.stop(name)

    async def settle(self) -> None:
        """Take back what plays that a crash cut short have made."""
        for entry in await self._parts.store.range(_KEYS):
            try:
                note = msgspec.json.decode(entry.value, type=_Note)
            except msgspec.MsgspecError as error:
                log.error("the store's %s can't be read: %s", entry.key, error)
                continue
            await self._take_back(entry.key, note)

    async def _take_back(self, key: str, note: _Note) -> None:
        """Remove what a play had come to make. Where that fails, the note stays for the next start of the daemon."""
        try:
            for name, owner in reversed(note.pods.items()):
                with contextlib.suppress(Conflict):  # somebody else's by now
                    if self._owned(name, owner):
                        await self._discard_pod(name)
            for name, owner in note.volumes.items():
                record = self._parts.volumes.find(name)
                if record is not None and record.labels.get(LABEL) == owner:
                    await self._parts.discard_volume(name)
            await self._parts.store.txn([], [Delete(key)])
        except CoveError as error:
            log.error("a play that failed can't be taken back: %s", error)


def _check_host_path(path: HostPath) -> None:
    try:
        mode = os.stat(path.path).st_mode
    except (FileNotFoundError, NotADirectoryError):
        if path.kind in ("DirectoryOrCreate", "FileOrCreate"):
            return
        raise Invalid(
            f"{path.shown}: there is no {path.path} on this host: make it, or say type: DirectoryOrCreate"
        ) from None
    except OSError as error:
        raise HostError(f"{path.shown}: {path.path}: {error.strerror}") from error
    test, word = _KINDS.get(path.kind.removesuffix("OrCreate"), (None, ""))
    if test is not None and not test(mode):
        raise Invalid(f"{path.shown}: {path.path} is not {word}: name another path, or another type")


def _make_host_paths(paths: Sequence[HostPath]) -> None:
    for path in paths:
        try:
            if path.kind == "DirectoryOrCreate":
                os.makedirs(path.path, mode=0o755, exist_ok=True)
            elif path.kind == "FileOrCreate":
                os.makedirs(os.path.dirname(path.path), mode=0o755, exist_ok=True)
                os.close(os.open(path.path, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o644))
        except OSError as error:
            raise HostError(f"{path.shown}: {path.path}: {error.strerror}") from error


def _fill(where: Path, plan: VolumePlan, fresh: bool) -> None:
    """Give a volume its directories, and a new one its files, mode and group.

    One that is kept may be full of a container's symlinks: each component is opened beneath the one before.
    """
    root = os.open(where, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        if fresh:
            for path, file in plan.files.items():
                _write(root, path, file.content, file.mode, plan.group)
        for path in plan.directories:
            os.close(_open_directory(root, path.split("/"), plan.group if fresh else None))
        if fresh and plan.mode is not None:
            _own(root, plan.mode, plan.group)
        os.fsync(root)
    finally:
        os.close(root)


def _write(root: int, path: str, content: bytes, mode: int, group: int | None) -> None:
    *above, name = path.split("/")
    directory = _open_directory(root, above, group)
    try:
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
        with open(os.open(name, flags, 0o600, dir_fd=directory), "wb") as file:
            file.write(content)
            file.flush()
            _own(file.fileno(), mode | (0o040 if group is not None else 0), group)
            os.fsync(file.fileno())
    finally:
        os.close(directory)


def _open_directory(root: int, components: Sequence[str], group: int | None) -> int:
    here = os.dup(root)
    for component in components:
        try:
            made = True
            try:
                os.mkdir(component, 0o755, dir_fd=here)
            except FileExistsError:
                made = False
            inner = open_beneath(here, component, os.O_RDONLY | os.O_DIRECTORY)
            if made:
                _own(inner, 0o777 if group is None else 0o2777, group)
        finally:
            os.close(here)
        here = inner
    return here


def _own(descriptor: int, mode: int, group: int | None) -> None:
    if group is not None:
        os.fchown(descriptor, -1, group)
    os.fchmod(descriptor, mode)
