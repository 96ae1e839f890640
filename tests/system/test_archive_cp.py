"""`docker cp` and copy-up on real trees: stopped ones, running ones, and while somebody swaps directories."""

from __future__ import annotations

import asyncio
import io
import os
import signal
import stat
import tarfile
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from cove.image import sandbox
from cove.image.extract import Extractor
from cove.image.tarformat import TarReader
from cove.image.types import Limits, OverlayTree, PathStat, RunningTree
from cove.image.worker import ArchiveStream, copy_up, read_archive, stat_path, write_archive
from cove.model.container import MountPoint
from cove.model.errors import Conflict, CoveError, Forbidden, HostError, Invalid, NotFound
from tests.imagekit import Dir, Entry, File, Hardlink, Symlink, chunks_of, compressors, make_layer

pytestmark = [
    pytest.mark.needs_root,
    pytest.mark.skipif(os.geteuid() != 0, reason="mount namespaces and overlays take root"),
]


def run(work: Coroutine[Any, Any, None]) -> None:
    asyncio.run(asyncio.wait_for(work, 100))


@pytest.fixture
def tree(tmp_path: Path) -> OverlayTree:
    """A stopped container of two layers."""
    base = tmp_path / "layers" / "base"
    (base / "etc").mkdir(parents=True)
    (base / "etc/hosts").write_bytes(b"127.0.0.1 localhost\n")
    (base / "etc/link").symlink_to("/etc/hosts")
    (base / "etc/up").symlink_to("../../../../var")
    (base / "var/lib/data").mkdir(parents=True)
    (base / "var/lib/data/one").write_bytes(b"1")
    os.chown(base / "var/lib/data", 5, 6)
    os.chmod(base / "var/lib/data", 0o2750)
    (base / "alias").symlink_to("var/lib/data")
    (tmp_path / "layers" / "top").mkdir()
    for name in ("upper", "work"):
        (tmp_path / name).mkdir()
    return OverlayTree(
        lower=["base", "top"],
        layers_dir=tmp_path / "layers",
        upper=tmp_path / "upper",
        work=tmp_path / "work",
    )


async def read(
    place: OverlayTree | RunningTree, path: str
) -> tuple[PathStat, dict[str, tarfile.TarInfo], bytes]:
    found, stream = await read_archive(place, path)
    data = b"".join([piece async for piece in stream])
    with tarfile.open(fileobj=io.BytesIO(data)) as tar:
        return found, {member.name: member for member in tar.getmembers()}, data


def tar_of(*entries: Entry) -> AsyncIterator[bytes]:
    return chunks_of(make_layer(list(entries)))


# --- stopped containers -------------------------------------------------------------------


def test_stat_tells_what_docker_tells(tree: OverlayTree) -> None:
    async def check() -> None:
        hosts = await stat_path(tree, "/etc/hosts")
        assert (hosts.name, hosts.size, hosts.mode & 0o777, hosts.link_target) == ("hosts", 20, 0o644, "")
        link = await stat_path(tree, "etc/link")
        assert link.mode & 1 << 27 and link.link_target == "/etc/hosts"
        assert (await stat_path(tree, "/etc/up")).link_target == "/var"
        directory = await stat_path(tree, "/alias/")
        assert directory.name == "alias"
        assert directory.mode == 1 << 31 | 1 << 22 | 0o750
        assert (await stat_path(tree, "/")).name == "/"
        with pytest.raises(NotFound, match="Could not find the file /nope in the container"):
            await stat_path(tree, "/nope")
        with pytest.raises(Invalid, match="not a directory"):
            await stat_path(tree, "/etc/hosts/x")

    run(check())


@pytest.mark.parametrize(
    ("path", "names"),
    [
        ("/var/lib/data", ["data", "data/one"]),
        ("/var/lib/data/", ["data", "data/one"]),
        ("/var/lib/data/.", [".", "./one"]),
        ("/alias", ["alias"]),
        ("/alias/", ["alias", "alias/one"]),
        ("/alias/.", [".", "./one"]),
        ("/alias/one", ["one"]),
        ("/etc/../etc/link", ["link"]),
    ],
)
def test_a_get_names_its_members_as_docker_does(tree: OverlayTree, path: str, names: list[str]) -> None:
    async def check() -> None:
        _, members, _ = await read(tree, path)
        assert list(members) == names

    run(check())


