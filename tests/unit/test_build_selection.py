"""What a COPY means: wildcards and links within a tree, modes, and keys that go by content."""

from __future__ import annotations

import hashlib
import io

import pytest

from cove.build import keys
from cove.build.graph import Copy, Exec, Item, Mount
from cove.build.sources import PackedTree, items_digest
from cove.image.selection import find_items, kept_name
from cove.image.tarindex import index_archive
from cove.image.treecopy import parse_mode
from cove.image.treeindex import FileEntry, TreeIndex
from cove.image.types import Limits
from cove.model.errors import CoveError, HostError, Invalid, NotFound
from tests.imagekit import Device, Dir, Entry, File, Hardlink, Symlink, make_layer


def tree_of(*entries: Entry) -> PackedTree:
    return PackedTree(TreeIndex(indexed(make_layer(entries))[0]))


def indexed(data: bytes, *, budget: int = 1 << 30) -> tuple[list[FileEntry], bytes]:
    pack = io.BytesIO()
    pieces = iter([data[at : at + 1000] for at in range(0, len(data), 1000)])
    entries = index_archive(lambda: next(pieces, b""), pack.write, Limits(), budget_bytes=budget)
    return entries, pack.getvalue()


TREE = (
    File("a.txt", b"a"),
    File("b.txt", b"b"),
    File("c.md", b"c"),
    File("[x]", b"x"),
    Dir("sub"),
    File("sub/one.go", b"1"),
    File("sub/deep/two.go", b"2"),
    Symlink("link", "sub"),
    Symlink("absolute", "/sub/deep"),
    Symlink("out", "../../../sub"),
    Symlink("loop", "loop"),
    Symlink("nowhere", "missing"),
)


@pytest.mark.parametrize(
    ("pattern", "found"),
    [
        ("a.txt", ["a.txt"]),
        ("/a.txt", ["a.txt"]),
        ("./sub/../a.txt", ["a.txt"]),
        ("../../a.txt", ["a.txt"]),
        ("*.txt", ["a.txt", "b.txt"]),
        ("?.md", ["c.md"]),
        ("[ab].txt", ["a.txt", "b.txt"]),
        ("[^a].txt", ["b.txt"]),
        ("[a-c].*", ["a.txt", "b.txt", "c.md"]),
        ("\\[x\\]", ["[x]"]),
        ("s*/*.go", ["sub/one.go"]),
        ("link", ["sub"]),
        ("link/one.go", ["sub/one.go"]),
        ("absolute/two.go", ["sub/deep/two.go"]),
        ("out/one.go", ["sub/one.go"]),
        ("li*/one.go", ["sub/one.go"]),
        (".", [""]),
    ],
)
def test_a_source_is_found_within_the_tree(pattern: str, found: list[str]) -> None:
    assert [one.path.decode() for one in find_items(tree_of(*TREE), pattern.encode())] == found


@pytest.mark.parametrize("pattern", ["missing", "a.txt/x", "nowhere", "sub/one.go/.."])
def test_what_is_not_there_is_said_in_dockers_words(pattern: str) -> None:
    tree = tree_of(*TREE)
    if pattern.endswith(".."):
        assert find_items(tree, pattern.encode())[0].path == b"sub"
        return
    with pytest.raises(NotFound, match="file not found in build context or excluded by"):
        find_items(tree, pattern.encode())


def test_a_wildcard_that_matches_nothing_and_bad_patterns_are_refused() -> None:
    with pytest.raises(NotFound, match="no source files were specified"):
        find_items(tree_of(*TREE), b"*.zip")
    for pattern in (b"[a", b"a*\\"):
        with pytest.raises(Invalid, match="syntax error in pattern"):
            find_items(tree_of(*TREE), pattern)
    with pytest.raises(Invalid, match="symbolic links"):
        find_items(tree_of(*TREE), b"loop/x")


def test_parents_keeps_what_follows_the_pivot() -> None:
    assert kept_name(b"/x", b"x/y/z.c") == b"y/z.c"
    assert kept_name(b"", b"x/y") == b"x/y"


@pytest.mark.parametrize(
    ("text", "before", "directory", "after"),
    [
        ("755", 0o600, False, 0o755),
        ("4755", 0o600, False, 0o4755),
        ("u+x", 0o644, False, 0o744),
        ("go-rwx", 0o777, False, 0o700),
        ("a=r", 0o777, False, 0o444),
        ("u=rwX,go=rX", 0o600, True, 0o755),
        ("u=rwX,go=rX", 0o600, False, 0o644),
        ("+t,u+s", 0o755, True, 0o5755),
    ],
)
def test_modes_are_those_of_chmod(text: str, before: int, directory: bool, after: int) -> None:
    assert oct(parse_mode(text)(before, directory)) == oct(after)


