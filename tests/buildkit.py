"""Builds for tests: contexts as archives, and what the classic endpoint's stream says.

answer = build(daemon, {"Dockerfile": "FROM busybox\nRUN true\n"}, t="app:1")
answer.text, answer.error, answer.image
"""

from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote

from tests.daemon import Daemon
from tests.imagekit import Entry, File, make_layer

Files = Mapping[str, bytes | str] | Iterable[Entry] | bytes


@dataclass(frozen=True)
class Built:
    """What a build came to."""

    status: int
    lines: list[dict[str, Any]]
    message: str = ""

    @property
    def text(self) -> str:
        return "".join(line.get("stream", "") for line in self.lines)

    @property
    def error(self) -> str:
        return self.message or next((line["error"] for line in self.lines if "error" in line), "")

    @property
    def code(self) -> int | None:
        return next((line["errorDetail"].get("code") for line in self.lines if "errorDetail" in line), None)

    @property
    def image(self) -> str:
        """The image's id; the whole text when there is none."""
        assert not self.error, f"{self.text}\n{self.error}"
        return [line["aux"]["ID"] for line in self.lines if "aux" in line][-1]  # dockerd tells each stage's


def context(files: Files) -> bytes:
    if isinstance(files, bytes):
        return files
    if isinstance(files, Mapping):
        entries = [
            File(name, data.encode() if isinstance(data, str) else data) for name, data in files.items()
        ]
        return make_layer(entries)
    return make_layer(list(files))


def build(daemon: Daemon, files: Files, **query: Any) -> Built:
    """POST /build."""
    pairs = []
    for key, value in query.items():
        values = value if isinstance(value, list) else [value]
        for one in values:
            text = json.dumps(one) if isinstance(one, dict) else str(one)
            pairs.append(f"{key}={quote(text)}")
    answer = daemon.http(
        "POST",
        "/build?" + "&".join(pairs),
        context(files),
        headers={"Content-Type": "application/x-tar"},
    )
    if answer.status != 200:
        return Built(answer.status, [], answer.message)
    return Built(200, [json.loads(line) for line in answer.body.splitlines() if line.strip()])


def saved(daemon: Daemon, image: str) -> tuple[dict[str, Any], list[dict[str, tarfile.TarInfo]]]:
    """An image's configuration, and the members of each of its layers."""
    body = io.BytesIO(daemon.http("GET", f"/images/{image}/get").body)
    layers = []
    with tarfile.open(fileobj=body) as archive:
        manifest = json.load(archive.extractfile("manifest.json"))[0]  # type: ignore[arg-type]
        config = json.load(archive.extractfile(manifest["Config"]))  # type: ignore[arg-type]
        for name in manifest["Layers"]:
            with tarfile.open(fileobj=archive.extractfile(name)) as layer:
                layers.append({member.name: member for member in layer.getmembers()})
    return config, layers


def output(daemon: Daemon, image: str, script: str) -> str:
    """What a shell prints in a container of the image."""
    return daemon.client.containers.run(
        image, ["-c", script], entrypoint="/bin/sh", remove=True, network_mode="none", user="0"
    ).decode()
