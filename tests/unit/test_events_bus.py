"""The bus: what subscribers get, and that none can hold the publisher or the others up."""

from __future__ import annotations

import asyncio
import resource
import signal
import time
from collections.abc import Coroutine
from pathlib import Path
from typing import Any

import pytest

from cove.events.bus import Bus, Stream, SubscriberTooSlow
from cove.events.filters import event_filter
from cove.events.journal import Journal
from cove.model.errors import Invalid
from cove.model.objects import Event


def event(
    action: str = "start", time_ns: int = 1, kind: str = "container", actor: str = "c1", **attributes: str
) -> Event:
    return Event(kind=kind, action=action, actor_id=actor, attributes=attributes, time_ns=time_ns)


def run(body: Coroutine[Any, Any, None]) -> None:
    async def bounded() -> None:
        async with asyncio.timeout(60):
            await body

    asyncio.run(bounded())


async def take(stream: Stream, count: int) -> list[str]:
    return [(await stream.__anext__()).action for _ in range(count)]


async def rest(stream: Stream) -> list[str]:
    return [each.action async for each in stream]


def test_a_stream_gets_what_is_published_after_it_was_made() -> None:
    async def body() -> None:
        bus = Bus()
        bus.publish(event("before"))
        stream = bus.stream()
        bus.publish(event("one"))
        bus.publish(event("two"))
        assert await take(stream, 2) == ["one", "two"]
        reader = asyncio.ensure_future(take(stream, 1))
        await asyncio.sleep(0)
        bus.publish(event("three"))
        assert await reader == ["three"]
        await stream.aclose()
        assert not bus.streams

    run(body())


def test_since_replays_what_is_recent_without_a_gap() -> None:
    async def body() -> None:
        bus = Bus(limit=3)
        for number in range(1, 6):
            bus.publish(event(str(number), time_ns=number))
        late, later = bus.stream(since_ns=1), bus.stream(since_ns=5)
        bus.publish(event("6", time_ns=6))
        assert await take(late, 4) == ["3", "4", "5", "6"]
        assert await take(later, 2) == ["5", "6"]

    run(body())


def test_until_in_the_past_ends_after_the_replay() -> None:
    async def body() -> None:
        bus = Bus()
        for number in range(1, 6):
            bus.publish(event(str(number), time_ns=number))
        assert await rest(bus.stream(since_ns=2, until_ns=4)) == ["2", "3", "4"]
        assert not bus.streams

    run(body())


def test_until_in_the_future_ends_when_it_comes() -> None:
    async def body() -> None:
        bus = Bus()
        stream = bus.stream(until_ns=time.time_ns() + 100_000_000)
        bus.publish(event("now", time_ns=time.time_ns()))
        bus.publish(event("too late", time_ns=time.time_ns() + 10**12))
        assert await rest(stream) == ["now"]

    run(body())


def test_a_predicate_chooses() -> None:
    async def body() -> None:
        bus = Bus()
        bus.publish(event("old stop"))
        stream = bus.stream(since_ns=1, predicate=lambda each: "stop" in each.action)
        bus.publish(event("start"))
        bus.publish(event("stop"))
        assert await take(stream, 2) == ["old stop", "stop"]

    run(body())


def test_a_slow_subscriber_is_dropped_and_nobody_else_notices() -> None:
    async def body() -> None:
        bus = Bus(backlog=5)
        slow, quick = bus.stream(), bus.stream()
        for number in range(8):
            bus.publish(event(str(number)))
            assert await take(quick, 1) == [str(number)]
        assert await take(slow, 5) == ["0", "1", "2", "3", "4"]
        with pytest.raises(SubscriberTooSlow, match="more than 5 events behind"):
            await slow.__anext__()
        assert bus.streams == {quick}
        with pytest.raises(StopAsyncIteration):
            await slow.__anext__()

    run(body())


def test_closing_the_bus_ends_streams_after_what_they_hold() -> None:
    async def body() -> None:
        bus = Bus()
        stream, waiting = bus.stream(), bus.stream()
        reader = asyncio.ensure_future(rest(waiting))
        bus.publish(event("last"))
        await asyncio.sleep(0)
        await bus.close()
        assert await rest(stream) == ["last"]
        assert await reader == ["last"]

    run(body())


