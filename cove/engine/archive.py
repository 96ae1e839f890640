"""Files of containers: which tree a path is looked up in, what may be written there, and what was changed.

A running container is entered by its mount namespace; of a stopped one the overlay and its binds and
volumes are mounted in the worker's own. The lookup itself, and every byte, is the worker's (cove.image).
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import secrets
from collections.abc import AsyncIterator, Iterator

from cove.engine.changes import Change, list_changes
from cove.engine.parts import Parts
from cove.engine.types import View
from cove.image.types import OverlayTree, PathStat, RunningTree, Tree
from cove.image.worker import ArchiveStream, read_archive, stat_path, write_archive
from cove.model.errors import Conflict, Forbidden, Invalid, NotFound
from cove.runtime.users import Resolved, resolve_user


class Archives:
    """stat, get and put of paths in containers."""

    def __init__(self, parts: Parts) -> None:
        self._parts = parts

    def tree(self, view: View) -> Tree:
        """The tree that the container's processes see, or would see."""
        container, state = view
        if state.status in ("running", "paused") and state.pid:
            return RunningTree(pid=state.pid)
        if state.status in ("removing", "dead"):
            raise Conflict(f"container {container.id} is being removed")
        layer = self._parts.layer(container)
        image = self._parts.images.image_by_id(container.image_id)
        return OverlayTree(
            lower=self._parts.images.layer_paths(image),
            layers_dir=self._parts.images.layers_dir,
            upper=layer.upper,
            work=layer.work,
            mounts=self._parts.with_layers(container).mounts,
        )

    async def stat(self, view: View, path: str) -> PathStat:
        _check_path(path)
        with _naming(view, path):
            async with self._mounted(view):
                return await stat_path(self.tree(view), path)

    async def get(self, view: View, path: str) -> tuple[PathStat, AsyncIterator[bytes]]:
        _check_path(path)
        with _naming(view, path):
            async with contextlib.AsyncExitStack() as undo:
                await undo.enter_async_context(self._mounted(view))
                found, stream = await read_archive(self.tree(view), path)
                return found, _HeldStream(stream, undo.pop_all())

    async def put(
        self,
        view: View,
        path: str,
        chunks: AsyncIterator[bytes],
        *,
        no_overwrite_dir_non_dir: bool,
        copy_uid_gid: bool,
    ) -> None:
        """Unpack into a directory. Forbidden where the container could not write either."""
        _check_path(path)
        if view.container.spec.readonly_rootfs and not self._below_writable_mount(view, path):
            raise Forbidden("container rootfs is marked read-only")
        with _naming(view, path):
            async with self._mounted(view):
                await write_archive(
                    self.tree(view),
                    path,
                    chunks,
                    no_overwrite_dir_non_dir=no_overwrite_dir_non_dir,
                    owner=self._owner(view) if copy_uid_gid else None,
                )

    @contextlib.asynccontextmanager
    async def _mounted(self, view: View) -> AsyncIterator[None]:
        """A stopped container's volumes are mounted for as long as somebody looks at its files."""
        await self._parts.ensure_layer(view.container)
        names = set() if view.state.pid else self._parts.mounted_volumes(view.container)
        if not names:
            yield
            return
        async with self._parts.volumes.mounts.held(f"files-{secrets.token_hex(8)}", names):
            yield

    async def changes(self, view: View) -> list[Change]:
        """What the container changed in its files."""
        image = self._parts.images.image_by_id(view.container.image_id)
        layers = [self._parts.images.layers_dir / path for path in self._parts.images.layer_paths(image)]
        await self._parts.ensure_layer(view.container)
        upper = self._parts.layer(view.container).upper
        return await asyncio.to_thread(list_changes, upper, layers[::-1])

    async def export(self, view: View) -> AsyncIterator[bytes]:
        """The container's files without what is mounted there, as a tar stream."""
        if view.state.status in ("removing", "dead"):
            raise Conflict(f"container {view.container.id} is being removed")
        image = self._parts.images.image_by_id(view.container.image_id)
        await self._parts.ensure_layer(view.container)
        upper = self._parts.layer(view.container).upper
        # Read-only, with the writable layer as the highest of the lower ones: it may be in use above another
        # overlay at the same time.
        tree = OverlayTree(
            lower=[*self._parts.images.layer_paths(image), str(upper)],
            layers_dir=self._parts.images.layers_dir,
        )
        _, chunks = await read_archive(tree, "/", bare=True)
        return chunks

    def _owner(self, view: View) -> tuple[int, int] | None:
        """Who `docker cp -a` gives the files to: the container's user; None when only its root could tell."""
        if not view.container.user:
            return None
        if view.state.pid:
            root_fd = os.open(f"/proc/{view.state.pid}/root", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
            try:
                found: Resolved | None = resolve_user(root_fd, view.container.user)
            finally:
                os.close(root_fd)
        else:
            found = self._parts.identity(view.container)
        return (found.uid, found.gid) if found is not None else None

    def _below_writable_mount(self, view: View, path: str) -> bool:
        clean = "/" + path.strip("/") + "/"
        return any(
            clean.startswith(point.target.rstrip("/") + "/") and not point.readonly
            for point in view.container.mounts
        )


class _HeldStream:
    """An archive's bytes; the volumes that were mounted for it are let go of at its end, and by `aclose`."""

    def __init__(self, stream: ArchiveStream, undo: contextlib.AsyncExitStack) -> None:
        self._stream = stream
        self._undo = undo

    def __aiter__(self) -> _HeldStream:
        return self

    async def __anext__(self) -> bytes:
        try:
            return await anext(self._stream)
        except BaseException:
            await self.aclose()
            raise

    async def aclose(self) -> None:
        await self._stream.aclose()
        await self._undo.aclose()


@contextlib.contextmanager
def _naming(view: View, path: str) -> Iterator[None]:
    """A worker doesn't know whose tree it looks at."""
    try:
        yield
    except NotFound:
        name = view.container.name
        raise NotFound(f"Could not find the file {path} in container {name}") from None


def _check_path(path: str) -> None:
    if not path:
        raise Invalid("path: expected a path in the container, e.g. /etc/hosts")
    if "\0" in path:
        raise Invalid("path: a NUL byte is not allowed")
