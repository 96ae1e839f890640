"""Vulnerabilities: entries are read, kept, replaced and matched as their own databases mean them."""

from __future__ import annotations

import io
import json
import sqlite3
from collections.abc import Iterable
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cove.scan import osv
from cove.scan.advisory import Affected, Event
from cove.scan.debiantracker import looks_like, parse_tracker
from cove.scan.ecosystems import concerns, distribution_ecosystem
from cove.scan.findings import Choice, choose, scan_json
from cove.scan.importing import Importer
from cove.scan.inventory import Component, Inventory
from cove.scan.match import Finding, is_affected, match
from cove.scan.model import Distribution, Malformed, Package, Subject
from cove.scan.sarif import sarif
from cove.scan.scores import score_of
from cove.scan.severity import level_of_score, level_of_word
from cove.scan.vulndb import Counts, Reader, Writer
from tests.vulnkit import (
    CURL_DSA,
    ENTRIES,
    FLASK,
    FLASK_GHSA,
    GO_HTTP2,
    LOG4J,
    LOG4SHELL,
    TRACKER,
    entry,
    package,
    since,
    tarred,
    vector,
    zipped,
)  # fmt: skip

BOOKWORM = Distribution(id="debian", version="12", codename="bookworm")


def dumped(value: Any) -> bytes:
    return json.dumps(value).encode()


def take(data: bytes, connection: sqlite3.Connection | None = None) -> tuple[sqlite3.Connection, Counts]:
    """A database with what is sent."""
    connection = connection or sqlite3.connect(":memory:")
    writer = Writer(connection)
    pieces = [data[start : start + 1000] for start in range(0, len(data), 1000)] + [b""]
    Importer(writer, io.BytesIO()).take(lambda: pieces.pop(0) if pieces else b"")
    return connection, writer.commit("2024-06-01T00:00:00Z")


def findings(
    packages: Iterable[Package], *, distribution: Distribution = BOOKWORM, data: bytes = b""
) -> dict[str, Finding]:
    """By `package id`: what is found."""
    files = {"all.zip": zipped(*ENTRIES), "tracker.json": dumped(TRACKER)}
    connection, _ = take(data or tarred(files))
    inventory = Inventory(
        distribution=distribution, components=tuple(Component(package=one, layer=0) for one in packages)
    )
    found = match(inventory, Reader(connection))
    assert not found.notes
    return {f"{inventory.components[f.component].package.name} {f.id}": f for f in found.findings}


def one(kind: str, name: str, version: str, source: str = "", source_version: str = "") -> Package:
    return Package(kind=kind, name=name, version=version, source=source, source_version=source_version)


@pytest.mark.parametrize(
    ("package", "fixed"),
    [
        (one("maven", LOG4J, "2.14.1"), "2.15.0"),
        (one("maven", LOG4J, "2.0-beta9"), "2.3.1"),
        (one("maven", LOG4J, "2.3.1"), None),
        (one("maven", LOG4J, "2.11.0"), "2.12.2"),
        (one("maven", LOG4J, "2.12.2"), None),
        (one("maven", LOG4J, "2.15.0"), None),
        (one("maven", LOG4J, "2.0-beta8"), None),
        (one("pypi", "Flask", "2.2.4"), "2.2.5"),
        (one("pypi", "flask", "2.3.1"), "2.3.2"),
        (one("pypi", "flask", "2.2.5"), None),
        (one("pypi", "flask", "3.0"), None),
        (one("golang", "stdlib", "1.19.5"), "1.19.6"),
        (one("golang", "stdlib", "1.20"), "1.20.1"),
        (one("golang", "stdlib", "1.20rc3"), "1.20.1"),
        (one("golang", "stdlib", "1.21.0"), None),
        (one("golang", "golang.org/x/net", "v0.6.0"), "0.7.0"),
        (one("golang", "golang.org/x/net", "v0.0.0-20220127200216-cd36cc0744dd"), "0.7.0"),
        (one("golang", "golang.org/x/net", "v0.7.0"), None),
        (one("golang", "golang.org/x/net", "(devel)"), None),
        (one("npm", "lodash", "4.17.20"), "4.17.21"),
        (one("npm", "lodash", "4.17.21"), None),
        (one("cargo", "tokio", "1.18.3"), "1.18.4"),
        (one("cargo", "tokio", "1.18.4"), None),
        (one("cargo", "tokio", "1.19.2"), "1.20.3"),
        (one("cargo", "tokio", "1.6.9"), None),
    ],
)  # fmt: skip
def test_versions_of_languages_are_matched_by_their_ranges(package: Package, fixed: str | None) -> None:
    found = list(findings([package]).values())
    assert [f.fixed for f in found] == ([] if fixed is None else [fixed])


