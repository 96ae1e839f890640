"""Loading images on the real kernel: what gets in, what is refused, and that nothing remains of what failed."""

from __future__ import annotations

import asyncio
import ctypes
import gzip
import os
import signal
import stat
import subprocess
import sys
import tarfile
from collections.abc import AsyncIterator, Coroutine
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from cove.image import content
from cove.image.images import Images
from cove.image.types import Limits, Loaded, Use
from cove.model.errors import Conflict, HostError, Invalid, NotFound
from cove.store.sqlite import SqliteStore
from tests.imagekit import (
    Device,
    Dir,
    Entry,
    Fifo,
    File,
    Hardlink,
    Layer,
    Opaque,
    Symlink,
    Whiteout,
    chunks_of,
    compressors,
    digest_of,
    make_docker_archive,
    make_layer,
    make_oci_layout,
)

pytestmark = [
    pytest.mark.needs_root,
    pytest.mark.skipif(os.geteuid() != 0, reason="unpacking gives files their owners, which takes root"),
]


@asynccontextmanager
async def opened(root: Path, **more: Any) -> AsyncIterator[Images]:
    root.mkdir(exist_ok=True)
    store = await SqliteStore.open(root / "state.db")
    try:
        images = await Images.open(root / "images", store, **more)
        try:
            yield images
        finally:
            await images.close()
    finally:
        await store.close()


async def load(images: Images, data: bytes) -> list[Loaded]:
    return [e async for e in images.load(chunks_of(data)) if isinstance(e, Loaded)]


async def save(images: Images, *references: str) -> bytes:
    return b"".join([piece async for piece in images.save(references)])


def files_of(root: Path) -> list[str]:
    """Everything in the image store but its fixed directories."""
    fixed = set(content._DIRECTORIES) | {"blobs", "layers"}
    found = {str(path.relative_to(root / "images")) for path in (root / "images").rglob("*")}
    return sorted(found - fixed)


def run(work: Coroutine[Any, Any, None]) -> None:
    asyncio.run(asyncio.wait_for(work, 100))


def layer_of(images: Images, name: str, number: int = -1) -> Path:
    return images.layers_dir / images.layer_paths(images.find_image(name))[number]


def test_every_kind_of_file_arrives_as_it_was(tmp_path: Path) -> None:
    async def check() -> None:
        big = os.urandom(3 << 20)
        entries = [
            Dir("d", 0o1777, uid=5, gid=6, mtime=1_000_000_000),
            File("d/file", b"content", mode=0o4751, uid=7, gid=8, mtime=1_600_000_000.5),
            File("d/big", big),
            Symlink("d/link", "/etc/passwd", uid=9, gid=10),
            Hardlink("d/hard", "d/file"),
            Device("d/null", 1, 3, mode=0o666),
            Device("d/disk", 8, 1, block=True),
            Fifo("d/fifo", mode=0o620),
            File("no/parent/here", b"x"),
            File("./dotted//name", b"x"),
            File("n" * 255, b"x"),
            File("cap", b"x", xattrs={"user.note": "hi", "trusted.overlay.opaque": "y"}),
        ]
        async with opened(tmp_path) as images:
            await load(images, make_docker_archive([entries]))
            root = layer_of(images, "app")
            file = (root / "d/file").stat()
            assert (file.st_mode, file.st_uid, file.st_gid) == (stat.S_IFREG | 0o4751, 7, 8)
            assert file.st_mtime_ns == 1_600_000_000_500_000_000
            assert file.st_nlink == 2 and (root / "d/hard").samefile(root / "d/file")
            directory = (root / "d").stat()
            assert (stat.S_IMODE(directory.st_mode), directory.st_uid, directory.st_gid) == (0o1777, 5, 6)
            assert directory.st_mtime == 1_000_000_000, "its children don't disturb a directory's time"
            assert (root / "d/big").read_bytes() == big
            link = (root / "d/link").lstat()
            assert os.readlink(root / "d/link") == "/etc/passwd" and (link.st_uid, link.st_gid) == (9, 10)
            assert (root / "d/null").stat().st_rdev == os.makedev(1, 3)
            assert stat.S_ISBLK((root / "d/disk").stat().st_mode)
            assert stat.S_IMODE((root / "d/fifo").stat().st_mode) == 0o620
            assert stat.S_IMODE((root / "no/parent").stat().st_mode) == 0o755
            assert (root / "dotted/name").exists() and (root / ("n" * 255)).exists()
            assert os.getxattr(root / "cap", "user.note") == b"hi"
            assert "trusted.overlay.opaque" not in os.listxattr(root / "cap")
            assert stat.S_IMODE(root.stat().st_mode) == 0o755

    run(check())


