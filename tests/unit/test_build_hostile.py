"""What a stranger's Dockerfile and context may say takes no time and no stack."""

from __future__ import annotations

import fnmatch
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cove.image.selection import Wildcard, find_items
from cove.image.tarindex import index_archive
from cove.image.treeindex import FileEntry, TreeIndex
from cove.image.types import Limits
from cove.model.errors import Invalid
from tests.imagekit import File, make_layer


@pytest.mark.parametrize(
    ("pattern", "names", "others"),
    [
        (b"*", [b"a", b"abc", b""], []),
        (b"*.txt", [b"a.txt", b".txt", b"a.b.txt"], [b"a.txt.gz", b"txt"]),
        (b"a*b*c", [b"abc", b"axbxc", b"abbcc"], [b"ab", b"acb"]),
        (b"?", [b"a", b"\xff", b"\n"], [b"", b"ab"]),
        (b"[a-c]x", [b"ax", b"cx"], [b"dx", b"x"]),
        (b"[^a-c]x", [b"dx"], [b"ax"]),
        (b"\\*", [b"*"], [b"a"]),
        (b"a[\\]]", [], [b"a"]),
        (b"**", [b"", b"x"], []),
        (b"*a", [b"a", b"aa", b"ba"], [b"ab", b""]),
    ],
)
def test_wildcards_mean_what_filepath_match_means(
    pattern: bytes, names: list[bytes], others: list[bytes]
) -> None:
    assert all(Wildcard(pattern).matches(name) for name in names)
    assert not any(Wildcard(pattern).matches(name) for name in others)


@pytest.mark.parametrize("pattern", [b"a\\", b"[a", b"[", b"[z-a]"])
def test_a_pattern_that_cannot_be_read_says_so(pattern: bytes) -> None:
    with pytest.raises(Invalid, match="syntax error in pattern"):
        Wildcard(pattern)


@settings(max_examples=300, deadline=None)
@given(st.text("ab*?", max_size=12), st.text("ab", max_size=12))
def test_stars_and_question_marks_are_those_of_fnmatch(pattern: str, name: str) -> None:
    assert Wildcard(pattern.encode()).matches(name.encode()) == fnmatch.fnmatchcase(name, pattern)


def test_many_stars_take_no_time() -> None:
    begun = time.perf_counter()
    for unit in (b"*a", b"*?", b"*[ab]", b"*"):
        assert not Wildcard(unit * 100 + b"b").matches(b"a" * 250)
    assert time.perf_counter() - begun < 2


def test_a_very_deep_tree_is_listed() -> None:
    deep = b"/".join([b"d"] * 2000)
    index = TreeIndex([FileEntry(deep, "file", 0o644), FileEntry(b"d/e", "file", 0o644)])
    found = [entry.path for entry in index.below(b"")]
    assert len(found) == 2001 and found[0] == b"d" and found[-1] == b"d/e" and deep in found
    assert [entry.kind for entry in index.below(b"d")].count("dir") == 1998
    assert index.names(b"") == [b"d"] and index.names(b"d") == [b"d", b"e"]


def test_what_lies_below_a_file_makes_it_a_directory() -> None:
    index = TreeIndex([FileEntry(b"a", "file", 0o644), FileEntry(b"a/b/c", "file", 0o644)])
    assert [(entry.path, entry.kind) for entry in index.below(b"")] == [
        (b"a", "dir"),
        (b"a/b", "dir"),
        (b"a/b/c", "file"),
    ]


def test_links_in_a_circle_are_refused() -> None:
    class Circle:
        def fact(self, path: bytes) -> object:
            from cove.image.selection import Fact

            return Fact("symlink", b"/a")

        def names(self, path: bytes) -> list[bytes]:
            return []

    with pytest.raises(Invalid, match="more than 255 symbolic links"):
        find_items(Circle(), b"a")  # type: ignore[arg-type]


def test_names_that_take_too_much_memory_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cove.image.treeindex.NAMES_MAX", 8 << 20)
    deep = b"/".join([b"d"] * 1900)
    with pytest.raises(Invalid, match="more than 8 MiB together"):
        TreeIndex([FileEntry(b"%d/%s" % (number, deep), "file", 0o644) for number in range(10)])
    archive = make_layer([File(f"{number}", xattrs={"user.x": "y" * 60_000}) for number in range(200)])
    pieces = [archive, b""]
    with pytest.raises(Invalid, match="more than 8 MiB together"):
        index_archive(lambda: pieces.pop(0), lambda data: None, Limits(), budget_bytes=1 << 30)
    shallow = TreeIndex([FileEntry(b"%d/f" % number, "file", 0o644) for number in range(20_000)])
    assert len(list(shallow.below(b""))) == 40_000