def test_debian_packages_are_matched_by_what_they_were_built_from() -> None:
    libcurl = one("deb", "libcurl4", "7.88.1-10+deb12u3", "curl", "7.88.1-10+deb12u3")
    found = findings([libcurl, one("deb", "libblkid1", "2.38.1-5+b1", "util-linux", "2.38.1-5")])
    assert set(found) == {
        "libcurl4 CVE-2023-38545",
        "libcurl4 CVE-2023-38546",
        "libblkid1 CVE-2022-0563",
    }
    first = found["libcurl4 CVE-2023-38545"]
    assert first.fixed == "7.88.1-10+deb12u4" and first.aliases == ("DSA-5523-1",)
    assert set(first.sources) == {"OSV", "Debian security tracker"}
    minor = found["libblkid1 CVE-2022-0563"]
    assert (minor.level, minor.fixed, minor.status) == ("negligible", "", "Minor issue")
    fixed = one("deb", "libcurl4", "7.88.1-10+deb12u4", "curl", "7.88.1-10+deb12u4")
    assert not findings([fixed])
    assert not findings([libcurl], distribution=Distribution(id="debian", version="10"))
    assert not findings([libcurl], distribution=Distribution(id="rocky", version="9"))


def test_alpine_and_rocky() -> None:
    alpine = Distribution(id="alpine", version="3.18.4")
    crypto = one("apk", "libcrypto3", "3.1.3-r1", "openssl", "3.1.3-r1")
    found = findings([crypto], distribution=alpine)
    assert found["libcrypto3 CVE-2023-5363"].fixed == "3.1.4-r0"
    assert found["libcrypto3 CVE-2023-5363"].level == "high"
    assert not findings([one("apk", "libcrypto3", "3.1.4-r0", "openssl", "3.1.4-r0")], distribution=alpine)
    rocky = Distribution(id="rocky", version="9.2")
    found = findings(
        [one("rpm", "libcurl", "7.76.1-23.el9_2.2", "curl", "7.76.1-23.el9_2.2")], distribution=rocky
    )
    assert set(found) == {"libcurl CVE-2023-38545", "libcurl CVE-2023-38546"}
    assert not findings([one("rpm", "curl", "7.76.1-23.el9_2.4", "curl")], distribution=rocky)


def test_several_entries_of_one_vulnerability_are_one_finding() -> None:
    found = findings([one("pypi", "flask", "2.2.4")])
    assert list(found) == ["flask CVE-2023-30861"]
    finding = found["flask CVE-2023-30861"]
    assert set(finding.aliases) == {"PYSEC-2023-62", "GHSA-m2qf-hxjv-5gpq"}
    assert (finding.level, finding.score, finding.fixed) == ("high", 7.5, "2.2.5")


def test_a_package_that_the_distribution_brought_is_matched_as_the_distribution_s_alone() -> None:
    assert not findings([Package(kind="pypi", name="flask", version="2.2.4", owner="deb")])


def test_an_entry_is_replaced_by_a_newer_one_and_not_by_an_older() -> None:
    old = entry("X-1", package("npm", "a", *since("0", "1.0.0")), modified="2024-01-01T00:00:00Z")
    new = entry("X-1", package("npm", "a", *since("0", "2.0.0")), modified="2024-02-01T00:00:00Z")
    gone = entry("X-1", modified="2024-03-01T00:00:00Z", withdrawn="2024-03-01T00:00:00Z")
    connection, counts = take(zipped(old))
    assert (counts.added, counts.changed, counts.unchanged) == (1, 0, 0)

    def fixed() -> list[str]:
        return [
            event.fixed
            for _, _, a in Reader(connection).find("npm", "a")
            for r in a.ranges
            for event in r
            if event.fixed
        ]

    _, counts = take(zipped(new), connection)
    assert (counts.added, counts.changed, counts.unchanged) == (0, 1, 0) and fixed() == ["2.0.0"]
    _, counts = take(zipped(old), connection)
    assert (counts.added, counts.changed, counts.unchanged) == (0, 0, 1) and fixed() == ["2.0.0"]
    take(zipped(gone), connection)
    assert fixed() == []
    take(zipped(new), connection)
    assert fixed() == []


