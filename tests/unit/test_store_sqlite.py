"""SQLite behind the store's contract, and what it promises beyond that."""

from __future__ import annotations

import asyncio
import os
import signal
import sqlite3
import subprocess
import sys
import tempfile
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings
from hypothesis.stateful import run_state_machine_as_test

from cove.model.errors import Conflict, HostError, Unavailable
from cove.store import sqlite
from cove.store.interface import Compacted, Delete, Put, Store, absent
from cove.store.sqlite import SqliteStore, prefix_end
from tests.unit.store_contract import Advance, OpenStore, StoreContract, put, state_machine, take


class FakeClock:
    """A clock that stands still until it is moved."""

    def __init__(self) -> None:
        self._now = 1_000.0
        self._moved = asyncio.Condition()

    def now(self) -> float:
        return self._now

    async def wait(self, deadline: float | None, wake: asyncio.Event) -> None:
        async def passed() -> None:
            async with self._moved:
                await self._moved.wait_for(lambda: deadline is not None and self._now >= deadline)

        tasks = [asyncio.ensure_future(passed()), asyncio.ensure_future(wake.wait())]
        try:
            await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def advance(self, seconds: float) -> None:
        async with self._moved:
            self._now += seconds
            self._moved.notify_all()


@asynccontextmanager
async def opened(directory: Path, history: int = 4096) -> AsyncIterator[tuple[Store, Advance]]:
    clock = FakeClock()
    store = await SqliteStore.open(directory / "state.db", clock=clock, history=history)
    try:
        yield store, clock.advance
    finally:
        await store.close()


@pytest.fixture
def open_store(tmp_path: Path) -> OpenStore:
    return lambda: opened(tmp_path)


class TestSqliteStore(StoreContract):
    """Everything the contract asks for."""


def run(body: Callable[[], Awaitable[None]]) -> None:
    async def bounded() -> None:
        async with asyncio.timeout(60):
            await body()

    asyncio.run(bounded())


def test_it_behaves_as_the_model_does() -> None:
    @asynccontextmanager
    async def fresh() -> AsyncIterator[tuple[Store, Advance]]:
        with tempfile.TemporaryDirectory() as directory:
            async with opened(Path(directory)) as pair:
                yield pair

    run_state_machine_as_test(
        state_machine(fresh),
        settings=settings(
            max_examples=25,
            stateful_step_count=25,
            deadline=None,
            database=None,
            suppress_health_check=list(HealthCheck),
        ),
    )


@pytest.mark.parametrize(
    ("prefix", "end"),
    [("a", "b"), ("a/", "a0"), ("", None), ("\U0010ffff", None), ("a\U0010ffff", "b"), ("\ud7ff", "\ue000")],
)
def test_a_prefix_ends_where_the_next_one_begins(prefix: str, end: str | None) -> None:
    assert prefix_end(prefix) == end


def test_keys_and_revision_are_there_after_a_restart(tmp_path: Path) -> None:
    async def body() -> None:
        async with opened(tmp_path) as (store, _):
            await put(store, "a", b"1")
            await store.txn([], [Put("b", b"2")])
            await store.txn([], [Delete("b")])  # the newest revision belongs to no key that is left
            before, pairs = store.revision, await store.range("")
        async with opened(tmp_path) as (store, _):
            assert (store.revision, await store.range("")) == (before, pairs)
            with pytest.raises(Compacted):
                await store.watch("", before).__anext__()
            watch = store.watch("", before + 1)
            await put(store, "c", b"3")
            assert [change.key for change in await take(watch, 1)] == ["c"]

    run(body)


def test_a_lease_lives_its_whole_time_again_after_a_restart(tmp_path: Path) -> None:
    async def body() -> None:
        async with opened(tmp_path) as (store, advance):
            lease = await store.lease(10)
            await put(store, "a", b"1", lease.id)
            await advance(9)
        async with opened(tmp_path) as (store, advance):
            watch = store.watch("")
            await advance(9)
            assert await store.get("a") is not None
            await advance(2)
            assert [change.key for change in await take(watch, 1)] == ["a"]

    run(body)


def test_a_watch_that_fell_out_of_the_history_says_so(tmp_path: Path) -> None:
    async def body() -> None:
        async with opened(tmp_path, history=10) as (store, _):
            slow, other = store.watch("a/"), store.watch("none/")
            for number in range(40):
                await put(store, f"a/{number}")
            with pytest.raises(Compacted, match="list the keys"):
                await slow.__anext__()
            with pytest.raises(StopAsyncIteration):
                await slow.__anext__()
            with pytest.raises(Compacted):
                await store.range("", revision=2)
            await put(store, "none/1")  # nothing that this one wanted was dropped
            assert [change.key for change in await take(other, 1)] == ["none/1"]

    run(body)


def test_a_waiting_watch_is_never_compacted_by_others_changes(tmp_path: Path) -> None:
    async def body() -> None:
        async with opened(tmp_path, history=10) as (store, _):
            watch = store.watch("mine/")
            reader = asyncio.ensure_future(watch.__anext__())
            await asyncio.sleep(0)
            for number in range(100):
                await put(store, f"a/{number}")
            await put(store, "mine/1")
            assert (await reader).key == "mine/1"

    run(body)


def test_the_history_is_bounded_in_bytes(tmp_path: Path) -> None:
    async def body() -> None:
        async with opened(tmp_path) as (store, _):
            watch = store.watch("a")
            for _ in range(12):
                await put(store, "a", b"x" * 1_000_000)
            with pytest.raises(Compacted):
                await watch.__anext__()

    run(body)


