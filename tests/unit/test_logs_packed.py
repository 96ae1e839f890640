"""Packed log files read as what was packed, wherever a reader begins, and whenever it happens."""

from __future__ import annotations

import asyncio
import fcntl
import gzip
import os
import random
from contextlib import aclosing
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cove.logs.model import LogLine, LogQuery
from cove.logs.pack import pack_directory
from cove.logs.packed import MEMBER_BYTES, Packed, pack_member
from cove.logs.reader import read_logs
from cove.logs.shipping.cut import Cutter
from cove.logs.shipping.trail import Trail
from tests.unit.test_logs_reader import Writer, read, run
from tests.unit.test_logs_shipping import carry


def pack(directory: Path, name: str = "log") -> int:
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        return pack_directory(descriptor, name)
    finally:
        os.close(descriptor)


@given(st.lists(st.binary(min_size=1, max_size=400), min_size=1, max_size=8), st.data())
@settings(max_examples=100, deadline=None)
def test_any_part_reads_as_it_was(contents: list[bytes], data: st.DataObject) -> None:
    file = b"".join(pack_member(content, 77) for content in contents)
    whole = b"".join(contents)
    assert gzip.decompress(file) == whole
    packed = Packed(lambda size, offset: file[offset : offset + size])
    assert (packed.size, packed.origin) == (len(whole), 77)
    offset = data.draw(st.integers(0, len(whole) + 3))
    size = data.draw(st.integers(0, len(whole) + 3))
    assert packed.read(size, offset) == whole[offset : offset + size]


def test_a_file_that_is_not_packed_is_told() -> None:
    with pytest.raises(ValueError, match="isn't a packed log"):
        Packed(lambda size, offset: gzip.compress(b"another's")[offset : offset + size])


@given(st.binary(min_size=1, max_size=60), st.integers(0, 400), st.integers(0, 255))
@settings(max_examples=150, deadline=None)
def test_damage_ends_the_file_and_nothing_else(noise: bytes, at: int, value: int) -> None:
    file = bytearray(b"".join(pack_member(noise * 3, 7) for _ in range(4)))
    file[at % len(file)] = value
    try:
        packed = Packed(lambda size, offset: bytes(file[offset : offset + size]))
    except ValueError:
        return
    assert len(packed.read(1 << 20, 0)) <= 4 * MEMBER_BYTES


@pytest.mark.parametrize("driver", ["local", "json-file"])
def test_readers_don_t_notice(tmp_path: Path, driver: str) -> None:
    writer = Writer(tmp_path, driver)
    for number in range(1, 3001):
        writer.write(1 + number % 2, number * 10**9, b"line %d\n" % number)
        if number % 700 == 0:
            writer.rotate()
    queries = [
        {},
        {"tail": 1000},
        {"since_ns": 900 * 10**9, "until_ns": 1500 * 10**9},
        {"stderr": False, "tail": 3},
    ]
    before = [read(tmp_path, driver, **query) for query in queries]
    assert pack(tmp_path, writer.name) == 4
    assert [read(tmp_path, driver, **query) for query in queries] == before
    assert pack(tmp_path, writer.name) == 0
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(
        [writer.name] + [f"{writer.name}.{n}" for n in range(1, 5)]
    )


def test_a_follower_gets_every_line_once_whenever_files_are_packed(tmp_path: Path) -> None:
    writer, chance = Writer(tmp_path, max_files=200), random.Random(5)

    async def body() -> list[LogLine]:
        ended = asyncio.Event()
        found: list[LogLine] = []

        async def write() -> None:
            for number in range(2000):
                writer.write(1, number + 1, b"line %d\n" % number)
                if chance.random() < 0.05:
                    writer.rotate()
                if chance.random() < 0.05:
                    pack(tmp_path)
                if chance.random() < 0.1:
                    await asyncio.sleep(0)
            ended.set()

        task = asyncio.create_task(write())
        async with aclosing(read_logs(tmp_path, "local", LogQuery(follow=True), ended=ended)) as lines:
            async for line in lines:
                found.append(line)
        await task
        return found

    lines: list[LogLine] = run(body())
    assert [line.data for line in lines] == [b"line %d\n" % number for number in range(2000)]


