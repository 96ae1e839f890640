"""Mount options: what becomes a flag, an attribute, data, or is refused; and the plans that come of it.

Golden files in tests/golden/mounts have every field of the steps; regenerate with COVE_GOLDEN=write.
"""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec
import msgspec.structs
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cove.model.container import MountPoint
from cove.model.errors import CoveError, Invalid, Unavailable
from cove.runtime import oci, steps
from cove.runtime import plan_mounts as mounts
from cove.runtime.facts import Host
from cove.runtime.plan_inputs import Slots
from cove.runtime.plan_mounts import KNOWN_OPTIONS, finish_mounts, parse_options, plan_mount
from tests.unit.runtime_samples import HOST_V1, HOST_V2, container, plan_of

# config.md, "Linux mount options", without createMountpoint, which is an engine's
SPECIFIED = (
    "async atime bind defaults dev diratime dirsync exec iversion lazytime loud mand noatime nodev nodiratime noexec "
    "noiversion nolazytime nomand norelatime nostrictatime nosuid nosymfollow private ratime rbind rdev rdiratime "
    "relatime remount rexec rnoatime rnodiratime rnoexec rnorelatime rnostrictatime rnosuid rnosymfollow ro rprivate "
    "rrelatime rro rrw rshared rslave rstrictatime rsuid rsymfollow runbindable rw shared silent slave strictatime "
    "suid symfollow sync tmpcopyup unbindable idmap ridmap"
).split()
MAPPING = (oci.IdMapping(container_id=0, host_id=100000, size=65536),)
RO, NOSUID, NODEV, NOEXEC = 1, 2, 4, 8


def config_of(*given: oci.Mount, **linux: Any) -> oci.Config:
    return oci.Config(
        root=oci.Root(path="/r"),
        process=oci.Process(args=("sh",), cwd="/"),
        mounts=given,
        linux=oci.Linux(**linux),
    )


def plan(
    mount: oci.Mount, host: Host = HOST_V1, others: tuple[oci.Mount, ...] = (), **linux: Any
) -> tuple[list[steps.Step], Slots]:
    slots = Slots()
    return list(plan_mount(mount, config_of(mount, *others, **linux), host, slots)), slots


def step(mount: oci.Mount, host: Host = HOST_V1, **linux: Any) -> Any:
    (only,) = plan(mount, host, **linux)[0]
    return only


def bind(*options: str, **more: Any) -> oci.Mount:
    return oci.Mount(destination="/d", type="none", source="/s", options=("rbind", *options), **more)


def tmpfs(*options: str, destination: str = "/t") -> oci.Mount:
    return oci.Mount(destination=destination, type="tmpfs", source="tmpfs", options=options)


def test_every_specified_option_is_known() -> None:
    assert set(SPECIFIED) <= set(KNOWN_OPTIONS)
    for option in SPECIFIED:
        assert parse_options((option,)).data == "", option


@pytest.mark.parametrize(
    ("options", "flags", "data"),
    [
        (("ro", "nosuid", "rw", "size=1m", "strictatime", "mode=755"), 0x2 | 1 << 24, "size=1m,mode=755"),
        (("noatime", "relatime"), 1 << 21, ""),
        (("relatime", "noatime"), 0x400, ""),
        (("nodiratime", "dirsync", "sync", "mand"), 0x800 | 0x80 | 0x10 | 0x40, ""),
        (("nosymfollow", "iversion", "lazytime", "silent"), 0x100 | 1 << 23 | 1 << 25 | 1 << 15, ""),
        (("sync", "async", "silent", "loud", "iversion", "noiversion", "mand", "nomand"), 0, ""),
        (("rro", "rnosuid", "rnodev"), 0x7, ""),  # nothing is below a new filesystem
        (("ro", "rrw"), 0, ""),
        (("defaults", "nr_inodes=1k"), 0, "nr_inodes=1k"),
    ],
)
def test_options_of_a_filesystem_become_flags_and_data(
    options: tuple[str, ...], flags: int, data: str
) -> None:
    made = step(tmpfs(*options))
    assert (made.flags, made.data) == (flags, data)