def test_a_get_keeps_owner_mode_links_and_big_content(tree: OverlayTree, tmp_path: Path) -> None:
    async def check() -> None:
        data = tmp_path / "layers/base/var/lib/data"
        big = os.urandom(3 << 20)
        (data / "big").write_bytes(big)
        os.link(data / "one", data / "two")
        os.mkfifo(data / "fifo")
        found, members, archive = await read(tree, "/var/lib/data")
        assert found.name == "data"
        assert (members["data"].uid, members["data"].gid, members["data"].mode) == (5, 6, 0o2750)
        assert members["data/two"].islnk() and members["data/two"].linkname == "data/one"
        assert members["data/fifo"].isfifo()
        with tarfile.open(fileobj=io.BytesIO(archive)) as tar:
            content = tar.extractfile("data/big")
            assert content is not None and content.read() == big

    run(check())


def test_a_stream_that_is_closed_early_ends_its_worker(tree: OverlayTree, tmp_path: Path) -> None:
    async def check() -> None:
        (tmp_path / "layers/base/big").write_bytes(bytes(8 << 20))
        _, stream = await read_archive(tree, "/big")
        assert isinstance(stream, ArchiveStream)
        assert await anext(stream)
        await stream.aclose()
        assert Path(f"/proc/self/task/{os.getpid()}/children").read_text() == ""

    run(check())


@pytest.mark.parametrize("form", compressors())
def test_a_put_lands_in_the_writable_layer(tree: OverlayTree, tmp_path: Path, form: str) -> None:
    async def check() -> None:
        archive = make_layer([Dir("d", uid=3), File("d/f", b"new", uid=7, gid=8, mode=0o4755)])
        await write_archive(tree, "/alias", chunks_of(compressors()[form](archive)))
        written = tmp_path / "upper/var/lib/data/d/f"
        found = written.stat()
        assert written.read_bytes() == b"new"
        assert (found.st_uid, found.st_gid, stat.S_IMODE(found.st_mode)) == (7, 8, 0o4755)
        assert not (tmp_path / "layers/base/var/lib/data/d").exists()
        await write_archive(tree, "/", tar_of(File("owned")), owner=(11, 12))
        owned = (tmp_path / "upper/owned").stat()
        assert (owned.st_uid, owned.st_gid) == (11, 12)

    run(check())


def test_a_put_replaces_files_but_follows_no_link_and_changes_no_other_name(
    tree: OverlayTree, tmp_path: Path
) -> None:
    async def check() -> None:
        await write_archive(tree, "/etc", tar_of(File("link", b"not hosts")))
        assert (await stat_path(tree, "/etc/link")).size == 9
        assert (await stat_path(tree, "/etc/hosts")).size == 20
        await write_archive(tree, "/", tar_of(File("a", b"1"), Hardlink("b", "a")))
        await write_archive(tree, "/", tar_of(File("a", b"22")))
        assert (tmp_path / "upper/b").read_bytes() == b"1"

    run(check())


def test_a_directory_and_a_file_replace_each_other_only_when_allowed(tree: OverlayTree) -> None:
    async def check() -> None:
        with pytest.raises(Invalid, match='cannot overwrite directory "/data" with non-directory "/data"'):
            await write_archive(tree, "/var/lib", tar_of(File("data")), no_overwrite_dir_non_dir=True)
        with pytest.raises(Invalid, match='cannot overwrite non-directory "/hosts" with directory "/hosts"'):
            await write_archive(tree, "/etc", tar_of(Dir("hosts")), no_overwrite_dir_non_dir=True)
        await write_archive(tree, "/var/lib", tar_of(File("data", b"file")))
        assert (await stat_path(tree, "/var/lib/data")).size == 4
        await write_archive(tree, "/etc", tar_of(Dir("hosts"), File("hosts/x")))
        assert (await stat_path(tree, "/etc/hosts/x")).name == "x"

    run(check())


