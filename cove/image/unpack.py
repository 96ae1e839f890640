"""Read an archive of images: hash, decompress and unpack in one pass, inside a worker.

Three threads, joined by short queues: the *reader* takes the archive apart and decompresses, the *main*
thread puts files into layers, the *hasher* computes the digests of what the main thread unpacks. Hashing and
decompressing release the interpreter's lock, so two cores are busy. Nothing of the stream is written
twice, and nothing is stored that isn't wanted later: a plain layer leaves its files and its frame, a
compressed one its files and the blob as it came.

What the members mean isn't known before the end (manifest.json comes last), so everything that looks like
a layer is unpacked, and the daemon throws away what no manifest names.
"""

from __future__ import annotations

import hashlib
import os
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from queue import Queue
from typing import Any

from cove.image.decode import Read, compression_of, decoder
from cove.image.extract import Extractor
from cove.image.frames import FrameWriter
from cove.image.jobs import Member, Progress, Unpack
from cove.image.sandbox import sync_filesystem
from cove.image.tarformat import BLOCK, Bytes, Entry, TarReader, looks_like_tar
from cove.image.types import MIB, Limits
from cove.image.writeback import writing_back
from cove.model.errors import CoveError, HostError, Invalid

_QUEUE = 4  # chunks on their way between two threads
_HEAD = BLOCK


@dataclass(slots=True)
class _Layer:
    """A layer on its way: filled by the reader (blob's side) and by the main thread (files' side)."""

    number: int
    name: str
    total: int
    compression: str
    digest: str = ""
    size: int = 0
    consumed: int = 0  # bytes of the blob
    cut: bool = False
    chunks: Queue[Bytes | None] = field(default_factory=lambda: Queue(_QUEUE))

    def stop(self) -> None:
        """The reader failed: the main thread stops here and finds the error in the queue of layers."""
        self.cut = True
        self.chunks.put(None)


class Hasher:
    """Digests on a thread of their own."""

    def __init__(self) -> None:
        self._jobs: Queue[tuple[Any, Bytes] | threading.Event | None] = Queue(_QUEUE)
        threading.Thread(target=self._run, daemon=True).start()

    def update(self, digest: Any, chunk: Bytes) -> None:
        self._jobs.put((digest, chunk))

    def wait(self) -> None:
        """Until everything handed over so far is in."""
        done = threading.Event()
        self._jobs.put(done)
        done.wait()

    def close(self) -> None:
        """End the thread."""
        self._jobs.put(None)

    def _run(self) -> None:
        while (job := self._jobs.get()) is not None:
            if isinstance(job, threading.Event):
                job.set()
            else:
                job[0].update(job[1])


