"""Docker's plugin protocol, version 1: where plugins are found, and calls to them.

A plugin is a process of somebody else's: it may be gone, hang, or answer nonsense. Every call has a time limit, its
answer a size, and only a connection that couldn't be made is tried again (as in moby, pkg/plugins/client.go: after 1,
2, 4 … s, for up to 30 s), for what was sent may have been done.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import ssl
import stat
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import urlsplit

import msgspec

from cove.model.errors import HostError, Invalid, NotFound, Unavailable

SPEC_DIRECTORIES = (Path("/etc/docker/plugins"), Path("/usr/lib/docker/plugins"))
SOCKET_DIRECTORY = Path("/run/docker/plugins")
_NAME = re.compile(r"[a-zA-Z0-9][a-zA-Z0-9_.-]{0,127}")
_MIME = "application/vnd.docker.plugins.v1.2+json"
_HEAD_BYTES = 64 << 10
_BODY_BYTES = 8 << 20
_SPEC_BYTES = 64 << 10
_RETRY_S = 30.0
_SCANNED = 256


class Tls(msgspec.Struct, frozen=True, rename={"ca": "CAFile", "certificate": "CertFile", "key": "KeyFile"}):
    ca: str = ""
    certificate: str = ""
    key: str = ""
    insecure: bool = msgspec.field(default=False, name="InsecureSkipVerify")


class _Spec(msgspec.Struct, frozen=True):
    address: str = msgspec.field(default="", name="Addr")
    tls: Tls | None = msgspec.field(default=None, name="TLSConfig")


class Plugin(NamedTuple):
    """Where a plugin listens: unix:///run/docker/plugins/x.sock, tcp://…, http://…, https://…"""

    name: str
    address: str
    tls: Tls | None = None


def find_plugin(name: str, sockets: Sequence[Path], specs: Sequence[Path] = SPEC_DIRECTORIES) -> Plugin:
    """A plugin by its name: a socket, else a specification. Raises NotFound, Invalid (a file that is none)."""
    if _NAME.fullmatch(name):
        for directory in sockets:
            for path in (directory / f"{name}.sock", directory / name / f"{name}.sock"):
                with contextlib.suppress(OSError):
                    if stat.S_ISSOCK(path.stat().st_mode):
                        return Plugin(name, f"unix://{path}")
        for directory in specs:
            for kind in (".spec", ".json"):
                for path in (directory / f"{name}{kind}", directory / name / f"{name}{kind}"):
                    with contextlib.suppress(FileNotFoundError, NotADirectoryError):
                        return _read_spec(name, path)
    raise NotFound(f'plugin "{name}" not found')


def list_plugins(sockets: Sequence[Path], specs: Sequence[Path] = SPEC_DIRECTORIES) -> list[str]:
    """The names of all plugins that there may be."""
    found: set[str] = set()
    for directory in (*sockets, *specs):
        try:
            entries = sorted(os.listdir(directory))[:_SCANNED]
        except OSError:
            continue
        for entry in entries:
            stem, kind = os.path.splitext(entry)
            found.add(stem if kind in (".sock", ".spec", ".json") else entry)
    names = []
    for name in sorted(found):
        with contextlib.suppress(NotFound, Invalid, OSError):
            names.append(find_plugin(name, sockets, specs).name)
    return names


def _read_spec(name: str, path: Path) -> Plugin:
    with path.open("rb") as file:
        text = file.read(_SPEC_BYTES)
    if path.suffix == ".spec":
        return Plugin(name, text.decode(errors="replace").strip())
    try:
        spec = msgspec.json.decode(text, type=_Spec)
    except msgspec.DecodeError as error:
        raise Invalid(f"{path}: {error}") from None
    return Plugin(name, spec.address, spec.tls)


async def call(plugin: Plugin, method: str, body: dict[str, Any], bound_s: float) -> dict[str, Any]:
    """`POST /METHOD`: the answer's object. Raises HostError for what the plugin says is wrong, and for nonsense;
    Unavailable when it can't be reached or doesn't answer in time."""
    try:
        async with asyncio.timeout(bound_s):
            status, answer = await _exchange(plugin, method, msgspec.json.encode(body))
    except TimeoutError:
        raise Unavailable(f"plugin {plugin.name}: {method}: no answer within {bound_s:.0f} s") from None
    except (OSError, EOFError, ssl.SSLError) as error:
        raise Unavailable(
            f"plugin {plugin.name}: {method}: {error.args[-1] if error.args else error}"
        ) from None
    except ValueError as error:
        raise HostError(f"plugin {plugin.name}: {method}: its answer is no HTTP: {error}") from None
    try:
        found = msgspec.json.decode(answer) if answer.strip() else {}
    except msgspec.DecodeError:
        found = None
    if status == 404 and not isinstance(found, dict):
        raise NotFound(f"plugin {plugin.name} has no {method}")
    if isinstance(found, dict) and found.get("Err"):
        raise HostError(f"{method}: {str(found['Err'])[:1000]}")
    if status != 200:
        told = answer[:300].decode(errors="replace").strip()
        raise HostError(f"plugin {plugin.name}: {method}: status {status}: {told}")
    if not isinstance(found, dict):
        raise HostError(f"plugin {plugin.name}: {method}: expected a JSON object in its answer")
    return found


