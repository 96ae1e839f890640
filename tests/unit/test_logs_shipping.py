"""The shipper's pure parts: cutting and positions, files across rotations, and what receivers get."""

from __future__ import annotations

import asyncio
import gzip
import json
import os
import socket
import struct
import time
import zlib
from pathlib import Path

import msgpack
import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cove.logs.destinations import Address, Fluentd, Gelf, Shipment, Source, Syslog
from cove.logs.files import FileKey
from cove.logs.shipping import process
from cove.logs.shipping.cut import LINE_BYTES, Chunk, Cutter, Message, Partial
from cove.logs.shipping.encode import (
    FluentdEncoder,
    GelfEncoder,
    JournaldEncoder,
    SyslogEncoder,
    journal_name,
)
from cove.logs.shipping.position import Mark, Position, has_unsent, load_position, save_position
from cove.logs.shipping.protocol import Told, decode_told
from cove.logs.shipping.shipper import write_shipment
from cove.logs.shipping.trail import Trail
from tests.unit.test_logs_reader import Writer, run

TIME_NS = 1_700_000_000_123_456_789
KEY = FileKey(1, "ff")
SOURCE = Source(
    container_id="0123456789abcdef" * 4,
    container_name="web",
    image_id="sha256:ff",
    image_name="nginx:1",
    command="nginx -g",
    created_ns=TIME_NS,
    host_name="host1",
    tag="tag 1",
    attributes={"STAGE": "blue", "_own": "two\nlines"},
)
UDP = Address(kind="udp", host="h", port=1)


def chunks_of(parts: list[tuple[int, bytes]], marks: dict[int, Mark] | None = None) -> list[Chunk]:
    """Records one behind the other; without what the marks say was sent."""
    found, offset = [], 0
    for number, (stream, data) in enumerate(parts):
        mark = marks.get(stream) if marks else None
        skip = 0
        if mark is not None:
            skip = mark.skip if offset == mark.offset else 0 if offset > mark.offset else len(data)
        if skip < len(data):
            found.append(Chunk(KEY, offset, offset + len(data) + 20, skip, stream, number, data))
        offset += len(data) + 20
    return found


def data_of(messages: list[Message], stream: int) -> list[bytes]:
    return [message.data for message in messages if message.stream == stream]


def expected_lines(parts: list[tuple[int, bytes]], stream: int) -> list[bytes]:
    lines = b"".join(data for s, data in parts if s == stream).split(b"\n")
    last = lines.pop()
    pieces = []
    for line in lines:
        while len(line) >= LINE_BYTES:
            pieces.append(line[:LINE_BYTES])
            line = line[LINE_BYTES:]
        pieces.append(line)
    while len(last) >= LINE_BYTES:
        pieces.append(last[:LINE_BYTES])
        last = last[LINE_BYTES:]
    return pieces + ([last] if last else [])


_DATA = st.one_of(
    st.binary(min_size=1, max_size=12),
    st.lists(st.sampled_from([b"\n", b"a", b"bc\n"]), min_size=1, max_size=8).map(b"".join),
    st.integers(LINE_BYTES - 2, LINE_BYTES * 2 + 2).map(lambda size: b"x" * size),
)


@given(st.lists(st.tuples(st.sampled_from([1, 2]), _DATA), max_size=8), st.data())
@settings(max_examples=200, deadline=None)
def test_whatever_was_sent_last_the_rest_follows(parts: list[tuple[int, bytes]], data: st.DataObject) -> None:
    cutter = Cutter()
    messages: list[Message] = []
    marks = []
    for chunk in chunks_of(parts):
        for message in cutter.cut(chunk):
            messages.append(message)
            marks.append(cutter.marks())
    messages += cutter.flush()
    for stream in (1, 2):
        assert data_of(messages, stream) == expected_lines(parts, stream)
    if not marks:
        return
    sent = data.draw(st.integers(0, len(marks) - 1))
    again = Cutter()
    rest = [message for chunk in chunks_of(parts, marks[sent]) for message in again.cut(chunk)]
    rest += again.flush()
    for stream in (1, 2):
        assert data_of(messages[: sent + 1] + rest, stream) == data_of(messages, stream)


def test_pieces_of_a_long_line_are_counted() -> None:
    cutter = Cutter()
    (first, second, last, short) = (
        message
        for chunk in chunks_of([(1, b"a" * LINE_BYTES), (1, b"b" * LINE_BYTES), (1, b"c\nd\n")])
        for message in cutter.cut(chunk)
    )
    assert first.partial is not None and second.partial is not None and last.partial is not None
    ident = first.partial.id
    assert len(ident) == 64
    assert (first.partial, second.partial) == (Partial(ident, 1, False), Partial(ident, 2, False))
    assert (last.data, last.partial, last.time_ns) == (b"c", Partial(ident, 3, True), 0)
    assert (short.data, short.partial, short.time_ns) == (b"d", None, 2)


