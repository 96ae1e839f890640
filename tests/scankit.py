"""Files of a layer in memory, for tests of what is found in them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from cove.scan.layer import LayerScanner
from cove.scan.model import LayerScan


class MemoryFile:
    """A cove.scan.model.LayerFile of bytes."""

    def __init__(self, path: str, data: bytes, mode: int = 0o100644) -> None:
        self.path, self.mode, self._data = path, mode, data

    @property
    def size(self) -> int:
        return len(self._data)

    def read(self, offset: int, length: int) -> bytes:
        return self._data[offset : offset + length]


def scan(files: Mapping[str, bytes], *, mode: int = 0o100755) -> LayerScan:
    """What is found in a layer of these files."""
    scanner = LayerScanner()
    for path, data in files.items():
        scanner.look(MemoryFile(path, data, mode), data[:4])
    return scanner.result()


def scan_file(path: Path, name: str = "") -> LayerScan:
    """What is found in a real file, put at `name`."""
    return scan({name or path.name: path.read_bytes()})


def names(result: LayerScan) -> list[str]:
    """`kind name version` of every package that was found."""
    return [f"{p.kind} {p.name} {p.version}" for file in result.files for p in file.packages]
