"""Bring one blob, one manifest into a repository: what is there already isn't sent, what breaks off goes on.

OCI distribution-spec 1.1, "Pushing blobs", "Pushing manifests". Worker side, blocking: a thread for each blob. The
bytes are a region of a file that may still grow while it is read (a layer that is being compressed), so any part of
it can be sent again. Order that must hold: is it there; is it in a repository that it can be mounted from; an upload
in one piece when all of it is here, else in chunks; after a break the registry is asked how far it came.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from urllib.parse import urlencode, urljoin, urlsplit

from cove.image.registry.endpoints import origin_of
from cove.image.registry.transport import AGAIN, Answer, Broken, Client, Tries, Unreachable
from cove.model.errors import CoveError, Forbidden, Invalid, NotFound, Unauthorized, Unavailable

CHUNK_MIN, CHUNK_MAX = 8 << 20, 64 << 20
_PIECE = 128 << 10  # what one send(2) may take the connection's timeout for
_ACTIONS = "pull,push"
_RESTARTS = 5  # uploads begun anew, without a byte of the last one being of use
_REFUSES_CHUNKS = frozenset((400, 404, 405, 413, 415, 416, 501))
Moved = Callable[[int], None]


class Source:
    """A blob's bytes: a region of the file `fd`. `grow` and `fail` come from another thread."""

    def __init__(self, fd: int, offset: int = 0, *, size: int = 0, digest: str = "") -> None:
        """With `digest` it is complete."""
        self.fd = fd
        self._offset = offset
        self._changed = threading.Condition()
        self._size = size
        self._digest = digest
        self._error: CoveError | None = None

    def grow(self, size: int, digest: str = "") -> None:
        """So much is there now; with its digest, that is all."""
        with self._changed:
            self._size, self._digest = size, digest or self._digest
            self._changed.notify_all()

    def fail(self, error: CoveError) -> None:
        """There won't be more: whoever waits gets the error."""
        with self._changed:
            self._error = error
            self._changed.notify_all()

    def wait(self, size: int) -> tuple[int, str]:
        """Wait for `size` bytes or the end; how many there are, and the digest once that is all."""
        with self._changed:
            while not self._digest and self._size < size and self._error is None:
                self._changed.wait()
            if self._error is not None:
                raise self._error
            return self._size, self._digest

    def pieces(self, start: int, end: int) -> Iterator[bytes]:
        """The bytes from `start` to before `end`, which are there."""
        while start < end:
            piece = os.pread(self.fd, min(_PIECE, end - start), self._offset + start)
            if not piece:
                raise Unavailable("the image store is damaged: a blob is shorter than it was")
            start += len(piece)
            yield piece


@dataclass(frozen=True, slots=True)
class Pushed:
    """What became of a blob; `how` is exists or pushed."""

    digest: str
    size: int
    how: str