# --- trail --------------------------------------------------------------------------------


def carry(trail: Trail, cutter: Cutter, *, ended: bool = False) -> list[bytes]:
    """What a carrier would send now."""
    found: list[bytes] = []
    while True:
        rotated, behind = trail.rotated(), trail.behind
        while chunks := trail.read(final=rotated or ended):
            found += [message.data for chunk in chunks for message in cutter.cut(chunk)]
        if rotated:
            trail.advance()
        elif not behind:
            return found


def test_a_trail_follows_rotation(tmp_path: Path) -> None:
    writer = Writer(tmp_path)
    trail, cutter = Trail(tmp_path, None), Cutter()
    assert carry(trail, cutter) == []
    sent = []
    for number in range(20):
        writer.write(1, number + 1, b"line %d\nhalf " % number)
        if number % 3 == 0:
            writer.rotate()
        if number % 4 == 0:
            sent += carry(trail, cutter)
    sent += carry(trail, cutter)
    assert sent == [b"line 0"] + [b"half line %d" % number for number in range(1, 20)]
    assert trail.lost_bytes == 0
    trail.close()


def test_a_trail_resumes_where_it_was_although_files_moved(tmp_path: Path) -> None:
    writer = Writer(tmp_path)
    writer.write(1, 1, b"one\ntwo\nthr")
    writer.write(2, 2, b"err\n")
    trail, cutter = Trail(tmp_path, None), Cutter()
    assert carry(trail, cutter) == [b"one", b"two", b"err"]
    trail.close()
    ship = tmp_path / "ship"
    ship.mkdir()
    save_position(ship, Position(marks=cutter.marks(), sent=3))
    writer.rotate()
    writer.write(1, 3, b"ee\nfour\n")
    position = load_position(ship)
    assert position is not None and position.sent == 3
    trail = Trail(tmp_path, position)
    assert carry(trail, Cutter()) == [b"three", b"four"]
    assert trail.lost_bytes == 0
    trail.close()


def test_what_is_rotated_away_is_counted_and_passed_over(tmp_path: Path) -> None:
    writer = Writer(tmp_path, max_files=2)
    writer.write(1, 1, b"zero\n")
    trail, cutter = Trail(tmp_path, None), Cutter()
    assert carry(trail, cutter) == [b"zero"]
    writer.write(1, 2, b"lost line\n")
    for number in range(3):
        writer.rotate()
        trail.check_lost()
        writer.write(1, 3 + number, b"line %d\n" % number)
    assert trail.lost_bytes == 2 * 20 + len(b"lost line\n" + b"line 0\n")
    assert carry(trail, cutter) == [b"line 1", b"line 2"]
    trail.close()


def test_a_position_in_a_file_that_is_gone_starts_with_the_oldest(tmp_path: Path) -> None:
    writer = Writer(tmp_path)
    writer.write(1, 1, b"one\n")
    gone = Mark(FileKey(os.stat(tmp_path / "log").st_ino, "00" * 16), 24)
    trail = Trail(tmp_path, Position(marks={1: gone, 2: gone}))
    assert carry(trail, Cutter()) == [b"one"]
    assert trail.lost_bytes > 0
    trail.close()


def test_a_trail_passes_over_damage(tmp_path: Path) -> None:
    writer = Writer(tmp_path)
    writer.write(1, 1, b"one\n")
    with open(tmp_path / "log", "ab") as file:
        file.write(b"\xff" * 50)
    writer.write(1, 2, b"two\n")
    trail = Trail(tmp_path, None)
    assert carry(trail, Cutter()) == [b"one", b"two"]
    trail.close()


def test_an_ended_log_that_was_sent_whole_is_known(tmp_path: Path) -> None:
    assert not has_unsent(tmp_path)
    write_shipment(tmp_path, Shipment(source=SOURCE, destination=Syslog(address=UDP, facility=3, format="")))
    assert has_unsent(tmp_path)
    writer = Writer(tmp_path)
    writer.write(1, 1, b"one\ntwo\n")
    trail, cutter = Trail(tmp_path, None), Cutter()
    assert carry(trail, cutter) == [b"one", b"two"]
    trail.close()
    assert has_unsent(tmp_path)
    save_position(tmp_path / "ship", Position(marks=cutter.marks(), sent=2))
    assert not has_unsent(tmp_path)
    writer.write(2, 2, b"three")
    assert has_unsent(tmp_path)


