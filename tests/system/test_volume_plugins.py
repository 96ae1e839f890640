"""Volume plugins: a real one on a unix socket, and what becomes of everybody else when it hangs, lies or is gone."""

from __future__ import annotations

import http.server
import json
import os
import shutil
import socketserver
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.apikit import Call, create, eventually, inspect, logs, remove, run, start, wait
from tests.daemon import Daemon


class Plugin(socketserver.ThreadingUnixStreamServer):
    """Keeps its volumes as directories. `answers` replaces what a method says, `hangs` names methods that never do."""

    daemon_threads = True

    def __init__(self, socket: Path, directory: Path) -> None:
        self.directory = directory
        self.volumes: dict[str, dict[str, str]] = {}
        self.mounts: list[tuple[str, str]] = []
        self.calls: list[str] = []
        self.answers: dict[str, bytes] = {}
        self.hangs: set[str] = set()
        self.go_on = threading.Event()
        super().__init__(str(socket), Handler)
        self.thread = threading.Thread(target=self.serve_forever, kwargs={"poll_interval": 0.05})
        self.thread.start()

    def stop(self) -> None:
        self.go_on.set()
        self.shutdown()
        self.thread.join()
        self.server_close()
        os.unlink(str(self.server_address))

    def do(self, method: str, body: dict[str, Any]) -> dict[str, Any]:
        name = body.get("Name", "")
        match method:
            case "Plugin.Activate":
                return {"Implements": ["VolumeDriver"]}
            case "VolumeDriver.Capabilities":
                return {"Capabilities": {"Scope": "global"}}
            case "VolumeDriver.List":
                return {"Volumes": [self._shown(name) for name in self.volumes]}
            case "VolumeDriver.Create":
                (self.directory / name).mkdir()
                self.volumes[name] = body["Opts"] or {}
                return {}
        if name not in self.volumes:
            return {"Err": f"no volume {name} here"}
        match method:
            case "VolumeDriver.Get":
                return {"Volume": {**self._shown(name), "Status": {"opts": self.volumes[name]}}}
            case "VolumeDriver.Remove":
                shutil.rmtree(self.directory / name)
                del self.volumes[name]
            case "VolumeDriver.Mount":
                self.mounts.append((name, body["ID"]))
                return {"Mountpoint": str(self.directory / name)}
            case "VolumeDriver.Unmount":
                self.mounts.remove((name, body["ID"]))
        return {}

    def _shown(self, name: str) -> dict[str, Any]:
        return {"Name": name, "Mountpoint": str(self.directory / name) if self.mounts else ""}


class Handler(http.server.BaseHTTPRequestHandler):
    server: Plugin

    def do_POST(self) -> None:
        method = self.path.lstrip("/")
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])) or b"{}")
        self.server.calls.append(method)
        if method in self.server.hangs:
            self.server.go_on.wait(120)
        answer = self.server.answers.get(method) or json.dumps(self.server.do(method, body)).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(answer)))
        self.end_headers()
        self.wfile.write(answer)

    def log_message(self, format: str, *arguments: Any) -> None:
        pass

    def address_string(self) -> str:
        return ""


@pytest.fixture
def plugin(daemon: Daemon, tmp_path: Path) -> Iterator[Plugin]:
    made = start_plugin(daemon, tmp_path)
    yield made
    for container in daemon.http("GET", "/containers/json?all=1").json():
        daemon.http("DELETE", f"/containers/{container['Id']}?force=1")
    made.stop()


def start_plugin(daemon: Daemon, directory: Path) -> Plugin:
    sockets = daemon.run_dir / "plugins"
    sockets.mkdir(exist_ok=True)
    return Plugin(sockets / "shelf.sock", directory)


def make(daemon: Daemon, name: str, **options: str) -> None:
    answer = daemon.http("POST", "/volumes/create", {"Name": name, "Driver": "shelf", "DriverOpts": options})
    assert answer.status == 201, answer.message


def test_a_plugins_volume_is_used_like_any_other(daemon: Daemon, image: str, plugin: Plugin) -> None:
    make(daemon, "books", colour="red")
    shown = daemon.http("GET", "/volumes/books").json()
    assert (shown["Driver"], shown["Scope"]) == ("shelf", "global")
    assert shown["Status"] == {"opts": {"colour": "red"}} and shown["Options"] == {"colour": "red"}
    first = run(daemon, image, "sh", "-c", "echo read > /b/page; exec sleep 600", Binds=["books:/b"])
    second = run(daemon, image, "sleep", "600", Binds=["books:/b"])
    assert sorted(plugin.mounts) == sorted([("books", first), ("books", second)])
    point = inspect(daemon, first)["Mounts"][0]
    assert (point["Driver"], point["Source"]) == ("shelf", str(plugin.directory / "books"))
    eventually(lambda: (plugin.directory / "books/page").exists())
    refused = daemon.http("DELETE", "/volumes/books")
    assert refused.status == 409 and "volume is in use" in refused.message
    remove(daemon, first)
    eventually(lambda: plugin.mounts == [("books", second)])
    remove(daemon, second)
    eventually(lambda: plugin.mounts == [])
    taken = daemon.http("POST", "/volumes/create", {"Name": "books", "Driver": "local"})
    assert taken.status == 409 and "already exists with the shelf driver" in taken.message
    assert daemon.http("DELETE", "/volumes/books").status == 204
    assert plugin.volumes == {}


