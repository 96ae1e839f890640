"""`docker commit`: what a container changed becomes a layer, also when the container or the daemon is in the way."""

from __future__ import annotations

import contextlib
import http.client
import io
import json
import tarfile
import threading
from collections.abc import Iterator
from typing import Any

import pytest

from tests.apikit import eventually
from tests.daemon import Daemon


@pytest.fixture(autouse=True)
def cleared(request: pytest.FixtureRequest) -> Iterator[None]:
    """No container of a test stays."""
    name = "fresh_daemon" if "fresh_daemon" in request.fixturenames else "daemon"
    daemon: Daemon = request.getfixturevalue(name)
    yield
    for found in daemon.http("GET", "/containers/json?all=1").json():
        assert daemon.http("DELETE", f"/containers/{found['Id']}?force=1").status == 204


def made(daemon: Daemon, image: str, script: str, **more: Any) -> str:
    body = {"Image": image, "Cmd": ["sh", "-c", script], "HostConfig": {"NetworkMode": "none"}, **more}
    answer = daemon.http("POST", "/containers/create", body)
    assert answer.status == 201, answer.message
    return str(answer.json()["Id"])


def ran(daemon: Daemon, image: str, script: str, **more: Any) -> tuple[str, str]:
    """A container that has ended, and its output."""
    container = made(daemon, image, script, **more)
    assert daemon.http("POST", f"/containers/{container}/start").status == 204
    assert daemon.http("POST", f"/containers/{container}/wait").status == 200
    output = daemon.client.containers.get(container).logs().decode()
    return container, output


def committed(daemon: Daemon, container: str, **query: str) -> str:
    parameters = "&".join(f"{key}={value}" for key, value in query.items())
    answer = daemon.http("POST", f"/commit?container={container}&{parameters}", {})
    assert answer.status == 201, answer.message
    return str(answer.json()["Id"])


def layer_members(daemon: Daemon, image: str) -> dict[str, tarfile.TarInfo]:
    """The members of an image's last layer, as `docker save` writes it."""
    saved = io.BytesIO(daemon.http("GET", f"/images/{image}/get").body)
    with tarfile.open(fileobj=saved) as archive:
        manifest = json.load(archive.extractfile("manifest.json"))  # type: ignore[arg-type]
        with tarfile.open(fileobj=archive.extractfile(manifest[0]["Layers"][-1])) as layer:
            return {member.name: member for member in layer.getmembers()}


def test_a_layer_has_what_was_changed_and_nothing_else(daemon: Daemon, image: str) -> None:
    base, _ = ran(
        daemon, image, "mkdir -p /app/old && echo 1 > /app/old/a && echo 2 > /app/b && echo 3 > /app/c"
    )
    first = committed(daemon, base, repo="commit-base", tag="1")
    script = "rm /app/b; rm -r /app/old; mkdir /app/old; echo new > /app/old/n; ln /app/c /app/d; chmod 4711 /app/c"
    container, _ = ran(daemon, "commit-base:1", script)
    second = committed(daemon, container, comment="changed", author="Ada")
    members = layer_members(daemon, second)
    assert set(members) == {
        "app",
        "app/.wh.b",
        "app/old",
        "app/old/.wh..wh..opq",
        "app/old/n",
        "app/c",
        "app/d",
    }
    assert members["app/d"].islnk() and members["app/c"].mode == 0o4711
    _, output = ran(daemon, second, "cd /app; busybox find . | busybox sort; cat old/n d")
    assert output.split() == [".", "./c", "./d", "./old", "./old/n", "new", "3"]
    found = daemon.http("GET", f"/images/{second}/json").json()
    assert (found["Author"], found["Comment"], found["Parent"]) == ("Ada", "changed", first)
    assert len(found["RootFS"]["Layers"]) == 1 + len(
        daemon.http("GET", f"/images/{first}/json").json()["RootFS"]["Layers"]
    )
    newest = daemon.http("GET", f"/images/{second}/history").json()[0]
    assert newest["CreatedBy"] == f"sh -c {script}" and newest["Comment"] == "changed"
    assert daemon.http("DELETE", f"/images/{first}").status == 409  # the second is made of it