@pytest.mark.parametrize("text", [b"", b"{", b"[]", b'{"marks":{"1":3}}', b'{"marks":{"9":null}}', b"\xff"])
def test_a_position_that_makes_no_sense_is_none(tmp_path: Path, text: bytes) -> None:
    (tmp_path / "position").write_bytes(text)
    assert load_position(tmp_path) is None


# --- encodings ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("form", "octets", "expected"),
    [
        ("", False, b"<27>Nov 14 22:13:20 tag 1[7]: hi\n"),
        ("rfc3164", False, b"<27>Nov 14 22:13:20 host1 tag 1[7]: hi\n"),
        ("rfc5424", False, b"<27>1 2023-11-14T22:13:20Z host1 tag_1 7 tag_1 - hi\n"),
        ("rfc5424micro", False, b"<27>1 2023-11-14T22:13:20.123456Z host1 tag_1 7 tag_1 - hi\n"),
        ("rfc5424", True, b"52 <27>1 2023-11-14T22:13:20Z host1 tag_1 7 tag_1 - hi\n"),
        ("", True, b"<27>Nov 14 22:13:20 tag 1[7]: hi\n"),
    ],
)
def test_syslog_formats(form: str, octets: bool, expected: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TZ", "UTC")
    time.tzset()
    destination = Syslog(address=UDP, facility=3, format=form)  # type: ignore[arg-type]
    encoder = SyslogEncoder(destination, SOURCE, 7, octets=octets)
    assert encoder.encode(Message(2, TIME_NS, b"hi")) == expected
    assert encoder.encode(Message(1, TIME_NS, b"")) == b""
    monkeypatch.undo()
    time.tzset()


def test_gelf_messages() -> None:
    encoder = GelfEncoder(Gelf(address=UDP, compression="none"), SOURCE)
    found = json.loads(encoder.encode(Message(1, TIME_NS, 'ü"\xff'.encode("latin-1"))))
    assert found == {
        "version": "1.1",
        "host": "host1",
        "short_message": '\ufffd"\ufffd',
        "timestamp": 1700000000.123,
        "level": 6,
        "_container_id": SOURCE.container_id,
        "_container_name": "web",
        "_image_id": "sha256:ff",
        "_image_name": "nginx:1",
        "_command": "nginx -g",
        "_tag": "tag 1",
        "_created": "2023-11-14T22:13:20.123456789Z",
        "_STAGE": "blue",
        "_own": "two\nlines",
    }


@pytest.mark.parametrize("kind", ["gzip", "zlib", "none"])
def test_gelf_datagrams_are_packed_and_divided(kind: str) -> None:
    encoder = GelfEncoder(Gelf(address=UDP, compression=kind), SOURCE)  # type: ignore[arg-type]
    unpack = {"gzip": gzip.decompress, "zlib": zlib.decompress, "none": bytes}[kind]
    (small,) = encoder.datagrams(Message(1, TIME_NS, b"small")) or []
    assert json.loads(unpack(small))["short_message"] == "small"
    noise = os.urandom(8000).hex()
    many = encoder.datagrams(Message(1, TIME_NS, noise.encode())) or []
    assert len(many) > 3 and all(len(one) <= 1420 and one.startswith(b"\x1e\x0f") for one in many)
    assert len({one[2:10] for one in many}) == 1
    assert [(one[10], one[11]) for one in many] == [(n, len(many)) for n in range(len(many))]
    assert json.loads(unpack(b"".join(one[12:] for one in many)))["short_message"] == noise
    if kind == "none":
        assert encoder.datagrams(Message(1, TIME_NS, b"x" * 200_000)) is None


def test_fluentd_entries() -> None:
    destination = Fluentd(address=UDP, nanoseconds=True, acknowledge=True)
    partial = Partial("id", 2, False)
    data, chunk = FluentdEncoder(destination, SOURCE).encode(
        [Message(1, TIME_NS, b"hi"), Message(2, TIME_NS, b"piece", partial)]
    )
    tag, entries, options = msgpack.unpackb(data)
    assert (tag, options) == ("tag 1", {"chunk": chunk, "size": 2})
    common = {"container_id": SOURCE.container_id, "container_name": "/web", **SOURCE.attributes}
    stamp = msgpack.ExtType(0, struct.pack(">II", 1700000000, 123456789))
    assert entries[0] == [stamp, common | {"source": "stdout", "log": "hi"}]
    assert entries[1][1] == common | {
        "source": "stderr", "log": "piece", "partial_message": "true", "partial_id": "id", "partial_ordinal": "2",
        "partial_last": "false",
    }  # fmt: skip
    data, chunk = FluentdEncoder(Fluentd(address=UDP), SOURCE).encode([Message(1, TIME_NS, b"hi")])
    assert chunk == "" and msgpack.unpackb(data)[1][0][0] == 1700000000


def test_no_label_takes_the_place_of_what_is_told_of_the_container() -> None:
    names = (
        "message MESSAGE priority container_name syslog_identifier _container_name log source _tag".split()
    )
    source = msgspec.structs.replace(SOURCE, attributes=dict.fromkeys(names, "forged"))
    message = Message(1, TIME_NS, b"hi")
    journal = JournaldEncoder(source, "epoch").encode(message)
    for field in (b"MESSAGE", b"PRIORITY", b"CONTAINER_NAME", b"SYSLOG_IDENTIFIER"):
        assert (b"\n" + journal).count(b"\n" + field + b"=") == 1
    assert b"\nCONTAINER_NAME=web\n" in journal and b"MESSAGE=hi\n" in journal
    gelf = json.loads(GelfEncoder(Gelf(address=UDP), source).encode(message))
    assert (gelf["_container_name"], gelf["_tag"], gelf["_log"]) == ("web", "tag 1", "forged")
    entry = msgpack.unpackb(FluentdEncoder(Fluentd(address=UDP), source).encode([message])[0])[1][0][1]
    assert (entry["container_name"], entry["log"], entry["source"]) == ("/web", "hi", "stdout")


def test_journal_fields() -> None:
    encoder = JournaldEncoder(SOURCE, "epoch")
    first = encoder.encode(Message(2, TIME_NS, b"hi\xff"))
    assert b"MESSAGE=hi\xff\nPRIORITY=3\n" in first
    assert b"\nCONTAINER_ID=0123456789ab\n" in first and b"\nCONTAINER_NAME=web\n" in first
    assert b"\nSYSLOG_IDENTIFIER=tag 1\n" in first and b"\nSTAGE=blue\n" in first
    assert b"\nSYSLOG_TIMESTAMP=2023-11-14T22:13:20.123456789Z\n" in first
    assert b"\nCONTAINER_LOG_ORDINAL=1\n" in first
    assert b"OWN\n" + struct.pack("<Q", 9) + b"two\nlines\n" in first
    assert b"CONTAINER_PARTIAL" not in first
    piece = encoder.encode(Message(1, TIME_NS, b"x", Partial("id", 1, False)))
    assert b"PRIORITY=6\n" in piece and b"CONTAINER_PARTIAL_MESSAGE=true\n" in piece
    assert [journal_name(key) for key in ("a.b-c", "__x", "9", "ü")] == ["A_B_C", "X", "9", ""]


# --- what removed containers leave --------------------------------------------------------


def test_what_removed_containers_leave_has_a_bound(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The oldest goes first, counted; a log that can't be read troubles no other."""
    monkeypatch.setattr(process, "KEEP_BYTES", 25_000)
    monkeypatch.setattr(process, "_SWEEP_S", 0.05)
    away = Syslog(address=Address(kind="unixgram", path=str(tmp_path / "nobody")), facility=3, format="")
    unsent = tmp_path / "unsent"
    for number in range(3):
        directory = unsent / f"container{number}"
        directory.mkdir(parents=True)
        write_shipment(directory, Shipment(source=SOURCE, destination=away))
        Writer(directory).write(1, 1, b"x" * 9_000 + b"\n")
        time.sleep(0.02)  # the clock of a file system ticks in milliseconds
        os.rename(directory, unsent / f"left{number}")
    (unsent / "empty").mkdir()
    odd = unsent / "odd"
    odd.mkdir()
    write_shipment(odd, Shipment(source=SOURCE, destination=away))
    (odd / "log").mkdir()

    async def body() -> list[Told]:
        ours, theirs = socket.socketpair()
        reader, writer = await asyncio.open_connection(sock=ours)
        daemon_reader, daemon_writer = await asyncio.open_connection(sock=theirs)
        task = asyncio.create_task(process.Process(unsent, writer).run(reader))
        told = []
        while not any(one.container_id == "left0" and one.done for one in told):
            told.append(decode_told(await daemon_reader.readline()))
        daemon_writer.close()
        await task
        writer.close()
        return told

    told: list[Told] = run(body())
    assert sorted(path.name for path in unsent.iterdir()) == ["left1", "left2", "odd"]
    assert [one.lost_bytes for one in told if one.lost_bytes] == [9_021]
    assert any(one.container_id == "odd" and one.trouble for one in told)