class Unpacker:
    """One job. `read` gives the stream's chunks, `report` sends progress to the daemon."""

    _report_bytes = 4 * MIB

    def __init__(self, job: Unpack, root: int, read: Read, report: Callable[[Progress], None]) -> None:
        self._job = job
        self._limits: Limits = job.limits
        self._root = root
        self._read = read
        self._report = report
        self._budget = job.budget_bytes
        self._known = frozenset(job.known)
        self._members: list[Member] = []
        self._kept = 0
        self._layers: Queue[_Layer | BaseException | None] = Queue(1)
        self._count = 0
        self._hasher = Hasher()

    def run(self) -> list[Member]:
        """Unpack everything; CoveError on the first thing that is wrong. Ends with one syncfs(2)."""
        threading.Thread(target=self._read_all, daemon=True).start()
        try:
            with writing_back(self._root):
                while (item := self._layers.get()) is not None:
                    if isinstance(item, BaseException):
                        raise item
                    self._members.append(self._unpack(item))
        finally:
            self._hasher.close()
        sync_filesystem(self._root)
        return self._members

    # --- the reader's thread ------------------------------------------------------------------

    def _read_all(self) -> None:
        try:
            self._read_stream()
            self._layers.put(None)
        except BaseException as error:  # handed to the main thread, which raises it
            self._layers.put(error)

    def _read_stream(self) -> None:
        if self._job.single:
            self._read_single()
        else:
            self._read_archive()

    def _read_single(self) -> None:
        head, read = with_head(self._read)
        compression = compression_of(head)
        if compression:
            head, read = with_head(decoder(compression, read, self._limits))
        if not looks_like_tar(head):
            raise Invalid("the file isn't a tar archive (nor one compressed with gzip, zstd, xz or bzip2)")
        self._pass_plain("", 0, read)

    def _read_archive(self) -> None:
        head, read = with_head(self._read)
        compression = compression_of(head)
        if compression:
            head, read = with_head(decoder(compression, read, self._limits))
        if not looks_like_tar(head):
            raise Invalid(
                "the file isn't an image archive: a tar of docker save or of an OCI layout is needed"
            )
        tar = TarReader(read, self._limits, entries_max=self._limits.archive_entries)
        while (entry := tar.next_entry()) is not None:
            name = os.fsdecode(entry.name).removeprefix("./").rstrip("/")
            if entry.kind in ("symlink", "link"):
                self._alias(name, entry)
            elif entry.kind == "file":
                self._read_member(name, entry, tar)

    def _alias(self, name: str, entry: Entry) -> None:
        target = os.fsdecode(entry.link)
        if entry.kind == "symlink":
            target = os.path.normpath(os.path.join(os.path.dirname(name), target))
        self._members.append(Member(name=name, link=target))

    def _read_member(self, name: str, entry: Entry, tar: TarReader) -> None:
        digest = name.removeprefix("blobs/sha256/")
        if digest != name and f"sha256:{digest}" in self._known:
            self._members.append(Member(name=name, digest=f"sha256:{digest}", size=entry.size, known=True))
            return
        pieces = tar.content()
        head, read = with_head(lambda: next(pieces, b""))
        compression = compression_of(head)
        if compression:
            self._read_compressed(name, entry, compression, read)
        elif looks_like_tar(head):
            self._pass_plain(name, entry.size, read)
        else:
            self._read_plain(name, entry, read)

    def _read_plain(self, name: str, entry: Entry, read: Read) -> None:
        keep = entry.size <= self._limits.manifest_bytes
        if keep:
            self._kept += entry.size
            if self._kept > self._limits.metadata_bytes:
                raise Invalid(
                    f"the archive's configurations and manifests take more than "
                    f"{self._limits.metadata_bytes >> 20} MiB, which is the limit"
                )
        digest = hashlib.sha256()
        data = bytearray()
        while chunk := read():
            digest.update(chunk)
            if keep:
                data += chunk
        self._members.append(
            Member(
                name=name,
                digest=f"sha256:{digest.hexdigest()}",
                size=entry.size,
                data=bytes(data) if keep else None,
            )
        )

    def _read_compressed(self, name: str, entry: Entry, compression: str, read: Read) -> None:
        digest = hashlib.sha256()
        number = self._count
        blob = os.open(
            f"{number}.blob", os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600, dir_fd=self._root
        )

        layer: _Layer | None = None

        def tee() -> Bytes:
            chunk = read()
            digest.update(chunk)
            write_all(blob, chunk, "a layer's blob")
            if layer is not None:
                layer.consumed += len(chunk)
            return chunk

        try:
            inner_head, inner = with_head(decoder(compression, tee, self._limits))
            if looks_like_tar(inner_head):
                layer = self._begin(name, entry.size, compression=compression)
                self._pass_on(layer, inner)
            while tee():
                pass
        except BaseException:
            if layer is not None:
                layer.stop()
            raise
        finally:
            os.close(blob)
        text = f"sha256:{digest.hexdigest()}"
        if layer is None:
            os.unlink(f"{number}.blob", dir_fd=self._root)
            self._members.append(Member(name=name, digest=text, size=entry.size))
            return
        layer.digest, layer.size = text, entry.size
        layer.chunks.put(None)

    def _begin(self, name: str, total: int, *, compression: str) -> _Layer:
        layer = _Layer(self._count, name, total, compression)
        self._count += 1
        self._layers.put(layer)
        return layer

    def _pass_plain(self, name: str, total: int, read: Read) -> None:
        layer = self._begin(name, total, compression="")
        try:
            self._pass_on(layer, read)
        except BaseException:
            layer.stop()
            raise
        layer.chunks.put(None)

    def _pass_on(self, layer: _Layer, read: Read) -> None:
        while chunk := read():
            layer.chunks.put(chunk)

    # --- the main thread ----------------------------------------------------------------------

    def _unpack(self, layer: _Layer) -> Member:
        digest = hashlib.sha256()
        read_bytes = reported = 0
        ended = False

        def read() -> Bytes:
            nonlocal read_bytes, reported, ended
            chunk = None if ended else layer.chunks.get()
            if chunk is None:
                ended = True
                if layer.cut:
                    raise self._reader_error()
                return b""
            self._hasher.update(digest, chunk)
            read_bytes += len(chunk)
            current = layer.consumed if layer.compression else read_bytes
            if current - reported >= self._report_bytes:
                reported = current
                self._report(Progress(name=layer.name, current=current, total=layer.total))
            return chunk

        os.mkdir(str(layer.number), 0o755, dir_fd=self._root)
        directory = os.open(str(layer.number), os.O_RDONLY | os.O_DIRECTORY, dir_fd=self._root)
        try:
            with open(
                os.open(
                    f"{layer.number}.frame", os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600, dir_fd=self._root
                ),
                "wb",
            ) as stream:
                frame = None if layer.compression else FrameWriter(stream)
                extractor = self._fill(layer, directory, read, frame)
                if frame is not None:
                    frame.close()
        except OSError as error:
            raise HostError(f"unpack a layer: {error.strerror}") from error
        finally:
            os.close(directory)
        if layer.compression:
            os.unlink(f"{layer.number}.frame", dir_fd=self._root)
        self._hasher.wait()
        self._budget -= extractor.size_bytes
        diff_id = f"sha256:{digest.hexdigest()}"
        self._report(
            Progress(name=layer.name, current=layer.total or read_bytes, total=layer.total or read_bytes)
        )
        return Member(
            name=layer.name,
            digest=layer.digest or diff_id,
            size=layer.size or read_bytes,
            layer=layer.number,
            diff_id=diff_id,
            compression=layer.compression,
            unpacked_bytes=extractor.size_bytes,
            tar_bytes=read_bytes,
            opaque=tuple(os.fsdecode(b"/".join(parts)) for parts in sorted(extractor.opaque)),
            moved=0 if frame is None else frame.moved,
        )

    def _fill(self, layer: _Layer, directory: int, read: Read, frame: FrameWriter | None) -> Extractor:
        def move_away(parent: int, name: bytes, path: bytes) -> None:
            assert frame is not None
            if not frame.moved:
                os.mkdir(f"{layer.number}.moved", 0o700, dir_fd=self._root)
            number = frame.move(path)
            os.rename(name, f"{layer.number}.moved/{number}", src_dir_fd=parent, dst_dir_fd=self._root)

        limit = self._limits.layer_bytes
        extractor = Extractor(
            directory,
            layer=True,
            budget_bytes=min(self._budget, limit) if limit else self._budget,
            stored=None if frame is None else frame.file,
            replaced=None if frame is None else move_away,
        )
        tar = TarReader(
            read,
            self._limits,
            entries_max=self._limits.layer_entries,
            raw=None if frame is None else frame.raw,
        )
        try:
            os.fchmod(directory, 0o755)
            while (entry := tar.next_entry()) is not None:
                extractor.add(entry, tar)
            extractor.finish()
        except CoveError as error:
            where = f"layer {layer.name}: " if layer.name else ""
            raise type(error)(f"{where}{error}") from error
        finally:
            extractor.close()
        return extractor

    def _reader_error(self) -> BaseException:
        item = self._layers.get()
        assert isinstance(item, BaseException)
        return item


def with_head(read: Read) -> tuple[bytes, Read]:
    """The first bytes of a stream, and the stream with them still in it."""
    head = bytearray()
    while len(head) < _HEAD and (chunk := read()):
        head += chunk
    pending: Bytes = bytes(head)

    def all_of_it() -> Bytes:
        nonlocal pending
        if pending:
            chunk, pending = pending, b""
            return chunk
        return read()

    return bytes(head[:_HEAD]), all_of_it


def write_all(fd: int, chunk: Bytes, what: str) -> None:
    try:
        while chunk:
            chunk = chunk[os.write(fd, chunk) :]
    except OSError as error:
        raise HostError(f"write {what}: {error.strerror}: free some space on the disk") from error
