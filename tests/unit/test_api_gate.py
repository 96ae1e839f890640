"""The gate: how many work at once, in which order, and that nobody keeps a place who waits for something else."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any

from cove.api.gate import Gate


def run(body: Coroutine[Any, Any, None]) -> None:
    async def bounded() -> None:
        async with asyncio.timeout(60):
            await body

    asyncio.run(bounded())


async def settle() -> None:
    for _ in range(20):
        await asyncio.sleep(0)


def test_so_many_work_at_once_first_come_first_served() -> None:
    async def body() -> None:
        gate, began = Gate(2, turn_s=60), []
        ends = [asyncio.Event() for _ in range(5)]

        async def work(number: int) -> None:
            async with gate.turn():
                began.append(number)
                await ends[number].wait()

        tasks = [asyncio.ensure_future(work(number)) for number in range(5)]
        await settle()
        assert began == [0, 1]
        ends[1].set()
        await settle()
        assert began == [0, 1, 2]
        ends[0].set(), ends[2].set()
        await settle()
        assert began == [0, 1, 2, 3, 4]
        ends[3].set(), ends[4].set()
        await asyncio.gather(*tasks)
        async with gate.turn(), gate.turn():
            pass  # both places are free again

    run(body())


def test_one_that_takes_long_gives_its_place_away_once() -> None:
    async def body() -> None:
        gate, until = Gate(1, turn_s=0.01), asyncio.Event()

        async def hang() -> None:
            async with gate.turn():
                await until.wait()

        hanging = [asyncio.ensure_future(hang()) for _ in range(5)]
        async with gate.turn():  # comes after all five
            pass
        until.set()
        await asyncio.gather(*hanging)
        held = asyncio.Event()

        async def keep() -> None:
            async with Gate.turn(gate):
                held.set()
                await asyncio.sleep(0.005)

        first = asyncio.ensure_future(keep())
        await held.wait()
        second = asyncio.ensure_future(gate.turn().__aenter__())
        await settle()
        assert not second.done() or first.done()  # one place, not six
        await first
        await second

    run(body())


def test_whoever_goes_away_while_waiting_costs_no_place() -> None:
    async def body() -> None:
        gate = Gate(1, turn_s=60)

        async def work(until: asyncio.Event) -> None:
            async with gate.turn():
                await until.wait()

        until = asyncio.Event()
        first = asyncio.ensure_future(work(until))
        await settle()
        gone, stays = asyncio.ensure_future(work(until)), asyncio.ensure_future(work(until))
        just_woken = asyncio.ensure_future(work(until))
        await settle()
        gone.cancel()
        until.set()
        await asyncio.sleep(0)
        await asyncio.gather(first, stays)
        just_woken.cancel()
        await asyncio.gather(gone, just_woken, return_exceptions=True)
        async with gate.turn():
            pass

    run(body())


def test_an_error_frees_the_place() -> None:
    async def body() -> None:
        gate = Gate(1, turn_s=60)
        for _ in range(3):
            try:
                async with gate.turn():
                    raise ValueError
            except ValueError:
                pass

    run(body())
