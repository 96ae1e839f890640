"""Reading logs: the answer is what a naive reader of everything would give, wherever files were cut."""

from __future__ import annotations

import asyncio
import json
import os
import struct
import tempfile
import time
from collections.abc import Awaitable, Callable, Coroutine
from contextlib import aclosing
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cove.logs import files, reader, records
from cove.logs.model import STDERR, STDOUT, LogDamaged, LogLine, LogQuery, LogUnreadable
from cove.logs.reader import read_batches, read_logs

BOUND_S = 60
Chunk = tuple[int, int, bytes]  # stream, time, data


class Writer:
    """Writes as cove-init does: whole records, renames from the oldest on, then a new file."""

    def __init__(self, directory: Path, driver: str = "local", max_files: int = 5) -> None:
        self.directory, self.driver, self.max_files = directory, driver, max_files
        self.name = "log" if driver == "local" else "json.log"

    def write(self, stream: int, time_ns: int, data: bytes) -> None:
        with open(self.directory / self.name, "ab", buffering=0) as file:
            file.write(self.record(stream, time_ns, data))

    def record(self, stream: int, time_ns: int, data: bytes) -> bytes:
        if self.driver == "local":
            size = struct.pack("<I", len(data))
            return size + struct.pack("<BBHQ", stream, 0, 0, time_ns) + data + size
        second, fraction = divmod(time_ns, 10**9)
        stamp = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(second))
        part = f".{fraction:09}".rstrip("0") if fraction else ""
        lines = data.decode("utf-8", "replace").splitlines(keepends=True)
        return b"".join(
            json.dumps(
                {"log": line, "stream": "stderr" if stream == STDERR else "stdout", "time": f"{stamp}{part}Z"}
            ).encode()
            + b"\n"
            for line in lines
        )

    def rotate(self) -> None:
        for number in range(self.max_files - 1, 0, -1):
            source = self.directory / (f"{self.name}.{number - 1}" if number > 1 else self.name)
            if source.exists():
                source.rename(self.directory / f"{self.name}.{number}")
        (self.directory / self.name).touch()


def run(body: Coroutine[Any, Any, Any]) -> Any:
    async def bounded() -> Any:
        async with asyncio.timeout(BOUND_S):
            return await body

    return asyncio.run(bounded())


def read(directory: Path, driver: str = "local", **query: Any) -> list[LogLine]:
    """The answer to a query that doesn't follow."""

    async def body() -> list[LogLine]:
        lines = read_logs(directory, driver, LogQuery(**query), ended=asyncio.Event())
        return [line async for line in lines]

    result: list[LogLine] = run(body())
    return result


def texts(lines: list[LogLine]) -> list[bytes]:
    return [line.data for line in lines]


# --- joining ------------------------------------------------------------------------------


def test_chunks_become_lines_with_the_time_of_their_start(tmp_path: Path) -> None:
    writer = Writer(tmp_path)
    writer.write(STDOUT, 10, b"one\ntwo\nth")
    writer.write(STDERR, 20, b"error")
    writer.write(STDOUT, 30, b"ree\nfour")
    writer.write(STDERR, 40, b"!\n")
    assert read(tmp_path) == [
        LogLine(STDOUT, 10, b"one\n"),
        LogLine(STDOUT, 10, b"two\n"),
        LogLine(STDOUT, 10, b"three\n"),
        LogLine(STDERR, 20, b"error!\n"),
        LogLine(STDOUT, 30, b"four"),
    ]


def test_a_line_goes_on_in_the_next_file(tmp_path: Path) -> None:
    writer = Writer(tmp_path)
    writer.write(STDOUT, 10, b"a\nbeg")
    writer.rotate()
    writer.write(STDOUT, 20, b"inning\n")
    assert texts(read(tmp_path)) == [b"a\n", b"beginning\n"]
    assert read(tmp_path, tail=1) == [LogLine(STDOUT, 10, b"beginning\n")]


