"""What a start waits for: when it is met, when waiting is of no use, and circles."""

from __future__ import annotations

import pytest

from cove.engine.depends import check_depends, judge
from cove.engine.types import View
from cove.model.container import Container, ContainerSpec, State
from cove.model.errors import Invalid
from cove.model.extension import Dependency, Extension


def view(name: str, state: State | None = None, *waits_for: str) -> View:
    depends = tuple(Dependency(container=one, condition="started") for one in waits_for)
    spec = ContainerSpec(image="x", extension=Extension(depends_on=depends))
    container = Container(
        id=name * 8, name=name, created_ns=1, image_id="", image_name="x", spec=spec, args=("x",)
    )
    return View(container, state or State())


RUNNING = State(status="running", pid=1)


@pytest.mark.parametrize(
    ("condition", "state", "health", "met", "failed"),
    [
        ("started", RUNNING, "", True, False),
        ("started", State(), "", False, False),
        ("started", State(status="restarting"), "", False, False),
        ("healthy", RUNNING, "healthy", True, False),
        ("healthy", RUNNING, "starting", False, False),
        ("healthy", RUNNING, "unhealthy", False, True),
        ("healthy", RUNNING, "", False, True),
        ("healthy", State(status="exited", finished_ns=1), "", False, False),
        ("completed", State(status="exited", finished_ns=1), "", True, False),
        ("completed", State(status="exited", finished_ns=1, exit_code=2), "", False, True),
        ("completed", State(status="restarting", exit_code=2), "", False, False),
        ("completed", RUNNING, "", False, False),
    ],
)
def test_a_dependency_is_met_or_not_or_never(
    condition: str, state: State, health: str, met: bool, failed: bool
) -> None:
    found = judge(Dependency(container="a", condition=condition), view("a", state), health)  # type: ignore[arg-type]
    assert (found.met, found.failed) == (met, failed)


def test_a_circle_is_refused_and_one_that_is_missing_is_warned_of() -> None:
    views = {
        one.container.name: one for one in (view("b", None, "c"), view("c", None, "a"), view("d", None, "d"))
    }
    spec = view("a", None, "b").container.spec
    with pytest.raises(Invalid, match="a waits for b waits for c waits for a"):
        check_depends("a", spec, views.get)
    with pytest.raises(Invalid, match="a circle"):
        check_depends("a", view("a", None, "a").container.spec, views.get)
    assert check_depends("x", view("x", None, "d").container.spec, views.get) == []
    assert check_depends("x", view("x", None, "e").container.spec, views.get) == [
        "depends-on: there is no container e yet"
    ]
