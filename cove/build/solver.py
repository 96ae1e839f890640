"""Solve a graph: every step's result, from the cache or by running it, and the image at the end.

Steps run as soon as their inputs are there, at most so many at a time in this daemon. A step that is running already,
in this build or another, isn't run twice: whoever needs it waits for it and is told what it tells. It ends early once
nobody waits any more. The first failure ends the build; what was finished by then stays in the cache.
"""

from __future__ import annotations

import asyncio
import contextlib
import secrets
import time
from collections.abc import Awaitable, Callable, Coroutine, Mapping, Sequence
from dataclasses import dataclass, field

import msgspec

from cove.build import keys
from cove.build.cache import Cache, Entry, Note
from cove.build.committing import commit_image, plan_config
from cove.build.copying import FileCopier
from cove.build.errors import BuildFailed, failed_at
from cove.build.events import BuildEvent, ImageBuilt, StepDone, StepOutput, StepStarted
from cove.build.graph import (
    Clone,
    Context,
    Copy,
    Download,
    Exec,
    Graph,
    ImageSource,
    InlineFiles,
    Item,
    MakeDirectory,
    Scratch,
    Step,
)
from cove.build.inline import inline_tree
from cove.build.running import Runner
from cove.build.sharing import Shared
from cove.build.sources import PackedTree, Snapshot, Tree, items_digest
from cove.image.images import Images
from cove.image.jobs import Member
from cove.image.selection import Excludes
from cove.model.errors import CoveError, Invalid
from cove.model.objects import Image

Emit = Callable[[BuildEvent], Coroutine[None, None, None]]
Fetch = Callable[[Download | Clone], Awaitable[PackedTree]]
Open = Callable[[], Awaitable[PackedTree]]


@dataclass(frozen=True, kw_only=True)
class Solving:
    """One build: what to solve, and what it may use. `contexts` give a tree each time they are asked."""

    graph: Graph
    contexts: Mapping[str, Open]
    fetch: Fetch
    names: tuple[str, ...] = ()
    clamp_ns: int | None = None
    runner: Runner
    copier: FileCopier
    admit: Callable[[Image, str], Awaitable[None]]  # refuses an image whose program a step may run
    salt: str = field(default_factory=lambda: secrets.token_hex(8))


@dataclass(frozen=True, slots=True)
class Outcome:
    """A step's result: `shown` stands for it, `added` is the layer that it made ("" for none) and when."""

    tree: Tree
    shown: str
    cached: bool = True
    added: str = ""
    created_ns: int = 0
    size_bytes: int = 0