def test_a_cancelled_reader_leaves_the_stream_usable() -> None:
    async def body() -> None:
        bus = Bus()
        stream = bus.stream()
        reader = asyncio.ensure_future(take(stream, 1))
        await asyncio.sleep(0)
        reader.cancel()
        await asyncio.gather(reader, return_exceptions=True)
        bus.publish(event("one"))
        assert await take(stream, 1) == ["one"]

    run(body())


# --- Docker's filters ---------------------------------------------------------------------

WEB = event("start", actor="abc123", name="web", image="nginx:1.25", tier="front")
PULL = event("pull", kind="image", actor="docker.io/library/nginx:1.25", name="nginx")
MADE = event("create", kind="volume", actor="data", driver="local")
JOIN = event("connect", kind="network", actor="net1", name="backend", container="abc123")
EXEC = event("exec_create: ls -l", actor="abc123", name="web")
ALL = (WEB, PULL, MADE, JOIN, EXEC)


@pytest.mark.parametrize(
    ("filters", "expected"),
    [
        ({}, ALL),
        ({"type": []}, ALL),
        ({"type": ["container"]}, (WEB, EXEC)),
        ({"type": ["container", "volume"]}, (WEB, MADE, EXEC)),
        ({"type": ["contain"]}, ()),
        ({"event": ["start"]}, (WEB,)),
        ({"event": ["star"]}, ()),
        ({"event": ["exec_create"]}, (EXEC,)),
        ({"event": ["exec_create", "star"]}, (WEB, EXEC)),
        ({"container": ["web"]}, (WEB, EXEC)),
        ({"container": ["abc"]}, (WEB, EXEC)),
        ({"container": ["xyz"]}, ()),
        ({"container": ["web"], "event": ["start"]}, (WEB,)),
        ({"volume": ["data"]}, (MADE,)),
        ({"network": ["back"]}, (JOIN,)),
        ({"network": ["net1"]}, (JOIN,)),
        ({"image": ["nginx"]}, (WEB, PULL)),
        ({"image": ["nginx:1.25"]}, (WEB,)),
        ({"image": ["ngin"]}, ()),
        ({"label": ["tier"]}, (WEB,)),
        ({"label": ["tier=front"]}, (WEB,)),
        ({"label": ["tier=back"]}, ()),
        ({"label": ["tier", "image=nginx:1.25"]}, (WEB,)),
        ({"label": ["tier", "missing"]}, ()),
        ({"scope": ["local"]}, ALL),
        ({"scope": ["swarm"]}, ()),
        ({"daemon": ["x"]}, ()),
    ],
)
def test_filters_choose_as_docker_s_do(filters: dict[str, list[str]], expected: tuple[Event, ...]) -> None:
    assert tuple(filter(event_filter(filters), ALL)) == expected


@pytest.mark.parametrize(
    ("name", "bare"),
    [
        ("nginx:1.25", "nginx"),
        ("nginx@sha256:" + "0" * 64, "nginx"),
        ("host:5000/a/b:1", "host:5000/a/b"),
        ("host:5000/a", "host:5000/a"),
        ("docker.io/library/nginx:1", "nginx"),
        ("docker.io/me/app", "me/app"),
        ("sha256:" + "0" * 64, "sha256:" + "0" * 64),
    ],
)
def test_an_image_filter_matches_without_the_tag(name: str, bare: str) -> None:
    assert event_filter({"image": [bare]})(event(image=name))


def test_an_unknown_filter_is_refused() -> None:
    with pytest.raises(Invalid, match="invalid filter 'colour'"):
        event_filter({"colour": ["red"]})


# --- the event store ----------------------------------------------------------------------


async def stored(journal: Journal, since_ns: int = 1, until_ns: int = 2**62) -> list[str]:
    """What a bus that has just begun tells of the past."""
    bus = Bus(journal=journal)
    found = await rest(bus.stream(since_ns=since_ns, until_ns=min(until_ns, bus.clock_ns())))
    await bus.close()
    return found