def test_settings_are_the_container_s_then_the_changes(daemon: Daemon, image: str) -> None:
    container, _ = ran(
        daemon,
        image,
        "true",
        Env=["A=1", "B=2"],
        Labels={"who": "container"},
        WorkingDir="/srv",
        ExposedPorts={"80/tcp": {}},
        User="7:8",
    )
    asked = {
        "container": container,
        "changes": ["ENV B=3 C=4", "LABEL what=image", 'CMD ["serve"]', "EXPOSE 81"],
    }
    query = "&".join(
        f"{key}={value}"
        for key, values in asked.items()
        for value in ([values] if isinstance(values, str) else values)
    )
    answer = daemon.http("POST", "/commit?" + query.replace(" ", "%20").replace('"', "%22"), {"User": "9"})
    assert answer.status == 201, answer.message
    config = daemon.http("GET", f"/images/{answer.json()['Id']}/json").json()["Config"]
    assert {"A=1", "B=3", "C=4"} <= set(config["Env"]) and "B=2" not in config["Env"]
    assert config["Labels"] == {"who": "container", "what": "image"}
    assert (config["WorkingDir"], config["User"], config["Cmd"]) == ("/srv", "9", ["serve"])
    assert set(config["ExposedPorts"]) == {"80/tcp", "81/tcp"}


def test_nothing_changed_is_no_layer(daemon: Daemon, image: str) -> None:
    container, _ = ran(daemon, image, "true")
    found = daemon.http("GET", f"/images/{committed(daemon, container)}/json").json()
    base = daemon.http("GET", f"/images/{image}/json").json()
    assert found["RootFS"]["Layers"] == base["RootFS"]["Layers"]


def test_a_running_container_is_still_meanwhile_and_goes_on(daemon: Daemon, image: str) -> None:
    """Two files are written one after the other without pause: a layer never has the second without the first."""
    container = made(daemon, image, "while :; do echo >> /first; echo >> /second; done")
    assert daemon.http("POST", f"/containers/{container}/start").status == 204
    eventually(
        lambda: daemon.http("HEAD", f"/containers/{container}/archive?path=/second").status == 200,
        "the files",
    )
    for _ in range(5):
        copied = committed(daemon, container)
        _, output = ran(daemon, copied, "busybox stat -c %s /first /second")
        first, second = (int(word) for word in output.split())
        assert second <= first <= second + 1
    assert daemon.http("GET", f"/containers/{container}/json").json()["State"]["Status"] == "running"
    before = _content(daemon, container)
    eventually(lambda: _content(daemon, container) != before, "the container to go on")


def _content(daemon: Daemon, container: str) -> bytes:
    return daemon.http("GET", f"/containers/{container}/archive?path=/first").body


def test_a_daemon_killed_during_a_commit_leaves_no_image_and_lets_the_container_go_on(
    fresh_daemon: Daemon, image: str
) -> None:
    daemon = fresh_daemon
    container = made(
        daemon, image, "busybox dd if=/dev/urandom of=/big bs=1M count=200 2>/dev/null; sleep 1000"
    )
    assert daemon.http("POST", f"/containers/{container}/start").status == 204
    size = f"/containers/{container}/archive?path=/big"

    def written() -> bool:
        top = daemon.http("GET", f"/containers/{container}/top").json()["Processes"]
        return daemon.http("HEAD", size).status == 200 and any("sleep" in row[-1] for row in top)

    eventually(written, "the file")
    before = daemon.http("GET", "/images/json?all=1").json()

    answers = []

    def commit() -> None:
        with contextlib.suppress(OSError, http.client.HTTPException):  # the daemon dies under it
            answers.append(daemon.http("POST", f"/commit?container={container}", {}))

    caller = threading.Thread(target=commit)
    caller.start()
    path = f"/containers/{container}/json"
    eventually(lambda: daemon.http("GET", path).json()["State"]["Status"] == "paused", "the commit")
    daemon.kill9()
    caller.join(60)
    assert not answers, "the commit was over before the kill"
    daemon.start()
    assert daemon.http("GET", path).json()["State"]["Status"] == "running"
    assert daemon.http("GET", "/images/json?all=1").json() == before
    assert not list((daemon.data_root / "images").glob("staging/*"))


@pytest.mark.parametrize(
    ("query", "status", "sentence"),
    [
        ("", 400, "container: is missing"),
        ("container=nobody", 404, "No such container: nobody"),
        ("container={}&repo=Upper", 400, "repository name"),
        ("container={}&tag=1", 400, "needs the parameter repo"),
        ("container={}&changes=RUN%20true", 400, "RUN is not a valid change command"),
        ("container={}&pause=perhaps", 400, "pause: expected true or false"),
    ],
)
def test_what_can_t_be_is_refused(daemon: Daemon, image: str, query: str, status: int, sentence: str) -> None:
    container = made(daemon, image, "true")
    answer = daemon.http("POST", "/commit?" + query.format(container), {})
    assert (answer.status, sentence in answer.message) == (status, True), answer.message


def test_a_name_that_would_delete_is_refused(daemon: Daemon, image: str) -> None:
    container, _ = ran(daemon, image, "echo x > /.wh.bin")
    before = daemon.http("GET", "/images/json?all=1").json()
    answer = daemon.http("POST", f"/commit?container={container}", {})
    assert answer.status == 400 and "begins with .wh." in answer.message
    assert daemon.http("GET", "/images/json?all=1").json() == before
