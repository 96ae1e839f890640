"""The values of this room: files that are looked at, packages, what one layer has. No I/O."""

from __future__ import annotations

from typing import Protocol

import msgspec

MIB = 1 << 20
FORMAT = 2  # of a layer's result, as it is kept: another number makes it be looked at again
TEXT_MAX = 512  # characters of a name, a version, a licence
MAX_PACKAGES = 100_000  # of one layer
MAX_NOTES = 100


class Wire(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Base of what is kept and sent."""


class Package(Wire, frozen=True, kw_only=True):
    """One installed package. `kind` is its package URL's type (deb, apk, rpm, pypi, npm, golang, cargo, gem, maven);
    `name` is as OSV has it: `group:artifact` of Maven, `@scope/name` of npm, a module's path of Go."""

    kind: str
    name: str
    version: str
    architecture: str = ""
    source: str = ""  # what it was built from, where that is named otherwise
    source_version: str = ""
    license: str = ""
    module: str = ""  # rpm's modularity label
    path: str = ""  # the file that says so, without a leading slash
    owner: str = ""  # the distribution's package that brought the file, e.g. `deb`


class Distribution(Wire, frozen=True, kw_only=True):
    """What /etc/os-release says (os-release(5))."""

    id: str = ""
    version: str = ""
    name: str = ""
    like: tuple[str, ...] = ()
    codename: str = ""
    cpe: str = ""


class Found(Wire, frozen=True, kw_only=True):
    """A file that tells of packages, or of the distribution."""

    path: str
    packages: tuple[Package, ...] = ()
    distribution: Distribution | None = None


class Secret(Wire, frozen=True, kw_only=True):
    """A secret that a file or a setting holds; `masked` shows as much of it as says which one it is."""

    rule: str
    path: str
    line: int = 0
    masked: str = ""


class LayerScan(Wire, frozen=True, kw_only=True):
    """What one layer has, apart from any other: kept with the layer."""

    format: int = FORMAT
    files: tuple[Found, ...] = ()
    secrets: tuple[Secret, ...] = ()
    notes: tuple[str, ...] = ()  # what couldn't be read, and why
    seen: int = 0  # files looked at


class Subject(Wire, frozen=True, kw_only=True):
    """The image: what it is called here, and what each of its layers came from."""

    name: str
    id: str
    manifest: str
    architecture: str = ""
    diff_ids: tuple[str, ...] = ()
    created_by: tuple[str, ...] = ()  # by layer; shorter where the history doesn't say


class LayerFile(Protocol):
    """A regular file of a layer."""

    @property
    def path(self) -> str:
        """Relative to the layer, with surrogates for what isn't UTF-8."""

    @property
    def mode(self) -> int: ...
    @property
    def size(self) -> int: ...

    def read(self, offset: int, length: int) -> bytes:
        """Up to so many bytes from there; fewer at the end. OSError."""


class Malformed(Exception):
    """A file isn't what its name says, or is larger than what is read of its kind; the sentence says which."""


def read_all(file: LayerFile, limit: int) -> bytes:
    """A whole file of up to `limit` bytes. Malformed, OSError."""
    if file.size > limit:
        raise Malformed(f"it has {file.size} bytes; up to {limit} are read of its kind")
    return file.read(0, limit)


def clean(value: object) -> str:
    """A stranger's text for a name, a version or a licence: one line, printable, of bounded length."""
    if isinstance(value, bytes):
        value = value[: 4 * TEXT_MAX].decode("utf-8", "replace")
    if not isinstance(value, str):
        return ""
    text = value[: 2 * TEXT_MAX].strip()
    if not text.isprintable():
        text = "".join(letter for letter in text if letter.isprintable()).strip()
    return text[:TEXT_MAX]
