"""Entries of vulnerability databases for tests, each with the facts of a real one.

Sources: osv.dev/vulnerability/ID for those of OSV, security-tracker.debian.org/tracker/CVE for Debian's.
"""

from __future__ import annotations

import io
import json
import tarfile
import zipfile
from typing import Any

Json = dict[str, Any]


def entry(id: str, *affected: Json, modified: str = "2024-01-01T00:00:00Z", **more: Any) -> Json:
    return {"schema_version": "1.6.0", "id": id, "modified": modified, "affected": list(affected), **more}


def package(ecosystem: str, name: str, *events: Json, kind: str = "ECOSYSTEM", **more: Any) -> Json:
    ranges = [{"type": kind, "events": list(events)}] if events else []
    return {"package": {"ecosystem": ecosystem, "name": name}, "ranges": ranges, **more}


def since(introduced: str, fixed: str = "") -> tuple[Json, ...]:
    return ({"introduced": introduced}, {"fixed": fixed}) if fixed else ({"introduced": introduced},)


def vector(score: str) -> list[Json]:
    return [{"type": "CVSS_V4" if score.startswith("CVSS:4") else "CVSS_V3", "score": score}]


LOG4J = "org.apache.logging.log4j:log4j-core"
LOG4SHELL = entry(
    "GHSA-jfh8-c2jp-5v3r",
    package("Maven", LOG4J, *since("2.13.0", "2.15.0")),
    package("Maven", LOG4J, *since("2.0-beta9", "2.3.1")),
    package("Maven", LOG4J, *since("2.4", "2.12.2")),
    aliases=["CVE-2021-44228"],
    summary="Remote code injection in Log4j",
    severity=vector("CVSS:3.1/AV:N/AC:L/PR:N/UI:N/S:C/C:H/I:H/A:H"),
    references=[{"type": "ADVISORY", "url": "https://nvd.nist.gov/vuln/detail/CVE-2021-44228"}],
    database_specific={"severity": "CRITICAL"},
)
FLASK = entry(
    "PYSEC-2023-62",
    package(
        "PyPI", "flask", *since("2.3.0", "2.3.2"), *since("0", "2.2.5"), versions=["0.1", "2.2.4", "2.3.1"]
    ),
    aliases=["CVE-2023-30861", "GHSA-m2qf-hxjv-5gpq"],
    details="Flask is a lightweight WSGI web application framework.",
)
FLASK_GHSA = entry(
    "GHSA-m2qf-hxjv-5gpq",
    package("PyPI", "Flask", *since("0", "2.2.5")),
    package("PyPI", "Flask", *since("2.3.0", "2.3.2")),
    aliases=["CVE-2023-30861", "PYSEC-2023-62"],
    summary="Flask vulnerable to possible disclosure of permanent session cookie",
    severity=vector("CVSS:3.1/AV:N/AC:L/PR:N/UI:N/S:U/C:H/I:N/A:N"),
)
GO_HTTP2 = entry(
    "GO-2023-1571",
    package("Go", "stdlib", *since("0", "1.19.6"), *since("1.20.0-0", "1.20.1"), kind="SEMVER"),
    package("Go", "golang.org/x/net", *since("0", "0.7.0"), kind="SEMVER"),
    aliases=["CVE-2022-41723", "GHSA-vvpx-j8f3-3w6h"],
    summary="Denial of service via crafted HTTP/2 stream in net/http and golang.org/x/net",
)
LODASH = entry(
    "GHSA-35jh-r3h4-6jhm",
    package("npm", "lodash", *since("0", "4.17.21"), kind="SEMVER"),
    aliases=["CVE-2021-23337"],
    summary="Command Injection in lodash",
    severity=vector("CVSS:3.1/AV:N/AC:L/PR:H/UI:N/S:U/C:H/I:H/A:H"),
)
TOKIO = entry(
    "RUSTSEC-2023-0001",
    package("crates.io", "tokio", *since("1.7.0", "1.18.4"), *since("1.19.0", "1.20.3"), kind="SEMVER"),
    aliases=["CVE-2023-22466", "GHSA-7rrj-xr53-82p7"],
    summary="reject_remote_clients Configuration corruption",
)
OPENSSL_ALPINE = entry(
    "ALPINE-CVE-2023-5363",
    package("Alpine:v3.18", "openssl", *since("0", "3.1.4-r0")),
    package("Alpine:v3.17", "openssl", *since("0", "3.0.12-r0")),
    upstream=["CVE-2023-5363"],
    severity=vector("CVSS:3.1/AV:N/AC:L/PR:N/UI:N/S:U/C:H/I:N/A:N"),
)
CURL_DSA = entry(
    "DSA-5523-1",
    package("Debian:12", "curl", *since("0", "7.88.1-10+deb12u4")),
    package("Debian:11", "curl", *since("0", "7.74.0-1.3+deb11u10")),
    upstream=["CVE-2023-38545", "CVE-2023-38546"],
    summary="curl - security update",
)
CURL_ROCKY = entry(
    "RLSA-2023:5763",
    package("Rocky Linux:9", "curl", *since("0", "0:7.76.1-23.el9_2.4")),
    related=["CVE-2023-38545", "CVE-2023-38546"],
    summary="Important: curl security update",
    severity=vector("CVSS:3.1/AV:N/AC:H/PR:N/UI:N/S:U/C:H/I:H/A:H"),
)
ENTRIES = (
    LOG4SHELL, FLASK, FLASK_GHSA, GO_HTTP2, LODASH, TOKIO, OPENSSL_ALPINE, CURL_DSA, CURL_ROCKY,
)  # fmt: skip

TRACKER: Json = {
    "curl": {
        "CVE-2023-38545": {
            "description": "This flaw makes curl overflow a heap based buffer in the SOCKS5 proxy handshake.",
            "scope": "local",
            "releases": {
                "bookworm": {
                    "status": "resolved",
                    "repositories": {"bookworm": "7.88.1-10+deb12u12"},
                    "fixed_version": "7.88.1-10+deb12u4",
                    "urgency": "not yet assigned",
                },
                "buster": {"status": "resolved", "fixed_version": "0", "urgency": "not yet assigned"},
                "sid": {"status": "resolved", "fixed_version": "8.4.0-1", "urgency": "not yet assigned"},
            },
        },
        "CVE-2024-2379": {
            "description": "libcurl skips the certificate verification for a QUIC connection under certain conditions",
            "releases": {
                "bookworm": {"status": "resolved", "fixed_version": "0", "urgency": "unimportant"},
            },
        },
    },
    "util-linux": {
        "CVE-2022-0563": {
            "description": "A flaw was found in the util-linux chfn and chsh utilities when compiled with Readline.",
            "releases": {
                "bookworm": {
                    "status": "open",
                    "repositories": {"bookworm": "2.38.1-5+deb12u3"},
                    "urgency": "unimportant",
                    "nodsa": "Minor issue",
                },
            },
        }
    },
}


def zipped(*entries: Json) -> bytes:
    """As OSV's all.zip: a file for each entry."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for one in entries:
            archive.writestr(f"{one['id']}.json", json.dumps(one))
    return buffer.getvalue()


def tarred(files: dict[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        for name, data in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return buffer.getvalue()
