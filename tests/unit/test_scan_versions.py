"""Which version is newer, by tables of cases that the ecosystems' own rules and tests name."""

from __future__ import annotations

import shutil
import subprocess
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cove.scan.versions import Unreadable, compare

# deb-version(7), Debian policy 5.6.12, dpkg's lib/dpkg/t/t-version.c; rpm's tests/rpmvercmp.at; apk-tools'
# test/version.data; PEP 440; semver.org 11; golang.org/ref/mod#versions; Maven's ComparableVersionTest;
# RubyGems' test_gem_version.rb
CASES = {
    "deb": """1.0~rc1<1.0 1.0<1.0-1 1:0.9>1.0 1.0-1<1.0-1+b1 1.0-1<1.0-1+deb12u1 1.0+deb12u1<1.0+deb12u10 1.0a<1.0+
        1.0~~<1.0~~a 1.0~~a<1.0~ 1.0~<1.0 0:1.0=1.0 1.0-0=1.0 1.2.3-1~bpo12+1<1.2.3-1 2.30-1ubuntu2<2.30-1ubuntu10
        1.0A<1.0a 1.09=1.9 7.88.1-10+deb12u5<7.88.1-10+deb12u12 1:2.38.1-5<1:2.38.1-5+deb12u1""",
    "rpm": """1.0~rc1<1.0 1.0^git1>1.0 1.0^git1<1.0.1 1.0^git1~pre<1.0^git1 1:1.0>2.0 1.0-1.el8<1.0-2.el8
        1.0-1.el8<1.0-1.el8_2 5.5p1<5.5p2 5.5p10>5.5p2 10xyz<10.1xyz xyz10<xyz10.1 1.0010>1.9 1.05=1.5 2.0.1a>2.0.1
        fc4=fc.4 1b.fc17<1.fc17 4_0=4.0 8.2_0.3<8.2_1 0:1.0=1.0 6.0.rc1>6.0 1.0~rc1<1.0~rc2 1.0~rc1~git123<1.0~rc1""",
    "apk": """1.2.4-r2<1.2.4-r10 1.0_rc1<1.0 1.0_p1>1.0 1.0_alpha<1.0_beta 1.0_pre2<1.0_rc1 1.0a>1.0 1.0b>1.0a
        1.10>1.9 1.0.0>1.0 1.2.3_git20200101>1.2.3 1.2.3_alpha1<1.2.3_alpha2 1.1.1w-r1<3.0.0
        0.12.5_p20200101-r1<0.12.5_p20210101-r0 1.2.3-r0=1.2.3-r0 2.0_cvs1>2.0 2.34>0.1.0_alpha 0.1.0_alpha<0.1.3_alpha
        1.01<1.1 1.0_p10-r0>1.0_p9 6.0_pre1<6.0 0.4.1a>0.4.1 1.3_hg2>1.3_git3 1.2~abc0123-r1>1.2-r0""",
    "pypi": """1.0.dev1<1.0a1 1.0a1<1.0 1.0<1.0.post1 1!0.1>2.0 1.0+local>1.0 1.0=1.0.0 1.0rc1<1.0 1.10>1.9
        v1.0=1.0 1.0-1=1.0.post1 1.0c1=1.0rc1""",
    "npm": """1.0.0-alpha<1.0.0-alpha.1 1.0.0-alpha.1<1.0.0-beta 1.0.0-rc.1<1.0.0 1.0.0-2<1.0.0-10
        1.0.0+b1=1.0.0+b2 1.10.0>1.9.0 1.0.0-1<1.0.0-a v1.2.3=1.2.3""",
    "golang": """v1.0.0-20210101000000-abcdefabcdef<v1.0.0 v2.0.0+incompatible>v1.9.0 1.2.3=v1.2.3
        v0.0.0-20200101000000-abcdefabcdef<v0.0.0-20210101000000-abcdefabcdef
        v1.2.4-0.20200101000000-abcdefabcdef>v1.2.3 1.20.0-rc1<1.20.0 1.9.0<1.20.1""",
    "maven": """1.0-alpha-1<1.0 1.0-SNAPSHOT<1.0 1.0-sp1>1.0 1.0=1.0.0 1.0-rc1<1.0 1.0-cr1=1.0-rc1 2.15.0>2.2.0
        1.0.Final=1.0 1.0.0.RELEASE=1.0 1-1>1 1.0-xyz>1.0 31.1-jre>30.0-android 1.0-m1>1.0-beta1
        1.0-milestone-1=1.0-m1 1.a<1.b 5.3.18<5.3.20""",
    "gem": """1.0.a<1.0 1.0.pre1<1.0 1.0.rc10>1.0.rc2 1.0=1.0.0 1.10>1.9 2.2.6.4>2.2.6.3""",
}
TABLE = [(kind, case) for kind, cases in CASES.items() for case in cases.split()]