def test_only_newlines_end_lines(tmp_path: Path) -> None:
    Writer(tmp_path).write(STDOUT, 10, b"50%\r60%\r\n\x0b\x0c\x85\n\n\0\n")
    assert texts(read(tmp_path)) == [b"50%\r60%\r\n", b"\x0b\x0c\x85\n", b"\n", b"\0\n"]


def test_an_endless_line_comes_in_pieces(tmp_path: Path) -> None:
    writer = Writer(tmp_path)
    for _ in range(40):
        writer.write(STDOUT, 10, b"x" * 65536)
    pieces = texts(read(tmp_path))
    assert b"".join(pieces) == b"x" * 65536 * 40
    assert max(map(len, pieces)) <= records.MAX_LINE_BYTES + 65536


def test_a_log_without_files_is_empty(tmp_path: Path) -> None:
    assert read(tmp_path) == read(tmp_path / "missing") == read(tmp_path, tail=3) == []


@pytest.mark.parametrize("driver", ["none", "awslogs"])
def test_a_driver_that_keeps_nothing_cannot_be_read(tmp_path: Path, driver: str) -> None:
    with pytest.raises(LogUnreadable, match="configured logging driver does not support reading"):
        read_batches(tmp_path, driver, LogQuery(), ended=asyncio.Event())


# --- the answer, wherever files were cut --------------------------------------------------

_CHUNKS = st.lists(
    st.tuples(
        st.sampled_from([STDOUT, STDOUT, STDERR]),
        st.integers(0, 3),  # time since the chunk before
        st.sampled_from([b"a\n", b"b", b"c\nd\n", b"\n", b"e\nf", b"g" * 50 + b"\n", b"hij"]),
        st.booleans(),  # rotate before it
    ),
    max_size=30,
)
_QUERIES = st.builds(
    LogQuery,
    stdout=st.booleans(),
    stderr=st.booleans(),
    since_ns=st.sampled_from([0, 0, 5, 12]),
    until_ns=st.sampled_from([0, 0, 9, 25]),
    tail=st.one_of(st.none(), st.integers(0, 8)),
)


def naive(chunks: list[Chunk], query: LogQuery) -> list[LogLine]:
    """Join everything, then choose."""
    lines: list[tuple[int, LogLine]] = []  # with the number of the chunk that ended it
    pending: dict[int, tuple[int, bytes]] = {}
    newest: dict[int, int] = {}
    for number, (stream, time_ns, data) in enumerate(chunks):
        newest[stream] = number
        if query.until_ns and time_ns > query.until_ns:
            continue
        for piece in data.splitlines(keepends=True):
            start, before = pending.pop(stream, (time_ns, b""))
            if piece.endswith(b"\n"):
                lines.append((number, LogLine(stream, start, before + piece)))
            else:
                pending[stream] = (start, before + piece)
    wanted = [(number, line) for number, line in lines if _asked(line, query)]
    unfinished = [
        LogLine(stream, start, data) for stream, (start, data) in sorted(pending.items(), key=_by_start)
    ]
    if query.tail is None:
        return [line for _, line in wanted] + [line for line in unfinished if _asked(line, query)]
    if not query.tail:
        return []
    first = wanted[-query.tail][0] if len(wanted) >= query.tail and not query.since_ns else 0
    recent = [line for line in unfinished if _asked(line, query) and newest[line.stream] >= first]
    return ([line for _, line in wanted] + recent)[-query.tail :]


def _asked(line: LogLine, query: LogQuery) -> bool:
    return (query.stdout if line.stream == STDOUT else query.stderr) and line.time_ns >= query.since_ns


def _by_start(item: tuple[int, tuple[int, bytes]]) -> tuple[int, int]:
    return item[1][0], item[0]


