"""cp's local side: what a container sends can't leave the directory it was copied to."""

from __future__ import annotations

import io
import os
import tarfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from cove.cli.copy import pack, place_out, split_target
from cove.cli.fail import CliError
from cove.cli.unpack import unpack


def archive(*members: tuple[str, bytes, bytes | str]) -> Iterator[bytes]:
    """A tar stream of (name, type, content or link) in small pieces."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as tar:
        for name, kind, content in members:
            info = tarfile.TarInfo(name)
            info.type = kind
            info.mode = 0o755 if kind == tarfile.DIRTYPE else 0o4644
            if isinstance(content, bytes):
                info.size = len(content)
                tar.addfile(info, io.BytesIO(content))
            else:
                info.linkname = content
                tar.addfile(info)
    data = out.getvalue()
    return iter([data[at : at + 700] for at in range(0, len(data), 700)])


FILE, DIRECTORY, SYMLINK, LINK = tarfile.REGTYPE, tarfile.DIRTYPE, tarfile.SYMTYPE, tarfile.LNKTYPE


def test_a_tree_is_written_under_its_new_name(tmp_path: Path) -> None:
    members = archive(
        ("src", DIRECTORY, b""),
        ("src/a", FILE, b"content" * 1000),
        ("src/sub/b", FILE, b"b"),
        ("src/link", SYMLINK, "/etc/passwd"),
        ("src/hard", LINK, "src/a"),
    )
    unpack(members, str(tmp_path), "new", keep_owner=False)
    assert (tmp_path / "new/a").read_bytes() == b"content" * 1000
    assert (tmp_path / "new/sub/b").read_bytes() == b"b"
    assert os.readlink(tmp_path / "new/link") == "/etc/passwd"
    assert os.path.samefile(tmp_path / "new/hard", tmp_path / "new/a")
    assert (tmp_path / "new/a").stat().st_mode & 0o7777 == 0o644, "setuid is dropped"


def test_content_alone_lands_in_the_directory_itself(tmp_path: Path) -> None:
    unpack(archive(("src", DIRECTORY, b""), ("src/a", FILE, b"1")), str(tmp_path), "", keep_owner=False)
    unpack(archive(("./", DIRECTORY, b""), ("./b", FILE, b"2")), str(tmp_path), "", keep_owner=False)
    assert {path.name for path in tmp_path.iterdir()} == {"a", "b"}


def test_absolute_names_are_taken_as_relative(tmp_path: Path) -> None:
    unpack(archive(("/", DIRECTORY, b""), ("/etc/a", FILE, b"1")), str(tmp_path), "", keep_owner=False)
    assert (tmp_path / "etc" / "a").read_bytes() == b"1"


def test_an_existing_link_is_replaced_not_followed(tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.write_text("untouched")
    target = tmp_path / "target"
    target.mkdir()
    (target / "file").symlink_to(outside)
    unpack(archive(("file", FILE, b"new")), str(target), "file", keep_owner=False)
    assert outside.read_text() == "untouched"
    assert (target / "file").read_bytes() == b"new"


@pytest.mark.parametrize(
    "members",
    [
        [("src/../../evil", FILE, b"x")],
        [("src", SYMLINK, ".."), ("src/evil", FILE, b"x")],
        [("src/d", SYMLINK, "/tmp"), ("src/d/evil", FILE, b"x")],
        [("src/hard", LINK, "../../etc/passwd")],
        [("src/hard", LINK, "/etc/passwd")],
        [("src/d", SYMLINK, "/etc"), ("src/hard", LINK, "src/d/passwd")],
    ],
)
def test_nothing_leaves_the_target(tmp_path: Path, members: list[tuple[str, bytes, bytes | str]]) -> None:
    target = tmp_path / "a" / "target"
    target.mkdir(parents=True)
    with pytest.raises(CliError) as error:
        unpack(archive(*members), str(target), "src", keep_owner=False)
    assert error.value.status == 1
    assert not list(tmp_path.rglob("evil"))
    assert {path.name for path in (tmp_path / "a").iterdir()} == {"target"}


def test_a_broken_archive_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(CliError, match="archive is broken"):
        unpack(iter([b"\x01" * 2048]), str(tmp_path), "x", keep_owner=False)
    whole = b"".join(archive(("f", FILE, b"x" * 5000)))
    with pytest.raises(CliError):
        unpack(iter([whole[:3000]]), str(tmp_path), "x", keep_owner=False)


def test_pack_and_unpack_are_inverse(tmp_path: Path) -> None:
    source = tmp_path / "source"
    (source / "sub").mkdir(parents=True)
    (source / "sub" / "big").write_bytes(os.urandom(600_000))
    (source / "link").symlink_to("sub/big")
    os.link(source / "sub" / "big", source / "hard")
    (source / "exec").write_text("#!/bin/sh\n")
    (source / "exec").chmod(0o755)
    target = tmp_path / "target"
    target.mkdir()
    unpack(pack(str(source), "copy", keep_owner=False), str(target), "copy", keep_owner=False)
    copy = target / "copy"
    assert (copy / "sub" / "big").read_bytes() == (source / "sub" / "big").read_bytes()
    assert os.readlink(copy / "link") == "sub/big"
    assert os.path.samefile(copy / "hard", copy / "sub" / "big")
    assert (copy / "exec").stat().st_mode & 0o777 == 0o755


def test_packed_files_belong_to_root_unless_the_owner_is_kept(tmp_path: Path) -> None:
    (tmp_path / "f").write_text("x")
    stream = io.BytesIO(b"".join(pack(str(tmp_path / "f"), "f", keep_owner=False)))
    with tarfile.open(fileobj=stream) as packed:
        member = packed.getmember("f")
    assert (member.uid, member.gid, member.uname) == (0, 0, "")


def test_targets_are_placed_by_docker_s_rules(tmp_path: Path) -> None:
    (tmp_path / "dir").mkdir()
    (tmp_path / "file").write_text("")
    base = str(tmp_path)
    assert place_out("src", False, False, f"{base}/dir") == (f"{base}/dir", "src")
    assert place_out("src", True, False, f"{base}/dir") == (f"{base}/dir", "src")
    assert place_out("src", True, True, f"{base}/dir") == (f"{base}/dir", "")
    assert place_out("src", False, False, f"{base}/file") == (base, "file")
    assert place_out("src", False, False, f"{base}/new") == (base, "new")
    assert place_out("src", True, False, f"{base}/made") == (f"{base}/made", "")
    for directory, target in ((True, "file"), (False, "none/"), (False, "none/x")):
        with pytest.raises(CliError):
            place_out("src", directory, False, f"{base}/{target}")


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("web:/a", ("web", "/a")),
        ("/a:b", ("", "/a:b")),
        ("./a:b", ("", "./a:b")),
        ("plain", ("", "plain")),
        ("-", ("", "-")),
    ],
)
def test_a_colon_names_a_container_except_in_paths(text: str, parts: tuple[str, str]) -> None:
    assert split_target(text) == parts
