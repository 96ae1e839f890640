"""What a writable layer says was changed; whiteouts, which only root can make, are tested through `docker diff`."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from cove.engine import changes
from cove.engine.changes import ADDED, MODIFIED, Change, list_changes
from cove.model.errors import HostError


def tree(root: Path, **files: str) -> Path:
    """Files by path, "__" for a slash, all of one time."""
    root.mkdir(exist_ok=True)
    for name, content in files.items():
        path = root / name.replace("__", "/")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content)
        os.utime(path, ns=(5, 5))
    return root


def test_added_files_and_changed_ones_are_told_with_the_directories_above(tmp_path: Path) -> None:
    lower = tree(tmp_path / "lower", a__b__old="1", a__same="x", top="t")
    upper = tree(tmp_path / "upper", a__b__new="2", a__b__old="12", a__same="x", n__m="3", top="t")
    assert list_changes(upper, [lower]) == [
        Change("/a", MODIFIED),
        Change("/a/b", MODIFIED),
        Change("/a/b/new", ADDED),
        Change("/a/b/old", MODIFIED),
        Change("/n", ADDED),
        Change("/n/m", ADDED),
    ]


def test_a_file_copied_up_and_left_as_it_was_is_no_change(tmp_path: Path) -> None:
    lower = tree(tmp_path / "lower", etc__conf="x")
    upper = tree(tmp_path / "upper", etc__conf="x")
    assert list_changes(upper, [lower]) == []
    os.utime(upper / "etc/conf", ns=(10**9 + 5, 10**9 + 5))
    assert list_changes(upper, [lower]) == [Change("/etc", MODIFIED), Change("/etc/conf", MODIFIED)]


def test_a_mode_is_a_change_of_a_directory_and_a_time_is_none(tmp_path: Path) -> None:
    lower = tree(tmp_path / "lower", d__f="x", e__f="x")
    upper = tmp_path / "upper"
    (upper / "d").mkdir(parents=True)
    (upper / "e").mkdir(mode=0o700)
    os.chmod(upper / "e", 0o700)
    assert list_changes(upper, [lower]) == [Change("/e", MODIFIED)]


def test_the_highest_layer_that_has_a_name_counts(tmp_path: Path) -> None:
    low = tree(tmp_path / "low", f="old!", only__low="x")
    high = tree(tmp_path / "high", f="new")
    upper = tree(tmp_path / "upper", f="new", only__low="xy")
    assert list_changes(upper, [high, low]) == [Change("/only", MODIFIED), Change("/only/low", MODIFIED)]


def test_a_file_of_a_layer_hides_the_directory_of_those_below(tmp_path: Path) -> None:
    low = tree(tmp_path / "low", x__f="1")
    high = tree(tmp_path / "high", x="a file")
    upper = tree(tmp_path / "upper", x__f="1")
    assert list_changes(upper, [high, low]) == [Change("/x", MODIFIED), Change("/x/f", ADDED)]


def test_what_mounts_are_put_on_is_not_the_container_s_doing(tmp_path: Path) -> None:
    lower = tree(tmp_path / "lower", bin__sh="x")
    upper = tree(tmp_path / "upper", etc__hosts="", etc__resolv__conf="")
    os.rename(upper / "etc/resolv/conf", upper / "etc/resolv.conf")
    (upper / "etc/resolv").rmdir()
    for name in ("dev/shm", "proc", "sys"):
        (upper / name).mkdir(parents=True)
    assert list_changes(upper, [lower]) == []
    (upper / "etc/own").write_text("")
    assert list_changes(upper, [lower]) == [Change("/etc", ADDED), Change("/etc/own", ADDED)]


def test_links_are_not_followed_out_of_a_layer(tmp_path: Path) -> None:
    outside = tree(tmp_path / "outside", secret="x")
    lower, upper = tmp_path / "lower", tmp_path / "upper"
    for root in (lower, upper):
        root.mkdir()
    (lower / "d").symlink_to(outside)
    tree(upper, d__secret="x")
    (upper / "link").symlink_to(outside)
    assert list_changes(upper, [lower]) == [
        Change("/d", MODIFIED),
        Change("/d/secret", ADDED),
        Change("/link", ADDED),
    ]


def test_a_name_that_is_not_utf8_is_shown_all_the_same(tmp_path: Path) -> None:
    upper = tree(tmp_path / "upper")
    (upper / os.fsdecode(b"\xff")).write_text("")
    assert list_changes(upper, [tree(tmp_path / "lower")]) == [Change("/\ufffd", ADDED)]


def test_more_changes_than_an_answer_can_hold_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(changes, "MAX_CHANGES", 2)
    upper = tree(tmp_path / "upper", a="", b="", c="")
    with pytest.raises(HostError, match="more than 2 files: copy them out with docker cp"):
        list_changes(upper, [tree(tmp_path / "lower")])
