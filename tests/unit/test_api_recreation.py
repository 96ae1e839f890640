"""From a body and a container to the container that takes its place."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from cove.api.docker import wire
from cove.api.docker.decode import decode_create
from cove.api.docker.recreation import _CONFIG, _HOST, _RESOURCES, RecreateBody, decode_recreation
from cove.engine.recreate import Asked, carried_mounts, plan_recovery
from cove.engine.types import View
from cove.model.container import Container, ContainerSpec, MountPoint, Resources, State
from cove.model.errors import Invalid
from cove.model.recreation import Recreation

OLD, NEW = "a" * 64, "b" * 64


def container(body: dict[str, Any], mounts: tuple[MountPoint, ...] = ()) -> Container:
    decoded = decode_create(
        wire.decode(msgspec.json.encode({"Image": "x", **body}), wire.CreateBody),
        name="web",
        platform="",
        version=1055,
        cpus=4,
    )
    return Container(
        id=OLD,
        name="web",
        created_ns=1,
        image_id="sha256:1",
        image_name="x",
        spec=decoded.spec,
        args=("true",),
        mounts=mounts,
    )


def asked(old: Container, **body: Any) -> Asked:
    given = wire.decode(msgspec.json.encode(body), RecreateBody)
    return decode_recreation(given, old, version=1055, cpus=4)[0]


FULL = {
    "Cmd": ["sleep", "1"],
    "Tty": True,
    "Env": ["A=1", "B=2"],
    "Labels": {"a": "1", "cove.health.on-failure": "kill"},
    "User": "1000",
    "Healthcheck": {"Test": ["CMD", "true"]},
    "Volumes": {"/loose": {}},
    "HostConfig": {
        "Binds": ["/srv:/srv:ro", "data:/data"],
        "Tmpfs": {"/run": "size=1m"},
        "Memory": 64 << 20,
        "CpuShares": 512,
        "NetworkMode": "mine",
        "Privileged": True,
        "PortBindings": {"80/tcp": [{"HostPort": "8080"}], "81/tcp": [{"HostPort": "8081"}]},
        "RestartPolicy": {"Name": "always"},
        "SecurityOpt": ["no-new-privileges"],
    },
    "NetworkingConfig": {"EndpointsConfig": {"mine": {"IPAMConfig": {"IPv4Address": "10.0.0.9"}}}},
    "Cove": {"depends-on": "db:healthy"},
}


def test_nothing_asked_is_the_same_again() -> None:
    old = container(FULL)
    spec = asked(old).spec
    assert msgspec.structs.replace(spec, request=msgspec.Raw(), name="") == msgspec.structs.replace(
        old.spec, request=msgspec.Raw(), name=""
    )
    assert container_request(spec)["HostConfig"]["Binds"] == ["/srv:/srv:ro", "data:/data"]
    assert container_request(spec)["NetworkingConfig"] == container_request(old.spec)["NetworkingConfig"]


def container_request(spec: ContainerSpec) -> dict[str, Any]:
    return dict(msgspec.json.decode(spec.request))


def test_what_is_given_takes_the_place_and_what_has_keys_is_merged() -> None:
    old = container(FULL)
    spec = asked(
        old,
        Tty=False,
        Env=["A=9", "C=3"],
        Labels={"b": "2"},
        HostConfig={
            "Privileged": False,
            "Memory": 128 << 20,
            "Binds": ["other:/data"],
            "PortBindings": {"80/tcp": [{"HostPort": "9090"}]},
        },
        CoveRemove={"Env": ["B"], "Labels": ["a"], "Mounts": ["/srv"], "Ports": ["81"]},
    ).spec
    assert (spec.tty, spec.privileged, spec.user) == (False, False, "1000")
    assert spec.env == ("A=9", "C=3")
    assert spec.labels == {"cove.health.on-failure": "kill", "b": "2"}
    assert [(m.target, getattr(m, "name", None)) for m in spec.mounts] == [
        ("/run", None),
        ("/loose", ""),
        ("/data", "other"),
    ]
    assert [(p.container_port, p.host_port) for p in spec.ports] == [(80, 9090)]
    assert (spec.resources.memory_bytes, spec.resources.memory_swap_bytes) == (128 << 20, 256 << 20)
    assert spec.resources.cpu_shares == 512
    assert spec.restart.name == "always"
    shown = container_request(spec)
    assert shown["HostConfig"]["Binds"] == ["other:/data"]
    assert shown["HostConfig"]["PortBindings"] == {"80/tcp": [{"HostIp": "", "HostPort": "9090"}]}


def test_networks_are_named_anew_or_stay() -> None:
    old = container(FULL)
    assert asked(old, Env=["A=1"]).spec.endpoints == old.spec.endpoints
    moved = asked(old, HostConfig={"NetworkMode": "bridge"}).spec
    assert (moved.network_mode, moved.endpoints) == ("bridge", ())
    assert container_request(moved)["NetworkingConfig"] is None


def test_a_setting_changes_in_both_its_forms() -> None:
    old = container(FULL)
    spec = asked(old, Cove={"health.on-failure": "stop"}).spec
    assert spec.extension.on_unhealthy == "stop"
    assert spec.labels["cove.health.on-failure"] == "stop"
    assert [one.container for one in spec.extension.depends_on] == ["db"]
    probed = asked(old, Cove={"health.probe": "http://:80/", "health.probe.status": "200"}).spec
    assert probed.healthcheck is not None and probed.healthcheck.test == ()
    again = msgspec.structs.replace(old, spec=probed)
    narrower = asked(again, Cove={"health.probe.status": "201"}).spec
    assert narrower.extension.probe is not None and narrower.extension.probe.status_low == 201
    tested = asked(again, Healthcheck={"Test": ["CMD", "true"]}).spec
    assert tested.extension.probe is None
    assert tested.healthcheck is not None and tested.healthcheck.test == ("CMD", "true")


def test_an_init_that_was_chosen_is_chosen_again() -> None:
    old = container({**FULL, "Cove": {"init": "auto"}})
    old = msgspec.structs.replace(old, spec=msgspec.structs.replace(old.spec, init=True))
    assert asked(old, Cmd=["tini"]).spec.init is None
    assert asked(old, HostConfig={"Init": True}).spec.init is True


@pytest.mark.parametrize(
    ("body", "said"),
    [
        ({"CoveRemove": {"Env": ["X"]}}, "CoveRemove.Env: X: the container doesn't have it; it has A, B"),
        ({"CoveRemove": {"Mounts": ["x"]}}, "mount path must be absolute"),
        ({"CoveRemove": {"Ports": ["99"]}}, "CoveRemove.Ports: 99/tcp"),
        ({"CoveRemove": {"Labels": ["cove.health.on-failure"]}}, "it is a setting"),
        ({"Cove": {"pod": "p"}}, "can't move to another pod"),
        ({"Cove": {"nosuch": "p"}}, "no such setting"),
        ({"CoveSecretData": {"x": "eA=="}}, "no secret without a name has this target"),
        ({"Cove": {"secrets": ":target=k"}}, "its content is needed in CoveSecretData"),
    ],
)
def test_what_makes_no_sense_is_refused(body: dict[str, Any], said: str) -> None:
    with pytest.raises(Invalid) as refused:
        asked(container(FULL), **body)
    assert said in str(refused.value)


def test_what_was_asked_for_is_told_without_values() -> None:
    told = asked(
        container(FULL), Env=["TOKEN=hidden"], Labels={"l": "hidden"}, HostConfig={"Memory": 64 << 20}
    ).changed
    assert told == ("Env.TOKEN", "Labels.l", "HostConfig.Memory")


def test_every_field_of_a_spec_is_decided_by_something() -> None:
    """A field of ContainerSpec that comes new has to be given a place in the tables."""
    by_hand = {
        *("name", "env", "labels", "exposed_ports", "healthcheck", "mounts", "ports", "endpoints"),
        *("extension", "request", "resources"),
    }
    decided = {field for table in (_CONFIG, _HOST) for fields in table.values() for field in fields}
    assert decided | by_hand == set(ContainerSpec.__struct_fields__)
    limits = {field for fields in _RESOURCES.values() for field in fields}
    assert limits == set(Resources.__struct_fields__)


def test_volumes_without_a_mount_of_the_spec_are_carried_over() -> None:
    points = (
        MountPoint(kind="volume", target="/loose", name="1", anonymous=True),
        MountPoint(kind="volume", target="/of-image", name="2", anonymous=True),
        MountPoint(kind="volume", target="/from", name="shared"),
        MountPoint(kind="volume", target="/data", name="data"),
        MountPoint(kind="bind", target="/srv", source="/srv"),
        MountPoint(kind="tmpfs", target="/run"),
    )
    old = container(FULL, points)

    def kept(**body: Any) -> list[str]:
        return [point.target for point in carried_mounts(old, asked(old, **body))]

    assert kept() == ["/loose", "/of-image", "/from"]
    assert kept(CoveRemove={"Mounts": ["/of-image"]}) == ["/loose", "/from"]
    assert kept(HostConfig={"Binds": ["some:/loose"]}) == ["/of-image", "/from"]
    assert kept(HostConfig={"VolumesFrom": ["other"]}) == ["/loose", "/of-image"]


@pytest.mark.parametrize(
    ("exchanged", "ran", "old", "new", "started", "recovery"),
    [
        (False, True, True, False, False, "back"),
        (False, True, True, True, False, "back"),
        (False, False, True, True, False, "back"),
        (True, True, True, True, False, "back"),
        (True, True, True, True, True, "finish"),
        (True, False, True, True, False, "finish"),
        (True, True, True, False, False, "finish"),
        (True, True, False, True, True, "forget"),
        (False, True, False, True, False, "back"),
        (False, True, False, False, False, "forget"),
    ],
)
def test_a_starting_daemon_finishes_it_or_takes_it_back(
    exchanged: bool, ran: bool, old: bool, new: bool, started: bool, recovery: str
) -> None:
    record = Recreation(old=OLD, new=NEW, name="web", fresh="n", aside="o", ran=ran, exchanged=exchanged)
    view = View(container({}), State(has_been_started=started))
    assert plan_recovery(record, view if old else None, view if new else None) == recovery