class Solver:
    """Solves one graph."""

    def __init__(self, images: Images, cache: Cache, shared: Shared, solving: Solving, emit: Emit) -> None:
        self._images = images
        self._cache = cache
        self._shared = shared
        self._it = solving
        self._emit = emit
        self._tasks: list[asyncio.Task[Outcome]] = []
        self._relied: list[str] = []
        self._trees: list[PackedTree] = []

    async def solve(self) -> Image:
        """The image. Raises BuildFailed, or what the host did."""
        steps = self._it.graph.steps
        loop = asyncio.get_running_loop()
        try:
            for number, step in enumerate(steps):
                self._tasks.append(loop.create_task(self._step(number, step)))
            await self._wait_all()
            return await self._finish()
        finally:
            for task in self._tasks:
                task.cancel()
            await asyncio.gather(*self._tasks, return_exceptions=True)
            for tree in self._trees:
                tree.close()
            self._images.rely_no_more(self._relied)
            with contextlib.suppress(CoveError):
                await self._cache.save()
            await self._images.collect()

    async def _wait_all(self) -> None:
        waiting = set(self._tasks)
        while waiting:
            done, waiting = await asyncio.wait(waiting, return_when=asyncio.FIRST_EXCEPTION)
            failed = [
                task for task in self._tasks if task in done and not task.cancelled() and task.exception()
            ]
            if failed:
                raise failed[0].exception() or AssertionError("it failed")

    def _rely_on(self, layers: Sequence[str]) -> None:
        self._images.rely_on(layers)
        self._relied += layers

    # --- one step -----------------------------------------------------------------------------

    async def _step(self, number: int, step: Step) -> Outcome:
        for before in step.inputs():
            await asyncio.shield(self._tasks[before])
        begun_s = time.monotonic()
        try:
            outcome = await self._outcome(number, step)
        except BuildFailed as error:
            error.step, error.line, error.text = number, step.origin.line, step.origin.text
            raise
        except CoveError as error:
            prefix = "COPY failed: " if isinstance(step.operation, Copy) else ""
            raise failed_at(number, step, error, prefix) from error
        await self._emit(
            StepDone(
                step=number,
                cached=outcome.cached,
                shown=outcome.shown,
                seconds=time.monotonic() - begun_s,
                size_bytes=outcome.size_bytes,
            )
        )
        return outcome

    def _result(self, number: int) -> Outcome:
        return self._tasks[number].result()

    def _tree(self, number: int) -> Tree:
        return self._result(number).tree

    def _snapshot(self, number: int) -> Snapshot:
        tree = self._tree(number)
        assert isinstance(tree, Snapshot), "the planner lets nothing else be a base"
        return tree

    async def _outcome(self, number: int, step: Step) -> Outcome:
        operation = step.operation
        match operation:
            case Scratch():
                snapshot = Snapshot(layers=(), key=keys.snapshot_key(()))
                return Outcome(snapshot, snapshot.key)
            case ImageSource(image_id=image_id):
                image = self._images.find_image(image_id)
                await self._it.admit(image, operation.reference or image_id)
                self._rely_on(image.diff_ids)
                snapshot = Snapshot(layers=image.diff_ids, key=keys.snapshot_key(image.diff_ids))
                return Outcome(snapshot, image.id.removeprefix("sha256:"))
            case Context(name=name):
                opened = self._it.contexts.get(name)
                if opened is None:
                    raise Invalid(
                        f"there is no build context {name!r}: give it with --build-context {name}=PATH"
                    )
                return self._packed(await opened())
            case Download() | Clone():
                return self._packed(await self._it.fetch(operation))
            case InlineFiles(files=files):
                return self._packed(await asyncio.to_thread(inline_tree, files))
            case Copy():
                return await self._copy(number, step, operation)
            case Exec() | MakeDirectory():
                return await self._run(number, step, operation)
        raise AssertionError(operation)

    def _packed(self, tree: PackedTree) -> Outcome:
        self._trees.append(tree)
        return Outcome(tree, tree.key or keys.key_of("tree"))

    def _salt(self, step: Step) -> str:
        return self._it.salt if step.ignore_cache else ""

    async def _run(self, number: int, step: Step, operation: Exec | MakeDirectory) -> Outcome:
        inputs: dict[int, str] = {}
        for one in step.inputs():
            tree = self._tree(one)
            inputs[one] = tree.key if isinstance(tree, Snapshot) else self._bound_digest(operation, one, tree)
        key = keys.step_key(operation, inputs, self._it.clamp_ns, self._salt(step))
        base = self._snapshot(operation.base)

        async def work(emit: Emit) -> Member | None:
            if isinstance(operation, MakeDirectory):
                return await self._it.copier.make_directory(operation, base)

            async def output(stream: int, data: bytes) -> None:
                await emit(StepOutput(step=number, stream=stream, data=data))

            begun: list[asyncio.Task[None]] = []
            loop = asyncio.get_running_loop()
            try:
                return await self._it.runner.run(
                    operation,
                    base,
                    self._tree,
                    lambda run: begun.append(loop.create_task(emit(StepStarted(step=number, run=run)))),
                    output,
                )
            finally:
                await asyncio.gather(*begun, return_exceptions=True)

        return await self._layer(number, step, key, base, work)

    def _bound_digest(self, operation: Exec | MakeDirectory, number: int, tree: PackedTree) -> str:
        """The key of the files that a RUN binds from a packed tree: their content."""
        paths = [
            mount.source_path
            for mount in (operation.mounts if isinstance(operation, Exec) else ())
            if mount.source == number
        ]
        items = [packed for path in paths for packed in tree.select(Item(source=number, path=path))]
        return keys.key_of("bound", items_digest(items, owner=True, names=True))

    async def _copy(self, number: int, step: Step, operation: Copy) -> Outcome:
        base = self._snapshot(operation.base)
        salt = self._salt(step)
        packed = [item for item in operation.items if isinstance(self._tree(item.source), PackedTree)]
        content = ""
        if packed:
            content = await self._packed_digest(operation, packed)
        snapshots = {
            item.source: tree.key
            for item in operation.items
            if isinstance(tree := self._tree(item.source), Snapshot)
        }
        if not snapshots:
            key = keys.content_key(operation, base.key, content, self._it.clamp_ns, salt)
            return await self._layer(number, step, key, base, self._copying(operation, base))
        inputs = {operation.base: base.key, **snapshots}
        quick = keys.key_of("by-source", keys.step_key(operation, inputs, self._it.clamp_ns, salt), content)
        if (found := self._cached(quick, step)) is not None:
            return self._found(found, base, quick)
        taken = await self._it.copier.digest(operation, self._tree)
        key = keys.content_key(operation, base.key, f"{content} {taken}", self._it.clamp_ns, salt)
        outcome = await self._layer(number, step, key, base, self._copying(operation, base))
        entry = self._cache.find(key)
        if entry is not None and not step.ignore_cache:
            self._cache.put(
                quick, entry.layers, msgspec.structs.replace(entry.note, stands_for=key, description="")
            )
        return outcome

    def _copying(self, operation: Copy, base: Snapshot) -> Callable[[Emit], Awaitable[Member | None]]:
        async def work(emit: Emit) -> Member | None:
            return await self._it.copier.copy(operation, base, self._tree)

        return work

    async def _packed_digest(self, operation: Copy, packed: Sequence[object]) -> str:
        def digest() -> str:
            items = []
            for item in operation.items:
                tree = self._tree(item.source)
                if isinstance(tree, PackedTree):
                    items += tree.select(item)
            excludes = Excludes(operation.excludes, rooted=operation.parents)
            return items_digest(items, excludes, owner=operation.keep_owner, names=operation.parents)

        return await asyncio.to_thread(digest)

    # --- layers -------------------------------------------------------------------------------

    def _cached(self, key: str, step: Step) -> Entry | None:
        return None if step.ignore_cache else self._cache.find(key)

    def _found(self, entry: Entry, base: Snapshot, key: str) -> Outcome:
        added = entry.note.added
        layers = (*base.layers, added) if added else base.layers
        self._rely_on(layers)
        key = entry.note.stands_for or key
        if entry.note.loose:
            key = keys.key_of("on", base.key, key)
        return Outcome(
            Snapshot(layers=layers, key=key),
            key,
            added=added,
            created_ns=entry.note.created_ns,
            size_bytes=entry.note.size_bytes,
        )

    async def _layer(
        self,
        number: int,
        step: Step,
        key: str,
        base: Snapshot,
        make: Callable[[Emit], Awaitable[Member | None]],
    ) -> Outcome:
        """The base with what `make` makes on it, from the cache if it is there."""
        found = self._cached(key, step)
        if found is not None:
            return self._found(found, base, key)

        async def work(emit: Emit) -> Entry:
            async with self._shared.turn():
                with self._images.relying(base.layers):
                    await emit(StepStarted(step=number))
                    member = await make(emit)
                    loose = isinstance(step.operation, Copy) and step.operation.link
                    below = () if loose else base.layers
                    layers = (*below, member.diff_id) if member else below
                    now = time.time_ns()
                    note = Note(
                        kind=type(step.operation).__name__.lower(),
                        description=step.origin.text[:512],
                        created_ns=now,
                        used_ns=now,
                        added=member.diff_id if member else "",
                        size_bytes=member.unpacked_bytes if member else 0,
                        loose=loose,
                    )
                    entry = self._cache.put(key, layers, note)
                    if member is not None:
                        self._images.rely_no_more((member.diff_id,))
                    return entry

        async def told(event: BuildEvent) -> None:
            if isinstance(event, StepStarted | StepOutput):
                await self._emit(_at(event, number))

        entry = await self._shared.run(key, work, told)
        outcome = self._found(entry, base, key)
        await self._shared.save_sometimes(self._cache.save)
        return Outcome(
            outcome.tree,
            outcome.shown,
            cached=False,
            added=outcome.added,
            created_ns=outcome.created_ns,
            size_bytes=outcome.size_bytes,
        )

    # --- the image ----------------------------------------------------------------------------

    async def _finish(self) -> Image:
        result = self._it.graph.result
        outcomes = [task.result() for task in self._tasks]
        snapshot = self._snapshot(result.step)
        clamp_ns = self._it.clamp_ns
        key = keys.result_key(result, snapshot.key, clamp_ns)
        all_cached = all(outcome.cached for outcome in outcomes)
        known = self._cache.find(key)
        if known is None or known.layers != snapshot.layers:
            now = time.time_ns()
            note = Note(kind="image", created_ns=now, used_ns=now)
            known = self._cache.put(key, snapshot.layers, note)  # now, for who builds the same meanwhile
            all_cached = False
        created_ns = known.note.created_ns

        def clamped(time_ns: int) -> int:
            return time_ns if clamp_ns is None else min(time_ns, clamp_ns)

        added = {
            number: (outcome.added, clamped(outcome.created_ns))
            for number, outcome in enumerate(outcomes)
            if outcome.added
        }
        base = None
        if result.base_image_id:
            base = self._images.raw_config(self._images.find_image(result.base_image_id))
        document = plan_config(result, base, snapshot.layers, clamped(created_ns), added)
        await self._cache.save()
        image = await commit_image(self._images, document, self._it.names)
        await self._emit(ImageBuilt(image_id=image.id, names=self._it.names, cached=all_cached))
        return image


def _at(event: StepStarted | StepOutput, number: int) -> BuildEvent:
    if isinstance(event, StepStarted):
        return StepStarted(step=number, run=event.run)
    return StepOutput(step=number, stream=event.stream, data=event.data)
