"""Java archives: the Maven coordinates that a jar carries, and those of jars in it. Pure, bounded.

META-INF/maven/GROUP/ARTIFACT/pom.properties says it; without one the manifest and the file's name do, where both agree
on a version. An archive in an archive (Spring Boot's, a war's libraries) is opened to a depth of two.
"""

from __future__ import annotations

import io
import re
import zipfile
import zlib
from collections.abc import Iterator

from cove.scan.model import MIB, LayerFile, Malformed, Package, clean

JAR_MAX = 512 * MIB
_INNER_MAX = 64 * MIB
_TOTAL_MAX = 256 * MIB
_MEMBERS_MAX = 200_000
_DEPTH = 2
_TEXT_MAX = 256 << 10
_NAMED = re.compile(r"(?P<name>[A-Za-z][A-Za-z0-9._-]*?)-(?P<version>\d[A-Za-z0-9._+-]*)$")
ENDINGS = (".jar", ".war", ".ear")


class _Raw(io.RawIOBase):
    """A layer's file as a stream that can seek."""

    def __init__(self, file: LayerFile) -> None:
        self._file, self._at = file, 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._at

    def seek(self, offset: int, whence: int = 0) -> int:
        base = (0, self._at, self._file.size)[whence]
        if base + offset < 0:
            raise ValueError("a place before the file's start")
        self._at = base + offset
        return self._at

    def readinto(self, buffer: object) -> int:
        view = memoryview(buffer)  # type: ignore[arg-type]
        data = self._file.read(self._at, len(view))
        view[: len(data)] = data
        self._at += len(data)
        return len(data)


class _Budget:
    """Bytes that may still be unpacked of one file."""

    def __init__(self) -> None:
        self.left = _TOTAL_MAX

    def take(self, archive: zipfile.ZipFile, member: zipfile.ZipInfo, limit: int) -> bytes:
        if member.file_size > min(limit, self.left):
            raise Malformed(
                f"{clean(member.filename)} in it has {member.file_size} bytes; up to {limit} are read"
            )
        self.left -= member.file_size
        with archive.open(member) as stream:
            return stream.read(member.file_size)


def read_jar(file: LayerFile) -> Iterator[Package]:
    """The packages in a jar. Malformed."""
    if file.size > JAR_MAX:
        raise Malformed(f"it has {file.size} bytes; up to {JAR_MAX} are read of its kind")
    try:
        yield from _read(io.BufferedReader(_Raw(file)), file.path.rpartition("/")[2], _DEPTH, _Budget())
    except (
        zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, RuntimeError, ValueError, OverflowError,
        UnicodeDecodeError, MemoryError,
    ) as error:  # fmt: skip
        raise Malformed(f"it isn't a sound zip archive: {clean(str(error))}") from None


def _read(stream: io.BufferedIOBase, name: str, depth: int, budget: _Budget) -> Iterator[Package]:
    with zipfile.ZipFile(stream) as archive:
        members = archive.infolist()
        if len(members) > _MEMBERS_MAX:
            raise Malformed(f"it has {len(members)} members; up to {_MEMBERS_MAX} are read")
        known = False
        for member in members:
            if member.filename.startswith("META-INF/maven/") and member.filename.endswith("/pom.properties"):
                for package in parse_pom_properties(budget.take(archive, member, _TEXT_MAX)):
                    known = True
                    yield package
        if not known:
            manifest = next((m for m in members if m.filename == "META-INF/MANIFEST.MF"), None)
            if manifest is not None:
                yield from _by_manifest(budget.take(archive, manifest, _TEXT_MAX), name)
        for member in members if depth else ():
            if member.filename.endswith(ENDINGS) and not member.is_dir():
                inner = io.BytesIO(budget.take(archive, member, _INNER_MAX))
                yield from _read(inner, member.filename.rpartition("/")[2], depth - 1, budget)


def parse_pom_properties(data: bytes) -> Iterator[Package]:
    """The one package that a pom.properties names."""
    fields: dict[str, str] = {}
    for line in data.decode("utf-8", "replace").split("\n"):
        key, equals, value = line.partition("=")
        if equals and key.strip() in ("groupId", "artifactId", "version"):
            fields[key.strip()] = clean(value)
    if all(fields.get(key) for key in ("groupId", "artifactId", "version")):
        yield Package(
            kind="maven", name=f"{fields['groupId']}:{fields['artifactId']}", version=fields["version"]
        )


def _by_manifest(data: bytes, name: str) -> Iterator[Package]:
    fields: dict[str, str] = {}
    for line in data.decode("utf-8", "replace").replace("\r\n ", "").replace("\n ", "").split("\n"):
        key, colon, value = line.partition(":")
        if colon:
            fields.setdefault(key.strip(), clean(value))
    match = _NAMED.fullmatch(name.rpartition(".")[0])
    version = fields.get("Implementation-Version") or fields.get("Bundle-Version") or ""
    if match and version and (version == match["version"] or version.startswith(match["version"])):
        group = fields.get("Implementation-Vendor-Id") or ""
        if not group and "." in (bundle := fields.get("Bundle-SymbolicName", "").partition(";")[0]):
            group = bundle.removesuffix(f".{match['name']}")
        if group:
            yield Package(kind="maven", name=f"{group}:{match['name']}", version=match["version"])
