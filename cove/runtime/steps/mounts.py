"""Steps of the child that build the mount tree."""

from __future__ import annotations

from typing import ClassVar

from cove.runtime.steps.base import Step


class Propagate(Step, frozen=True, kw_only=True):
    """Change the propagation of the whole mount tree at "/" (MS_REC with MS_PRIVATE or MS_SLAVE)."""

    KIND: ClassVar[int] = 17
    flags: int

    def describe(self) -> str:
        return "cut mount propagation from the host"


class MountRoot(Step, frozen=True, kw_only=True):
    """Mount the container's root filesystem at the host directory `target`, which becomes the root.

    mount(2) is called with the working directory at `cwd`, so that `data` (overlay's options,
    one page at most) can name layers by short relative paths.
    """

    KIND: ClassVar[int] = 18
    fstype: str
    source: str
    target: str
    flags: int
    data: str
    cwd: str = "/"

    def describe(self) -> str:
        return f"mount {self.fstype} as the root at {self.target}"


class BindRoot(Step, frozen=True, kw_only=True):
    """Bind-mount a host directory onto itself, recursively: it becomes the root (OCI bundles)."""

    KIND: ClassVar[int] = 19
    path: str

    def describe(self) -> str:
        return f"use {self.path} as the root"


class MountIn(Step, frozen=True, kw_only=True):
    """Mount a new filesystem at `target` inside the root, which is made (a directory) when missing.

    With MS_REMOUNT what is mounted there gets other flags. A proc or a sysfs isn't mounted through a symlink
    (CVE-2019-19921), and nothing but what is named below /proc is mounted on a procfs.
    """

    KIND: ClassVar[int] = 20
    fstype: str
    source: str
    target: str
    flags: int  # MS_* of mount(2)
    data: str = ""
    optional: int = 0  # 1: a kernel that lacks it (ENODEV, EPERM, EINVAL) is passed over
    propagation: int = 0  # MS_SHARED, MS_UNBINDABLE; 0: private, as every new mount
    keep_mode: int = 0  # 1: its root gets the mode of the directory that was there, by the option mode=

    def describe(self) -> str:
        data = f" ({self.data})" if self.data else ""
        if self.flags & 0x20:
            return f"remount {self.target}{' read-only' if self.flags & 1 else ''}{data}"
        return f"mount {self.fstype} on {self.target}{data}"


class Bind(Step, frozen=True, kw_only=True):
    """Bind a host path into the root; `target` is made (file or directory, as the source) when missing.

    The source is opened once with open_tree(2) OPEN_TREE_CLONE, its attributes are set with
    mount_setattr(2), those of the mount itself before those of all mounts below it, too, and it is attached with
    move_mount(2). On a kernel without these calls mount(2) does it, but for the attributes of all (EOPNOTSUPP).
    """

    KIND: ClassVar[int] = 21
    source: str
    target: str
    recursive: int = 1
    attr_set: int = 0  # MOUNT_ATTR_* of the mount itself
    attr_clear: int = 0
    propagation: int = 0  # MS_PRIVATE, MS_SLAVE, MS_SHARED, MS_UNBINDABLE, with MS_REC for all; 0: leave
    recursive_set: int = 0  # MOUNT_ATTR_* of all
    recursive_clear: int = 0

    def describe(self) -> str:
        readonly = _readonly(self)
        return f"bind {self.source} -> {self.target}{readonly}{' recursive' if self.recursive else ''}"


class MakeDir(Step, frozen=True, kw_only=True):
    """Make a directory (and its missing parents) inside the root; there already is fine."""

    KIND: ClassVar[int] = 22
    path: str
    mode: int = 0o755
    uid: int = 0
    gid: int = 0

    def describe(self) -> str:
        return f"make directory {self.path} in the root"


class MakeNode(Step, frozen=True, kw_only=True):
    """mknod(2) inside the root; `mode` has the type bits. The very same node there already is fine,
    anything else fails with EEXIST."""

    KIND: ClassVar[int] = 23
    path: str
    mode: int
    major: int
    minor: int
    uid: int = 0
    gid: int = 0

    def describe(self) -> str:
        return f"make device {self.path} ({self.major}:{self.minor})"


