"""The stock command line's verbs for images, volumes, networks and the system."""

from __future__ import annotations

import io
import json
import tarfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.clients.dockercli import Docker, clean

if TYPE_CHECKING:
    from tests.daemon import Daemon


@pytest.fixture(scope="module")
def docker(daemon: Daemon) -> Iterator[Docker]:
    docker = Docker(daemon.host)
    yield docker
    docker.close()


@pytest.fixture(autouse=True)
def cleaned(daemon: Daemon, image: str) -> Iterator[None]:
    yield
    clean(daemon.client)
    for found in daemon.client.images.list():
        for name in found.tags:
            if name != image:
                daemon.client.images.remove(name, force=True)


# --- images ---------------------------------------------------------------------------------------


def test_images_are_listed_tagged_shown_and_removed(docker: Docker, image: str) -> None:
    identity = docker("images", "-q", "--no-trunc", image).word
    assert identity.startswith("sha256:") and len(identity) == 71
    assert docker("images").lines[0].split()[:3] == ["REPOSITORY", "TAG", "IMAGE"]
    docker("tag", image, "example.test:5000/mine/box:v1")
    docker("tag", identity[7:19], "short")
    listed = set(docker("images", "--format", "{{.Repository}}:{{.Tag}} {{.ID}}").lines)
    assert listed == {
        f"{name} {identity[7:19]}" for name in (image, "example.test:5000/mine/box:v1", "short:latest")
    }
    assert docker("images", "-q", "--filter", "reference=sho*").word == identity[7:19]
    assert docker("images", "-q", "--filter", "dangling=true").out == ""
    assert docker("images", "-q", "--filter", "label=none").out == ""
    found = json.loads(docker("image", "inspect", "short").out)[0]
    assert found["Id"] == identity and set(found["RepoTags"]) == {line.split()[0] for line in listed}
    assert found["Os"] == "linux" and found["RootFS"]["Type"] == "layers" and found["Size"] > 100_000
    assert docker("rmi", "short").lines == ["Untagged: short:latest"]
    assert "No such image: short" in docker("rmi", "short", code=1).err
    assert "No such image: nothing" in docker("image", "inspect", "nothing", code=1).err
    docker("run", "--name", "user", image, "true")
    used = docker("rmi", identity, code=1).err
    assert "must be forced" in used or "image is being used" in used
    history = docker("history", "--no-trunc", "--format", "{{.ID}} {{.Size}}", image).lines
    assert history[0].startswith(identity)


def test_saved_images_load_again_as_they_were(docker: Docker, image: str, tmp_path: Path) -> None:
    docker("tag", image, "other:1")
    archive = tmp_path / "both.tar"
    docker("save", "-o", str(archive), image, "other:1")
    with tarfile.open(archive) as tar:
        assert {"manifest.json", "index.json", "oci-layout"} <= set(tar.getnames())
    identity = docker("images", "-q", "--no-trunc", "other:1").word
    docker("rmi", "other:1")
    assert docker("load", "-q", "-i", str(archive)).lines == [
        f"Loaded image: {image}",
        "Loaded image: other:1",
    ]
    assert docker("images", "-q", "--no-trunc", "other:1").word == identity
    piped = docker("save", "other:1").raw
    docker("rmi", "other:1")
    assert "Loaded image: other:1" in docker("load", input=piped).out
    assert docker("run", "--rm", "other:1", "echo", "runs").out == "runs\n"


def test_what_is_no_archive_is_told_and_leaves_nothing(docker: Docker, image: str) -> None:
    before = docker("images", "-aq").out
    assert "isn't an image archive" in docker("load", input=b"abc" * 1000, code=1).err
    assert docker("load", input=docker("save", image).raw[:200_000], code=1).err != ""
    assert docker("images", "-aq").out == before
    assert "No such image: nothing" in docker("save", "nothing", code=1).err


def test_a_tree_is_imported_with_changes(docker: Docker, image: str) -> None:
    docker("create", "--name", "source", image)
    tree = docker("export", "source").raw
    imported = docker(
        "import",
        "-c",
        'CMD ["cat", "/etc/group"]',
        "-c",
        "ENV A=b",
        "-m",
        "made by hand",
        "-",
        "tree:1",
        input=tree,
    ).word
    assert imported.startswith("sha256:")
    assert docker("run", "--rm", "tree:1").out.startswith("root:")
    assert (
        docker("image", "inspect", "-f", "{{.Config.Env}} {{.Comment}}", "tree:1").word
        == "[A=b] made by hand"
    )
    assert "made by hand" in docker("history", "tree:1").out


# --- volumes --------------------------------------------------------------------------------------


