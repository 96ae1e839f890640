"""A disk that is really full: the store says so, keeps what it had, and goes on when there is room again."""

from __future__ import annotations

import asyncio
import subprocess
from pathlib import Path

import pytest

from cove.model.errors import HostError
from cove.storage.trash import Trash
from cove.storage.volumes import Volumes
from cove.store.interface import Put
from cove.store.sqlite import SqliteStore


def test_a_full_disk_loses_nothing(tmp_path: Path) -> None:
    root = tmp_path / "small"
    root.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=2m,nr_inodes=200", "tmpfs", root], check=True)

    async def body() -> None:
        store = await SqliteStore.open(root / "state.db")
        trash = await Trash.open(root / "trash")
        try:
            volumes = await Volumes.open(root / "volumes", store, trash)
            await volumes.create("before")
            with pytest.raises(HostError, match="disk is full; nothing was changed"):
                for number in range(1_000):
                    await store.txn([], [Put(f"a/{number:04}", b"x" * 20_000)])
            (root / "filler").write_bytes(b"")
            kept = await store.range("a/")
            assert len(kept) >= 1 and all(len(pair.value) == 20_000 for pair in kept)
            revision = store.revision
            with pytest.raises(HostError):
                await store.txn([], [Put("big", b"x" * 1_000_000)])
            assert store.revision == revision and await store.get("big") is None
        finally:
            await trash.close()
            await store.close()
        subprocess.run(["mount", "-o", "remount,size=8m", root], check=True)
        store = await SqliteStore.open(root / "state.db")
        trash = await Trash.open(root / "trash")
        try:
            assert store.revision == revision and await store.range("a/") == kept
            volumes = await Volumes.open(root / "volumes", store, trash)
            assert [record.name for record in volumes.list()] == ["before"]
            await store.txn([], [Put("big", b"x" * 1_000_000)])
        finally:
            await trash.close()
            await store.close()

    async def bounded() -> None:
        async with asyncio.timeout(100):
            await body()

    try:
        asyncio.run(bounded())
    finally:
        subprocess.run(["umount", root], check=True)
