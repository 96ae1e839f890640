"""The Dev Containers CLI brings a development container up and works in it."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.clients.engines import COMPARED_ON_DEMAND, Engine, running_engine
from tests.clients.shellimage import load_shell
from tests.clients.toolbox import require


@pytest.fixture(scope="module", params=COMPARED_ON_DEMAND)
def engine(request: pytest.FixtureRequest) -> Iterator[Engine]:
    yield from running_engine(request.param)


def test_a_container_comes_up_is_worked_in_and_found_again(engine: Engine, tmp_path: Path) -> None:
    devcontainer = str(require("node") / "node_modules/.bin/devcontainer")
    project = tmp_path / "project"
    (project / ".devcontainer").mkdir(parents=True)
    document = {
        "image": load_shell(engine),
        "remoteUser": "user",
        "updateRemoteUserUID": False,  # builds an image
        "containerEnv": {"IN_CONTAINER": "yes"},
        "remoteEnv": {"FROM": "${localEnv:FROM_HERE}"},
        "mounts": ["source=dev-data,target=/data,type=volume"],
        "postCreateCommand": "echo created > made-by-hook",
        "runArgs": ["--init", "--label", "walk=dev"],
    }
    (project / ".devcontainer/devcontainer.json").write_text(json.dumps(document))
    project.chmod(0o777)
    environment = {"HOME": str(tmp_path), "DOCKER_CONFIG": str(tmp_path), "FROM_HERE": "there"}
    folder = ["--workspace-folder", str(project)]

    def up() -> str:
        answer = json.loads(engine.run([devcontainer, "up", *folder], environment))
        assert (answer["outcome"], answer["remoteUser"]) == ("success", "user")
        assert answer["remoteWorkspaceFolder"] == "/workspaces/project"
        return str(answer["containerId"])

    found = up()
    try:
        assert (project / "made-by-hook").read_text() == "created\n"
        script = "id -un; pwd; echo $IN_CONTAINER $FROM; echo written > from-inside"
        told = engine.run([devcontainer, "exec", *folder, "sh", "-c", script], environment)
        assert told.split() == ["user", "/workspaces/project", "yes", "there"]
        assert (project / "from-inside").read_text() == "written\n"
        engine.client.containers.get(found).stop(timeout=0)
        assert up() == found, "the same container is started again"
    finally:
        engine.client.containers.get(found).remove(force=True)
        engine.client.volumes.get("dev-data").remove()


def test_a_container_of_a_dockerfile_comes_up(engine: Engine, tmp_path: Path) -> None:
    """`build` in devcontainer.json, and the image that is made to give its user the caller's ids."""
    devcontainer = str(require("node") / "node_modules/.bin/devcontainer")
    project = tmp_path / "project"
    (project / ".devcontainer").mkdir(parents=True)
    dockerfile = f"FROM {load_shell(engine)}\nARG WORD\nRUN echo $WORD > /built\n"
    (project / ".devcontainer/Dockerfile").write_text(dockerfile)
    document = {
        "build": {"dockerfile": "Dockerfile", "args": {"WORD": "from-args"}},
        "remoteUser": "user",
        "updateRemoteUserUID": False,
        "runArgs": ["--init"],
    }
    (project / ".devcontainer/devcontainer.json").write_text(json.dumps(document))
    environment = {"HOME": str(tmp_path), "DOCKER_CONFIG": str(tmp_path), "DOCKER_BUILDKIT": "0"}
    folder = ["--workspace-folder", str(project)]
    before = {image.id for image in engine.client.images.list()}
    answer = json.loads(engine.run([devcontainer, "up", *folder], environment))
    try:
        assert answer["outcome"] == "success"
        assert engine.run([devcontainer, "exec", *folder, "cat", "/built"], environment) == "from-args\n"
    finally:
        engine.client.containers.get(answer["containerId"]).remove(force=True)
        for image in engine.client.images.list():
            if image.id not in before:
                engine.client.images.remove(image.id, force=True)