def test_volumes_from_create_to_prune(docker: Docker, image: str) -> None:
    assert docker("volume", "create", "--label", "a=b", "one").word == "one"
    assert docker("volume", "create", "one").word == "one"
    anonymous = docker("volume", "create").word
    assert len(anonymous) == 64
    assert docker(
        "volume", "ls", "--format", "{{.Driver}} {{.Name}} {{.Labels}}", "--filter", "label=a"
    ).lines == ["local one a=b"]
    found = json.loads(docker("volume", "inspect", "one").out)[0]
    assert (found["Name"], found["Driver"], found["Scope"]) == ("one", "local", "local")
    assert found["Mountpoint"].endswith("/volumes/one/_data")
    docker("run", "--name", "user", "-v", "one:/data", image, "true")
    assert "volume is in use" in docker("volume", "rm", "one", code=1).err
    assert docker("volume", "ls", "-q", "--filter", "dangling=true").word == anonymous
    assert docker("volume", "prune", "-f").lines[:2] == ["Deleted Volumes:", anonymous]
    docker("rm", "user")
    everything = (
        ("-a", "-f") if docker.version >= (23, 0) else ("-f",)
    )  # the API's 1.42 made named ones an option
    assert docker("volume", "prune", *everything).lines[:2] == ["Deleted Volumes:", "one"]
    assert "no such volume" in docker("volume", "inspect", "one", code=1).err.lower()
    assert docker("volume", "rm", "-f", "one").out in ("", "one\n")


def test_an_empty_volume_is_filled_from_the_image(docker: Docker, image: str) -> None:
    assert "passwd" in docker("run", "--rm", "-v", "etc:/etc", image, "ls", "/etc").out
    assert docker("run", "--rm", "-v", "etc:/copy", image, "cat", "/copy/group").out.startswith("root:")
    assert docker("run", "--rm", "-v", "none:/etc:nocopy", image, "ls", "/etc").lines == [
        "hostname",
        "hosts",
        "resolv.conf",
    ]


def test_volumes_are_taken_from_another_container(docker: Docker, image: str) -> None:
    docker("run", "--name", "owner", "-v", "shared:/data", image, "sh", "-c", "echo mine > /data/f")
    assert docker("run", "--rm", "--volumes-from", "owner:ro", image, "cat", "/data/f").out == "mine\n"
    denied = docker("run", "--rm", "--volumes-from", "owner:ro", image, "touch", "/data/g", code=1).err
    assert "Read-only file system" in denied


# --- networks -------------------------------------------------------------------------------------


def test_networks_from_create_to_remove(docker: Docker, image: str) -> None:
    identity = docker(
        "network", "create", "--subnet", "10.213.7.0/24", "--gateway", "10.213.7.9", "--ip-range", "10.213.7.128/25",
        "--aux-address", "router=10.213.7.128", "--label", "a=b", "--internal", "back",
    ).word  # fmt: skip
    assert len(identity) == 64
    found = json.loads(docker("network", "inspect", "back").out)[0]
    assert found["IPAM"]["Config"] == [
        {
            "Subnet": "10.213.7.0/24",
            "IPRange": "10.213.7.128/25",
            "Gateway": "10.213.7.9",
            "AuxiliaryAddresses": {"router": "10.213.7.128"},
        }
    ]
    assert (found["Internal"], found["Labels"], found["Driver"]) == (True, {"a": "b"}, "bridge")
    docker("run", "-d", "--name", "box", "--network", "back", "--network-alias", "svc", image, "sleep", "600")
    assert (
        docker("inspect", "-f", "{{.NetworkSettings.Networks.back.IPAddress}}", "box").word == "10.213.7.129"
    )
    reserved = docker("run", "--rm", "--network", "back", "--ip", "10.213.7.128", image, "true", code=125).err
    assert "reserved" in reserved
    members = json.loads(docker("network", "inspect", "-f", "{{json .Containers}}", "back").out)
    assert [member["Name"] for member in members.values()] == ["box"]
    assert "has active endpoints" in docker("network", "rm", "back", code=1).err
    assert "already exists" in docker("network", "create", "back", code=1).err
    assert "overlaps" in docker("network", "create", "--subnet", "10.213.7.0/25", "other", code=1).err
    assert docker("network", "ls", "-q", "--no-trunc", "--filter", "name=back").word == identity
    assert {"bridge", "host", "none"} <= set(docker("network", "ls", "--format", "{{.Name}}").lines)
    docker("rm", "-f", "box")
    assert docker("network", "rm", "back").word == "back"
    said = docker("network", "inspect", "back", code=1).err
    assert "not found" in said or "No such network" in said, said
    assert "cannot be removed" in docker("network", "rm", "host", code=1).err


