"""Debian 12's docker-compose (1.29, in Python, on the SDK of 2021), as scripts still call it."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.clients.dockercli import BOUND_S, eventually
from tests.clients.engines import COMPARED_ON_DEMAND, Engine, running_engine

PROGRAM = shutil.which("docker-compose", path="/usr/bin") or ""
SHOP = """
version: "2.4"
services:
  web:
    image: busybox
    command: [sh, -c, "mkdir /www; echo $$GREETING > /www/index.html; exec busybox httpd -f -h /www"]
    environment: {GREETING: "${GREETING:-hello}"}
    depends_on: {db: {condition: service_healthy}}
    ports: ["127.0.0.1::80"]
    stop_signal: SIGKILL
    mem_limit: 64m
    networks: {default: {aliases: [shopwindow]}}
  db:
    image: busybox
    command: [sh, -c, "echo up; touch /data/ready; exec sleep 600"]
    healthcheck: {test: [CMD, stat, /data/ready], interval: 300ms, retries: 50}
    stop_signal: SIGKILL
    volumes: ["data:/data"]
volumes: {data: {}}
"""


def _version() -> str:
    if not PROGRAM:
        return ""
    told = subprocess.run([PROGRAM, "version", "--short"], capture_output=True, text=True, timeout=BOUND_S)
    return told.stdout.strip()


pytestmark = pytest.mark.skipif(
    not _version().startswith("1."),
    reason="Debian 12's docker-compose isn't here: apt-get install docker-compose",
)


@pytest.fixture(scope="module", params=COMPARED_ON_DEMAND)
def engine(request: pytest.FixtureRequest) -> Iterator[Engine]:
    yield from running_engine(request.param)


def test_a_project_s_life(engine: Engine, tmp_path: Path) -> None:
    (tmp_path / "docker-compose.yml").write_text(SHOP)
    environment = {
        "DOCKER_HOST": engine.host,
        "HOME": str(tmp_path),
        "PATH": os.environ["PATH"],
        "LC_ALL": "C.UTF-8",
    }

    def compose(*words: str, code: int = 0, **more: str) -> str:
        done = subprocess.run(
            [PROGRAM, "--project-name", "shop", "--ansi", "never", *words],
            cwd=tmp_path,
            env=environment | more,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=BOUND_S,
        )
        assert done.returncode == code, f"{words}: {done.returncode}\n{done.stdout}\n{done.stderr}"
        return done.stdout

    def found(service: str) -> list[str]:
        label = {"label": f"com.docker.compose.service={service}"}
        return [each.id for each in engine.client.containers.list(all=True, filters=label)]

    try:
        compose("up", "-d")
        assert engine.fetch(compose("port", "web", "80").strip()) == "hello\n"
        assert "Up (healthy)" in compose("ps", "db")
        web, db = (found(name) for name in ("web", "db"))
        eventually(lambda: "db_1   | up" in compose("logs", "--no-color"))
        assert compose("exec", "-T", "web", "sh", "-c", "echo $GREETING; exit 3", code=3) == "hello\n"
        assert compose("run", "--rm", "-T", "web", "wget", "-q", "-O", "-", "http://shopwindow/") == "hello\n"
        assert "sleep 600" in compose("top", "db")
        compose("up", "-d", GREETING="changed")
        assert found("db") == db and found("web") != web
        for verb, state in (("restart", "running"), ("stop", "exited")):
            compose(verb, "web")
            assert engine.client.containers.get("shop_web_1").status == state
        compose("up", "-d", "--scale", "web=2")
        assert len(found("web")) == 2
    finally:
        compose("down", "-v", "-t", "0")
    label = {"label": "com.docker.compose.project=shop"}
    assert engine.client.containers.list(all=True, filters=label) == []
    assert (
        engine.client.networks.list(filters=label) == [] and engine.client.volumes.list(filters=label) == []
    )
