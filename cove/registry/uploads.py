"""Uploads under way: sessions that survive the server, one writer at a time, bounded in number and size.

    begin ──append (PATCH, PUT, or the POST's own body)──> … ──finish──> content
       └────────── cancel, expiry ──> nothing

A session's offset is its file's size: what a broken request has brought stays, and the client asks where to go on. The
running hash lives in memory; after a restart, or where the digest turns out to be of another algorithm, the file is
hashed once more at the end. Bytes are written and hashed in threads, in pieces; a client that sends slowly
holds one piece in memory.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import os
import time
import uuid
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from cove.api.http import Body, ClientGone
from cove.model.errors import Invalid
from cove.registry.content import Content, hash_file, remove_tree
from cove.registry.refusals import Refused, full_disk, invalid_digest, unknown_upload

if TYPE_CHECKING:
    from hashlib import _Hash

    from cove.registry.threads import Threads

PIECE_BYTES = 1 << 20  # written and hashed at once
STALL_S = 60.0  # how long a body may bring nothing
PAUSE_S = 0.1  # without a byte, before what has come is written
BUSY_S = 5.0  # how long a request waits for another one of the same upload to end


class About(msgspec.Struct, frozen=True, kw_only=True):
    """What is kept of an upload beside its bytes."""

    name: str
    algorithm: str
    client: str
    begun_s: float


@dataclass(eq=False, slots=True)
class Session:
    """One upload."""

    id: str
    directory: Path
    about: About
    offset: int = 0
    hasher: _Hash | None = None  # of the first `offset` bytes; None: not known
    lock: asyncio.Lock = field(default_factory=asyncio.Lock)
    ended: bool = False

    @property
    def data(self) -> Path:
        return self.directory / "data"


@dataclass(frozen=True, slots=True, kw_only=True)
class Bounds:
    """What uploads may take."""

    blob_bytes: int = 64 << 30
    reserve_bytes: int = 1 << 30  # of the disk, left free
    per_client: int = 256
    expiry_s: float = 24 * 3600.0


class Uploads:
    """All uploads of a registry."""

    def __init__(self, content: Content, threads: Threads, bounds: Bounds) -> None:
        self._content = content
        self._threads = threads
        self._bounds = bounds
        self._sessions: dict[str, Session] = {}
        self._per_client: dict[str, int] = {}
        self.received_bytes = 0

    def load(self) -> None:
        """Find the uploads that an earlier server left; half-begun ones are removed."""
        for entry in os.scandir(self._content.uploads):
            path = Path(entry.path)
            if not entry.is_dir(follow_symlinks=False):
                path.unlink(missing_ok=True)  # a document that was never placed
                continue
            try:
                about = msgspec.json.decode((path / "about").read_bytes(), type=About)
                offset = (path / "data").stat().st_size
            except (OSError, msgspec.MsgspecError):
                remove_tree(path)
                continue
            self._add(Session(entry.name, path, about, offset))

    @property
    def count(self) -> int:
        return len(self._sessions)

    async def begin(self, name: str, client: str, algorithm: str) -> Session:
        """Refused: too many of this client, disk full."""
        if self._per_client.get(client, 0) >= self._bounds.per_client:
            raise Refused(
                429,
                "TOOMANYREQUESTS",
                f"{self._bounds.per_client} uploads of yours are open: finish or cancel some; "
                f"they expire {self._bounds.expiry_s / 3600:g} hours after their last byte",
                headers={"Retry-After": "60"},
            )
        self._check_disk(0)
        about = About(name=name, algorithm=algorithm, client=client, begun_s=time.time())
        session = Session(str(uuid.uuid4()), self._content.uploads, about, 0, hashlib.new(algorithm))
        session.directory = self._content.uploads / session.id
        self._add(session)
        try:
            await self._threads.run(_make, session)
        except OSError as error:
            self._forget(session)
            raise full_disk(f"an upload can't begin: {error.strerror}") from error
        return session

    def find(self, name: str, session_id: str) -> Session:
        """Refused: 404, also for another repository's."""
        session = self._sessions.get(session_id)
        if session is None or session.about.name != name:
            raise unknown_upload()
        return session

    @contextlib.asynccontextmanager
    async def owned(self, session: Session) -> AsyncIterator[None]:
        """Have the upload for oneself. Refused: 404 when it ended meanwhile, 416 while another request writes."""
        try:
            async with asyncio.timeout(BUSY_S):
                await session.lock.acquire()
        except TimeoutError:
            raise _out_of_order(
                session, "another request is sending to this upload: wait for its end"
            ) from None
        try:
            if session.ended:
                raise unknown_upload()
            yield
        finally:
            session.lock.release()

    async def append(self, session: Session, body: Body, *, first: int | None, length: int | None) -> None:
        """Take in a body. `first` and `length` are what Content-Range says. Under `owned`.

        Refused: 416 for a gap, SIZE_INVALID, a full disk. What had come when the client went away stays.
        """
        if first is not None and first != session.offset:
            raise _out_of_order(
                session, f"this chunk begins at byte {first}, the upload goes on at {session.offset}"
            )
        if length is not None and body.length is not None and body.length != length:
            raise Refused(
                400, "SIZE_INVALID", f"Content-Range names {length} bytes, the body has {body.length}"
            )
        self._check_size(session.offset + (body.length or 0))
        self._check_disk(body.length or 0)
        began = session.offset
        pieces: list[bytes] = []
        held = 0
        try:
            while (data := await _next_piece(body, held)) is not None:
                if length is not None and session.offset + held + len(data) - began > length:
                    raise Refused(
                        400, "SIZE_INVALID", f"the body is longer than the {length} bytes of Content-Range"
                    )
                pieces.append(data)
                held += len(data)
                self._check_size(session.offset + held)
                if held >= PIECE_BYTES or not data:
                    self._check_disk(held)
                    await self._write(session, pieces)
                    pieces, held = [], 0
        except (ClientGone, Invalid, asyncio.CancelledError):
            if pieces:
                await asyncio.shield(self._write(session, pieces))
            raise
        await self._write(session, pieces)
        if length is not None and session.offset - began != length:
            raise Refused(
                400, "SIZE_INVALID", f"Content-Range names {length} bytes, {session.offset - began} came"
            )

    async def seal(self, session: Session, digest: str) -> Path:
        """Check the digest, and sync; the file to be placed. Under `owned`. Refused: DIGEST_INVALID; then, and only
        then, the upload has ended."""
        algorithm = digest.partition(":")[0]
        if session.hasher is not None and session.hasher.name == algorithm:
            found = f"{algorithm}:{session.hasher.hexdigest()}"
        else:
            found = await self._threads.run(hash_file, session.data, algorithm)
        if found != digest:
            await self.end(session)
            raise invalid_digest(
                f"the {session.offset} bytes that came have the digest {found}, not {digest}"
            )
        try:
            await self._threads.run(_sync, session.data)
        except OSError as error:
            raise full_disk(f"the upload can't be written: {error.strerror}") from error
        return session.data

    async def end(self, session: Session) -> None:
        """Forget an upload, and remove what is left of it. Idempotent. Under `owned`."""
        session.ended = True
        self._forget(session)
        await self._threads.run(remove_tree, session.directory)

    async def expire(self) -> int:
        """End what nobody has sent to for long; how many there were."""
        count = 0
        oldest_s = time.time() - self._bounds.expiry_s
        for session in list(self._sessions.values()):
            if session.lock.locked():
                continue
            with contextlib.suppress(OSError):
                if session.data.stat().st_mtime > oldest_s:
                    continue
            async with session.lock:
                if not session.ended:
                    await self.end(session)
                    count += 1
        return count

    # --- parts --------------------------------------------------------------------------------

    async def _write(self, session: Session, pieces: list[bytes]) -> None:
        try:
            written = await self._threads.run(_append, session, pieces)
        except OSError as error:
            session.hasher = None
            session.offset = session.data.stat().st_size
            raise full_disk(
                f"the upload can't be written: {error.strerror}; it can go on once there is room"
            ) from error
        session.offset += written
        self.received_bytes += written

    def _check_size(self, size: int) -> None:
        if size > self._bounds.blob_bytes:
            raise Refused(
                413, "SIZE_INVALID", f"a blob may have {self._bounds.blob_bytes} bytes here (--max-blob)"
            )

    def _check_disk(self, coming: int) -> None:
        if self._content.free_bytes() - coming < self._bounds.reserve_bytes:
            raise full_disk(
                f"the registry's disk is full: {self._bounds.reserve_bytes >> 20} MiB of it stay free (--reserve)"
            )

    def _add(self, session: Session) -> None:
        self._sessions[session.id] = session
        client = session.about.client
        self._per_client[client] = self._per_client.get(client, 0) + 1

    def _forget(self, session: Session) -> None:
        if self._sessions.pop(session.id, None) is not None:
            client = session.about.client
            self._per_client[client] -= 1
            if not self._per_client[client]:
                del self._per_client[client]


