"""connect and disconnect of containers by the API, while networks and containers come and go."""

from __future__ import annotations

from typing import Any

from tests.daemon import Daemon


def post(daemon: Daemon, path: str, body: object = None) -> Any:
    answer = daemon.http("POST", path, body)
    assert answer.status in (200, 201, 204), (path, answer.message)
    return answer.json() if answer.body else None


def networks_of(daemon: Daemon, container: str) -> set[str]:
    shown = daemon.http("GET", f"/containers/{container}/json").json()
    return set(shown["NetworkSettings"]["Networks"])


def test_a_container_leaves_a_network_although_another_of_its_networks_is_gone(
    daemon: Daemon, image: str
) -> None:
    for name in ("gone", "left"):
        post(daemon, "/networks/create", {"Name": name})
    body = {"Image": image, "Cmd": ["sleep", "1000"], "HostConfig": {"NetworkMode": "bridge"}}
    container = post(daemon, "/containers/create", body)["Id"]
    for name in ("gone", "left"):
        post(daemon, f"/networks/{name}/connect", {"Container": container})
    assert daemon.http("DELETE", "/networks/gone").status == 204
    post(daemon, "/networks/left/disconnect", {"Container": container})
    assert "left" not in networks_of(daemon, container)
    assert daemon.http("DELETE", f"/containers/{container}").status == 204
    assert daemon.http("DELETE", "/networks/left").status == 204


def test_a_rename_and_a_connect_at_once_both_last(daemon: Daemon, image: str) -> None:
    post(daemon, "/networks/create", {"Name": "joined"})
    body = {"Image": image, "Cmd": ["sleep", "1000"], "HostConfig": {"NetworkMode": "bridge"}}
    container = post(daemon, "/containers/create?name=before", body)["Id"]
    post(daemon, f"/containers/{container}/start")
    with daemon.connect() as connecting:
        text = b'{"Container":"%s"}' % container.encode()
        connecting.sendall(
            b"POST /networks/joined/connect HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
            b"Content-Length: %d\r\n\r\n%b" % (len(text), text)
        )
        post(daemon, f"/containers/{container}/rename?name=after")
        assert connecting.makefile("rb").readline().split()[1] == b"200"
    shown = daemon.http("GET", "/containers/after/json").json()
    assert shown["Name"] == "/after"
    assert "joined" in networks_of(daemon, "after")
    assert daemon.http("DELETE", "/containers/after?force=1").status == 204
    again = post(daemon, "/containers/create?name=after", body)["Id"]
    assert daemon.http("DELETE", f"/containers/{again}").status == 204
    assert daemon.http("DELETE", "/networks/joined").status == 204