async def _exchange(plugin: Plugin, method: str, body: bytes) -> tuple[int, bytes]:
    reader, writer = await _connect(plugin)
    try:
        head = (
            f"POST /{method} HTTP/1.1\r\nHost: plugin.moby.localhost\r\nAccept: {_MIME}\r\nContent-Type: {_MIME}\r\n"
            f"Content-Length: {len(body)}\r\nConnection: close\r\n\r\n"
        )
        writer.write(head.encode() + body)
        await writer.drain()
        return await _read_answer(reader)
    finally:
        writer.transport.abort()


async def _connect(plugin: Plugin) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    deadline_s = time.monotonic() + _RETRY_S
    pause_s = 1.0
    while True:
        try:
            return await _open(plugin)
        except OSError:
            if time.monotonic() + pause_s >= deadline_s:
                raise
            await asyncio.sleep(pause_s)
            pause_s = min(pause_s * 2, _RETRY_S)


async def _open(plugin: Plugin) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    url = urlsplit(plugin.address)
    if url.scheme == "unix":
        return await asyncio.open_unix_connection(url.path, limit=_HEAD_BYTES)
    if url.scheme not in ("tcp", "http", "https") or not url.hostname:
        raise ValueError(
            f"address {plugin.address!r}: expected unix:///PATH, tcp://HOST:PORT or https://HOST:PORT"
        )
    secure = url.scheme == "https" or plugin.tls is not None
    context = await asyncio.to_thread(_tls_context, plugin.tls or Tls()) if secure else None
    port = url.port or (443 if secure else 80)
    return await asyncio.open_connection(url.hostname, port, ssl=context, limit=_HEAD_BYTES)


def _tls_context(tls: Tls) -> ssl.SSLContext:
    context = ssl.create_default_context(cafile=tls.ca or None)
    if tls.certificate:
        context.load_cert_chain(tls.certificate, tls.key or None)
    if tls.insecure:
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    return context


async def _read_answer(reader: asyncio.StreamReader) -> tuple[int, bytes]:
    try:
        head = await reader.readuntil(b"\r\n\r\n")
    except asyncio.LimitOverrunError:
        raise ValueError(f"more than {_HEAD_BYTES} bytes of headers") from None
    lines = head.decode("latin-1").split("\r\n")
    match = re.fullmatch(r"HTTP/1\.[01] ([0-9]{3})(?: .*)?", lines[0])
    if match is None:
        raise ValueError("no status line")
    headers = {
        name.strip().lower(): value.strip() for name, _, value in (line.partition(":") for line in lines[1:])
    }
    if headers.get("transfer-encoding", "").lower() == "chunked":
        return int(match[1]), await _read_chunks(reader)
    length = headers.get("content-length")
    if length is None:
        return int(match[1]), await _read_some(reader, None)
    if not length.isdecimal() or int(length) > _BODY_BYTES:
        raise ValueError(f"a body of {length[:20]} bytes, the limit is {_BODY_BYTES}")
    return int(match[1]), await _read_some(reader, int(length))


async def _read_some(reader: asyncio.StreamReader, length: int | None) -> bytes:
    if length is not None:
        return await reader.readexactly(length)
    body = bytearray()
    while piece := await reader.read(1 << 16):
        body += piece
        if len(body) > _BODY_BYTES:
            raise ValueError(f"a body of more than {_BODY_BYTES} bytes")
    return bytes(body)


async def _read_chunks(reader: asyncio.StreamReader) -> bytes:
    body = bytearray()
    while True:
        line = (await reader.readline()).split(b";")[0].strip()
        size = int(line or b"x", 16)
        if size < 0 or len(body) + size > _BODY_BYTES:
            raise ValueError(f"a body of more than {_BODY_BYTES} bytes")
        if not size:
            return bytes(body)
        body += await reader.readexactly(size)
        await reader.readexactly(2)
