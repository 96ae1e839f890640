"""A worker's life: `python -m cove.image.process CONTROL DATA PIDFD`.

Reads one job from the control socket, walls itself in as the job needs, does it, answers, ends. Order
that must hold: all imports above; the job is read; the tree is entered; capabilities, limits and the
system call filter; only then the first byte of a stranger's archive.
"""

from __future__ import annotations

import errno
import hashlib
import os
import socket
import struct
import sys
from collections.abc import Iterable, Iterator

import msgspec

from cove.image import archive, delta, frames, livemounts, overlayfs, sandbox, trees
from cove.image.jobs import (
    Adopt,
    Answer,
    AttachMount,
    CloneRepository,
    Compress,
    CopyFiles,
    CopyUp,
    DetachMounts,
    DigestItems,
    Done,
    Found,
    IndexContext,
    Job,
    KeptLayer,
    LayerCompressed,
    OverlayPlace,
    Place,
    Progress,
    ReadArchive,
    ReadLayer,
    Save,
    SaveMember,
    StatPath,
    Unpack,
    UnpackBlob,
    Unpacked,
    Verified,
    VerifySignatures,
    WriteArchive,
    decode_job,
    failure,
)
from cove.image.registry.messages import Fetch
from cove.image.scantypes import ScanJob
from cove.image.tarformat import END, Entry, encode_header, padding, show_name
from cove.image.tooljobs import ToolJob
from cove.image.types import Limits
from cove.image.unpack import Unpacker
from cove.image.unpackblob import BlobUnpacker
from cove.model.errors import Conflict, CoveError, HostError

_RECEIVE = 1 << 20
_BATCH = 256 << 10
_BEGUN = Progress(name="begun", current=0, total=0)


class Peer:
    """The daemon, as the worker sees it."""

    def __init__(self, control: int, data: int) -> None:
        self.control = socket.socket(fileno=control)
        self.data = socket.socket(fileno=data)

    def read_job(self) -> Job:
        (length,) = struct.unpack("<I", self._exactly(4))
        return decode_job(self._exactly(length))

    def _exactly(self, length: int) -> bytes:
        data = bytearray()
        while len(data) < length:
            piece = self.control.recv(length - len(data))
            if not piece:
                raise SystemExit(1)  # the daemon went away before it gave a job
            data += piece
        return bytes(data)

    def answer(self, answer: Answer) -> None:
        body = msgspec.json.encode(answer)
        self.control.sendall(struct.pack("<I", len(body)) + body)

    def receive(self) -> bytes:
        return self.data.recv(_RECEIVE)

    def send(self, pieces: Iterable[bytes]) -> None:
        """Send many pieces with few calls."""
        batch = bytearray()
        for piece in pieces:
            if len(piece) >= _BATCH and not batch:
                self.data.sendall(piece)
                continue
            batch += piece
            if len(batch) >= _BATCH:
                self.data.sendall(batch)
                batch.clear()
        self.data.sendall(batch)
        self.data.shutdown(socket.SHUT_WR)


def main() -> None:
    """Do the one job of this process."""
    control, data, pidfd = (int(argument) for argument in sys.argv[1:4])
    sandbox.die_with_parent()
    sandbox.hide_from_tracers()
    os.umask(0)
    overlayfs.in_user_namespace()  # read while there is a /proc
    calls = sandbox.FileCalls()
    peer = Peer(control, data)
    try:
        try:
            peer.answer(_do(peer, peer.read_job(), pidfd, calls))
        except CoveError as error:
            peer.answer(failure(error))
        except (BrokenPipeError, ConnectionResetError):
            raise
        except OSError as error:
            peer.answer(failure(_explain(error)))
        except MemoryError:
            peer.answer(failure(HostError("the worker needs more memory than it may have")))
    except (BrokenPipeError, ConnectionResetError):
        os._exit(1)  # whoever asked doesn't listen any more
    os._exit(0)  # threads may still wait for a stream that nobody needs


def _explain(error: OSError) -> CoveError:
    """The worker's own sentence of what the kernel refused."""
    name = show_name(os.fsencode(error.filename)) if error.filename else "the worker"
    if error.errno == errno.ESTALE:  # its directory is being deleted under the overlay
        return Conflict(f"{name}: the container was removed meanwhile")
    return HostError(f"{name}: {error.strerror}")