def test_the_tracker_is_whole_each_time() -> None:
    connection, counts = take(dumped(TRACKER))
    assert counts.added == 2  # the third affects no release that is known
    _, counts = take(dumped({"util-linux": TRACKER["util-linux"]}), connection)
    assert (counts.removed, counts.added) == (2, 1)
    assert not list(Reader(connection).find("Debian:12", "curl"))
    assert Reader(connection).sources() == [
        {"Name": "Debian security tracker", "Imported": "2024-06-01T00:00:00Z", "Entries": 1, "Newest": ""}
    ]


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"", "nothing was sent"),
        (b"{}", "the file: it isn't an entry of OSV"),
        (b"[1]", "isn't an entry of OSV"),
        (b"PK\x03\x04" + bytes(100), "the zip archive is damaged"),
        (dumped({"id": "X-1", "modified": 5}), "`$.modified`"),
        (dumped({"id": "../x", "modified": ""}), "id: '../x' can't be one"),
        (tarred({"a.json": dumped(LOG4SHELL), "dir/b.json": b'{"id": 1}'}), "dir/b.json: it isn't an entry of OSV"),
        (tarred({}), "there is no file in it"),
        (zipped(LOG4SHELL, {"id": "X-2"}), "the file: X-2.json: it isn't an entry of OSV"),
        (zipped(LOG4SHELL)[:-40], "the zip archive is damaged"),
        (tarred({"a.json": dumped(LOG4SHELL)})[:700], "the archive is damaged"),
        (dumped({"curl": {"CVE-2023-1": {}}}), "package curl: Object missing required field `releases`"),
        (dumped({"curl": {"CVE-x": {"releases": {}}}}), "'CVE-x' is no id"),
        (dumped({"id": "X", "modified": "", "affected": [{"package": {"ecosystem": "npm", "name": "a"},
            "versions": ["1"] * 50_001}]}), "id: 'X'"),
        (dumped(entry("X-1", package("npm", "a", versions=["1"] * 50_001))), "affected.versions: 50001"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_named_with_its_file(data: bytes, words: str) -> None:
    with pytest.raises(Malformed) as caught:
        take(data)
    assert words in str(caught.value)


def test_a_bomb_in_a_zip_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cove.scan.importing.ENTRY_MAX", 1 << 20)
    import zipfile

    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("a.json", bytes(8 << 20))
    with pytest.raises(Malformed, match=r"a\.json: it is larger than 1048576 bytes"):
        take(buffer.getvalue())


@settings(max_examples=200, deadline=None)
@given(st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(
        st.sampled_from("id modified affected package ecosystem name ranges events introduced fixed versions severity "
                        "type score aliases releases status urgency CVE-2024-0001".split()), inner, max_size=6),
    max_leaves=30,
))  # fmt: skip
def test_any_json_is_read_or_refused(value: Any) -> None:
    data = dumped(value)
    for parse in (lambda: osv.parse_entry(data), lambda: list(parse_tracker(data)), lambda: take(data)):
        try:
            parse()
        except Malformed:
            pass


def test_listed_versions_and_last_affected_and_limits() -> None:
    def hit(version: str, *events: Event, versions: tuple[str, ...] = ()) -> str | None:
        ranges = (events,) if events else ()
        return is_affected(
            "npm", version, Affected(ecosystem="npm", name="a", ranges=ranges, versions=versions)
        )

    zero = Event(introduced="0")
    assert hit("1.0.0", zero) == ""
    assert hit("1.0.0", versions=("1.0.0", "1.1.0")) == ""
    assert hit("1.2.0", versions=("1.0.0", "1.1.0")) is None
    assert hit("1.0.0", zero, Event(last_affected="1.0.0")) == ""
    assert hit("1.0.1", zero, Event(last_affected="1.0.0")) is None
    assert hit("1.5.0", zero, Event(fixed="2.0.0"), Event(limit="1.4.0")) is None
    assert hit("1.3.0", zero, Event(fixed="2.0.0"), Event(limit="1.4.0")) == "2.0.0"
    assert (
        hit("2.5.0", Event(fixed="1.0.0"), Event(introduced="2.0.0"), zero, Event(fixed="3.0.0")) == "3.0.0"
    )
    assert hit("1.5.0", Event(fixed="1.0.0"), Event(introduced="2.0.0"), zero, Event(fixed="3.0.0")) is None