@pytest.mark.parametrize("text", ["", "999", "u+q", "rwx", "77777", "u+x,"])
def test_what_is_no_mode_is_refused(text: str) -> None:
    with pytest.raises(Invalid, match="invalid chmod parameter"):
        parse_mode(text)


def test_an_archive_is_an_index_and_a_pack() -> None:
    data = make_layer([*TREE, Hardlink("again", "a.txt"), Device("dev", 1, 3)])
    entries, pack = indexed(data)
    index = TreeIndex(entries)
    one = index.find(b"sub/one.go")
    assert one is not None and pack[one.offset : one.offset + one.size] == b"1"
    assert one.digest == hashlib.sha256(b"1").digest()
    first, again = index.find(b"a.txt"), index.find(b"again")
    assert first is not None and again is not None and first.inode == again.inode == b"a.txt"
    assert index.find(b"sub/deep") is not None, "a directory without a member of its own"


@pytest.mark.parametrize(
    ("entries", "sentence"),
    [
        ((File("../x"),), "leads outside by '..'"),
        ((File("/etc/passwd"),), "absolute name"),
        ((Hardlink("x", "y"),), "hasn't brought before"),
        ((Hardlink("x", "../y"),), "leads outside"),
    ],
)
def test_an_archive_that_leads_outside_is_refused(entries: tuple[Entry, ...], sentence: str) -> None:
    with pytest.raises(Invalid, match=sentence):
        indexed(make_layer(entries))


def test_what_lies_below_a_link_of_an_archive_is_left_out() -> None:
    entries, _ = indexed(make_layer([Symlink("d", "/etc"), File("d/passwd", b"x")]))
    assert [entry.path for entry in entries] == [b"d"]


def test_a_context_that_the_disk_has_no_room_for_says_so() -> None:
    with pytest.raises(HostError, match="build context is larger than"):
        indexed(make_layer([File("big", bytes(5000))]), budget=4000)
    with pytest.raises(CoveError, match="isn't a tar archive"):
        indexed(b"x" * 2000)


def test_the_same_files_have_the_same_digest_whatever_their_times_are() -> None:
    def digest(*entries: Entry) -> str:
        return items_digest(tree_of(*entries).select(Item(source=0, path=".")), owner=False, names=False)

    same = digest(File("a", b"1", mtime=1), Dir("d", mtime=2))
    assert same == digest(Dir("d", mtime=9), File("a", b"1", mtime=5, uid=7))
    for other in (
        (File("a", b"2"), Dir("d")),
        (File("a", b"1", mode=0o755), Dir("d")),
        (File("a", b"1"), Dir("d", mode=0o700)),
        (File("b", b"1"), Dir("d")),
        (File("a", b"1"),),
        (Symlink("a", "1"), Dir("d")),
    ):
        assert digest(*other) != same


def test_a_key_has_what_counts_and_nothing_else() -> None:
    run = Exec(base=0, args=("make",), env=("A=1",), hidden_env=("http_proxy=x",))
    key = keys.step_key(run, {0: "base"}, None)
    hidden = Exec(base=0, args=("make",), env=("A=1",), hidden_env=("http_proxy=y",))
    assert keys.step_key(hidden, {0: "base"}, None) == key
    moved = Exec(base=5, args=("make",), env=("A=1",))
    assert keys.step_key(moved, {5: "base"}, None) == key
    others = [
        keys.step_key(run, {0: "other"}, None),
        keys.step_key(run, {0: "base"}, 5),
        keys.step_key(run, {0: "base"}, None, "salt"),
        keys.step_key(Exec(base=0, args=("make", "all"), env=("A=1",)), {0: "base"}, None),
        keys.step_key(
            Exec(base=0, args=("make",), env=("A=1",), mounts=(Mount(kind="cache", target="/c"),)),
            {0: "base"},
            None,
        ),
    ]
    assert len({key, *others}) == 6


def test_a_linked_copy_does_not_depend_on_its_base() -> None:
    copy = Copy(base=0, items=(Item(source=1, path="a"),), target="/a", link=True)
    assert keys.content_key(copy, "x", "c", None) == keys.content_key(copy, "y", "c", None)
    named = Copy(base=0, items=(Item(source=1, path="a"),), target="/a", link=True, owner="web")
    assert keys.content_key(named, "x", "c", None) != keys.content_key(named, "y", "c", None)


def test_an_index_keeps_directories_before_what_is_in_them() -> None:
    index = TreeIndex(indexed(make_layer(TREE))[0])
    paths = [entry.path for entry in index.below(b"")]
    assert paths.index(b"sub") < paths.index(b"sub/deep") < paths.index(b"sub/deep/two.go")
    assert len(paths) == len(set(paths))
