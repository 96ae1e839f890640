"""What is in an image, by a real daemon: bills of materials, layers looked at once, hostile images."""

from __future__ import annotations

import json
import os
import re
import subprocess
import urllib.request
from pathlib import Path
from typing import Any

import pytest
from cyclonedx.schema import SchemaVersion
from cyclonedx.validation.json import JsonStrictValidator

from tests.daemon import ROOT, Daemon, Response
from tests.imagekit import Dir, Entry, File, Layer, Opaque, Symlink, Whiteout, make_docker_archive
from tests.registrykit import docker_registry
from tests.unit.test_scan_packages import METADATA, jar

TAR = {"Content-Type": "application/x-tar"}
NOBODY = {"X-Registry-Auth": "e30="}
RELEASE = File("usr/lib/os-release", b'ID=debian\nVERSION_ID="12"\n')


def load(daemon: Daemon, name: str, layers: list[Layer], **more: Any) -> None:
    answer = daemon.http(
        "POST", "/images/load", make_docker_archive(layers, names=[name], **more), headers=TAR
    )
    assert answer.status == 200 and b'"error"' not in answer.body, answer.body


def bill(daemon: Daemon, name: str, form: str = "json", more: str = "") -> Response:
    return daemon.http("GET", f"/cove/v1/images/sbom?image={name}&format={form}{more}")


def packages(daemon: Daemon, name: str) -> dict[str, int]:
    """`type name version` of each package, with the number of its layer."""
    answer = bill(daemon, name)
    assert answer.status == 200, answer.body
    return {f"{p['Type']} {p['Name']} {p['Version']}": p["Layer"] for p in answer.json()["Packages"]}


def python(name: str, version: str) -> Entry:
    return File(
        f"opt/site-packages/{name}.dist-info/METADATA", f"Name: {name}\nVersion: {version}\n".encode()
    )


def dpkg(*names: str) -> Entry:
    text = "".join(
        f"Package: {name}\nStatus: install ok installed\nVersion: 1.0-1\nArchitecture: all\n\n"
        for name in names
    )
    return File("var/lib/dpkg/status", text.encode())


def test_packages_are_those_that_the_image_shows_each_with_its_layer(daemon: Daemon) -> None:
    load(
        daemon,
        "scan:1",
        [
            [RELEASE, dpkg("bash"), python("kept", "1"), python("deleted", "1"), python("replaced", "1"),
             File("var/cache/a.dist-info/METADATA", METADATA)],
            [dpkg("bash", "curl"), Whiteout("opt/site-packages/deleted.dist-info"), python("replaced", "2"),
             Dir("var/cache"), Opaque("var/cache")],
            [File("opt/app.jar", jar({"META-INF/maven/a/b/pom.properties": b"groupId=a\nartifactId=b\nversion=1\n"}))],
        ],
    )  # fmt: skip
    try:
        assert packages(daemon, "scan:1") == {
            "deb bash 1.0-1": 0,
            "deb curl 1.0-1": 1,
            "pypi kept 1": 0,
            "pypi replaced 2": 1,
            "maven a:b 1": 2,
        }
        assert bill(daemon, "scan:1").json()["Distribution"] == {"ID": "debian", "Version": "12", "Name": ""}
    finally:
        daemon.http("DELETE", "/images/scan:1")


def test_links_are_not_followed_and_odd_files_do_not_stop_the_search(daemon: Daemon) -> None:
    load(
        daemon,
        "scan:2",
        [
            [
                Symlink("var/lib/dpkg/status", "/proc/self/mountinfo"),
                Symlink("opt/outside.dist-info", "../../../../../../../../usr/lib/python3"),
                Symlink("opt/link.dist-info/METADATA", "/etc/passwd"),
                File("opt/broken.jar", b"PK\x03\x04" + bytes(64)),
                File("bin/broken", b"\x7fELF" + b"\xff" * 8192, mode=0o755),
                File("var/lib/rpm/rpmdb.sqlite", b"SQLite format 3\0" + bytes(4096)),
                File("x/node_modules/a/package.json", b"[" * 100_000),
                python("good", "1"),
                Entry("fifo", type=b"6"),
            ]
        ],
    )
    try:
        assert packages(daemon, "scan:2") == {"pypi good 1": 0}
        notes = " ".join(bill(daemon, "scan:2").json()["Notes"])
        for path in ("opt/broken.jar", "bin/broken", "rpmdb.sqlite", "node_modules/a/package.json"):
            assert path in notes
    finally:
        daemon.http("DELETE", "/images/scan:2")


def test_a_layer_is_looked_at_once_and_its_result_goes_with_it(fresh_daemon: Daemon) -> None:
    daemon = fresh_daemon
    scans = daemon.data_root / "images" / "scans"
    base: list[Entry] = [RELEASE, python("base", "1")]
    load(daemon, "scan:a", [base, [python("a", "1")]])
    load(daemon, "scan:b", [base, [python("b", "1")]])
    packages(daemon, "scan:a")
    before = {path.name: path.stat().st_mtime_ns for path in scans.iterdir()}
    assert len(before) == 2
    assert packages(daemon, "scan:b") == {"pypi base 1": 0, "pypi b 1": 1}
    after = {path.name: path.stat().st_mtime_ns for path in scans.iterdir()}
    assert len(after) == 3 and before.items() <= after.items()
    daemon.http("DELETE", "/images/scan:a")
    assert len(list(scans.iterdir())) == 2
    (scans / "leftover.1").write_bytes(b"")
    (scans / f"{next(iter(after))}.abcd").write_bytes(b"cut off")
    daemon.kill9()
    daemon.start()
    assert len(list(scans.iterdir())) == 2
    assert packages(daemon, "scan:b") == {"pypi base 1": 0, "pypi b 1": 1}


