"""CDI specifications: what is valid, which device wins, and what a container gets."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

from cove.engine.devices import plan_devices
from cove.model.container import DeviceRequest
from cove.model.errors import Invalid, NotFound
from cove.runtime import cdi, cdi_files, oci
from cove.runtime.cdi import Registry, build_registry, find_edits, parse_spec, with_edits

ENV: dict[str, Any] = {"env": ["A=1"]}


def spec(
    kind: str = "vendor.com/thing", version: str = "0.6.0", devices: Any = None, **more: Any
) -> dict[str, Any]:
    named = [{"name": "one", "containerEdits": ENV}] if devices is None else devices
    return {"cdiVersion": version, "kind": kind, "devices": named, **more}


def device(name: str, **edits: Any) -> dict[str, Any]:
    return {"name": name, "containerEdits": edits or ENV}


def registry(*specs: dict[str, Any]) -> Registry:
    return build_registry([{f"/etc/cdi/{i}.json": parse_spec(s, f"{i}.json") for i, s in enumerate(specs)}])


@pytest.mark.parametrize(
    ("content", "trouble"),
    [
        ([], "Expected `object`, got `array`"),
        (spec(nonsense=1), "unknown field `nonsense`"),
        (spec(version="9.9.9"), "cdiVersion '9.9.9' isn't known"),
        (spec(kind="thing"), "kind 'thing' isn't valid"),
        (spec(kind="vendor.com/a/b"), "isn't valid"),
        (spec(devices=[]), "at least one is needed"),
        (spec(devices=[device("a"), device("a")]), "a is there twice"),
        (spec(devices=[device("a b")]), "name: 'a b' isn't valid"),
        (spec(devices=[{"name": "a", "containerEdits": {}}]), "its containerEdits are empty"),
        (spec(devices=[device("a", env=["A"])]), "[0].containerEdits.env[0]: 'A' isn't NAME=value"),
        (spec(containerEdits={"deviceNodes": [{"path": "dev/x"}]}), "deviceNodes[0].path: 'dev/x' isn't"),
        (spec(containerEdits={"deviceNodes": [{"path": "/dev/../x"}]}), "isn't an absolute path"),
        (spec(containerEdits={"deviceNodes": [{"path": "/dev/x", "permissions": "z"}]}), "isn't a selection of rwm"),
        (spec(containerEdits={"mounts": [{"hostPath": "/x", "containerPath": "/"}]}), "containerPath: '/' isn't"),
        (spec(containerEdits={"hooks": [{"hookName": "never", "path": "/x"}]}), "hookName: 'never' isn't one of"),
        (spec(containerEdits={"hooks": [{"hookName": "poststop", "path": "x"}]}), "path: 'x' isn't an absolute path"),
        (spec(containerEdits={"env": ["A=1"] * 2000}), "more than 1024 entries"),
        (spec(version="0.4.0", devices=[device("0")]), "cdiVersion 0.4.0 is older than 0.5.0"),
        (spec(version="0.5.0", kind="vendor.com/a.b"), "older than 0.6.0"),
        (spec(version="0.6.0", containerEdits={"additionalGids": [5]}), "older than 0.7.0"),
        (spec(version="1.0.0", containerEdits={"netDevices": [{"hostInterfaceName": "a", "name": "b"}]}), "than 1.1.0"),
        (spec(version="0.3.0", containerEdits={"mounts": [{"hostPath": "/x", "containerPath": "/y", "type": "none"}]}),
         "older than 0.4.0"),
    ],
)  # fmt: skip
def test_a_bad_specification_is_refused_by_its_file_s_name(content: Any, trouble: str) -> None:
    with pytest.raises(Invalid) as caught:
        parse_spec(content, "/etc/cdi/x.json")
    assert str(caught.value).startswith("CDI specification /etc/cdi/x.json: ") and trouble in str(
        caught.value
    )


@pytest.mark.parametrize("version", [v for v in cdi.VERSIONS if v >= "0.6.0"])
def test_every_version_is_read(version: str) -> None:
    assert parse_spec(spec(version=version), "x").devices[0].name == "one"


def test_devices_get_the_file_s_edits_once_and_their_own() -> None:
    found = find_edits(
        registry(
            spec(
                version="0.7.0",
                devices=[device("a", env=["A=1"]), device("b", env=["B=1"], additionalGids=[0, 5])],
                containerEdits={"env": ["ALL=1"]},
            )
        ),
        ["vendor.com/thing=a", "vendor.com/thing=b", "vendor.com/thing=a"],
    )
    assert found.env == ("ALL=1", "A=1", "B=1")
    assert found.additional_gids == (5,)


def test_a_later_directory_wins_and_a_conflict_within_one_is_an_error() -> None:
    old, new = (parse_spec(spec(devices=[device("one", env=[f"V={v}"])]), "x") for v in "12")
    both = build_registry([{"a.json": old}, {"b.json": new}])
    assert find_edits(both, ["vendor.com/thing=one"]).env == ("V=2",)
    clash = build_registry([{"a.json": old, "b.json": new}])
    with pytest.raises(
        NotFound, match=r"unresolvable CDI devices vendor.com/thing=one .*a\.json and in b\.json"
    ):
        find_edits(clash, ["vendor.com/thing=one"])


@pytest.mark.parametrize(
    ("edits", "message"),
    [
        ({"netDevices": [{"hostInterfaceName": "a", "name": "b"}]}, "netDevices can't be moved"),
        ({"intelRdt": {"closID": "x"}}, "intelRdt can't be set"),
        ({"hooks": [{"hookName": "poststop", "path": "/x"}]}, "a poststop hook isn't run here"),
    ],
)
def test_what_cannot_be_done_is_refused_where_it_is_asked_for(edits: dict[str, Any], message: str) -> None:
    found = registry(spec(version="1.1.0", devices=[device("bad", **edits), device("good")]))
    assert find_edits(found, ["vendor.com/thing=good"]).env == ("A=1",)
    with pytest.raises(Invalid, match=message):
        find_edits(found, ["vendor.com/thing=bad"])


def test_mounts_take_the_place_of_others_and_hooks_keep_their_order() -> None:
    edits = find_edits(
        registry(
            spec(
                devices=[
                    device(
                        "one",
                        mounts=[
                            {"hostPath": "/h/deep", "containerPath": "/a/b/c", "options": ["ro", "bind"]},
                            {"hostPath": "/h", "containerPath": "/a/"},
                        ],
                        hooks=[
                            {
                                "hookName": "createContainer",
                                "path": "/bin/x",
                                "args": ["x", "1"],
                                "timeout": 5,
                            },
                            {"hookName": "createContainer", "path": "/bin/y"},
                        ],
                    )
                ]
            )
        ),
        ["vendor.com/thing=one"],
    )
    before = oci.Config(
        root=oci.Root(path="/r"),
        process=oci.Process(args=("x",), cwd="/"),
        mounts=(oci.Mount(destination="/a"),),
    )
    after = with_edits(before, edits)
    assert [(m.destination, m.source, m.options) for m in after.mounts] == [
        ("/a", "/h", ("rbind", "rprivate")),
        ("/a/b/c", "/h/deep", ("ro", "bind")),
    ]
    assert [(h.path, h.args, h.timeout) for h in after.hooks.create_container] == [
        ("/bin/x", ("x", "1"), 5),
        ("/bin/y", ("/bin/y",), None),
    ]


GPUS = spec(kind="nvidia.com/gpu", devices=[device("0"), device("1"), device("all")])
DIRECTORIES = ("/etc/cdi",)


@pytest.mark.parametrize(
    ("request_", "names"),
    [
        (DeviceRequest(driver="cdi", device_ids=("a.b/c=d",)), ["a.b/c=d"]),
        (DeviceRequest(count=-1, capabilities=(("gpu",),)), ["nvidia.com/gpu=all"]),
        (
            DeviceRequest(count=2, capabilities=(("gpu", "utility"),)),
            ["nvidia.com/gpu=0", "nvidia.com/gpu=1"],
        ),
        (DeviceRequest(device_ids=("1",), capabilities=(("gpu",),)), ["nvidia.com/gpu=1"]),
        (DeviceRequest(driver="nvidia", count=-1), ["nvidia.com/gpu=all"]),
        (DeviceRequest(driver="amd", count=-1), 'could not select device driver "amd" with capabilities: []'),
        (DeviceRequest(driver="cdi", count=1), "unexpected count in CDI device request"),
        (DeviceRequest(driver="cdi", options={"a": "b"}), "unexpected options"),
        (DeviceRequest(capabilities=(("tpu",),)), 'device driver "" with capabilities: [[tpu]]'),
        (DeviceRequest(driver="other"), 'could not select device driver "other"'),
    ],
)
def test_requests_become_names_or_a_refusal_in_docker_s_words(
    request_: DeviceRequest, names: list[str] | str
) -> None:
    if isinstance(names, list):
        assert plan_devices([request_], registry(GPUS), DIRECTORIES) == names
        return
    with pytest.raises(Invalid) as caught:
        plan_devices([request_], registry(GPUS), DIRECTORIES)
    assert names in str(caught.value)


def test_files_are_read_again_when_they_change_and_bad_ones_hide_nothing(tmp_path: Path) -> None:
    directories = [str(tmp_path / "etc"), str(tmp_path / "run")]
    assert cdi_files.read_registry(directories) == Registry({}, {})
    for directory in directories:
        os.mkdir(directory)
    good, yaml = tmp_path / "etc/good.json", tmp_path / "run/also.yaml"
    good.write_text(json.dumps(spec()))
    yaml.write_text(
        "cdiVersion: 0.6.0\nkind: vendor.com/other\ndevices:\n- name: x\n  containerEdits: {env: ['B=2']}\n"
    )
    (tmp_path / "etc/bad.json").write_text('{"kind": ')
    (tmp_path / "etc/bomb.yaml").write_text("a: &a [x]\nb: *a\n")
    (tmp_path / "etc/notes.txt").write_text("passed over")
    os.mkfifo(tmp_path / "etc/pipe.json")
    found = cdi_files.read_registry(directories)
    assert sorted(found.devices) == ["vendor.com/other=x", "vendor.com/thing=one"]
    assert {os.path.basename(path) for path in found.errors} == {"bad.json", "bomb.yaml", "pipe.json"}
    assert "alias" in found.errors[str(tmp_path / "etc/bomb.yaml")]
    good.write_text(json.dumps(spec(devices=[device("two-now")])))
    assert "vendor.com/thing=two-now" in cdi_files.read_registry(directories).devices


def test_a_node_takes_from_the_host_what_its_entry_leaves_out() -> None:
    edits = cdi.Edits(
        device_nodes=(
            cdi.DeviceNode(path="/dev/mine", host_path="/dev/null", permissions="r", uid=7),
            cdi.DeviceNode(path="/dev/full", type="c", major=1, minor=7, file_mode=0o600, permissions="none"),
        )
    )
    nodes, rules = cdi_files.find_nodes(edits)
    assert [(n.path, n.type, n.major, n.minor, n.uid) for n in nodes] == [
        ("/dev/mine", "c", 1, 3, 7),
        ("/dev/full", "c", 1, 7, 0),
    ]
    assert nodes[1].file_mode == 0o600
    assert [(r.minor, r.access) for r in rules] == [(3, "r")]


def test_a_node_that_is_not_on_this_host_is_told() -> None:
    with pytest.raises(Invalid, match="failed to stat CDI host device '/dev/nosuch': no such file"):
        cdi_files.find_nodes(cdi.Edits(device_nodes=(cdi.DeviceNode(path="/dev/nosuch"),)))
