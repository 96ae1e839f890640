"""The worker that speaks with a registry: commands in, documents and blobs out.

It sees no file, has no capability and is nobody; what it may do is written down in `SYSTEM_CALLS`. One thread reads the
commands, each of which is done by a thread of a pool. A place that can't be reached, and a mirror that fails in
any way, is passed over for the next one.
"""

from __future__ import annotations

import codecs
import email
import os
import socket
import struct
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from queue import Empty, SimpleQueue
from typing import NoReturn, TypeVar

import msgspec

from cove.image import sandbox
from cove.image.registry.blobs import BlobStream
from cove.image.registry.download import download
from cove.image.registry.messages import (
    Addresses,
    BlobMoved,
    CommandFailed,
    Document,
    Fetch,
    GetDocument,
    GetUrl,
    Grow,
    Lookup,
    PushBlob,
    PutManifest,
    Reply,
    StreamBlob,
    Streamed,
    decode_command,
)
from cove.image.registry.sending import Sending, put
from cove.image.registry.tls import Trust
from cove.image.registry.transport import Client, Connections, Unreachable
from cove.model.errors import CoveError, HostError, Unavailable

SYSTEM_CALLS = """
accept4 bind brk clock_gettime clock_nanosleep clone clone3 close connect dup epoll_create1 epoll_ctl epoll_wait exit
exit_group fcntl fstat ftruncate futex getpeername getpid getrandom getsockname getsockopt gettid ioctl lseek madvise
mmap mprotect mremap munmap nanosleep newfstatat poll ppoll pread64 pselect6 read recvfrom recvmsg restart_syscall
rseq rt_sigaction rt_sigprocmask rt_sigreturn sched_getaffinity sched_yield select sendmsg sendto set_robust_list
setsockopt shutdown sigaltstack write writev
""".split()
_FRAME_MAX = 8 << 20
_FDS_MAX = 8
_LOOKUP_S = 30.0
_THREADS = 24
_NOBODY = 65534
_T = TypeVar("_T")


