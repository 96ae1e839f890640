"""Archives and images by way of worker processes: the daemon's side.

A worker is a fresh Python that does one job (process.py) and ends; the daemon loads none of what it
needs. Whoever starts one owns it: when the call is left, by return, error or cancellation, the process
is dead and reaped.
`read_archive` hands its process to the stream it returns, which must be closed or read to its end.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import os
import signal
import socket
import struct
import subprocess
import sys
import termios
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Mapping, Sequence
from pathlib import Path
from types import TracebackType

import msgspec

from cove.image.crowd import Crowd
from cove.image.jobs import (
    Answer,
    AttachMount,
    BindMount,
    CopyUp,
    DetachMounts,
    Failed,
    Found,
    Job,
    MountAttached,
    OverlayPlace,
    Place,
    Progress,
    ReadArchive,
    ReadLayer,
    RunningPlace,
    StatPath,
    WriteArchive,
    decode_answer,
    raise_failure,
)
from cove.image.types import Limits, OverlayTree, PathStat, RunningTree, Tree
from cove.model.errors import Conflict, HostError, Unavailable

_ROOT = str(Path(__file__).resolve().parents[2])
_START = "import sys; sys.path.insert(0, sys.argv.pop(1)); from cove.image.process import main; main()"
# mallopt(3): one arena for all threads of a worker, which pass chunks of 1 MiB to each other; with an arena for each
# they keep up to 40 MiB more.
_ENVIRONMENT = {"LC_ALL": "C.UTF-8", "PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "MALLOC_ARENA_MAX": "1"}
_PIECE = 256 << 10
_ANSWER_MAX = 256 << 20
_BUFFER = 1 << 20
_LOOK_S = 0.005  # between looks whether a worker has begun
_MOUNT_S = 30  # for a change of mounts, the wait for a place among the workers included
_crowd = Crowd()


async def stat_path(tree: Tree, path: str) -> PathStat:
    """What a path in a container is. NotFound, Invalid, HostError."""
    async with Worker(StatPath(place=_place(tree), path=path), pid=_pid(tree)) as worker:
        return await worker.found()


async def read_archive(tree: Tree, path: str, *, bare: bool = False) -> tuple[PathStat, ArchiveStream]:
    """A path's facts, and it as a tar stream. NotFound, Invalid, HostError, the last also while streaming.

    `bare`: a directory's entries alone, their names relative to it.
    """
    worker = Worker(ReadArchive(place=_place(tree), path=path, bare=bare), pid=_pid(tree))
    await worker.__aenter__()
    try:
        found = await worker.found()
    except BaseException:
        await worker.end()
        raise
    return found, ArchiveStream(worker)


async def read_layer(
    upper: Path, opaque: Sequence[str], left_out: Sequence[str]
) -> AsyncGenerator[bytes, None]:
    """A writable layer as the tar stream of an image's layer. Invalid, HostError, also while streaming."""
    async with Worker(ReadLayer(upper=str(upper), opaque=tuple(opaque), left_out=tuple(left_out))) as worker:
        while piece := await worker.receive():
            yield piece
        await worker.last()


async def write_archive(
    tree: Tree,
    path: str,
    chunks: AsyncIterator[bytes],
    *,
    no_overwrite_dir_non_dir: bool = False,
    owner: tuple[int, int] | None = None,
    limits: Limits | None = None,
) -> None:
    """Unpack a tar stream into a directory of a container.

    `owner` is given to everything (what Docker's copyUIDGID asks for); None keeps the archive's owners.
    NotFound: no such directory. Invalid: not a directory, or a bad archive. Forbidden: read-only.
    """
    job = WriteArchive(
        place=_place(tree),
        path=path,
        owner=owner,
        keep_kind=no_overwrite_dir_non_dir,
        limits=limits or Limits(),
    )
    async with Worker(job, pid=_pid(tree)) as worker:
        await worker.feed_and_wait(chunks)


async def copy_up(tree: Tree, path: str, destination: Path) -> None:
    """Fill an empty directory with what the tree has at `path`, owner and mode of the directory included."""
    job = CopyUp(place=_place(tree), path=path, destination=str(destination))
    async with Worker(job, pid=_pid(tree)) as worker:
        await worker.last()


async def attach_mount(pid: int, tree: int, target: str) -> int:
    """Attach a detached tree of mounts in the mount namespace of a container's process; the mount's id.
    Invalid: the target can't be. Conflict, HostError."""
    async with _bounded(), Worker(AttachMount(target=target, tree=tree), pid=pid, handed=(tree,)) as worker:
        answer = await worker.last()
        assert isinstance(answer, MountAttached)
        return answer.mount_id


async def detach_mounts(pid: int, mounts: Mapping[str, int]) -> None:
    """Detach mounts by target and id, all or none. Conflict: one isn't what it was. HostError."""
    async with _bounded(), Worker(DetachMounts(mounts=dict(mounts)), pid=pid) as worker:
        await worker.last()