@pytest.mark.parametrize(
    ("vector", "score"),
    [  # first.org's examples, version by version
        ("CVSS:3.1/AV:N/AC:L/PR:N/UI:N/S:U/C:H/I:H/A:H", 9.8),
        ("CVSS:3.1/AV:N/AC:L/PR:N/UI:R/S:C/C:L/I:L/A:N", 6.1),
        ("CVSS:3.0/AV:N/AC:L/PR:L/UI:N/S:C/C:L/I:L/A:N", 6.4),
        ("AV:N/AC:L/Au:N/C:N/I:N/A:C", 7.8),
        ("CVSS:4.0/AV:N/AC:L/AT:N/PR:N/UI:N/VC:H/VI:H/VA:H/SC:N/SI:N/SA:N", 9.3),
        ("CVSS:3.1/AV:N", None),
        ("7.5", None),
        ("", None),
        ("CVSS:3.1/" + "AV:N/" * 200, None),
    ],
)
def test_scores_are_first_s(vector: str, score: float | None) -> None:
    assert score_of(vector) == score


def test_levels() -> None:
    assert [level_of_score(s) for s in (0, 0.1, 3.9, 4, 6.9, 7, 8.9, 9, 10)] == [
        "negligible", "low", "low", "medium", "medium", "high", "high", "critical", "critical",
    ]  # fmt: skip
    words = {"MODERATE": "medium", "not yet assigned": "unknown", "unimportant": "negligible", "low**": "low"}
    assert {word: level_of_word(word) for word in words} == words


def test_a_distribution_s_own_word_goes_before_a_score() -> None:
    notice = entry(
        "UBUNTU-CVE-2024-1",
        package("Ubuntu:22.04:LTS", "a", *since("0"), severity=[{"type": "Ubuntu", "score": "low"}]),
        severity=vector("CVSS:3.1/AV:N/AC:L/PR:N/UI:N/S:U/C:H/I:H/A:H"), upstream=["CVE-2024-1"],
    )  # fmt: skip
    found = findings(
        [one("deb", "a", "1", "a", "1")], distribution=Distribution(id="ubuntu", version="22.04"), data=dumped(
            notice | {"id": "UBUNTU-CVE-2024-10001"})
    )  # fmt: skip
    finding = found["a CVE-2024-10001"]
    assert (finding.level, finding.score) == ("low", 9.8)


@pytest.mark.parametrize(
    ("distribution", "ecosystem"),
    [
        (Distribution(id="debian", version="12"), "Debian:12"),
        (Distribution(id="debian", codename="trixie"), "Debian:13"),
        (Distribution(id="ubuntu", version="22.04"), "Ubuntu:22.04"),
        (Distribution(id="alpine", version="3.18.4"), "Alpine:v3.18"),
        (Distribution(id="alpine", version="3.19_alpha20230901"), "Alpine:edge"),
        (Distribution(id="wolfi", version="20230201"), "Wolfi"),
        (Distribution(id="rocky", version="9.3"), "Rocky Linux:9"),
        (Distribution(id="almalinux", version="8.9"), "AlmaLinux:8"),
        (Distribution(id="rhel", version="9.3"), "Red Hat:enterprise_linux:9"),
        (Distribution(id="opensuse-leap", version="15.5"), "openSUSE:Leap 15.5"),
        (Distribution(id="sles", version="15.5"), "SUSE:Linux Enterprise Server 15 SP5"),
        (Distribution(id="photon", version="5.0"), "Photon OS:5.0"),
        (Distribution(id="arch"), ""),
        (Distribution(), ""),
    ],
)
def test_ecosystems_of_distributions(distribution: Distribution, ecosystem: str) -> None:
    assert distribution_ecosystem(distribution) == ecosystem