def _do(peer: Peer, job: Job, pidfd: int, calls: sandbox.FileCalls) -> Answer:
    if isinstance(job, Unpack):
        sandbox.unshare_all()
        sandbox.pivot_into(job.staging)
        root = os.open("/", os.O_RDONLY | os.O_DIRECTORY)
        _close_walls(calls)
        return Unpacked(members=tuple(Unpacker(job, root, peer.receive, peer.answer).run()))
    if isinstance(job, UnpackBlob):
        sandbox.unshare_all()
        sandbox.pivot_into(job.staging)
        root = os.open("/", os.O_RDONLY | os.O_DIRECTORY)
        _close_walls(calls)
        return Unpacked(members=(BlobUnpacker(job, root, peer.receive, peer.answer).unpack(),))
    if isinstance(job, Fetch):
        from cove.image.registry import fetch  # TLS and HTTP, which no other job needs

        fetch.serve(job, peer.control)
    if isinstance(job, Save):
        sandbox.unshare_all()
        sandbox.pivot_into(job.root)
        _close_walls(calls)
        peer.send(_save(job))
        return Done()
    if isinstance(job, Compress):
        return _compress(job, peer, calls)
    if isinstance(job, ReadLayer):
        sandbox.unshare_all()
        sandbox.pivot_into(job.upper)
        root = os.open("/", os.O_RDONLY | os.O_DIRECTORY)
        _close_walls(calls)
        opaque, left_out = ({os.fsencode(path) for path in paths} for paths in (job.opaque, job.left_out))
        peer.send(delta.layer_stream(root, opaque=opaque, left_out=left_out))
        return Done()
    if isinstance(job, ToolJob):
        from cove.image.toolprocess import do_tool

        return do_tool(job, calls, peer.send, lambda: peer.answer(_BEGUN), peer.data.fileno())
    if isinstance(job, ScanJob):
        from cove.image import scanjobs

        return scanjobs.do(job, peer.receive, peer.send, calls)
    if isinstance(job, VerifySignatures):
        return _verify(job, calls)
    if isinstance(job, Adopt | CopyFiles | DigestItems | IndexContext):
        return _build(peer, job, calls)
    if isinstance(job, CloneRepository):
        from cove.image import cloning  # before the walls close; other jobs don't pay for it

        return cloning.clone(job, lambda: _close_walls(calls))
    if isinstance(job, AttachMount | DetachMounts):
        return _change_mounts(job, pidfd, calls)
    destination = os.open(job.destination, os.O_RDONLY | os.O_DIRECTORY) if isinstance(job, CopyUp) else -1
    _enter(job.place, pidfd)
    _close_walls(calls)
    if isinstance(job, CopyUp):
        archive.copy_tree(job.path, destination, Limits())
        return Done()
    if isinstance(job, WriteArchive):
        archive.write_tree(job.path, peer.receive, job.limits, owner=job.owner, keep_kind=job.keep_kind)
        return Done()
    place = archive.resolve(job.path)
    found = Found(stat=archive.stat_place(place, job.path))
    if isinstance(job, StatPath):
        return found
    assert isinstance(job, ReadArchive)
    peer.answer(found)
    peer.send(archive.tar_stream(place, shown=b"" if job.bare else None))
    return Done()


def _verify(job: VerifySignatures, calls: sandbox.FileCalls) -> Answer:
    from cove.signing.verify import load_all, verify  # with cryptography, which no other job pays for

    load_all()

    sandbox.unshare_all()
    sandbox.pivot_into(job.root)
    sandbox.set_limits(files=16)
    sandbox.keep_capabilities(())
    calls.apply()
    return Verified(verdict=verify(job.question, job.signatures, now_s=job.now_s))


def _build(
    peer: Peer, job: Adopt | CopyFiles | DigestItems | IndexContext, calls: sandbox.FileCalls
) -> Answer:
    from cove.image import buildjobs  # before the walls close; other jobs don't pay for it

    def close_walls() -> None:
        _close_walls(calls)

    if isinstance(job, Adopt):
        return buildjobs.adopt(job, close_walls)
    if isinstance(job, CopyFiles):
        return buildjobs.copy_files(job, close_walls)
    if isinstance(job, DigestItems):
        return buildjobs.digest_items(job, close_walls)
    return buildjobs.index_context(job, peer.receive, close_walls)


