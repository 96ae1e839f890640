"""What takes the disk's space, and that a prune takes what it showed beforehand."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path
from typing import Any
from urllib.parse import quote

from tests.apikit import create, remove, run, wait
from tests.daemon import Daemon

COVE = str(Path(__file__).parents[2] / "bin/cove")


def cove(daemon: Daemon, *arguments: str) -> str:
    environment = {**os.environ, "COVE_HOST": daemon.host}
    done = subprocess.run([COVE, *arguments], env=environment, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    return done.stdout


def commit(daemon: Daemon, image: str, name: str, script: str) -> str:
    """An image with one more layer; its id."""
    container = run(daemon, image, "sh", "-c", script)
    assert wait(daemon, container) == 0
    repo, _, tag = name.partition(":")
    made = daemon.http("POST", f"/commit?container={container}&repo={repo}&tag={tag}", {})
    assert made.status == 201, made.body
    remove(daemon, container)
    return str(made.json()["Id"])


def furnish(daemon: Daemon, image: str) -> dict[str, str]:
    """Something of everything, in use and not."""
    names = {"top": commit(daemon, image, "top:1", "dd if=/dev/zero of=/blob bs=1k count=300")}
    for name in ("free", "taken"):
        assert daemon.http("POST", "/volumes/create", {"Name": name}).status == 201
        names[name] = str(daemon.http("POST", "/networks/create", {"Name": f"net-{name}"}).json()["Id"])
    names["stopped"] = run(daemon, "top:1", "sh", "-c", "echo told; dd if=/dev/zero of=/own bs=1k count=100",
                           name="stopped", Binds=["taken:/data", "/anonymous"], NetworkMode="net-taken")  # fmt: skip
    wait(daemon, names["stopped"])
    names["running"] = run(daemon, image, "sleep", "600", name="running")
    (daemon.data_root / "volumes/free/_data/file").write_bytes(b"x" * 5000)
    return names


def tidy(daemon: Daemon) -> None:
    for container in daemon.http("GET", "/containers/json?all=1").json():
        daemon.http("DELETE", f"/containers/{container['Id']}?force=1&v=1")
    for volume in daemon.http("GET", "/volumes").json()["Volumes"] or ():
        daemon.http("DELETE", f"/volumes/{volume['Name']}")
    for network in daemon.http("GET", "/networks").json():
        if network["Name"].startswith("net-"):
            daemon.http("DELETE", f"/networks/{network['Id']}")


def test_a_prune_takes_what_it_showed(fresh_daemon: Daemon, image: str) -> None:
    daemon = fresh_daemon
    names = furnish(daemon, image)
    everything = quote(json.dumps({"all": ["true"]})), quote(json.dumps({"dangling": ["false"]}))
    kinds = "kind=containers&kind=networks&kind=volumes&kind=images"
    shown = daemon.http(
        "GET", f"/cove/v1/prune?{kinds}&volumes={everything[0]}&images={everything[1]}"
    ).json()
    assert [one["Id"] for one in shown["Containers"]] == [names["stopped"]]
    assert {one["Name"] for one in shown["Networks"]} == {"net-free", "net-taken"}
    assert {"free", "taken"} < {one["Name"] for one in shown["Volumes"]} and len(shown["Volumes"]) == 3
    told = cove(daemon, "system", "prune", "--dry-run", "--all", "--volumes")
    assert names["stopped"][:12] in told and "untagged: top:1" in told and "Space that this frees" in told
    assert len(daemon.http("GET", "/containers/json?all=1").json()) == 2  # nothing has gone
    freed = 0
    went: dict[str, Any] = {}
    for kind, filters in (
        ("containers", ""),
        ("networks", ""),
        ("volumes", everything[0]),
        ("images", everything[1]),
    ):
        answer = daemon.http("POST", f"/{kind}/prune?filters={filters}").json()
        went[kind] = next(value for key, value in answer.items() if key.endswith("Deleted"))
        freed += answer.get("SpaceReclaimed", 0)
    assert went["containers"] == [one["Id"] for one in shown["Containers"]]
    assert set(went["networks"]) == {one["Name"] for one in shown["Networks"]}
    assert set(went["volumes"]) == {one["Name"] for one in shown["Volumes"]}
    assert went["images"] == shown["Images"]
    assert freed == shown["SpaceReclaimed"]
    tidy(daemon)


def test_disk_use_is_told_in_each_versions_shape(daemon: Daemon, image: str) -> None:
    names = furnish(daemon, image)
    old = daemon.http("GET", "/v1.51/system/df").json()
    top = next(found for found in old["Images"] if found["Id"] == names["top"])
    base = next(found for found in old["Images"] if found["Id"] != names["top"])
    assert top["SharedSize"] == base["SharedSize"] == base["Size"] > 0
    assert top["Size"] - top["SharedSize"] >= 300 << 10
    assert (top["Containers"], base["Containers"]) == (1, 1)
    sizes = {volume["Name"]: volume["UsageData"] for volume in old["Volumes"]}
    assert sizes["free"] == {"Size": 5000, "RefCount": 0} and sizes["taken"]["RefCount"] == 1
    assert {found["Id"]: found["SizeRw"] for found in old["Containers"]}[names["stopped"]] == 100 << 10
    new = daemon.http("GET", "/v1.52/system/df?verbose=1").json()
    assert set(new) == {"ImageUsage", "ContainerUsage", "VolumeUsage", "BuildCacheUsage"}
    used = new["ContainerUsage"]
    assert (used["ActiveCount"], used["TotalCount"], used["Reclaimable"]) == (1, 2, 100 << 10)
    assert new["VolumeUsage"]["Reclaimable"] == 5000 and len(new["VolumeUsage"]["Items"]) == 3
    assert new["ImageUsage"]["TotalSize"] == old["LayersSize"]
    both = daemon.http("GET", "/v1.52/system/df?type=volume").json()
    assert both["Volumes"] and both["VolumeUsage"]["TotalCount"] == 3 and "Items" not in both["VolumeUsage"]
    tidy(daemon)
    daemon.http("DELETE", "/images/top:1")


def test_disk_use_explains_itself(daemon: Daemon, image: str) -> None:
    names = furnish(daemon, image)
    found = daemon.http("GET", "/cove/v1/disk").json()
    rows = {(row["Kind"], row["Name"]): row for row in found["Items"]}
    free, taken = rows["volume", "free"], rows["volume", "taken"]
    assert (free["Size"], free["UsedBy"], free["Free"]) == (5000, [], "cove volume rm free")
    assert taken["UsedBy"] == ["container stopped"]
    assert taken["Free"] == "cove rm stopped && cove volume rm taken"
    assert rows["container", "running"]["Free"] == "cove rm -f running"
    assert rows["log", "stopped"]["Size"] > 0 and rows["log", "stopped"]["Id"] == names["stopped"]
    layer = rows["layer", "top:1"]
    assert layer["Free"] == "cove rm stopped && cove image rm top:1"
    shared = next(row for row in found["Items"] if row["Kind"] == "layer" and "shared by 2" in row["Note"])
    assert set(shared["UsedBy"]) == {"container stopped", "container running"}
    assert found["TotalSize"] == sum(row["Size"] for row in found["Items"])
    told = cove(daemon, "system", "df", "--explain")
    assert "cove volume rm free" in told and "used by nothing" in told
    assert json.loads(cove(daemon, "system", "df", "--explain", "--format", "json"))["TotalSize"] > 0
    for command in (free["Free"], layer["Free"]):  # they do what they say
        for part in command.split(" && "):
            cove(daemon, *part.split()[1:])
    left = daemon.http("GET", "/cove/v1/disk").json()["Items"]
    assert not {("volume", "free"), ("layer", "top:1")} & {(row["Kind"], row["Name"]) for row in left}
    tidy(daemon)


def test_filters_reach_what_is_shown(daemon: Daemon, image: str) -> None:
    kept = create(daemon, image, "true", Labels={"keep": "1"})
    gone = create(daemon, image, "true")
    told = cove(daemon, "container", "prune", "--dry-run", "--filter", "label!=keep")
    assert gone[:12] in told and kept[:12] not in told
    wrong = daemon.http("GET", "/cove/v1/prune?kind=pods")
    assert wrong.status == 400 and "isn't one of" in wrong.message
    remove(daemon, kept, gone)
