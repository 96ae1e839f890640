"""The image tools' jobs, inside a worker: each walls itself in and then reads what strangers sent.

Imported when such a job was read, before its walls close.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path

from cove.image import sandbox
from cove.image.checking import check_store
from cove.image.checktypes import Problem
from cove.image.layercheck import check_layer
from cove.image.records import LayerRecord
from cove.image.tooljobs import Checked, CheckStore, ToolAnswer, ToolJob


def do_tool(job: ToolJob, close_walls: Callable[[], None]) -> ToolAnswer:
    """Do one job; `close_walls` gives up what it doesn't need any more."""
    return _check(job, close_walls)


def _check(job: CheckStore, close_walls: Callable[[], None]) -> Checked:
    sandbox.unshare_all()
    sandbox.pivot_into(job.root)
    root = os.open("/", os.O_RDONLY | os.O_DIRECTORY)
    close_walls()

    def deep(layer: LayerRecord) -> Iterator[Problem]:
        return check_layer(root, layer, lambda _: None)

    report = check_store(
        Path("/"), job.records, job.listing, running=job.running, deep=deep if job.deep else None
    )
    return Checked(report=report)
