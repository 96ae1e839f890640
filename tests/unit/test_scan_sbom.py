"""Bills of materials: what they say, that both forms are valid by their own tools, and that they are reproducible."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from cyclonedx.schema import SchemaVersion
from cyclonedx.validation.json import JsonStrictValidator
from packageurl import PackageURL
from spdx_tools.spdx.parser.jsonlikedict.json_like_dict_parser import JsonLikeDictParser
from spdx_tools.spdx.validation.document_validator import validate_full_spdx_document

from cove.scan import sbom
from cove.scan.inventory import Inventory, assemble
from cove.scan.licenses import spdx_expression
from cove.scan.model import Distribution, LayerScan, Package, Subject
from cove.scan.purl import package_url
from tests.scankit import scan
from tests.unit.test_scan_packages import APK, METADATA, POM, STATUS, jar

GOLDEN = Path(__file__).parents[1] / "golden" / "scan"
SUBJECT = Subject(
    name="app:1",
    id="sha256:" + "a" * 64,
    manifest="sha256:" + "b" * 64,
    architecture="amd64",
    diff_ids=("sha256:" + "1" * 64, "sha256:" + "2" * 64),
    created_by=("ADD rootfs /", "RUN pip install"),
)
BASE = {
    "etc/os-release": b'ID=debian\nVERSION_ID="12"\nPRETTY_NAME="Debian GNU/Linux 12 (bookworm)"\n',
    "var/lib/dpkg/status": STATUS,
}
UPPER = {
    "var/lib/dpkg/status": STATUS + b"\nPackage: jq\nStatus: install ok installed\nVersion: 1.6-2.1\n",
    "usr/lib/python3/site-packages/Flask_Login-0.6.3.dist-info/METADATA": METADATA,
    "app/node_modules/@babel/core/package.json": b'{"name":"@babel/core","version":"7.23.0","license":"MIT"}',
    "app/log4j.jar": jar({"META-INF/maven/x/y/pom.properties": POM}),
    "app/node_modules/\udcff/package.json": b'{"name":"odd","version":"1.0.0","license":"see LICENSE"}',
}


def inventory() -> Inventory:
    scans = (scan(BASE), scan(UPPER))
    return assemble(scans, lambda path: 1 if path in UPPER else 0)


def test_a_package_belongs_to_the_layer_that_brought_it() -> None:
    layers = {f"{c.package.kind} {c.package.name}": c.layer for c in inventory().components}
    assert layers == {
        "deb curl": 0,
        "deb half": 0,
        "deb libblkid1": 0,
        "deb jq": 1,
        "pypi Flask_Login": 1,
        "npm @babel/core": 1,
        "npm odd": 1,
        "maven org.apache.logging.log4j:log4j-core": 1,
    }
    assert inventory().distribution.version == "12"


def test_what_an_upper_layer_removed_is_not_in_the_image() -> None:
    found = assemble((scan(UPPER), LayerScan()), lambda path: 0 if path.endswith(".jar") else -1)
    assert [c.package.kind for c in found.components] == ["maven"]


def test_an_upgraded_package_belongs_to_the_layer_that_upgraded_it() -> None:
    upper = {"var/lib/dpkg/status": STATUS.replace(b"7.88.1-10+deb12u5", b"7.88.1-10+deb12u8")}
    found = assemble((scan(BASE), scan(upper), scan(upper)), lambda path: 2 if path in upper else 0)
    assert {c.package.name: c.layer for c in found.components} == {"curl": 1, "half": 0, "libblkid1": 0}


@pytest.mark.parametrize("form", ["cyclonedx", "spdx"])
def test_the_bill_is_as_reviewed(form: str) -> None:
    made = sbom.render(getattr(sbom, form)(SUBJECT, inventory(), 1_700_000_000))
    golden = GOLDEN / f"{form}.json"
    assert made.decode() == golden.read_text()


def test_cyclonedx_is_valid_by_the_schema() -> None:
    made = sbom.render(sbom.cyclonedx(SUBJECT, inventory(), 1_700_000_000)).decode()
    assert JsonStrictValidator(SchemaVersion.V1_6).validate_str(made) is None
    empty = sbom.render(sbom.cyclonedx(SUBJECT, Inventory(), 0)).decode()
    assert JsonStrictValidator(SchemaVersion.V1_6).validate_str(empty) is None


@pytest.mark.parametrize("what", [inventory(), Inventory()])
def test_spdx_is_valid_by_its_own_tools(what: Inventory) -> None:
    made = json.loads(sbom.render(sbom.spdx(SUBJECT, what, 1_700_000_000)))
    document = JsonLikeDictParser().parse(made)
    assert not validate_full_spdx_document(document, "SPDX-2.3")


@pytest.mark.parametrize(
    ("package", "url"),
    [
        (
            Package(
                kind="deb", name="libblkid1", version="1:2.38-1", architecture="amd64", source="util-linux"
            ),
            "pkg:deb/debian/libblkid1@1:2.38-1?arch=amd64&distro=debian-12&upstream=util-linux",
        ),
        (
            Package(kind="rpm", name="curl", version="1:7.61-2.el8", architecture="x86_64", source="curl"),
            "pkg:rpm/debian/curl@7.61-2.el8?arch=x86_64&distro=debian-12&epoch=1",
        ),
        (Package(kind="pypi", name="Flask_Login", version="0.6.3"), "pkg:pypi/flask-login@0.6.3"),
        (Package(kind="npm", name="@babel/core", version="7.23.0"), "pkg:npm/%40babel/core@7.23.0"),
        (
            Package(kind="golang", name="golang.org/x/net", version="v0.7.0"),
            "pkg:golang/golang.org/x/net@v0.7.0",
        ),
        (
            Package(kind="maven", name="org.apache:log4j", version="2.14.1"),
            "pkg:maven/org.apache/log4j@2.14.1",
        ),
        (Package(kind="cargo", name="serde", version="1.0.190"), "pkg:cargo/serde@1.0.190"),
    ],
)
def test_package_urls(package: Package, url: str) -> None:
    made = package_url(package, Distribution(id="debian", version="12"))
    assert made == url
    assert PackageURL.from_string(made).to_string() == made


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("MIT", "MIT"),
        ("GPL-2.0-or-later AND (MIT OR Apache-2.0)", "GPL-2.0-or-later AND (MIT OR Apache-2.0)"),
        ("GPL-2.0-only WITH Classpath-exception-2.0", "GPL-2.0-only WITH Classpath-exception-2.0"),
        ("Dual License", ""),
        ("MIT OR", ""),
        ("(MIT", ""),
        ("MIT MIT", ""),
        ("AND", ""),
        ("", ""),
    ],
)
def test_licences_are_expressions_or_text(text: str, expected: str) -> None:
    assert spdx_expression(text) == expected


def test_apk_packages_have_a_bill_as_well() -> None:
    files = {"lib/apk/db/installed": APK, "etc/os-release": b"ID=alpine\nVERSION_ID=3.18.4\n"}
    made = sbom.cyclonedx(SUBJECT, assemble((scan(files),), lambda _: 0), 0)
    assert [c["purl"] for c in made["components"][1:]] == [
        "pkg:apk/alpine/libcrypto3@3.1.4-r1?arch=x86_64&distro=alpine-3.18.4&upstream=openssl",
        "pkg:apk/alpine/musl@1.2.4-r2?arch=x86_64&distro=alpine-3.18.4",
    ]