def test_a_running_container_is_connected_and_disconnected(docker: Docker, image: str) -> None:
    docker("network", "create", "--subnet", "10.213.8.0/24", "front")
    docker("run", "-d", "--name", "box", image, "sleep", "600")
    docker(
        "network",
        "connect",
        "--ip",
        "10.213.8.77",
        "--alias",
        "other",
        "--link-local-ip",
        "169.254.8.8",
        "front",
        "box",
    )
    template = "{{json .NetworkSettings.Networks.front}}"
    found = json.loads(docker("inspect", "-f", template, "box").out)
    assert found["IPAddress"] == "10.213.8.77" and "other" in found["Aliases"]
    assert found["IPAMConfig"] == {"IPv4Address": "10.213.8.77", "LinkLocalIPs": ["169.254.8.8"]}
    shown = docker("exec", "box", "busybox", "ip", "addr", "show", "eth1").out
    assert "inet 10.213.8.77/24" in shown and "inet 169.254.8.8/16" in shown
    assert "already exists in network" in docker("network", "connect", "front", "box", code=1).err
    docker("network", "disconnect", "front", "box")
    assert "eth1" not in docker("exec", "box", "ls", "/sys/class/net").out
    assert "is not connected" in docker("network", "disconnect", "front", "box", code=1).err
    assert docker("network", "prune", "-f").lines[:2] == ["Deleted Networks:", "front"]


def test_a_link_on_a_network_follows_its_container(docker: Docker, image: str) -> None:
    docker("network", "create", "back")
    docker("run", "-d", "--name", "web", "--network", "back", "--link", "late:store", image, "sleep", "600")
    docker("run", "-d", "--name", "late", "--network", "back", image, "sleep", "600")
    address = docker("inspect", "-f", "{{.NetworkSettings.Networks.back.IPAddress}}", "late").word
    assert f"Address: {address}\n" in docker("exec", "web", "sh", "-c", "nslookup store").out
    assert docker("inspect", "-f", "{{.NetworkSettings.Networks.back.Links}}", "web").word == "[late:store]"


# --- the system -----------------------------------------------------------------------------------


def test_info_and_version_show_what_they_should(docker: Docker) -> None:
    version = json.loads(docker("version", "--format", "{{json .}}").out)
    assert version["Server"]["ApiVersion"] >= "1.51" and version["Server"]["MinAPIVersion"] == "1.24"
    assert "Server:" in docker("version").out
    info = json.loads(docker("info", "--format", "{{json .}}").out)
    assert info["Driver"] == "overlay2" and info["OSType"] == "linux" and not info.get("ServerErrors")
    assert "Storage Driver: overlay2" in docker("info").out


def test_disk_usage_and_prune(docker: Docker, image: str) -> None:
    docker(
        "run", "--name", "ended", "-v", "kept:/data", image, "sh", "-c", "head -c 100000 /dev/zero > /file"
    )
    table = docker("system", "df").lines
    assert [line.split("  ")[0] for line in table] == [
        "TYPE",
        "Images",
        "Containers",
        "Local Volumes",
        "Build Cache",
    ]
    detail = docker("system", "df", "-v").out
    assert "ended" in detail and "kept" in detail and image.partition(":")[0] in detail
    docker("network", "create", "unused")
    out = docker("system", "prune", "-f").out
    assert "Deleted Containers:" in out and "Deleted Networks:\nunused" in out
    assert "Total reclaimed space: " in out
    assert docker("volume", "ls", "-q").word == "kept"


def test_events_tell_of_images_volumes_and_networks(docker: Docker, image: str) -> None:
    start = f"{time.time():.6f}"
    docker("tag", image, "told:1")
    docker("rmi", "told:1")
    docker("volume", "create", "told")
    docker("volume", "rm", "told")
    docker("network", "create", "told")
    docker("network", "rm", "told")
    out = docker(
        "events", "--since", start, "--until", f"{time.time():.6f}", "--format", "{{.Type}} {{.Action}}"
    ).lines
    assert out == [
        "image tag",
        "image untag",
        "volume create",
        "volume destroy",
        "network create",
        "network destroy",
    ]


def test_events_follow_as_they_happen(docker: Docker, image: str) -> None:
    with docker.start("events", "--filter", "type=volume", "--format", "{{.Action}} {{.Actor.ID}}") as events:
        # The first events may come before the client listens: go on until one was seen.
        number = 0
        while not events.ready():
            docker("volume", "create", f"v{number}")
            number += 1
        assert events.line().startswith(b"create v")


def test_the_archive_of_an_image_is_one_for_other_tools_too(docker: Docker, image: str) -> None:
    with tarfile.open(fileobj=io.BytesIO(docker("save", image).raw)) as tar:
        manifest_file = tar.extractfile("manifest.json")
        assert manifest_file is not None
        manifest = json.load(manifest_file)[0]
        assert manifest["RepoTags"] == [image]
        config = tar.extractfile(manifest["Config"])
        assert config is not None and json.load(config)["os"] == "linux"