def test_a_result_that_the_disk_damaged_is_said_to_be(fresh_daemon: Daemon) -> None:
    daemon = fresh_daemon
    load(daemon, "scan:a", [[python("a", "1")]])
    packages(daemon, "scan:a")
    for path in (daemon.data_root / "images" / "scans").iterdir():
        path.write_bytes(path.read_bytes()[:10])
    answer = bill(daemon, "scan:a")
    assert answer.status == 500 and "the image store is damaged" in answer.message


def test_two_bills_of_one_time_are_the_same_and_both_forms_are_valid(daemon: Daemon, image: str) -> None:
    first = bill(daemon, image, "cyclonedx", "&epoch=1700000000").body
    assert first == bill(daemon, image, "cyclonedx", "&epoch=1700000000").body
    assert JsonStrictValidator(SchemaVersion.V1_6).validate_str(first.decode()) is None
    spdx = bill(daemon, image, "spdx", "&epoch=0").json()
    assert spdx["creationInfo"]["created"] == "1970-01-01T00:00:00Z"


@pytest.mark.parametrize(
    ("query", "status", "words"),
    [
        ("", 400, "image: is missing"),
        ("image=nothing-here", 404, "No such image: nothing-here:latest"),
        ("image=busybox&format=xml", 400, "format xml: expected one of cyclonedx, spdx, json"),
        ("image=busybox&epoch=-1", 400, "epoch"),
        ("image=busybox&epoch=99999999999999", 400, "epoch"),
    ],
)
def test_errors_name_what_is_wrong(daemon: Daemon, query: str, status: int, words: str) -> None:
    answer = daemon.http("GET", f"/cove/v1/images/sbom?{query}")
    assert answer.status == status and words in answer.message


def test_the_command_writes_a_file_and_goes_by_source_date_epoch(
    daemon: Daemon, image: str, tmp_path: Path
) -> None:
    target = tmp_path / "bill.json"
    environment = {**os.environ, "COVE_HOST": daemon.host, "SOURCE_DATE_EPOCH": "1700000000"}
    command = [str(ROOT / "bin" / "cove"), "sbom", "--format", "spdx"]
    subprocess.run([*command, "-o", str(target), image], env=environment, check=True, timeout=60)
    made = json.loads(target.read_text())
    assert made["creationInfo"]["created"] == "2023-11-14T22:13:20Z"
    assert re.fullmatch(r"https://spdx.org/spdxdocs/cove-[0-9a-f-]{36}", made["documentNamespace"])
    failed = subprocess.run(
        [*command, "-o", str(tmp_path / "no"), "none"],
        env=environment,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert failed.returncode == 1 and "No such image: none:latest" in failed.stderr
    assert not (tmp_path / "no").exists()


def test_a_bill_is_put_beside_its_image_in_a_registry(daemon: Daemon, tmp_path: Path) -> None:
    with docker_registry(tmp_path) as host:
        name = f"{host}/team/app:1"
        load(daemon, name, [[RELEASE, python("a", "1")]])
        try:
            path = f"/cove/v1/images/sbom/push?image={name}&format=spdx&epoch=0"
            early = daemon.http("POST", path)
            assert early.status == 409 and "push the image first" in early.message
            assert daemon.http("POST", f"/images/{host}/team/app/push?tag=1", headers=NOBODY).status == 200
            environment = {**os.environ, "COVE_HOST": daemon.host, "SOURCE_DATE_EPOCH": "1700000000"}
            done = subprocess.run(
                [str(ROOT / "bin" / "cove"), "sbom", "--push", name],
                env=environment, capture_output=True, text=True, timeout=60,
            )  # fmt: skip
            match = re.fullmatch(r"(sha256:[0-9a-f]{64}) refers to (sha256:[0-9a-f]{64})\n", done.stdout)
            assert match, done.stderr

            def get(what: str) -> Any:
                accept = "application/vnd.oci.image.manifest.v1+json, application/vnd.oci.image.index.v1+json"
                request = urllib.request.Request(
                    f"http://{host}/v2/team/app/{what}", headers={"Accept": accept}
                )
                with urllib.request.urlopen(request) as answer:
                    return json.load(answer)

            # docker-registry 2.8 lists no referrers: the index under the image's tag does.
            listed = get("manifests/" + match[2].replace(":", "-"))["manifests"]
            assert [(one["digest"], one["artifactType"]) for one in listed] == [
                (match[1], "application/vnd.cyclonedx+json")
            ]
            manifest = get(f"manifests/{match[1]}")
            assert manifest["subject"]["digest"] == match[2]
            bill_of = get(f"blobs/{manifest['layers'][0]['digest']}")
            assert bill_of["specVersion"] == "1.6" and bill_of["components"][1]["name"] == "a"
            assert daemon.http("POST", path).status == 200
            assert len(get("manifests/" + match[2].replace(":", "-"))["manifests"]) == 2
        finally:
            daemon.http("DELETE", f"/images/{name}?force=1")
