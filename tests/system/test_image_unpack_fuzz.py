"""Random layers against the unpacker: nothing outside changes, and the frame gives the archive again."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cove.image.frames import read_frame
from cove.image.jobs import Unpack
from cove.image.types import Limits
from cove.image.unpack import Unpacker
from cove.model.errors import CoveError
from tests.imagekit import Device, Dir, Entry, Fifo, File, Hardlink, Opaque, Symlink, Whiteout, make_layer

pytestmark = [
    pytest.mark.needs_root,
    pytest.mark.skipif(os.geteuid() != 0, reason="unpacking gives files their owners, which takes root"),
]

PART = st.sampled_from(["a", "b", "c", "..", ".", ".wh.a", ".wh..wh..opq", ""])
NAME = st.lists(PART, min_size=1, max_size=4).map("/".join).filter(bool)
TAME = st.lists(st.sampled_from(["a", "b", "c"]), min_size=1, max_size=3).map("/".join)
TARGET = st.sampled_from(["../..", "/", "a", "../../outside", "../outside/file"]) | TAME
ENTRY = st.one_of(
    st.builds(File, NAME | TAME, st.binary(max_size=600)),
    st.builds(Dir, NAME | TAME),
    st.builds(Symlink, TAME, TARGET),
    st.builds(Hardlink, TAME, TARGET),
    st.builds(Device, TAME, st.just(1), st.just(3)),
    st.builds(Fifo, TAME),
    st.builds(Whiteout, TAME),
    st.builds(Opaque, TAME),
)


def unpack(root: Path, layer: bytes) -> int:
    """Unpack as the worker does, without its walls; how many members were moved."""
    job = Unpack(staging=str(root), single=True, budget_bytes=1 << 30, limits=Limits())
    chunks = iter([layer])
    fd = os.open(root, os.O_RDONLY)
    try:
        (member,) = Unpacker(job, fd, lambda: next(chunks, b""), lambda _: None).run()
    finally:
        os.close(fd)
    return member.moved


def look(path: Path) -> list[tuple[object, ...]]:
    return [
        (str(p), s.st_mode, s.st_uid, s.st_mtime_ns, s.st_size, s.st_nlink)
        for p in sorted([path, *path.rglob("*")])
        for s in [p.lstat()]
    ]


@settings(max_examples=150, deadline=None)
@given(st.lists(ENTRY, max_size=12))
def test_any_layer_stays_inside_and_its_frame_gives_it_back(entries: list[Entry]) -> None:
    layer = make_layer(entries)
    above = Path(tempfile.mkdtemp(prefix="cove-fuzz-"))
    try:
        outside, root = above / "outside", above / "root"
        outside.mkdir()
        root.mkdir()
        (outside / "file").write_bytes(b"stays")
        before = look(outside)
        try:
            moved = unpack(root, layer)
        except CoveError:
            assert look(outside) == before
            return
        assert look(outside) == before
        assert os.listdir(above) in (["outside", "root"], ["root", "outside"])
        directory = os.open(root / "0", os.O_RDONLY)
        moved_fd = os.open(root / "0.moved", os.O_RDONLY) if moved else None
        try:
            with open(root / "0.frame", "rb") as frame:
                assert b"".join(read_frame(frame, directory, moved_fd)) == layer
        finally:
            os.close(directory)
            if moved_fd is not None:
                os.close(moved_fd)
    finally:
        shutil.rmtree(above)


@settings(max_examples=100, deadline=None)
@given(st.data())
def test_a_damaged_layer_is_an_error_or_a_layer_and_never_a_crash(data: st.DataObject) -> None:
    layer = bytearray(make_layer([Dir("d"), File("d/f", b"x" * 700), Symlink("l", "d"), Whiteout("w")]))
    for _ in range(data.draw(st.integers(1, 8))):
        layer[data.draw(st.integers(0, 3000))] = data.draw(st.integers(0, 255))
    root = Path(tempfile.mkdtemp(prefix="cove-fuzz-"))
    try:
        unpack(root, bytes(layer))
    except CoveError as error:
        assert "\n" not in str(error)
    finally:
        shutil.rmtree(root)


MEMORY = """
import asyncio, resource, sys, tarfile
from pathlib import Path
sys.path.insert(0, sys.argv[1])
from cove.image.images import Images
from cove.store.sqlite import SqliteStore

SIZE = 192 << 20

async def chunks():
    # An archive that was never in memory: one member of zeros behind a header that is made here.
    info = tarfile.TarInfo("zeros")
    info.size = SIZE
    yield info.tobuf()
    piece = bytes(1 << 20)
    for _ in range(SIZE >> 20):
        yield piece
    yield bytes(1024)

async def main():
    root = Path(sys.argv[2])
    store = await SqliteStore.open(root / "state.db")
    images = await Images.open(root / "images", store)
    image = await images.import_image(chunks(), "big:1")
    assert image.size_bytes == SIZE
    size = 0
    async for piece in images.save(["big:1"]):
        size += len(piece)
    assert size > SIZE
    await images.close()
    await store.close()
    # ru_maxrss of this process would count the test runner's memory, as of the moment of the exec.
    status = Path("/proc/self/status").read_text()
    print(int(status.partition("VmHWM:")[2].split()[0]) >> 10)
    print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss >> 10)

asyncio.run(main())
"""


def test_memory_stays_small_whatever_the_size_of_an_image(tmp_path: Path) -> None:
    repository = str(Path(__file__).resolve().parents[2])
    done = subprocess.run(
        [sys.executable, "-c", MEMORY, repository, str(tmp_path)],
        timeout=100,
        check=True,
        capture_output=True,
        text=True,
    )
    daemon_mib, worker_mib = map(int, done.stdout.split())
    assert daemon_mib < 96 and worker_mib < 96