@contextlib.asynccontextmanager
async def _bounded() -> AsyncIterator[None]:
    try:
        async with asyncio.timeout(_MOUNT_S):
            yield
    except TimeoutError:
        raise Unavailable(
            f"the container's mounts could not be changed within {_MOUNT_S} s: try again"
        ) from None


class Worker:
    """One worker process with one job; an async context manager that ends it."""

    def __init__(self, job: Job, *, pid: int = 0, handed: Sequence[int] = ()) -> None:
        self._job = job
        self._handed = handed  # descriptors that the process gets, by the same numbers
        self._pid = pid
        self._process: subprocess.Popen[bytes] | None = None
        self._process_fd = -1
        self._control: socket.socket | None = None
        self._data: socket.socket | None = None
        self._looking: asyncio.TimerHandle | None = None
        self.idle_since_s: float | None = None  # its client is waited for
        self._given_up = False

    async def __aenter__(self) -> Worker:
        try:
            await _crowd.enter(self)
            self._start()
            body = msgspec.json.encode(self._job)
            await self._loop.sock_sendall(self._ours(), struct.pack("<I", len(body)) + body)
            self._look_started()
        except (BrokenPipeError, ConnectionResetError) as error:
            await self.end()
            raise HostError("a worker process ended before it took its job") from error
        except BaseException:
            await self.end()
            raise
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.end()

    @property
    def _loop(self) -> asyncio.AbstractEventLoop:
        return asyncio.get_running_loop()

    def _ours(self) -> socket.socket:
        assert self._control is not None
        return self._control

    def _look_started(self) -> None:
        """Once the worker has read its job, its start is over: the next one may begin."""
        if self._control is None:
            return
        left = fcntl.ioctl(self._control, termios.TIOCOUTQ, b"\0\0\0\0")  # SIOCOUTQ of unix(7)
        if left == b"\0\0\0\0":
            _crowd.started(self)
        else:
            self._looking = self._loop.call_later(_LOOK_S, self._look_started)

    def give_up(self) -> None:
        """Kill the process; whoever uses it gets an error, or finds out at the next byte."""
        self._given_up = True
        if self._process_fd >= 0:
            signal.pidfd_send_signal(self._process_fd, signal.SIGKILL)

    def _start(self) -> None:
        pidfd = -1
        control, their_control = socket.socketpair()
        data, their_data = socket.socketpair()
        self._control, self._data = control, data
        try:
            for end in (data, their_data):
                end.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _BUFFER)
            for end in (control, data):
                end.setblocking(False)
            pass_fds = [their_control.fileno(), their_data.fileno(), *self._handed]
            if self._pid:
                pidfd = _open_pid(self._pid)
                pass_fds.append(pidfd)
            # The parent-death signal goes by thread: this is the event loop's, which lives as long as we do.
            self._process = subprocess.Popen(
                [
                    sys.executable,
                    "-I",
                    "-c",
                    _START,
                    _ROOT,
                    str(their_control.fileno()),
                    str(their_data.fileno()),
                    str(pidfd),
                ],
                pass_fds=pass_fds,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                env=_ENVIRONMENT,
                cwd="/",
            )
            self._process_fd = os.pidfd_open(self._process.pid)
        except OSError as error:
            raise HostError(f"a worker process can't be started: {error.strerror}") from error
        finally:
            their_control.close()
            their_data.close()
            if pidfd >= 0:
                os.close(pidfd)

    def take_data(self) -> socket.socket:
        """The data socket, for another process to write to; whoever takes it closes it."""
        assert self._data is not None
        taken, self._data = self._data, None
        return taken

    async def tell(self, body: bytes, files: Sequence[int] = ()) -> None:
        """Send one message to a worker that takes several, with descriptors. HostError when it died."""
        control = self._ours()
        data = memoryview(struct.pack("<I", len(body)) + body)
        try:
            if files:
                # The socket is empty or nearly: a worker reads its commands at once.
                while True:
                    try:
                        data = data[socket.send_fds(control, [data], list(files)) :]
                        break
                    except BlockingIOError:
                        await asyncio.sleep(_LOOK_S)
            await self._loop.sock_sendall(control, data)
        except (BrokenPipeError, ConnectionResetError) as error:
            raise HostError("a worker process ended before it took a command") from error

    async def answer(self) -> Answer:
        """The next report or answer. HostError when the worker died."""
        return decode_answer(await self.frame())

    async def frame(self) -> bytes:
        """The next message of the worker, not decoded. HostError when it died."""
        (length,) = struct.unpack("<I", await self._exactly(4))
        if length > _ANSWER_MAX:
            raise HostError(f"a worker's answer has {length} bytes; the limit is {_ANSWER_MAX}")
        return await self._exactly(length)

    async def last(self, report: Callable[[Progress], None] | None = None) -> Answer:
        """The answer after all reports; a failure is raised."""
        while isinstance(answer := await self.answer(), Progress):
            if report is not None:
                report(answer)
        if isinstance(answer, Failed):
            raise_failure(answer)
        return answer

    async def found(self) -> PathStat:
        """The facts of a path."""
        answer = await self.last()
        assert isinstance(answer, Found)
        return answer.stat

    async def feed_and_wait(
        self, chunks: AsyncIterator[bytes], report: Callable[[Progress], None] | None = None
    ) -> Answer:
        """Send a stream, have the answer; an early one ends the sending. Errors of `chunks` are raised."""
        feeding = asyncio.ensure_future(self._feed(chunks))
        waiting = asyncio.ensure_future(self.last(report))
        try:
            await asyncio.wait((feeding, waiting), return_when=asyncio.FIRST_COMPLETED)
            if feeding.done() and (error := feeding.exception()) is not None:
                raise error
            return await waiting
        finally:
            for task in (feeding, waiting):
                task.cancel()
            await asyncio.gather(feeding, waiting, return_exceptions=True)

    async def receive(self) -> bytes:
        """The next bytes that the worker sends, empty at the end."""
        assert self._data is not None
        self.idle_since_s = None
        piece = await self._loop.sock_recv(self._data, _PIECE)
        self.idle_since_s = self._loop.time() if piece else None
        return piece

    async def end(self) -> None:
        """Kill and reap the process; idempotent, and not to be interrupted."""
        _crowd.leave(self)
        if self._looking is not None:
            self._looking.cancel()
        for end in (self._control, self._data):
            if end is not None:
                end.close()
        self._control = self._data = None
        process, self._process = self._process, None
        fd, self._process_fd = self._process_fd, -1
        if process is None:
            return
        if fd < 0:
            process.kill()
            process.wait()
            return
        signal.pidfd_send_signal(fd, signal.SIGKILL)
        cancelled: asyncio.CancelledError | None = None
        while True:
            gone = self._loop.create_future()
            self._loop.add_reader(fd, _set, gone)
            try:
                await gone
                break
            except asyncio.CancelledError as error:
                cancelled = error  # it is being killed and will be gone soon: reap it first
            finally:
                self._loop.remove_reader(fd)
        os.close(fd)
        process.wait()
        if cancelled is not None:
            raise cancelled

    async def _feed(self, chunks: AsyncIterator[bytes]) -> None:
        assert self._data is not None
        self.idle_since_s = self._loop.time()
        async for chunk in chunks:
            self.idle_since_s = None
            try:
                await self._loop.sock_sendall(self._data, chunk)
            except (BrokenPipeError, ConnectionResetError):
                return  # the worker has its answer ready, or died: waiting tells which
            self.idle_since_s = self._loop.time()
        self.idle_since_s = None
        self._data.shutdown(socket.SHUT_WR)

    async def _exactly(self, length: int) -> bytes:
        data = bytearray()
        while len(data) < length:
            try:
                piece = await self._loop.sock_recv(self._ours(), min(length - len(data), _PIECE))
            except ConnectionResetError:
                piece = b""
            if not piece and self._given_up:
                raise Unavailable(
                    "the transfer stood still while others waited for its place, and was ended: start it again"
                )
            if not piece:
                raise HostError("a worker process ended without an answer: it was killed, or it crashed")
            data += piece
        return bytes(data)


