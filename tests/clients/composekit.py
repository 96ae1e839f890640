"""docker compose for tests: a project in a directory of its own, gone with everything that it made.

with Project(engine, binary, tmp_path, COMPOSE_FILE) as project:
    project("up", "-d", "--wait")
    assert project.ids("web")
"""

from __future__ import annotations

import json
from pathlib import Path
from types import TracebackType
from typing import Any

from tests.clients.dockercli import Docker, Result, Running, Terminal
from tests.clients.engines import Engine


def use_plugin(docker: Docker, binary: Path, name: str = "compose") -> None:
    """Make `docker NAME` this program."""
    plugins = Path(docker.environment["DOCKER_CONFIG"]) / "cli-plugins"
    plugins.mkdir(exist_ok=True)
    (plugins / f"docker-{name}").symlink_to(binary)


class Project:
    """A project's directory with its compose.yaml; `project(…)` is `docker compose …` in it."""

    def __init__(
        self, engine: Engine, binary: Path, directory: Path, document: str, name: str = "shop"
    ) -> None:
        self.engine = engine
        self.directory = directory
        self.name = name
        self.docker = Docker(engine.host)
        use_plugin(self.docker, binary)
        self.write(document)
        self._words = (
            "compose",
            "--ansi",
            "never",
            "--project-name",
            name,
            "--project-directory",
            str(directory),
        )

    def write(self, document: str) -> None:
        """Change the project's file."""
        (self.directory / "compose.yaml").write_text(document)

    def __call__(self, *words: str, code: int | None = 0, input: bytes | None = None) -> Result:
        return self.docker(*self._words, *words, code=code, input=input, cwd=self.directory)

    def start(self, *words: str, stdin: bool = False) -> Running:
        return self.docker.start(*self._words, *words, stdin=stdin)

    def terminal(self, *words: str) -> Terminal:
        return self.docker.terminal(*self._words, *words)

    def rows(self, *words: str) -> list[dict[str, Any]]:
        """What a verb prints with --format json: an object a line, or one list."""
        lines = self(*words, "--format", "json").lines
        if lines and lines[0].startswith("["):
            return list(json.loads("".join(lines)))
        return [json.loads(line) for line in lines]

    def ids(self, *services: str) -> list[str]:
        """The containers of services, running or not; in the services' order where each has one."""
        if len(services) == 1:
            return self("ps", "--all", "--quiet", "--no-trunc", *services).lines
        return [each for service in services for each in self.ids(service)]

    def inspect(self, service: str) -> dict[str, Any]:
        [found] = self.ids(service)
        return dict(self.engine.client.api.inspect_container(found))

    def left(self) -> list[str]:
        """What the engine still has of this project."""
        label = {"label": f"com.docker.compose.project={self.name}"}
        client = self.engine.client
        containers = [each.name for each in client.containers.list(all=True, filters=label)]
        networks = [each.name for each in client.networks.list(filters=label)]
        return containers + networks + [each.name for each in client.volumes.list(filters=label)]

    def __enter__(self) -> Project:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            profiles = ("--profile", "*")
            self(
                *profiles,
                "down",
                "--volumes",
                "--timeout",
                "0",
                "--remove-orphans",
                code=None if error else 0,
            )
            if error is None:
                assert self.left() == []
        finally:
            self.docker.close()
