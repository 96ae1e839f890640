"""A worker that speaks with a registry: the daemon's side.

Several may hold one fetcher (a pull, and layers that others wait for as well); when the last lets go, the process ends.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator, Callable, Sequence
from pathlib import Path

import msgspec

import cove
from cove.image.jobs import Failed, raise_failure
from cove.image.references import Reference
from cove.image.registry import PullOptions
from cove.image.registry.auth import Credentials
from cove.image.registry.endpoints import Endpoint, plan_endpoints
from cove.image.registry.messages import (
    Addresses,
    BlobForm,
    BlobMoved,
    BlobPushed,
    Command,
    CommandFailed,
    Document,
    Fetch,
    GetDocument,
    GetUrl,
    Grow,
    Lookup,
    ManifestPut,
    PushBlob,
    PutManifest,
    Reply,
    StreamBlob,
    Timing,
    UrlWritten,
    decode_reply,
)
from cove.image.worker import Worker
from cove.model.errors import HostError
from cove.model.waiting import finish

_LOOKUP_S = 20.0
_ADDRESSES_MAX = 16


class Fetcher:
    """See the module. Made by `start`; `hold` and `release` count the users, the first is whoever started it."""

    def __init__(self, worker: Worker) -> None:
        self._worker = worker
        self._users = 1
        self._number = 0
        self._waiting: dict[int, asyncio.Future[Reply]] = {}
        self._moved: dict[int, Callable[[int], None]] = {}
        self._failure: HostError | None = None
        self._lookups: set[asyncio.Task[None]] = set()
        self._sending = asyncio.Lock()
        self._reading: asyncio.Task[None] | None = None

    @classmethod
    async def start(
        cls, reference: Reference, options: PullOptions, root: Path, *, endpoints: Sequence[Endpoint] = ()
    ) -> Fetcher:
        """A worker for the repository of `reference`; `root` is an empty directory. HostError, Unavailable.

        `endpoints` are asked instead of those that a pull asks.
        """
        job = Fetch(
            endpoints=tuple(endpoints) or plan_endpoints(reference.domain, options.registries),
            repository=reference.path,
            credentials=options.credentials,
            timing=options.timing,
            user_agent=f"cove/{cove.__version__}",
            root=str(root),
        )
        worker = await Worker(job).__aenter__()
        found = cls(worker)
        found._reading = asyncio.ensure_future(found._read())
        return found

    @classmethod
    async def start_plain(cls, root: Path, timing: Timing) -> Fetcher:
        """A worker that speaks with no registry: for `url`. HostError, Unavailable."""
        job = Fetch(
            endpoints=(),
            repository="",
            credentials=Credentials(),
            timing=timing,
            user_agent=f"cove/{cove.__version__}",
            root=str(root),
        )
        found = cls(await Worker(job).__aenter__())
        found._reading = asyncio.ensure_future(found._read())
        return found

    def hold(self) -> None:
        self._users += 1

    async def release(self) -> None:
        self._users -= 1
        if self._users == 0:
            await finish(self._end())

    async def _end(self) -> None:
        assert self._reading is not None
        tasks = [self._reading, *self._lookups]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await self._worker.end()

    async def get(self, path: str, *, accept: str = "", limit: int = 4 << 20) -> bytes:
        """A small document's bytes, not verified."""
        return (await self.document(path, accept=accept, limit=limit)).data

    async def document(self, path: str, *, accept: str = "", limit: int, method: str = "GET") -> Document:
        """A small document of the repository, not verified. As `Client.request`, and HostError."""
        number = self._next()
        reply = await self._ask(
            GetDocument(id=number, path=path, accept=accept, limit=limit, method=method), number, []
        )
        assert isinstance(reply, Document)
        return reply

    async def url(self, url: str, file: int, limit_bytes: int) -> UrlWritten:
        """Write what a URL gives to a file, at most so many bytes. NotFound, Unavailable, Invalid, HostError."""
        number = self._next()
        reply = await self._ask(GetUrl(id=number, url=url, limit_bytes=limit_bytes), number, [file])
        assert isinstance(reply, UrlWritten)
        return reply

    async def stream(
        self, digest: str, size: int, offset: int, out: socket.socket, *, foreign: bool = False
    ) -> None:
        """Have a blob written to a socket, which is closed here; returns when it was written. As `Client.request`."""
        number = self._next()
        command = StreamBlob(id=number, digest=digest, size=size, offset=offset, foreign=foreign)
        with out:
            await self._ask(command, number, [out.fileno()], out)

    async def push_blob(
        self,
        forms: tuple[BlobForm, ...],
        *,
        fd: int = -1,
        offset: int = 0,
        size: int = 0,
        digest: str = "",
        grown: AsyncIterator[tuple[int, str]] | None = None,
        anew: bool = False,
        moved: Callable[[int], None] | None = None,
    ) -> BlobPushed:
        """Find a blob in the repository, mount it, or send it from the file `fd`; see `PushBlob`. As `Client.request`.

        `grown` gives how much of it is written, at last with its digest; its errors end the upload and are raised.
        """
        number = self._next()
        command = PushBlob(
            id=number, forms=forms, file=fd >= 0, offset=offset, size=size, digest=digest, anew=anew
        )
        growing: asyncio.Task[None] | None = None
        if moved is not None:
            self._moved[number] = moved
        asking = asyncio.ensure_future(self._ask(command, number, [fd] if fd >= 0 else []))
        try:
            if grown is not None:
                growing = asyncio.ensure_future(self._grow(number, grown))
                await asyncio.wait((growing, asking), return_when=asyncio.FIRST_COMPLETED)
                if growing.done():
                    growing.result()
            reply = await asking
        finally:
            self._moved.pop(number, None)
            for task in (asking, growing):
                if task is not None:
                    task.cancel()
            await asyncio.gather(*(t for t in (asking, growing) if t is not None), return_exceptions=True)
        assert isinstance(reply, BlobPushed)
        return reply

    async def _grow(self, number: int, grown: AsyncIterator[tuple[int, str]]) -> None:
        try:
            async for size, digest in grown:
                await self._tell(Grow(id=number, size=size, digest=digest), [])
        except BaseException:
            with contextlib.suppress(HostError):
                await self._tell(Grow(id=number, failed=True), [])
            raise

    async def put_manifest(self, reference: str, data: bytes, media_type: str, digest: str) -> str:
        """Put a manifest under a tag or its digest; whose referrer it is listed as, or "". As `Client.request`."""
        number = self._next()
        command = PutManifest(id=number, reference=reference, data=data, media_type=media_type, digest=digest)
        reply = await self._ask(command, number, [])
        assert isinstance(reply, ManifestPut)
        return reply.subject

    def _next(self) -> int:
        self._number += 1
        return self._number

    async def _ask(
        self, command: Command, number: int, files: list[int], given: socket.socket | None = None
    ) -> Reply:
        if self._failure is not None:
            raise self._failure
        future: asyncio.Future[Reply] = asyncio.get_running_loop().create_future()
        self._waiting[number] = future
        try:
            await self._tell(command, files)
            if given is not None:
                given.close()  # the worker's copy is the only one: its end is the stream's
            reply = await future
        finally:
            self._waiting.pop(number, None)
        if isinstance(reply, CommandFailed):
            raise_failure(Failed(error=reply.error, sentence=reply.sentence))
        return reply

    async def _tell(self, command: Command, files: list[int]) -> None:
        async with self._sending:
            await finish(self._worker.tell(msgspec.json.encode(command), files))

    async def _read(self) -> None:
        try:
            while True:
                reply = decode_reply(await self._worker.frame())
                if isinstance(reply, Lookup):
                    task = asyncio.ensure_future(self._look_up(reply))
                    self._lookups.add(task)
                    task.add_done_callback(self._lookups.discard)
                    continue
                if isinstance(reply, BlobMoved):
                    if (moved := self._moved.get(reply.id)) is not None:
                        moved(reply.current)
                    continue
                future = self._waiting.get(reply.id)
                if future is not None and not future.done():
                    future.set_result(reply)
        except (HostError, msgspec.MsgspecError) as error:
            self._failure = HostError(f"the worker that speaks with the registry failed: {error}")
            for future in self._waiting.values():
                if not future.done():
                    future.set_exception(self._failure)

    async def _look_up(self, asked: Lookup) -> None:
        addresses: tuple[str, ...] = ()
        host = asked.host
        if 0 < len(host) <= 253 and host.isascii() and host.isprintable() and 0 < asked.port < 65536:
            try:
                async with asyncio.timeout(_LOOKUP_S):
                    found = await asyncio.get_running_loop().getaddrinfo(
                        host, asked.port, type=socket.SOCK_STREAM
                    )
                addresses = tuple(dict.fromkeys(str(entry[4][0]) for entry in found))[:_ADDRESSES_MAX]
            except (OSError, TimeoutError, UnicodeError):
                pass
        try:
            await self._tell(Addresses(id=asked.id, addresses=addresses), [])
        except HostError:
            pass  # the reader tells everybody
