"""What dpkg and apk have installed. Pure.

dpkg: paragraphs of `Field: value` (deb-control(5)); a package counts while its files are there, so those of state
config-files and not-installed don't. Images without dpkg (distroless) keep a paragraph a file in status.d. apk: the
same idea with one letter a field (wiki.alpinelinux.org/wiki/Apk_spec, "installed").
"""

from __future__ import annotations

import re
from collections.abc import Iterator

from cove.scan.model import MAX_PACKAGES, Malformed, Package, clean

_SOURCE = re.compile(r"([^\s(]+)\s*(?:\(([^)]*)\))?")
_GONE = ("not-installed", "config-files")
_WANTED = frozenset((b"package", b"version", b"architecture", b"source", b"status"))


def parse_dpkg(data: bytes) -> Iterator[Package]:
    """The packages of a status file, or of one of status.d. Malformed."""
    count = 0
    for fields in _paragraphs(data):
        name, version = clean(fields.get(b"package", b"")), clean(fields.get(b"version", b""))
        status = clean(fields.get(b"status", b"")).split()
        if not name or not version or (status and status[-1] in _GONE):
            continue
        count += 1
        if count > MAX_PACKAGES:
            raise Malformed(f"it names more than {MAX_PACKAGES} packages")
        source = _SOURCE.match(clean(fields.get(b"source", b"")))
        yield Package(
            kind="deb",
            name=name,
            version=version,
            architecture=clean(fields.get(b"architecture", b"")),
            source=source[1] if source else name,
            source_version=(source[2] or version) if source else version,
        )


def _paragraphs(data: bytes) -> Iterator[dict[bytes, bytes]]:
    fields: dict[bytes, bytes] = {}
    for line in data.split(b"\n"):
        if not line.strip():
            if fields:
                yield fields
                fields = {}
            continue
        if line[:1] in b" \t":
            continue
        name, colon, value = line.partition(b":")
        lower = name.lower()
        if colon and lower in _WANTED and lower not in fields:
            fields[lower] = value[:4096]
    if fields:
        yield fields


def parse_apk(data: bytes) -> Iterator[Package]:
    """The packages of apk's `installed`. Malformed."""
    count = 0
    for paragraph in data.split(b"\n\n"):
        fields: dict[bytes, bytes] = {}
        for line in paragraph.split(b"\n"):
            if line[1:2] == b":" and line[:1] in b"PVALo" and line[:1] not in fields:
                fields[line[:1]] = line[2:4096]
        name, version = clean(fields.get(b"P", b"")), clean(fields.get(b"V", b""))
        if not name or not version:
            continue
        count += 1
        if count > MAX_PACKAGES:
            raise Malformed(f"it names more than {MAX_PACKAGES} packages")
        yield Package(
            kind="apk",
            name=name,
            version=version,
            architecture=clean(fields.get(b"A", b"")),
            source=clean(fields.get(b"o", b"")) or name,
            source_version=version,
            license=clean(fields.get(b"L", b"")),
        )


def apk_paths(data: bytes) -> Iterator[str]:
    """Every file that apk installed, relative to the root."""
    directory = ""
    for line in data.split(b"\n"):
        if line[:2] == b"F:":
            directory = line[2:].decode("utf-8", "surrogateescape")
        elif line[:2] == b"R:":
            name = line[2:].decode("utf-8", "surrogateescape")
            yield f"{directory}/{name}" if directory else name


def listed_paths(data: bytes) -> Iterator[str]:
    """Every path of dpkg's info/*.list, relative to the root."""
    for line in data.decode("utf-8", "surrogateescape").split("\n"):
        if line:
            yield line[1:] if line[0] == "/" else line
