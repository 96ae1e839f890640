"""What may be mounted in a running container, and how its record changes: the pure part."""

from __future__ import annotations

import msgspec
import pytest

from cove.engine.live_mounts import check_added, with_added, without
from cove.model.container import Bind, Container, ContainerSpec, Mount, MountPoint, Tmpfs, Volume
from cove.model.errors import Invalid

SHARED = MountPoint(kind="bind", target="/shared", source="/srv", propagation="rshared")
DEEP = MountPoint(kind="volume", target="/deep/data", source="/v/data", name="data")
REQUEST = {"HostConfig": {"Binds": ["/srv:/shared:rshared", "data:/deep/data", "/anonymous"]}}
OLD = Container(
    id="0" * 64,
    name="web",
    created_ns=1,
    image_id="sha256:0",
    image_name="debian",
    spec=ContainerSpec(
        image="debian",
        mounts=(Bind(source="/srv", target="/shared"), Volume(name="data", target="/deep/data/")),
        request=msgspec.Raw(msgspec.json.encode(REQUEST)),
    ),
    args=("sleep",),
    mounts=(SHARED, DEEP),
)


@pytest.mark.parametrize(
    ("mount", "said"),
    [
        (Bind(source="/a", target="/shared/below"), "appear on the host"),
        (Bind(source="/a", target="/deep"), "would hide"),
        (Bind(source="/a", target="/x/../deep/data/"), "mounted there already"),
        (Bind(source="/a", target="//proc/./kcore"), "nothing is mounted"),
        (Bind(source="/a", target="/x/.."), "nothing is mounted"),
        (Bind(source="/a", target="/x", propagation="rslave"), "propagation rslave"),
        (Volume(name="", target="/x"), "needs a name"),
        (Tmpfs(target="/x"), "only a bind or a volume"),
    ],
)
def test_what_can_not_be_added(mount: Mount, said: str) -> None:
    with pytest.raises(Invalid, match=said):
        check_added(OLD, mount)


def test_a_target_is_clean_and_a_neighbours_name_is_no_parent() -> None:
    assert check_added(OLD, Bind(source="/a", target="//deeper/./x/")).target == "/deeper/x"
    assert check_added(OLD, Bind(source="/a", target="/process")).target == "/process"


def test_what_is_added_and_removed_leaves_the_record_as_it_was() -> None:
    mount = Bind(source="/a", target="/x")
    shown = {"Type": "bind", "Source": "/a", "Target": "/x"}
    more = with_added(OLD, mount, shown, MountPoint(kind="bind", target="/x", source="/a"))
    assert msgspec.json.decode(more.spec.request)["HostConfig"]["Mounts"] == [shown]
    less = without(more, "/x")
    assert (less.mounts, less.spec.mounts) == (OLD.mounts, OLD.spec.mounts)
    rest = without(less, "/deep/data")
    assert rest.mounts == (SHARED,)
    kept = ["/srv:/shared:rshared", "/anonymous"]
    assert msgspec.json.decode(rest.spec.request)["HostConfig"] == {"Binds": kept, "Mounts": []}
    with pytest.raises(Invalid, match="no bind and no named volume"):
        without(OLD, "/anonymous")