@settings(max_examples=200, deadline=None, database=None)
@given(
    steps=_CHUNKS,
    query=_QUERIES,
    driver=st.sampled_from(["local", "json-file"]),
    block=st.sampled_from([24, 64, 300, files.BLOCK_BYTES]),
)
def test_every_query_gets_what_reading_everything_gives(
    steps: list[tuple[int, int, bytes, bool]], query: LogQuery, driver: str, block: int
) -> None:
    with tempfile.TemporaryDirectory() as directory, pytest.MonkeyPatch.context() as patch:
        patch.setattr(files, "BLOCK_BYTES", block)
        patch.setattr(reader, "BLOCK_BYTES", block)
        writer = Writer(Path(directory), driver, max_files=50)
        now, chunks = 1, []
        for stream, later, data, rotate in steps:
            now += later
            if rotate:
                writer.rotate()
            writer.write(stream, now, data)
            chunks.append((stream, now, data))

        async def body() -> list[LogLine]:
            return [line async for line in read_logs(Path(directory), driver, query, ended=asyncio.Event())]

        assert run(body()) == naive(chunks, query)


def test_the_tail_of_a_big_log_reads_little_of_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    writer = Writer(tmp_path)
    record = b"".join(writer.record(STDOUT, 10, b"line %d\n" % number) for number in range(100_000))
    (tmp_path / "log").write_bytes(record)
    read_bytes, pread = 0, os.pread

    def counting(descriptor: int, size: int, offset: int) -> bytes:
        nonlocal read_bytes
        data = pread(descriptor, size, offset)
        read_bytes += len(data)
        return data

    monkeypatch.setattr(os, "pread", counting)
    assert texts(read(tmp_path, tail=2)) == [b"line 99998\n", b"line 99999\n"]
    assert read_bytes < len(record) / 4


# --- damage -------------------------------------------------------------------------------


@pytest.mark.parametrize("cut", [1, 4, 10, 18, 22])
@pytest.mark.parametrize("query", [{}, {"tail": 10}, {"tail": 1}])
def test_a_record_cut_short_by_a_crash_is_passed_over(
    tmp_path: Path, cut: int, query: dict[str, Any]
) -> None:
    writer = Writer(tmp_path)
    writer.write(STDOUT, 10, b"whole\n")
    with open(tmp_path / "log", "ab") as file:
        file.write(writer.record(STDOUT, 20, b"torn\n")[:cut])
    assert texts(read(tmp_path, **query)) == [b"whole\n"]
    writer.rotate()
    writer.write(STDOUT, 30, b"after\n")
    assert texts(read(tmp_path)) == [b"whole\n", b"after\n"]


@pytest.mark.parametrize("driver", ["local", "json-file"])
@pytest.mark.parametrize("query", [{}, {"tail": 100}])
def test_damage_is_passed_over_and_told_at_the_end(
    tmp_path: Path, driver: str, query: dict[str, Any]
) -> None:
    writer = Writer(tmp_path, driver)
    for number in range(20):
        writer.write(STDOUT, 10, b"line %d\n" % number)
    content = bytearray((tmp_path / writer.name).read_bytes())
    record = len(writer.record(STDOUT, 10, b"line 1\n"))
    content[record * 3 : record * 5] = b"\xff" * (record * 2)
    (tmp_path / writer.name).write_bytes(content)

    async def body() -> list[bytes]:
        found = []
        with pytest.raises(LogDamaged, match="is damaged"):
            async for line in read_logs(tmp_path, driver, LogQuery(**query), ended=asyncio.Event()):
                found.append(line.data)
        return found

    found = run(body())
    assert found[:3] == [b"line 0\n", b"line 1\n", b"line 2\n"]
    assert found[-14:] == [b"line %d\n" % number for number in range(6, 20)]


@settings(max_examples=100, deadline=None, database=None)
@given(
    data=st.binary(max_size=400),
    driver=st.sampled_from(["local", "json-file"]),
    tail=st.sampled_from([None, 3]),
)
def test_no_content_of_a_file_breaks_the_reader(data: bytes, driver: str, tail: int | None) -> None:
    with tempfile.TemporaryDirectory() as directory:
        writer = Writer(Path(directory), driver)
        (Path(directory) / writer.name).write_bytes(data)
        writer.rotate()
        writer.write(STDOUT, 10, b"after\n")
        try:
            lines = texts(read(Path(directory), driver, tail=tail))
        except LogDamaged:
            return
        assert lines[-1:] == [b"after\n"]


