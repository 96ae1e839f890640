"""The files of a log from a position on, record by record, across rotations.

What is rotated away before it was read is lost and counted; no descriptor keeps it, for a log has a bound.
Order that must hold: whether the file was rotated is noted before it is read to its end.
"""

from __future__ import annotations

from pathlib import Path

from cove.logs.files import MOST_BLOCK_BYTES, FileKey, LogFile, is_current, open_files
from cove.logs.records import iter_records
from cove.logs.shipping.cut import Chunk
from cove.logs.shipping.position import Mark, Position

BLOCK_BYTES = 64 << 10
_NAME = "log"


class Trail:
    """The reading end of one log in the local format. `close` it."""

    def __init__(self, directory: Path, position: Position | None) -> None:
        """Raises HostError when files can't be opened."""
        self._directory = directory
        self._files: list[LogFile] = []  # open ones, oldest first; the first is being read
        self._key = FileKey(0, "")
        self._offset = 0
        self._skips: dict[
            int, tuple[int, Mark]
        ] = {}  # by stream: what was sent already, and in which of the files
        self.lost_bytes = 0  # at least
        self._open()
        if position is not None:
            self._resume(position)

    def close(self) -> None:
        self._drop(len(self._files))

    @property
    def behind(self) -> bool:
        """Newer files than the one that is being read are open already."""
        return len(self._files) > 1

    def rotated(self) -> bool:
        """The file that is being read, the last of the open ones, won't grow any more."""
        return len(self._files) == 1 and not is_current(self._directory, _NAME, self._files[0])

    def read(self, *, final: bool) -> list[Chunk]:
        """Some records, as many as a block has; none: what there is was read. `final`: of the last open file, too,
        there is nothing more to come."""
        if not self._files:
            self._open()
        self.check_lost()
        while self._files:
            file, ended = self._files[0], final or self.behind
            size = BLOCK_BYTES
            while data := file.read(size, self._offset):
                if not self._key.head:
                    self._key = file.key()
                chunks, taken = self._parse(data, final=ended and len(data) < size)
                self._offset += taken
                if taken:
                    if chunks:
                        return chunks
                    size = BLOCK_BYTES
                elif len(data) < size:
                    break
                elif size < MOST_BLOCK_BYTES:
                    size *= 4
                else:  # damage without an end
                    self._offset += len(data)
            if not self.behind:
                return []
            self._drop(1)
        return []

    def advance(self) -> None:
        """The file was rotated and has been read: go on with the one after it."""
        old = self._files[0]
        found = open_files(self._directory, _NAME)
        index = next((at for at, file in enumerate(found) if file.is_same(old)), -1)
        for file in found[: index + 1]:
            file.close()
        if index + 1 < len(found):
            self.close()
            self._take(found[index + 1 :])

    def check_lost(self) -> None:
        """Let go of a file that was rotated away, and count what had not been read."""
        while self._files and self._files[0].is_gone():
            old, offset = self._files[0], self._offset
            found = open_files(self._directory, _NAME)
            index = next((at for at, file in enumerate(found) if file.is_same(old)), -1)
            for file in found[: max(index, 0)]:
                file.close()
            if index < 0:
                self.lost_bytes += max(0, old.size() - offset)
                self._skips.clear()
                self.close()
                self._take(found)
            else:  # compressed meanwhile
                self.close()
                self._take(found[index:])
                self._offset = offset

    def _open(self) -> None:
        self._take(open_files(self._directory, _NAME))

    def _take(self, files: list[LogFile]) -> None:
        self._files = files
        self._offset = 0
        self._key = files[0].key() if files else FileKey(0, "")

    def _drop(self, count: int) -> None:
        for file in self._files[:count]:
            file.close()
        if count:
            self._take(self._files[count:])
            self._skips = {stream: (index - count, mark) for stream, (index, mark) in self._skips.items()}

    def _resume(self, position: Position) -> None:
        keys = [file.key() for file in self._files]
        found = {
            stream: (keys.index(mark.file), mark)
            for stream, mark in position.marks.items()
            if mark.file in keys
        }
        if len(found) < len(position.marks):
            self.lost_bytes += 1  # how much, nobody knows any more
        if found and len(found) == len(position.marks):
            index, offset = min((index, mark.offset) for index, mark in found.values())
            self._skips = found
            self._drop(index)
            self._offset = offset

    def _parse(self, data: bytes, *, final: bool) -> tuple[list[Chunk], int]:
        chunks = []
        taken = 0
        for start, stream, time_ns, payload in iter_records(data, final):
            offset = self._offset + start
            taken = start + len(payload) + 20
            skip = self._sent_of(stream, offset) if self._skips else 0
            if skip < len(payload):
                chunks.append(Chunk(self._key, offset, self._offset + taken, skip, stream, time_ns, payload))
        return chunks, len(data) if final else taken

    def _sent_of(self, stream: int, offset: int) -> int:
        """How many bytes of the payload of the record at `offset` were sent before."""
        index, mark = self._skips.get(stream, (-1, None))
        if mark is None or index < 0 or (index == 0 and offset > mark.offset):
            self._skips.pop(stream, None)
            return 0
        if index > 0 or offset < mark.offset:
            return 1 << 30
        return mark.skip