@pytest.mark.parametrize(
    ("path", "entries", "error", "message"),
    [
        ("/nope", [File("a")], NotFound, "Could not find the file /nope"),
        ("/etc/hosts", [File("a")], Invalid, "extraction point is not a directory"),
        ("/", [File("../a")], Invalid, "leads outside"),
        ("/", [Symlink("l", "l"), File("l/a")], Invalid, "through a symbolic link"),
        ("/", [Hardlink("h", "alias/two")], Invalid, "hasn't brought before"),
        ("/", [File("/../a")], Invalid, "leads outside"),
    ],
)
def test_a_put_that_goes_astray_is_refused(
    tree: OverlayTree, path: str, entries: list[Entry], error: type[CoveError], message: str
) -> None:
    async def check() -> None:
        with pytest.raises(error, match=message):
            await write_archive(tree, path, tar_of(*entries))

    run(check())


def test_a_put_counts_absolute_names_from_its_directory_and_follows_the_tree_s_links(
    tree: OverlayTree, tmp_path: Path
) -> None:
    async def check() -> None:
        await write_archive(tree, "/etc", tar_of(File("/app/absolute", b"1")))
        await write_archive(tree, "/", tar_of(File("alias/by-link", b"22"), Hardlink("h", "/alias/by-link")))
        outside = [Symlink("l", "/"), File("l/etc/in-root", b"333"), Symlink("up", "../../.."), File("up/x")]
        await write_archive(tree, "/var/lib", tar_of(*outside))
        # A link that later is a directory: what comes below is in the new one.
        turned = [Symlink("t", "etc"), File("t/before"), Dir("t"), File("t/after")]
        await write_archive(tree, "/", tar_of(*turned))
        for content in (b"1", b"22"):
            await write_archive(
                tree, "/", tar_of(File("var/lib/again", content), File("var/lib/more", content))
            )
        assert (
            (await stat_path(tree, "/var/lib/again")).size
            == (await stat_path(tree, "/var/lib/more")).size
            == 2
        )
        upper = tmp_path / "upper"
        found = {str(path.relative_to(upper)) for path in upper.rglob("*") if path.is_file()}
        assert found >= {"etc/app/absolute", "var/lib/data/by-link", "h", "etc/in-root", "x", "etc/before"}
        assert "t/after" in found and not (tmp_path / "x").exists()

    run(check())


def test_a_tree_without_a_writable_layer_is_read_only(tree: OverlayTree) -> None:
    async def check() -> None:
        for lower in (["base"], ["base", "top"]):
            image = OverlayTree(lower=lower, layers_dir=tree.layers_dir)
            assert (await stat_path(image, "/etc/hosts")).size == 20
            with pytest.raises(Forbidden, match="read-only"):
                await write_archive(image, "/etc", tar_of(File("a")))

    run(check())


def test_volumes_and_binds_are_in_the_tree_and_their_targets_stay_inside(
    tree: OverlayTree, tmp_path: Path
) -> None:
    async def check() -> None:
        volume, locked, single = tmp_path / "volume", tmp_path / "locked", tmp_path / "single"
        volume.mkdir()
        locked.mkdir()
        (locked / "l").write_bytes(b"l")
        single.write_bytes(b"a file")
        (tmp_path / "layers/base/escape").symlink_to("../../../../../../etc")
        mounts = [
            MountPoint(kind="bind", source=str(single), target="/etc/single"),
            MountPoint(kind="volume", source=str(volume), target="/data/deep"),
            MountPoint(kind="bind", source=str(locked), target="/escape/locked", readonly=True),
            MountPoint(kind="tmpfs", target="/tmpfs"),
        ]
        mounted = OverlayTree(
            lower=tree.lower, layers_dir=tree.layers_dir, upper=tree.upper, work=tree.work, mounts=mounts
        )
        await write_archive(mounted, "/data/deep", tar_of(File("in-volume", b"v")))
        assert (volume / "in-volume").read_bytes() == b"v"
        assert (await stat_path(mounted, "/etc/single")).size == 6
        assert (await stat_path(mounted, "/etc/locked/l")).size == 1
        assert not Path("/etc/locked").exists()
        with pytest.raises(Forbidden, match="read-only"):
            await write_archive(mounted, "/etc/locked", tar_of(File("x")))
        missing = MountPoint(kind="bind", source=str(tmp_path / "nope"), target="/x")
        with pytest.raises(HostError, match=r"mount source .*nope can't be read"):
            await stat_path(OverlayTree(lower=tree.lower, layers_dir=tree.layers_dir, mounts=[missing]), "/")
        assert str(tmp_path) not in Path("/proc/self/mounts").read_text(), "mounts are the worker's alone"

    run(check())