def test_the_shipper_goes_on_in_the_packed_copy(tmp_path: Path) -> None:
    writer = Writer(tmp_path)
    writer.write(1, 1, b"one\ntwo")
    trail, cutter = Trail(tmp_path, None), Cutter()
    assert carry(trail, cutter) == [b"one"]
    writer.write(1, 2, b"!\nthree\n")
    writer.rotate()
    writer.write(1, 3, b"four\n")
    pack(tmp_path)
    trail.check_lost()
    assert carry(trail, cutter) == [b"two!", b"three", b"four"]
    assert trail.lost_bytes == 0
    trail.close()


def test_a_rotation_meanwhile_moves_the_copy_along(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    writer = Writer(tmp_path)
    writer.write(1, 1, b"one\n")
    writer.rotate()
    writer.write(1, 2, b"two\n")
    flock = fcntl.flock

    def rotate_first(descriptor: int, operation: int) -> None:
        if operation == fcntl.LOCK_EX:
            writer.rotate()
        flock(descriptor, operation)

    monkeypatch.setattr(fcntl, "flock", rotate_first)
    assert pack(tmp_path) == 1
    assert gzip.decompress((tmp_path / "log.2").read_bytes()).endswith(b"one\n\x04\0\0\0")
    assert [line.data for line in read(tmp_path)] == [b"one\n", b"two\n"]


@pytest.mark.parametrize("follow", [False, True])
def test_a_reader_that_takes_nothing_keeps_no_file_that_was_rotated_away(
    tmp_path: Path, follow: bool
) -> None:
    writer = Writer(tmp_path, max_files=3)

    def write(number: int) -> None:
        writer.write(1, number + 1, b"".join(b"line %d.%d\n" % (number, part) for part in range(20_000)))
        writer.rotate()

    def held() -> list[str]:
        links = [os.readlink(f"/proc/self/fd/{fd}") for fd in os.listdir("/proc/self/fd") if _is_link(fd)]
        return [link for link in links if link.startswith(str(tmp_path)) and "log" in link.rpartition("/")[2]]

    async def body() -> list[bytes]:
        ended = asyncio.Event()
        for number in range(2):
            write(number)
        writer.write(1, 3, b"newest\n")
        found: list[bytes] = []
        async with aclosing(read_logs(tmp_path, "local", LogQuery(follow=follow), ended=ended)) as lines:
            found.append((await anext(lines)).data)
            assert len(held()) == 1
            for number in range(3, 6):
                write(number)
            async with asyncio.timeout(30):
                while held():
                    await asyncio.sleep(0.01)
            ended.set()
            async for line in lines:
                found.append(line.data)
        return found

    found: list[bytes] = run(body())
    assert found[0] == b"line 0.0\n"
    numbers = [line.partition(b".")[0] for line in found]
    assert numbers.count(b"line 3") == 0
    if follow:
        assert (
            found[-1] == b"line 5.19999\n" and numbers.count(b"line 4") == numbers.count(b"line 5") == 20_000
        )
    else:
        assert set(numbers) == {b"line 0"}  # what it was to read is gone


def _is_link(descriptor: str) -> bool:
    return os.path.islink(f"/proc/self/fd/{descriptor}")


def test_a_reader_goes_on_in_the_packed_copy(tmp_path: Path) -> None:
    writer = Writer(tmp_path)
    expected = [b"line %d\n" % number for number in range(100_000)]
    for start in range(0, 100_000, 5000):
        writer.write(1, start + 1, b"".join(expected[start : start + 5000]))
    writer.rotate()
    writer.write(1, 1 << 40, b"end\n")

    async def body() -> list[bytes]:
        found: list[bytes] = []
        async with aclosing(read_logs(tmp_path, "local", LogQuery(), ended=asyncio.Event())) as lines:
            async for line in lines:
                if not found:
                    pack(tmp_path)
                found.append(line.data)
        return found

    assert run(body()) == [*expected, b"end\n"]
