"""Start order without Compose: what a container waits for before it starts. Only `wait_ready` does anything.

A dependency is another container by name and a condition; a name may stand for another container tomorrow.

    started    it runs
    healthy    its health check says so; one that is unhealthy fails the wait at once
    completed  it has ended with exit code 0; another code fails the wait at once, unless it restarts
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from cove.engine.parts import Parts
from cove.engine.types import View
from cove.model.container import Container, ContainerSpec
from cove.model.errors import Conflict, CoveError, Invalid
from cove.model.extension import Dependency

DEFAULT_TIMEOUT_S = 60
_WORDS = {"started": "to run", "healthy": "to be healthy", "completed": "to have completed"}

FindView = Callable[[str], View | None]  # by name or id
FindHealth = Callable[
    [str], str
]  # by a running container's id: starting, healthy, unhealthy, or "" without a check


@dataclass(frozen=True, slots=True, kw_only=True)
class Standing:
    """How it stands with one dependency."""

    dependency: Dependency
    now: str  # in a word or two
    met: bool = False
    failed: bool = False  # waiting is of no use

    def __str__(self) -> str:
        wanted = _WORDS[self.dependency.condition]
        return f"{self.dependency.container} {wanted} (it is {self.now})"


def judge(dependency: Dependency, view: View | None, health: str) -> Standing:
    """Pure."""
    if view is None:
        return Standing(dependency=dependency, now="not there")
    state = view.state
    runs = state.status == "running"
    if dependency.condition == "started":
        return Standing(dependency=dependency, now=state.status, met=runs)
    if dependency.condition == "healthy":
        if not runs:
            return Standing(dependency=dependency, now=state.status)
        if not health:
            return Standing(dependency=dependency, now="without a health check", failed=True)
        return Standing(
            dependency=dependency, now=health, met=health == "healthy", failed=health == "unhealthy"
        )
    if state.status == "exited" and state.finished_ns:
        now = f"exited ({state.exit_code})"
        return Standing(dependency=dependency, now=now, met=not state.exit_code, failed=bool(state.exit_code))
    return Standing(dependency=dependency, now=state.status)


def standings(spec: ContainerSpec, find: FindView, health: FindHealth) -> Sequence[Standing]:
    """How it stands with everything that a container waits for."""
    found = []
    for dependency in spec.extension.depends_on:
        view = find(dependency.container)
        word = health(view.container.id) if view is not None and view.state.pid else ""
        found.append(judge(dependency, view, word))
    return found


def check_depends(name: str, spec: ContainerSpec, find: FindView) -> list[str]:
    """Warnings for a new container; Invalid when it would wait for itself, be it by others."""
    warnings = []
    for dependency in spec.extension.depends_on:
        if find(dependency.container) is None and dependency.container != name:
            warnings.append(f"depends-on: there is no container {dependency.container} yet")
        path = _find_path(dependency.container, name, find, (name,))
        if path:
            raise Invalid(f"depends-on: a circle: {' waits for '.join(path)}: leave one of them out")
    return warnings


def _find_path(start: str, goal: str, find: FindView, path: tuple[str, ...]) -> tuple[str, ...]:
    """From a name to another by what they wait for; () when there is no way, or one that is a circle of others."""
    view = find(start)
    name = view.container.name if view is not None else start
    if name == goal:
        return (*path, name)
    if view is None or name in path:
        return ()
    for dependency in view.container.spec.extension.depends_on:
        found = _find_path(dependency.container, goal, find, (*path, name))
        if found:
            return found
    return ()


def find_by(parts: Parts) -> FindView:
    def find(reference: str) -> View | None:
        with contextlib.suppress(CoveError):
            return parts.registry.find(reference)
        return None

    return find


async def wait_ready(parts: Parts, container: Container, health: FindHealth) -> None:
    """Return once every dependency is met. Raises Conflict when one can't be, or isn't in time."""
    spec = container.spec
    timeout_s = spec.extension.depends_timeout_s or DEFAULT_TIMEOUT_S
    find = find_by(parts)
    stream = parts.events.stream(predicate=lambda event: event.kind == "container")
    try:
        async with asyncio.timeout(timeout_s):
            while True:
                left = [one for one in standings(spec, find, health) if not one.met]
                if not left:
                    return
                for one in left:
                    if one.failed:
                        raise Conflict(f"container {container.name} waits for {one}, and that won't change")
                await anext(stream)
    except TimeoutError:
        shown = ", ".join(str(one) for one in standings(spec, find, health) if not one.met)
        raise Conflict(
            f"container {container.name} has waited {timeout_s} s for {shown}: start that first, or give "
            "depends-timeout more"
        ) from None
    finally:
        await stream.aclose()