def test_copy_up_fills_an_empty_directory_with_owner_and_mode_and_no_other(
    tree: OverlayTree, tmp_path: Path
) -> None:
    async def check() -> None:
        image = OverlayTree(lower=tree.lower, layers_dir=tree.layers_dir)
        target = tmp_path / "volume"
        target.mkdir()
        await copy_up(image, "/alias", target)
        found = target.stat()
        assert (target / "one").read_bytes() == b"1"
        assert (found.st_uid, found.st_gid, stat.S_IMODE(found.st_mode)) == (5, 6, 0o2750)
        (target / "one").write_bytes(b"mine")
        await copy_up(image, "/alias", target)
        assert (target / "one").read_bytes() == b"mine", "what isn't empty is left alone"
        empty = tmp_path / "empty"
        empty.mkdir()
        for nothing in ("/nope", "/etc/hosts"):
            await copy_up(image, nothing, empty)
            assert os.listdir(empty) == []

    run(check())


# --- running containers -------------------------------------------------------------------


@contextmanager
def running(root: Path, work: Callable[[], None] = lambda: None) -> Iterator[int]:
    """A process whose root is `root`, in a mount namespace of its own, that calls `work` until it is killed."""
    ready_read, ready_write = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            sandbox.unshare_all()
            sandbox.pivot_into(str(root))
            os.write(ready_write, b"x")
            while True:
                work()
                if work.__name__ == "<lambda>":
                    signal.pause()
        finally:
            os._exit(1)
    os.close(ready_write)
    try:
        assert os.read(ready_read, 1) == b"x"
        yield pid
    finally:
        os.close(ready_read)
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)


def test_a_running_containers_own_mounts_and_links_are_what_counts(tmp_path: Path) -> None:
    root = tmp_path / "root"
    (root / "etc").mkdir(parents=True)
    (root / "etc/hosts").write_bytes(b"mine")
    (root / "abs").symlink_to("/etc")
    (root / "up").symlink_to("../../../../../../../etc")

    async def check(pid: int) -> None:
        place = RunningTree(pid=pid)
        for path in ("/etc/hosts", "/abs/hosts", "/up/hosts", "/../../etc/hosts"):
            assert (await stat_path(place, path)).size == 4
        await write_archive(place, "/up", tar_of(File("planted", b"p")))
        assert (root / "etc/planted").read_bytes() == b"p"
        assert not Path("/etc/planted").exists()
        _, members, _ = await read(place, "/")
        assert "/etc/hosts" in {"/" + name.lstrip("/") for name in members}

    with running(root) as pid:
        run(check(pid))


def test_a_container_that_has_just_stopped_is_a_conflict() -> None:
    pid = os.fork()
    if pid == 0:
        os._exit(0)
    os.waitpid(pid, 0)
    with pytest.raises(Conflict, match="has just stopped"):
        run(stat_path(RunningTree(pid=pid), "/"))  # type: ignore[arg-type]


def test_nothing_outside_changes_while_a_container_swaps_a_directory_for_a_link(tmp_path: Path) -> None:
    root, outside = tmp_path / "root", tmp_path / "outside"
    (root / "d/sub").mkdir(parents=True)
    outside.mkdir()
    (outside / "sentinel").write_bytes(b"stays")
    (root / "trap").symlink_to(f"../../../../../../../..{outside}")

    def swap() -> None:
        try:
            os.rename("/d", "/d2")
            os.rename("/trap", "/d")
            os.rename("/d", "/trap")
            os.rename("/d2", "/d")
        except OSError:
            os.makedirs("/d/sub", exist_ok=True)

    async def check(pid: int) -> None:
        place = RunningTree(pid=pid)
        done = 0
        for number in range(12):
            entries = [Dir("d")] + [File(f"d/sub/f{number}-{n}", b"x") for n in range(50)]
            try:
                await write_archive(place, "/", tar_of(*entries))
                done += 1
            except CoveError:
                pass
            try:
                await write_archive(place, "/d", tar_of(*[File(f"g{n}") for n in range(20)]))
                await read(place, "/d/")
            except CoveError:
                pass
        assert os.listdir(outside) == ["sentinel"]
        assert (outside / "sentinel").read_bytes() == b"stays"

    with running(root, swap) as pid:
        run(check(pid))