def _change_mounts(job: AttachMount | DetachMounts, pidfd: int, calls: sandbox.FileCalls) -> Answer:
    namespace = livemounts.Namespace()
    namespace.enter(pidfd)
    sandbox.set_limits()
    sandbox.keep_capabilities(livemounts.CAPABILITIES)
    calls.allow(livemounts.SYSTEM_CALLS)
    calls.apply()
    if isinstance(job, AttachMount):
        return livemounts.attach(job, namespace)
    livemounts.detach(job, namespace)
    return Done()


def _enter(place: Place, pidfd: int) -> None:
    if isinstance(place, OverlayPlace):
        trees.enter_overlay(place)
    else:
        trees.enter_running(pidfd)


def _close_walls(calls: sandbox.FileCalls) -> None:
    sandbox.set_limits()
    sandbox.keep_capabilities(sandbox.FILE_CAPABILITIES)
    calls.apply()


def _compress(job: Compress, peer: Peer, calls: sandbox.FileCalls) -> Answer:
    from cove.image.compress import Spool, compress  # what no other job needs

    sandbox.unshare_all()
    sandbox.pivot_into(job.root)
    _close_walls(calls)
    number = 0

    def grown(size: int) -> None:
        peer.answer(LayerCompressed(number=number, offset=spool.offset, size=size))

    spool = Spool(lambda data: os.write(job.output, data), job.budget_bytes, grown)
    for number, layer in enumerate(job.layers):
        spool.begin()
        digest, size = compress(
            _kept(layer),
            spool.write,
            compression=job.compression,
            level=job.level,
            threads=os.cpu_count() or 1,
            diff_id=layer.diff_id,
        )
        peer.answer(LayerCompressed(number=number, offset=spool.offset, size=size, digest=digest))
    return Done()


def _kept(layer: KeptLayer) -> Iterator[bytes]:
    if not layer.blob:
        yield from _layer(layer.name, layer.moved)
        return
    from cove.image.decode import decoder

    with open(f"/blobs/sha256/{layer.blob}", "rb", buffering=0) as stream:
        pieces = decoder(layer.compression, lambda: stream.read(_RECEIVE), Limits())
        while piece := pieces():
            yield bytes(piece)


def _save(job: Save) -> Iterator[bytes]:
    for member in job.members:
        entry = Entry(
            name=os.fsencode(member.name),
            kind="dir" if member.directory else "file",
            mode=0o755 if member.directory else 0o644,
            size=member.size,
        )
        yield encode_header(entry)
        if member.directory:
            continue
        sent = 0
        digest = hashlib.sha256()
        for piece in _content(member):
            sent += len(piece)
            digest.update(piece)
            yield piece
        if sent != member.size or (member.digest and member.digest != f"sha256:{digest.hexdigest()}"):
            raise HostError(f"the image store is damaged: {member.name} isn't what was loaded; load it again")
        yield padding(member.size)
    yield END


def _content(member: SaveMember) -> Iterator[bytes]:
    if member.blob:
        with open(f"/blobs/sha256/{member.blob}", "rb", buffering=0) as stream:
            while piece := stream.read(_RECEIVE):
                yield piece
        return
    if not member.layer:
        yield member.data
        return
    yield from _layer(member.layer, member.moved)


def _layer(name: str, has_moved: bool) -> Iterator[bytes]:
    """A plain layer's tar."""
    layer = os.open(f"/layers/{name}", os.O_RDONLY | os.O_DIRECTORY)
    moved = None
    try:
        if has_moved:
            moved = os.open(f"/frames/{name}.moved", os.O_RDONLY | os.O_DIRECTORY)
        with open(f"/frames/{name}", "rb") as stream:
            yield from frames.read_frame(stream, layer, moved)
    finally:
        os.close(layer)
        if moved is not None:
            os.close(moved)


if __name__ == "__main__":
    main()
