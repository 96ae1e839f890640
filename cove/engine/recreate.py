"""Re-creation: a container's place is taken by another one with what was asked to be different.

Order that must hold: the record of it, the new container under a name of its own, the old one's stop, both names
exchanged in one transaction, the new one's start, the old one's removal. So at each instant the name means a
container that is whole, and `plan_recovery` tells from the records alone how a starting daemon goes on:

    noted, created, old stopped ──> taken back: the new one goes, the old one runs again
    exchanged, new not started  ──> names back, then the same
    exchanged, new started      ──> finished: the old one goes

Volumes outlive it: the new container mounts the anonymous ones, too, so that the old one's removal spares them.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import msgspec

from cove.engine.commit import Commits
from cove.engine.lifecycle import Lifecycle
from cove.engine.live import Background
from cove.engine.names import new_id
from cove.engine.parts import Parts
from cove.engine.types import View
from cove.model.container import Bind, Container, ContainerSpec, ImageMount, MountPoint, Tmpfs, Volume
from cove.model.errors import Conflict, CoveError, NotFound, NotModified
from cove.model.recreation import Recreated, Recreation

log = logging.getLogger("cove.engine")

_NAME_CHARS = 200  # of the container's name that the two others begin with

Recovery = Literal["forget", "back", "finish"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """What the new container is to be: the whole spec, and what differs from the old one's."""

    spec: ContainerSpec
    secret_data: Mapping[str, bytes] = field(default_factory=dict)
    new_image: bool = (
        False  # the spec's image is looked up; else the new container has the very image of the old one
    )
    new_sources: bool = False  # --volumes-from is looked up; else what it gave is carried over
    keep_files: bool = (
        False  # what the old container changed in its files comes along, in a layer of an image
    )
    unmounted: tuple[str, ...] = ()  # targets whose mount goes
    changed: tuple[str, ...] = ()  # as in Recreated


@dataclass(frozen=True, slots=True, kw_only=True)
class Origin:
    """What a create takes over from the container whose place the new one is to take."""

    container_id: str  # the new one's
    image_id: str  # "": look it up
    inherits: bool  # --volumes-from is to be looked up
    mounts: tuple[MountPoint, ...]
    recreated: Recreated


Create = Callable[
    [ContainerSpec, Mapping[str, bytes], Origin | None], Awaitable[tuple[Container, Sequence[str]]]
]


def carried_mounts(old: Container, asked: Asked) -> tuple[MountPoint, ...]:
    """The old container's mounts that no mount of its spec makes again: anonymous volumes, the image's, and those
    of other containers. Pure."""
    made = {mount.target.rstrip("/") for mount in asked.spec.mounts if not _is_anonymous(mount)}
    own = {mount.target.rstrip("/") for mount in old.spec.mounts if not _is_anonymous(mount)}
    return tuple(
        point
        for point in old.mounts
        if point.target not in made | own
        and point.target not in asked.unmounted
        and (point.anonymous or not asked.new_sources)
    )


def _is_anonymous(mount: Bind | Volume | Tmpfs | ImageMount) -> bool:
    return isinstance(mount, Volume) and not mount.name


def plan_recovery(record: Recreation, old: View | None, new: View | None) -> Recovery:
    """How a starting daemon goes on with a re-creation. Pure.

    A new container that is gone although it had the name was removed by its owner, or has ended with --rm.
    """
    if old is None:
        return "forget" if record.exchanged or new is None else "back"
    if not record.exchanged:
        return "back"
    if new is None or not record.ran or new.state.has_been_started:
        return "finish"
    return "back"