@pytest.mark.parametrize(
    ("options", "own", "everything"),
    [
        (("ro",), (RO, 0), (0, 0)),
        (("rro",), (0, 0), (RO, 0)),
        (("ro", "rro"), (RO, 0), (RO, 0)),
        (("rro", "rrw"), (0, 0), (0, RO)),
        (("ro", "rw"), (0, RO), (0, 0)),
        (("nosuid", "nodev", "noexec"), (NOSUID | NODEV | NOEXEC, 0), (0, 0)),
        (("suid", "rdev", "rexec"), (0, NOSUID), (0, NODEV | NOEXEC)),
        (("noatime",), (0x10, 0x70), (0, 0)),
        (("rstrictatime",), (0, 0), (0x20, 0x70)),
        (("noatime", "relatime"), (0, 0x70), (0, 0)),
        (("relatime", "noatime", "nodiratime"), (0x90, 0x70), (0, 0)),
        (("rnosymfollow", "symfollow"), (0, 0x200000), (0x200000, 0)),
        (("sync", "lazytime", "mand", "defaults", "silent"), (0, 0), (0, 0)),  # a bind has none of its own
    ],
)
def test_options_of_a_bind_become_attributes(
    options: tuple[str, ...], own: tuple[int, int], everything: tuple[int, int]
) -> None:
    made = step(bind(*options))
    assert made == steps.Bind(
        source="/s", target="/d", recursive=1, attr_set=own[0], attr_clear=own[1],
        recursive_set=everything[0], recursive_clear=everything[1],
    )  # fmt: skip


@pytest.mark.parametrize(
    ("options", "propagation"),
    [(("rprivate",), 0), (("private",), 0), (("unbindable",), 1 << 17), (("runbindable",), 1 << 17 | 0x4000)],
)
def test_propagation_of_a_bind_that_the_child_clones(options: tuple[str, ...], propagation: int) -> None:
    assert step(bind(*options)) == steps.Bind(source="/s", target="/d", propagation=propagation)


@pytest.mark.parametrize(("option", "flag"), [("shared", 1 << 20), ("rslave", 1 << 19)])
def test_a_peer_of_its_source_is_cloned_by_the_caller(option: str, flag: int) -> None:
    (made,), slots = plan(bind(option, "ro"))
    assert made == steps.AttachTree(slot=0, target="/d", attr_set=RO, propagation=flag | 0x4000)
    assert (slots.needed[0].path, slots.needed[0].recursive) == ("/s", True)


@pytest.mark.parametrize(
    ("option", "propagation"),
    [("shared", 1 << 20), ("runbindable", 1 << 17 | 0x4000), ("private", 0), ("rslave", 0)],
)
def test_propagation_of_a_new_filesystem(option: str, propagation: int) -> None:
    assert step(tmpfs(option)).propagation == propagation


def test_remount_changes_what_is_there() -> None:
    assert step(tmpfs("remount", "ro", "size=1m")) == steps.MountIn(
        fstype="tmpfs", source="tmpfs", target="/t", flags=0x20 | RO, data="size=1m"
    )
    assert step(bind("remount", "nosuid")).flags == 0x20 | 0x1000 | NOSUID


def test_tmpfs_keeps_the_mode_of_the_directory_unless_told() -> None:
    assert step(tmpfs()).keep_mode == 1
    assert step(tmpfs("mode=700")).keep_mode == 0


def test_tmpcopyup_copies() -> None:
    assert step(tmpfs("tmpcopyup", "ro", "size=1m")) == steps.CopyUp(target="/t", flags=RO, data="size=1m")
    for wrong in (bind("tmpcopyup"), oci.Mount(destination="/s", type="sysfs", options=("tmpcopyup",))):
        with pytest.raises(Invalid, match=r"mounts\[0\].options: tmpcopyup is for a tmpfs"):
            plan(wrong)


def test_a_readonly_tmpfs_is_filled_first() -> None:
    outer, inner = tmpfs("ro", "nosuid"), tmpfs(destination="/t/sub")
    made, _ = plan(outer, others=(inner,))
    assert made == [msgspec.structs.replace(step(outer), flags=NOSUID)]
    assert list(finish_mounts(config_of(outer, inner))) == [
        steps.MountIn(fstype="", source="", target="/t", flags=RO | NOSUID | 0x20 | 0x1000)
    ]
    assert step(outer).flags == RO | NOSUID and not list(finish_mounts(config_of(outer)))
    assert list(finish_mounts(config_of(tmpfs("ro", destination="/dev"))))


# --- idmapped binds -----------------------------------------------------------------------------------


