"""Volumes: names, options, creation, removal, and what a crash in the middle leaves."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Coroutine
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from cove.model.errors import Conflict, CoveError, HostError, Invalid, NotFound
from cove.storage.trash import Trash
from cove.storage.volume_options import (
    Filesystem,
    VolumeSource,
    check_name,
    hide_secrets,
    remote_host,
    shown_options,
    volume_source,
)
from cove.storage.volumes import ANONYMOUS_LABEL, Volumes
from cove.store.interface import TxnResult
from cove.store.sqlite import SqliteStore


class Rooms:
    def __init__(self, store: SqliteStore, trash: Trash, volumes: Volumes) -> None:
        self.store, self.trash, self.volumes = store, trash, volumes


@asynccontextmanager
async def opened(root: Path) -> AsyncIterator[Rooms]:
    store = await SqliteStore.open(root / "state.db")
    try:
        trash = await Trash.open(root / "trash")
        try:
            yield Rooms(store, trash, await Volumes.open(root / "volumes", store, trash))
            await trash.wait_empty()
        finally:
            await trash.close()
    finally:
        await store.close()


def run(body: Coroutine[Any, Any, None]) -> None:
    async def bounded() -> None:
        async with asyncio.timeout(60):
            await body

    asyncio.run(bounded())


def unused(name: str) -> list[str]:
    return []


def test_a_volume_is_a_directory_with_a_record_that_survives(tmp_path: Path) -> None:
    async def body() -> None:
        async with opened(tmp_path) as rooms:
            record = await rooms.volumes.create("data", labels={"a": "b"})
            assert record.mountpoint == str(rooms.volumes.mountpoint("data"))
            assert record.mountpoint == str(tmp_path / "volumes/data/_data")
            assert os.stat(record.mountpoint).st_mode & 0o7777 == 0o755
            assert (record.driver, record.labels, record.anonymous) == ("local", {"a": "b"}, False)
        async with opened(tmp_path) as rooms:
            assert rooms.volumes.list() == [record]
            assert rooms.volumes.find("data") == rooms.volumes.get("data") == record
            assert rooms.volumes.source("data") == VolumeSource(kind="bind", source=record.mountpoint)

    run(body())


def test_creating_a_volume_again_returns_it(tmp_path: Path) -> None:
    async def body() -> None:
        async with opened(tmp_path) as rooms:
            options = {"type": "tmpfs", "device": "tmpfs"}
            first = await rooms.volumes.create("data", options=options)
            again = await rooms.volumes.create("data", "local", options, {"other": "label"})
            assert again == first == await rooms.volumes.create("data")
            with pytest.raises(Conflict, match="exists with other options"):
                await rooms.volumes.create("data", options={**options, "o": "size=1m"})

    run(body())


def test_many_creators_of_one_name_get_one_volume(tmp_path: Path) -> None:
    async def body() -> None:
        async with opened(tmp_path) as rooms:
            records = await asyncio.gather(*(rooms.volumes.create("data") for _ in range(20)))
            assert len(set(map(id, records))) == 1
            assert len(rooms.volumes.list()) == 1

    run(body())


def test_a_volume_without_a_name_is_anonymous(tmp_path: Path) -> None:
    async def body() -> None:
        async with opened(tmp_path) as rooms:
            one, two = await rooms.volumes.create(), await rooms.volumes.create()
            assert one.name != two.name and len(one.name) == 64
            assert one.anonymous and ANONYMOUS_LABEL in one.labels

    run(body())


def test_a_removed_volume_is_gone_with_its_data(tmp_path: Path) -> None:
    async def body() -> None:
        async with opened(tmp_path) as rooms:
            record = await rooms.volumes.create("data")
            (Path(record.mountpoint) / "file").write_text("x")
            await rooms.volumes.remove("data", in_use=unused)
            assert rooms.volumes.find("data") is None
            assert not (tmp_path / "volumes/data").exists()
            await rooms.trash.wait_empty()
            assert os.listdir(tmp_path / "trash") == []
            with pytest.raises(NotFound, match="get data: no such volume"):
                await rooms.volumes.remove("data", in_use=unused)
            await rooms.volumes.remove("data", force=True, in_use=unused)
            assert [pair.key for pair in await rooms.store.range("volumes")] == []

    run(body())


def test_a_volume_in_use_stays_also_with_force(tmp_path: Path) -> None:
    async def body() -> None:
        async with opened(tmp_path) as rooms:
            await rooms.volumes.create("data")
            for force in (False, True):
                with pytest.raises(Conflict, match=r"remove data: volume is in use - \[c1, c2\]"):
                    await rooms.volumes.remove("data", force=force, in_use=lambda name: ["c1", "c2"])
            assert rooms.volumes.find("data") is not None

    run(body())


def test_creating_while_removing_ends_with_a_whole_volume(tmp_path: Path) -> None:
    async def body() -> None:
        async with opened(tmp_path) as rooms:
            await rooms.volumes.create("data")
            for _ in range(20):
                await asyncio.gather(
                    rooms.volumes.remove("data", in_use=unused), rooms.volumes.create("data")
                )
                assert Path(rooms.volumes.get("data").mountpoint).is_dir()

    run(body())


def test_prune_removes_what_nobody_uses(tmp_path: Path) -> None:
    async def body() -> None:
        async with opened(tmp_path) as rooms:
            volumes = rooms.volumes
            anonymous, used = await volumes.create(), await volumes.create()
            await volumes.create("named", labels={"keep": "yes"})
            await volumes.create("other")
            (Path(anonymous.mountpoint) / "file").write_bytes(b"x" * 1000)

            def in_use(name: str) -> list[str]:
                return ["c1"] if name == used.name else []

            pruned = await volumes.prune(in_use=in_use)
            assert (pruned.names, pruned.reclaimed_bytes) == ((anonymous.name,), 1000)
            pruned = await volumes.prune(
                in_use=in_use, named_too=True, keep=lambda each: "keep" in each.labels
            )
            assert pruned.names == ("other",)
            assert {record.name for record in volumes.list()} == {used.name, "named"}

    run(body())


# --- refusals -----------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["aa", "a.b", "0_-", "A" * 255])
def test_a_name_that_docker_takes_is_taken(name: str) -> None:
    check_name(name)


@pytest.mark.parametrize("name", ["a", ".a", "-a", "a/b", "../x", "a b", "a\n", "é1", "", "a" * 256, "/abs"])
def test_another_name_is_refused(name: str) -> None:
    with pytest.raises(Invalid, match="volume name"):
        check_name(name)


@pytest.mark.parametrize(
    ("driver", "options", "error", "message"),
    [
        ("ceph", {}, NotFound, 'plugin "ceph" not found'),
        ("", {"colour": "red"}, Invalid, 'invalid option: "colour"'),
        ("", {"type": "tmpfs"}, Invalid, 'missing required option: "device"'),
        ("", {"device": "/srv"}, Invalid, 'missing required option: "type"'),
        ("", {"o": "bind"}, Invalid, 'missing required option: "device"'),
        ("", {"size": "1g", "type": "tmpfs", "device": "tmpfs"}, Invalid, "say o=size="),
        ("", {"size": "1m"}, Invalid, "too small for an image"),
        ("", {"size": "1x"}, Invalid, "invalid size: '1x'"),
        ("", {"type": "nfs", "device": "/x"}, Invalid, "must be a server's export"),
        ("", {"type": "nfs", "device": ":/x"}, Invalid, "o=addr="),
        ("", {"type": "cifs", "device": "share"}, Invalid, "must be a share"),
        ("", {"type": "cifs", "device": "//a/b", "o": "credentials=/etc/x"}, Invalid, "username="),
        ("", {"type": "ext4", "device": "disk.img", "o": "loop"}, Invalid, "block device or an image file"),
        (
            "",
            {"type": "ext4", "device": "/disk.img", "o": "a=" + "x" * 300},
            Invalid,
            "longer than 255 bytes",
        ),
        ("", {"type": "../x", "device": "/srv"}, Invalid, "is no file system"),
        ("", {"type": "none", "device": "/srv"}, Invalid, "o=bind"),
        ("", {"type": "none", "device": "srv", "o": "bind"}, Invalid, "absolute path"),
        ("", {"type": "none", "device": "/srv", "o": "bind,frob"}, Invalid, '"frob" in option o'),
        ("", {"type": "tmpfs", "device": "tmpfs", "o": "size"}, Invalid, '"size" in option o'),
        ("", {"type": "tmpfs", "device": "tmpfs", "o": "bind"}, Invalid, "o=bind goes with type=none"),
    ],
)
def test_a_wrong_option_is_refused_and_leaves_nothing(
    tmp_path: Path, driver: str, options: dict[str, str], error: type[CoveError], message: str
) -> None:
    async def body() -> None:
        async with opened(tmp_path) as rooms:
            with pytest.raises(error, match=f"create data: .*{message}"):
                await rooms.volumes.create("data", driver, options)
            assert rooms.volumes.list() == []
            assert os.listdir(tmp_path / "volumes") == []

    run(body())


def test_options_become_what_the_container_mounts() -> None:
    def source(o: str, kind: str = "none", device: str = "/srv") -> VolumeSource:
        return volume_source("data", {"type": kind, "device": device, "o": o}, "/volumes/data/_data")

    assert source("bind") == VolumeSource(kind="bind", source="/srv", recursive=False)
    assert source("rbind,ro,rslave") == VolumeSource(
        kind="bind", source="/srv", readonly=True, recursive=True, propagation="rslave"
    )
    place = "/volumes/data/_data"
    assert source("size=64m,mode=0700,ro,nodev", "tmpfs", "anything") == VolumeSource(
        source=place,
        readonly=True,
        filesystem=Filesystem(
            type="tmpfs",
            source="tmpfs",
            attributes=0x1 | 0x4,
            parameters=(("size", "64m"), ("mode", "0700"), ("ro", None)),
        ),
    )
    assert source(
        "loop,noatime,discard,_netdev,x-systemd.automount", "ext4", "/disk.img"
    ).filesystem == Filesystem(
        type="ext4", source="/disk.img", device=True, attributes=0x10, parameters=(("discard", None),)
    )
    nfs = source("addr=192.0.2.1,vers=4.2,soft", "nfs", ":/export").filesystem
    assert nfs == Filesystem(
        type="nfs",
        source=":/export",
        remote=True,
        parameters=(("addr", "192.0.2.1"), ("vers", "4.2"), ("soft", None)),
    )


@pytest.mark.parametrize(
    ("kind", "device", "o", "host"),
    [
        ("nfs", "nas.example:/export", "", "nas.example"),
        ("nfs4", "[2001:db8::1]:/export", "", "2001:db8::1"),
        ("nfs", ":/export", "addr=nas", "nas"),
        ("cifs", "//files/share/below", "username=me", "files"),
        ("cifs", "//files/share", "addr=192.0.2.7", "192.0.2.7"),
    ],
)
def test_the_server_of_a_volume(kind: str, device: str, o: str, host: str) -> None:
    filesystem = volume_source("data", {"type": kind, "device": device, "o": o}, "/d").filesystem
    assert filesystem is not None and remote_host(filesystem) == host


def test_a_password_is_hidden_and_nothing_else() -> None:
    told = hide_secrets("mount //a/b with username=me,password=se=cret,PASS=x,ip=1: failed")
    assert told == "mount //a/b with username=me,password=****,PASS=****,ip=1: failed"
    assert shown_options({"o": "pass=1,uid=0", "type": "cifs"}) == {"o": "pass=****,uid=0", "type": "cifs"}


# --- failures and crashes -----------------------------------------------------------------


class Killed(BaseException):
    """Stands for kill -9: nothing of the volumes' code may catch it and go on."""


