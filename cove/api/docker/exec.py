"""Execs: create, start (attached or detached), resize, inspect."""

from __future__ import annotations

from cove.api.docker import wire
from cove.api.docker.containers import read_size
from cove.api.docker.context import MULTIPLEXED_STREAM, RAW_STREAM, Api
from cove.api.docker.decode import decode_env, words
from cove.api.docker.streams import hand_over
from cove.api.http import Request, Response, json_response
from cove.api.router import Route
from cove.engine.attach import parse_keys
from cove.engine.types import ExecSpec
from cove.model.errors import Invalid


async def create(api: Api, request: Request) -> Response:
    body = await wire.read(request, wire.ExecCreateBody, required=True)
    args = words(body.cmd, "Cmd")
    if not args:
        raise Invalid("No exec command specified")
    keys = body.detach_keys or ""
    parse_keys(keys)
    rows, cols = _console_size(body.console_size, request)
    spec = ExecSpec(
        args=args,
        env=decode_env(body.env),
        user=body.user or "",
        working_dir=body.working_dir or "",
        tty=bool(body.tty),
        privileged=bool(body.privileged),
        attach_stdin=bool(body.attach_stdin),
        attach_stdout=bool(body.attach_stdout),
        attach_stderr=bool(body.attach_stderr),
        detach_keys=keys,
        rows=rows,
        cols=cols,
    )
    return json_response({"Id": await api.engine.exec_create(request.name, spec)}, 201)


def _console_size(size: list[int] | None, request: Request) -> tuple[int, int]:
    """Rows and columns; (0, 0) where none are given, and before API 1.42, which didn't know them."""
    if not size or request.version < 1042:
        return 0, 0
    if len(size) != 2 or not all(0 <= n <= 65535 for n in size):
        raise Invalid("ConsoleSize: expected [height, width], each from 0 to 65535")
    return size[0], size[1]


async def start(api: Api, request: Request) -> Response | None:
    body = await wire.read(request, wire.ExecStartBody)
    view = api.engine.exec_check_start(request.name)
    tty = bool(body.tty)  # how the client frames; whether there is a terminal was said at create
    rows, cols = _console_size(body.console_size, request) if view.spec.tty else (0, 0)
    if not rows and not cols:
        rows, cols = view.spec.rows, view.spec.cols
    if body.detach:
        await api.engine.exec_start(
            view.id, detach=True, tty=tty, rows=rows, cols=cols, sock=None, initial=b""
        )
        return Response(200)
    multiplexed = not tty and request.upgrades and request.version >= 1042
    await hand_over(
        request,
        MULTIPLEXED_STREAM if multiplexed else RAW_STREAM,
        lambda sock, early: api.engine.exec_start(
            view.id, detach=False, tty=tty, rows=rows, cols=cols, sock=sock, initial=early
        ),
        framed=not tty,
    )
    return None


async def resize(api: Api, request: Request) -> Response:
    rows, cols = read_size(request)
    await api.engine.exec_resize(request.name, rows, cols)
    return Response(200)


async def inspect(api: Api, request: Request) -> Response:
    view = await api.engine.exec_settled(request.name)
    spec = view.spec
    process = {
        "tty": spec.tty,
        "entrypoint": spec.args[0],
        "arguments": list(spec.args[1:]),
        "privileged": spec.privileged,
    }
    if spec.user:
        process["user"] = spec.user
    return json_response(
        {
            "ID": view.id,
            "Running": view.running,
            "ExitCode": view.exit_code,
            "ProcessConfig": process,
            "OpenStdin": spec.attach_stdin,
            "OpenStderr": spec.attach_stderr,
            "OpenStdout": spec.attach_stdout,
            "CanRemove": False,
            "ContainerID": view.container_id,
            "DetachKeys": spec.detach_keys,
            "Pid": view.pid,
        }
    )


ROUTES: tuple[Route[Api], ...] = (
    ("POST", "/containers/{name}/exec", create),
    ("POST", "/exec/{name}/start", start),
    ("POST", "/exec/{name}/resize", resize),
    ("GET", "/exec/{name}/json", inspect),
)
