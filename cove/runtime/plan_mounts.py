"""Plan one mount of an OCI config: options become flags and data. Pure.

Binds are made from detached clones (open_tree(2)), so that attributes are set before anybody sees the
mount. A bind that is to stay a peer (shared) or a follower (slave) of its source, or is from another mount
namespace, is cloned by the daemon and handed over: the child's own tree is private, nobody's peer. So is one
of a volume's subpath, which is looked up within the volume.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from functools import lru_cache
from typing import NamedTuple

from cove.model.errors import Invalid, Unavailable
from cove.runtime import oci
from cove.runtime.facts import Host
from cove.runtime.plan_cgroups import NO_RESOURCES, joined_directories, visible_names
from cove.runtime.steps import AttachTree, Bind, MakeSymlink, MountIn, Step

# mount(2)
MS_RDONLY, MS_NOSUID, MS_NODEV, MS_NOEXEC, MS_SYNCHRONOUS = 0x1, 0x2, 0x4, 0x8, 0x10
MS_DIRSYNC, MS_NOATIME, MS_NODIRATIME, MS_REC = 0x80, 0x400, 0x800, 0x4000
MS_UNBINDABLE, MS_PRIVATE, MS_SLAVE, MS_SHARED = 1 << 17, 1 << 18, 1 << 19, 1 << 20
MS_RELATIME, MS_STRICTATIME, MS_LAZYTIME = 1 << 21, 1 << 24, 1 << 25
# mount_setattr(2)
ATTR_RDONLY, ATTR_NOSUID, ATTR_NODEV, ATTR_NOEXEC = 0x1, 0x2, 0x4, 0x8
ATTR_NOATIME, ATTR_STRICTATIME, ATTR_NODIRATIME, ATTR_ATIME_MASK = 0x10, 0x20, 0x80, 0x70
ATTR_NOSYMFOLLOW = 0x200000

Trees = Callable[[str, bool, str], int]  # (path, recursive, subpath) -> the slot of a detached clone

_SET = {  # option -> (MS_* to set, MS_* to clear)
    "defaults": (0, 0),
    "ro": (MS_RDONLY, 0),
    "rw": (0, MS_RDONLY),
    "nosuid": (MS_NOSUID, 0),
    "suid": (0, MS_NOSUID),
    "nodev": (MS_NODEV, 0),
    "dev": (0, MS_NODEV),
    "noexec": (MS_NOEXEC, 0),
    "exec": (0, MS_NOEXEC),
    "sync": (MS_SYNCHRONOUS, 0),
    "async": (0, MS_SYNCHRONOUS),
    "dirsync": (MS_DIRSYNC, 0),
    "noatime": (MS_NOATIME, MS_STRICTATIME),
    "atime": (0, MS_NOATIME),
    "nodiratime": (MS_NODIRATIME, 0),
    "diratime": (0, MS_NODIRATIME),
    "relatime": (MS_RELATIME, MS_STRICTATIME),
    "norelatime": (0, MS_RELATIME),
    "strictatime": (MS_STRICTATIME, MS_NOATIME | MS_RELATIME),
    "nostrictatime": (0, MS_STRICTATIME),
    "lazytime": (MS_LAZYTIME, 0),
    "nolazytime": (0, MS_LAZYTIME),
}
_ATTRIBUTES = {  # option of a bind -> (MOUNT_ATTR_* to set, to clear); the r… forms are the specification's
    "ro": (ATTR_RDONLY, 0),
    "rw": (0, ATTR_RDONLY),
    "nosuid": (ATTR_NOSUID, 0),
    "suid": (0, ATTR_NOSUID),
    "nodev": (ATTR_NODEV, 0),
    "dev": (0, ATTR_NODEV),
    "noexec": (ATTR_NOEXEC, 0),
    "exec": (0, ATTR_NOEXEC),
    "noatime": (ATTR_NOATIME, ATTR_ATIME_MASK),
    "strictatime": (ATTR_STRICTATIME, ATTR_ATIME_MASK),
    "relatime": (0, ATTR_ATIME_MASK),
    "nodiratime": (ATTR_NODIRATIME, 0),
    "diratime": (0, ATTR_NODIRATIME),
    "nosymfollow": (ATTR_NOSYMFOLLOW, 0),
    "symfollow": (0, ATTR_NOSYMFOLLOW),
}
_PROPAGATION = {
    "private": MS_PRIVATE,
    "slave": MS_SLAVE,
    "shared": MS_SHARED,
    "unbindable": MS_UNBINDABLE,
    "rprivate": MS_PRIVATE | MS_REC,
    "rslave": MS_SLAVE | MS_REC,
    "rshared": MS_SHARED | MS_REC,
    "runbindable": MS_UNBINDABLE | MS_REC,
}
ROOT_PROPAGATION = _PROPAGATION

# another container's file system: a bind can't reach into another mount namespace, the daemon can
_FOREIGN = re.compile(r"/proc/[0-9]+/root/")

# what may be mounted over below /proc (lxcfs); anything else could fool the checks that go by /proc
_PROC_FILES = frozenset(
    f"/proc/{name}" for name in "cpuinfo diskstats loadavg meminfo slabinfo stat swaps uptime".split()
)


class Flags(NamedTuple):
    flags: int
    data: str
    propagation: int


@lru_cache(maxsize=512)
def parse_options(options: tuple[str, ...]) -> Flags:
    """The options of a new filesystem: what isn't a flag goes to the filesystem, in order."""
    flags, propagation, data = 0, 0, []
    for option in options:
        if option in _SET:
            to_set, to_clear = _SET[option]
            flags = flags & ~to_clear | to_set
        elif option in _PROPAGATION:
            propagation = _PROPAGATION[option]
        else:
            data.append(option)
    return Flags(flags, ",".join(data), propagation)


