"""The trash, disk usage and writable layers: what is deleted, what never is, and how it is counted."""

from __future__ import annotations

import asyncio
import os
import resource
import stat
from collections.abc import AsyncIterator, Coroutine
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from cove.model.errors import HostError
from cove.storage.layers import prepare_writable, writable_layer
from cove.storage.trash import Trash
from cove.storage.usage import measure_tree


@asynccontextmanager
async def opened(root: Path) -> AsyncIterator[Trash]:
    trash = await Trash.open(root / "trash")
    try:
        yield trash
    finally:
        await trash.close()


def run(body: Coroutine[Any, Any, None]) -> None:
    async def bounded() -> None:
        async with asyncio.timeout(100):
            await body

    asyncio.run(bounded())


def test_a_discarded_tree_is_gone_at_once_and_deleted_behind(tmp_path: Path) -> None:
    tree = tmp_path / "tree"
    (tree / "a/b/c").mkdir(parents=True)
    (tree / "a/file").write_text("x")
    (tree / "a/b/link").symlink_to("/etc/passwd")
    os.mkfifo(tree / "a/fifo")
    (tree / "closed").mkdir(mode=0)

    async def body() -> None:
        async with opened(tmp_path) as trash:
            trash.discard(tree)
            assert not tree.exists()
            await trash.wait_empty()
            assert os.listdir(tmp_path / "trash") == []

    run(body())


def test_files_symlinks_and_missing_paths_can_be_discarded(tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "precious").write_text("x")
    (tmp_path / "link").symlink_to(outside)
    (tmp_path / "file").write_text("x")

    async def body() -> None:
        async with opened(tmp_path) as trash:
            for name in ("link", "file", "missing"):
                trash.discard(tmp_path / name)
            await trash.wait_empty()
            assert os.listdir(tmp_path / "trash") == []
            assert (outside / "precious").exists()

    run(body())


def test_symlinks_in_a_tree_are_not_followed(tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    (outside / "deep").mkdir(parents=True)
    (outside / "deep/precious").write_text("x")
    tree = tmp_path / "tree"
    tree.mkdir()
    (tree / "absolute").symlink_to(outside)
    (tree / "relative").symlink_to("../outside/deep")

    async def body() -> None:
        async with opened(tmp_path) as trash:
            trash.discard(tree)
            await trash.wait_empty()
            assert os.listdir(tmp_path / "trash") == []
            assert (outside / "deep/precious").exists()

    run(body())


def test_a_tree_deeper_than_paths_and_descriptors_allow_is_deleted(tmp_path: Path) -> None:
    tree = tmp_path / "tree"
    tree.mkdir()
    here = os.open(tree, os.O_RDONLY | os.O_DIRECTORY)
    for _ in range(1_000):  # a path of 10,000 bytes
        os.mkdir("directory", dir_fd=here)
        below = os.open("directory", os.O_RDONLY | os.O_DIRECTORY, dir_fd=here)
        os.close(here)
        here = below
    os.close(here)
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)

    async def body() -> None:
        async with opened(tmp_path) as trash:
            resource.setrlimit(resource.RLIMIT_NOFILE, (256, hard))
            try:
                trash.discard(tree)
                await trash.wait_empty()
            finally:
                resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
            assert os.listdir(tmp_path / "trash") == []

    run(body())


def test_a_directory_of_many_entries_is_deleted(tmp_path: Path) -> None:
    tree = tmp_path / "tree"
    tree.mkdir()
    for number in range(2_000):
        (tree / f"{number:050}").touch()

    async def body() -> None:
        async with opened(tmp_path) as trash:
            trash.discard(tree)
            await trash.wait_empty()
            assert os.listdir(tmp_path / "trash") == []

    run(body())


def test_what_an_earlier_run_left_is_deleted(tmp_path: Path) -> None:
    (tmp_path / "trash/old/below").mkdir(parents=True)
    (tmp_path / "trash/file").touch()

    async def body() -> None:
        async with opened(tmp_path) as trash:
            await trash.wait_empty()
            assert os.listdir(tmp_path / "trash") == []

    run(body())


def test_closing_stops_in_the_middle_and_the_next_run_goes_on(tmp_path: Path) -> None:
    tree = tmp_path / "tree"
    for number in range(30):
        (tree / str(number)).mkdir(parents=True)
        for other in range(50):
            (tree / str(number) / str(other)).touch()

    async def body() -> None:
        trash = await Trash.open(tmp_path / "trash")
        trash.discard(tree)
        await trash.close()
        await trash.close()
        assert os.listdir(tmp_path / "trash") != []  # 1,500 entries take longer than that
        async with opened(tmp_path) as again:
            await again.wait_empty()
            assert os.listdir(tmp_path / "trash") == []

    run(body())


def test_the_loop_goes_on_while_a_tree_is_deleted(tmp_path: Path) -> None:
    tree = tmp_path / "tree"
    for number in range(20):
        (tree / str(number)).mkdir(parents=True)
        for other in range(20):
            (tree / str(number) / str(other)).touch()

    async def body() -> None:
        async with opened(tmp_path) as trash:
            trash.discard(tree)
            turns = 0
            waiter = asyncio.ensure_future(trash.wait_empty())
            while not waiter.done():
                turns += 1
                await asyncio.sleep(0)
            assert turns > 10

    run(body())


def test_another_filesystem_is_told(tmp_path: Path) -> None:
    if os.stat("/dev/shm").st_dev == os.stat(tmp_path).st_dev:
        pytest.skip("/dev/shm is no filesystem of its own here")
    other = Path("/dev/shm") / f"cove-{os.getpid()}-{os.urandom(4).hex()}"
    other.mkdir()

    async def body() -> None:
        async with opened(tmp_path) as trash:
            with pytest.raises(HostError, match=r"can't be moved into .*cross-device"):
                trash.discard(other)

    try:
        run(body())
    finally:
        other.rmdir()


# --- usage and layers ---------------------------------------------------------------------


def test_usage_counts_contents_once(tmp_path: Path) -> None:
    (tmp_path / "a/b").mkdir(parents=True)
    (tmp_path / "a/file").write_bytes(b"x" * 1000)
    os.link(tmp_path / "a/file", tmp_path / "a/b/same")
    (tmp_path / "a/link").symlink_to("/etc")

    async def body() -> None:
        usage = measure_tree(tmp_path)
        assert (usage.size_bytes, usage.entries) == (1000 + len("/etc"), 5)
        assert measure_tree(tmp_path / "missing").size_bytes == 0
        assert measure_tree(tmp_path / "a/link").size_bytes == 0

    run(body())


def test_a_writable_layer_has_the_modes_that_overlayfs_shows(tmp_path: Path) -> None:
    before = os.umask(0o077)
    try:
        layer = prepare_writable(tmp_path, root_mode=0o1755)
    finally:
        os.umask(before)
    assert stat.S_IMODE(layer.upper.stat().st_mode) == 0o1755
    assert stat.S_IMODE(layer.work.stat().st_mode) == 0o700
    (layer.upper / "file").touch()
    assert prepare_writable(tmp_path) == layer == writable_layer(tmp_path)
    assert (layer.upper / "file").exists()


def test_a_layer_that_cannot_be_made_is_told(tmp_path: Path) -> None:
    with pytest.raises(HostError, match="can't be made: No such file or directory"):
        prepare_writable(tmp_path / "missing")
