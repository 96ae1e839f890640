"""The docker SDK for Python: images, volumes, networks, events, and every API version that it may speak."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import docker
import pytest
from docker.types import IPAMConfig, IPAMPool

from tests.clients.dockercli import BOUND_S, clean

if TYPE_CHECKING:
    from tests.daemon import Daemon


@pytest.fixture
def client(daemon: Daemon) -> Iterator[docker.DockerClient]:
    yield daemon.client
    clean(daemon.client)


@pytest.mark.parametrize("version", ["1.24", "1.30", "1.40", "1.43", "1.44", "1.51"])
def test_the_same_walk_works_with_every_version(daemon: Daemon, image: str, version: str) -> None:
    client = docker.DockerClient(base_url=daemon.host, version=version, timeout=BOUND_S)
    try:
        assert client.version()["ApiVersion"] >= "1.51"
        assert client.containers.run(image, "echo hi", remove=True) == b"hi\n"
        network = client.networks.create("walk")
        volume = client.volumes.create("walk")
        container = client.containers.run(
            image,
            "sleep 600",
            detach=True,
            name="walk",
            network="walk",
            volumes=["walk:/data"],
            ports={"80/tcp": None},
        )
        container.reload()
        assert container.attrs["NetworkSettings"]["Networks"]["walk"]["IPAddress"]
        assert container.ports["80/tcp"][0]["HostPort"].isdigit()
        assert container.exec_run("echo x") == (0, b"x\n")
        assert container.stats(stream=False)["memory_stats"]
        assert [found.name for found in client.containers.list()] == ["walk"]
        network.disconnect(container)
        client.networks.get("bridge").connect(container)
        container.stop(timeout=0)
        assert container.wait()["StatusCode"] == 137
        container.remove(v=True)
        network.remove()
        volume.remove()
        assert client.images.get(image).tags == [image]
        assert client.images.list()[0].attrs["Size"] > 0
        assert client.info()["Containers"] == 0
        assert version == "1.24" or client.df()["Images"]
    finally:
        client.close()


def test_a_version_that_is_too_new_or_too_old_is_refused(daemon: Daemon) -> None:
    for path, words in (
        ("/v1.99/info", "client version 1.99 is too new"),
        ("/v1.20/info", "client version 1.20 is too old"),
    ):
        answer = daemon.http("GET", path)
        assert answer.status == 400 and words in answer.message


def test_images_are_saved_loaded_tagged_and_removed(client: docker.DockerClient, image: str) -> None:
    found = client.images.get(image)
    assert found.tag("other", "1") is True
    archive = b"".join(client.images.get("other:1").save(named="other:1"))
    client.images.remove("other:1")
    assert client.images.load(archive)[0].id == found.id
    assert [entry.id for entry in client.images.list("other")] == [found.id]
    assert found.history()[0]["Id"] == found.id
    client.images.remove("other:1")
    with pytest.raises(docker.errors.ImageLoadError, match="isn't an image archive"):
        client.images.load(b"abc")
    assert client.images.prune()["ImagesDeleted"] is None


def test_a_tree_is_imported(client: docker.DockerClient, image: str) -> None:
    container = client.containers.create(image)
    tree = b"".join(container.export())
    told = json.loads(client.api.import_image_from_data(tree, repository="tree", tag="1"))
    assert told["status"] == client.images.get("tree:1").id
    assert client.containers.run("tree:1", "echo in", remove=True) == b"in\n"
    client.images.remove("tree:1")


def test_a_pull_from_nowhere_raises_and_says_why(client: docker.DockerClient) -> None:
    with pytest.raises(docker.errors.APIError) as caught:
        client.images.pull("127.0.0.1:1/debian", tag="nothing")
    assert "127.0.0.1:1: connection refused" in caught.value.explanation.lower()


def test_volumes_are_made_listed_and_removed(client: docker.DockerClient, image: str) -> None:
    volume = client.volumes.create("one", labels={"a": "b"})
    assert volume.attrs["Labels"] == {"a": "b"} and client.volumes.get("one").attrs["Driver"] == "local"
    assert [v.name for v in client.volumes.list(filters={"label": "a=b"})] == ["one"]
    container = client.containers.create(image, volumes=["one:/data"])
    with pytest.raises(docker.errors.APIError) as caught:
        volume.remove()
    assert caught.value.response.status_code == 409 and container.id in caught.value.explanation
    container.remove()
    volume.remove()
    anonymous = client.volumes.create()
    assert client.volumes.prune()["VolumesDeleted"] == [anonymous.name]


def test_networks_are_made_with_addresses_and_connected(client: docker.DockerClient, image: str) -> None:
    pool = IPAMPool(
        subnet="10.214.0.0/16",
        iprange="10.214.5.0/24",
        gateway="10.214.5.254",
        aux_addresses={"a": "10.214.5.0"},
    )
    network = client.networks.create(
        "back", ipam=IPAMConfig(pool_configs=[pool]), labels={"a": "b"}, attachable=True
    )
    assert network.attrs["IPAM"]["Config"][0]["AuxiliaryAddresses"] == {"a": "10.214.5.0"}
    container = client.containers.run(image, "sleep 600", detach=True)
    network.connect(container, ipv4_address="10.214.7.7", aliases=["svc"], mac_address="02:42:0a:d6:07:07")
    network.reload()
    assert network.containers == [container]
    container.reload()
    endpoint = container.attrs["NetworkSettings"]["Networks"]["back"]
    assert endpoint["IPAddress"] == "10.214.7.7" and endpoint["MacAddress"] == "02:42:0a:d6:07:07"
    assert endpoint["IPAMConfig"] == {"IPv4Address": "10.214.7.7"}
    network.disconnect(container)
    waiting = client.containers.create(image)
    network.connect(waiting, mac_address="02:42:0a:d6:07:08", driver_opt={"com.example": "on"})
    waiting.reload()
    endpoint = waiting.attrs["NetworkSettings"]["Networks"]["back"]
    assert endpoint["MacAddress"] == "02:42:0a:d6:07:08" and endpoint["DriverOpts"] == {"com.example": "on"}
    assert {n.name for n in client.networks.list(names=["back"])} == {"back"}
    waiting.remove()
    assert client.networks.prune()["NetworksDeleted"] == ["back"]


def test_events_are_streamed_with_filters(client: docker.DockerClient, image: str) -> None:
    start = time.time()
    seen: list[dict[str, Any]] = []
    stream = client.events(
        since=f"{start:.6f}", decode=True, filters={"type": ["container"], "event": ["create", "die"]}
    )

    def read() -> None:
        for event in stream:
            seen.append(event)
            if event["Action"] == "die":
                stream.close()
                return

    thread = threading.Thread(target=read)
    thread.start()
    client.containers.run(image, ["sh", "-c", "exit 0"], name="told")
    thread.join(BOUND_S)
    assert [event["Action"] for event in seen] == ["create", "die"]
    assert (
        seen[1]["Actor"]["Attributes"]["exitCode"] == "0" and seen[0]["Actor"]["Attributes"]["image"] == image
    )


def test_the_system_tells_of_itself(client: docker.DockerClient) -> None:
    assert client.ping() is True
    info = client.info()
    assert info["OSType"] == "linux" and info["Driver"] == "overlay2" and info["ID"]
    assert client.version()["MinAPIVersion"] == "1.24"
    assert set(client.df()) >= {"Images", "Containers", "Volumes", "LayersSize"}


def test_what_this_release_has_not_is_told_by_status_and_sentence(
    client: docker.DockerClient, image: str
) -> None:
    with pytest.raises(docker.errors.APIError) as caught:
        client.services.list()
    assert caught.value.response.status_code == 503 and "not a swarm manager" in caught.value.explanation
