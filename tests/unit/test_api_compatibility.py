"""docs/docker-compatibility.md says of every name of Docker's API what the code does with it."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from typing import Any

import msgspec
import pytest

from cove.api.docker import wire
from cove.api.docker.decode import decode_create, parse_platform
from cove.api.docker.fields import NOTES, REFUSED, WITHOUT_EFFECT, Note
from cove.model.errors import Invalid
from tests.unit.fakes_engine import ApiFixture, serving

ROOT = Path(__file__).parent.parent.parent


@pytest.fixture(scope="module")
def page() -> Any:
    """The script that makes the page."""
    spec = importlib.util.spec_from_file_location(
        "docker_compatibility", ROOT / "scripts/docker_compatibility.py"
    )
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def test_the_page_is_what_the_script_writes(page: Any) -> None:
    written = (ROOT / "docs/docker-compatibility.md").read_text()
    assert written == page.render(), "python -P scripts/docker_compatibility.py >docs/docker-compatibility.md"


def test_every_field_of_the_reference_is_known_to_a_shape_or_to_the_notes(page: Any) -> None:
    _, fields = page.read_names()
    rows = [page.judge_field(name) for name in fields]
    assert len(rows) > 250
    assert {row.status for row in rows} == {"honoured", REFUSED, WITHOUT_EFFECT}
    assert not [row for row in rows if row.status != "honoured" and not row.reason]


def test_a_field_that_nobody_knows_is_found(page: Any) -> None:
    with pytest.raises(AssertionError, match=r"HostConfig\.Nonsense"):
        page.judge_field(page.Name("ContainerCreate", "HostConfig.Nonsense", "1.24", ""))


def said(shape: Any, path: str) -> Any:
    """A body that says something by one field, of the type that the shape wants."""
    first, _, rest = path.partition(".")
    field = next(f for f in msgspec.structs.fields(shape) if f.encode_name == first)
    kind = next(t for t in getattr(field.type, "__args__", (field.type,)) if t is not type(None))
    if rest:
        return {first: said(kind, rest)}
    for value in (5, "x", True, ["x"], [{}], {"Network": "x"}):
        try:
            msgspec.convert({first: value}, shape)
        except msgspec.ValidationError:
            continue
        return {first: value}
    raise AssertionError(f"no value for {path}")


CASES = [
    (shape, path, note)
    for shape in (wire.CreateBody, wire.UpdateBody)
    for path, note in NOTES[shape].items()
    if not note.silent and "[" not in path
]


@pytest.mark.parametrize(
    ("shape", "path", "note"), CASES, ids=lambda value: value if isinstance(value, str) else ""
)
def test_a_noted_field_of_a_create_or_update_is_told_in_its_answer(
    shape: type[wire.Wire], path: str, note: Note
) -> None:
    with serving() as api:
        api.create("web")
        body = said(shape, path)
        if shape is wire.CreateBody:
            answer = api.ask("POST", "/containers/create", {"Image": "debian", **body})
        else:
            answer = api.ask("POST", "/containers/web/update", body)
        if note.status == REFUSED:
            assert (answer.status, answer.json["message"]) == (400, f"{path}: {note.reason}")
        else:
            assert answer.status in (200, 201), answer.json
            assert answer.json["Warnings"] == [f"{path} has no effect: {note.reason}"]


def test_fields_that_the_api_does_not_have_are_passed_over_and_told() -> None:
    with serving() as api:
        body = {"Image": "debian", "Memory": 5, "HostConfig": {"Nonsense": [1], "Zero": 0, "None": None}}
        made = api.ask("POST", "/containers/create?name=web", body)
        assert made.status == 201
        assert made.json["Warnings"] == [
            "Memory has no effect: the API has no such field",
            "HostConfig.Nonsense has no effect: the API has no such field",
        ]
        told = api.ask("POST", "/containers/web/update", {"Memory": 10 << 20, "X": "y" * 999}).json[
            "Warnings"
        ]
        assert told == ["X has no effect: the API has no such field"]


def test_unknown_fields_are_told_up_to_a_bound() -> None:
    data = msgspec.json.encode({"Image": "debian", **{f"{'x' * 999}{n}": 1 for n in range(1000)}})
    unknown: list[str] = []
    wire.decode(data, wire.CreateBody, unknown)
    assert len(unknown) == wire.MAX_UNKNOWN and all(len(path) < 100 for path in unknown)


@pytest.mark.parametrize(
    ("version", "message"),
    [
        (1043, ""),
        (1051, ""),
        (1052, "MacAddress: container-wide MAC address no longer supported; use endpoint-specific"),
    ],
)
def test_the_container_wide_mac_address_went_with_1_52(version: int, message: str) -> None:
    body = wire.decode(b'{"Image": "x", "MacAddress": "02:42:ac:11:00:02"}', wire.CreateBody)
    if not message:
        made = decode_create(body, name="", platform="", version=version, cpus=1)
        assert made.spec.endpoints[0].mac == "02:42:ac:11:00:02"
        return
    with pytest.raises(Invalid, match=message):
        decode_create(body, name="", platform="", version=version, cpus=1)


@pytest.mark.parametrize(("version", "warned"), [(1051, False), (1052, True), (1055, True)])
def test_an_empty_list_of_port_bindings_is_warned_of_since_1_52(version: int, warned: bool) -> None:
    body = wire.decode(b'{"Image": "x", "HostConfig": {"PortBindings": {"80/tcp": []}}}', wire.CreateBody)
    made = decode_create(body, name="", platform="", version=version, cpus=1)
    assert [binding.container_port for binding in made.spec.ports] == [80]
    assert any("empty list of port-bindings: 80/tcp" in text for text in made.warnings) == warned


@pytest.mark.parametrize(("version", "warned"), [(1047, False), (1048, True)])
def test_a_volume_driver_beside_mounts_is_warned_of_since_1_48(version: int, warned: bool) -> None:
    host = b'{"VolumeDriver": "x", "Mounts": [{"Type": "volume", "Source": "data", "Target": "/data"}]}'
    body = wire.decode(b'{"Image": "x", "HostConfig": ' + host + b"}", wire.CreateBody)
    made = decode_create(body, name="", platform="", version=version, cpus=1)
    assert any("volume-driver configuration is ignored" in text for text in made.warnings) == warned


def ask_inspect(api: ApiFixture, version: str) -> dict[str, Any]:
    answer = api.ask("GET", f"/v{version}/containers/web/json")
    assert answer.status == 200
    return dict(answer.json)


def test_inspect_has_the_fields_of_its_version() -> None:
    with serving() as api:
        config = {
            "Image": "debian",
            "MacAddress": "02:42:ac:11:00:02",
            "HostConfig": {"KernelMemoryTCP": 1 << 20},
        }
        api.ask("POST", "/v1.43/containers/create?name=web", config)
        old, middle, new = (ask_inspect(api, version) for version in ("1.43", "1.51", "1.55"))
        assert old["Config"]["MacAddress"] == middle["Config"]["MacAddress"] == "02:42:ac:11:00:02"
        assert "MacAddress" not in new["Config"] and "OnBuild" not in new["Config"]
        assert middle["HostConfig"]["KernelMemoryTCP"] == 1 << 20
        assert "KernelMemoryTCP" not in new["HostConfig"]
        assert set(new["NetworkSettings"]) == {"SandboxID", "SandboxKey", "Ports", "Networks"}
        assert {"Bridge", "IPAddress", "SecondaryIPAddresses"} <= set(middle["NetworkSettings"])
        assert "DNSNames" in middle["NetworkSettings"]["Networks"]["bridge"]
        assert "DNSNames" not in old["NetworkSettings"]["Networks"]["bridge"]


def test_an_image_s_empty_fields_are_left_out_since_1_52() -> None:
    with serving() as api:
        old, new = (api.ask("GET", f"/v{v}/images/debian/json").json for v in ("1.51", "1.52"))
        assert old["Comment"] == "" and old["Config"]["User"] == "" and old["Config"]["OnBuild"] is None
        assert "Comment" not in new and "Author" not in new and "User" not in new["Config"]
        assert new["Config"]["Env"] == ["PATH=/bin"]


@pytest.mark.parametrize(
    ("version", "endpoint"),
    [(1043, ("", 0)), (1044, ("02:42:ac:11:00:02", 0)), (1048, ("02:42:ac:11:00:02", 5))],
)
def test_an_endpoint_has_what_its_version_knows(version: int, endpoint: tuple[str, int]) -> None:
    config = b'{"MacAddress": "02:42:ac:11:00:02", "GwPriority": 5}'
    body = wire.decode(
        b'{"Image": "x", "NetworkingConfig": {"EndpointsConfig": {"n": ' + config + b"}}}", wire.CreateBody
    )
    made = decode_create(body, name="", platform="", version=version, cpus=1).spec.endpoints[0]
    assert (made.mac, made.gateway_priority) == endpoint


def sysctl_body(**sysctls: str) -> wire.CreateBody:
    host = {"NetworkMode": "n", "Sysctls": {key.replace("_", "."): value for key, value in sysctls.items()}}
    return wire.decode(msgspec.json.encode({"Image": "x", "HostConfig": host}), wire.CreateBody)


def test_settings_of_eth0_go_to_its_endpoint_before_1_48() -> None:
    body = sysctl_body(net_ipv4_conf_eth0_forwarding="1", net_ipv4_ip="0")
    made = decode_create(body, name="", platform="", version=1047, cpus=1)
    assert made.spec.sysctls == {"net.ipv4.ip": "0"}
    options = {"com.docker.network.endpoint.sysctls": "net.ipv4.conf.IFNAME.forwarding=1"}
    assert [(e.network, e.driver_options) for e in made.spec.endpoints] == [("n", options)]
    assert made.warnings == [
        'Migrated sysctl "net.ipv4.conf.eth0.forwarding" to '
        'DriverOpts{"com.docker.network.endpoint.sysctls":"net.ipv4.conf.IFNAME.forwarding=1"}.'
    ]
    with pytest.raises(Invalid, match="must be supplied using driver option"):
        decode_create(body, name="", platform="", version=1048, cpus=1)
    other = sysctl_body(net_ipv4_conf_eth1_forwarding="1")
    with pytest.raises(Invalid, match="unable to determine network endpoint"):
        decode_create(other, name="", platform="", version=1047, cpus=1)


@pytest.mark.parametrize(
    ("text", "platform"),
    [
        ("", ("", "")),
        ("linux", ("", "")),
        ("linux/amd64", ("amd64", "")),
        ("linux/ARM64/v8", ("arm64", "v8")),
        ("x86_64", ("amd64", "")),
        ("linux/aarch64", ("arm64", "")),
    ],
)
def test_a_platform_is_read_in_its_short_forms(text: str, platform: tuple[str, str]) -> None:
    assert parse_platform(text) == platform


@pytest.mark.parametrize("text", ["windows", "windows/amd64", "linux//v8", "linux/a/b/c"])
def test_other_platforms_are_refused(text: str) -> None:
    with pytest.raises(Invalid, match="only linux containers run here"):
        parse_platform(text)


def test_an_image_of_another_platform_is_not_found_when_that_was_asked_for() -> None:
    with serving() as api:
        asked = api.ask("POST", "/containers/create?platform=linux/arm64", {"Image": "debian"})
        assert asked.status == 404
        assert (
            "its platform (linux/amd64) does not match the specified platform (linux/arm64)"
            in asked.json["message"]
        )
        old = api.ask("POST", "/v1.40/containers/create?platform=linux/arm64", {"Image": "debian"})
        assert old.status == 201  # it came with 1.41
        assert api.ask("POST", "/containers/create?platform=linux/amd64", {"Image": "debian"}).status == 201
