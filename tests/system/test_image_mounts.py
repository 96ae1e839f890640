"""Mounts of the API's newer kinds: another image's files, and how far a read-only bind reaches."""

from __future__ import annotations

import io
import subprocess
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.apikit import create, inspect, logs, remove, run, start, wait
from tests.daemon import Daemon


@pytest.fixture(scope="module")
def other(daemon: Daemon, image: str) -> Iterator[str]:
    """An image of two layers: the upper one adds a file and takes another away."""
    made = run(
        daemon, image, "sh", "-c", "mkdir -p /tool/lib && echo upper > /tool/lib/file && rm /etc/group"
    )
    assert wait(daemon, made) == 0
    answer = daemon.http("POST", f"/commit?container={made}&repo=other&tag=latest", {})
    assert answer.status == 201, answer.body
    remove(daemon, made)
    yield "other:latest"
    assert daemon.http("DELETE", "/images/other:latest").status == 200


def mount(target: str = "/other", subpath: str = "", source: str = "other") -> dict[str, Any]:
    options = {"ImageOptions": {"Subpath": subpath}} if subpath else {}
    return {"Type": "image", "Source": source, "Target": target, **options}


def test_an_image_is_shown_read_only_and_kept(daemon: Daemon, image: str, other: str) -> None:
    script = (
        "cat /other/tool/lib/file /sub/file; ls /other/etc; touch /other/x || touch /sub/x || echo refused"
    )
    container = run(daemon, image, "sh", "-c", script, Mounts=[mount(), mount("/sub", "tool/lib")])
    assert wait(daemon, container) == 0
    told = logs(daemon, container).decode(errors="replace")
    assert told.count("upper\n") == 2 and "passwd" in told and "group" not in told
    assert "Read-only file system" in told and "refused" in told
    point = next(found for found in inspect(daemon, container)["Mounts"] if found["Destination"] == "/other")
    assert (point["Type"], point["Name"], point["RW"], point["Mode"]) == ("image", "other", False, "")
    refused = daemon.http("DELETE", "/images/other:latest")
    assert refused.status == 409 and container[:12] in refused.message
    chunks = daemon.http("GET", f"/containers/{container}/archive?path=/sub/file").body
    with tarfile.open(fileobj=io.BytesIO(chunks)) as archive:
        content = archive.extractfile("file")
        assert content is not None and content.read() == b"upper\n"
    remove(daemon, container)


def test_a_single_layer_is_shown_too(daemon: Daemon, image: str) -> None:
    container = run(
        daemon, image, "sh", "-c", "ls /other/bin/busybox; touch /other/x", Mounts=[mount(source=image)]
    )
    assert wait(daemon, container) == 1
    assert b"/other/bin/busybox" in logs(daemon, container) and b"Read-only" in logs(daemon, container)
    remove(daemon, container)


@pytest.mark.parametrize(
    ("given", "version", "status", "told"),
    [
        (mount(source="no-such-image"), "1.48", 404, "no-such-image"),
        (mount(subpath="../etc"), "1.48", 400, "ImageOptions.Subpath"),
        (mount(subpath="no/such"), "1.48", 400, "does not exist in the image"),
        (mount(source=""), "1.48", 400, "field Source must not be empty"),
        (mount(), "1.47", 400, "needs API v1.48"),
        ({"Type": "cluster", "Source": "x", "Target": "/x"}, "1.48", 501, "swarm"),
        ({"Type": "npipe", "Source": "x", "Target": "/x"}, "1.48", 400, "named pipes"),
        (
            {"Type": "bind", "Source": "/", "Target": "/x", "ImageOptions": {}},
            "1.48",
            400,
            "must not be specified",
        ),
    ],
)
def test_a_mount_that_cannot_be_is_refused(
    daemon: Daemon, image: str, other: str, given: dict[str, Any], version: str, status: int, told: str
) -> None:
    body = {"Image": image, "Cmd": ["true"], "HostConfig": {"Mounts": [given]}}
    answer = daemon.http("POST", f"/v{version}/containers/create", body)
    assert (answer.status, told in answer.message) == (status, True), answer.message


def test_how_far_a_read_only_bind_reaches(daemon: Daemon, image: str, tmp_path: Path) -> None:
    below = tmp_path / "below"
    below.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "tmpfs", below], check=True)
    try:
        options: list[tuple[dict[str, bool], bool]] = [
            ({}, False), ({"ReadOnlyNonRecursive": True}, True), ({"ReadOnlyForceRecursive": True}, False),
            ({"NonRecursive": True}, False),
        ]  # fmt: skip
        for given, writable in options:
            bind = {
                "Type": "bind", "Source": str(tmp_path), "Target": "/b", "ReadOnly": True, "BindOptions": given,
            }  # fmt: skip
            container = create(daemon, image, "sh", "-c", "touch /b/x; touch /b/below/x", Mounts=[bind])
            start(daemon, container)
            assert (wait(daemon, container) == 0) == writable, given
            remove(daemon, container)
    finally:
        subprocess.run(["umount", below], check=True)