class Recreations:
    """Re-creations of a running daemon."""

    def __init__(
        self, parts: Parts, lifecycle: Lifecycle, background: Background, commits: Commits, create: Create
    ) -> None:
        self._parts = parts
        self._lifecycle = lifecycle
        self._background = background
        self._commits = commits
        self._create = create
        self._busy: set[str] = set()  # both ids of each re-creation under way

    async def recreate(self, container_id: str, asked: Asked) -> tuple[Container, Sequence[str]]:
        """Raises Conflict for a container that others join, and what create, stop and start raise: then the old
        container is as it was."""
        done: asyncio.Future[tuple[Container, Sequence[str]]] = asyncio.get_running_loop().create_future()

        async def work() -> None:
            try:
                result = await self._recreate(container_id, asked)
            except Exception as error:
                if done.done():
                    raise
                done.set_exception(error)
            except BaseException:  # the daemon ends; its next start goes by the record
                done.cancel()
                raise
            else:
                if not done.done():
                    done.set_result(result)

        self._background.spawn(work(), f"re-creating container {container_id[:12]}")
        return await done

    async def _recreate(self, container_id: str, asked: Asked) -> tuple[Container, Sequence[str]]:
        if container_id in self._busy:
            raise Conflict(
                f"container {container_id[:12]} is being re-created already: wait until that is done"
            )
        fresh_id = new_id()
        ids = {container_id, fresh_id}
        self._busy |= ids
        try:
            return await self._take_place(container_id, fresh_id, asked)
        finally:
            self._busy -= ids

    async def _take_place(
        self, container_id: str, fresh_id: str, asked: Asked
    ) -> tuple[Container, Sequence[str]]:
        view = self._parts.registry.find(container_id)
        old = view.container
        _check(view, self._parts.registry.views())
        record = Recreation(
            old=old.id,
            new=fresh_id,
            name=old.name,
            fresh=f"{old.name[:_NAME_CHARS]}.new-{old.id[:12]}",
            aside=f"{old.name[:_NAME_CHARS]}.old-{old.id[:12]}",
            ran=view.state.status in ("running", "paused", "restarting"),
        )
        origin = Origin(
            container_id=record.new,
            image_id="" if asked.new_image else old.image_id,
            inherits=asked.new_sources,
            mounts=carried_mounts(old, asked),
            recreated=Recreated(origin=old.id, at_ns=time.time_ns(), changed=asked.changed),
        )
        data = {**self._kept_secrets(old, asked.spec), **asked.secret_data}
        await self._parts.registry.note_recreation(record)
        try:
            spec = msgspec.structs.replace(asked.spec, name=record.fresh)
            if asked.keep_files:
                await self._stop(record.old)
                made, warnings = await self._create_with_files(old, spec, data, origin)
            else:
                made, warnings = await self._create(spec, data, origin)
            await self._stop(record.old)
            record = await self._exchange(record)
            if record.ran:
                await self._start(record.new)
        except Exception:
            await self._take_back(record)
            raise
        await finish(self._parts, self._lifecycle, record)
        return msgspec.structs.replace(made, name=record.name), warnings

    def _kept_secrets(self, old: Container, spec: ContainerSpec) -> dict[str, bytes]:
        """The contents of the old container's own secrets that the new one has, too."""
        wanted = {use.target for use in spec.extension.secrets if not use.name}
        return {
            use.target: self._parts.secrets.read(use.id)
            for use in old.spec.extension.secrets
            if not use.name and use.target in wanted
        }

    async def _create_with_files(
        self, old: Container, spec: ContainerSpec, data: Mapping[str, bytes], origin: Origin
    ) -> tuple[Container, Sequence[str]]:
        """The image of the files is removed at once: it goes with the last container that was made from it."""
        image = await self._commits.keep_files(old)
        try:
            return await self._create(spec, data, replace(origin, image_id=image.id))
        finally:
            if not any(image.names) and image.id != old.image_id:
                with contextlib.suppress(CoveError):
                    await self._parts.images.remove(
                        image.id, force=True, prune=False, in_use=self._parts.image_users
                    )

    async def _stop(self, container_id: str) -> None:
        live = self._lifecycle.live(container_id)
        live.restarting += 1  # --rm spares it: it may have to run again
        try:
            with contextlib.suppress(NotModified):
                await self._lifecycle.stop(container_id, timeout_s=None, signal_name="")
        finally:
            live.restarting -= 1

    async def _start(self, container_id: str) -> None:
        """--rm takes the new container along only once its start is known to have worked: a daemon that finds the
        names exchanged and the new one gone takes that for its end."""
        live = self._lifecycle.live(container_id)
        live.restarting += 1
        try:
            with contextlib.suppress(NotModified):
                await self._lifecycle.start(container_id)
        finally:
            live.restarting -= 1
        async with live.lock:
            view = self._parts.registry.get(container_id)
        if view is not None and view.container.spec.auto_remove and view.state.status == "exited":
            with contextlib.suppress(NotFound, Conflict):
                await self._lifecycle.remove(container_id, force=False, volumes=True)

    async def _exchange(self, record: Recreation) -> Recreation:
        """Both names under both locks, for who changes a record has read it before."""
        old, new = self._lifecycle.live(record.old), self._lifecycle.live(record.new)
        async with old.lock, new.lock:
            if old.task is not None and not record.exchanged:
                raise Conflict(f"container {record.name} was started while it was re-created")
            turned = await self._parts.registry.exchange(record)
        publish_exchange(self._parts, turned)
        return turned

    async def _take_back(self, record: Recreation) -> None:
        """The old container as it was; what fails here is logged, for the caller is told why it came to this."""
        try:
            if record.exchanged:
                record = await self._exchange(record)
        except CoveError as error:  # somebody removed or renamed one of them meanwhile
            log.warning("container %s: %s", record.name, error)
            await self._parts.registry.forget_recreation(record)
            if self._parts.registry.get(record.old) is not None:
                with contextlib.suppress(CoveError):
                    await self._parts.registry.rename(record.old, record.name)
        await discard_new(self._lifecycle, record)
        try:
            if record.ran:
                await self._lifecycle.start(record.old)
        except NotModified:
            pass
        except CoveError as error:
            log.error("container %s could not be started again: %s", record.name, error)
        await self._parts.registry.forget_recreation(record)