class BindOptions(NamedTuple):
    recursive: bool
    attr_set: int
    attr_clear: int
    propagation: int


@lru_cache(maxsize=512)
def parse_bind_options(options: tuple[str, ...]) -> BindOptions:
    """The options of a bind. Raises Invalid for one that a bind doesn't have."""
    recursive, attr_set, attr_clear, propagation = False, 0, 0, 0
    for option in options:
        if option in ("bind", "rbind"):
            recursive = option == "rbind"
            continue
        if option in _PROPAGATION:
            propagation = _PROPAGATION[option]
            continue
        name = option if option in _ATTRIBUTES else option.removeprefix("r")
        if name in _ATTRIBUTES:
            to_set, to_clear = _ATTRIBUTES[name]
            attr_set = attr_set & ~to_clear | to_set
            attr_clear = attr_clear & ~to_set | to_clear
        elif option not in _SET:
            raise Invalid(f"mounts: a bind has no option {option!r}, leave it out")
    return BindOptions(recursive, attr_set, attr_clear, propagation)


def is_bind(mount: oci.Mount) -> bool:
    return mount.type == "bind" or "bind" in mount.options or "rbind" in mount.options


def plan_mount(mount: oci.Mount, config: oci.Config, host: Host, trees: Trees) -> Iterator[Step]:
    """The steps of one mount. Raises Invalid, or Unavailable for a filesystem that this kernel lacks."""
    target = mount.destination
    if (target == "/proc" and mount.type != "proc") or (
        target.startswith("/proc/") and target not in _PROC_FILES
    ):
        raise Invalid(f'"{target}" cannot be mounted because it is inside /proc')
    if is_bind(mount):
        yield _plan_bind(mount, trees)
    elif mount.type == "cgroup":
        yield from _plan_cgroup_mount(mount, config, host)
    else:
        yield _plan_filesystem(mount, host.filesystems)


@lru_cache(maxsize=512)
def _plan_filesystem(mount: oci.Mount, filesystems: frozenset[str]) -> Step:
    if mount.type not in filesystems:
        raise Unavailable(
            f"mount {mount.destination}: this kernel has no filesystem {mount.type!r} (/proc/filesystems)"
        )
    flags = parse_options(mount.options)
    return MountIn(
        fstype=mount.type,
        source=mount.source or mount.type,
        target=mount.destination,
        flags=flags.flags,
        data=flags.data,
    )


def _plan_bind(mount: oci.Mount, trees: Trees) -> Step:
    options = parse_bind_options(mount.options)
    propagation = options.propagation & ~MS_REC
    if propagation in (MS_SHARED, MS_SLAVE) or mount.subpath or _FOREIGN.match(mount.source):
        return AttachTree(
            slot=trees(mount.source, options.recursive, mount.subpath),
            target=mount.destination,
            recursive=int(options.recursive),
            attr_set=options.attr_set,
            attr_clear=options.attr_clear,
            propagation=propagation,  # a clone of the host's may be a peer until it is made private
        )
    return Bind(
        source=mount.source,
        target=mount.destination,
        recursive=int(options.recursive),
        attr_set=options.attr_set,
        attr_clear=options.attr_clear,
        propagation=propagation
        if propagation != MS_PRIVATE
        else 0,  # private already, as all of the child's tree
    )


def _plan_cgroup_mount(mount: oci.Mount, config: oci.Config, host: Host) -> Iterator[Step]:
    """v2: the tree, which starts at the container's cgroup in a cgroup namespace. v1: the container's own
    cgroup of each hierarchy that it joined, below the host's tmpfs with its mount points and links.

    That tmpfs is bound read-only and not recursively: no superblock, no directories to make. Where the
    container may write, it gets a tmpfs of its own.
    """
    layout, target = host.cgroups, mount.destination
    flags = parse_options(mount.options).flags
    if layout.version == 2:
        yield MountIn(fstype="cgroup2", source="cgroup", target=target, flags=flags)
        return
    readonly = flags & MS_RDONLY
    attributes = ATTR_NOSUID | ATTR_NODEV | ATTR_NOEXEC | (ATTR_RDONLY if readonly else 0)
    if readonly:
        yield Bind(source=layout.root, target=target, recursive=0, attr_set=attributes)
    else:
        yield MountIn(
            fstype="tmpfs",
            source="tmpfs",
            target=target,
            flags=flags & ~MS_RDONLY,
            data="mode=755,size=1024k",
        )
    resources = config.linux.resources or NO_RESOURCES
    if config.linux.cgroups_path:
        for hierarchy, directory in joined_directories(
            layout, config.linux.cgroups_path, resources, everything=not readonly
        ):
            yield Bind(
                source=directory, target=f"{target}/{hierarchy.directory}", recursive=0, attr_set=attributes
            )
    if not readonly:
        for name, directory in visible_names(layout):
            yield MakeSymlink(target=directory, path=f"{target}/{name}")
