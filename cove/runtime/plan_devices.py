"""Plan the device nodes of a container's /dev. Pure.

In a user namespace nodes can't be made (mknod(2): EPERM): the host's are bound instead.
"""

from __future__ import annotations

from collections.abc import Iterator

from cove.model.errors import Invalid
from cove.runtime import oci
from cove.runtime.steps import Bind, MakeDir, MakeNode, MakeSymlink, Step

# name, major, minor
_NODES = (
    ("null", 1, 3),
    ("zero", 1, 5),
    ("full", 1, 7),
    ("random", 1, 8),
    ("urandom", 1, 9),
    ("tty", 5, 0),
)
_LINKS: tuple[Step, ...] = (
    MakeSymlink(target="pts/ptmx", path="/dev/ptmx"),
    MakeSymlink(target="/proc/self/fd", path="/dev/fd"),
    MakeSymlink(target="/proc/self/fd/0", path="/dev/stdin"),
    MakeSymlink(target="/proc/self/fd/1", path="/dev/stdout"),
    MakeSymlink(target="/proc/self/fd/2", path="/dev/stderr"),
    MakeSymlink(target="/proc/kcore", path="/dev/core"),
)
_MADE: tuple[Step, ...] = (
    *(
        MakeNode(path=f"/dev/{name}", mode=0o020666, major=major, minor=minor)
        for name, major, minor in _NODES
    ),
    *_LINKS,
)
_BOUND: tuple[Step, ...] = (
    *(Bind(source=f"/dev/{name}", target=f"/dev/{name}", recursive=0) for name, _, _ in _NODES),
    *_LINKS,
)
_DEFAULT_PATHS = frozenset(f"/dev/{name}" for name, _, _ in _NODES) | {"/dev/ptmx", "/dev/console"}
_TYPE_BITS = {"c": 0o020000, "u": 0o020000, "b": 0o060000, "p": 0o010000}


def plan_default_devices(*, bound: bool) -> tuple[Step, ...]:
    """The nodes and links that every container has (config-linux.md, "Default Devices")."""
    return _BOUND if bound else _MADE


def plan_devices(devices: tuple[oci.LinuxDevice, ...], *, bound: bool) -> Iterator[Step]:
    """The nodes that a config asks for; a default one is there already. Raises Invalid."""
    for index, device in enumerate(devices):
        if device.path in _DEFAULT_PATHS:
            continue
        kind = _TYPE_BITS.get(device.type)
        if kind is None:
            raise Invalid(f"linux.devices[{index}].type {device.type!r}: use c, u, b or p")
        if bound and device.type != "p":
            yield Bind(source=device.path, target=device.path, recursive=0)
            continue
        parent = device.path.rpartition("/")[0]
        if parent not in ("", "/dev"):
            yield MakeDir(path=parent)
        yield MakeNode(
            path=device.path,
            mode=kind | device.file_mode & 0o7777,
            major=device.major,
            minor=device.minor,
            uid=device.uid,
            gid=device.gid,
        )