@pytest.mark.parametrize(("options", "everything"), [((), False), (("idmap",), False), (("ridmap",), True)])
def test_an_idmapped_bind_is_handed_over(options: tuple[str, ...], everything: bool) -> None:
    (made,), slots = plan(bind(*options, uid_mappings=MAPPING, gid_mappings=MAPPING))
    (slot,) = slots.needed
    assert (slot.uid_mappings, slot.gid_mappings, slot.idmap_recursive) == (MAPPING, MAPPING, everything)
    assert made == steps.AttachTree(slot=0, target="/d", propagation=1 << 18 | 0x4000)


def test_an_idmap_without_maps_takes_the_containers() -> None:
    _, slots = plan(bind("idmap"), uid_mappings=MAPPING, gid_mappings=MAPPING)
    assert slots.needed[0].uid_mappings == MAPPING


# --- refusals -----------------------------------------------------------------------------------------

OLD = replace(HOST_V1, kernel=(5, 10))


@pytest.mark.parametrize(
    ("mount", "host", "message"),
    [
        (bind("size=1m", "fast"), HOST_V1, r"mounts\[0\].options: a bind has no option 'fast'"),
        (bind("idmap"), HOST_V1, r"mounts\[0\].options: idmap needs uidMappings and gidMappings"),
        (bind(uid_mappings=MAPPING), HOST_V1, r"mounts\[0\].gidMappings: .* go together"),
        (bind(gid_mappings=MAPPING), HOST_V1, r"mounts\[0\].uidMappings: .* go together"),
        (
            oci.Mount(destination="/t", type="tmpfs", uid_mappings=MAPPING, gid_mappings=MAPPING),
            HOST_V1, r"mounts\[0\]: only a bind can be idmapped",
        ),
        (bind("idmap", uid_mappings=MAPPING, gid_mappings=MAPPING), OLD, "needs Linux 5.12, this is 5.10"),
        (bind("rro"), OLD, r"mounts\[0\].options: rro needs Linux 5.12, this is 5.10: use ro"),
        (bind("nosymfollow"), OLD, "nosymfollow of a bind needs Linux 5.14"),
        (oci.Mount(destination="/d", type="bind", source="s"), HOST_V1, "source 's': an absolute path"),
        (tmpfs("x" * 4001), HOST_V1, r"mounts\[0\].options: 4001 bytes for the file system, the kernel takes 4000"),
        (oci.Mount(destination="/", type="tmpfs"), HOST_V1, "the root is not mounted upon"),
        (oci.Mount(destination="/x", type="nosuchfs"), HOST_V1, "this kernel has no filesystem 'nosuchfs'"),
        (oci.Mount(destination="/proc", type="tmpfs"), HOST_V1, "inside /proc"),
        (oci.Mount(destination="/proc", type="bind", source="/procs"), HOST_V1, "inside /proc"),
        (oci.Mount(destination="/proc/sys", type="none", source="/s", options=("bind",)), HOST_V1, "inside /proc"),
        (oci.Mount(destination="//x/../proc/./sys/", type="tmpfs"), HOST_V1, "inside /proc"),
        (oci.Mount(destination="proc/kcore", type="tmpfs"), HOST_V1, "inside /proc"),
    ],
)  # fmt: skip
def test_what_can_not_be_is_refused_in_a_sentence(mount: oci.Mount, host: Host, message: str) -> None:
    with pytest.raises((Invalid, Unavailable), match=message):
        plan(mount, host)


def test_the_hosts_own_proc_may_be_bound_and_what_lxcfs_emulates() -> None:
    for place, source in (
        ("/proc", "/proc/"),
        ("/proc/uptime", "/l/uptime"),
        ("/proc/sys/kernel/ns_last_pid", "/l"),
    ):
        made = step(oci.Mount(destination=place, type="bind", source=source))
        assert made == steps.Bind(source=source, target=place, recursive=0)


def test_the_path_names_the_mount_that_is_wrong() -> None:
    good, bad = tmpfs(), bind("fast")
    with pytest.raises(Invalid, match=r"mounts\[1\].options"):
        list(plan_mount(bad, config_of(good, bad), HOST_V1, Slots()))