async def _next_piece(body: Body, held: int) -> bytes | None:
    """The body's next bytes; None at its end; b"" when nothing came for a moment and what is `held` had better be
    written: slow clients hold no memory. Refused: 408 for one that sends nothing for long."""
    try:
        async with asyncio.timeout(PAUSE_S if held else STALL_S):
            return await anext(body)
    except StopAsyncIteration:
        return None
    except TimeoutError:
        if held:
            return b""
        raise Refused(
            408, "BLOB_UPLOAD_INVALID", f"no byte of the body came for {STALL_S:.0f} seconds"
        ) from None


def _out_of_order(session: Session, message: str) -> Refused:
    headers = {
        "Location": f"/v2/{session.about.name}/blobs/uploads/{session.id}",
        "Range": f"0-{max(0, session.offset - 1)}",
        "Docker-Upload-UUID": session.id,
    }
    return Refused(416, "BLOB_UPLOAD_INVALID", message, headers=headers)


def _make(session: Session) -> None:
    session.directory.mkdir(mode=0o700)
    (session.directory / "about").write_bytes(msgspec.json.encode(session.about))
    session.data.touch()


def _append(session: Session, pieces: list[bytes]) -> int:
    """Write at the end, or not at all, and hash; how many bytes."""
    if not pieces:
        return 0
    fd = os.open(session.data, os.O_WRONLY | os.O_CLOEXEC)
    try:
        at = session.offset
        os.ftruncate(fd, at)
        for piece in pieces:
            done = 0
            while done < len(piece):
                done += os.pwrite(fd, memoryview(piece)[done:], at + done)
            at += done
    finally:
        os.close(fd)
    if session.hasher is not None:
        for piece in pieces:
            session.hasher.update(piece)
    return at - session.offset


def _sync(path: Path) -> None:
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