class Upload:
    """One blob on its way into the client's repository."""

    def __init__(self, client: Client, source: Source, moved: Moved) -> None:
        """`moved` is told how many bytes are there."""
        self._client = client
        self._source = source
        self._moved = moved
        self._location = ""
        self._chunks = True  # the registry takes them

    def run(self, *, known: bool = False, anew: bool = False) -> Pushed:
        """Do all of it. `known`: it isn't there. `anew`: send it even if the registry says that it is."""
        size, digest = self._source.wait(CHUNK_MIN)
        if digest and not (known or anew) and has_blob(self._client, digest):
            return Pushed(digest, size, "exists")
        tries = Tries(self._client.timing)
        for left in range(_RESTARTS, 0, -1):
            try:
                digest, size = self._upload(tries)
                return Pushed(digest, size, "pushed")
            except _Restart as restart:
                self._cancel()
                if left == 1 or (restart.wait and not tries.again()):
                    raise restart.reason from None
            except BaseException:
                self._cancel()
                raise
        raise AssertionError("the loop returns or raises")

    # --- the upload itself --------------------------------------------------------------------

    def _upload(self, tries: Tries) -> tuple[str, int]:
        if not self._location:
            with self._client.request(
                "POST", "blobs/uploads/", actions=_ACTIONS, expect=(202,), again=True
            ) as answer:
                answer.drain()
                self._location = next_location(answer)
        offset = 0
        while True:
            wanted = offset + CHUNK_MIN if self._chunks else 1 << 62
            size, digest = self._source.wait(wanted)
            try:
                if digest and offset == 0:
                    self._put(digest, 0, size)
                elif digest and offset == size:
                    self._put(digest, size, size)
                else:
                    offset = self._patch(offset, min(size, offset + CHUNK_MAX))
                    tries.progress()
                    continue
                return digest, size
            except (Broken, _Busy) as error:
                if isinstance(error, Unreachable):
                    raise
                wait = error.retry_after if isinstance(error, _Busy) else ""
                if not tries.again(wait):
                    raise Unavailable(str(error)) from None
                if digest and has_blob(self._client, digest):
                    return digest, size  # it was all there, and only the answer was lost
                came = self._status(size)
                if came > offset:
                    tries.progress()
                offset = came
                self._moved(offset)

    def _put(self, digest: str, start: int, size: int) -> None:
        """Complete the upload, with the bytes from `start` on."""
        url = f"{self._location}{'&' if '?' in self._location else '?'}{urlencode({'digest': digest})}"
        headers = {"Content-Type": "application/octet-stream", "Content-Length": str(size - start)}
        with self._send("PUT", url, headers, start, size, expect=(201, 204)) as answer:
            answer.drain()
            check_answered(answer, digest)
        self._location = ""

    def _patch(self, start: int, end: int) -> int:
        """Send a chunk; where the next one begins."""
        headers = {
            "Content-Type": "application/octet-stream",
            "Content-Length": str(end - start),
            "Content-Range": f"{start}-{end - 1}",
        }
        with self._send("PATCH", self._location, headers, start, end, expect=(202,)) as answer:
            answer.drain()
            self._location = next_location(answer)
            came = parse_range(answer.headers.get("Range", ""))
        if came is not None and came < end:
            # Less than was sent, and no word of an error: go on from there, as the specification has it.
            return self._checked(came, end)
        return end

    def _send(
        self, method: str, url: str, headers: dict[str, str], start: int, end: int, *, expect: Sequence[int]
    ) -> Answer:
        def body() -> Iterator[bytes]:
            for piece in self._source.pieces(start, end):
                yield piece
                sent[0] += len(piece)
                self._moved(start + sent[0])

        sent = [0]

        def again() -> Iterator[bytes]:
            sent[0] = 0
            return body()

        any_status = range(200, 600)
        answer = self._client.request(
            method,
            url,
            headers=headers,
            body=again if end > start else b"",
            actions=_ACTIONS,
            expect=any_status,
            again=False,
        )
        if answer.status in expect:
            return answer
        with answer:
            error = self._client.error(answer)
            if answer.status in AGAIN:
                raise _Busy(str(error), answer.headers.get("Retry-After", ""))
            if answer.status in (401, 403):
                raise error
            if method == "PATCH" and answer.status in _REFUSES_CHUNKS:
                if answer.status != 404:
                    self._chunks = False  # then all of it in one piece, once it is complete
                raise _Restart(error, wait=False)
            if answer.status in (400, 404, 416):
                raise _Restart(error)
            raise error

    def _status(self, size: int) -> int:
        """How many bytes of the upload the registry has. _Restart: none that could be gone on from."""
        try:
            with self._client.request(
                "GET", self._location, actions=_ACTIONS, expect=(204, 200, 202)
            ) as answer:
                answer.drain()
                if answer.headers.get("Location"):
                    self._location = next_location(answer)
                came = parse_range(answer.headers.get("Range", ""))
        except (NotFound, Invalid) as error:
            raise _Restart(error, wait=False) from None
        if came is None or came == 1:  # "0-0" is said of one byte, and of none (distribution 2.8)
            raise _Restart(Unavailable("the registry doesn't say how far the upload came"), wait=False)
        return self._checked(came, size)

    def _checked(self, came: int, size: int) -> int:
        if came > size:
            raise _Restart(Unavailable(f"the registry has {came} bytes of an upload of {size}"))
        return came

    def _cancel(self) -> None:
        location, self._location = self._location, ""
        if location:
            cancel_upload(self._client, location)


