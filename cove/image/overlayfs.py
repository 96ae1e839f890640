"""How overlayfs keeps what it notes in a layer: attributes trusted.overlay.*, or user.overlay.* for whoever mounts in a
user namespace, where the others can't be set (option userxattr, Linux 5.11)."""

from __future__ import annotations

from functools import cache


@cache
def in_user_namespace() -> bool:
    """user_namespaces(7): the first one's map is the whole range onto itself."""
    with open("/proc/self/uid_map", encoding="ascii") as file:
        return file.read().split() != ["0", "0", "4294967295"]


def opaque_attribute() -> str:
    """The attribute that makes a directory hide what lower layers have below it."""
    return "user.overlay.opaque" if in_user_namespace() else "trusted.overlay.opaque"


def mount_options() -> str:
    """What a mount here needs beside its layers, with a leading comma."""
    return ",userxattr" if in_user_namespace() else ""
