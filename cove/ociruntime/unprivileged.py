"""What an ordinary user's container does without: cgroups that aren't delegated, mounts that follow the host's."""

from __future__ import annotations

import os

import msgspec

from cove.model.errors import Unavailable
from cove.runtime.plan_limits import limit_writes

TYPE_CHECKING = False
if TYPE_CHECKING:
    from cove.runtime.facts import Layout
    from cove.runtime.oci import Config, Resources

_FOLLOWING = frozenset({"slave", "rslave", "shared", "rshared"})


def is_delegated(layout: Layout, path: str) -> bool:
    """Whether this user may make the cgroup: the last directory of the way there that exists is his."""
    if layout.version == 2:
        roots = [layout.root]
    else:
        roots = [f"{layout.root}/{hierarchy.directory}" for hierarchy in layout.hierarchies]
    for root in roots:
        directory = f"{root}/{path}"
        while not os.path.isdir(directory):
            directory = os.path.dirname(directory)
        if not os.access(directory, os.W_OK):
            return False
    return bool(roots)


def check_unlimited(layout: Layout, resources: Resources) -> None:
    """Raises Unavailable when there is something to limit, which takes a cgroup."""
    if writes := limit_writes(layout, resources):
        raise Unavailable(
            f"{writes[0].field}: this user can't make cgroups: have one delegated, or leave the limit out"
        )


def with_own_mounts(config: Config) -> Config:
    """Binds that are private: only who may mount on the host can clone a mount that goes on following it."""
    mounts = tuple(
        msgspec.structs.replace(
            mount, options=tuple(option for option in mount.options if option not in _FOLLOWING)
        )
        for mount in config.mounts
    )
    return msgspec.structs.replace(config, mounts=mounts)
