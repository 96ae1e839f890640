"""The image tools' jobs, inside a worker: each walls itself in and then reads what strangers sent.

Imported when such a job was read, before its walls close. Who looks at layers needs CAP_SYS_ADMIN for overlayfs'
attributes (trusted.*, xattr(7)); its root is mounted read-only, and its filter lets no mount(2) through.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path

from cove.image import fanotify, sandbox
from cove.image.checking import check_store
from cove.image.checktypes import Problem
from cove.image.dedupe import Dedupe
from cove.image.layercheck import check_layer
from cove.image.records import LayerRecord
from cove.image.slimming import plan_keep, plan_slim
from cove.image.squash import stack_stream
from cove.image.stack import Stack
from cove.image.survey import survey
from cove.image.tooljobs import (
    BuildErofs,
    Checked,
    CheckStore,
    Compare,
    Deduped,
    DedupeLayers,
    ReadStack,
    Record,
    Slim,
    StackRead,
    Survey,
    ToolAnswer,
    ToolJob,
)
from cove.image.treediff import compare

_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW
_READER = (sandbox.CAP_DAC_OVERRIDE, sandbox.CAP_SYS_ADMIN)


def do_tool(
    job: ToolJob,
    calls: sandbox.FileCalls,
    send: Callable[[Iterable[bytes]], None],
    tell: Callable[[], None],
    receive: int,
) -> ToolAnswer:
    """Do one job; `send` takes the bytes of a stream, `tell` says that it has begun, `receive` is the data socket."""
    if isinstance(job, Record):
        return _record(job, calls, tell, receive)
    if isinstance(job, BuildErofs):
        from cove.image.erofs import build

        return build(job, calls)
    if isinstance(job, DedupeLayers):
        return _dedupe(job, calls)
    _enter(job.root)
    sandbox.set_limits()
    sandbox.keep_capabilities(_READER)
    calls.apply()
    if isinstance(job, CheckStore):
        return _check(job)
    with ExitStack() as opened:
        if isinstance(job, Survey):
            return survey(_open(job.layers, opened))
        if isinstance(job, Slim):
            return plan_slim(Stack(_open(job.layers, opened)), job.opened, job.include)
        if isinstance(job, Compare):
            return compare(
                (_open(job.first, opened), job.first),
                (_open(job.second, opened), job.second),
            )
        assert isinstance(job, ReadStack)
        roots = _open(job.layers, opened)
        if job.opened is None:
            send(stack_stream(roots, whole=job.whole))
        else:
            plan = plan_keep(Stack(roots), job.opened, job.include)
            send(stack_stream(roots, whole=job.whole, only=plan.keeps))
        return StackRead()


def _enter(root: str) -> None:
    sandbox.unshare_all()
    sandbox.pivot_into(root)
    sandbox.mount("", "/", "", sandbox.MS_REMOUNT | sandbox.MS_BIND | sandbox.MS_RDONLY)


def _open(layers: Sequence[str], opened: ExitStack) -> list[int]:
    found = []
    for layer in layers:
        found.append(os.open(layer, _DIRECTORY))
        opened.callback(os.close, found[-1])
    return found


def _dedupe(job: DedupeLayers, calls: sandbox.FileCalls) -> Deduped:
    sandbox.unshare_all()
    sandbox.pivot_into(job.root)
    sandbox.set_limits(files=8192)  # a directory may be in every layer
    sandbox.keep_capabilities((*sandbox.FILE_CAPABILITIES, sandbox.CAP_SYS_ADMIN))
    calls.apply()
    with ExitStack() as opened:
        roots = _open([f"layers/{name}" for name in job.layers], opened)
        numbers = {name: number for number, name in enumerate(job.layers)}

        def chosen(names: Sequence[str]) -> frozenset[int]:
            return frozenset(numbers[name] for name in names if name in numbers)

        work = Dedupe(
            roots=roots,
            mounted=chosen(job.mounted),
            fresh=None if job.fresh is None else chosen(job.fresh),
            staging=_open([job.staging], opened)[0],
            dry_run=job.dry_run,
        )
        return work.run()


def _record(job: Record, calls: sandbox.FileCalls, tell: Callable[[], None], receive: int) -> ToolAnswer:
    group = fanotify.open_group(job.tree)
    os.close(job.tree)  # which would keep the container's root mounted
    sandbox.set_limits()
    sandbox.keep_capabilities(())
    calls.apply()
    tell()
    return fanotify.record(group, receive)


def _check(job: CheckStore) -> Checked:
    root = os.open("/", _DIRECTORY)

    def deep(layer: LayerRecord) -> Iterator[Problem]:
        return check_layer(root, layer, lambda _: None)

    report = check_store(
        Path("/"), job.records, job.listing, running=job.running, deep=deep if job.deep else None
    )
    return Checked(report=report)