class MakeSymlink(Step, frozen=True, kw_only=True):
    """symlink(2) inside the root; there already is fine."""

    KIND: ClassVar[int] = 24
    target: str
    path: str

    def describe(self) -> str:
        return f"link {self.path} -> {self.target}"


class Mask(Step, frozen=True, kw_only=True):
    """Hide a path: a file under the root's /dev/null, a directory under an empty read-only one.

    Missing is fine. All masked directories share one empty tmpfs (superblocks contend).
    """

    KIND: ClassVar[int] = 25
    path: str

    def describe(self) -> str:
        return f"hide {self.path}"


class ReadonlyPath(Step, frozen=True, kw_only=True):
    """Make a path inside the root read-only (bind onto itself, recursively). Missing is fine."""

    KIND: ClassVar[int] = 26
    path: str

    def describe(self) -> str:
        return f"make {self.path} read-only"


class PivotRoot(Step, frozen=True, kw_only=True):
    """pivot_root(2) into the root, detach the old one, chdir to "/"."""

    KIND: ClassVar[int] = 27

    def describe(self) -> str:
        return "pivot into the root"


class RootReadonly(Step, frozen=True, kw_only=True):
    """Make the root mount itself read-only (not what is mounted below it)."""

    KIND: ClassVar[int] = 28

    def describe(self) -> str:
        return "make the root filesystem read-only"


class RootPropagation(Step, frozen=True, kw_only=True):
    """Set the propagation of the root mount (MS_SHARED, MS_SLAVE … with or without MS_REC).
    After the pivot: pivot_root(2) refuses a shared root."""

    KIND: ClassVar[int] = 29
    flags: int

    def describe(self) -> str:
        return "set the root's mount propagation"


class AttachTree(Step, frozen=True, kw_only=True):
    """Attach the detached mount tree in `slot` (open_tree(2) OPEN_TREE_CLONE, made by the daemon in the
    host's mount namespace, so that it still is a peer of its source) at `target` inside the root, which is
    made (file or directory, as the tree's root) when missing. Attributes and move_mount(2) as in `Bind`,
    which this is for sources with shared or slave propagation, and for idmapped ones."""

    KIND: ClassVar[int] = 31
    slot: int
    target: str
    recursive: int = 1
    attr_set: int = 0  # as in Bind
    attr_clear: int = 0
    propagation: int = 0
    recursive_set: int = 0
    recursive_clear: int = 0

    def describe(self) -> str:
        return f"attach the mounts of descriptor {self.slot} -> {self.target}{_readonly(self)}"


def _readonly(step: Bind | AttachTree) -> str:
    if step.recursive_set & 1 or (step.attr_set & 1 and not step.recursive):
        return " read-only"
    return " read-only (but for what is mounted below)" if step.attr_set & 1 else ""


class AttachRoot(Step, frozen=True, kw_only=True):
    """Attach the detached mount in `slot` at the host directory `target`; it becomes the root. For a root that only
    the host's user namespace can mount: an overlay of idmapped layers (mount_setattr(2), MOUNT_ATTR_IDMAP)."""

    KIND: ClassVar[int] = 40
    slot: int
    target: str

    def describe(self) -> str:
        return f"use the mount of descriptor {self.slot} as the root at {self.target}"


class Chroot(Step, frozen=True, kw_only=True):
    """chroot(2) into a directory of a mount namespace that others are in, too: pivot_root(2) would move their root."""

    KIND: ClassVar[int] = 41
    path: str

    def describe(self) -> str:
        return f"change the root to {self.path}"


class CopyUp(Step, frozen=True, kw_only=True):
    """Mount a tmpfs at `target` inside the root that starts with a copy of what was there (option tmpcopyup): files,
    directories, symlinks, devices and FIFOs with their modes, owners and times; sockets are left out, as by runc."""

    KIND: ClassVar[int] = 42
    target: str
    flags: int  # MS_* of mount(2); MS_RDONLY holds once the copy is made
    data: str = ""
    source: str = "tmpfs"
    propagation: int = 0  # as in MountIn

    def describe(self) -> str:
        return f"mount a tmpfs on {self.target} that starts with a copy of what is there"
