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
from cove.scan.secrets import SecretFinder

_DPKG, _APK, _RPM, _RELEASE = "dpkg", "apk", "rpm", "os-release"
_RPM_DIRECTORIES = ("var/lib/rpm", "usr/lib/sysimage/rpm", "usr/share/rpm")
_APK_FILES = ("lib/apk/db/installed", "usr/lib/apk/db/installed")
_NPM = re.compile(r"(?:^|/)node_modules/(?:@[^/]+/)?[^/]+/package\.json$")
_LISTS = re.compile(r"var/lib/dpkg/info/[^/]+\.list")
_PROGRAM_LEAST = 4096
_LISTS_MAX = 256 * MIB  # of all lists of a layer
_SYSTEM = (_DPKG, _APK, _RPM)
_OWNED_MAX = 1_000_000
# Looked at before the rest: they say which files packages brought, and nobody's own secrets are in those below /usr.
FIRST = ("var/lib/dpkg/info", *(path.rpartition("/")[0] for path in _APK_FILES), *_RPM_DIRECTORIES)

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
    """Takes a layer's files one after the other, those below `FIRST` first; `result` at the end."""

    def __init__(self) -> None:
        self._found: list[Found] = []
        self._secrets = SecretFinder()
        self._lists_read = 0
        self._owned: dict[str, set[str]] = {}
        self._notes: list[str] = []
        self._packages = 0
        self._seen = 0

    def look(self, file: LayerFile, head: bytes) -> None:
        """Look at one file, which begins with `head` (four bytes are enough)."""
        self._seen += 1
        if _LISTS.fullmatch(file.path):
            self._own_listed(file)
            return
        if not (file.path.startswith("usr/") and self._is_owned(file.path)):
            try:
                self._secrets.look(file)
            except OSError as error:
                self.note(file.path, str(error.strerror))
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
        """Remember which files the distribution's packages brought."""
        owned = self._owned.setdefault(kind, set())
        for path in _aliases(paths):
            if len(owned) >= _OWNED_MAX:
                return
            owned.add(path)

    def _own_listed(self, file: LayerFile) -> None:
        self._lists_read += file.size
        if self._lists_read > _LISTS_MAX:
            return
        try:
            self._own("deb", debs.listed_paths(file.read(0, file.size)))
        except OSError as error:
            self.note(file.path, str(error.strerror))

    def _is_owned(self, path: str) -> bool:
        return any(path in paths for paths in self._owned.values())

    def _with_owner(self, found: Found) -> Found:
        owner = next((kind for kind, paths in self._owned.items() if found.path in paths), "")
        if not owner or any(package.kind == owner for package in found.packages):
            return found
        packages = tuple(msgspec.structs.replace(package, owner=owner) for package in found.packages)
        return msgspec.structs.replace(found, packages=packages)

    def result(self) -> LayerScan:
        found = sorted((self._with_owner(one) for one in self._found), key=lambda one: one.path)
        secrets = sorted(self._secrets.found, key=lambda one: (one.path, one.line, one.rule))
        return LayerScan(
            files=tuple(found), secrets=tuple(secrets), notes=tuple(self._notes), seen=self._seen
        )


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
