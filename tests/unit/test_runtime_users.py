"""Who a process runs as: Docker's rules over passwd and group, and reading the two files safely."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cove.model.errors import Invalid
from cove.runtime.users import (
    MAX_FILE_BYTES,
    MAX_ID,
    Resolved,
    UserFiles,
    parse_id,
    read_layered_user_files,
    read_user_files,
    resolve,
    resolve_user,
)

FILES = UserFiles(
    passwd=b"""root:x:0:0:root:/root:/bin/sh
# comment:x:1:1::/:
daemon:x:1:1:daemon:/usr/sbin:/usr/sbin/nologin

web:x:33:44:web:/var/www:/bin/false
web:x:99:99:second:/no:/no
1234:x:7:7:a numeric name:/seven:/bin/sh
broken:x:abc:0::/:
huge:x:4294967296:0::/:
hex:x:0x10:0::/:
nohome:x:50:50
""",
    group=b"root:x:0:\nadm:x:4:root,web\naudio:x:29:web,daemon\nwww:x:44:\nbad:x:-1:web\nempty\n",
)


@pytest.mark.parametrize(
    ("user", "uid", "gid", "groups", "home"),
    [
        ("", 0, 0, (0, 4), "/root"),
        ("root", 0, 0, (0, 4), "/root"),
        ("0", 0, 0, (0, 4), "/root"),
        ("web", 33, 44, (44, 4, 29), "/var/www"),
        ("33", 33, 44, (44, 4, 29), "/var/www"),
        ("web:audio", 33, 29, (29,), "/var/www"),
        ("web:1000", 33, 1000, (1000,), "/var/www"),
        (":audio", 0, 29, (29,), "/root"),
        ("5000", 5000, 0, (0,), "/"),
        ("5000:6000", 5000, 6000, (6000,), "/"),
        ("1234", 1234, 0, (0,), "/"),  # a number is an id, even where it is also a name
        ("7", 7, 7, (7,), "/seven"),
        ("nohome", 50, 50, (50,), "/"),
        (str(MAX_ID), MAX_ID, 0, (0,), "/"),
    ],
)
def test_user_is_found_as_docker_finds_it(
    user: str, uid: int, gid: int, groups: tuple[int, ...], home: str
) -> None:
    assert resolve(FILES, user) == Resolved(uid=uid, gid=gid, groups=groups, home=home)


@pytest.mark.parametrize(
    ("user", "words"),
    [
        ("nobody", "unable to find user nobody: no matching entries in passwd file"),
        ("web:nogroup", "unable to find group nogroup: no matching entries in group file"),
        ("broken", "unable to find user broken"),
        ("huge", "unable to find user huge"),
        ("hex", "unable to find user hex"),
        ("-1", "uids and gids must be in range 0-2147483647"),
        ("2147483648", "uids and gids must be in range 0-2147483647"),
        ("99999999999999999999999", "uids and gids must be in range"),
        ("0:4294967295", "uids and gids must be in range"),
        ("web:bad", "unable to find group bad"),
        ("0x0", "unable to find user 0x0"),
        ("+0", "unable to find user +0"),
        (" 0", "unable to find user  0"),
        ("\u0660", "unable to find user"),  # a digit to str.isdigit(), none to us
    ],
)
def test_unknown_or_impossible_user_is_refused(user: str, words: str) -> None:
    with pytest.raises(Invalid) as caught:
        resolve(FILES, user)
    assert words in str(caught.value)


def test_group_add_takes_names_and_numbers_once_each() -> None:
    found = resolve(FILES, "web", ("audio", "777", "www", "777"))
    assert found.groups == (44, 4, 29, 777)
    with pytest.raises(Invalid, match="unable to find group nogroup"):
        resolve(FILES, "web", ("nogroup",))


def test_home_is_added_only_where_it_is_missing() -> None:
    found = resolve(FILES, "web")
    assert found.environment(("A=b",)) == ("HOME=/var/www",)
    assert found.environment(("HOME=",)) == ("HOME=/var/www",)
    assert found.environment(("HOME=/x",)) == ()


@given(st.binary(max_size=200), st.binary(max_size=200), st.text(max_size=12))
def test_no_content_of_the_files_breaks_the_lookup(passwd: bytes, group: bytes, user: str) -> None:
    try:
        found = resolve(UserFiles(passwd, group), user, (user,))
    except Invalid:
        return
    assert 0 <= found.uid <= MAX_ID
    assert 0 <= found.gid <= MAX_ID
    assert found.groups[0] == found.gid


@given(st.integers(min_value=-(2**40), max_value=2**40))
def test_ids_are_read_within_their_range(number: int) -> None:
    if 0 <= number <= MAX_ID:
        assert parse_id(str(number)) == number
    else:
        with pytest.raises(Invalid):
            parse_id(str(number))


# --- reading ------------------------------------------------------------------------------------------


@pytest.fixture
def root(tmp_path: Path) -> Path:
    (tmp_path / "root/etc").mkdir(parents=True)
    return tmp_path / "root"


def look_up(root: Path, user: str) -> Resolved:
    fd = os.open(root, os.O_PATH | os.O_DIRECTORY)
    try:
        return resolve_user(fd, user)
    finally:
        os.close(fd)


def test_files_are_read_from_the_root(root: Path) -> None:
    (root / "etc/passwd").write_bytes(FILES.passwd)
    (root / "etc/group").write_bytes(FILES.group)
    assert look_up(root, "web") == resolve(FILES, "web")


def test_missing_files_leave_root_and_numbers(root: Path) -> None:
    assert look_up(root, "") == Resolved(uid=0, gid=0, groups=(0,), home="/")
    with pytest.raises(Invalid, match="unable to find user web"):
        look_up(root, "web")


def test_symlinks_stay_inside_the_root(root: Path, tmp_path: Path) -> None:
    (tmp_path / "passwd").write_text("evil:x:0:0::/:\n")
    (root / "etc/passwd").symlink_to("../../passwd")
    with pytest.raises(Invalid, match="unable to find user evil"):
        look_up(root, "evil")
    (root / "passwd").write_text("inner:x:5:5::/:\n")
    assert look_up(root, "inner").uid == 5


def test_a_fifo_in_place_of_passwd_does_not_block(root: Path) -> None:
    os.mkfifo(root / "etc/passwd")
    (root / "etc/group").symlink_to("/dev/zero")
    assert look_up(root, "0").uid == 0


def test_an_endless_file_is_refused(root: Path) -> None:
    with open(root / "etc/passwd", "wb") as file:
        file.truncate(MAX_FILE_BYTES + 1)
    with pytest.raises(Invalid, match="larger than"):
        look_up(root, "0")


def test_layers_show_the_highest_file(tmp_path: Path) -> None:
    for name, passwd in (("low", b"low"), ("high", b"high")):
        (tmp_path / name / "etc").mkdir(parents=True)
        (tmp_path / name / "etc/passwd").write_bytes(passwd)
    (tmp_path / "low/etc/group").write_bytes(b"group")
    (tmp_path / "empty").mkdir()
    layers = [str(tmp_path / name) for name in ("empty", "high", "low")]
    assert read_layered_user_files(layers) == UserFiles(b"high", b"group")
    assert read_layered_user_files([str(tmp_path / "empty")]) == UserFiles()


def test_layers_with_links_are_left_to_the_mounted_root(tmp_path: Path) -> None:
    (tmp_path / "a/etc").mkdir(parents=True)
    (tmp_path / "a/etc/passwd").symlink_to("/usr/lib/passwd")
    assert read_layered_user_files([str(tmp_path / "a")]) is None
    (tmp_path / "b").mkdir()
    (tmp_path / "b/etc").symlink_to("usr/etc")
    assert read_layered_user_files([str(tmp_path / "b")]) is None


def test_reading_leaves_the_descriptor_to_its_owner(root: Path) -> None:
    fd = os.open(root, os.O_PATH | os.O_DIRECTORY)
    before = len(os.listdir("/proc/self/fd"))
    read_user_files(fd)
    assert len(os.listdir("/proc/self/fd")) == before
    os.close(fd)