def test_a_volume_that_only_the_plugin_knows_is_found(daemon: Daemon, image: str, plugin: Plugin) -> None:
    plugin.do("VolumeDriver.Create", {"Name": "old", "Opts": {}})
    (plugin.directory / "old/page").write_text("kept")
    listed = daemon.http("GET", "/volumes").json()["Volumes"]
    assert [(one["Name"], one["Driver"]) for one in listed] == [("old", "shelf")]
    container = run(daemon, image, "cat", "/b/page", Binds=["old:/b"])
    assert wait(daemon, container) == 0 and b"kept" in logs(daemon, container)
    remove(daemon, container)
    assert daemon.http("DELETE", "/volumes/old").status == 204


def test_a_plugin_that_hangs_holds_up_nobody_else(daemon: Daemon, image: str, plugin: Plugin) -> None:
    make(daemon, "slow")
    waiting = create(daemon, image, "true", Binds=["slow:/b:nocopy"])
    plugin.hangs = {"VolumeDriver.Mount"}
    started = Call(daemon, "POST", f"/containers/{waiting}/start")
    eventually(lambda: "VolumeDriver.Mount" in plugin.calls)
    other = run(daemon, image, "true", Binds=["plain:/b"])
    assert wait(daemon, other) == 0
    assert daemon.http("GET", "/volumes").status == 200
    plugin.hangs = set()
    plugin.go_on.set()
    answer = started.result()
    assert answer is not None and answer.status == 204
    wait(daemon, waiting)
    remove(daemon, waiting, other)
    eventually(lambda: plugin.mounts == [])
    for name in ("slow", "plain"):
        assert daemon.http("DELETE", f"/volumes/{name}").status == 204


@pytest.mark.parametrize(
    ("answer", "told"),
    [
        (b'{"Mountpoint": "etc/passwd"}', "is no absolute path"),
        (b'{"Mountpoint": 7}', "is no absolute path"),
        (b"<html>", "expected a JSON object"),
        (b'{"Err": "the shelf is full"}', "the shelf is full"),
        (b'{"Mountpoint": "/no/such/place"}', "/no/such/place"),
    ],
)
def test_what_a_plugin_says_wrong_is_told(
    daemon: Daemon, image: str, plugin: Plugin, answer: bytes, told: str
) -> None:
    make(daemon, "lies")
    container = create(daemon, image, "true", Binds=["lies:/b:nocopy"])
    plugin.answers["VolumeDriver.Mount"] = answer
    refused = daemon.http("POST", f"/containers/{container}/start")
    assert refused.status >= 400 and told in refused.message, refused.message
    remove(daemon, container)
    plugin.answers.clear()
    eventually(lambda: daemon.http("DELETE", "/volumes/lies").status == 204)


def test_a_plugin_that_is_gone_leaves_volumes_that_can_be_forgotten(
    daemon: Daemon, image: str, tmp_path: Path
) -> None:
    plugin = start_plugin(daemon, tmp_path)
    make(daemon, "orphan")
    plugin.stop()
    assert [one["Name"] for one in daemon.http("GET", "/volumes").json()["Volumes"]] == ["orphan"]
    assert daemon.http("GET", "/volumes/orphan").json()["Driver"] == "shelf"
    refused = daemon.http("DELETE", "/volumes/orphan")
    assert refused.status == 404 and 'plugin "shelf" not found' in refused.message
    assert daemon.http("DELETE", "/volumes/orphan?force=1").status == 204
    assert not daemon.http("GET", "/volumes").json()["Volumes"]


def test_a_killed_daemon_tells_the_plugin_what_has_ended(
    fresh_daemon: Daemon, image: str, tmp_path: Path
) -> None:
    daemon = fresh_daemon
    plugin = start_plugin(daemon, tmp_path)
    try:
        make(daemon, "books")
        stays, ends = (run(daemon, image, "sleep", "600", Binds=["books:/b"]) for _ in range(2))
        pid = inspect(daemon, ends)["State"]["Pid"]
        daemon.kill9()
        os.kill(pid, 9)
        daemon.start()
        eventually(lambda: plugin.mounts == [("books", stays)])
        start(daemon, ends)
        eventually(lambda: sorted(plugin.mounts) == sorted([("books", stays), ("books", ends)]))
        remove(daemon, stays, ends)
        eventually(lambda: plugin.mounts == [])
        assert daemon.http("DELETE", "/volumes/books").status == 204
    finally:
        plugin.stop()
