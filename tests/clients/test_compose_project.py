"""`docker compose` (v2 and v5) on the project that people have: a web server, its database, what fills it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.clients.composekit import Project
from tests.clients.engines import Engine, running_engine
from tests.clients.toolbox import require

SHOP = """
services:
  web:
    image: busybox
    command: [busybox, httpd, -f, -h, /www]
    ports: ["127.0.0.1::80"]
    environment: {GREETING: "${GREETING:-hello}"}
    depends_on:
      db: {condition: service_healthy}
      fill: {condition: service_completed_successfully}
    configs:
      - {source: page, target: /www/index.html}
      - {source: inline, target: /var/run/inline.conf, mode: 0440}
    secrets: [password]
    networks:
      front: {}
      back: {aliases: [shopwindow]}
    volumes: ["data:/www/data:ro"]
    stop_signal: SIGKILL
  fill:
    image: busybox
    command: [sh, -c, "test -e /data/ready && echo filled > /data/rows"]
    depends_on: {db: {condition: service_healthy}}
    volumes: ["data:/data"]
    networks: [back]
  db:
    image: busybox
    command: [sh, -c, "cat /run/secrets/password > /data/seen; sleep 0.4; touch /data/ready; exec sleep 600"]
    healthcheck: {test: [CMD, stat, /data/ready], interval: 300ms, retries: 50}
    secrets: [password]
    networks: [back]
    volumes: ["data:/data"]
    stop_signal: SIGKILL
  debug:
    image: busybox
    command: [sleep, "600"]
    profiles: [tools]
    networks: [back]
    stop_signal: SIGKILL
configs:
  page: {file: ./page.html}
  inline: {content: "greeting=${GREETING:-hello}\\n"}
secrets:
  password: {file: ./password}
networks:
  front: {}
  back: {internal: true}
volumes:
  data: {}
"""


@pytest.fixture(scope="module")
def engine(request: pytest.FixtureRequest) -> Iterator[Engine]:
    yield from running_engine(request.param)


@pytest.fixture
def project(engine: Engine, compose: str, tmp_path: Path) -> Iterator[Project]:
    binary = require(compose) / "docker-compose"
    (tmp_path / "page.html").write_text("welcome\n")
    (tmp_path / "password").write_text("s3cret\n")
    with Project(engine, binary, tmp_path, SHOP) as project:
        yield project


@pytest.mark.parametrize(
    ("engine", "compose"),
    [("cove", "compose2"), ("cove", "compose5"), ("dockerd", "compose2")],
    indirect=["engine"],
    scope="module",
)
def test_the_project_comes_up_in_order_changes_and_goes(project: Project) -> None:
    engine = project.engine
    project("up", "--detach", "--wait", "--wait-timeout", "60", code=None)  # a job that ended fails --wait
    rows = {row["Service"]: row for row in project.rows("ps", "--all")}
    assert {name: (row["State"], row["Health"], row["ExitCode"]) for name, row in rows.items()} == {
        "db": ("running", "healthy", 0),
        "fill": ("exited", "", 0),
        "web": ("running", "", 0),
    }
    [published] = rows["web"]["Publishers"]
    assert (published["URL"], published["TargetPort"], published["Protocol"]) == ("127.0.0.1", 80, "tcp")
    address = project("port", "web", "80").word
    assert address == f"127.0.0.1:{published['PublishedPort']}"
    assert engine.fetch(f"{address}/") == "welcome\n" and engine.fetch(f"{address}/data/rows") == "filled\n"
    shown = "cd /var/run; cat /run/secrets/password inline.conf /www/data/seen; echo $GREETING; stat -c %a inline.conf"
    assert project("exec", "-T", "web", "sh", "-c", shown).lines == [
        "s3cret", "greeting=hello", "s3cret", "hello", "440",
    ]  # fmt: skip
    networks = project.inspect("web")["NetworkSettings"]["Networks"]
    assert set(networks) == {"shop_front", "shop_back"} and "shopwindow" in networks["shop_back"]["Aliases"]

    before = project.ids("web", "db")
    project("up", "--detach")
    assert project.ids("web", "db") == before, "nothing had changed"

    project.docker.environment["GREETING"] = "good day"
    project("up", "--detach")
    after = project.ids("web", "db")
    assert after[0] != before[0] and after[1] == before[1], "what had changed alone is made anew"
    assert project("exec", "-T", "web", "cat", "/var/run/inline.conf").out == "greeting=good day\n"

    assert project.ids("debug") == []
    project("--profile", "tools", "up", "--detach")
    assert len(project.ids("debug")) == 1

    [row] = project.rows("ls")
    assert (row["Name"], row["Status"]) == ("shop", "running(3)"), row
    project("--profile", "tools", "down", "--timeout", "0")
    assert project.left() == ["shop_data"], "a volume stays"
    project("down", "--volumes")
    assert project.left() == [] and project.rows("ls") == []
