"""Input that is hostile in form: what would become lines of files, arguments, timers, or somebody's screen."""

from __future__ import annotations

import json
import tracemalloc
from typing import Any

import pytest

from cove.image.manifests import parse_config
from cove.image.types import Limits
from cove.model.errors import Invalid
from cove.model.lines import is_word, parse_address
from cove.network.files import hosts_file, resolv_file
from cove.runtime.users import UserFiles, resolve

_LINE = "6.6.6.6 evil"


def config(**settings: Any) -> bytes:
    return json.dumps(
        {"architecture": "amd64", "os": "linux", "rootfs": {"type": "layers"}, "config": settings}
    ).encode()


@pytest.mark.parametrize(
    "extra",
    [
        f"db:fe80::1%x\n{_LINE}",
        f"db\n{_LINE}:10.0.0.1",
        "db\x1b[2J:10.0.0.1",
        "db\u2028x:10.0.0.1",
        "db:fe80::1%" + "x" * 16,
    ],
)
def test_an_added_host_is_one_name_and_one_address(extra: str) -> None:
    with pytest.raises(Invalid):
        hosts_file("web", "", (), [extra])


@pytest.mark.parametrize(
    "asked",
    [
        {"dns": [f"fe80::1%x\nnameserver {_LINE}"]},
        {"search": [f"example.org\n{_LINE}"]},
        {"search": [""]},
        {"options": [f"ndots:1\n{_LINE}"]},
        {"options": ["a b"]},
    ],
)
def test_no_line_is_smuggled_into_resolv_conf(asked: dict[str, list[str]]) -> None:
    with pytest.raises(Invalid):
        resolv_file("", **asked)  # type: ignore[arg-type]


def test_usual_names_and_addresses_are_words() -> None:
    assert is_word("_sip._tcp.example.org") and is_word("ndots:2") and not is_word("a\tb")
    assert str(parse_address("fe80::1%eth0.10")) == "fe80::1%eth0.10"
    assert "10.0.0.1\tdb\n" in hosts_file("web", "", (), ["db:10.0.0.1"])
    assert resolv_file("", dns=["10.0.0.1"], search=["example.org"], options=["ndots:2"]) == (
        "nameserver 10.0.0.1\nsearch example.org\noptions ndots:2\n"
    )


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"Env": ["A=\0"]}, "Env: 'A=\\x00' contains a NUL byte"),
        ({"User": "\0"}, "User: "),
        ({"WorkingDir": "/a\0"}, "WorkingDir: "),
        ({"Cmd": ["a\0"]}, "Cmd: "),
        ({"Healthcheck": {"Test": ["CMD", "a\0"]}}, "Healthcheck.Test: "),
        ({"ExposedPorts": {"abc/tcp": {}}}, "ExposedPorts: 'abc/tcp' isn't a port"),
        ({"ExposedPorts": {"0-99999999999/tcp": {}}}, "ExposedPorts: "),
        (
            {"ExposedPorts": {"1-65535/tcp": {}, "1-65535/udp": {}}},
            "there are 131070 ports, the limit is 65535",
        ),
        ({"Volumes": {"../x": {}}}, "Volumes: '../x' isn't an absolute path"),
        ({"Volumes": {f"/v{i}": {} for i in range(1025)}}, "there are 1025, the limit is 1024"),
        (
            {"Healthcheck": {"Test": ["CMD", "true"], "Interval": 1}},
            "Healthcheck.Interval: 1 ns is out of range",
        ),
        ({"Healthcheck": {"Test": ["CMD", "true"], "Timeout": -1}}, "Healthcheck.Timeout: "),
        ({"Healthcheck": {"Test": ["CMD", "true"], "Interval": 2**63}}, "Healthcheck.Interval: "),
        ({"Healthcheck": {"Test": ["CMD", "true"], "Retries": -1}}, "Healthcheck.Retries: -1 is negative"),
    ],
)
def test_an_image_that_asks_for_the_impossible_is_not_loaded(settings: dict[str, Any], sentence: str) -> None:
    with pytest.raises(Invalid) as caught:
        parse_config(config(**settings), "sha256:1", Limits())
    assert sentence in str(caught.value)


def test_usual_settings_of_an_image_are_kept() -> None:
    image = parse_config(
        config(
            Env=["A=b"], Volumes={"/data": {}}, ExposedPorts={"80/tcp": {}, "53/udp": {}, "8000-8010": {}},
            Healthcheck={"Test": ["CMD", "true"], "Interval": 10**9},
        ),
        "sha256:1",
        Limits(),
    )  # fmt: skip
    assert image.config.volumes == ("/data",)
    assert image.config.exposed_ports == ("53/udp", "80/tcp", "8000-8010")


@pytest.mark.parametrize("user", ["nobody", "root:wheel", "4242"])
def test_a_passwd_file_of_a_million_lines_is_refused_before_it_is_all_taken_apart(user: str) -> None:
    """CVE-2026-47262: memory and time that a file of an image takes are bounded."""
    bomb = b"root:x:0:0::/:/bin/sh\n" + b"a:\n" * 1_000_000
    tracemalloc.start()
    try:
        with pytest.raises(Invalid, match="has more than 65536 lines"):
            resolve(UserFiles(bomb, bomb), user, ["wheel"])
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 64 << 20