# --- json-file ----------------------------------------------------------------------------


def test_times_of_json_files_are_exact(tmp_path: Path) -> None:
    stamps = {
        "2026-01-02T03:04:05.123456789Z": 1767323045123456789,
        "2026-01-02T03:04:05.1Z": 1767323045100000000,
        "2026-01-02T03:04:06Z": 1767323046000000000,
    }
    (tmp_path / "json.log").write_text(
        "".join(json.dumps({"log": "x\n", "stream": "stdout", "time": stamp}) + "\n" for stamp in stamps)
    )
    assert [line.time_ns for line in read(tmp_path, "json-file")] == list(stamps.values())


def test_the_pieces_of_a_long_json_line_are_joined(tmp_path: Path) -> None:
    (tmp_path / "json.log").write_text(
        '{"log":"first ","stream":"stdout","time":"2026-01-02T03:04:05Z"}\n'
        '{"log":"error\\n","stream":"stderr","time":"2026-01-02T03:04:05Z","attrs":{"a":"b"}}\n'
        '{"log":"second\\n","stream":"stdout","time":"2026-01-02T03:04:06Z"}\n'
    )
    assert texts(read(tmp_path, "json-file")) == [b"error\n", b"first second\n"]
    assert texts(read(tmp_path, "json-file", tail=1)) == [b"first second\n"]


def test_a_json_line_of_bytes_that_are_no_text_is_read(tmp_path: Path) -> None:
    (tmp_path / "json.log").write_bytes(
        b'{"log":"a\xff\\n","stream":"stdout","time":"2026-01-02T03:04:05Z"}\n'
        b'{"log":"b\\n","stream":"stdout","time":"2026-01-02T03:04:05Z"}\n'
    )
    assert texts(read(tmp_path, "json-file")) == ["a\ufffd\n".encode(), b"b\n"]


# --- following ----------------------------------------------------------------------------


def follow(
    directory: Path,
    writer: Callable[[asyncio.Event, asyncio.Queue[LogLine]], Awaitable[None]],
    driver: str = "local",
    **query: Any,
) -> list[LogLine]:
    """What a follower gets until it ends, while `writer(ended, seen)` works."""

    async def body() -> list[LogLine]:
        ended, lines = asyncio.Event(), []
        seen: asyncio.Queue[LogLine] = asyncio.Queue()
        task = asyncio.ensure_future(writer(ended, seen))
        async with aclosing(read_logs(directory, driver, LogQuery(follow=True, **query), ended=ended)) as log:
            async for line in log:
                lines.append(line)
                seen.put_nowait(line)
        await task
        return lines

    result: list[LogLine] = run(body())
    return result


@pytest.mark.parametrize("driver", ["local", "json-file"])
def test_a_follower_sees_lines_as_they_come_and_ends_with_the_container(tmp_path: Path, driver: str) -> None:
    log = Writer(tmp_path, driver)
    log.write(STDOUT, 10, b"before\n")

    async def write(ended: asyncio.Event, seen: asyncio.Queue[LogLine]) -> None:
        assert (await seen.get()).data == b"before\n"
        log.write(STDOUT, 20, b"half ")
        log.write(STDERR, 30, b"error\n")
        assert (await seen.get()).data == b"error\n"
        log.write(STDOUT, 40, b"line\n")
        assert (await seen.get()).data == b"half line\n"
        log.write(STDOUT, 50, b"no end")
        ended.set()

    assert follow(tmp_path, write, driver)[-1] == LogLine(STDOUT, 50, b"no end")


def test_a_follower_waits_for_the_first_file(tmp_path: Path) -> None:
    log = Writer(tmp_path)

    async def write(ended: asyncio.Event, seen: asyncio.Queue[LogLine]) -> None:
        await asyncio.sleep(0)
        log.write(STDOUT, 10, b"first\n")
        assert (await seen.get()).data == b"first\n"
        ended.set()

    assert texts(follow(tmp_path, write)) == [b"first\n"]