def test_the_extractor_alone_stays_inside_while_its_tree_is_swapped(tmp_path: Path) -> None:
    """Without any namespace around it: the descriptors are enough."""
    root, outside = tmp_path / "root", tmp_path / "outside"
    (root / "d/sub").mkdir(parents=True)
    (outside / "sub").mkdir(parents=True)
    (outside / "sub/f0").write_bytes(b"stays")
    (root / "trap").symlink_to(outside)
    before = {path: path.lstat() for path in outside.rglob("*")}
    archive = make_layer([Dir("d", 0o700, uid=9), *[File(f"d/sub/f{n}", b"evil", uid=9) for n in range(20)]])
    pid = os.fork()
    if pid == 0:
        try:
            while True:
                try:
                    os.rename(root / "d", root / "d2")
                    os.rename(root / "trap", root / "d")
                    os.rename(root / "d", root / "trap")
                    os.rename(root / "d2", root / "d")
                except OSError:
                    os.makedirs(root / "d/sub", exist_ok=True)
        finally:
            os._exit(1)
    refused = 0
    try:
        for _ in range(300):
            chunks = iter([archive])
            reader = TarReader(lambda it=chunks: next(it, b""), Limits(), entries_max=100)
            fd = os.open(root, os.O_RDONLY | os.O_DIRECTORY)
            extractor = Extractor(fd, layer=False)
            try:
                while (entry := reader.next_entry()) is not None:
                    extractor.add(entry, reader)
                extractor.finish()
            except CoveError:
                refused += 1
            finally:
                extractor.close()
                os.close(fd)
    finally:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
    after = {path: path.lstat() for path in outside.rglob("*")}
    assert after.keys() == before.keys()
    for path, found in after.items():
        assert (found.st_uid, found.st_mode, found.st_mtime_ns) == (
            before[path].st_uid,
            before[path].st_mode,
            before[path].st_mtime_ns,
        )
    assert (outside / "sub/f0").read_bytes() == b"stays"


# --- the walls ----------------------------------------------------------------------------


def test_a_worker_keeps_only_what_file_work_needs(tmp_path: Path) -> None:
    """The process that read a container's tree: its capabilities, filter, namespaces and root."""
    root = tmp_path / "root"
    root.mkdir()
    (root / "big").write_bytes(bytes(16 << 20))

    async def check(pid: int) -> None:
        _, stream = await read_archive(RunningTree(pid=pid), "/big")
        try:
            await anext(stream)
            mine = Path(f"/proc/self/task/{os.getpid()}/children").read_text().split()
            (worker,) = [child for child in mine if int(child) != pid]
            status = dict(
                line.split(":\t", 1)
                for line in Path(f"/proc/{worker}/status").read_text().splitlines()
                if ":\t" in line
            )
            wanted = sum(1 << number for number in sandbox.FILE_CAPABILITIES)
            for kind in ("CapPrm", "CapEff"):
                assert int(status[kind], 16) == wanted
            assert int(status["CapAmb"], 16) == int(status["CapBnd"], 16) == 0
            assert status["Seccomp"] == "2" and status["NoNewPrivs"] == "1"
            assert os.stat(f"/proc/{worker}/root").st_ino == root.stat().st_ino
            for namespace in ("net", "ipc"):
                here, there = (os.readlink(f"/proc/{p}/ns/{namespace}") for p in ("self", worker))
                assert here != there
        finally:
            await stream.aclose()

    with running(root) as pid:
        run(check(pid))
