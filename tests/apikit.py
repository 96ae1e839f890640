"""What tests do with a daemon by its API, in one line each, and the helpers to wait and to meet an instant."""

from __future__ import annotations

import contextlib
import http.client
import threading
import time
from collections.abc import Callable
from typing import Any

from tests.daemon import Daemon, Response

BOUND_S = 60.0
OWN_FIELDS = frozenset(
    "Healthcheck Volumes ExposedPorts OpenStdin StdinOnce Tty AttachStdin Labels StopSignal User Env Hostname "
    "Cove CoveSecretData".split()
)


def create(daemon: Daemon, image: str, *args: str, name: str = "", **more: Any) -> str:
    """A new container's id; `more` goes into HostConfig, but for the fields of the container itself."""
    body: dict[str, Any] = {"Image": image, "Cmd": list(args), "HostConfig": {"NetworkMode": "none"}}
    for key, value in more.items():
        if key in OWN_FIELDS:
            body[key] = value
        else:
            body["HostConfig"][key] = value
    made = daemon.http("POST", f"/containers/create{f'?name={name}' if name else ''}", body)
    assert made.status == 201, made.message
    return str(made.json()["Id"])


def start(daemon: Daemon, container: str) -> None:
    started = daemon.http("POST", f"/containers/{container}/start")
    assert started.status == 204, started.message


def run(daemon: Daemon, image: str, *args: str, name: str = "", **more: Any) -> str:
    """A started container's id."""
    container = create(daemon, image, *args, name=name, **more)
    start(daemon, container)
    return container


def inspect(daemon: Daemon, container: str) -> dict[str, Any]:
    answer = daemon.http("GET", f"/containers/{container}/json")
    assert answer.status == 200, answer.message
    return dict(answer.json())


def state(daemon: Daemon, container: str) -> dict[str, Any]:
    """The container's State, with its RestartCount."""
    found = inspect(daemon, container)
    return dict(found["State"], RestartCount=found["RestartCount"])


def exists(daemon: Daemon, container: str) -> bool:
    return daemon.http("GET", f"/containers/{container}/json").status == 200


def wait(daemon: Daemon, container: str) -> int:
    return int(daemon.http("POST", f"/containers/{container}/wait").json()["StatusCode"])


def remove(daemon: Daemon, *containers: str) -> None:
    """Remove by force, with anonymous volumes; gone already is fine."""
    for container in containers:
        gone = daemon.http("DELETE", f"/containers/{container}?force=1&v=1")
        assert gone.status in (204, 404), gone.message


def logs(daemon: Daemon, container: str) -> bytes:
    """Both streams, with their frames."""
    return daemon.http("GET", f"/containers/{container}/logs?stdout=1&stderr=1").body


def eventually(holds: Callable[[], bool], what: str = "it") -> None:
    """Wait until a condition holds that no event tells."""
    deadline = time.monotonic() + BOUND_S
    while not holds():
        assert time.monotonic() < deadline, f"{what} did not come to hold within {BOUND_S:.0f} s"
        time.sleep(0.01)


class Call(threading.Thread):
    """A request that goes on while the test does something else."""

    def __init__(self, daemon: Daemon, method: str, path: str, body: object = None, **more: Any) -> None:
        super().__init__(daemon=True)
        self._arguments = (daemon, method, path, body, more)
        self._answer: Response | None = None
        self.start()

    def run(self) -> None:
        daemon, method, path, body, more = self._arguments
        # A daemon that is killed refuses, resets or ends the answer too early.
        with contextlib.suppress(OSError, http.client.HTTPException):
            self._answer = daemon.http(method, path, body, **more)

    def result(self) -> Response | None:
        """The answer; None when the daemon died before it came."""
        self.join(BOUND_S)
        assert not self.is_alive(), f"no answer to {self._arguments[1:3]} within {BOUND_S:.0f} s"
        return self._answer
