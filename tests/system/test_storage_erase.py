"""Deleting on a real kernel: mounts in the way, files that are protected, sockets and devices."""

from __future__ import annotations

import asyncio
import logging
import os
import stat
import subprocess
from collections.abc import Coroutine
from pathlib import Path
from typing import Any

import pytest

from cove.storage.trash import Trash
from cove.storage.usage import measure_tree


def run(body: Coroutine[Any, Any, None]) -> None:
    async def bounded() -> None:
        async with asyncio.timeout(100):
            await body

    asyncio.run(bounded())


async def discard(tmp_path: Path, tree: Path) -> None:
    trash = await Trash.open(tmp_path / "trash")
    try:
        trash.discard(tree)
        await trash.wait_empty()
    finally:
        await trash.close()


@pytest.mark.parametrize("kind", ["tmpfs", "bind"])
def test_a_mount_inside_keeps_its_content_and_goes_with_the_next_run(
    tmp_path: Path, kind: str, caplog: pytest.LogCaptureFixture
) -> None:
    tree, outside = tmp_path / "tree", tmp_path / "outside"
    inner = tree / "a/mounted"
    inner.mkdir(parents=True)
    (tree / "a/file").touch()
    outside.mkdir()
    if kind == "tmpfs":
        subprocess.run(["mount", "-t", "tmpfs", "tmpfs", inner], check=True)
    else:  # the same filesystem: a comparison of device numbers wouldn't see it
        subprocess.run(["mount", "--bind", outside, inner], check=True)
    (inner / "precious").write_text("x")

    async def body() -> None:
        with caplog.at_level(logging.WARNING):
            await discard(tmp_path, tree)
        (left,) = (tmp_path / "trash").iterdir()
        mounted = left / "a/mounted"
        try:
            assert (mounted / "precious").read_text() == "x"
            assert not (left / "a/file").exists()
            assert "mounted can't be deleted" in caplog.text
        finally:
            subprocess.run(["umount", mounted], check=True)
        trash = await Trash.open(tmp_path / "trash")
        await trash.wait_empty()
        await trash.close()
        assert os.listdir(tmp_path / "trash") == []
        assert kind == "tmpfs" or (outside / "precious").exists()

    run(body())


def test_protected_files_are_deleted(tmp_path: Path) -> None:
    tree = tmp_path / "tree"
    (tree / "directory").mkdir(parents=True)
    for path in (tree / "immutable", tree / "append", tree / "directory/inside"):
        path.write_text("x")
    flags = [("+i", tree / "immutable"), ("+a", tree / "append"), ("+i", tree / "directory")]
    try:
        for flag, path in flags:
            if subprocess.run(["chattr", flag, path], capture_output=True).returncode:
                pytest.skip("this filesystem or process can't protect files (chattr)")
        run(discard(tmp_path, tree))
        assert os.listdir(tmp_path / "trash") == []
    finally:
        for path in (*tmp_path.glob("trash/*/*"), *tree.glob("*")):
            subprocess.run(["chattr", "-ia", path], capture_output=True)


def test_devices_are_deleted_and_not_opened(tmp_path: Path) -> None:
    tree = tmp_path / "tree"
    tree.mkdir()
    os.mknod(tree / "null", stat.S_IFCHR | 0o666, os.makedev(1, 3))
    os.mknod(tree / "whiteout", stat.S_IFCHR, os.makedev(0, 0))
    run(discard(tmp_path, tree))
    assert os.listdir(tmp_path / "trash") == []


def test_usage_leaves_mounts_out(tmp_path: Path) -> None:
    inner = tmp_path / "inner"
    inner.mkdir()
    (tmp_path / "file").write_bytes(b"x" * 10)
    subprocess.run(["mount", "-t", "tmpfs", "tmpfs", inner], check=True)
    try:
        (inner / "file").write_bytes(b"x" * 1000)

        async def body() -> None:
            assert measure_tree(tmp_path).size_bytes == 10

        run(body())
    finally:
        subprocess.run(["umount", inner], check=True)