def test_parts_of_an_ecosystem() -> None:
    assert concerns("Ubuntu:22.04:LTS", "Ubuntu:22.04") and not concerns(
        "Ubuntu:Pro:22.04:LTS", "Ubuntu:22.04"
    )
    assert concerns("Red Hat:enterprise_linux:9::baseos", "Red Hat:enterprise_linux:9")
    assert not concerns("Debian:1", "Debian:12") and not concerns("Debian:12", "Debian:1")
    wanted = "SUSE:Linux Enterprise Server 15 SP5"
    assert concerns("SUSE:Linux Enterprise Module for Basesystem 15 SP5", wanted)
    assert not concerns("SUSE:Linux Enterprise Module for Basesystem 15 SP4", wanted)


SUBJECT = Subject(
    name="app:1", id="sha256:" + "a" * 64, manifest="sha256:" + "b" * 64, diff_ids=("sha256:1",)
)


def report(choice: Choice) -> dict[str, Any]:
    packages = [
        one("pypi", "flask", "2.2.4"),
        one("maven", LOG4J, "2.14.1"),
        one("golang", "golang.org/x/net", "v0.6.0"),
        one("deb", "libblkid1", "2.38.1-5", "util-linux", "2.38.1-5"),
    ]
    connection, _ = take(tarred({"all.zip": zipped(*ENTRIES), "tracker.json": dumped(TRACKER)}))
    components = tuple(Component(package=p, layer=0, paths=("a/b c",)) for p in packages)
    inventory = Inventory(distribution=BOOKWORM, components=components)
    reader = Reader(connection)
    matched = match(inventory, reader)
    return scan_json(SUBJECT, inventory, matched, choose(matched, inventory, choice), reader.sources())


def test_the_worst_comes_first_and_what_is_asked_for_is_left_out() -> None:
    whole = report(Choice())
    assert [f["ID"] for f in whole["Vulnerabilities"]] == [
        "CVE-2021-44228", "CVE-2023-30861", "CVE-2022-0563", "CVE-2022-41723",
    ]  # fmt: skip
    assert (
        whole["Summary"] | {"critical": 1, "high": 1, "negligible": 1, "unknown": 1, "fixable": 3}
        == whole["Summary"]
    )
    high = report(Choice(level="high"))
    assert [f["Severity"] for f in high["Vulnerabilities"]] == ["critical", "high"] and high["Summary"][
        "below"
    ] == 2
    fixed = report(Choice(only_fixed=True))
    assert "CVE-2022-0563" not in {f["ID"] for f in fixed["Vulnerabilities"]}
    for word in ("CVE-2021-44228", "ghsa-jfh8-c2jp-5v3r", f"CVE-2021-44228:{LOG4J}"):
        left = report(Choice(ignore=(word,)))
        assert left["Summary"]["critical"] == 0 and left["Summary"]["ignored"] == 1
    assert report(Choice(ignore=("CVE-2021-44228:other",)))["Summary"]["critical"] == 1


def test_sarif_says_the_same() -> None:
    made = sarif(report(Choice()))
    run = made["runs"][0]
    assert run["results"][0]["ruleId"] == "CVE-2021-44228"
    assert (
        run["results"][0]["level"] == "error" and "update to 2.15.0" in run["results"][0]["message"]["text"]
    )
    assert run["results"][0]["locations"][0]["physicalLocation"]["artifactLocation"]["uri"] == "a/b%20c"
    for result in run["results"]:
        assert run["tool"]["driver"]["rules"][result["ruleIndex"]]["id"] == result["ruleId"]
    assert run["tool"]["driver"]["rules"][0]["properties"]["security-severity"] == "10.0"
    assert msgspec.json.decode(msgspec.json.encode(made)) == made


def test_the_tracker_is_told_from_an_entry() -> None:
    assert looks_like(dumped(TRACKER)) and looks_like(b' {\n "a": { "TEMP-0000000-ABCDEF": {')
    assert not looks_like(dumped(CURL_DSA)) and not looks_like(dumped(FLASK)) and not looks_like(b"")
    assert FLASK_GHSA["id"] in dumped(FLASK_GHSA).decode() and GO_HTTP2["id"]