class ArchiveStream:
    """The bytes of an archive; iterate to the end or call `aclose`, either ends the worker."""

    def __init__(self, worker: Worker) -> None:
        self._worker: Worker | None = worker

    def __aiter__(self) -> ArchiveStream:
        return self

    async def __anext__(self) -> bytes:
        worker = self._worker
        if worker is None:
            raise StopAsyncIteration
        try:
            piece = await worker.receive()
            if piece:
                return piece
            await worker.last()
        except BaseException:
            await self.aclose()
            raise
        await self.aclose()
        raise StopAsyncIteration

    async def aclose(self) -> None:
        worker, self._worker = self._worker, None
        if worker is not None:
            await worker.end()


def _set(future: asyncio.Future[None]) -> None:
    if not future.done():
        future.set_result(None)


def _pid(tree: Tree) -> int:
    return tree.pid if isinstance(tree, RunningTree) else 0


def _open_pid(pid: int) -> int:
    try:
        return os.pidfd_open(pid)
    except ProcessLookupError as error:
        raise Conflict("the container has just stopped: try again") from error


def _place(tree: Tree) -> Place:
    if isinstance(tree, RunningTree):
        return RunningPlace()
    assert isinstance(tree, OverlayTree)
    return OverlayPlace(
        lower=tuple(tree.lower),
        layers_dir=str(tree.layers_dir),
        upper=str(tree.upper or ""),
        work=str(tree.work or ""),
        mounts=tuple(
            BindMount(
                source=m.source, subpath=m.subpath, layers=m.layers, target=m.target, readonly=m.readonly
            )
            for m in tree.mounts
            if m.kind != "tmpfs"
        ),
    )
