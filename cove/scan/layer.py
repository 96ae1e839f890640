"""Look at one layer: which of its files tell of packages, and what they say. Pure over `LayerFile`s.

A layer is looked at apart from any other, so that the result is kept with it. What can't be read is a note, and the
rest is read all the same.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator

import msgspec

from cove.scan import binaries, debs, jars, languages, rpmdb
from cove.scan.distribution import parse_os_release
from cove.scan.elf import Elf, is_elf
from cove.scan.model import (
    MAX_NOTES,
    MAX_PACKAGES,
    MIB,
    Found,
    LayerFile,
    LayerScan,
    Malformed,
    Package,
    clean,
    read_all,
)
from cove.scan.rpmheader import Header

_DPKG, _APK, _RPM, _RELEASE = "dpkg", "apk", "rpm", "os-release"
_RPM_DIRECTORIES = ("var/lib/rpm", "usr/lib/sysimage/rpm", "usr/share/rpm")
_APK_FILES = ("lib/apk/db/installed", "usr/lib/apk/db/installed")
_NPM = re.compile(r"(?:^|/)node_modules/(?:@[^/]+/)?[^/]+/package\.json$")
_LISTS = re.compile(r"var/lib/dpkg/info/[^/]+\.list")
_PROGRAM_LEAST = 4096
_LISTS_MAX = 256 * MIB  # of all lists of a layer
_SYSTEM = (_DPKG, _APK, _RPM)

Parser = Callable[[LayerFile], Iterable[Package]]


def _whole(parse: Callable[[bytes], Iterable[Package]], limit: int) -> Parser:
    return lambda file: parse(read_all(file, limit))


_PARSERS: dict[str, Parser] = {
    _DPKG: _whole(debs.parse_dpkg, 128 * MIB),
    _APK: _whole(debs.parse_apk, 128 * MIB),
    "python": lambda file: languages.parse_python(file.read(0, 256 << 10)),
    "npm": _whole(languages.parse_npm, 4 * MIB),
    "gem": lambda file: languages.parse_gemspec(file.read(0, 64 << 10)),
    "cargo": _whole(languages.parse_cargo_lock, 16 * MIB),
    "jar": jars.read_jar,
}


def kind_of(path: str) -> str:
    """What a file of that name tells of; "" for most."""
    directory, _, name = path.rpartition("/")
    if name == "status" and directory == "var/lib/dpkg":
        return _DPKG
    if directory == "var/lib/dpkg/status.d":
        return _DPKG if "." not in name or not name.endswith((".md5sums", ".list", ".conffiles")) else ""
    if name == "installed":
        return _APK if path in _APK_FILES else ""
    if name in ("rpmdb.sqlite", "Packages.db", "Packages"):
        return _RPM if directory in _RPM_DIRECTORIES else ""
    if name == "os-release":
        return _RELEASE if directory in ("etc", "usr/lib") else ""
    if name == "METADATA":
        return "python" if directory.endswith(".dist-info") else ""
    if name == "PKG-INFO":
        return "python" if directory.endswith(".egg-info") else ""
    if name == "package.json":
        return "npm" if _NPM.search(path) else ""
    if name == "Cargo.lock":
        return "cargo"
    if name.endswith(".egg-info"):
        return "python"
    if name.endswith(".gemspec"):
        return "gem" if directory.endswith("/specifications") or "/specifications/" in path else ""
    return "jar" if name.endswith(jars.ENDINGS) else ""


class LayerScanner:
    """Takes a layer's files one after the other; `result` at the end."""

    def __init__(self) -> None:
        self._found: list[Found] = []
        self._lists: list[LayerFile] = []
        self._owned: dict[str, set[str]] = {}
        self._notes: list[str] = []
        self._packages = 0
        self._seen = 0

    def look(self, file: LayerFile, head: bytes) -> None:
        """Look at one file, which begins with `head` (four bytes are enough)."""
        self._seen += 1
        if _LISTS.fullmatch(file.path):
            self._lists.append(file)
            return
        kind = kind_of(file.path)
        program = not kind and file.mode & 0o111 and file.size >= _PROGRAM_LEAST and is_elf(head)
        if not kind and not program:
            return
        try:
            if kind == _RELEASE:
                found = Found(path=file.path, distribution=parse_os_release(file.read(0, 64 << 10)))
            elif kind == _RPM:
                found = self._rpm(file)
            else:
                packages = tuple(self._take(_program(file) if program else _PARSERS[kind](file)))
                found = Found(path=file.path, packages=packages)
                if kind == _APK:
                    self._own("apk", debs.apk_paths(read_all(file, 128 * MIB)))
        except (Malformed, OSError) as error:
            self.note(file.path, str(error) if isinstance(error, Malformed) else str(error.strerror))
            return
        if found.packages or found.distribution is not None or kind in _SYSTEM:
            self._found.append(found)

    def note(self, path: str, sentence: str) -> None:
        """Keep that a file couldn't be read."""
        if len(self._notes) < MAX_NOTES:
            self._notes.append(f"{clean(path)}: {clean(sentence)}")

    def _take(self, packages: Iterable[Package]) -> Iterator[Package]:
        for package in packages:
            self._packages += 1
            if self._packages > MAX_PACKAGES:
                raise Malformed(f"the layer has more than {MAX_PACKAGES} packages")
            yield package

    def _rpm(self, file: LayerFile) -> Found:
        name = file.path.rpartition("/")[2]
        packages: list[Package] = []
        for blob in rpmdb.read_database(name, read_all(file, rpmdb.DATABASE_MAX)):
            header = Header(blob)
            package = header.package()
            if package is not None:
                packages += self._take((package,))
                self._own("rpm", header.paths())
        return Found(path=file.path, packages=tuple(packages))

    def _own(self, kind: str, paths: Iterable[str]) -> None:
        """Remember those paths that may turn out to tell of packages of a language."""
        owned = self._owned.setdefault(kind, set())
        for path in paths:
            if len(owned) < 1_000_000 and (kind_of(path) or "bin/" in path or "lib" in path):
                owned.add(path)

    def _mark_owned(self, found: list[Found]) -> list[Found]:
        """Say of a language's package that the distribution's package brought its file."""
        wanted = {one.path for one in found if any(p.kind not in ("deb", "apk", "rpm") for p in one.packages)}
        if not wanted:
            return found
        read = 0
        for file in self._lists:
            read += file.size
            if read > _LISTS_MAX:
                self.note("var/lib/dpkg/info", f"its lists have more than {_LISTS_MAX} bytes")
                break
            try:
                owned = wanted.intersection(_aliases(debs.listed_paths(file.read(0, file.size))))
            except OSError as error:
                self.note(file.path, str(error.strerror))
                continue
            self._owned.setdefault("deb", set()).update(owned)
        return [self._with_owner(one) for one in found]

    def _with_owner(self, found: Found) -> Found:
        owner = next((kind for kind, paths in self._owned.items() if found.path in paths), "")
        if not owner or any(package.kind == owner for package in found.packages):
            return found
        packages = tuple(msgspec.structs.replace(package, owner=owner) for package in found.packages)
        return msgspec.structs.replace(found, packages=packages)

    def result(self) -> LayerScan:
        found = sorted(self._mark_owned(self._found), key=lambda one: one.path)
        return LayerScan(files=tuple(found), notes=tuple(self._notes), seen=self._seen)


def _aliases(paths: Iterable[str]) -> Iterator[str]:
    """Paths, and where they lie where /bin, /lib and /sbin are links into /usr (wiki.debian.org/UsrMerge)."""
    for path in paths:
        yield path
        if path.startswith(("bin/", "sbin/", "lib/", "lib64/")):
            yield f"usr/{path}"


def _program(file: LayerFile) -> Iterator[Package]:
    elf = Elf(file)
    yield from binaries.find_modules(elf)
    yield from binaries.find_crates(elf)
