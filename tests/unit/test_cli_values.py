"""Flags' values: what Docker accepts means the same, what is wrong gets a sentence with a value that works."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cove.cli import values
from cove.cli.fail import CliError


@pytest.mark.parametrize(
    ("text", "count"),
    [
        ("512m", 512 << 20),
        ("1.5g", 3 << 29),
        ("64kb", 64 << 10),
        ("100", 100),
        ("10b", 10),
        ("1GiB", 1 << 30),
        ("2MB", 2 << 20),
        ("0", 0),
    ],
)
def test_sizes_are_powers_of_1024(text: str, count: int) -> None:
    assert values.parse_size("memory", text) == count


@pytest.mark.parametrize("text", ["", "2x", "m", "-1", "1..5g", "1 2", "0x10", "1e3", "²m", ".5g"])
def test_a_wrong_size_is_refused_with_an_example(text: str) -> None:
    with pytest.raises(CliError, match=r"--memory .*: expected a number and b, k, m or g, e\.g\. 512m"):
        values.parse_size("memory", text)


@pytest.mark.parametrize(
    ("text", "nanoseconds"),
    [
        ("30s", 30_000_000_000),
        ("1m30s", 90_000_000_000),
        ("500ms", 500_000_000),
        ("0", 0),
        ("1.5h", 5400 * 10**9),
    ],
)
def test_durations_are_go_s(text: str, nanoseconds: int) -> None:
    assert values.parse_duration_ns("health-interval", text) == nanoseconds


@pytest.mark.parametrize("text", ["", "5", "s", "-5s", "5 s", "1d"])
def test_a_wrong_duration_is_refused(text: str) -> None:
    with pytest.raises(CliError, match="expected a duration such as 30s"):
        values.parse_duration_ns("health-interval", text)


@pytest.mark.parametrize(
    ("text", "billionths"),
    [("1.5", 1_500_000_000), ("2", 2_000_000_000), ("0.001", 1_000_000), (".5", 500_000_000)],
)
def test_cpus_are_exact(text: str, billionths: int) -> None:
    assert values.parse_cpus("cpus", text) == billionths


@pytest.mark.parametrize("text", ["", ".", "x", "-1", "1.0000000001", "1/2"])
def test_wrong_cpus_are_refused(text: str) -> None:
    with pytest.raises(CliError, match="--cpus"):
        values.parse_cpus("cpus", text)


@pytest.mark.parametrize(
    ("text", "published"),
    [
        ("80", [("80/tcp", "", "")]),
        ("8080:80", [("80/tcp", "", "8080")]),
        ("127.0.0.1:8080:80/udp", [("80/udp", "127.0.0.1", "8080")]),
        ("[::1]:53:53/udp", [("53/udp", "::1", "53")]),
        ("127.0.0.1::80", [("80/tcp", "127.0.0.1", "")]),
        ("8000-8001:80-81", [("80/tcp", "", "8000"), ("81/tcp", "", "8001")]),
        ("8000-8010:80", [("80/tcp", "", "8000-8010")]),
    ],
)
def test_published_ports_follow_docker(text: str, published: list[tuple[str, str, str]]) -> None:
    assert values.parse_publish(text) == published


@pytest.mark.parametrize(
    "text",
    [
        "",
        "0",
        "65536",
        "x:80",
        "80:",
        "80:90-91:100",
        "8000-8001:80-82",
        "90-80",
        "80/icmp",
        "::1:80:80",
        "[::1:80",
        "٣",
    ],
)
def test_a_wrong_port_is_refused(text: str) -> None:
    with pytest.raises(CliError, match="--publish"):
        values.parse_publish(text)


def test_mounts_are_read_field_by_field() -> None:
    assert values.parse_mount('type=bind,src=/a,"dst=/b,c",ro') == {
        "Type": "bind",
        "Source": "/a",
        "Target": "/b,c",
        "ReadOnly": True,
    }
    volume = values.parse_mount("source=data,target=/d,volume-nocopy,volume-label=a=b,volume-opt=type=nfs")
    assert volume["Type"] == "volume"
    assert volume["VolumeOptions"] == {
        "NoCopy": True,
        "Labels": {"a": "b"},
        "DriverConfig": {"Options": {"type": "nfs"}},
    }
    tmpfs = values.parse_mount("type=tmpfs,dst=/t,tmpfs-size=64m,tmpfs-mode=700")
    assert tmpfs["TmpfsOptions"] == {"SizeBytes": 64 << 20, "Mode": 0o700}


@pytest.mark.parametrize(
    ("text", "rule"),
    [
        ("type=bind,source=/a", "a target"),
        ("type=bind,source=/a,target=/b,readonly=maybe", "true or false"),
        ("type=bind,sauce=/a,target=/b", "not 'sauce'"),
        ("type=tmpfs,target=/b,tmpfs-mode=9", "octal"),
        ("type=bind,source=/a,target=/b,volume-nocopy", "type=volume"),
        ('type=bind,"source=/a', "closing double quote"),
        ("bind", "a value for bind"),
    ],
)
def test_a_wrong_mount_names_the_rule(text: str, rule: str) -> None:
    with pytest.raises(CliError, match=rule):
        values.parse_mount(text)


def test_a_relative_source_becomes_absolute(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert values.parse_volume("./src:/dst:ro") == f"{tmp_path}/src:/dst:ro"
    assert values.parse_volume("data:/dst") == "data:/dst"
    assert values.parse_volume("/anonymous") == "/anonymous"


@pytest.mark.parametrize("text", ["", ":/x", "data:", "data:relative", "relative"])
def test_a_wrong_volume_is_refused(text: str) -> None:
    with pytest.raises(CliError, match="--volume"):
        values.parse_volume(text)


def test_environment_files_come_before_flags(tmp_path: Path) -> None:
    file = tmp_path / "env"
    file.write_text("# a comment\n\nA=1\nB\nMISSING\n C= spaced \n")
    found = values.collect_env(["A=2", "HOME", "D"], [str(file)], {"B": "from the caller", "HOME": "/root"})
    assert found == ["A=1", "B=from the caller", "C= spaced ", "A=2", "HOME=/root", "D"]


@pytest.mark.parametrize("content", ["=x\n", "A B=1\n"])
def test_a_wrong_line_of_an_environment_file_is_refused(tmp_path: Path, content: str) -> None:
    file = tmp_path / "env"
    file.write_text(content)
    with pytest.raises(CliError, match="--env-file"):
        values.collect_env([], [str(file)], {})


def test_a_missing_environment_file_is_named() -> None:
    with pytest.raises(CliError, match="--env-file /nowhere/env: No such file or directory"):
        values.collect_env([], ["/nowhere/env"], {})


@pytest.mark.parametrize("text", ["nofile", "nofile=x", "nofile=2:1", "=1", "nofile=-1:5", "nofile=1:"])
def test_a_wrong_ulimit_is_refused(text: str) -> None:
    with pytest.raises(CliError, match="--ulimit"):
        values.parse_ulimit(text)


@pytest.mark.parametrize(
    ("text", "device"),
    [
        ("/dev/fuse", ("/dev/fuse", "/dev/fuse", "rwm")),
        ("/dev/fuse:r", ("/dev/fuse", "/dev/fuse", "r")),
        ("/dev/sda:/dev/xvda", ("/dev/sda", "/dev/xvda", "rwm")),
        ("/dev/sda:/dev/xvda:rw", ("/dev/sda", "/dev/xvda", "rw")),
    ],
)
def test_devices_have_up_to_three_parts(text: str, device: tuple[str, str, str]) -> None:
    assert tuple(values.parse_device(text).values()) == device


@given(st.text(max_size=40))
def test_no_input_breaks_a_parser(text: str) -> None:
    parsers = [
        lambda: values.parse_size("memory", text),
        lambda: values.parse_duration_ns("health-interval", text),
        lambda: values.parse_cpus("cpus", text),
        lambda: values.parse_publish(text),
        lambda: values.parse_publish_long(text),
        lambda: values.parse_expose(text),
        lambda: values.parse_volume(text),
        lambda: values.parse_mount(text),
        lambda: values.parse_network(text),
        lambda: values.parse_device(text),
        lambda: values.parse_ulimit(text),
        lambda: values.parse_restart(text),
        lambda: values.parse_host(text),
        lambda: values.parse_weight_device(text),
        lambda: values.parse_throttle("device-read-bps", text, is_size=True),
        lambda: values.parse_throttle("device-read-iops", text, is_size=False),
    ]
    for parse in parsers:
        try:
            parse()
        except CliError as error:
            assert ": expected " in str(error)


@pytest.mark.parametrize(
    ("text", "request_"),
    [
        ("all", {"Count": -1}),
        ("2", {"Count": 2}),
        ("device=0", {"DeviceIDs": ["0"]}),
        ('"device=0,GPU-1"', {"DeviceIDs": ["0", "GPU-1"]}),
        ('driver=nvidia,"capabilities=utility,compute"', {"Driver": "nvidia", "Count": 1,
                                                          "Capabilities": [["gpu", "utility", "compute"]]}),
    ],
)  # fmt: skip
def test_gpus_are_read_as_docker_reads_them(text: str, request_: dict[str, Any]) -> None:
    empty = {"Driver": "", "Count": 0, "DeviceIDs": [], "Capabilities": [["gpu"]]}
    assert values.parse_gpus(text) == {**empty, **request_}


@pytest.mark.parametrize("text", ["x", "count=x", "device=", '"all', "what=1"])
def test_other_gpus_are_refused_with_an_example(text: str) -> None:
    with pytest.raises(CliError, match="--gpus"):
        values.parse_gpus(text)


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("vendor.com/class=name", True),
        ("/dev/fuse", False),
        ("/dev/a=b", False),
        ("a/b=", False),
        ("x", False),
    ],
)
def test_a_device_s_name_is_told_from_a_path(text: str, named: bool) -> None:
    assert values.is_cdi_device(text) == named