class DyingStore(SqliteStore):
    """A store whose process is killed before or after the n-th transaction from now."""

    dies_in = 0
    after = False
    error: BaseException = Killed()

    async def txn(self, *args: Any, **kwargs: Any) -> TxnResult:
        self.dies_in -= 1
        if self.dies_in == 0 and not self.after:
            raise self.error
        result = await super().txn(*args, **kwargs)
        if self.dies_in == 0:
            raise self.error
        return result


def test_a_disk_that_is_full_leaves_no_half_volume(tmp_path: Path) -> None:
    async def body() -> None:
        async with opened(tmp_path) as rooms:
            await rooms.volumes.create("old")
            rooms.store.__class__ = DyingStore
            assert isinstance(rooms.store, DyingStore)
            rooms.store.error, rooms.store.dies_in = HostError("the disk is full"), 1
            with pytest.raises(HostError):
                await rooms.volumes.create("data")
            assert not (tmp_path / "volumes/data").exists()
            rooms.store.dies_in = 1
            with pytest.raises(HostError):
                await rooms.volumes.remove("old", in_use=unused)
            assert Path(rooms.volumes.get("old").mountpoint).is_dir()

    run(body())


@pytest.mark.parametrize(("transaction", "after"), [(1, False), (1, True), (2, False), (2, True)])
def test_a_removal_that_a_crash_cut_short_is_whole_or_undone(
    tmp_path: Path, transaction: int, after: bool
) -> None:
    async def body() -> None:
        async with opened(tmp_path) as rooms:
            record = await rooms.volumes.create("data", labels={"a": "b"})
            (Path(record.mountpoint) / "file").write_text("x")
            rooms.store.__class__ = DyingStore
            assert isinstance(rooms.store, DyingStore)
            rooms.store.dies_in, rooms.store.after = transaction, after
            with pytest.raises(Killed):
                await rooms.volumes.remove("data", in_use=unused)
        async with opened(tmp_path) as rooms:
            if (transaction, after) == (1, False):
                assert rooms.volumes.list() == [record]
                assert (Path(record.mountpoint) / "file").read_text() == "x"
            else:
                assert rooms.volumes.list() == []
                assert os.listdir(tmp_path / "volumes") == []
            assert await rooms.store.range("volumes-removed/") == []

    run(body())


