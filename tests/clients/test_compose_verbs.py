"""`docker compose`'s other verbs: looking at a project, working in it, changing it while it runs."""

from __future__ import annotations

import json
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.clients.composekit import Project
from tests.clients.dockercli import eventually
from tests.clients.engines import ENGINES, Engine, running_engine
from tests.clients.toolbox import require

APP = """
services:
  app:
    image: busybox
    command: [sh, -c, "echo started; exec sleep 600"]
    ports: ["127.0.0.1::80"]
    volumes: ["data:/data"]
    stop_signal: SIGKILL
  side:
    image: busybox
    command: [sh, -c, "trap 'echo stopping; exit 3' TERM; echo side; while :; do sleep 0.05; done"]
    volumes: [/scratch]
volumes:
  data: {}
"""


@pytest.fixture(scope="module", params=ENGINES)
def engine(request: pytest.FixtureRequest) -> Iterator[Engine]:
    yield from running_engine(request.param)


@pytest.fixture
def binary() -> Path:
    return require("compose2") / "docker-compose"


@pytest.fixture
def project(engine: Engine, binary: Path, tmp_path: Path) -> Iterator[Project]:
    with Project(engine, binary, tmp_path, APP) as project:
        yield project


def running(project: Project) -> dict[str, str]:
    return {row["Name"]: row["State"] for row in project.rows("ps", "--all")}


def test_a_running_project_is_looked_at_and_worked_in(project: Project, tmp_path: Path) -> None:
    project("up", "--detach", "--wait")
    assert "sleep 600" in project("top", "app").out
    [used] = project.rows("stats", "--no-stream", "app")
    assert used["Name"] == "shop-app-1" and used["PIDs"] == "1" and "MiB" in used["MemUsage"] + "MiB"
    [image, _] = project.rows("images")
    assert (image["Repository"], image["Tag"]) == ("busybox", "latest")
    assert "shop_data" in project("volumes", "--quiet").lines
    assert sorted(project("config", "--services").lines) == ["app", "side"]

    assert project("exec", "-T", "app", "cat", input=b"given\n").out == "given\n"
    assert project("exec", "-T", "--env", "A=b", "--workdir", "/tmp", "app", "sh", "-c", "echo $A; pwd; exit 7",
                   code=7).out == "b\n/tmp\n"  # fmt: skip
    with project.terminal("exec", "app", "sh") as terminal:
        terminal.enter(b"echo $((6*7)); exit 4\r")
        terminal.expect(b"42")
        assert terminal.wait() == 4
    assert project("run", "--rm", "-T", "app", "cat", "/etc/passwd").out.startswith("root:")
    assert project(
        "run", "--rm", "-T", "--no-deps", "-e", "X=y", "app", "sh", "-c", "echo $X >&2; exit 9", code=9
    )
    with project.terminal("run", "--rm", "app", "sh") as terminal:
        terminal.enter(b"echo $((6*7))\r")
        terminal.expect(b"42")
        terminal.enter(b"exit 5\r")
        assert terminal.wait() == 5

    (tmp_path / "sent").write_text("there and back")
    project("cp", str(tmp_path / "sent"), "app:/data/sent")
    project("cp", "app:/data/sent", str(tmp_path / "back"))
    assert (tmp_path / "back").read_text() == "there and back"
    project("export", "--output", str(tmp_path / "app.tar"), "app")
    assert (tmp_path / "app.tar").stat().st_size > 1 << 20


def test_logs_are_shown_and_followed(project: Project) -> None:
    project("up", "--detach", "--wait")
    eventually(lambda: len(project("logs", "--no-color").lines) == 2)
    lines = {" ".join(line.split()) for line in project("logs", "--no-color").lines}
    assert lines == {"app-1 | started", "side-1 | side"}
    assert project("logs", "--no-log-prefix", "--tail", "1", "app").lines == ["started"]
    with project.start("logs", "--follow", "--no-color", "--timestamps", "side") as logs:
        assert logs.line().endswith(b"Z side\n")
        project("stop", "side")
        assert b"stopping" in logs.line()
        assert b"stopping" not in logs.rest(), "the stream ends with the container"
        assert logs.wait() == 0