def test_a_capability_survives_the_change_of_owner(tmp_path: Path) -> None:
    async def check() -> None:
        value = b"\1\0\0\2\0\4\0\0\0\0\0\0\0\0\0\0\0\0\0\0"  # cap_net_bind_service+ep
        entry = File("ping", b"x", uid=1, xattrs={"security.capability": value.decode("latin1")})
        async with opened(tmp_path) as images:
            await load(images, make_docker_archive([[entry]]))
            assert os.getxattr(layer_of(images, "app") / "ping", "security.capability") == value

    run(check())


def test_whiteouts_hide_lower_layers_and_never_what_the_same_layer_brings(tmp_path: Path) -> None:
    async def check() -> None:
        upper = [
            Whiteout("gone"),
            Dir("opaque"),
            File("opaque/mine", b"m"),
            Opaque("opaque"),
            File("kept", b"new"),
            Whiteout("kept"),
            Whiteout("again"),
            File("again/below", b"b"),
            Entry(".wh..wh.plnk/1.2"),
            Entry(".wh..wh.aufs"),
        ]
        async with opened(tmp_path) as images:
            await load(images, make_docker_archive([[File("gone"), File("again/old")], upper]))
            root = layer_of(images, "app")
            gone = (root / "gone").lstat()
            assert stat.S_ISCHR(gone.st_mode) and gone.st_rdev == 0
            assert os.getxattr(root / "opaque", "trusted.overlay.opaque") == b"y"
            assert (root / "opaque/mine").read_bytes() == b"m"
            assert (root / "kept").read_bytes() == b"new"
            assert os.getxattr(root / "again", "trusted.overlay.opaque") == b"y"
            assert not (root / ".wh..wh.aufs").exists()

    run(check())


def test_members_that_come_twice_leave_the_last_and_save_gives_both_back(tmp_path: Path) -> None:
    async def check() -> None:
        entries = [
            File("a", b"first"),
            Hardlink("b", "a"),
            File("a", b"second one"),
            File("d/x/y", b"deep"),
            File("d/z", b"zet"),
            Symlink("d", "elsewhere"),
            File("f", b"file"),
            Dir("f"),
            File("f/in", b"in"),
            File("f", b"file again"),
        ]
        archive = make_docker_archive([entries])
        async with opened(tmp_path) as images:
            await load(images, archive)
            root = layer_of(images, "app")
            assert (root / "a").read_bytes() == b"second one"
            assert (root / "b").read_bytes() == b"first", "a file is never written in place"
            assert os.readlink(root / "d") == "elsewhere"
            assert (root / "f").read_bytes() == b"file again"
            saved = await save(images, "app")
            assert make_layer(entries) in saved

    run(check())


@pytest.mark.parametrize("form", compressors())
def test_archives_and_layers_load_in_every_compression(tmp_path: Path, form: str) -> None:
    async def check() -> None:
        compress = compressors()[form]
        layers: list[Layer] = [[File("a", os.urandom(300_000))], [File("b", b"b")]]
        async with opened(tmp_path) as images:
            await load(images, compress(make_docker_archive(layers, names=["whole:1"])))
            await load(images, make_oci_layout(layers, names=["layers:1"], compress=compress, nested=True))
            first, second = images.find_image("whole:1"), images.find_image("layers:1")
            assert images.layer_paths(first) == images.layer_paths(second), "layers are shared by diff id"
            assert len(os.listdir(images.layers_dir)) == 3

    run(check())


