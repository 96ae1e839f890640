"""Take vulnerabilities in from what a person sends: OSV's entries, a zip of them, Debian's tracker, or a tar of those.

Pure but for the scratch file that a zip is put into, which the caller hands in: a zip's directory is at its end. What
each piece is, its first bytes tell. The first thing that is wrong ends the import; the sentence names file and field.
"""

from __future__ import annotations

import io
import tarfile
import zipfile
import zlib
from collections.abc import Callable
from typing import Any, BinaryIO

from cove.scan.debiantracker import looks_like, parse_tracker
from cove.scan.model import MIB, Malformed, clean
from cove.scan.osv import ENTRY_MAX, parse_entry
from cove.scan.vulndb import OSV, TRACKER, Writer

DOCUMENT_MAX = 1024 * MIB  # the tracker has some 70 MiB
ENTRIES_MAX = 5_000_000
TOTAL_MAX = 64 * 1024 * MIB
_PIECE = 1 * MIB
_PEEK = 1024

Receive = Callable[[], bytes]  # the next bytes of the stream, b"" at its end


class Stream(io.RawIOBase):
    """What is received, as a file that can be read once, from its start."""

    def __init__(self, receive: Receive) -> None:
        self._receive = receive
        self._rest = b""

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: object) -> int:
        view = memoryview(buffer)  # type: ignore[arg-type]
        if not self._rest:
            self._rest = self._receive()
        taken = self._rest[: len(view)]
        view[: len(taken)] = taken
        self._rest = self._rest[len(taken) :]
        return len(taken)


class Importer:
    """One import: `take` a stream, then commit the writer."""

    def __init__(self, writer: Writer, scratch: BinaryIO) -> None:
        self._writer = writer
        self._scratch = scratch
        self._left = TOTAL_MAX
        self._forgotten = False

    def take(self, receive: Receive) -> None:
        """Take in everything that is received. Malformed."""
        stream = io.BufferedReader(Stream(receive), _PIECE)
        head = stream.peek(_PEEK)
        if not head:
            raise Malformed(
                "nothing was sent: name a file of OSV entries, a zip of them, or Debian's tracker"
            )
        if head[257:262] == b"ustar" or not head[0]:  # an empty archive is zeros
            self._take_tar(stream)
        else:
            self._take_file("the file", stream)

    def _take_tar(self, stream: io.BufferedReader[Any]) -> None:
        found = False
        try:
            with tarfile.open(fileobj=stream, mode="r|", errorlevel=2) as archive:
                for member in archive:
                    if not member.isreg():
                        continue
                    content = archive.extractfile(member)
                    assert content is not None
                    found = True
                    self._take_file(clean(member.name), io.BufferedReader(content, _PIECE))
        except (tarfile.TarError, zlib.error, EOFError, ValueError, RecursionError) as error:
            raise Malformed(f"the archive is damaged: {clean(str(error))}") from None
        if not found:
            raise Malformed("there is no file in it: expected *.json and *.zip")

    def _take_file(self, name: str, stream: io.BufferedReader[Any]) -> None:
        head = stream.peek(_PEEK)
        if head[:4] in (b"PK\x03\x04", b"PK\x05\x06"):
            self._take_zip(name, stream)
            return
        document = self._whole(name, stream, DOCUMENT_MAX)
        if looks_like(head):
            self._take_tracker(name, document)
        else:
            self._take_entry(name, document)

    def _whole(self, name: str, stream: BinaryIO | io.BufferedReader[Any], limit: int) -> bytes:
        data = stream.read(limit + 1)
        if len(data) > limit:
            raise Malformed(f"{name}: it is larger than {limit} bytes")
        self._spend(name, len(data))
        return data

    def _spend(self, name: str, count: int) -> None:
        self._left -= count
        if self._left < 0:
            raise Malformed(f"{name}: all files together are larger than {TOTAL_MAX} bytes")

    def _take_entry(self, name: str, data: bytes) -> None:
        try:
            self._writer.put(OSV, parse_entry(data))
        except Malformed as error:
            raise Malformed(f"{name}: {error}") from None
        if self._writer.read > ENTRIES_MAX:
            raise Malformed(f"{name}: there are more than {ENTRIES_MAX} entries")

    def _take_tracker(self, name: str, data: bytes) -> None:
        if not self._forgotten:
            self._forgotten = True
            self._writer.forget(TRACKER)
        try:
            for package, advisory in parse_tracker(data):
                self._writer.put(TRACKER, advisory, key=f"{advisory.id} {package}")
                if self._writer.read > ENTRIES_MAX:
                    raise Malformed(f"there are more than {ENTRIES_MAX} entries")
        except Malformed as error:
            raise Malformed(f"{name}: {error}") from None

    def _take_zip(self, name: str, stream: io.BufferedReader[Any]) -> None:
        self._scratch.seek(0)
        self._scratch.truncate()
        while piece := stream.read(_PIECE):
            self._spend(name, len(piece))
            self._scratch.write(piece)
        self._scratch.flush()
        try:
            with zipfile.ZipFile(self._scratch) as archive:
                for member in archive.infolist():
                    if member.is_dir() or not member.filename.endswith(".json"):
                        continue
                    where = f"{name}: {clean(member.filename)}"
                    with archive.open(member) as content:
                        self._take_entry(where, self._whole(where, content, ENTRY_MAX))  # type: ignore[arg-type]
        except (
            zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, RuntimeError, ValueError, LookupError,
            OverflowError,
        ) as error:  # fmt: skip
            raise Malformed(f"{name}: the zip archive is damaged: {clean(str(error))}") from None
