"""What every handler of the Docker Engine API is given, and what several of them need."""

from __future__ import annotations

import os
import time
from collections.abc import Awaitable, Callable, Mapping
from functools import cached_property
from typing import TYPE_CHECKING

from cove.api.docker.summaries import Summaries
from cove.api.websocket import Sessions
from cove.build.builder import Builder
from cove.engine.health import ended_health
from cove.model.errors import CoveError
from cove.model.objects import Event, Network

if TYPE_CHECKING:
    from cove.engine.engine import Engine
    from cove.engine.health import Health
    from cove.engine.types import View

NEWEST = 1055  # the newest whose reference is cut: moby, api/docs/v1.55.yaml
OLDEST = 1024
# Go's names for machines (uname(2)), which clients compare with image platforms
ARCHITECTURES = {"x86_64": "amd64", "aarch64": "arm64", "i686": "386", "armv7l": "arm"}
RAW_STREAM = "application/vnd.docker.raw-stream"
MULTIPLEXED_STREAM = "application/vnd.docker.multiplexed-stream"


def version_text(version: int) -> str:
    return f"{version // 1000}.{version % 1000}"


Reload = Callable[[], Awaitable[tuple[list[str], list[str]]]]


class Api:
    """The engine, and facts about this host that don't change."""

    def __init__(self, engine: Engine, *, reload: Reload | None = None) -> None:
        self.engine = engine
        self.sessions = Sessions()
        self.reload = (
            reload  # reads the configuration again: names of the keys that count now, and of those that wait
        )
        self.cpus = os.cpu_count() or 1
        self.machine = os.uname().machine
        self.summaries = Summaries()

    @cached_property
    def builder(self) -> Builder:
        """What builds images; made when it is asked for first."""
        return Builder(self.engine)

    def find_network(self, name: str) -> Network | None:
        """A network by name or id; None for one that is gone."""
        try:
            return self.engine.networks.find_network(name)
        except CoveError:
            return None

    def health(self, view: View) -> Health | None:
        """The health of a container with a check; once it has ended, what is kept of it."""
        if view.container.healthcheck is None:
            return None
        if view.state.pid:
            return self.engine.health(view.container.id)
        return ended_health(view.state.health) if view.state.health is not None else None

    def publish(self, kind: str, action: str, actor_id: str, attributes: Mapping[str, str]) -> None:
        """Tell the bus of a change to an image, volume or network; the engine tells of containers."""
        self.engine.events.publish(
            Event(
                kind=kind,
                action=action,
                actor_id=actor_id,
                attributes=dict(attributes),
                time_ns=time.time_ns(),
            )
        )