def test_a_second_daemon_is_refused(tmp_path: Path) -> None:
    async def body() -> None:
        async with opened(tmp_path):
            with pytest.raises(Conflict, match="in use by another Cove daemon"):
                await SqliteStore.open(tmp_path / "state.db")
        async with opened(tmp_path):
            pass  # the lock went with the first one

    run(body)


def test_a_missing_directory_is_told(tmp_path: Path) -> None:
    async def body() -> None:
        with pytest.raises(HostError, match="No such file or directory"):
            await SqliteStore.open(tmp_path / "missing" / "state.db")

    run(body)


def test_the_database_of_another_program_is_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "state.db"
    other = sqlite3.connect(path)
    other.execute("CREATE TABLE bookmarks (url TEXT)")
    other.commit()
    other.close()
    before = path.read_bytes()

    async def body() -> None:
        with pytest.raises(HostError, match="another program"):
            await SqliteStore.open(path)

    run(body)
    assert path.read_bytes() == before


def test_a_file_that_is_no_database_is_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "state.db"
    path.write_bytes(b"not a database, but precious " * 100)
    before = path.read_bytes()

    async def body() -> None:
        with pytest.raises(HostError, match="damaged"):
            await SqliteStore.open(path)

    run(body)
    assert path.read_bytes() == before


def test_a_damaged_database_is_told(tmp_path: Path) -> None:
    path = tmp_path / "state.db"

    async def body() -> None:
        async with opened(tmp_path) as (store, _):
            for number in range(200):
                await put(store, f"a/{number}", b"x" * 500)
        content = bytearray(path.read_bytes())
        content[8192:-4096] = b"\xff" * (len(content) - 8192 - 4096)
        path.write_bytes(content)
        with pytest.raises(HostError, match="damaged"):
            await SqliteStore.open(path)

    run(body)


def test_the_database_of_a_newer_cove_is_refused(tmp_path: Path) -> None:
    async def body() -> None:
        async with opened(tmp_path):
            pass
        db = sqlite3.connect(tmp_path / "state.db")
        db.execute(f"PRAGMA user_version = {sqlite.SCHEMA_VERSION + 1}")
        db.close()
        with pytest.raises(Unavailable, match="newer Cove"):
            await SqliteStore.open(tmp_path / "state.db")

    run(body)


def test_a_full_disk_is_told_and_changes_nothing(tmp_path: Path) -> None:
    async def body() -> None:
        async with opened(tmp_path) as (store, _):
            assert isinstance(store, SqliteStore)
            await put(store, "a", b"1")
            (pages,) = store._db.execute("PRAGMA page_count").fetchone()
            store._db.execute(f"PRAGMA max_page_count = {pages}").fetchall()
            watch, before = store.watch(""), store.revision
            with pytest.raises(HostError, match="disk is full; nothing was changed"):
                await store.txn([absent("b")], [Put("a", b"2"), Put("b", b"x" * 100_000)])
            assert store.revision == before
            assert [(pair.key, pair.value) for pair in await store.range("")] == [("a", b"1")]
            store._db.execute("PRAGMA max_page_count = 100000").fetchall()
            await put(store, "a", b"3")
            (change,) = await take(watch, 1)
            assert change.current is not None and change.current.value == b"3"

    run(body)


def test_the_log_is_moved_into_the_database_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sqlite, "SYNC_DELAY_S", 0.01)
    monkeypatch.setattr(sqlite, "CHECKPOINT_BYTES", 1 << 20)
    path = tmp_path / "state.db"

    async def body() -> None:
        async with opened(tmp_path) as (store, _):
            async with asyncio.timeout(30):
                while path.stat().st_size < 300_000:  # grows only by a checkpoint
                    await put(store, "a", os.urandom(200_000))
                    await put(store, "b", os.urandom(200_000))
                    await asyncio.sleep(0.01)

    run(body)


_WRITER = """
import asyncio, sys
from pathlib import Path
from cove.store.sqlite import SqliteStore
from cove.store.interface import Put

async def main():
    store = await SqliteStore.open(Path(sys.argv[1]))
    number = 0
    while True:
        number += 1
        await store.txn([], [Put("a", b"%d" % number), Put("b", b"%d" % number)])
        sys.stdout.buffer.write(b"%d\\n" % number)
        sys.stdout.buffer.flush()
        await asyncio.sleep(0)

asyncio.run(main())
"""


def test_kill_9_loses_no_acknowledged_change_and_leaves_no_half_one(tmp_path: Path) -> None:
    path = tmp_path / "state.db"
    last = 0
    for lines in (1, 40, 300):
        writer = subprocess.Popen(
            [sys.executable, "-c", _WRITER, str(path)], stdout=subprocess.PIPE, cwd=Path(__file__).parents[2]
        )
        assert writer.stdout is not None
        try:
            for _ in range(lines):
                last = int(writer.stdout.readline())
        finally:
            writer.send_signal(signal.SIGKILL)
            rest = writer.stdout.read().split()
            writer.wait()
            writer.stdout.close()
        last = int(rest[-1]) if rest else last

        async def body(acknowledged: int = last) -> None:
            async with opened(tmp_path) as (store, _):
                one, two = await store.get("a"), await store.get("b")
                assert one is not None and two is not None
                assert one.value == two.value
                assert int(one.value) in (acknowledged, acknowledged + 1)

        run(body)
