"""What a build tells while it runs. No I/O.

Steps are named by their place in the graph. A step that another build runs already is told like one's own.
"""

from __future__ import annotations

import msgspec


class Event(msgspec.Struct, frozen=True, kw_only=True):
    """Base of all."""


class StepStarted(Event, tag="started", frozen=True, kw_only=True):
    """A step has begun; of one that runs a process `run` is the id of what it runs in."""

    step: int
    run: str = ""


class StepOutput(Event, tag="output", frozen=True, kw_only=True):
    """Bytes that a process wrote: 1 standard output, 2 standard error."""

    step: int
    stream: int
    data: bytes


class StepDone(Event, tag="done", frozen=True, kw_only=True):
    """A step's result is there. `shown` is 64 hex digits that stand for it."""

    step: int
    cached: bool
    shown: str
    seconds: float = 0.0
    size_bytes: int = 0


class Note(Event, tag="note", frozen=True, kw_only=True):
    """Something for a person that belongs to no step."""

    text: str


class ImageBuilt(Event, tag="image", frozen=True, kw_only=True):
    """The image is on record, under these names."""

    image_id: str
    names: tuple[str, ...] = ()
    cached: bool = False  # all of it was there before


BuildEvent = StepStarted | StepOutput | StepDone | Note | ImageBuilt
