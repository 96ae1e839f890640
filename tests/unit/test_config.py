"""The daemon's configuration: the file, the flags, both together, and what is said about each fault."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cove.config.load import command_line, plan_source
from cove.config.read import (
    Config,
    changed_keys,
    flag_example,
    parse_file,
    read_config,
    shown_config,
    without_effect,
)
from cove.config.table import BY_NAME, KEYS, Key
from cove.model.errors import Invalid

FILE = "/etc/cove/daemon.json"


def from_file(text: str, **flags: list[str]) -> Config:
    return read_config(text, FILE, flags)


def from_flags(*words: str) -> Config:
    return plan_source(command_line().parse_args(["--config-file=", *words])).read()


@pytest.mark.parametrize("key", [key for key in KEYS if not key.refused], ids=lambda key: key.name)
def test_each_key_means_the_same_in_the_file_and_as_a_flag(key: Key) -> None:
    needed = {"tls": "tls", "tlsverify": "tls", "fixed-cidr": "bip", "fixed-cidr-v6": "bip6"}.get(
        key.name, ""
    )
    beside = {
        "tls": {"tlscert": "/c", "tlskey": "/k"},
        "bip": {"bip": BY_NAME["bip"].example},
        "bip6": {"bip6": BY_NAME["bip6"].example},
    }.get(needed, {})
    filed = from_file(json.dumps({key.name: key.example, **beside}))
    assert key.name in filed.given
    if not (
        key.kind.json == "object" and key.name != "default-ulimits"
    ):  # only a file can say an object of objects
        words = [word for name, value in beside.items() for word in (f"--{name}", value)]
        flagged = from_flags(*flag_example(key).split(" "), *words)
        assert flagged.values[key.name] == filed.values[key.name]
    again = read_config(json.dumps(shown_config(filed)), FILE, {})
    assert again.values == filed.values, "what is shown can be read again"


@pytest.mark.parametrize("key", [key for key in KEYS if key.refused], ids=lambda key: key.name)
def test_what_is_refused_says_why_and_its_default_passes(key: Key) -> None:
    if key.example != {}:
        with pytest.raises(Invalid, match=f"{FILE}:1: {key.name}: isn't supported: "):
            from_file(json.dumps({key.name: key.example}))
    from_file(json.dumps({key.name: key.kind.to_json(key.default)}))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[]", f'{FILE}:1: expected an object, e.g. {{"debug": true}}'),
        ("null", f'{FILE}:1: expected an object, e.g. {{"debug": true}}'),
        ('{"debug": true,}', f"{FILE}:1: column 16: not JSON: expected a key in double quotes"),
        ('{\n"debug": true\n"icc": true}', f"{FILE}:3: column 1: not JSON: expected a comma or the object's end"),
        ('{"debug" true}', f"{FILE}:1: column 10: not JSON: expected a colon after the key"),
        ('{"debug": true} x', f"{FILE}:1: column 17: not JSON: expected nothing after the object"),
        ('{"debug": tru}', f"{FILE}:1: column 11: not JSON: expecting value"),
        ('{"debug": true, "debug": true}', f"{FILE}:1: debug: the key is there twice, leave one out"),
        ('{"log-opts": {"a": "1", "a": "2"}}', f"{FILE}:1: a key is there twice in an object, leave one out"),
        (
            '{\n"debg": true}',
            f"{FILE}:2: debg: the following directives don't match any configuration option: debg; did you mean debug?",
        ),
        ('{"debug": "yes"}', f"{FILE}:1: debug: expected true or false, got the string 'yes', e.g. true"),
        ('{"mtu": 1e3}', f"{FILE}:1: mtu: expected a whole number, got the number 1000.0, e.g. 1400"),
        ('{"mtu": 70000}', f"{FILE}:1: mtu: expected 0 to 65535, got 70000, e.g. 1400"),
        (
            '{"hosts": "unix:///x"}',
            f"{FILE}:1: hosts: expected an array of at most 1000 strings, got the string 'unix:///x', "
            'e.g. ["unix:///run/cove/docker.sock"]',
        ),
        (
            '{"hosts": ["unix://x"]}',
            f"{FILE}:1: hosts: expected unix://PATH with an absolute path or tcp://HOST:PORT, got 'unix://x', "
            'e.g. ["unix:///run/cove/docker.sock"]',
        ),
        (
            '{"log-opts": {"max-file": 3}}',
            f'{FILE}:1: log-opts: expected a string for "max-file", got the number 3: write it in quotes, '
            'e.g. {"max-size": "10m"}',
        ),
        (
            '{"default-ulimits": {"files": {"Soft": 1, "Hard": 2}}}',
            f"{FILE}:1: default-ulimits: expected one of core, cpu,",
        ),
        (
            '{"default-ulimits": {"nofile": {"Name": "nofile", "Soft": 3, "Hard": 2}}}',
            f"{FILE}:1: default-ulimits: nofile: ulimit soft limit must be less than or equal to hard limit: 3 > 2",
        ),
        (
            '{"default-address-pools": [{"base": "10.0.0.0/16", "size": 8}]}',
            f"{FILE}:1: default-address-pools: 10.0.0.0/16: expected a size from 16 to 31, got 8",
        ),
        ('{"tlsverify": true}', f"{FILE}:1: tlsverify: needs tlscert and tlskey, files in PEM format"),
        (
            '{"hosts": ["tcp://0.0.0.0:2375"]}',
            f"{FILE}:1: hosts: tcp://0.0.0.0:2375: whoever reaches this address would be root here",
        ),
        ('{"storage-opts": ["size=3g"]}', f"{FILE}:1: storage-opts: expected cove.size=SIZE, got 'size=3g'"),
        (
            '{"fixed-cidr": "10.9.0.0/24", "bip": "10.8.0.1/16"}',
            f"{FILE}:1: fixed-cidr: 10.9.0.0/24 is no part of bip's subnet",
        ),
        ('{"exec-root": "/a", "run-dir": "/b"}', f"{FILE}:1: run-dir: run-dir says the same already, leave one out"),
        ('{"x": ' + "[" * 100_000, f"{FILE}: objects lie too deep in each other"),
    ],
)  # fmt: skip
def test_a_fault_names_line_key_and_a_value_that_works(text: str, message: str) -> None:
    with pytest.raises(Invalid) as caught:
        from_file(text)
    assert str(caught.value).startswith(message)


def test_every_fault_of_a_file_is_told_at_once() -> None:
    with pytest.raises(Invalid) as caught:
        from_file('{"debug": 1,\n "mtu": "x",\n "nonsense": 1}')
    assert [line.split(" ")[0] for line in str(caught.value).splitlines()] == [
        f"{FILE}:3:",
        f"{FILE}:1:",
        f"{FILE}:2:",
    ]


def test_a_key_as_a_flag_and_in_the_file_is_refused_in_dockerds_words() -> None:
    with pytest.raises(Invalid) as caught:
        from_file('{"labels": ["a=b"]}', labels=["c=d"])
    assert str(caught.value) == (
        "the following directives are specified both as a flag and in the configuration file: "
        'labels: (from flag: ["c=d"], from file: ["a=b"]): leave one out'
    )


def test_an_empty_file_is_an_empty_object() -> None:
    for text in ("", " \n", "\ufeff", "{}", "\ufeff{ }\n"):
        assert from_file(text).given == frozenset()


def test_wrong_flags_name_the_flag_and_an_example() -> None:
    with pytest.raises(
        Invalid, match=r"^--mtu many: expected a whole number, got 'many', e\.g\. --mtu 1400$"
    ):
        from_flags("--mtu", "many")
    with pytest.raises(
        Invalid, match=r"^--exec-opt: native\.cgroupdriver=x: expected native\.cgroupdriver=systemd"
    ):
        from_flags("--exec-opt", "native.cgroupdriver=x")
    assert from_flags("--debug=false", "--tls=0").switch("debug") is False
    assert from_flags("--log-level", "info", "--log-level", "warn").text("log-level") == "warn", (
        "the last counts"
    )
    assert from_flags("--subnet", "10.88.0.0/16").text("bip") == "10.88.0.0/16", "an older name"


def test_plain_tcp_is_for_loopback_or_those_who_insist() -> None:
    for address in ("tcp://127.0.0.1:2375", "tcp://[::1]:2375", "tcp://localhost:2375", "tcp://:2375"):
        from_flags("-H", address)
    for address in ("tcp://0.0.0.0:2375", "tcp://[::]:2375", "tcp://example.com:2375"):
        with pytest.raises(Invalid, match="would be root here"):
            from_flags("-H", address)
        from_flags("-H", address, "--insecure-tcp")
        from_flags("-H", address, "--tlsverify", "--tlscert", "/c", "--tlskey", "/k")


def test_what_has_no_effect_is_told_when_it_was_asked_for() -> None:
    assert without_effect(from_file('{"containerd": "/x", "raw-logs": false}')) == [
        "containerd has no effect: there is no containerd: Cove supervises containers by itself"
    ]


def test_a_reload_tells_what_counts_now_from_what_waits() -> None:
    now, later = changed_keys(from_file("{}"), from_file('{"debug": true, "mtu": 1400}'))
    assert [key.name for key in now] == ["debug"] and [key.name for key in later] == ["mtu"]


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=5,
)


@given(st.dictionaries(st.sampled_from(sorted(BY_NAME)) | st.text(max_size=4), JSON, max_size=4))
def test_any_object_is_taken_or_refused_by_sentences(values: dict[str, object]) -> None:
    try:
        read_config(json.dumps(values), FILE, {})
    except Invalid as error:
        assert str(error)


@given(st.text(max_size=40))
def test_any_text_is_read_as_json_reads_it_or_refused(text: str) -> None:
    try:
        found = {name: item.value for name, item in parse_file(text, FILE).items()}
    except Invalid:
        return
    assert not found or json.loads(text.removeprefix("\ufeff")) == found


def test_the_page_lists_the_keys_of_the_table() -> None:
    script = Path(__file__).parents[2] / "scripts" / "config_reference.py"
    spec = importlib.util.spec_from_file_location("config_reference", script)
    assert spec is not None and spec.loader is not None
    reference = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(reference)
    page = reference.PAGE.read_text()
    assert reference.renew(page) == page, "run scripts/config_reference.py"
