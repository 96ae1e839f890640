"""What a plan is made of beside the config and the host, and the descriptors that it asks for. Pure data."""

from __future__ import annotations

from typing import Literal

import msgspec

from cove.runtime.oci import IdMapping


class Overlay(msgspec.Struct, frozen=True, kw_only=True):
    """An overlay root. `lower` are layers, the lowest first, relative to `layers_dir` or absolute."""

    lower: tuple[str, ...]
    layers_dir: str
    upper: str
    work: str
    merged: str  # an empty directory to mount on
    volatile: bool = False  # nothing is synced (Linux 5.10): for roots that don't outlive a crash anyway
    userxattr: bool = False  # for a mount within a user namespace (Linux 5.11)


class Directory(msgspec.Struct, frozen=True, kw_only=True):
    """A directory that is the root as it is."""

    path: str


class Attached(msgspec.Struct, frozen=True, kw_only=True):
    """A mount that the caller made and hands over as the slot of kind "root"; `path` is an empty directory to
    attach it to."""

    path: str


RootSource = Overlay | Directory | Attached


class IdMaps(msgspec.Struct, frozen=True):
    """The maps of a user namespace."""

    uids: tuple[IdMapping, ...]
    gids: tuple[IdMapping, ...]

    @property
    def root(self) -> tuple[int, int]:
        """The host's user and group that the container's root is."""
        return self.uids[0].host_id, self.gids[0].host_id


class Slot(msgspec.Struct, frozen=True, kw_only=True):
    """A descriptor that a plan needs; a plan names it by its position in the list.

    network    the ready network namespace that the network room handed out
    namespace  the namespace file at `path` (/proc/PID/ns/pid), opened while that process is known to live
    process    a pidfd of the container's first process (exec)
    tree       open_tree(2) of `path` with OPEN_TREE_CLONE, and AT_RECURSIVE when `recursive`
    root       the mount of an Attached root
    go, status the FIFOs of a Hold step
    """

    kind: Literal["network", "namespace", "process", "tree", "root", "go", "status"]
    path: str = ""
    namespace: str = ""  # of a namespace: its type, as a config names it
    recursive: bool = False
    subpath: str = ""  # of a tree: below `path`, looked up as if that were the root
    layers: tuple[str, ...] = ()  # of a tree: it is the read-only overlay of these below `path`, lowest first
    userxattr: bool = False  # as in Overlay
    uid_mappings: tuple[IdMapping, ...] = ()  # of a tree: it is idmapped
    gid_mappings: tuple[IdMapping, ...] = ()
    idmap_recursive: bool = False  # with all that is mounted below it


class Slots:
    """Numbers the descriptors in the order in which the plan needs them."""

    def __init__(self) -> None:
        self.needed: list[Slot] = []

    def add(self, slot: Slot) -> int:
        self.needed.append(slot)
        return len(self.needed) - 1


class PlanFacts(msgspec.Struct, frozen=True, kw_only=True):
    """What a config doesn't say."""

    id: str
    root: RootSource | None = None  # None: the config's root.path as it is
    network_ready: bool = (
        False  # a ready network namespace is handed over; else the container gets an empty one
    )
    network_pause: bool = (
        False  # in a joined user namespace: its own network waits to be connected (Pause "network")
    )
    init: bool = False
    group_add: tuple[str, ...] = ()  # only to show what ResolveUser is about
    held: bool = False  # the process waits for its start (Hold)
    all_cgroups: bool = False  # it joins every v1 hierarchy, as an OCI runtime's container does
    cgroup_pause: bool = False  # systemd's driver: the caller puts the process into a scope (Pause "cgroup")
    record_pause: bool = (
        False  # somebody looks at what it opens, from before its first program (Pause "record")
    )
    setgroups: bool = True  # False: the user namespace's maps are an unprivileged user's own
    keyring: bool = True  # a session keyring of its own
    mount_at: str = (
        ""  # without a mount namespace: an empty directory that the root is mounted at, and unmounted from
    )
