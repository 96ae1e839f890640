"""The index of containers over the store: what readers see is what was committed."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

import msgspec
import pytest

from cove.engine.registry import Registry
from cove.model.container import Container, ContainerSpec, State
from cove.model.errors import Conflict, Invalid, NotFound
from cove.model.recreation import Recreation
from cove.store.sqlite import SqliteStore

A, B = "aa" + "0" * 62, "ab" + "0" * 62


def container(container_id: str, name: str) -> Container:
    return Container(
        id=container_id,
        name=name,
        created_ns=1,
        image_id="sha256:1",
        image_name="x",
        spec=ContainerSpec(image="x"),
        args=("true",),
    )


def with_registry(path: Path, work: Callable[[Registry], Coroutine[Any, Any, None]]) -> None:
    async def run() -> None:
        store = await SqliteStore.open(path / "state.db")
        try:
            await work(await Registry.open(store))
        finally:
            await store.close()

    asyncio.run(run())


def test_containers_are_found_by_id_name_slash_name_and_unique_prefix(tmp_path: Path) -> None:
    async def work(registry: Registry) -> None:
        await registry.insert(container(A, "web"), State())
        await registry.insert(container(B, "db"), State())
        for reference in (A, "web", "/web", "aa"):
            assert registry.find(reference).container.id == A
        with pytest.raises(Invalid, match="Multiple IDs found with provided prefix: a"):
            registry.find("a")
        with pytest.raises(NotFound, match="No such container: nope"):
            registry.find("nope")
        with pytest.raises(Invalid):
            registry.find("")

    with_registry(tmp_path, work)


def test_a_name_in_use_is_refused_and_nothing_is_stored(tmp_path: Path) -> None:
    async def work(registry: Registry) -> None:
        await registry.insert(container(A, "web"), State())
        with pytest.raises(Conflict, match=f'"/web" is already in use by container "{A}"'):
            await registry.insert(container(B, "web"), State())
        assert registry.ids() == [A]

    with_registry(tmp_path, work)


def test_a_rename_moves_the_name_and_frees_the_old_one(tmp_path: Path) -> None:
    async def work(registry: Registry) -> None:
        await registry.insert(container(A, "web"), State())
        await registry.rename(A, "shop")
        assert registry.find("shop").container.name == "shop"
        with pytest.raises(NotFound):
            registry.find("web")
        await registry.insert(container(B, "web"), State())
        with pytest.raises(Conflict):
            await registry.rename(B, "shop")

    with_registry(tmp_path, work)


def test_what_was_committed_is_there_after_opening_again(tmp_path: Path) -> None:
    async def first(registry: Registry) -> None:
        await registry.insert(container(A, "web"), State())
        await registry.insert(container(B, "db"), State())
        state = registry.find(A).state
        await registry.set_state(A, msgspec.structs.replace(state, status="exited", exit_code=3))
        await registry.rename(A, "shop")
        await registry.delete(B)

    async def second(registry: Registry) -> None:
        assert registry.ids() == [A]
        view = registry.find("shop")
        assert (view.state.status, view.state.exit_code) == ("exited", 3)
        await registry.insert(container(B, "web"), State())
        await registry.insert(container("ff" * 32, "db"), State())

    with_registry(tmp_path, first)
    with_registry(tmp_path, second)


def test_deleting_twice_is_fine_and_a_state_of_a_deleted_one_is_refused(tmp_path: Path) -> None:
    async def work(registry: Registry) -> None:
        await registry.insert(container(A, "web"), State())
        await registry.delete(A)
        await registry.delete(A)
        with pytest.raises(NotFound):
            await registry.set_state(A, State(status="running"))

    with_registry(tmp_path, work)


def test_an_exchange_gives_the_name_over_as_one_and_back(tmp_path: Path) -> None:
    record = Recreation(old=A, new=B, name="web", fresh="web.new", aside="web.old", ran=True)

    async def work(registry: Registry) -> None:
        await registry.insert(container(A, "web"), State())
        await registry.insert(container(B, "web.new"), State())
        await registry.note_recreation(record)
        with pytest.raises(Conflict, match="being re-created already"):
            await registry.note_recreation(record)
        turned = await registry.exchange(record)
        assert (registry.find("web").container.id, registry.find("web.old").container.id) == (B, A)
        assert "web.new" not in registry
        assert await registry.list_recreations() == [turned]
        back = await registry.exchange(turned)
        assert back == record
        assert (registry.find("web").container.id, registry.find("web.new").container.id) == (A, B)
        assert "web.old" not in registry
        await registry.rename(A, "moved")
        with pytest.raises(Conflict, match="was renamed to moved"):
            await registry.exchange(back)
        await registry.delete(B)
        with pytest.raises(Conflict, match="renamed"):
            await registry.exchange(back)
        await registry.rename(A, "web")
        with pytest.raises(NotFound, match="was removed"):
            await registry.exchange(back)
        await registry.forget_recreation(back)
        assert await registry.list_recreations() == []

    with_registry(tmp_path, work)