def test_since_reaches_beyond_the_ring_and_a_restart(tmp_path: Path) -> None:
    async def body() -> None:
        bus = Bus(limit=2, journal=Journal(tmp_path))
        for number in range(1, 8):
            bus.publish(event(str(number), time_ns=number))
        stream = bus.stream(since_ns=3)
        bus.publish(event("8", time_ns=8))
        assert await take(stream, 6) == ["3", "4", "5", "6", "7", "8"]
        some = bus.stream(since_ns=2, until_ns=5, predicate=lambda each: each.action != "4")
        assert await rest(some) == ["2", "3", "5"]
        await bus.close()
        assert await stored(Journal(tmp_path), since_ns=6) == ["6", "7", "8"]

    run(body())


def test_a_killed_writer_s_half_line_costs_no_other_event(tmp_path: Path) -> None:
    async def body() -> None:
        bus = Bus(journal=Journal(tmp_path))
        bus.publish(event("whole", time_ns=1))
        await bus.close()
        with open(tmp_path / "events", "ab") as torn:
            torn.write(b'{"kind":"contai')
        bus = Bus(journal=Journal(tmp_path))
        bus.publish(event("next", time_ns=2))
        await bus.close()
        assert await stored(Journal(tmp_path)) == ["whole", "next"]

    run(body())


def test_the_store_is_bounded_and_keeps_the_newest(tmp_path: Path) -> None:
    async def body() -> None:
        bus = Bus(limit=1, journal=Journal(tmp_path, limit_bytes=2_000))
        for number in range(1, 201):
            bus.publish(event(str(number), time_ns=number))
            await asyncio.sleep(0)
        await bus.close()
        assert sum(path.stat().st_size for path in tmp_path.iterdir()) <= 4_000
        found = await stored(Journal(tmp_path))
        assert found == [str(number) for number in range(201 - len(found), 201)]
        assert len(found) > 20

    run(body())


def test_a_reader_of_the_past_isn_t_disturbed_by_a_rotation(tmp_path: Path) -> None:
    async def body() -> None:
        bus = Bus(limit=1, journal=Journal(tmp_path, limit_bytes=1_000_000))
        for number in range(1, 2_001):
            bus.publish(event(str(number), time_ns=number))
        stream = bus.stream(since_ns=1)
        assert await take(stream, 1) == ["1"]
        (tmp_path / "events").rename(tmp_path / "events.1")
        bus.publish(event("last", time_ns=3_000))
        assert await take(stream, 2_000) == [*(str(number) for number in range(2, 2_001)), "last"]
        await stream.aclose()
        await bus.close()

    run(body())


def test_no_two_events_have_one_time(tmp_path: Path) -> None:
    async def body() -> None:
        bus = Bus(journal=Journal(tmp_path))
        for name in ("a", "b", "c"):
            bus.publish(event(name, time_ns=10))
        assert [each.time_ns for each in bus.recent] == [10, 11, 12]
        await bus.close()
        bus = Bus(journal=Journal(tmp_path))
        bus.publish(event("the clock was set back", time_ns=5))
        assert [each.time_ns for each in bus.recent] == [13]
        assert await take(bus.stream(since_ns=12), 2) == ["c", "the clock was set back"]
        await bus.close()

    run(body())


def test_a_full_disk_costs_stored_events_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """RLIMIT_FSIZE refuses what goes beyond it, as a full disk does: a write is cut short, then fails."""

    async def body() -> None:
        bus = Bus(journal=Journal(tmp_path))
        bus.publish(event("kept", time_ns=1))
        await asyncio.sleep(0)
        before = resource.getrlimit(resource.RLIMIT_FSIZE)
        handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        try:
            resource.setrlimit(resource.RLIMIT_FSIZE, ((tmp_path / "events").stat().st_size + 10, before[1]))
            stream = bus.stream()
            bus.publish(event("lost", time_ns=2))
            assert await take(stream, 1) == ["lost"]
            await asyncio.sleep(0)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, before)
            signal.signal(signal.SIGXFSZ, handler)
        bus.publish(event("kept again", time_ns=3))
        await bus.close()
        assert await stored(Journal(tmp_path)) == ["kept", "kept again"]

    run(body())
