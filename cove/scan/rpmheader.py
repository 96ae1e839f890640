"""The header of an installed rpm: a package and the files that it brought. Pure, bounded.

An index of 16 bytes an entry (tag, type, offset, count, big-endian), then the data (rpm.org, "RPM V4 package format",
header structure). In the database the magic in front is left out.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator

from cove.scan.model import MIB, Malformed, Package, clean

HEADER_MAX = 64 * MIB
_ENTRIES_MAX = 65_536
_NAME, _VERSION, _RELEASE, _EPOCH, _LICENSE, _ARCH, _SOURCE_RPM = 1000, 1001, 1002, 1003, 1014, 1022, 1044
_DIRECTORY_INDEXES, _BASE_NAMES, _DIRECTORY_NAMES, _MODULARITY = 1116, 1117, 1118, 5096
_INT32, _STRING, _STRINGS, _TEXTS = 4, 6, 8, 9
_FILES_MAX = 1_000_000


class Header:
    """One package's header."""

    def __init__(self, data: bytes) -> None:
        if len(data) < 8:
            raise Malformed("an rpm header is cut off")
        count, length = struct.unpack_from(">II", data)
        if not 0 < count <= _ENTRIES_MAX or length > HEADER_MAX or 8 + 16 * count + length > len(data):
            raise Malformed(f"an rpm header claims {count} entries and {length} bytes in {len(data)}")
        self._data = data[8 + 16 * count : 8 + 16 * count + length]
        self._index: dict[int, tuple[int, int, int]] = {}
        for tag, kind, offset, number in struct.iter_unpack(">IIiI", data[8 : 8 + 16 * count]):
            self._index.setdefault(tag, (kind, offset, number))

    def text(self, tag: int) -> str:
        """A text, or the first of several; "" where the tag is missing."""
        return clean(next(iter(self._strings(tag, 1)), b""))

    def _strings(self, tag: int, most: int) -> list[bytes]:
        kind, offset, number = self._index.get(tag, (0, 0, 0))
        if kind not in (_STRING, _STRINGS, _TEXTS) or not 0 <= offset < len(self._data):
            return []
        wanted = 1 if kind == _STRING else min(number, most)
        found = self._data[offset:].split(b"\0", wanted)
        return found[:wanted]

    def numbers(self, tag: int) -> list[int]:
        """The 32-bit numbers of a tag."""
        kind, offset, number = self._index.get(tag, (0, 0, 0))
        if kind != _INT32 or offset < 0 or number > _FILES_MAX or offset + 4 * number > len(self._data):
            return []
        return list(struct.unpack_from(f">{number}I", self._data, offset))

    def package(self) -> Package | None:
        """The package; None for what isn't one, as the keys that rpm keeps beside packages."""
        name, version, release = self.text(_NAME), self.text(_VERSION), self.text(_RELEASE)
        if not name or not version or name == "gpg-pubkey":
            return None
        epoch = self.numbers(_EPOCH)
        whole = f"{version}-{release}" if release else version
        if epoch and epoch[0]:
            whole = f"{epoch[0]}:{whole}"
        source = self.text(_SOURCE_RPM).removesuffix(".rpm").rpartition(".")[0]
        source_name, _, source_release = source.rpartition("-")
        source_name, _, source_version = source_name.rpartition("-")
        return Package(
            kind="rpm",
            name=name,
            version=whole,
            architecture=self.text(_ARCH),
            source=source_name or name,
            source_version=f"{source_version}-{source_release}" if source_version else whole,
            license=self.text(_LICENSE),
            module=self.text(_MODULARITY),
        )

    def paths(self) -> Iterator[str]:
        """The files that the package brought, relative to the root."""
        names = self._strings(_BASE_NAMES, _FILES_MAX)
        directories = self._strings(_DIRECTORY_NAMES, _FILES_MAX)
        for name, index in zip(names, self.numbers(_DIRECTORY_INDEXES), strict=False):
            if index < len(directories):
                yield (directories[index] + name).decode("utf-8", "surrogateescape").lstrip("/")