def test_a_mount_label_wants_selinux() -> None:
    with pytest.raises(Unavailable, match=r"linux.mountLabel: SELinux is not enabled on this host"):
        plan(tmpfs(), mount_label="system_u:object_r:svirt_t:s0:c1,c2")
    host = replace(HOST_V1, security_modules=frozenset({"selinux"}))
    label = "system_u:object_r:svirt_t:s0:c1,c2"
    assert step(tmpfs("size=1m"), host, mount_label=label).data == f'size=1m,context="{label}"'
    proc = oci.Mount(destination="/proc", type="proc")
    assert step(proc, host, mount_label=label).data == ""
    with pytest.raises(Invalid, match="a label has no quotation marks"):
        plan(tmpfs(), host, mount_label='a"b')


def test_a_readonly_volume_of_an_old_kernel_is_readonly_at_the_top() -> None:
    volume = MountPoint(kind="bind", target="/v", source="/s", readonly=True)
    made, _ = plan_of(container(mounts=(volume,)), OLD)
    assert steps.Bind(source="/s", target="/v", attr_set=RO) in made.child
    made, _ = plan_of(container(mounts=(volume,)))
    assert steps.Bind(source="/s", target="/v", recursive_set=RO) in made.child


# --- cgroup mounts ------------------------------------------------------------------------------------

CGROUP = oci.Mount(destination="/sys/fs/cgroup", type="cgroup", source="cgroup", options=("ro", "nosuid"))
OWN_CGROUP = (oci.Namespace(type="cgroup"),)


def test_v2_shows_the_tree_in_a_cgroup_namespace_and_the_own_cgroup_without() -> None:
    tree = step(CGROUP, HOST_V2, cgroups_path="/cove/x", namespaces=OWN_CGROUP)
    assert (tree.fstype, tree.flags) == ("cgroup2", RO | NOSUID)
    own = step(CGROUP, HOST_V2, cgroups_path="/cove/x")
    assert isinstance(own, steps.Bind)
    assert (own.source, own.recursive, own.attr_set & RO) == ("/sys/fs/cgroup/cove/x", 0, RO)
    writable = oci.Mount(destination="/sys/fs/cgroup", type="cgroup")
    assert step(writable, HOST_V2, cgroups_path="/cove/x").fstype == "cgroup2"


def test_v1_shows_each_joined_hierarchy() -> None:
    made, _ = plan(CGROUP, cgroups_path="/cove/x")
    assert isinstance(made[0], steps.Bind) and made[0].source == "/sys/fs/cgroup"
    assert all(isinstance(each, steps.Bind) and each.attr_set & RO for each in made)
    assert any(getattr(each, "target", "") == "/sys/fs/cgroup/memory" for each in made)


def test_v1_in_a_user_namespace_gets_a_tmpfs_of_its_own() -> None:
    """The host's can't be bound there without what is mounted on it (mount_namespaces(7), locked mounts)."""
    made, _ = plan(CGROUP, cgroups_path="/cove/x", namespaces=(oci.Namespace(type="user"),))
    assert (made[0].fstype, made[0].flags) == ("tmpfs", NOSUID)  # type: ignore[attr-defined]
    assert made[-1].flags & (RO | 0x20) == RO | 0x20  # type: ignore[attr-defined]


# --- golden plans -------------------------------------------------------------------------------------