def test_save_and_load_give_the_same_digests_and_bytes(tmp_path: Path) -> None:
    async def check() -> None:
        gz = make_oci_layout(
            [[File("a", b"a" * 5000)], [Whiteout("a")]], names=["gz:1"], compress=gzip.compress
        )
        async with opened(tmp_path / "one") as one, opened(tmp_path / "two") as two:
            await load(one, gz)
            await load(one, make_docker_archive([[File("p", b"p" * 700)], []], names=["plain:1", "plain:2"]))
            saved = await save(one, "gz:1", "plain")
            assert [e.name for e in await load(two, saved)] == ["gz:1", "plain:1", "plain:2"]
            for name in ("gz:1", "plain:2"):
                a, b = one.find_image(name), two.find_image(name)
                assert (a.id, a.diff_ids) == (b.id, b.diff_ids)
                assert one.manifest_digest(a) == two.manifest_digest(b)
                assert one.raw_config(a) == two.raw_config(b)
            assert await save(two, "gz:1", "plain") == saved

    run(check())


def test_two_loads_of_one_image_keep_one_copy(tmp_path: Path) -> None:
    async def check() -> None:
        archive = make_docker_archive([[File("a", b"a")]])
        async with opened(tmp_path) as images:
            await asyncio.gather(load(images, archive), load(images, archive))
            await images.close()
            before = files_of(tmp_path)
            await load(images, archive)
            await images.close()
            assert files_of(tmp_path) == before
            assert len(images.list_images()) == 1

    run(check())


HOSTILE: list[tuple[str, Layer, str]] = [
    ("dots", [File("../evil", b"x")], "leads outside by '..'"),
    ("dots inside", [File("a/../../evil", b"x")], "leads outside by '..'"),
    ("absolute", [File("/evil", b"x")], "absolute name"),
    ("write through a link", [Symlink("l", "/tmp"), File("l/evil", b"x")], "through a symbolic link"),
    (
        "write through links",
        [Dir("a"), Symlink("a/l", ".."), File("a/l/l/evil", b"x")],
        "through a symbolic link",
    ),
    ("directory through a link", [Symlink("l", ".."), Dir("l/evil")], "through a symbolic link"),
    ("hard link outside", [Hardlink("h", "../../../../etc/passwd")], "leads outside by '..'"),
    ("absolute hard link", [Hardlink("h", "/etc/passwd")], "absolute name"),
    ("hard link through a link", [Symlink("l", "/etc"), Hardlink("h", "l/passwd")], "hasn't brought before"),
    ("hard link to nothing", [Hardlink("h", "nothing")], "hasn't brought before"),
    ("hard link to a directory", [Dir("d"), Hardlink("h", "d")], "that is a directory"),
    ("hard link to itself", [File("h"), Hardlink("h", "h")], "hard link to itself"),
    ("below a file", [File("f"), File("f/x")], "below something that isn't a directory"),
    ("nameless whiteout", [Entry("d/.wh.")], "whiteout without a name"),
    ("whiteout of the parent", [Entry("d/.wh...")], "whiteout without a name"),
    ("opaque through a link", [Symlink("l", "/tmp"), Opaque("l")], "through a symbolic link"),
    ("name too long", [File("n" * 256)], "255 bytes"),
    ("path too long", [File("d/" * 2100 + "f")], "the limit is 4095"),
    ("impossible device", [Device("d", 5000, 0)], "impossible device number"),
    ("not a tar", b"\0" * 512 + b"x" * 512, "checksum"),
    ("cut", make_layer([File("a", b"x" * 5000)])[:2000], "cut off"),
]


@pytest.mark.parametrize(("layer", "message"), [h[1:] for h in HOSTILE], ids=[h[0] for h in HOSTILE])
def test_a_hostile_layer_gets_one_sentence_and_leaves_nothing(
    tmp_path: Path, layer: Layer, message: str
) -> None:
    async def check() -> None:
        async with opened(tmp_path) as images:
            with pytest.raises(Invalid, match=message) as caught:
                await load(images, make_docker_archive([[File("good", b"g")], layer]))
            assert "\n" not in str(caught.value) and len(str(caught.value)) < 400
            await images.close()
            assert files_of(tmp_path) == []
            assert images.list_images() == []
        assert not Path("/tmp/evil").exists()

    run(check())


