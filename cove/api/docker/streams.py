"""A container's streams: logs, statistics, attach, and files by `docker cp`.

Attach hands the client's socket over and is done; logs and statistics run until their end or
the client's.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import functools
import socket
import time
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Mapping
from urllib.parse import quote_plus

from cove.api.docker.context import MULTIPLEXED_STREAM, RAW_STREAM, Api
from cove.api.docker.stats import stats_json
from cove.api.docker.text import parse_time, rfc3339, rfc3339_fixed
from cove.api.http import Request, Response, encode_json, error_response, json_response
from cove.api.router import Route
from cove.api.websocket import accept_head, run_session
from cove.engine.attach import parse_keys
from cove.engine.types import AttachOptions, ContainerStats, View
from cove.image.types import PathStat
from cove.logs.model import STDERR, STDOUT, LogLine, LogQuery
from cove.model.errors import CoveError, Invalid

STATS_INTERVAL_S = 1.0
BATCH_BYTES = 64 << 10  # log lines are sent together up to this size
FIRST_LINE_S = 0.1  # how long a following reader is given to fail before a status goes out


def frame(stream: int, data: bytes) -> bytes:
    """One frame of a multiplexed stream."""
    return bytes((stream, 0, 0, 0)) + len(data).to_bytes(4, "big") + data


# --- logs ---------------------------------------------------------------------------------


class Batches:
    """Lines rendered by a task of its own and taken in batches: one write for many lines.

    A reader that is ahead waits for the one that takes.
    """

    def __init__(self, lines: AsyncGenerator[LogLine, None], render: Callable[[LogLine], bytes]) -> None:
        self._parts: list[bytes] = []
        self._size = 0
        self._wake = asyncio.Event()
        self._room = asyncio.Event()
        self._task = asyncio.get_running_loop().create_task(self._pump(lines, render))
        self._task.add_done_callback(lambda task: self._wake.set())

    async def _pump(self, lines: AsyncGenerator[LogLine, None], render: Callable[[LogLine], bytes]) -> None:
        async with contextlib.aclosing(
            lines
        ):  # a client may leave between two lines: the log's files are closed then
            async for line in lines:
                data = render(line)
                self._parts.append(data)
                self._size += len(data)
                self._wake.set()
                if self._size >= BATCH_BYTES:
                    self._room.clear()
                    await self._room.wait()

    async def check(self, timeout_s: float | None) -> None:
        """Wait for something to take, or `timeout_s`; raises what the lines raised before the first."""
        try:
            async with asyncio.timeout(timeout_s):
                await self._wake.wait()
        except TimeoutError:
            return
        if self._task.done() and not self._parts:
            self._task.result()

    async def take(self) -> bytes:
        """What there is, as soon as there is something; b"" at the end. Raises what the lines raised."""
        while not self._parts:
            if self._task.done():
                self._task.result()
                return b""
            self._wake.clear()
            await self._wake.wait()
        data = b"".join(self._parts)
        self._parts.clear()
        self._size = 0
        self._room.set()
        return data

    async def aclose(self) -> None:
        self._task.cancel()
        await asyncio.gather(self._task, return_exceptions=True)


async def logs(api: Api, request: Request) -> None:
    query = request.query
    stdout, stderr = query.flag("stdout"), query.flag("stderr")
    if not stdout and not stderr:
        raise Invalid("Bad parameters: you must choose at least one stream: stdout=1, stderr=1, or both")
    now_ns = time.time_ns()
    until = query.get("until")
    wanted = LogQuery(
        stdout=stdout,
        stderr=stderr,
        since_ns=max(0, parse_time(query.get("since"), "since", now_ns)),
        until_ns=max(0, parse_time("" if until == "0" else until, "until", now_ns)),
        tail=_tail(query.get("tail")),
        follow=query.flag("follow"),
    )
    view = api.engine.find(request.name)
    tty = view.container.spec.tty
    render = functools.partial(
        _render_line,
        timestamps=query.flag("timestamps"),
        framed=not tty,
        details=_details(api.engine.log_attributes(view)) if query.flag("details") else b"",
    )
    lines = api.engine.logs(view.container.id, wanted)
    async with contextlib.aclosing(Batches(lines, render)) as batches:
        await batches.check(FIRST_LINE_S if wanted.follow else None)
        if wanted.follow:
            request.bind_to_client(ends_clean=False)  # who follows goes on at the next daemon
        multiplexed = not tty and request.version >= 1042
        stream = await request.start_stream(MULTIPLEXED_STREAM if multiplexed else RAW_STREAM)
        try:
            while data := await batches.take():
                await stream.write(data)
        except CoveError as error:  # the status is out: say it where the lines are
            text = f"Error grabbing logs: {error}\n".encode()
            await stream.write(text if tty else frame(STDERR, text))


def _details(attributes: Mapping[str, str]) -> bytes:
    """What stands before each line, as moby has it: "a=1,b=2 ", or a space alone."""
    pairs = (f"{quote_plus(key)}={quote_plus(attributes[key])}" for key in sorted(attributes))
    return ",".join(pairs).encode() + b" "


def _render_line(line: LogLine, *, timestamps: bool, framed: bool, details: bytes = b"") -> bytes:
    data = details + line.data if details else line.data
    data = f"{rfc3339_fixed(line.time_ns)} ".encode() + data if timestamps else data
    return frame(line.stream, data) if framed else data


def _tail(text: str) -> int | None:
    """A number of lines; "all", "" and, as in Docker, a negative number mean every line."""
    if text in ("", "all"):
        return None
    digits = text.removeprefix("-")
    if not (digits.isascii() and digits.isdigit() and len(digits) <= 18):
        raise Invalid(f'query parameter tail: expected a number of lines or "all", got {text!r}')
    return None if text.startswith("-") else int(text)


# --- statistics ---------------------------------------------------------------------------


async def stats(api: Api, request: Request) -> Response | None:
    """One reading, or one a second. Without `one-shot`, a single one comes with its predecessor."""
    container_id = api.engine.find(request.name).container.id
    follow = request.query.flag("stream", True)
    one_shot = request.query.flag("one-shot") and request.version >= 1041
    memory = api.engine.info().memory_bytes
    view, now = await _read_stats(api, container_id)
    if not follow:
        before = None
        if now is not None and not one_shot:
            request.bind_to_client()
            await asyncio.sleep(STATS_INTERVAL_S)
            before = now
            view, now = await _read_stats(api, container_id)
        return json_response(stats_json(view, now, before, memory))
    request.bind_to_client()
    stream = await request.start_stream("application/json")
    before = None
    with contextlib.suppress(CoveError):  # the container is gone: so is the stream
        while True:
            await stream.write(encode_json(stats_json(view, now, before, memory)) + b"\n")
            await asyncio.sleep(STATS_INTERVAL_S)
            before = now
            view, now = await _read_stats(api, container_id)
    return None


async def _read_stats(api: Api, container_id: str) -> tuple[View, ContainerStats | None]:
    view = api.engine.find(container_id)
    return view, await api.engine.stats(container_id) if view.state.pid else None


# --- attach -------------------------------------------------------------------------------


async def attach(api: Api, request: Request) -> None:
    query = request.query
    view = api.engine.check_attach(request.name)
    tty = view.container.spec.tty
    options = AttachOptions(
        stdin=query.flag("stdin") and view.container.spec.open_stdin,
        stdout=query.flag("stdout"),
        stderr=query.flag("stderr"),
        multiplex=not tty,
        detach_keys=parse_keys(query.get("detachKeys")),
        stream=query.flag("stream"),
        logs=query.flag("logs"),
    )
    if not options.stream and not options.logs:
        raise Invalid("attach: at least one of the query parameters stream and logs must be true")
    multiplexed = not tty and request.upgrades and request.version >= 1042
    await hand_over(
        request,
        MULTIPLEXED_STREAM if multiplexed else RAW_STREAM,
        lambda sock, early: api.engine.attach(view.container.id, options, sock, early),
        framed=not tty,
        # A client attaches first and starts the container once it has the header: by then it must be registered.
        settle=view.state.pid > 0 or options.logs,
    )


async def attach_websocket(api: Api, request: Request) -> Response | None:
    """The same by WebSocket, without frames of Docker's: streams can't be told apart, as dockerd has it.

    Before API 1.42 all three streams are meant, before 1.28 messages are text.
    """
    name, slash, word = request.name.rpartition("/")
    if not slash or word != "attach":
        return error_response(404, "page not found")
    query = request.query
    view = api.engine.check_attach(name)
    chosen = request.version >= 1042
    options = AttachOptions(
        stdin=(query.flag("stdin") if chosen else True) and view.container.spec.open_stdin,
        stdout=query.flag("stdout") if chosen else True,
        stderr=query.flag("stderr") if chosen else True,
        multiplex=False,
        detach_keys=parse_keys(query.get("detachKeys")),
        stream=query.flag("stream"),
        logs=query.flag("logs"),
    )
    if not options.stream and not options.logs:
        raise Invalid("attach: at least one of the query parameters stream and logs must be true")
    head = accept_head(request.headers)
    api.sessions.check_room()
    ours, theirs = socket.socketpair()
    spare = theirs.dup()  # `attach` closes its socket when it fails
    try:
        try:
            if not options.logs:  # a client starts the container once it has the answer
                await api.engine.attach(view.container.id, options, theirs, b"")
            client, early = await request.upgrade(head)
        except BaseException:
            ours.close()
            theirs.close()
            raise
        api.sessions.spawn(run_session(client, ours, text=request.version < 1028, early=early))
        if options.logs:  # they may be more than the pair of sockets holds: the session takes them
            await _attach_late(api, view.container.id, options, theirs, spare)
    finally:
        spare.close()
    return None


async def _attach_late(
    api: Api, container_id: str, options: AttachOptions, theirs: socket.socket, spare: socket.socket
) -> None:
    """Attach once the answer is out: a failure is written where output would be."""
    try:
        await api.engine.attach(container_id, options, theirs, b"")
    except (CoveError, OSError) as error:
        theirs.close()
        spare.setblocking(False)
        with contextlib.suppress(OSError):
            await asyncio.get_running_loop().sock_sendall(spare, f"{error}\r\n".encode())
            spare.shutdown(socket.SHUT_RDWR)
    except BaseException:
        theirs.close()
        with contextlib.suppress(OSError):
            spare.shutdown(socket.SHUT_RDWR)
        raise


async def hand_over(
    request: Request,
    content_type: str,
    give: Callable[[socket.socket, bytes], Awaitable[None]],
    *,
    framed: bool,
    settle: bool = True,
) -> None:
    """Answer with a raw stream and give the socket away; a failure is written where output would be.

    `settle`: only once the client has taken the header.
    """
    sock, early = await request.hijack(content_type, settle=settle)
    spare = sock.dup()  # `give` closes its socket when it fails
    try:
        await give(sock, early)
    except CoveError as error:
        sock.close()
        text = f"{error}\r\n".encode()
        with contextlib.suppress(OSError):
            spare.setblocking(False)
            await asyncio.get_running_loop().sock_sendall(spare, frame(STDOUT, text) if framed else text)
            spare.shutdown(socket.SHUT_RDWR)
    except BaseException:
        sock.close()
        with contextlib.suppress(OSError):
            spare.shutdown(socket.SHUT_RDWR)
        raise
    finally:
        spare.close()


# --- files --------------------------------------------------------------------------------


async def archive_stat(api: Api, request: Request) -> Response:
    stat = await api.engine.archive_stat(request.name, _path(request))
    return Response(200, headers=_stat_header(stat))


async def archive_get(api: Api, request: Request) -> None:
    stat, chunks = await api.engine.archive_get(request.name, _path(request))
    async with _closing(chunks):
        stream = await request.start_stream("application/x-tar", headers=_stat_header(stat))
        async for chunk in chunks:
            await stream.write(chunk)


async def export(api: Api, request: Request) -> None:
    chunks = await api.engine.export(request.name)
    async with _closing(chunks):
        stream = await request.start_stream("application/octet-stream")
        async for chunk in chunks:
            await stream.write(chunk)


async def changes(api: Api, request: Request) -> Response:
    found = await api.engine.changes(request.name)
    return json_response([{"Path": change.path, "Kind": change.kind} for change in found] or None)


async def archive_put(api: Api, request: Request) -> Response:
    query = request.query
    await api.engine.archive_put(
        request.name,
        _path(request),
        request.body,
        no_overwrite_dir_non_dir=query.flag("noOverwriteDirNonDir"),
        copy_uid_gid=query.flag("copyUIDGID"),
    )
    return Response(200)


@contextlib.asynccontextmanager
async def _closing(chunks: AsyncIterator[bytes]) -> AsyncIterator[None]:
    """End an iterator that can be ended early, also when the client leaves."""
    try:
        yield
    finally:
        close = getattr(chunks, "aclose", None)
        if close is not None:
            await close()


def _path(request: Request) -> str:
    path = request.query.get("path")
    if not path or "\0" in path:
        raise Invalid("bad parameter: path: a path in the container is needed, e.g. path=/etc/hosts")
    return path


def _stat_header(stat: PathStat) -> dict[str, str]:
    found = {
        "name": stat.name,
        "size": stat.size,
        "mode": stat.mode,
        "mtime": rfc3339(stat.mtime_ns),
        "linkTarget": stat.link_target,
    }
    return {"X-Docker-Container-Path-Stat": base64.b64encode(encode_json(found)).decode("ascii")}


ROUTES: tuple[Route[Api], ...] = (
    ("GET", "/containers/{name}/logs", logs),
    ("GET", "/containers/{name}/stats", stats),
    ("POST", "/containers/{name}/attach", attach),
    ("GET", "/containers/{name}/ws", attach_websocket),  # /containers/ID/attach/ws
    ("GET", "/containers/{name}/export", export),
    ("GET", "/containers/{name}/changes", changes),
    ("HEAD", "/containers/{name}/archive", archive_stat),
    ("GET", "/containers/{name}/archive", archive_get),
    ("PUT", "/containers/{name}/archive", archive_put),
)