class Fetching:
    """The job. `run` returns when the daemon closes the control socket."""

    def __init__(self, job: Fetch, control: socket.socket) -> None:
        self._control = control
        self._sending = threading.Lock()
        self._lookups: dict[int, SimpleQueue[tuple[str, ...]]] = {}
        self._number = 0
        self._files: list[int] = []
        self._pushing = Sending(lambda number, current: self._send(BlobMoved(id=number, current=current)))
        self._pool = ThreadPoolExecutor(_THREADS)
        self._ahead = ThreadPoolExecutor(
            _THREADS
        )  # its work waits for nobody, so the pools can't block each other
        hosts = {endpoint.host for endpoint in job.endpoints}
        self._connections = Connections(self._resolve, Trust(hosts), job.timing, job.user_agent)
        self._clients = [Client(self._connections, e, job.credentials, job.repository) for e in job.endpoints]

    def run(self) -> NoReturn:
        """Read commands for as long as the daemon is there."""
        while True:
            head = self._exactly(4)
            (length,) = struct.unpack("<I", head)
            if length > _FRAME_MAX:
                raise HostError(f"a command of {length} bytes")
            command = decode_command(self._exactly(length))
            if isinstance(command, Addresses):
                if (waiting := self._lookups.get(command.id)) is not None:
                    waiting.put(command.addresses)
                continue
            if isinstance(command, Grow):
                self._pushing.grow(command)
                continue
            out = -1
            if isinstance(command, StreamBlob | GetUrl):
                out = self._files.pop(0)
            if isinstance(command, PushBlob) and command.file:
                self._pushing.expect(command, self._files.pop(0))
            self._pool.submit(self._do, command, out)

    def _exactly(self, length: int) -> bytes:
        data = bytearray()
        while len(data) < length:
            piece, files, _, _ = socket.recv_fds(self._control, length - len(data), _FDS_MAX)
            self._files += files
            if not piece:
                os._exit(0)  # the daemon is done with us
            data += piece
        return bytes(data)

    def _send(self, reply: Reply) -> None:
        body = msgspec.json.encode(reply)
        with self._sending:
            try:
                self._control.sendall(struct.pack("<I", len(body)) + body)
            except OSError:
                os._exit(1)

    # --- commands -----------------------------------------------------------------------------

    def _do(self, command: GetDocument | StreamBlob | PushBlob | PutManifest | GetUrl, out: int) -> None:
        try:
            if isinstance(command, GetDocument):
                reply: Reply = self._first(lambda client: _document(client, command))
            elif isinstance(command, StreamBlob):
                reply = self._stream(command, out)
            elif isinstance(command, GetUrl):
                reply = download(command, self._connections, out)
            elif isinstance(command, PutManifest):
                reply = self._first(lambda client: put(command, client))
            else:
                reply = self._push(command)
        except CoveError as error:
            reply = _failure(command.id, error)
        except MemoryError:
            reply = _failure(command.id, HostError("the worker needs more memory than it may have"))
        except OSError as error:
            reply = _failure(command.id, HostError(f"the worker: {error.strerror}"))
        except Exception as error:  # a thread's error is nobody's: whoever asked has to hear of it
            reply = _failure(command.id, HostError(f"the worker failed: {type(error).__name__}"))
        self._send(reply)

    def _stream(self, command: StreamBlob, out: int) -> Reply:
        with socket.socket(fileno=out) as stream:
            stream.setblocking(True)  # it was the event loop's
            blob = BlobStream(command, stream.sendall, self._ahead)
            self._first(blob.run)
            stream.shutdown(socket.SHUT_WR)
        return Streamed(id=command.id)

    def _push(self, command: PushBlob) -> Reply:
        try:
            return self._first(lambda client: self._pushing.send(command, client))
        finally:
            self._pushing.end(command)

    def _first(self, do: Callable[[Client], _T]) -> _T:
        """What the first place gives that can; the last failure otherwise."""
        failure: CoveError | None = None
        for client in list(self._clients):
            try:
                found = do(client)
            except CoveError as error:
                failure = error
                if not client.endpoint.mirror and not isinstance(error, Unreachable):
                    raise
                continue
            if failure is not None and self._clients[0] is not client:
                # What didn't answer isn't asked again for each blob.
                self._clients = [client, *(other for other in self._clients if other is not client)]
            return found
        raise failure or Unavailable("there is no registry to ask")

    # --- names --------------------------------------------------------------------------------

    def _resolve(self, host: str, port: int) -> list[tuple[str, int]]:
        """The daemon looks names up: that takes files and libraries."""
        waiting: SimpleQueue[tuple[str, ...]] = SimpleQueue()
        with self._sending:
            self._number += 1
            number = self._number
            self._lookups[number] = waiting
        self._send(Lookup(id=number, host=host, port=port))
        try:
            addresses = waiting.get(timeout=_LOOKUP_S)
        except Empty:
            addresses = ()
        finally:
            del self._lookups[number]
        if not addresses:
            raise OSError(f"{host} isn't known")
        return [(address, port) for address in addresses]


def _document(client: Client, command: GetDocument) -> Reply:
    headers = {"Accept": command.accept} if command.accept else {}
    with client.request(command.method, command.path, headers=headers) as answer:
        return Document(
            id=command.id,
            data=answer.read(command.limit) if command.method != "HEAD" else b"",
            media_type=answer.headers.get("Content-Type", "")[:256],
            digest=answer.headers.get("Docker-Content-Digest", "")[:256],
            link=answer.headers.get("Link", "")[:4096],
            size=-1 if answer.length is None else answer.length,
        )


def _failure(number: int, error: CoveError) -> CommandFailed:
    # Classes of transport.py are known to the model by what they are kinds of.
    kind = next(k for k in type(error).__mro__ if k.__module__ == CoveError.__module__)
    return CommandFailed(id=number, error=kind.__name__, sentence=str(error))


def serve(job: Fetch, control: socket.socket) -> NoReturn:
    """Wall in and work. Order that must hold: files (certificates, the resolver's) first, then the walls."""
    fetching = Fetching(job, control)
    calls = sandbox.FileCalls(SYSTEM_CALLS)
    calls.allow_sockets((socket.AF_INET, socket.AF_INET6))
    _load_all()
    sandbox.unshare_files()
    sandbox.pivot_into(job.root)
    sandbox.set_limits(memory_bytes=2 << 30)
    sandbox.become(_NOBODY)
    sandbox.keep_capabilities(())
    calls.apply()
    fetching.run()


def _load_all() -> None:
    """What Python imports on its first use only, which behind the walls would fail."""
    for name in ("idna", "latin-1", "iso-8859-1", "ascii", "us-ascii", "utf-8"):
        codecs.lookup(name)
    "host.example".encode("idna")
    email.message_from_string("A: b\n\n").get_all("A")