def archives_that_lie() -> list[tuple[str, bytes, str]]:
    good = make_docker_archive([[File("a", b"x" * 100_000)]])
    wrong = make_docker_archive([[File("a")]], diff_ids=["sha256:" + "0" * 64])

    def swap(blobs: dict[str, bytes]) -> None:
        name = next(n for n, data in blobs.items() if data[:1] not in b"{")
        blobs[name] = make_layer([File("other")])

    return [
        ("wrong diff id", wrong, "invalid diffID for layer 0"),
        ("wrong blob", make_oci_layout([[File("a")]], tamper=swap), "another content than its name says"),
        ("cut in a layer", good[:60_000], "cut off"),
        ("cut before the manifest", good[:104_000], "neither manifest.json|cut off"),
        ("no archive", b"hello", "isn't an image archive"),
        ("empty", b"", "isn't an image archive"),
        ("cut gzip", gzip.compress(good)[:-100], "cut off"),
        ("other platform", make_oci_layout([[File("a")]], platforms=["s390x"]), "no image for linux/"),
        ("bad name", make_docker_archive([[File("a")]], names=["Bad Name"]), "invalid reference format"),
        (
            "bomb",
            make_docker_archive([gzip.compress(bytes(300 << 20), 9)], diff_ids=["sha256:0"]),
            "its size",
        ),
    ]


@pytest.mark.parametrize(
    ("archive", "message"), [a[1:] for a in archives_that_lie()], ids=[a[0] for a in archives_that_lie()]
)
def test_an_archive_that_lies_gets_one_sentence_and_leaves_nothing(
    tmp_path: Path, archive: bytes, message: str
) -> None:
    async def check() -> None:
        async with opened(tmp_path) as images:
            with pytest.raises(Invalid, match=message):
                await load(images, archive)
            await images.close()
            assert files_of(tmp_path) == []

    run(check())


