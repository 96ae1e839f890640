"""Re-creations: a container takes another's place, with what was asked to be different. No I/O."""

from __future__ import annotations

from cove.model.base import Model


class Recreated(Model, frozen=True, kw_only=True):
    """Where a container comes from; no value of what was changed is kept here."""

    origin: str  # the id of the container whose place it took
    at_ns: int
    changed: tuple[
        str, ...
    ] = ()  # what was asked for, by the create body's names: HostConfig.Memory, Env.MODE


class Recreation(Model, frozen=True, kw_only=True):
    """A re-creation under way: what a starting daemon needs to finish it, or to take it back."""

    old: str  # ids
    new: str
    name: str  # the old container's, and the new one's once `exchanged`
    fresh: str  # the new container's name before that
    aside: str  # the old container's after it
    ran: bool  # the old one ran, so one of them has to
    exchanged: bool = False
