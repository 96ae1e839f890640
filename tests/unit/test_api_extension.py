"""Cove's own settings of a container: both forms, what is refused, and what is shown again."""

from __future__ import annotations

import pytest

from cove.api.docker.extension import decode_extension, decode_secret_data, extension_json, with_probe
from cove.model.container import HealthCheck
from cove.model.errors import Invalid
from cove.model.extension import Extension


def test_labels_and_the_object_say_the_same() -> None:
    given = {"health.probe": "https://[::1]:8443/x?y#z", "health.on-failure": "kill"}
    extension = decode_extension(given, {})
    assert extension == decode_extension({}, {f"cove.{key}": value for key, value in given.items()})
    assert extension == decode_extension(given, {"cove.health.on-failure": "kill", "other": "label"})
    assert extension.probe is not None
    assert (extension.probe.host, extension.probe.port, extension.probe.path) == ("::1", 8443, "/x?y")
    with pytest.raises(Invalid, match=r"label cove\.health\.on-failure: differs from Cove\.health"):
        decode_extension(given, {"cove.health.on-failure": "stop"})


@pytest.mark.parametrize(
    "given",
    [
        {"health.probe": "tcp://:1"},
        {
            "health.probe": "http://127.0.0.1:80/",
            "health.probe.status": "200-204",
            "health.probe.headers": "A: b\nC: d",
        },
        {"health.on-failure": "restart"},
    ],
)
def test_what_is_shown_is_what_create_takes(given: dict[str, str]) -> None:
    assert extension_json(decode_extension(given, {})) == given


def test_nothing_asked_for_is_nothing_shown() -> None:
    assert decode_extension({}, {"a": "b"}) == Extension()
    assert extension_json(Extension()) == {}


@pytest.mark.parametrize(
    "url",
    [
        "",
        "http://",
        "http://:0",
        "http://:65536",
        "http://name:80",
        "tcp://:80/x",
        "http://:80/\x7f",
        "HTTP://:80",
        "http://:80/\r\nX: y",
        "http://[::1:80",
        "http://:80" + "/x" * 2000,
    ],
)
def test_a_url_that_makes_no_sense_is_refused(url: str) -> None:
    with pytest.raises(Invalid, match=r"Cove\.health\.probe: "):
        decode_extension({"health.probe": url}, {})


def test_a_probe_takes_the_place_of_a_command_but_not_of_the_callers() -> None:
    probe = decode_extension({"health.probe": "tcp://:1"}, {}).probe
    check = with_probe(HealthCheck(interval_ns=7), probe)
    assert check is not None
    assert (check.probe, check.interval_ns) == (probe, 7)
    with pytest.raises(Invalid, match="leave one out"):
        with_probe(HealthCheck(test=("CMD", "x")), probe)


def test_a_secret_s_use_is_shown_as_create_takes_it_and_never_with_content() -> None:
    text = "db,db:target=pw;uid=7;mode=0400,:target=own"
    extension = decode_extension({"secrets": text}, {})
    assert extension_json(extension) == {"secrets": text}
    assert decode_secret_data(extension, {"own": "eA=="}) == {"own": b"x"}
    for data, said in (
        ({}, "needed"),
        ({"own": "%"}, "base64"),
        ({"own": "eA==", "db": "eA=="}, "without a name"),
    ):
        with pytest.raises(Invalid, match=said):
            decode_secret_data(extension, data)
