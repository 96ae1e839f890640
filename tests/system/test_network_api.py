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


def test_what_a_network_and_an_endpoint_were_asked_for_is_shown_and_moves_live(
    daemon: Daemon, image: str
) -> None:
    six = {"Name": "six", "EnableIPv4": False, "EnableIPv6": True, "Labels": {"part": "here"}}
    post(daemon, "/networks/create", six)
    pools = [{"Subnet": "10.231.0.0/24"}, {"Subnet": "10.232.0.0/24"}]
    post(daemon, "/networks/create", {"Name": "two", "IPAM": {"Config": pools, "Options": {"a": "b"}}})
    shown = daemon.http("GET", "/networks/six").json()
    assert (shown["EnableIPv4"], shown["EnableIPv6"], len(shown["IPAM"]["Config"])) == (False, True, 1)
    shown = daemon.http("GET", "/networks/two").json()
    assert [pool["Subnet"] for pool in shown["IPAM"]["Config"]] == ["10.231.0.0/24", "10.232.0.0/24"]
    assert shown["IPAM"]["Options"] == {"a": "b"}
    named = {"com.docker.network.endpoint.ifname": "lan7"}
    body = {
        "Image": image,
        "Cmd": ["sleep", "1000"],
        "HostConfig": {"NetworkMode": "two", "PortBindings": {"80/tcp": [{"HostPort": "0"}]}},
        "NetworkingConfig": {"EndpointsConfig": {"two": {"DriverOpts": named, "GwPriority": 3}}},
    }
    container = post(daemon, "/containers/create", body)["Id"]
    post(daemon, f"/containers/{container}/start")

    def inspect() -> Any:
        return daemon.http("GET", f"/containers/{container}/json").json()["NetworkSettings"]

    [before] = inspect()["Ports"]["80/tcp"]
    assert before["HostIp"] == "0.0.0.0"
    endpoint = inspect()["Networks"]["two"]
    assert (endpoint["GwPriority"], endpoint["Gateway"]) == (3, "10.231.0.1")
    post(daemon, "/networks/six/connect", {"Container": container, "EndpointConfig": {"GwPriority": 9}})
    after = inspect()["Ports"]["80/tcp"]
    assert {(port["HostIp"], port["HostPort"]) for port in after} == {
        ("0.0.0.0", before["HostPort"]),
        ("::", before["HostPort"]),
    }
    post(daemon, "/networks/six/disconnect", {"Container": container})
    assert inspect()["Ports"]["80/tcp"] == [before]
    bad = {"com.docker.network.endpoint.sysctls": "kernel.panic=1"}
    refused = {"Container": container, "EndpointConfig": {"DriverOpts": bad}}
    answer = daemon.http("POST", "/networks/six/connect", refused)
    assert answer.status == 400 and "EndpointConfig.DriverOpts" in answer.message
    assert daemon.http("DELETE", f"/containers/{container}?force=1").status == 204
    pruned = daemon.http("POST", '/networks/prune?filters={"label":["part=here"]}').json()
    assert pruned["NetworksDeleted"] == ["six"]
    assert daemon.http("DELETE", "/networks/two").status == 204