class _Busy(Exception):
    """The registry asked for another attempt."""

    def __init__(self, sentence: str, retry_after: str) -> None:
        super().__init__(sentence)
        self.retry_after = retry_after


class _Restart(Exception):
    """The upload is of no use any more; `reason` is what to say when there are no more attempts."""

    def __init__(self, reason: CoveError, *, wait: bool = True) -> None:
        super().__init__(str(reason))
        self.reason = reason
        self.wait = wait  # before the next attempt, which this one counts against


def has_blob(client: Client, digest: str) -> bool:
    """Whether the repository has a blob."""
    try:
        with client.request("HEAD", f"blobs/{digest}", actions=_ACTIONS):
            return True
    except NotFound:
        return False


def mount_blob(client: Client, digest: str, repository: str) -> bool:
    """Whether the registry takes a blob from another repository of its own. What it refuses is no error."""
    try:
        answer = client.request(
            "POST",
            "blobs/uploads/?" + urlencode({"mount": digest, "from": repository}),
            actions=_ACTIONS,
            scope=f"repository:{repository}:pull",
            expect=(201, 202),
        )
    except (Unauthorized, Forbidden, NotFound, Invalid):
        return False
    except Unavailable as error:
        if isinstance(error, Unreachable):
            raise
        return False  # some registries know no mounts and say so in odd ways
    with answer:
        answer.drain()
        if answer.status == 201:
            check_answered(answer, digest)
            return True
        try:
            cancel_upload(client, next_location(answer))  # it has begun an upload instead
        except Unavailable:
            pass
    return False


def next_location(answer: Answer) -> str:
    """An upload's address from here on. Unavailable: it isn't one that is followed."""
    location = answer.headers.get("Location", "")
    try:
        found = urljoin(answer.url, location) if location else ""
        scheme, _, _ = origin_of(found)
    except (ValueError, Invalid):
        found = ""
    host = urlsplit(answer.url).netloc
    if not found or not found.isprintable():
        raise Unavailable(f"{host} began an upload and gave no address for it")
    if scheme == "http" and urlsplit(answer.url).scheme == "https":
        raise Unavailable(f"{host} sends uploads from https to http, which isn't followed")
    return found


def cancel_upload(client: Client, location: str) -> None:
    """Let the registry forget an upload, as far as it will."""
    try:
        client.request("DELETE", location, actions=_ACTIONS, expect=range(200, 600), again=False).close()
    except CoveError:
        pass


def put_manifest(client: Client, reference: str, data: bytes, media_type: str, digest: str) -> Answer:
    """Put a manifest under a tag or its digest; the answer, for its headers. Invalid: the registry lacks a blob."""
    try:
        answer = client.request(
            "PUT",
            f"manifests/{reference}",
            headers={"Content-Type": media_type},
            body=data,
            actions=_ACTIONS,
            expect=(200, 201, 202),
            again=True,
        )
    except NotFound as error:
        raise Invalid(str(error)) from None
    with answer:
        answer.drain()
        check_answered(answer, digest)
    return answer


def check_answered(answer: Answer, digest: str) -> None:
    """Unavailable when the registry calls what it was sent by another digest."""
    said = answer.headers.get("Docker-Content-Digest", "")
    if said.startswith("sha256:") and said != digest:
        raise Unavailable(
            f"{urlsplit(answer.url).netloc} was sent {digest} and says that it is {said[:80]!r}"
        )


def parse_range(text: str) -> int | None:
    """The number of bytes in `Range: 0-N`, or `bytes=0-N`; None for anything else."""
    first, dash, last = text.strip().removeprefix("bytes=").partition("-")
    if first != "0" or not dash or not (last.isascii() and last.isdigit() and len(last) < 20):
        return None
    return int(last) + 1
