"""Subordinate ids: who has which ranges, and the maps that are made of them."""

from __future__ import annotations

import os
import pwd
from pathlib import Path

import pytest

from cove.model.errors import Invalid
from cove.runtime.oci import IdMapping
from cove.runtime.subids import Range, find_remap, parse_subids, plan_map

_TEXT = """\
# a comment
cove:300000:1000
other:100000:65536
cove:200000:65536
1000:5000:10
cove:nonsense:1
cove:7:0
cove:9
"""


@pytest.mark.parametrize(
    ("owners", "ranges"),
    [
        ({"cove"}, (Range(200000, 65536), Range(300000, 1000))),
        ({"other", "1000"}, (Range(5000, 10), Range(100000, 65536))),
        ({"nobody"}, ()),
    ],
)
def test_ranges_are_those_of_the_owner_by_name_or_number(owners: set[str], ranges: tuple[Range, ...]) -> None:
    assert parse_subids(_TEXT, owners) == ranges


def test_a_map_takes_the_ranges_one_after_the_other() -> None:
    assert plan_map([Range(200000, 65536), Range(300000, 1000)]) == (
        IdMapping(container_id=0, host_id=200000, size=65536),
        IdMapping(container_id=65536, host_id=300000, size=1000),
    )
    assert plan_map([Range(7, 5)], first=1) == (IdMapping(container_id=1, host_id=7, size=5),)


def find(option: str, directory: Path, text: str) -> tuple[int, int]:
    (directory / "subuid").write_text(text)
    (directory / "subgid").write_text(text.replace("200000", "400000"))
    return find_remap(option, subuid=directory / "subuid", subgid=directory / "subgid").root


def test_default_needs_no_account_and_a_user_may_be_a_name_or_a_number(tmp_path: Path) -> None:
    me = pwd.getpwuid(os.getuid())
    assert find("default", tmp_path, "cove:200000:65536\n") == (200000, 400000)
    assert find(me.pw_name, tmp_path, f"{me.pw_name}:200000:65536\n") == (200000, 400000)
    assert find(str(me.pw_uid), tmp_path, f"{me.pw_name}:200000:65536\n") == (200000, 400000)
    assert find("root:root", tmp_path, "root:200000:65536\n") == (200000, 400000)


@pytest.mark.parametrize(
    ("option", "sentence"),
    [
        ("default", "has no range for cove: add one, e.g. echo cove:231072:65536 >> "),
        (
            "nobody-of-that-name",
            "--userns-remap=nobody-of-that-name: no user nobody-of-that-name: make it with useradd",
        ),
        (
            "root:no-such-group",
            "--userns-remap=root:no-such-group: no group no-such-group: make it with groupadd",
        ),
        ("root:", "--userns-remap=root:: expected USER, USER:GROUP or default"),
        (":x", "--userns-remap=:x: expected USER, USER:GROUP or default"),
    ],
)
def test_what_is_missing_is_told_with_its_remedy(tmp_path: Path, option: str, sentence: str) -> None:
    with pytest.raises(Invalid) as caught:
        find(option, tmp_path, "someone:1:1\n")
    assert sentence in str(caught.value)