def publish_exchange(parts: Parts, record: Recreation) -> None:
    """The two renames, in an order in which no two containers have one name."""
    before = {record.old: record.name, record.new: record.fresh}
    order = (record.old, record.new)
    if not record.exchanged:
        before = {record.old: record.aside, record.new: record.name}
        order = (record.new, record.old)
    for container_id in order:
        view = parts.registry.get(container_id)
        if view is not None:
            parts.publish(view.container, "rename", oldName="/" + before[container_id])


async def discard_new(lifecycle: Lifecycle, record: Recreation) -> None:
    """Remove the new container and the volumes that were made for it alone; that it is gone is fine."""
    try:
        await lifecycle.remove(record.new, force=True, volumes=True)
    except NotFound:
        pass
    except CoveError as error:
        log.error("container %s could not be removed: %s", record.fresh, error)


async def finish(parts: Parts, lifecycle: Lifecycle, record: Recreation) -> None:
    """Remove the old container; its volumes stay, but for those that --rm takes along and nobody else has."""
    view = parts.registry.get(record.old)
    if view is not None:
        try:
            await lifecycle.remove(record.old, force=True, volumes=view.container.spec.auto_remove)
        except NotFound:
            pass
        except CoveError as error:
            log.error("container %s could not be removed: %s", record.aside, error)
    await parts.registry.forget_recreation(record)


def _check(view: View, views: Sequence[View]) -> None:
    container = view.container
    if view.state.status in ("removing", "dead"):
        raise Conflict("container is marked for removal and cannot be re-created")
    if container.spec.extension.infra:
        raise Conflict(f"container {container.name} holds a pod: create the pod again instead")
    joined = f"container:{container.id}"
    for other in views:
        spec: Any = other.container.spec
        if joined in (spec.network_mode, spec.pid_mode, spec.ipc_mode) or any(
            link.startswith(container.id) for link in spec.links
        ):
            raise Conflict(
                f"container {container.name} is joined by {other.container.name}, which would lose it: "
                f"remove {other.container.name} first, and create it again after"
            )


# --- the next daemon's start ----------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Unfinished:
    record: Recreation
    recovery: Recovery

    @property
    def wants_old(self) -> bool:
        """The old container has to run, and --rm spares it until it does."""
        return self.recovery == "back" and self.record.ran


async def begin_recoveries(parts: Parts) -> list[Unfinished]:
    """What was under way, its names put right already."""
    found = []
    for record in await parts.registry.list_recreations():
        recovery = plan_recovery(record, parts.registry.get(record.old), parts.registry.get(record.new))
        if recovery == "back" and record.exchanged:
            try:
                record = await parts.registry.exchange(record)
            except CoveError as error:  # a name was taken by a rename of somebody's: both containers stay
                log.error("re-creation of container %s can't be taken back: %s", record.name, error)
                await parts.registry.forget_recreation(record)
                continue
            publish_exchange(parts, record)
        log.warning("re-creation of container %s was cut off: %s", record.name, _SAID[recovery])
        found.append(Unfinished(record, recovery))
    return found


_SAID = {"forget": "nothing is left to do", "back": "it is taken back", "finish": "it is finished"}


async def end_recoveries(parts: Parts, lifecycle: Lifecycle, unfinished: Sequence[Unfinished]) -> list[str]:
    """Remove whichever container has to go; returns the old ones that have to be started."""
    wanted = []
    for one in unfinished:
        if one.recovery == "finish":
            await finish(parts, lifecycle, one.record)
            continue
        if one.recovery == "back":
            await discard_new(lifecycle, one.record)
            view = parts.registry.get(one.record.old)
            if (
                one.wants_old
                and view is not None
                and view.state.status in ("created", "exited", "restarting")
            ):
                state = msgspec.structs.replace(view.state, status="restarting", wanted=True)
                await parts.registry.set_state(one.record.old, state)
                wanted.append(one.record.old)
        await parts.registry.forget_recreation(one.record)
    return wanted
