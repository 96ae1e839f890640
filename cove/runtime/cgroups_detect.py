"""Find out which cgroups this host has, and choose the implementation. Reads only; `Cgroups.setup` makes."""

from __future__ import annotations

import os
from dataclasses import replace

from cove.model.errors import Unavailable
from cove.runtime.cgroups import Cgroups, own_path
from cove.runtime.cgroups_files import make_directory, read_file, read_pids, write_file
from cove.runtime.cgroups_none import CgroupsNone
from cove.runtime.cgroups_v1 import CgroupsV1
from cove.runtime.cgroups_v2 import CgroupsV2
from cove.runtime.facts import Hierarchy, Layout, check_parent


def detect_cgroups(root: str = "/sys/fs/cgroup", *, parent: str = "cove") -> Cgroups:
    """Find out what is mounted at `root` and choose the implementation; changes nothing (`setup` does).

    A v2 tree at `root` itself is a unified host. Otherwise directories with v1 controllers make it v1, also
    when an empty v2 tree lies beside them (hybrid). Raises Unavailable when there is neither.
    """
    check_parent(parent)
    online = len(os.sched_getaffinity(0))
    if os.path.exists(f"{root}/cgroup.controllers"):
        controllers = frozenset(read_file(f"{root}/cgroup.controllers").split())
        layout = Layout(
            version=2, root=root, parent=parent, controllers=controllers, online_cpus=online,
            cpus=read_file(f"{root}/cpuset.cpus.effective").strip(),
            mems=read_file(f"{root}/cpuset.mems.effective").strip(),
        )  # fmt: skip
        return CgroupsV2(layout)

    hierarchies = _find_hierarchies(root)
    known = frozenset(name for hierarchy in hierarchies for name in hierarchy.controllers)
    if not known:
        raise Unavailable(
            f"no control groups are mounted at {root}: mount cgroup2 there, or v1's hierarchies below it"
        )
    layout = Layout(
        version=1, root=root, parent=parent, hierarchies=hierarchies, controllers=known, online_cpus=online
    )
    if "cpuset" in known:
        cpuset = layout.directory("cpuset", "")
        layout = replace(
            layout,
            cpus=read_file(f"{cpuset}cpuset.effective_cpus").strip(),
            mems=read_file(f"{cpuset}cpuset.effective_mems").strip(),
        )
    return CgroupsV1(layout)


def detect_delegated(root: str = "/sys/fs/cgroup", *, parent: str = "cove") -> Cgroups:
    """What an ordinary user's daemon has: a v2 cgroup that systemd delegated to it (Delegate=yes), else nothing.

    A cgroup with processes can't be a parent, so those that are there, this one among them, go into a leaf; the next
    daemon may start in there (DelegateSubgroup=daemon).
    """
    own = own_path().strip("/").removesuffix(f"/{_LEAF}")
    directory = f"{root}/{own}"
    if own and os.access(directory, os.W_OK) and os.access(f"{directory}/cgroup.procs", os.W_OK):
        leaf = f"{directory}/{_LEAF}"
        make_directory(leaf)
        for pid in read_pids(directory):
            write_file(f"{leaf}/cgroup.procs", str(pid))
        return detect_cgroups(root, parent=f"{own}/{parent}")
    return CgroupsNone(parent, online_cpus=len(os.sched_getaffinity(0)))


_LEAF = "daemon"


def _find_hierarchies(root: str) -> tuple[Hierarchy, ...]:
    """v1 hierarchies are named after their controllers ("cpu,cpuacct"); symlinks to them are no others."""
    found = []
    try:
        entries = sorted(os.scandir(root), key=lambda entry: entry.name)
    except OSError:
        return ()
    for entry in entries:
        if not entry.is_dir(follow_symlinks=False) or not os.path.exists(f"{entry.path}/cgroup.procs"):
            continue
        if os.path.exists(f"{entry.path}/cgroup.controllers"):  # the v2 tree of a hybrid host
            continue
        names = tuple(entry.name.split(","))
        known = tuple(name if name in V1_CONTROLLERS else f"name={name}" for name in names)
        found.append(Hierarchy(directory=entry.name, controllers=known))
    return tuple(found)


V1_CONTROLLERS = frozenset(
    "cpu cpuacct cpuset memory devices freezer blkio pids net_cls net_prio perf_event hugetlb rdma misc".split()
)
