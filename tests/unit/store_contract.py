"""What every implementation of `cove.store.interface.Store` must do.

A module that tests one gives the fixture `open_store` and subclasses StoreContract:

    async with open_store() as (store, advance): ...

`store` is new and empty, `advance(seconds)` lets that much time pass for its leases (a fake clock is
moved; a real server is waited for). `state_machine(open_store)` is the same as a hypothesis machine
against a model of dictionaries.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager
from typing import Any

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from cove.model.errors import Invalid, NotFound
from cove.store.interface import (
    MAX_OPERATIONS,
    MAX_TRANSACTION_BYTES,
    Change,
    Closed,
    Compare,
    CreateRevision,
    Delete,
    DeletePrefix,
    Exists,
    Get,
    KeyValue,
    ModRevision,
    Op,
    Put,
    Store,
    Value,
    Version,
    Watch,
    absent,
)

Advance = Callable[[float], Awaitable[None]]
OpenStore = Callable[[], AbstractAsyncContextManager[tuple[Store, Advance]]]
BOUND_S = 60


def with_store(test: Callable[..., Awaitable[None]]) -> Callable[..., None]:
    """Run an async method as a test, with a store of its own."""

    def run(self: object, open_store: OpenStore) -> None:
        async def body() -> None:
            async with asyncio.timeout(BOUND_S), open_store() as (store, advance):
                await test(self, store, advance)

        asyncio.run(body())

    run.__name__ = test.__name__
    run.__doc__ = test.__doc__
    return run


async def put(store: Store, key: str, value: bytes = b"", lease: int = 0) -> int:
    return (await store.txn([], [Put(key, value, lease)])).revision


async def take(watch: Watch, count: int) -> list[Change]:
    changes = []
    for _ in range(count):
        async with asyncio.timeout(BOUND_S):
            changes.append(await watch.__anext__())
    return changes


class StoreContract:
    # --- reading and writing --------------------------------------------------------------

    @with_store
    async def test_a_new_store_is_empty(self, store: Store, advance: Advance) -> None:
        assert await store.range("") == []
        assert await store.get("a") is None

    @with_store
    async def test_each_write_gets_the_next_revision(self, store: Store, advance: Advance) -> None:
        start = store.revision
        assert await put(store, "a", b"1") == start + 1
        assert await put(store, "a", b"2") == start + 2
        assert await store.get("a") == KeyValue("a", b"2", start + 1, start + 2, 2)
        assert store.revision == start + 2

    @with_store
    async def test_writes_of_one_transaction_share_a_revision(self, store: Store, advance: Advance) -> None:
        done = await store.txn([], [Put("a", b"1"), Put("b", b"2"), Delete("c")])
        assert done.results == (None, None, 0)
        assert [pair.mod_revision for pair in await store.range("")] == [done.revision] * 2

    @with_store
    async def test_a_transaction_that_changes_nothing_takes_no_revision(
        self, store: Store, advance: Advance
    ) -> None:
        start = await put(store, "a", b"1")
        done = await store.txn([], [Get("a"), Delete("b"), DeletePrefix("c")])
        assert (done.revision, store.revision) == (start, start)
        assert done.results[1:] == (0, 0)

    @with_store
    async def test_a_deleted_key_starts_over_when_it_comes_back(self, store: Store, advance: Advance) -> None:
        await put(store, "a", b"1")
        await put(store, "a", b"2")
        assert (await store.txn([], [Delete("a")])).results == (1,)
        assert await store.get("a") is None
        revision = await put(store, "a", b"3")
        assert await store.get("a") == KeyValue("a", b"3", revision, revision, 1)

    @with_store
    async def test_a_get_sees_the_writes_before_it(self, store: Store, advance: Advance) -> None:
        done = await store.txn([], [Get("a"), Put("a", b"1"), Get("a")])
        assert done.found(0) is None
        found = done.found(2)
        assert found is not None and found.value == b"1"

    @with_store
    async def test_any_bytes_are_a_value(self, store: Store, advance: Advance) -> None:
        for value in (b"", b"\0", bytes(range(256)), b"x" * 1_000_000):
            await put(store, "a", value)
            found = await store.get("a")
            assert found is not None and found.value == value

    @with_store
    async def test_a_range_is_ordered_bounded_and_takes_the_prefix_literally(
        self, store: Store, advance: Advance
    ) -> None:
        keys = ["a", "a/", "a/%", "a/1", "a/10", "a/2", "a0", "b", "é/1", "\U0010ffff", "\ud7ff", "\ue000"]
        for key in reversed(keys):
            await put(store, key)

        async def names(prefix: str, limit: int = 0) -> list[str]:
            return [pair.key for pair in await store.range(prefix, limit=limit)]

        assert await names("") == sorted(keys, key=str.encode)
        assert await names("a/") == ["a/", "a/%", "a/1", "a/10", "a/2"]
        assert await names("a/", limit=2) == ["a/", "a/%"]
        assert await names("é") == ["é/1"]
        assert await names("\U0010ffff") == ["\U0010ffff"]
        assert await names("\ud7ff") == ["\ud7ff"]
        assert await names("a%") == []

    @with_store
    async def test_a_range_of_a_past_revision_shows_what_was(self, store: Store, advance: Advance) -> None:
        first = await put(store, "a/1", b"old")
        await put(store, "a/2", b"two")
        await store.txn([], [Put("a/1", b"new"), Delete("a/2"), Put("a/3", b"three")])
        assert [(pair.key, pair.value) for pair in await store.range("a/", revision=first)] == [
            ("a/1", b"old")
        ]
        assert [pair.key for pair in await store.range("a/", revision=first + 1)] == ["a/1", "a/2"]
        assert [pair.key for pair in await store.range("a/", revision=first + 1, limit=1)] == ["a/1"]
        with pytest.raises(Invalid, match="still to come"):
            await store.range("a/", revision=store.revision + 1)

    # --- comparing ------------------------------------------------------------------------

    @with_store
    async def test_the_branch_is_chosen_by_all_comparisons(self, store: Store, advance: Advance) -> None:
        first = await put(store, "a", b"1")
        last = await put(store, "a", b"2")
        right: list[Compare] = [
            Value("a", b"2"),
            CreateRevision("a", first),
            ModRevision("a", last),
            Version("a", 2),
            Exists("a"),
            absent("b"),
            ModRevision("b", 0),
            Version("b", 0),
        ]
        wrong: list[Compare] = [
            Value("a", b"1"),
            Value("b", b""),
            CreateRevision("a", last),
            ModRevision("a", first),
            Version("a", 1),
            Exists("b"),
            absent("a"),
        ]
        assert (await store.txn(right, [Get("a")])).succeeded
        for compare in wrong:
            done = await store.txn([*right, compare], [Put("then", b"")], [Put("otherwise", b"")])
            assert not done.succeeded, compare
        assert await store.get("then") is None
        assert await store.get("otherwise") is not None

    @with_store
    async def test_one_of_many_creators_wins(self, store: Store, advance: Advance) -> None:
        done = await asyncio.gather(
            *(store.txn([absent("name")], [Put("name", b"%d" % i)]) for i in range(20))
        )
        assert [each.succeeded for each in done].count(True) == 1

    # --- refusals -------------------------------------------------------------------------

    @with_store
    async def test_a_refused_transaction_changes_nothing(self, store: Store, advance: Advance) -> None:
        start = store.revision
        refused: list[list[Op]] = [
            [Put("ok", b""), Put("a", b"1"), Put("a", b"2")],
            [Put("ok", b""), Put("a", b"1"), Delete("a")],
            [Put("ok", b""), Put("a/1", b"1"), DeletePrefix("a/")],
            [Put("ok", b""), DeletePrefix("a"), DeletePrefix("a/")],
            [Put("ok", b""), Put("", b"")],
            [Put("ok", b""), Put("nul\0", b"")],
            [Put("ok", b""), Put("\ud800", b"")],
            [Put(f"k{i}", b"") for i in range(MAX_OPERATIONS + 1)],
            [Put("ok", b"x" * (MAX_TRANSACTION_BYTES + 1))],
        ]
        for operations in refused:
            with pytest.raises(Invalid):
                await store.txn([], operations)
        with pytest.raises(NotFound, match="lease"):
            await store.txn([], [Put("ok", b""), Put("a", b"", lease=12345)])
        assert store.revision == start
        assert await store.range("") == []

    # --- watching -------------------------------------------------------------------------

    @with_store
    async def test_a_watch_delivers_each_change_once_and_in_order(
        self, store: Store, advance: Advance
    ) -> None:
        await put(store, "a/0", b"before")
        watch = store.watch("a/")
        await store.txn([], [Put("a/1", b"1"), Put("b", b""), Delete("a/0")])
        await put(store, "a/1", b"2")
        changes = await take(watch, 3)
        assert [(change.key, change.current is None, change.previous is None) for change in changes] == [
            ("a/1", False, True),
            ("a/0", True, False),
            ("a/1", False, False),
        ]
        assert changes[0].revision == changes[1].revision == changes[2].revision - 1
        assert changes[2].previous == changes[0].current
        await watch.aclose()

    @with_store
    async def test_a_watch_from_a_listing_on_misses_nothing(self, store: Store, advance: Advance) -> None:
        await put(store, "a/1", b"1")
        listed = store.revision
        await put(store, "a/2", b"2")
        await put(store, "a/3", b"3")
        assert [change.key for change in await take(store.watch("a/", listed + 1), 2)] == ["a/2", "a/3"]
        assert [change.key for change in await take(store.watch("a/", listed), 3)] == ["a/1", "a/2", "a/3"]

    @with_store
    async def test_a_watch_from_a_coming_revision_waits_for_it(self, store: Store, advance: Advance) -> None:
        watch = store.watch("a", store.revision + 3)
        for key in ("a1", "a2", "a3"):
            await put(store, key)
        assert [change.key for change in await take(watch, 1)] == ["a3"]

    @with_store
    async def test_a_waiting_watch_wakes(self, store: Store, advance: Advance) -> None:
        watch = store.watch("a/")
        reader = asyncio.ensure_future(watch.__anext__())
        await asyncio.sleep(0)
        await put(store, "b", b"")
        await put(store, "a/1", b"")
        assert (await asyncio.wait_for(reader, BOUND_S)).key == "a/1"

    @with_store
    async def test_a_cancelled_reader_loses_no_change(self, store: Store, advance: Advance) -> None:
        watch = store.watch("a/")
        reader = asyncio.ensure_future(watch.__anext__())
        await asyncio.sleep(0)
        await put(store, "a/1", b"")
        reader.cancel()
        done = (await asyncio.gather(reader, return_exceptions=True))[0]
        got = [done.key] if isinstance(done, Change) else []
        await put(store, "a/2", b"")
        while len(got) < 2:
            got += [change.key for change in await take(watch, 1)]
        assert got == ["a/1", "a/2"]

    @with_store
    async def test_a_closed_watch_ends(self, store: Store, advance: Advance) -> None:
        watch = store.watch("")

        async def read(changes: AsyncIterator[Change]) -> int:
            return len([change async for change in changes])

        reader = asyncio.ensure_future(read(watch.__aiter__()))
        await asyncio.sleep(0)
        await watch.aclose()
        await watch.aclose()
        assert await asyncio.wait_for(reader, BOUND_S) == 0

    @with_store
    async def test_closing_the_store_ends_watches_with_an_error(self, store: Store, advance: Advance) -> None:
        watch = store.watch("")
        reader = asyncio.ensure_future(watch.__anext__())
        await asyncio.sleep(0)
        await store.close()
        with pytest.raises(Closed):
            await asyncio.wait_for(reader, BOUND_S)
        for call in (store.get("a"), store.range(""), store.txn([], [Put("a", b"")]), store.lease(1)):
            with pytest.raises(Closed):
                await call
        await store.close()

    # --- leases ---------------------------------------------------------------------------

    @with_store
    async def test_the_keys_of_a_lease_vanish_together_when_it_ends(
        self, store: Store, advance: Advance
    ) -> None:
        lease = await store.lease(5)
        await put(store, "stays", b"")
        await put(store, "a/1", b"1", lease.id)
        await put(store, "a/2", b"2", lease.id)
        watch = store.watch("")
        await advance(lease.ttl_s + 2)
        changes = await take(watch, 2)
        assert [(change.key, change.current) for change in changes] == [("a/1", None), ("a/2", None)]
        assert changes[0].revision == changes[1].revision
        assert [pair.key for pair in await store.range("")] == ["stays"]
        with pytest.raises(NotFound, match="ended"):
            await lease.keep_alive()
        with pytest.raises(NotFound, match="ended"):
            await put(store, "a/3", b"", lease.id)
        await lease.revoke()

    @with_store
    async def test_a_lease_kept_alive_keeps_its_keys(self, store: Store, advance: Advance) -> None:
        lease = await store.lease(5)
        await put(store, "a", b"1", lease.id)
        for _ in range(3):
            await advance(3)
            await lease.keep_alive()
        assert await store.get("a") is not None

    @with_store
    async def test_revoking_a_lease_deletes_its_keys_at_once(self, store: Store, advance: Advance) -> None:
        lease = await store.lease(600)
        await put(store, "a", b"1", lease.id)
        await lease.revoke()
        assert await store.get("a") is None
        await lease.revoke()

    @with_store
    async def test_a_key_written_without_its_lease_outlives_it(self, store: Store, advance: Advance) -> None:
        lease = await store.lease(600)
        await put(store, "a", b"1", lease.id)
        await put(store, "a", b"2")
        await lease.revoke()
        found = await store.get("a")
        assert found is not None and (found.value, found.lease) == (b"2", 0)

    @with_store
    async def test_a_lease_of_no_time_is_refused(self, store: Store, advance: Advance) -> None:
        with pytest.raises(Invalid, match="lease"):
            await store.lease(0)


# --- the same against a model -------------------------------------------------------------

_KEYS = st.sampled_from(["a", "a/1", "a/2", "a/2x", "b", "b/1", "é"])
_PREFIXES = st.sampled_from(["", "a", "a/", "a/2", "b/", "z"])
_VALUES = st.sampled_from([b"", b"1", b"2", b"x" * 300])
_READS = st.builds(Get, _KEYS)
_WRITES = st.one_of(
    st.builds(Put, _KEYS, _VALUES), st.builds(Delete, _KEYS), st.builds(DeletePrefix, _PREFIXES)
)
_OPERATIONS = st.lists(st.one_of(_WRITES, _READS), max_size=5)
_COMPARISONS = st.lists(
    st.one_of(
        st.builds(Value, _KEYS, _VALUES),
        st.builds(Version, _KEYS, st.integers(0, 3)),
        st.builds(Exists, _KEYS),
        st.builds(absent, _KEYS),
        st.builds(ModRevision, _KEYS, st.integers(0, 10)),
    ),
    max_size=2,
)


class _Model:
    """The rules of the interface over dictionaries."""

    def __init__(self, revision: int) -> None:
        self.states: dict[int, dict[str, KeyValue]] = {revision: {}}
        self.revision = revision
        self.changes: list[Change] = []

    @property
    def state(self) -> dict[str, KeyValue]:
        return self.states[self.revision]

    def range(self, prefix: str, revision: int) -> list[KeyValue]:
        state = self.states[revision]
        return [state[key] for key in sorted(state, key=str.encode) if key.startswith(prefix)]

    def holds(self, compare: Compare) -> bool:
        pair = self.state.get(compare.key)
        match compare:
            case Value():
                return pair is not None and pair.value == compare.equals
            case Exists():
                return pair is not None
            case Version():
                return (pair.version if pair else 0) == compare.equals
            case ModRevision():
                return (pair.mod_revision if pair else 0) == compare.equals
            case CreateRevision():
                return (pair.create_revision if pair else 0) == compare.equals

    @staticmethod
    def refuses(operations: list[Op]) -> bool:
        written = [operation.key for operation in operations if isinstance(operation, Put | Delete)]
        prefixes = [operation.prefix for operation in operations if isinstance(operation, DeletePrefix)]
        return (
            len(set(written)) < len(written)
            or any(key.startswith(prefix) for key in written for prefix in prefixes)
            or any(
                one.startswith(other)
                for at, one in enumerate(prefixes)
                for index, other in enumerate(prefixes)
                if at != index
            )
        )

    def run(self, operations: list[Op]) -> tuple[Any, ...]:
        state, revision = dict(self.state), self.revision + 1
        results: list[Any] = []
        changes: list[Change] = []

        def delete(keys: list[str]) -> int:
            for key in keys:
                changes.append(Change(revision, key, None, state.pop(key)))
            return len(keys)

        for operation in operations:
            match operation:
                case Get():
                    results.append(state.get(operation.key))
                case Put():
                    old = state.get(operation.key)
                    created, version = (old.create_revision, old.version + 1) if old else (revision, 1)
                    new = KeyValue(operation.key, operation.value, created, revision, version)
                    state[operation.key] = new
                    changes.append(Change(revision, operation.key, new, old))
                    results.append(None)
                case Delete():
                    results.append(delete([operation.key] if operation.key in state else []))
                case DeletePrefix():
                    keys = sorted((key for key in state if key.startswith(operation.prefix)), key=str.encode)
                    results.append(delete(keys))
        if changes:
            self.revision = revision
            self.states[revision] = state
            self.changes += changes
        return tuple(results)


def state_machine(open_store: OpenStore) -> type[RuleBasedStateMachine]:
    """A hypothesis machine that drives a store and the model side by side."""

    class Machine(RuleBasedStateMachine):
        @initialize()
        def open(self) -> None:
            self.runner = asyncio.Runner()
            self.opened = open_store()
            self.store, _ = self.runner.run(self.opened.__aenter__())
            self.model = _Model(self.store.revision)
            self.watches: list[tuple[Watch, str, int]] = []

        @rule(compare=_COMPARISONS, then=_OPERATIONS, otherwise=_OPERATIONS)
        def transact(self, compare: list[Compare], then: list[Op], otherwise: list[Op]) -> None:
            transaction = self.store.txn(compare, then, otherwise)
            if self.model.refuses(then) or self.model.refuses(otherwise):
                with pytest.raises(Invalid):
                    self.runner.run(transaction)
                return
            succeeded = all(map(self.model.holds, compare))
            expected = self.model.run(then if succeeded else otherwise)
            done = self.runner.run(transaction)
            assert (done.succeeded, done.revision, done.results) == (succeeded, self.model.revision, expected)

        @rule(prefix=_PREFIXES, back=st.integers(0, 5), limit=st.integers(0, 3))
        def list_the_past(self, prefix: str, back: int, limit: int) -> None:
            revision = max(self.model.revision - back, min(self.model.states))
            pairs = self.runner.run(self.store.range(prefix, limit=limit, revision=revision))
            expected = self.model.range(prefix, revision)
            assert pairs == (expected[:limit] if limit else expected)

        @rule(prefix=_PREFIXES, back=st.integers(-1, 5))
        def watch(self, prefix: str, back: int) -> None:
            first = max(self.model.revision - back, min(self.model.states) + 1)
            self.watches.append((self.store.watch(prefix, first), prefix, first))

        @rule()
        def read_watches(self) -> None:
            for index, (watch, prefix, first) in enumerate(self.watches):
                expected = [
                    change
                    for change in self.model.changes
                    if change.revision >= first and change.key.startswith(prefix)
                ]
                assert self.runner.run(take(watch, len(expected))) == expected
                self.watches[index] = (watch, prefix, max(first, self.model.revision + 1))

        @invariant()
        def holds_what_the_model_holds(self) -> None:
            if hasattr(self, "store"):
                assert self.runner.run(self.store.range("")) == self.model.range("", self.model.revision)

        def teardown(self) -> None:
            if hasattr(self, "store"):
                self.read_watches()
                self.runner.run(self.opened.__aexit__(None, None, None))
                self.runner.close()

    return Machine
