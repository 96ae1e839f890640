"""Who gets a place among the workers, and who makes room."""

from __future__ import annotations

import asyncio

import pytest

from cove.image import crowd
from cove.image.crowd import Crowd
from cove.model.errors import Unavailable


class FakeWorker:
    def __init__(self) -> None:
        self.idle_since_s: float | None = None
        self.given_up = False

    def give_up(self) -> None:
        self.given_up = True


async def enters(found: Crowd, member: FakeWorker) -> bool:
    """Whether it gets in at once."""
    task = asyncio.ensure_future(found.enter(member))
    for _ in range(5):
        await asyncio.sleep(0)
    if not task.done():
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        return False
    return True


def test_few_start_at_once_and_the_next_begins_when_one_has_started() -> None:
    async def check() -> None:
        found = Crowd(most=10, at_once=2)
        first, second, third = FakeWorker(), FakeWorker(), FakeWorker()
        assert await enters(found, first) and await enters(found, second)
        assert not await enters(found, third)
        waiting = asyncio.ensure_future(found.enter(third))
        await asyncio.sleep(0)
        found.started(first)
        async with asyncio.timeout(5):
            await waiting

    asyncio.run(check())


def test_those_who_wait_come_in_their_order() -> None:
    async def check() -> None:
        found = Crowd(most=1, at_once=1)
        members = [FakeWorker() for _ in range(4)]
        order: list[int] = []

        async def come(number: int) -> None:
            await found.enter(members[number])
            order.append(number)

        tasks = []
        for number in range(4):
            tasks.append(asyncio.ensure_future(come(number)))
            await asyncio.sleep(0)
        for number in range(4):
            async with asyncio.timeout(5):
                while len(order) <= number:
                    await asyncio.sleep(0.001)
            found.leave(members[number])
        await asyncio.gather(*tasks)
        assert order == [0, 1, 2, 3]

    asyncio.run(check())


def test_a_stalled_one_makes_room_and_a_busy_one_does_not(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(crowd, "STALLED_S", 0.0)
    monkeypatch.setattr(crowd, "LOOK_S", 0.01)

    async def check() -> None:
        found = Crowd(most=2, at_once=2)
        busy, stalled, third = FakeWorker(), FakeWorker(), FakeWorker()
        for member in (busy, stalled):
            await found.enter(member)
            found.started(member)
        assert not await enters(found, third) and not stalled.given_up
        stalled.idle_since_s = asyncio.get_running_loop().time()
        async with asyncio.timeout(5):
            await found.enter(third)
        assert stalled.given_up and not busy.given_up

    asyncio.run(check())


def test_waiting_ends_with_a_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(crowd, "WAIT_S", 0.0)
    monkeypatch.setattr(crowd, "LOOK_S", 0.01)

    async def check() -> None:
        found = Crowd(most=1, at_once=1)
        await found.enter(FakeWorker())
        with pytest.raises(
            Unavailable, match="1 archives are being read or written, as many as there can be"
        ):
            await found.enter(FakeWorker())

    asyncio.run(check())
