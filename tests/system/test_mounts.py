"""Every mount option of the specification, seen from inside; copies, owners, and the calls of older kernels."""

from __future__ import annotations

import ctypes
import errno
import os
import subprocess
import threading
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec.structs
import pytest

from cove.model.errors import Unavailable
from cove.runtime import oci, steps
from cove.runtime.cgroups_detect import detect_cgroups
from cove.runtime.facts import Host
from cove.runtime.launch import Launcher, StepFailed
from tests.leaks import unique_name
from tests.system.bundles import DEV, PROC, PTS, SPACES, SYS, config_of, find, mounted, owned, printed, start
from tests.system.native_support import Box, launcher, make_launcher, needs_root, run

pytestmark = needs_root
__all__ = ["launcher"]
SHOW = "cat /proc/self/mountinfo"
MAPPING = (oci.IdMapping(container_id=0, host_id=100000, size=65536),)


@pytest.fixture(scope="module")
def host() -> Host:
    return find()


@pytest.fixture
def box(tmp_path: Path) -> Iterator[Box]:
    made = make_launcher("native", tmp_path / "report")
    yield Box(tmp_path / "box", made)
    made.close()
    assert str(tmp_path) not in Path("/proc/self/mountinfo").read_text()


@pytest.fixture
def checked(launcher: Launcher, tmp_path: Path) -> Box:
    """A box for each build, the one with sanitizers too."""
    return Box(tmp_path / "checked", launcher)