GOLDEN = Path(__file__).parent.parent / "golden/mounts"
USER = (oci.Namespace(type="user"),)
CASES: dict[str, tuple[tuple[oci.Mount, ...], Host, dict[str, Any]]] = {
    "binds": (
        (
            bind(), bind("ro", "nosuid", "rprivate"), bind("rro", "rnodev", "noatime"), bind("rshared"),
            bind("rslave", "ro"), bind("runbindable"), bind("remount", "ro", "nodev"),
            oci.Mount(destination="rel/../../d", type="bind", source="/s"),
            oci.Mount(destination="/foreign", type="bind", source="/proc/41/root/dev/shm"),
            oci.Mount(destination="/sub", type="bind", source="/v", subpath="a/b"),
        ),
        HOST_V1, {},
    ),
    "filesystems": (
        (
            tmpfs("nosuid", "size=1m"), tmpfs("mode=700", "rro", "rstrictatime"), tmpfs("shared", "dirsync"),
            tmpfs("remount", "size=2m"), oci.Mount(destination="/proc", type="proc", options=("nosuid", "hidepid=2")),
            tmpfs("ro", destination="/dev"), tmpfs("ro", destination="/full"), tmpfs(destination="/full/of"),
            oci.Mount(destination="/q", type="mqueue", source="mqueue", options=("noexec",)),
        ),
        HOST_V1, {},
    ),
    "idmapped": (
        (
            bind("idmap"), bind("ridmap", "rro"),
            bind(uid_mappings=(oci.IdMapping(container_id=0, host_id=5, size=1),), gid_mappings=MAPPING),
        ),
        HOST_V1, {"uid_mappings": MAPPING, "gid_mappings": MAPPING},
    ),
    "copies": ((tmpfs("tmpcopyup"), tmpfs("tmpcopyup", "ro", "mode=755", "unbindable")), HOST_V1, {}),
    "cgroups-v1": ((CGROUP,), HOST_V1, {"cgroups_path": "/cove/x"}),
    "cgroups-v1-user": ((CGROUP,), HOST_V1, {"cgroups_path": "/cove/x", "namespaces": USER}),
    "cgroups-v2": ((CGROUP,), HOST_V2, {"cgroups_path": "/cove/x"}),
    "cgroups-v2-own": ((CGROUP,), HOST_V2, {"cgroups_path": "/cove/x", "namespaces": OWN_CGROUP}),
    "labelled": (
        (tmpfs("size=1m"), bind(), oci.Mount(destination="/proc", type="proc")),
        replace(HOST_V1, security_modules=frozenset({"selinux"})),
        {"mount_label": "system_u:object_r:svirt_t:s0:c1,c2"},
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_plan_is_the_one_that_was_reviewed(name: str) -> None:
    given, host, linux = CASES[name]
    config, slots = config_of(*given, **linux), Slots()
    lines = []
    for mount in given:
        options = ",".join(mount.options)
        lines.append(f"# {mount.type} {mount.source} {mount.destination} {options}".rstrip())
        lines += [show(made) for made in plan_mount(mount, config, host, slots)]
    lines += ["# at the end", *map(show, finish_mounts(config))]
    lines += [f"# slot {index}: {show(slot)}" for index, slot in enumerate(slots.needed)]
    text = "\n".join(lines) + "\n"
    path = GOLDEN / f"{name}.txt"
    if os.environ.get("COVE_GOLDEN") == "write":
        path.write_text(text)
    assert text == path.read_text(), f"{path} differs: look at the diff, then run with COVE_GOLDEN=write"


def show(made: msgspec.Struct) -> str:
    """With the fields that aren't as they are by default, and flags as hexadecimal numbers."""
    fields = []
    for field in msgspec.structs.fields(made):
        value = getattr(made, field.name)
        if value != field.default:
            fields.append(
                f"{field.name}={value:#x}"
                if isinstance(value, int) and value > 9
                else f"{field.name}={value}"
            )
    return f"{type(made).__name__} {' '.join(fields)}"


def test_every_golden_file_belongs_to_a_case() -> None:
    assert {path.stem for path in GOLDEN.glob("*.txt")} == {*CASES}


# --- properties ---------------------------------------------------------------------------------------

words = st.lists(st.sampled_from([*SPECIFIED, "size=1m", "mode=1777", "x"]), max_size=8).map(tuple)


@given(words)
def test_any_options_are_planned_or_refused(options: tuple[str, ...]) -> None:
    for mount in (bind(*options), tmpfs(*options)):
        try:
            made, slots = plan(mount, uid_mappings=MAPPING, gid_mappings=MAPPING)
        except CoveError as error:
            assert str(error).startswith("mount")
            continue
        assert made
        assert [each.slot for each in made if isinstance(each, steps.AttachTree)] == list(
            range(len(slots.needed))
        )


@given(words)
def test_no_attribute_is_set_and_cleared_at_once_but_the_times_are_replaced(options: tuple[str, ...]) -> None:
    parsed = parse_options(options)
    for attributes in (parsed.own, parsed.all):
        times = mounts.ATTR_ATIME_MASK
        assert attributes.set & attributes.clear & ~times == 0
        assert attributes.clear & times in (0, times)  # mount_setattr(2): else EINVAL
        assert not attributes.set & times or attributes.clear & times


@given(words, st.sampled_from(["ro", "nosuid", "nodev", "noexec", "nosymfollow"]))
def test_the_last_word_counts(options: tuple[str, ...], last: str) -> None:
    """What protects is never lost to an option before it."""
    parsed = parse_options((*options, last))
    flag, attribute = mounts._FLAGS[last][0], mounts._ATTRIBUTES[last][0]
    assert parsed.flags & flag
    assert parsed.own.set & attribute
    assert not parse_options((*options, "r" + last)).all.clear & attribute