def test_an_upload_that_breaks_off_leaves_nothing(tmp_path: Path) -> None:
    async def broken(data: bytes) -> AsyncIterator[bytes]:
        yield data[: len(data) // 2]
        raise ConnectionResetError("the client went away")

    async def check() -> None:
        archive = make_docker_archive([[File("a", os.urandom(500_000))]])
        async with opened(tmp_path) as images:
            with pytest.raises(ConnectionResetError):
                async for _ in images.load(broken(archive)):
                    pass
            await images.close()
            assert files_of(tmp_path) == []

    run(check())


def test_a_cancelled_load_leaves_nothing_and_no_process(tmp_path: Path) -> None:
    async def endless(data: bytes, halfway: asyncio.Event) -> AsyncIterator[bytes]:
        yield data[: len(data) // 2]
        halfway.set()
        await asyncio.Event().wait()

    async def check() -> None:
        archive = make_docker_archive([[File("a", os.urandom(500_000))]])
        async with opened(tmp_path) as images:
            halfway = asyncio.Event()

            async def loading() -> None:
                async for _ in images.load(endless(archive, halfway)):
                    pass

            task = asyncio.ensure_future(loading())
            await halfway.wait()
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            await images.close()
            assert files_of(tmp_path) == []
            assert children() == []

    run(check())


def children() -> list[str]:
    return Path(f"/proc/self/task/{os.getpid()}/children").read_text().split()


def test_a_killed_worker_is_an_error_and_leaves_nothing(tmp_path: Path) -> None:
    async def check() -> None:
        halfway = asyncio.Event()
        archive = make_docker_archive([[File("a", os.urandom(500_000))]])

        async def chunks() -> AsyncIterator[bytes]:
            yield archive[:300_000]
            halfway.set()
            await asyncio.Event().wait()

        async def kill() -> None:
            await halfway.wait()
            (worker,) = children()
            os.kill(int(worker), signal.SIGKILL)

        async with opened(tmp_path) as images:
            killing = asyncio.ensure_future(kill())
            with pytest.raises(HostError, match="ended without an answer"):
                async for _ in images.load(chunks()):
                    pass
            await killing
            await images.close()
            assert files_of(tmp_path) == []

    run(check())


LOADER = """
import asyncio, os, sys
from pathlib import Path
sys.path.insert(0, sys.argv[1])
from cove.image.content import Content
from cove.image.images import Images
from cove.store.sqlite import SqliteStore
root, point = Path(sys.argv[2]), sys.argv[3]

def die(*args, **more):
    os.kill(os.getpid(), 9)

def after(function):
    def then(*args, **more):
        function(*args, **more)
        die()
    return then

async def main():
    store = await SqliteStore.open(root / "state.db")
    images = await Images.open(root / "images", store)
    if point == "place":
        Content.place_layer = after(Content.place_layer)
    elif point == "document":
        Content.write_blob = after(Content.write_blob)
    elif point == "sync":
        Content.sync = after(Content.sync)
    elif point == "record":
        Images._set_names = die
    elif point == "throw":
        Content.throw = die
    async def chunks():
        data = (root / "archive.tar").read_bytes()
        half = len(data) // 2
        yield data[:half]
        if point == "stream":
            die()
        yield data[half:]
    async for _ in images.load(chunks()):
        pass

asyncio.run(main())
"""


@pytest.mark.parametrize("point", ["stream", "place", "document", "sync", "record", "throw"])
def test_a_daemon_killed_while_loading_leaves_all_of_the_image_or_nothing(tmp_path: Path, point: str) -> None:
    archive = make_docker_archive([[File("a", os.urandom(400_000))], [File("b", b"b")]])
    (tmp_path / "archive.tar").write_bytes(archive)
    repository = str(Path(__file__).resolve().parents[2])
    process = subprocess.run([sys.executable, "-c", LOADER, repository, str(tmp_path), point], timeout=60)
    assert process.returncode == -signal.SIGKILL

    async def check() -> None:
        async with opened(tmp_path) as images:
            if point in ("record", "throw"):
                image = images.find_image("app")
                assert all((images.layers_dir / path).is_dir() for path in images.layer_paths(image))
                assert (layer_of(images, "app", 1) / "b").read_bytes() == b"b"
                await images.remove("app", force=False, prune=True, in_use=lambda _: ())
            else:
                assert images.list_images() == []
            await images.close()
            assert files_of(tmp_path) == []
            await load(images, archive)
            assert images.find_image("app").names == ("app:latest",)

    run(check())


@pytest.fixture
def small_disk(tmp_path: Path):
    """A tmpfs of 8 MiB, mounted for the test."""
    libc = ctypes.CDLL(None, use_errno=True)
    disk = tmp_path / "disk"
    disk.mkdir()
    assert libc.mount(b"tmpfs", bytes(disk), b"tmpfs", 0, b"size=8m") == 0, os.strerror(ctypes.get_errno())
    yield disk
    assert libc.umount2(bytes(disk), 2) == 0


@pytest.mark.parametrize("reserve", [0, 1 << 20])
def test_a_full_disk_is_one_sentence_and_leaves_nothing(
    tmp_path: Path, small_disk: Path, reserve: int
) -> None:
    async def check() -> None:
        store = await SqliteStore.open(tmp_path / "state.db")
        images = await Images.open(small_disk / "images", store, limits=Limits(reserve_bytes=reserve))
        try:
            with pytest.raises(HostError, match="no space left"):
                await load(images, make_docker_archive([[File("a", os.urandom(12 << 20))]]))
            await images.close()
            assert files_of(small_disk) == []
            await load(images, make_docker_archive([[File("a", os.urandom(1 << 20))]]))
        finally:
            await images.close()
            await store.close()

    run(check())


def test_no_free_space_at_all_is_said_before_anything_is_read(tmp_path: Path) -> None:
    async def check() -> None:
        async with opened(tmp_path, limits=Limits(reserve_bytes=1 << 60)) as images:
            with pytest.raises(HostError, match="must stay free"):
                await load(images, make_docker_archive([[File("a")]]))

    run(check())


def test_an_import_makes_one_layer_and_applies_the_changes(tmp_path: Path) -> None:
    async def check() -> None:
        tar = make_layer([File("etc/x", b"x" * 100)])
        async with opened(tmp_path) as images:
            changes = ["CMD /bin/x", "ENV A=1", "EXPOSE 80"]
            image = await images.import_image(chunks_of(gzip.compress(tar)), "mine:1", "hello", changes)
            assert image.names == ("mine:1",) and image.comment == "hello"
            assert image.config.command == ("/bin/sh", "-c", "/bin/x")
            assert image.config.env == ("A=1",) and image.config.exposed_ports == ("80/tcp",)
            assert image.diff_ids == (digest_of(tar),) and image.size_bytes == 100
            assert images.history(image)[0].comment == "hello"
            assert tar in await save(images, "mine:1")
            with pytest.raises(Invalid, match="isn't a tar archive"):
                await images.import_image(chunks_of(b"hello"))
            with pytest.raises(Invalid, match="RUN is not a valid change command"):
                await images.import_image(chunks_of(tar), changes=["RUN x"])
            nameless = await images.import_image(chunks_of(tar), message="other")
            assert nameless.names == () and len(images.list_images()) == 2

    run(check())


def test_images_are_found_by_name_digest_id_and_prefix(tmp_path: Path) -> None:
    async def check() -> None:
        async with opened(tmp_path) as images:
            await load(images, make_docker_archive([[File("a")]], names=["app:1", "r.example/x:2"]))
            image = images.find_image("app:1")
            bare = image.id.removeprefix("sha256:")
            manifest = images.manifest_digest(image)
            for text in (
                "docker.io/library/app:1",
                "r.example/x:2",
                image.id,
                bare,
                bare[:6],
                f"app@{manifest}",
            ):
                assert images.find_image(text) is image
            for missing in ("app", "nope:1", "f" * 64, "sha256:" + "0" * 12, f"app@sha256:{'0' * 64}"):
                with pytest.raises(NotFound, match="No such image: "):
                    images.find_image(missing)
            with pytest.raises(Invalid, match="must be lowercase"):
                images.find_image("App")

    run(check())


def test_a_tag_moves_and_the_image_that_lost_it_is_dangling(tmp_path: Path) -> None:
    async def check() -> None:
        async with opened(tmp_path) as images:
            await load(images, make_docker_archive([[File("a")]], names=["app:1"]))
            await load(images, make_docker_archive([[File("b")]], names=["app:2"]))
            old = images.find_image("app:1")
            await images.tag("app:2", "app:1")
            assert images.find_image("app:1").id == images.find_image("app:2").id != old.id
            assert images.find_image(old.id).names == ()
        async with opened(tmp_path) as images:
            assert images.find_image("app:2").names == ("app:1", "app:2")
            removed, _ = await images.prune(lambda image: not image.names, lambda _: ())
            assert any(line.deleted == old.id for line in removed)
            assert len(images.list_images()) == 1

    run(check())


def test_removal_keeps_shared_layers_and_takes_the_rest(tmp_path: Path) -> None:
    async def check() -> None:
        base: list[Entry] = [File("base", b"b")]
        async with opened(tmp_path) as images:
            await load(images, make_docker_archive([base, [File("x")]], names=["x:1"]))
            await load(images, make_docker_archive([base, [File("y")]], names=["y:1"]))
            shared = layer_of(images, "x:1", 0)
            lines = await images.remove("x:1", force=False, prune=True, in_use=lambda _: ())
            assert lines[0].untagged == "x:1" and lines[1].deleted.startswith("sha256:")
            assert (shared / "base").exists()
            assert len(os.listdir(images.layers_dir)) == 3
            await images.remove("y:1", force=False, prune=True, in_use=lambda _: ())
            await images.close()
            assert files_of(tmp_path) == []
            assert await images._store.range("images/") == []

    run(check())


def test_a_forced_removal_hides_the_image_until_its_last_container_is_gone(tmp_path: Path) -> None:
    async def check() -> None:
        stopped = [Use(container_id="c" * 64, running=False)]
        async with opened(tmp_path) as images:
            await load(images, make_docker_archive([[File("a")]], names=["app:1"]))
            image = images.find_image("app:1")
            with pytest.raises(Conflict, match="must force"):
                await images.remove("app:1", force=False, prune=True, in_use=lambda _: stopped)
            await images.remove(image.id, force=True, prune=True, in_use=lambda _: stopped)
            with pytest.raises(NotFound):
                images.find_image(image.id)
        async with opened(tmp_path) as images:
            assert images.list_images() == []
            hidden = images.image_by_id(image.id)
            assert (images.layers_dir / images.layer_paths(hidden)[0] / "a").exists()
            await images.release(lambda _: ())
            await images.close()
            assert files_of(tmp_path) == []

    run(check())


def test_a_load_may_rely_on_a_layer_whose_image_is_removed_meanwhile(tmp_path: Path) -> None:
    async def check() -> None:
        base = os.urandom(200_000)
        oci = make_oci_layout([[File("base", base)], [File("top")]], names=["new:1"])
        async with opened(tmp_path) as images:
            await load(images, make_oci_layout([[File("base", base)]], names=["old:1"]))

            async def chunks() -> AsyncIterator[bytes]:
                yield oci[: len(oci) // 2]
                await images.remove("old:1", force=False, prune=True, in_use=lambda _: ())
                yield oci[len(oci) // 2 :]

            async for _ in images.load(chunks()):
                pass
            await images.close()
            assert (layer_of(images, "new:1", 0) / "base").read_bytes() == base
            await save(images, "new:1")

    run(check())


def test_a_hundred_and_twenty_seven_layers_mount_as_one_overlay(tmp_path: Path) -> None:
    async def check() -> None:
        layers: list[Layer] = [[File(f"f{n}", b"%d" % n), File("last", b"%d" % n)] for n in range(127)]
        async with opened(tmp_path) as images:
            await load(images, make_docker_archive(layers))
            lower = ":".join(reversed(images.layer_paths(images.find_image("app"))))
            assert len(lower) < 2000
            script = (
                f'cd {images.layers_dir} && mkdir {tmp_path}/m && mount -t overlay -o "lowerdir={lower}" o '
                f"{tmp_path}/m && cat {tmp_path}/m/last {tmp_path}/m/f0"
            )
            shown = subprocess.run(["unshare", "-m", "sh", "-ec", script], capture_output=True, check=True)
            assert shown.stdout == b"1260"
            with pytest.raises(Invalid, match="128 layers; the limit is 127"):
                await load(images, make_docker_archive([*layers, []]))

    run(check())


def test_a_damaged_layer_is_seen_when_it_is_saved(tmp_path: Path) -> None:
    async def check() -> None:
        async with opened(tmp_path) as images:
            await load(images, make_docker_archive([[File("a", b"right")]]))
            (layer_of(images, "app") / "a").write_bytes(b"wrong")
            with pytest.raises(HostError, match="the image store is damaged"):
                await save(images, "app")
            with pytest.raises(NotFound):
                images.save(["nope"])

    run(check())


def test_a_deep_tree_is_removed_with_its_image(tmp_path: Path) -> None:
    async def check() -> None:
        async with opened(tmp_path) as images:
            await load(images, make_docker_archive([[File("d/" * 1900 + "f", b"x")]]))
            await images.remove("app", force=False, prune=True, in_use=lambda _: ())
            await images.close()
            assert files_of(tmp_path) == []

    run(check())


def test_a_python_tar_of_gnu_form_loads_too(tmp_path: Path) -> None:
    async def check() -> None:
        layer = make_layer([File("d/" * 80 + "long", b"x", uid=3_000_000)], form=tarfile.GNU_FORMAT)
        async with opened(tmp_path) as images:
            await load(images, make_docker_archive([layer]))
            assert (layer_of(images, "app") / ("d/" * 80 + "long")).stat().st_uid == 3_000_000

    run(check())
