"""Unpack one layer while its blob arrives: hash, decompress, extract, and keep the bytes for a later attempt.

What is here already, from an attempt that broke off, is read from the file; the rest comes from the socket and is
written behind it, before it is used. Order that must hold: digest and size are right before the layer counts; the
daemon gets no answer but an error otherwise.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable

from cove.image.decode import Read, compression_of, decoder
from cove.image.jobs import Member, Progress, Unpack, UnpackBlob
from cove.image.tarformat import Bytes, looks_like_tar
from cove.image.types import MIB
from cove.image.unpack import Unpacker, with_head, write_all
from cove.model.errors import CoveError, Invalid, Unavailable

_PIECE = MIB


class BlobUnpacker(Unpacker):
    """One job. `read` gives what comes after the first `job.offset` bytes."""

    _report_bytes = MIB // 2

    def __init__(self, job: UnpackBlob, root: int, read: Read, report: Callable[[Progress], None]) -> None:
        plain = Unpack(staging=job.staging, single=True, budget_bytes=job.budget_bytes, limits=job.limits)
        super().__init__(plain, root, read, report)
        self._blob = job
        self._consumed = 0
        self._digest = hashlib.sha256()

    def unpack(self) -> Member:
        """The layer, unpacked into `0` of the root. CoveError for the first thing that is wrong."""
        try:
            (member,) = self.run()
        except CoveError as error:
            if self._blob.digest in str(error):
                raise
            raise type(error)(f"layer {self._blob.digest}: {error}") from error
        return member

    def _read_stream(self) -> None:
        job = self._blob
        head, read = with_head(self._next)
        compression = compression_of(head)
        inner = decoder(compression, read, self._limits) if compression else read
        if compression:
            head, inner = with_head(inner)
        if not looks_like_tar(head):
            while read():  # what it should have been comes first: a wrong digest says more
                pass
            self._verify()
            raise Invalid(f"layer {job.digest} isn't a tar archive, or compressed in an unknown way")
        layer = self._begin("", job.size, compression=compression)
        try:
            while chunk := inner():
                layer.consumed = self._consumed
                layer.chunks.put(chunk)
            while read():
                pass
            self._verify()
        except BaseException:
            layer.stop()
            raise
        layer.digest, layer.size = job.digest, job.size
        layer.consumed = self._consumed
        layer.chunks.put(None)

    def _next(self) -> Bytes:
        job = self._blob
        if self._consumed < job.offset:
            chunk: Bytes = os.pread(job.partial, min(_PIECE, job.offset - self._consumed), self._consumed)
            if not chunk:
                raise Invalid(f"layer {job.digest}: the part that was kept is cut off")
        else:
            chunk = self._read()
            if not chunk and self._consumed < job.size:
                raise Unavailable(f"layer {job.digest} ended after {self._consumed} of its {job.size} bytes")
            if chunk:
                if self._consumed + len(chunk) > job.size:
                    raise Invalid(f"layer {job.digest} is longer than the {job.size} bytes it should have")
                write_all(job.partial, chunk, "a layer's blob")
        self._consumed += len(chunk)
        self._digest.update(chunk)
        return chunk

    def _verify(self) -> None:
        job = self._blob
        if (actual := f"sha256:{self._digest.hexdigest()}") != job.digest:
            raise Invalid(
                f"layer {job.digest} has another content than its name says: its digest is {actual}"
            )