@pytest.mark.parametrize("directories", [["data"], ["data/_data"]])
def test_a_creation_that_a_crash_cut_short_leaves_nothing(tmp_path: Path, directories: list[str]) -> None:
    for directory in directories:
        (tmp_path / "volumes" / directory).mkdir(parents=True)

    async def body() -> None:
        async with opened(tmp_path) as rooms:
            assert rooms.volumes.list() == []
            assert os.listdir(tmp_path / "volumes") == []

    run(body())


def test_data_without_a_record_is_never_deleted(tmp_path: Path) -> None:
    for name in ("data/_data/precious", "lost+found/x", "other/file"):
        path = tmp_path / "volumes" / name
        path.parent.mkdir(parents=True)
        path.write_text("x")

    async def body() -> None:
        async with opened(tmp_path) as rooms:
            assert [record.name for record in rooms.volumes.list()] == ["data"]
            assert sorted(os.listdir(tmp_path / "volumes")) == ["data", "lost+found", "other"]
            assert (rooms.volumes.mountpoint("data") / "precious").read_text() == "x"

    run(body())


def test_a_volume_whose_directory_is_gone_gets_an_empty_one(tmp_path: Path) -> None:
    async def body() -> None:
        async with opened(tmp_path) as rooms:
            record = await rooms.volumes.create("data")
        os.rmdir(record.mountpoint)
        async with opened(tmp_path) as rooms:
            assert os.listdir(rooms.volumes.mountpoint("data")) == []

    run(body())
