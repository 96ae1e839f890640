"""Tags, and the labels and variables that go along with a container's lines."""

from __future__ import annotations

import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cove.logs.attributes import find_attributes, find_tag, shown_attributes
from cove.logs.pattern import Pattern
from cove.model.container import Container, ContainerSpec, LogConfig
from cove.model.errors import Invalid


def container(**options: str) -> Container:
    return Container(
        id="0123456789abcdef" * 4,
        name="web",
        created_ns=1_700_000_000 * 10**9,
        image_id="sha256:" + "fedcba98" * 8,
        image_name="nginx:1",
        spec=ContainerSpec(image="nginx:1"),
        args=("/bin/sh", "-c", "true"),
        env=("PATH=/bin", "STAGE=blue", "EMPTY=", "ODD"),
        labels={"com.example.team": "red", "com.example.tier": "1", "other": "x\ny"},
        log=LogConfig(driver="syslog", options={k.replace("_", "-"): v for k, v in options.items()}),
    )


@pytest.mark.parametrize(
    ("template", "tag"),
    [
        ("", "0123456789ab"),
        ("fixed", "fixed"),
        ("{{.ID}}/{{ .FullID }}", "0123456789ab/" + "0123456789abcdef" * 4),
        ("{{.Name}}-{{.ImageName}}-{{.ImageID}}", "web-nginx:1-fedcba98fedc"),
        ("{{.Command}}@{{.Hostname}}", "/bin/sh -c true@host1"),
        ("{{upper .Name}}", "WEB"),
        ("{{.Name | upper | printf}}", None),
        ("{{.Name | upper | lower}}", "web"),
        ('{{index .ContainerLabels "com.example.team"}}', "red"),
        ("{{(.ExtraAttributes nil).STAGE}}", "blue"),
        ("{{.ExtraAttributes.STAGE}}", "blue"),
        ('{{join (split .ImageName ":") "_"}}', "nginx_1"),
        ("{{truncate .FullID 4}}", "0123"),
        ("{{json .ContainerArgs}}", '["-c","true"]'),
        ("{{pad .Name 1 2}}|", " web  |"),
        ('{{index .ContainerLabels "other"}}', "x_y"),
        ("{{.Nothing}}", None),
        ("{{.Name", None),
        ("{{nothing .Name}}", None),
        ("{{index .Name}} {{index}}", None),
        ('{{"\\"}}', None),
        ("{{(.Name}}", None),
        ("{{}}", None),
        ("{{.Name.Name}}", None),
        ("x" * 2000, None),
        ('{{pad "x" 999999999 0}}', None),
    ],
)
def test_tags_are_templates(template: str, tag: str | None) -> None:
    made = container(tag=template, env="STAGE")
    if tag is None:
        with pytest.raises(Invalid, match="template: log-tag: "):
            find_tag(made, "host1")
    else:
        assert find_tag(made, "host1") == tag


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({}, {}),
        ({"labels": "com.example.team,missing"}, {"com.example.team": "red"}),
        ({"labels_regex": r"^com\.example\.t"}, {"com.example.team": "red", "com.example.tier": "1"}),
        ({"env": "STAGE,EMPTY,ODD"}, {"STAGE": "blue", "EMPTY": ""}),
        ({"env_regex": "(?i)^st"}, {"STAGE": "blue"}),
        ({"env_regex": "G", "labels": "other"}, {"STAGE": "blue", "other": "x\ny"}),
    ],
)
def test_options_choose_labels_and_variables(options: dict[str, str], expected: dict[str, str]) -> None:
    assert find_attributes(container(**options)) == expected


def test_a_tag_is_an_attribute_when_it_was_asked_for() -> None:
    assert shown_attributes(container(tag="{{.Name}}", env="STAGE"), "h") == {"STAGE": "blue", "tag": "web"}
    assert shown_attributes(container(), "h") == {}


_PATTERNS = st.recursive(
    st.sampled_from(["a", "b", "c", ".", r"\d", "[ab]", "[^a]", "^", "$", r"\w", r"\bx", "[a-c0-9]", ""]),
    lambda inner: st.one_of(
        st.tuples(inner, inner).map("".join),
        st.tuples(inner, inner).map(lambda two: f"(?:{two[0]}|{two[1]})"),
        st.tuples(inner, st.sampled_from(["*", "+", "?", "{2}", "{1,3}", "{2,}", "*?"])).map(
            lambda two: f"({two[0]}){two[1]}"
        ),
    ),
    max_leaves=8,
)


@given(_PATTERNS, st.text("abcx1 ", max_size=12))
@settings(max_examples=500, deadline=None)
def test_patterns_match_what_python_s_match(pattern: str, text: str) -> None:
    import re

    assert Pattern("labels-regex", pattern).search(text) == bool(re.search(pattern, text, re.ASCII))


@pytest.mark.parametrize("pattern", ["(a+)+$", "(a|aa)*$", "a*a*a*a*a*a*a*b", "(.*a){20}"])
def test_no_pattern_takes_long(pattern: str) -> None:
    begun = time.process_time()
    Pattern("env-regex", pattern).search("a" * 300 + "!")
    assert time.process_time() - begun < 5  # the matcher of `re` takes years for the first


@pytest.mark.parametrize(
    "pattern", ["(", "a{1000}{1000}", r"(a)\1", "(?=a)", "x" * 600, "((a{500}){500})", "*"]
)
def test_patterns_that_cannot_be_are_refused(pattern: str) -> None:
    with pytest.raises(Invalid, match="invalid value for labels-regex: "):
        Pattern("labels-regex", pattern)


def test_attributes_have_a_bound() -> None:
    made = container(env_regex=".")
    made = Container(
        **{**{f: getattr(made, f) for f in made.__struct_fields__}, "env": ("BIG=" + "x" * 70_000,)}
    )
    with pytest.raises(Invalid, match="at most 65536 are possible"):
        find_attributes(made)
