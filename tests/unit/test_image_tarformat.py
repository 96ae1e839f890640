"""The tar reader and writer, against Python's tarfile and against damage."""

from __future__ import annotations

import io
import tarfile

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cove.image.tarformat import END, Entry, TarReader, encode_header, looks_like_tar, padding
from cove.image.types import Limits
from cove.model.errors import Invalid
from tests.imagekit import Device, Dir, Fifo, File, Hardlink, Symlink, make_layer


def read_tar(data: bytes, *, chunk: int = 700, limits: Limits | None = None, entries_max: int = 1000):
    """The entries with their stored content, and every raw byte with the contents put back in."""
    position = 0
    everything = bytearray()

    def read() -> bytes:
        nonlocal position
        piece = data[position : position + chunk]
        position += chunk
        return piece

    reader = TarReader(read, limits or Limits(), entries_max=entries_max, raw=everything.extend)
    found = []
    while (entry := reader.next_entry()) is not None:
        content = b"".join(bytes(piece) for piece in reader.content())
        everything += content
        found.append((entry, content))
    return found, bytes(everything)


ENTRIES = [
    Dir("a/", mode=0o1777, uid=7, gid=8),
    File("a/file", b"x" * 1000, mode=0o4755, uid=3_000_000, mtime=1_700_000_000.25),
    File("a/empty"),
    Symlink("a/link", "../" * 60 + "target"),
    Hardlink("a/hard", "a/file"),
    Device("a/null", 1, 3),
    Device("a/disk", 8, 1, block=True),
    Fifo("a/fifo"),
    File("a/" + "long/" * 60 + "name", b"y"),
    File("ä/ö", b"z", xattrs={"user.mime": "text"}),
]


@pytest.mark.parametrize("form", [tarfile.PAX_FORMAT, tarfile.GNU_FORMAT])
@pytest.mark.parametrize("chunk", [1, 511, 700, 1 << 20])
def test_members_read_as_tarfile_wrote_them(form: int, chunk: int) -> None:
    data = make_layer(ENTRIES, form=form)
    found, raw = read_tar(data, chunk=chunk)
    assert raw == data, "headers, contents and padding together are the archive"
    kinds = ["dir", "file", "file", "symlink", "link", "char", "block", "fifo", "file", "file"]
    assert [entry.kind for entry, _ in found] == kinds
    for (entry, content), wanted in zip(found, ENTRIES, strict=True):
        assert entry.name.decode().rstrip("/") == wanted.name.rstrip("/")
        assert (entry.mode, entry.uid, entry.gid) == (wanted.mode, wanted.uid, wanted.gid)
        assert entry.link.decode() == wanted.link
        assert content == wanted.data
        assert (entry.major, entry.minor) == (wanted.major, wanted.minor)
    if form == tarfile.PAX_FORMAT:
        assert found[1][0].mtime_ns == 1_700_000_000_250_000_000
        assert found[9][0].xattrs == {"user.mime": b"text"}


ENTRY = st.builds(
    Entry,
    name=st.binary(min_size=1, max_size=300).filter(lambda b: b"\0" not in b and not b.endswith(b"/")),
    kind=st.sampled_from(["file", "dir", "symlink", "link", "char", "fifo"]),
    mode=st.integers(0, 0o7777),
    uid=st.integers(0, 2**32 - 2),
    gid=st.integers(0, 2**32 - 2),
    size=st.integers(0, 3000),
    mtime_ns=st.integers(-(10**18), 8 * 10**18),
    major=st.integers(0, 4095),
    minor=st.integers(0, 1 << 20),
    link=st.binary(max_size=300).filter(lambda b: b"\0" not in b),
    xattrs=st.dictionaries(st.just("user.a") | st.just("security.capability"), st.binary(max_size=30)),
)


@settings(deadline=None)
@given(st.lists(ENTRY, max_size=4))
def test_what_is_written_reads_back_the_same(entries: list[Entry]) -> None:
    data = b""
    for entry in entries:
        if entry.kind not in ("char", "block"):
            entry.major = entry.minor = 0
        if entry.kind != "file":
            entry.size = 0
        data += encode_header(entry) + b"c" * entry.size + padding(entry.size)
    found, raw = read_tar(data + END)
    assert raw == data + END
    for (entry, content), wanted in zip(found, entries, strict=True):
        wanted.stored = wanted.size
        if wanted.kind == "dir":
            wanted.name += b"/"
        assert entry == wanted
        assert len(content) == wanted.size