@contextmanager
def tmpfs_at(*places: Path, options: str = "mode=755") -> Iterator[None]:
    """Mounts on the host, for sources; each is private."""
    with ExitStack() as undo:
        for place in places:
            place.mkdir(parents=True, exist_ok=True)
            subprocess.run(["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(place)], check=True)
            undo.callback(subprocess.run, ["umount", "-R", str(place)], check=True)
        yield


def tmpfs(destination: str, *options: str) -> oci.Mount:
    return oci.Mount(destination=destination, type="tmpfs", source="tmpfs", options=options)


def bind(source: Path, destination: str, *options: str, **more: Any) -> oci.Mount:
    flags = options if {"bind", "rbind"} & {*options} else ("rbind", *options)
    return oci.Mount(destination=destination, type="none", source=str(source), options=flags, **more)


async def text_of(box: Box, config: oci.Config, host: Host, more: Sequence[steps.Step] = ()) -> str:
    """What one of several runs in a box has said; `more` steps come before the pivot."""
    before = len(box.output())
    await (await start(box, config, host, more)).wait()
    return box.output()[before:]


# option -> what its mount shows, and doesn't
OF_A_FILESYSTEM = {
    "ro": "ro", "rw": "rw", "rro": "ro", "nosuid": "nosuid", "suid": "!nosuid", "nodev": "nodev", "dev": "!nodev",
    "noexec": "noexec", "exec": "!noexec", "nosymfollow": "nosymfollow", "symfollow": "!nosymfollow",
    "noatime": "noatime", "atime": "relatime", "relatime": "relatime", "norelatime": "relatime",
    "strictatime": "!relatime", "nostrictatime": "relatime", "nodiratime": "nodiratime", "diratime": "!nodiratime",
    "sync": "+sync", "async": "!sync", "dirsync": "+dirsync", "lazytime": "+lazytime", "nolazytime": "!lazytime",
    "silent": "rw", "loud": "rw", "iversion": "rw", "noiversion": "rw", "mand": "rw", "nomand": "rw", "defaults": "rw",
    "rnosuid": "nosuid", "rnodev": "nodev", "rnoexec": "noexec", "rnosymfollow": "nosymfollow",
    "rnoatime": "noatime", "rnodiratime": "nodiratime", "rstrictatime": "!relatime", "rrelatime": "relatime",
    "shared": "shared", "rshared": "shared", "slave": "!shared", "rslave": "!master", "private": "!shared",
    "rprivate": "!shared", "unbindable": "unbindable", "runbindable": "unbindable", "size=64k": "+size=64k",
}  # fmt: skip
OF_A_BIND = {
    name: shown for name, shown in OF_A_FILESYSTEM.items()
    if not shown.startswith("+") and name not in ("slave", "rslave", "shared", "rshared")
}  # fmt: skip


def matches(shown: str, options: set[str], own: set[str]) -> bool:
    if shown.startswith("+"):
        return shown[1:] in own
    return shown[1:] not in options if shown.startswith("!") else shown in options


def test_each_option_of_a_new_filesystem_is_there(box: Box, host: Host) -> None:
    given = [tmpfs(f"/mnt/{index}", option) for index, option in enumerate(OF_A_FILESYSTEM)]
    found = mounted(printed(box, config_of(box.lower, SHOW, given), host))
    for index, (option, shown) in enumerate(OF_A_FILESYSTEM.items()):
        options, own, kind = found[f"/mnt/{index}"]
        assert kind == "tmpfs" and matches(shown, options, own), (option, options, own)


def test_each_option_is_there_when_the_filesystem_is_made_aside(box: Box, host: Host) -> None:
    """As those are that somebody shares: fsconfig(2) takes one option after the other, not mount(2)'s flags."""
    rest = {option: shown for option, shown in OF_A_FILESYSTEM.items() if "shared" not in shown}
    given = [tmpfs(f"/mnt/{index}", option, "shared", "mode=0710") for index, option in enumerate(rest)]
    found = mounted(printed(box, config_of(box.lower, SHOW, given), host))
    for index, (option, shown) in enumerate(rest.items()):
        options, own, _ = found[f"/mnt/{index}"]
        assert "mode=710" in own and "shared" in options
        assert shown == "unbindable" or matches(shown, options, own), (option, options, own)
    with pytest.raises(StepFailed) as caught:
        run(start(box, config_of(box.lower, "true", [tmpfs("/x", "shared", "nosuch=1")]), host))
    assert caught.value.errno == errno.EINVAL


def test_each_option_of_a_bind_is_there_and_the_recursive_ones_below_too(
    box: Box, host: Host, tmp_path: Path
) -> None:
    source = tmp_path / "source"
    with tmpfs_at(source, source / "sub"):
        given = [bind(source, f"/mnt/{index}", option) for index, option in enumerate(OF_A_BIND)]
        found = mounted(printed(box, config_of(box.lower, SHOW, given), host))
        for index, (option, shown) in enumerate(OF_A_BIND.items()):
            options, own, _ = found[f"/mnt/{index}"]
            assert matches(shown, options, own), (option, options)
            below, _, _ = found[f"/mnt/{index}/sub"]
            recursive = option in ("rro", "runbindable") or option.startswith(("rno", "rstrict"))
            if not matches(shown, {"rw", "relatime"}, set()):  # it isn't so by itself
                assert matches(shown, below, own) == recursive, (option, below)


def test_what_a_bind_takes_back_is_taken_back(box: Box, host: Host, tmp_path: Path) -> None:
    with tmpfs_at(tmp_path / "s", options="ro,nosuid,nodev,noexec,noatime"):
        config = config_of(
            box.lower, SHOW,
            [bind(tmp_path / "s", "/as"), bind(tmp_path / "s", "/back", "suid", "dev", "exec", "relatime")],
        )  # fmt: skip
        found = mounted(printed(box, config, host))
    assert {"nosuid", "nodev", "noexec", "noatime"} <= found["/as"][0]
    assert not {"nosuid", "nodev", "noexec", "noatime"} & found["/back"][0]


def test_the_whole_wins_over_the_mount_itself(box: Box, host: Host, tmp_path: Path) -> None:
    source = tmp_path / "source"
    with tmpfs_at(source, source / "sub"):
        given = [bind(source, "/a", "rro", "rw"), bind(source, "/b", "ro", "rrw"), bind(source, "/c", "ro")]
        found = mounted(printed(box, config_of(box.lower, SHOW, given), host))
    shown = {place: options & {"ro", "rw"} for place, (options, _, _) in found.items()}
    assert [shown[place] for place in ("/a", "/a/sub", "/b", "/b/sub", "/c", "/c/sub")] == [
        {"ro"}, {"ro"}, {"rw"}, {"rw"}, {"ro"}, {"rw"},
    ]  # fmt: skip


def test_a_shared_bind_is_a_peer_and_a_slave_follows(box: Box, host: Host, tmp_path: Path) -> None:
    source = tmp_path / "source"
    with tmpfs_at(source):
        subprocess.run(["mount", "--make-shared", str(source)], check=True)
        given = [
            bind(source, "/shared", "rshared"), bind(source, "/slave", "rslave"), bind(source, "/own", "rprivate"),
            bind(source, "/plain"),
        ]  # fmt: skip
        found = mounted(printed(box, config_of(box.lower, SHOW, given), host))
    assert [found[place][0] & {"shared", "master"} for place in ("/shared", "/slave", "/own", "/plain")] == [
        {"shared"}, {"master"}, set(), set(),
    ]  # fmt: skip


def test_a_remount_changes_what_is_there(box: Box, host: Host, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    given = [
        tmpfs("/t", "size=64k"), tmpfs("/t", "remount", "size=128k", "noexec"),
        bind(tmp_path, "/b"), bind(tmp_path, "/b", "remount", "ro", "nosuid"),
        bind(tmp_path / "file", "/f"), bind(tmp_path / "file", "/f", "remount", "ro"),
    ]  # fmt: skip
    found = mounted(printed(box, config_of(box.lower, SHOW, given), host))
    assert "noexec" in found["/t"][0] and "size=128k" in found["/t"][1]
    assert {"ro", "nosuid"} <= found["/b"][0] and "ro" in found["/f"][0]
    with pytest.raises(StepFailed, match="remount /nowhere"):
        run(start(box, config_of(box.lower, SHOW, [tmpfs("/nowhere", "remount", "ro")]), host))


def test_a_readonly_filesystem_has_the_mounts_and_devices_that_lie_in_it(box: Box, host: Host) -> None:
    dev = msgspec.structs.replace(DEV, options=(*DEV.options, "ro"))
    script = f"{SHOW}; touch /dev/x || touch /t/x || echo x > /dev/null && touch /t/sub/x && echo made"
    config = config_of(box.lower, script, [tmpfs("/t", "ro"), tmpfs("/t/sub")], own=(PROC, dev, PTS))
    text = printed(box, config, host)
    found = mounted(text)
    assert "ro" in found["/dev"][0] and "ro" in found["/t"][0] and "rw" in found["/t/sub"][0]
    assert text.endswith("made\n")


def test_a_tmpfs_has_the_mode_of_the_directory_that_it_covers(box: Box, host: Host) -> None:
    (box.lower / "mode").mkdir(mode=0o750)
    (box.lower / "sticky").mkdir()
    (box.lower / "sticky").chmod(0o1770)
    given = [tmpfs("/mode"), tmpfs("/sticky"), tmpfs("/told/new"), tmpfs("/tmp", "mode=0700")]
    text = printed(box, config_of(box.lower, "stat -c %a /mode /sticky /told/new /tmp", given), host)
    assert text.split() == ["750", "1770", "1777", "700"]


# --- copies -------------------------------------------------------------------------------------------


def test_a_copy_starts_with_what_was_there(checked: Box, host: Host, tmp_path: Path) -> None:
    box, data = checked, checked.lower / "data"
    (data / "deep/er").mkdir(parents=True)
    (data / "file").write_bytes(b"x" * 300_000)
    (data / "deep/er/secret").write_text("secret")
    os.chown(data / "deep/er/secret", 1000, 1001)
    (data / "deep/er/secret").chmod(0o4640)
    (data / "link").symlink_to("/etc/passwd")
    (data / "up").symlink_to("../../../../etc")
    os.mkfifo(data / "fifo", 0o600)
    os.mknod(data / "null", 0o020600, os.makedev(1, 3))
    for index in range(200):
        (data / f"many-{index}-{'n' * 60}").write_text("")
    os.chown(data, 7, 8)
    data.chmod(0o2775)
    os.utime(data / "file", (1, 1_000_000_000))
    os.utime(data / "deep", (1, 1_100_000_000))
    script = """
    stat -c '%n %F %a %u:%g %s' /data /data/file /data/deep/er/secret /data/link /data/fifo /data/null | sort
    stat -c '%n %Y' /data/file /data/deep; readlink /data/link; readlink /data/up; ls /data | grep -c many
    cat /data/deep/er/secret; rm /data/file; touch /data/new; mount | grep -c 'on /data type tmpfs'
    """
    text = printed(box, config_of(box.lower, script, [tmpfs("/data", "tmpcopyup", "size=4m")]), host)
    lines = [line.replace("regular empty file", "regular file") for line in text.splitlines()]
    assert lines[0].rsplit(" ", 1)[0] == "/data directory 2775 7:8"
    assert lines[1:6] == [
        "/data/deep/er/secret regular file 4640 1000:1001 6", "/data/fifo fifo 600 0:0 0",
        "/data/file regular file 644 0:0 300000", "/data/link symbolic link 777 0:0 11",
        "/data/null character special file 600 0:0 0",
    ]  # fmt: skip
    assert lines[6:] == [
        "/data/file 1000000000", "/data/deep 1100000000", "/etc/passwd", "../../../../etc", "200", "secret1",
    ]  # fmt: skip
    assert (data / "file").exists() and not (data / "new").exists()


def test_a_copy_may_be_readonly_and_its_options_win(box: Box, host: Host) -> None:
    (box.lower / "data").mkdir()
    (box.lower / "data/file").write_text("kept\n")
    os.chown(box.lower / "data", 5, 6)
    options = ("tmpcopyup", "ro", "nosuid", "mode=711", "uid=9")
    text = printed(
        box,
        config_of(box.lower, f"cat /data/file; stat -c '%a %u:%g' /data; touch /data/x || {SHOW}",
                  [tmpfs("/data", *options), tmpfs("/new", "tmpcopyup", "shared")]), host,
    )  # fmt: skip
    assert text.splitlines()[:2] == ["kept", "711 9:6"]
    found = mounted(text)
    assert {"ro", "nosuid"} <= found["/data"][0] and "shared" in found["/new"][0]


def test_a_copy_has_bounds(box: Box, host: Host) -> None:
    deep = box.lower / "deep" / Path(*["d"] * 140)
    deep.mkdir(parents=True)
    with pytest.raises(StepFailed) as caught:
        run(start(box, config_of(box.lower, "true", [tmpfs("/deep", "tmpcopyup")]), host))
    assert caught.value.errno == errno.ELOOP
    (box.lower / "big").mkdir()
    (box.lower / "big/file").write_bytes(bytes(1 << 20))
    with pytest.raises(StepFailed) as caught:
        run(start(box, config_of(box.lower, "true", [tmpfs("/big", "tmpcopyup", "size=64k")]), host))
    assert caught.value.errno == errno.ENOSPC


# --- idmapped mounts ----------------------------------------------------------------------------------


def needs_idmapped_tmpfs(host: Host) -> None:
    if host.kernel < (6, 3):
        pytest.skip(f"idmapped tmpfs needs Linux 6.3, this is {host.kernel[0]}.{host.kernel[1]}")


def test_an_idmapped_bind_shows_other_owners_and_writes_back(box: Box, host: Host, tmp_path: Path) -> None:
    needs_idmapped_tmpfs(host)
    source = tmp_path / "source"
    with tmpfs_at(source, source / "sub"):
        for place in (source, source / "sub"):
            (place / "root").write_text("")
            (place / "user").write_text("")
            os.chown(place / "user", 1000, 1000)
        maps: dict[str, Any] = {"uid_mappings": MAPPING, "gid_mappings": MAPPING}
        given = [
            bind(source, "/top", "idmap", **maps), bind(source, "/all", "ridmap", **maps),
            bind(source, "/plain"), bind(source, "/silent", "rro", **maps),
        ]  # fmt: skip
        script = (
            "for p in /top /top/sub /all /all/sub /plain /silent; do stat -c '%n %u:%g' $p/root $p/user; done;"
            "touch /plain/made; touch /all/other 2>/dev/null || echo unmapped"
        )
        text = printed(box, config_of(box.lower, script, given), host)
    owners = dict(line.split() for line in text.splitlines()[:-1])
    shifted, plain = ("100000:100000", "101000:101000"), ("0:0", "1000:1000")
    for shown, (root, user) in {
        "/top": shifted, "/top/sub": plain, "/all": shifted, "/all/sub": shifted, "/plain": plain, "/silent": shifted,
    }.items():  # fmt: skip
        assert (owners[f"{shown}/root"], owners[f"{shown}/user"]) == (root, user), shown
    assert text.endswith("unmapped\n")  # user 0 of here isn't in the map: EOVERFLOW


def test_a_file_system_that_can_not_be_idmapped_is_named(box: Box, host: Host) -> None:
    given = [bind(Path("/proc/sys"), "/x", "idmap", uid_mappings=MAPPING, gid_mappings=MAPPING)]
    message = r"/proc/sys can't be an idmapped mount: its file system \(proc at /proc\) can't be idmapped"
    with pytest.raises(Unavailable, match=message):
        run(start(box, config_of(box.lower, "true", given), host))
    assert not list(box.path.glob("state-*"))


def test_a_container_in_a_user_namespace_sees_its_own_owners(box: Box, host: Host, tmp_path: Path) -> None:
    """An idmapped bind there has the container's own map: on disk 0 is root, whoever that is outside."""
    source = tmp_path / "source"
    source.mkdir()
    (source / "root").write_text("")
    owned(box, MAPPING[0], "d", "plain")
    config = config_of(
        box.lower, "stat -c '%u:%g' /d/root /plain/root; touch /d/new; cat /proc/self/uid_map",
        [bind(source, "/d", "idmap"), bind(source, "/plain")],
        namespaces=(*SPACES, oci.Namespace(type="user")), uid_mappings=MAPPING, gid_mappings=MAPPING,
    )  # fmt: skip
    with open_path(tmp_path):
        text = printed(box, config, host)
    assert text.splitlines()[:2] == ["0:0", "65534:65534"]
    assert text.split()[-3:] == ["0", "100000", "65536"]
    assert (source / "new").stat().st_uid == 0


@contextmanager
def open_path(path: Path) -> Iterator[None]:
    """Let others than root through to `path`, for the time of a test."""
    closed = [
        (parent, parent.stat().st_mode) for parent in (path, *path.parents) if not parent.stat().st_mode & 1
    ]
    for parent, mode in closed:
        parent.chmod(mode & 0o7777 | 0o011)
    try:
        yield
    finally:
        for parent, mode in closed:
            parent.chmod(mode & 0o7777)


def test_locked_attributes_stay_in_a_user_namespace(box: Box, host: Host, tmp_path: Path) -> None:
    """What was set outside can't be taken back there (mount_namespaces(7)); more can be set. A caller that lives in
    a user namespace itself meets them."""
    spaces: dict[str, Any] = {
        "namespaces": (*SPACES, oci.Namespace(type="user")), "uid_mappings": MAPPING, "gid_mappings": MAPPING,
    }  # fmt: skip
    owned(box, MAPPING[0], "a", "b", "c")
    source = tmp_path / "s"
    with tmpfs_at(source, options="nosuid,nodev,noexec,noatime,mode=755"), open_path(tmp_path):
        more = [
            steps.Bind(source=str(source), target="/a", attr_set=1),
            steps.Bind(source=str(source), target="/b", recursive_set=1),
            steps.Bind(source=str(source), target="/c"),
        ]
        text = run(text_of(box, config_of(box.lower, SHOW, **spaces), host, more))
        for taken in (2, 4, 8, 0x70):
            with pytest.raises(StepFailed) as caught:
                step = steps.Bind(source=str(source), target="/a", attr_clear=taken)
                run(text_of(box, config_of(box.lower, SHOW, **spaces), host, [step]))
            assert caught.value.errno == errno.EPERM
    found = mounted(text)
    for place, more_set in (("/a", {"ro"}), ("/b", {"ro"}), ("/c", {"rw"})):
        assert {"nosuid", "nodev", "noexec", "noatime"} | more_set <= found[place][0]


# --- cgroups ------------------------------------------------------------------------------------------

CGROUP = oci.Mount(
    destination="/sys/fs/cgroup", type="cgroup", source="cgroup", options=("ro", "nosuid", "noexec")
)


@pytest.mark.parametrize("user", [False, True], ids=["host", "user"])
def test_cgroups_of_its_own_are_shown_read_only(box: Box, host: Host, tmp_path: Path, user: bool) -> None:
    cgroups = detect_cgroups(parent=unique_name())
    cgroups.setup()
    spaces: dict[str, Any] = {}
    if user:
        spaces = {
            "namespaces": (*SPACES, oci.Namespace(type="user")),
            "uid_mappings": MAPPING,
            "gid_mappings": MAPPING,
        }
        owned(box, MAPPING[0])
    script = (
        f"{SHOW}; cd /sys/fs/cgroup/memory 2>/dev/null || cd /sys/fs/cgroup; mkdir x 2>&1; touch /sys/fs/cgroup/x 2>&1;"
        "grep -c . cgroup.procs; ls -d /sys/fs/cgroup/cpu*"
    )
    config = config_of(
        box.lower,
        script,
        own=(PROC, DEV, PTS, SYS, CGROUP),
        cgroups_path=f"{cgroups.layout.parent}/x",
        **spaces,
    )
    try:
        with open_path(tmp_path):
            text = printed(box, config, replace(host, cgroups=cgroups.layout))
    finally:
        cgroups.teardown()
    shown = {
        place: options for place, (options, _, kind) in mounted(text).items() if kind.startswith("cgroup")
    }
    assert shown and all("ro" in options for options in shown.values())
    assert text.count("Read-only file system") == 2
    assert "\n2\n" in text or "\n3\n" in text, text  # the shell and its children: its own cgroup


# --- kernels without the newer calls ------------------------------------------------------------------

NEWER = {
    "open_tree": 428,
    "move_mount": 429,
    "fsopen": 430,
    "fsconfig": 431,
    "fsmount": 432,
    "mount_setattr": 442,
}


class _Instruction(ctypes.Structure):
    _fields_ = [
        ("code", ctypes.c_ushort),
        ("jt", ctypes.c_ubyte),
        ("jf", ctypes.c_ubyte),
        ("k", ctypes.c_uint),
    ]


class _Program(ctypes.Structure):
    _fields_ = [("length", ctypes.c_ushort), ("filter", ctypes.POINTER(_Instruction))]


def forget_calls(numbers: list[int]) -> None:
    """Let this thread, and what it starts, find that the kernel lacks these calls."""
    load, equal, ret = 0x20, 0x15, 0x06
    code = [_Instruction(load, 0, 0, 0)]
    for number in numbers:
        code += [_Instruction(equal, 0, 1, number), _Instruction(ret, 0, 0, 0x00050000 | errno.ENOSYS)]
    code.append(_Instruction(ret, 0, 0, 0x7FFF0000))
    program = _Program(len(code), (_Instruction * len(code))(*code))
    libc = ctypes.CDLL(None, use_errno=True)
    prctl_set_seccomp, mode_filter = 22, 2
    assert libc.prctl(prctl_set_seccomp, mode_filter, ctypes.byref(program), 0, 0) == 0


def on_an_old_kernel(numbers: list[int], work: Any) -> Any:
    """The result of `work`, or what it raised, from a thread whose kernel lacks these calls."""
    answer: list[Any] = []

    def body() -> None:
        forget_calls(numbers)
        try:
            answer.append(work())
        except Exception as error:  # handed on
            answer.append(error)

    thread = threading.Thread(target=body)
    thread.start()
    thread.join()
    return answer[0]


@pytest.mark.parametrize("missing", [[442], list(NEWER.values())], ids=["5.10", "5.1"])
def test_mount_does_what_newer_calls_do(checked: Box, host: Host, tmp_path: Path, missing: list[int]) -> None:
    box = checked
    source, file = tmp_path / "source", tmp_path / "file"
    file.write_text("content\n")
    (box.lower / "data").mkdir()
    (box.lower / "data/kept").write_text("kept\n")
    for name in ("t", "shared"):
        (box.lower / name).mkdir()
    with tmpfs_at(source, source / "sub", options="mode=755,nodev,noatime"):
        given = [
            bind(source, "/ro", "ro"), bind(source, "/flat", "bind", "nosuid", "relatime"),
            bind(source, "/back", "dev", "strictatime"), bind(file, "/file", "ro", "noexec"),
            bind(source, "/stuck", "runbindable"), tmpfs("/shared", "shared", "noexec"),
            tmpfs("/data", "tmpcopyup", "ro"), tmpfs("/t", "ro"), tmpfs("/t/sub"),
        ]  # fmt: skip
        script = f"{SHOW}; cat /file /data/kept; stat -c '%n %t:%T' /proc/interrupts; touch /new 2>&1"
        config = config_of(box.lower, script, given)
        config = msgspec.structs.replace(config, root=oci.Root(path=str(box.lower), readonly=True))
        old = replace(host, kernel=(5, 1))

        def work() -> str:
            return run(text_of(box, config, old))

        expected, text = run(text_of(box, config, host)), on_an_old_kernel(missing, work)
    assert isinstance(text, str), text
    assert mounted(text) == mounted(expected)
    found = mounted(text)
    assert {"ro", "nodev", "noatime"} <= found["/ro"][0] and "rw" in found["/ro/sub"][0]
    assert {"nosuid", "nodev", "relatime"} <= found["/flat"][0] and "/flat/sub" not in found
    assert not {"nodev", "noatime", "relatime"} & found["/back"][0]
    assert {"ro", "noexec"} <= found["/file"][0] and "ro" in found["/proc/sys"][0] and "ro" in found["/"][0]
    assert "unbindable" in found["/stuck/sub"][0] and "shared" in found["/shared"][0]
    assert "content\nkept\n" in text and "Read-only file system" in text
    assert "/proc/interrupts 1:3" in text


def test_a_tree_that_is_handed_over_is_changed_by_mount_too(checked: Box, host: Host, tmp_path: Path) -> None:
    source = tmp_path / "source"
    with tmpfs_at(source, source / "sub"):
        subprocess.run(["mount", "--make-rshared", str(source)], check=True)
        given = [bind(source, "/follow", "rslave", "ro"), bind(source, "/peer", "rshared", "nosuid")]
        config = config_of(checked.lower, SHOW, given)
        text = on_an_old_kernel([442], lambda: run(text_of(checked, config, replace(host, kernel=(5, 10)))))
    assert isinstance(text, str), text
    found = mounted(text)
    assert {"master", "ro"} <= found["/follow"][0] and "master" in found["/follow/sub"][0]
    assert {"shared", "nosuid"} <= found["/peer"][0] and "shared" in found["/peer/sub"][0]


def test_without_the_calls_the_whole_tree_can_not_be_changed(box: Box, host: Host, tmp_path: Path) -> None:
    """The planner refuses by the kernel's version; a filter around the engine it can't know of."""
    config = config_of(box.lower, "true", [bind(tmp_path, "/d", "rro")])
    with pytest.raises(Unavailable, match=r"rro needs Linux 5\.12"):
        run(start(box, config, replace(host, kernel=(5, 11))))
    error = on_an_old_kernel(list(NEWER.values()), lambda: run(start(box, config, host)))
    assert isinstance(error, StepFailed) and error.errno == errno.EOPNOTSUPP