def test_events_tell_of_every_verb(project: Project) -> None:
    project("create")
    with project.start("events", "--json") as events:
        # Only what happens after the subscription is told, and nothing tells of that: so ask again.
        def subscribed() -> bool:
            project("start", "app")
            project("kill", "app")
            return events.ready()

        eventually(subscribed)
        project("start")
        project("pause", "app")
        assert running(project)["shop-app-1"] == "paused"
        project("unpause", "app")
        project("restart", "--timeout", "1", "app")
        project("kill", "--signal", "TERM", "side")
        project("rm", "--force", "--stop", "--volumes", "side")
        seen: list[tuple[str, str]] = []
        while ("side", "destroy") not in seen or ("app", "restart") not in seen:
            event = json.loads(events.line())
            assert event["type"] == "container"
            seen.append((event["service"], event["action"]))
    app = [action for service, action in seen if service == "app"]
    assert app[app.index("pause") :] == ["pause", "unpause", "kill", "die", "stop", "start", "restart"]
    side = [action for service, action in seen if service == "side"]
    assert {"create", "start"} & set(side) and side[-1] == "destroy" and {"kill", "die"} <= set(side)
    assert running(project) == {"shop-app-1": "running"}


def test_services_are_scaled(project: Project) -> None:
    project("up", "--detach", "--scale", "app=3")
    assert sorted(running(project)) == ["shop-app-1", "shop-app-2", "shop-app-3", "shop-side-1"]
    ports = {project("port", "--index", str(number), "app", "80").word for number in (1, 2, 3)}
    assert len(ports) == 3
    project("scale", "app=1")
    assert sorted(running(project)) == ["shop-app-1", "shop-side-1"]


def test_an_attached_project_prints_and_ends_at_ctrl_c(project: Project) -> None:
    with project.start("up", "--no-color", "--timeout", "1") as up:
        lines = b""
        while b"| started" not in lines or b"| side" not in lines:
            line = up.line()
            assert line, lines
            lines += line
        up.process.send_signal(signal.SIGINT)
        assert b"Gracefully" in up.rest()
        assert up.wait() in (0, 130)
    assert project("logs", "--no-log-prefix", "side").lines == ["side", "stopping"]
    assert set(running(project).values()) == {"exited"}


def test_the_exit_code_of_a_service_is_that_of_the_project(project: Project) -> None:
    project.write(APP.replace("echo started; exec sleep 600", "sleep 0.3; exit 6"))
    ended = project("up", "--abort-on-container-exit", "--exit-code-from", "app", "--timeout", "1", code=6)
    assert "app-1 exited with code 6" in ended.out

    # It waits for containers that run when it asks, and nothing tells that it has: so start them again.
    def waited() -> bool:
        project("start", "app")
        return project("wait", "app", code=None).code == 6

    eventually(waited)


def test_a_watched_tree_is_synced(project: Project, tmp_path: Path) -> None:
    (tmp_path / "source").mkdir()
    watch = "    develop: {watch: [{action: sync, path: ./source, target: /copy}]}\n"
    project.write(APP.replace('    volumes: ["data:/data"]\n', watch, 1))
    with project.start("up", "--watch", "--no-color", "--timeout", "0", "app") as up:
        while b"Watch enabled" not in (line := up.line()):
            assert line, "it ended"

        def synced(content: str) -> bool:
            seen = project("exec", "-T", "app", "cat", "/copy/file", code=None)
            return seen.out == content

        for content in ("first", "second"):
            (tmp_path / "source/file").write_text(content)
            eventually(lambda content=content: synced(content))
        up.process.send_signal(signal.SIGINT)
        up.rest()
        up.wait()
