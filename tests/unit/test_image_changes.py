"""Dockerfile instructions as changes of a configuration."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cove.image.changes import apply_changes
from cove.model.errors import Invalid


@pytest.mark.parametrize(
    ("changes", "config"),
    [
        (['CMD ["a", "b c"]'], {"Cmd": ["a", "b c"]}),
        (["cmd echo $X"], {"Cmd": ["/bin/sh", "-c", "echo $X"]}),
        (["ENTRYPOINT [broken"], {"Entrypoint": ["/bin/sh", "-c", "[broken"]}),
        (["ENV A=1 B='x y' C=\"q \\\"z\\\"\" D=e\\ f"], {"Env": ["A=1", "B=x y", 'C=q "z"', "D=e f"]}),
        (["ENV A some words"], {"Env": ["A=some words"]}),
        (["ENV A=1", "ENV A=2"], {"Env": ["A=2"]}),
        (["EXPOSE 80 443/TCP 53/udp 8000-8001"],
         {"ExposedPorts": {"80/tcp": {}, "443/tcp": {}, "53/udp": {}, "8000/tcp": {}, "8001/tcp": {}}}),
        (["LABEL a=b", 'LABEL "c d"=e'], {"Labels": {"a": "b", "c d": "e"}}),
        (["USER 1:2"], {"User": "1:2"}),
        (['VOLUME ["/a", "/b c"]', "VOLUME /d /e"], {"Volumes": {"/a": {}, "/b c": {}, "/d": {}, "/e": {}}}),
        (["WORKDIR /a", "WORKDIR b/../c"], {"WorkingDir": "/a/c"}),
        (["STOPSIGNAL SIGRTMIN+3"], {"StopSignal": "SIGRTMIN+3"}),
        (["HEALTHCHECK NONE"], {"Healthcheck": {"Test": ["NONE"]}}),
        (["HEALTHCHECK --interval=1m30s --retries=2 CMD true"],
         {"Healthcheck": {"Interval": 90_000_000_000, "Retries": 2, "Test": ["CMD-SHELL", "true"]}}),
        (["ONBUILD RUN x"], {"OnBuild": ["RUN x"]}),
        (["ENV A=1", "ENV B=$A-${C:-none}"], {"Env": ["A=1", "B=1-none"]}),
        (['CMD ["a"]', 'ENTRYPOINT ["b"]'], {"Cmd": ["a"], "Entrypoint": ["b"]}),
        (["# a comment\nUSER \\\n x"], {"User": "x"}),
    ],
)  # fmt: skip
def test_an_instruction_changes_the_configuration(changes: list[str], config: dict[str, Any]) -> None:
    assert apply_changes({}, changes) == config


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("RUN x", "RUN is not a valid change command"),
        ("CMD", "CMD requires at least one argument"),
        ("ENV A", "ENV must have two arguments"),
        ("ENV A=1 B", "can't find = in"),
        ('ENV A="x', "a double quote isn't closed"),
        ("EXPOSE 0", "Invalid containerPort: 0"),
        ("EXPOSE 70000", "Invalid containerPort: 70000"),
        ("USER a b", "USER requires exactly one argument"),
        ("HEALTHCHECK --interval=5 CMD x", "isn't a duration"),
        ("HEALTHCHECK x", "try CMD"),
        ("ONBUILD FROM x", "FROM isn't allowed"),
        ("STOPSIGNAL a b", "isn't a signal"),
    ],
)
def test_a_wrong_instruction_is_refused_by_name(change: str, message: str) -> None:
    with pytest.raises(Invalid, match=message):
        apply_changes({}, [change])


def test_what_was_there_stays_and_the_caller_keeps_his_copy() -> None:
    before = {"Env": ["A=1"], "Labels": {"x": "y"}}
    after = apply_changes(before, ["ENV B=2", "LABEL z=1"])
    assert after == {"Env": ["A=1", "B=2"], "Labels": {"x": "y", "z": "1"}}
    assert before == {"Env": ["A=1"], "Labels": {"x": "y"}}


@given(
    st.sampled_from(["ENV", "LABEL", "EXPOSE", "VOLUME", "HEALTHCHECK", "CMD", "USER", "ONBUILD"]), st.text()
)
def test_any_argument_is_taken_or_refused_but_never_a_crash(word: str, rest: str) -> None:
    try:
        apply_changes({}, [f"{word} {rest}"])
    except Invalid:
        pass


def test_an_entrypoint_drops_the_command_that_was_there() -> None:
    assert apply_changes({"Cmd": ["a"]}, ['ENTRYPOINT ["b"]']) == {"Entrypoint": ["b"]}
