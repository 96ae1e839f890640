"""Get a worker to the tree it works on: the container's own, or an overlay of its own.

Runs in a worker, before the walls close. A running container's tree is entered by its pidfd; a stopped
one's is mounted in the worker's private namespace, over the layers' directory (it exists, and nothing
that the container mounts lies below it), with binds and volumes on top. A mount's target is resolved
once, inside the tree, and mounted on by descriptor.
"""

from __future__ import annotations

import errno
import os
import stat

from cove.image import overlayfs, sandbox
from cove.image.jobs import BindMount, OverlayPlace
from cove.image.sandbox import (
    MS_BIND,
    MS_RDONLY,
    MS_REC,
    MS_REMOUNT,
    O_PATH,
    RESOLVE_IN_ROOT,
    RESOLVE_NO_MAGICLINKS,
    openat2,
)
from cove.image.tarformat import show_name
from cove.model.errors import HostError, Invalid

_WITHIN = RESOLVE_IN_ROOT | RESOLVE_NO_MAGICLINKS


def enter_running(pidfd: int) -> None:
    """Make the tree of a running container the root."""
    sandbox.join_mount_namespace(pidfd)
    os.chdir("/")


def enter_overlay(place: OverlayPlace) -> None:
    """Mount a stopped container's tree and make it the root."""
    sandbox.unshare_all()
    root = place.layers_dir
    os.chdir(root)  # the lower layers' names are relative, and stay reachable below the new mount
    lower = ":".join(_escape(layer) for layer in reversed(place.lower))
    more = overlayfs.mount_options()
    if place.upper:
        options = f"lowerdir={lower},upperdir={_escape(place.upper)},workdir={_escape(place.work)}{more}"
        sandbox.mount("overlay", root, "overlay", 0, options)
    elif len(place.lower) > 1:
        sandbox.mount("overlay", root, "overlay", MS_RDONLY, f"lowerdir={lower}{more}")
    else:
        sandbox.mount(os.path.join(root, lower), root, "", MS_BIND)
        sandbox.mount("", root, "", MS_REMOUNT | MS_BIND | MS_RDONLY)
    tree = os.open(root, O_PATH | os.O_DIRECTORY)
    try:
        for mount in sorted(place.mounts, key=lambda m: m.target.rstrip("/").count("/")):
            _bind(tree, mount)
    finally:
        os.close(tree)
    sandbox.pivot_into(root, bind=False)


def _escape(path: str) -> str:
    return path.replace("\\", "\\\\").replace(",", "\\,").replace(":", "\\:")


def _bind_image(tree: int, mount: BindMount) -> None:
    """Another image's files: mounted read-only at the target, and the subpath's upon that. Layers are relative to the
    working directory, as the root's are."""
    target = os.fsencode(mount.target)
    try:
        fd = openat2(tree, target, O_PATH, RESOLVE_IN_ROOT)
    except FileNotFoundError:
        _make_target(tree, target, True)
        fd = openat2(tree, target, O_PATH, RESOLVE_IN_ROOT)
    try:
        if len(mount.layers) > 1:
            lower = ":".join(_escape(layer) for layer in reversed(mount.layers))
            options = f"lowerdir={lower}{overlayfs.mount_options()}"
            sandbox.mount("overlay", f"/proc/self/fd/{fd}", "overlay", MS_RDONLY, options)
        else:
            sandbox.mount(mount.layers[0], f"/proc/self/fd/{fd}", "", MS_BIND)
    finally:
        os.close(fd)
    if mount.subpath:
        whole = openat2(tree, target, O_PATH, RESOLVE_IN_ROOT)
        try:
            below = openat2(whole, os.fsencode(mount.subpath), O_PATH, _WITHIN)
            sandbox.mount(f"/proc/self/fd/{below}", f"/proc/self/fd/{whole}", "", MS_BIND)
            os.close(below)
        finally:
            os.close(whole)
    fd = openat2(tree, target, O_PATH, RESOLVE_IN_ROOT)
    try:
        sandbox.mount("", f"/proc/self/fd/{fd}", "", MS_REMOUNT | MS_BIND | MS_RDONLY)
    finally:
        os.close(fd)


def _bind(tree: int, mount: BindMount) -> None:
    if mount.layers:
        _bind_image(tree, mount)
        return
    try:
        source = os.open(mount.source, O_PATH)
        if mount.subpath:
            root, source = source, openat2(source, os.fsencode(mount.subpath), O_PATH, _WITHIN)
            os.close(root)
    except OSError as error:
        where = f"{mount.source}/{mount.subpath}" if mount.subpath else mount.source
        raise HostError(f"the mount source {where} can't be read: {error.strerror}") from error
    is_directory = stat.S_ISDIR(os.fstat(source).st_mode)
    target = os.fsencode(mount.target)
    try:
        fd = openat2(tree, target, O_PATH, RESOLVE_IN_ROOT)
    except FileNotFoundError:
        _make_target(tree, target, is_directory)
        fd = openat2(tree, target, O_PATH, RESOLVE_IN_ROOT)
    try:
        sandbox.mount(f"/proc/self/fd/{source}", f"/proc/self/fd/{fd}", "", MS_BIND | MS_REC)
    finally:
        os.close(fd)
        os.close(source)
    if mount.readonly:
        fd = openat2(tree, target, O_PATH, RESOLVE_IN_ROOT)
        try:
            sandbox.mount("", f"/proc/self/fd/{fd}", "", MS_REMOUNT | MS_BIND | MS_RDONLY)
        finally:
            os.close(fd)


def _make_target(tree: int, target: bytes, is_directory: bool) -> None:
    parts = [part for part in target.split(b"/") if part not in (b"", b".")]
    if b".." in parts or not parts:
        raise Invalid(f"a mount's target must be an absolute path without '..', not {show_name(target)}")
    above = openat2(tree, b".", O_PATH | os.O_DIRECTORY, RESOLVE_IN_ROOT)
    try:
        for index, part in enumerate(parts):
            last = index == len(parts) - 1
            try:
                if last and not is_directory:
                    os.close(os.open(part, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o644, dir_fd=above))
                    return
                os.mkdir(part, 0o755, dir_fd=above)
            except FileExistsError:
                pass
            except OSError as error:
                if error.errno == errno.EROFS:
                    raise HostError(f"{show_name(target)} isn't in the image, which is read-only") from error
                raise
            path = b"/".join(parts[: index + 1])
            below = openat2(tree, path, O_PATH | os.O_DIRECTORY, RESOLVE_IN_ROOT)
            os.close(above)
            above = below
    finally:
        os.close(above)