def split(case: str) -> tuple[str, str, int]:
    sign = next(sign for sign in "<>=" if sign in case)
    one, other = case.split(sign)
    return one, other, {"<": -1, ">": 1, "=": 0}[sign]


@pytest.mark.parametrize(("kind", "case"), TABLE)
def test_the_order_is_the_ecosystem_s(kind: str, case: str) -> None:
    one, other, expected = split(case)
    assert compare(kind, one, other) == expected
    assert compare(kind, other, one) == -expected


def test_debian_s_order_is_dpkg_s_own() -> None:
    for one, other, expected in (split(case) for case in CASES["deb"].split()):
        word = {-1: "lt", 0: "eq", 1: "gt"}[expected]
        assert subprocess.run(["dpkg", "--compare-versions", one, word, other]).returncode == 0


def test_rpm_s_order_is_rpm_s_own() -> None:
    if shutil.which("rpm") is None:
        pytest.skip("there is no rpm on this machine")
    for one, other, expected in (split(case) for case in CASES["rpm"].split()):
        if ":" in one + other or "-" in one + other:
            continue  # rpm.vercmp compares one part
        told = subprocess.run(
            ["rpm", "--eval", f"%{{lua:print(rpm.vercmp('{one}', '{other}'))}}"],
            capture_output=True,
            text=True,
        )
        assert int(told.stdout) == expected, (one, other)


def test_npm_s_order_is_node_semver_s_own() -> None:
    if shutil.which("npm") is None:
        pytest.skip("there is no npm on this machine")
    script = "const s=require(require('path').join(process.argv[1],'npm/node_modules/semver'));" \
        "console.log(JSON.stringify(JSON.parse(process.argv[2]).map(([a,b])=>s.compare(a,b))))"  # fmt: skip
    import json

    root = subprocess.run(["npm", "root", "-g"], capture_output=True, text=True).stdout.strip()
    pairs = [split(case) for case in CASES["npm"].split()]
    for place in (root, "/usr/share/nodejs", "/usr/lib/node_modules", "/usr/share"):
        command = ["node", "-e", script, place, json.dumps([pair[:2] for pair in pairs])]
        told = subprocess.run(command, capture_output=True, text=True)
        if told.returncode == 0:
            assert json.loads(told.stdout) == [pair[2] for pair in pairs]
            return
    pytest.skip("npm's own semver isn't where it is looked for")


@pytest.mark.parametrize("kind", list(CASES))
@pytest.mark.parametrize("text", ["", "x" * 201, "(devel)", "\0"])
def test_what_is_no_version_says_so(kind: str, text: str) -> None:
    try:
        assert compare(kind, text, "1.0.0") in (-1, 0, 1)  # some rules read anything
    except Unreadable as error:
        assert str(error)
    else:
        assert 0 < len(text) <= 200


@settings(max_examples=300, deadline=None)
@given(
    st.sampled_from(list(CASES)),
    st.text("0123456789.-+~^:_abrcpv", max_size=60),
    st.text("0123456789.-+~:_a", max_size=60),
)
def test_any_text_is_compared_or_refused_in_no_time(kind: str, one: str, other: str) -> None:
    begun = time.perf_counter()
    try:
        there, back = compare(kind, one, other), compare(kind, other, one)
        assert there == -back
    except Unreadable:
        pass
    assert time.perf_counter() - begun < 1


@pytest.mark.parametrize("kind", list(CASES))
def test_long_runs_of_one_letter_do_not_make_it_slow(kind: str) -> None:
    begun = time.perf_counter()
    for letter in "1a.-+~_0":
        for text in (letter * 199, "1" + letter * 198 + "!", "1." + letter * 190 + "x"):
            try:
                compare(kind, text, "1" + letter * 100)
            except Unreadable:
                pass
    assert time.perf_counter() - begun < 2