@settings(max_examples=200, deadline=None)
@given(st.data())
def test_a_damaged_archive_raises_invalid_and_nothing_else(data: st.DataObject) -> None:
    archive = bytearray(make_layer(ENTRIES))
    for _ in range(data.draw(st.integers(1, 20))):
        archive[data.draw(st.integers(0, len(archive) - 1))] = data.draw(st.integers(0, 255))
    del archive[data.draw(st.integers(0, len(archive))) :]
    try:
        read_tar(bytes(archive))
    except Invalid as error:
        assert "\n" not in str(error)


@settings(max_examples=300, deadline=None)
@given(st.binary(min_size=0, max_size=400), st.sampled_from(b"xLKgS0123567VMDA"), st.data())
def test_fields_full_of_noise_raise_invalid_and_nothing_else(
    noise: bytes, typeflag: int, data: st.DataObject
) -> None:
    """Headers whose checksum is right, so that the fields themselves are looked at."""
    block = bytearray(encode_header(Entry(name=b"n", size=512)))
    start = data.draw(st.integers(0, 400))
    block[start : start + len(noise)] = noise
    block = block[:512].ljust(512, b"\0")
    block[156] = typeflag
    block[148:156] = b" " * 8
    block[148:156] = b"%06o\0 " % sum(block)
    try:
        read_tar(bytes(block) + noise + bytes(2048))
    except Invalid:
        pass


@pytest.mark.parametrize("cut", [100, 512, 600, 1511, 1513, 1535])
def test_a_cut_archive_is_named_as_such(cut: int) -> None:
    data = make_layer([File("a", b"x" * 1000)])
    with pytest.raises(Invalid, match="cut off"):
        read_tar(data[:cut])


@pytest.mark.parametrize("cut", [1512, 1536])
def test_the_end_mark_and_the_last_padding_may_be_missing(cut: int) -> None:
    """GNU tar takes an archive without the first; umoci's insert leaves out both."""
    assert len(read_tar(make_layer([File("a", b"x" * 1000)])[:cut])[0]) == 1


def test_sparse_files_of_all_three_forms_give_their_map() -> None:
    def pax(records: dict[str, str], body: bytes) -> bytes:
        head = Entry(name=b"GNUSparseFile.0/s", size=len(body))
        pairs = b""
        for key, value in records.items():
            rest = f" GNU.sparse.{key}={value}\n".encode()
            length = len(rest) + 2
            pairs += b"%d" % length + rest if length < 100 else b"%d" % (length + 1) + rest
        extended = bytearray(encode_header(Entry(name=b"x", size=len(pairs))))
        extended[156:157] = b"x"
        extended[148:156] = b" " * 8
        extended[148:156] = b"%06o\0 " % sum(extended)
        return (
            bytes(extended)
            + pairs
            + padding(len(pairs))
            + encode_header(head)
            + body
            + padding(len(body))
            + END
        )

    stored = b"d" * 100
    first = pax({"map": "1000,100", "size": "5000", "name": "real"}, stored)
    third_map = b"1\n1000\n100\n".ljust(512, b"\0")
    third = pax({"major": "1", "minor": "0", "name": "real", "realsize": "5000"}, third_map + stored)
    for data in (first, third):
        ((entry, content),), raw = read_tar(data)
        assert raw == data
        assert (entry.name, entry.size, entry.sparse) == (b"real", 5000, [(1000, 100)])
        assert content == stored


@pytest.mark.parametrize("sparse_map", ["0,10,5,10", "4999,100", "0,99"])
def test_a_sparse_map_that_lies_is_refused(sparse_map: str) -> None:
    entry = tarfile.TarInfo("s")
    entry.size = 100
    entry.pax_headers = {"GNU.sparse.map": sparse_map, "GNU.sparse.size": "5000"}
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.PAX_FORMAT) as tar:
        tar.addfile(entry, io.BytesIO(b"d" * 100))
    with pytest.raises(Invalid, match="sparse map"):
        read_tar(buffer.getvalue())


def test_limits_are_named_in_the_error() -> None:
    data = make_layer([File("a"), File("b" * 300), File("c")])
    with pytest.raises(Invalid, match="more than 2 members"):
        read_tar(data, entries_max=2)
    with pytest.raises(Invalid, match="300 bytes; the limit is 255"):
        read_tar(data, limits=Limits(path_bytes=255))
    with pytest.raises(Invalid, match=r"extended header has .* the limit is 100"):
        read_tar(data, limits=Limits(header_bytes=100))


def test_only_a_header_looks_like_a_tar() -> None:
    assert looks_like_tar(make_layer([File("a")]))
    assert looks_like_tar(make_layer([]))
    assert not looks_like_tar(b"{" + bytes(600))
    assert not looks_like_tar(b"")