@pytest.mark.parametrize("max_files", [2, 5])
def test_a_follower_loses_and_repeats_nothing_across_rotations(tmp_path: Path, max_files: int) -> None:
    log = Writer(tmp_path, max_files=max_files)

    async def write(ended: asyncio.Event, seen: asyncio.Queue[LogLine]) -> None:
        for number in range(300):
            if number % 7 == 6:
                log.rotate()
            log.write(STDOUT, 10, b"%d" % number)
            if number % 5 == 0:
                await asyncio.sleep(0)
            log.write(STDOUT, 10, b"\n")
            if number % 3 == 0:
                while (await seen.get()).data != b"%d\n" % number:
                    pass
        ended.set()

    assert texts(follow(tmp_path, write)) == [b"%d\n" % number for number in range(300)]


def test_a_follower_with_a_tail_starts_there(tmp_path: Path) -> None:
    log = Writer(tmp_path)
    log.write(STDOUT, 10, b"1\n2\n3\npart")

    async def write(ended: asyncio.Event, seen: asyncio.Queue[LogLine]) -> None:
        assert (await seen.get()).data == b"3\n"
        log.write(STDOUT, 20, b"ial\n")
        await seen.get()
        ended.set()

    assert texts(follow(tmp_path, write, tail=1)) == [b"3\n", b"partial\n"]


def test_a_follower_without_a_past_sees_only_what_is_new(tmp_path: Path) -> None:
    log = Writer(tmp_path)
    log.write(STDOUT, 10, b"old\n")

    async def write(ended: asyncio.Event, seen: asyncio.Queue[LogLine]) -> None:
        async with asyncio.timeout(BOUND_S):
            while seen.empty():  # the follower may start late: then an early line is part of the past
                log.write(STDOUT, 20, b"new\n")
                await asyncio.sleep(0.01)
        ended.set()

    assert set(texts(follow(tmp_path, write, tail=0))) == {b"new\n"}


def test_a_follower_ends_when_its_time_has_come(tmp_path: Path) -> None:
    log = Writer(tmp_path)
    log.write(STDOUT, 10, b"old\n")

    async def write(ended: asyncio.Event, seen: asyncio.Queue[LogLine]) -> None:
        pass

    assert texts(follow(tmp_path, write, until_ns=time.time_ns() + 200_000_000)) == [b"old\n"]


def test_files_that_rotate_while_they_are_opened_are_all_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    writer = Writer(tmp_path, max_files=50)
    for number in range(4):
        writer.write(STDOUT, 10, b"%d\n" % number)
        writer.rotate()
    writer.write(STDOUT, 10, b"4\n")
    rotations, listdir = 0, os.listdir

    def rotating(path: Any) -> list[str]:
        nonlocal rotations
        entries = listdir(path)
        for _ in range(3 if rotations < 6 else 0):
            rotations += 1
            writer.rotate()
            writer.write(STDOUT, 20, b"new %d\n" % rotations)
        return entries

    monkeypatch.setattr(os, "listdir", rotating)
    assert texts(read(tmp_path)) == [b"0\n", b"1\n", b"2\n", b"3\n", b"4\n"]
    assert rotations == 6


def test_followers_share_one_inotify_instance_and_leave_nothing(tmp_path: Path) -> None:
    def instances() -> int:
        found = 0
        for entry in Path("/proc/self/fd").iterdir():
            try:
                found += os.readlink(entry) == "anon_inode:inotify"
            except FileNotFoundError:
                pass
        return found

    Writer(tmp_path).write(STDOUT, 10, b"x\n")

    async def body() -> None:
        before, open_files = instances(), len(os.listdir("/proc/self/fd"))
        ended = asyncio.Event()
        logs = [read_logs(tmp_path, "local", LogQuery(follow=True), ended=ended) for _ in range(10)]
        for log in logs:
            assert (await log.__anext__()).data == b"x\n"
        assert instances() == before + 1
        for log in logs:
            await log.aclose()
        assert instances() == before
        assert len(os.listdir("/proc/self/fd")) == open_files

    run(body())
