"""cp: copy between a container and the host by the API's archives.

The container side is the daemon's. Here: where things go (docker's rules for a target that exists,
doesn't, is a directory), writing the caller's files as a tar stream, and `cove.cli.unpack` for what
comes out.
"""

from __future__ import annotations

import os
import stat

from cove.cli.archivefile import Progress, read_archive, save_stream
from cove.cli.client import query, quote
from cove.cli.fail import ApiError, CliError
from cove.cli.options import Command
from cove.model import wirejson

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import Any

    from cove.cli.client import Client
    from cove.cli.options import Options

IS_DIR = 1 << 31  # Go's os.ModeDir and os.ModeSymlink, as the API sends modes
IS_SYMLINK = 1 << 27
PIECE = 1 << 18


def split_target(text: str) -> tuple[str, str]:
    """(container, path); "" for the host, where a path is absolute, starts with . or has no colon."""
    if text.startswith(("/", ".")) or ":" not in text:
        return "", text
    container, _, path = text.partition(":")
    return container, path


def run_cp(client: Client, options: Options) -> int:
    """cove cp"""
    source_container, source = split_target(options.args[0])
    target_container, target = split_target(options.args[1])
    if source_container and target_container:
        raise CliError(
            "cp: both sides are containers; copy to the host first, e.g. cove cp a:/x - | cove cp - b:/"
        )
    if not source_container and not target_container:
        raise CliError("cp: neither side names a container, e.g. cove cp web:/etc/hosts .")
    if not source or not target:
        raise CliError("cp: an empty path; name one, e.g. web:/etc/hosts")
    if source_container:
        copy_out(client, source_container, source, target, options)
    else:
        copy_in(client, source, target_container, target, options)
    return 0


# --- out of a container -------------------------------------------------------------------


def stat_path(client: Client, container: str, path: str) -> dict[str, Any] | None:
    """The API's path stat; None when nothing is there."""
    import binascii

    connection = client.connect()
    try:
        connection.send("HEAD", _archive(container, {"path": path}))
        answer = connection.receive()
        encoded = answer.headers.get("x-docker-container-path-stat", "")
        if encoded and answer.status < 400:
            found: dict[str, Any] = wirejson.loads(binascii.a2b_base64(encoded).decode())
            return found
    finally:
        connection.close()
    if answer.status >= 500:
        raise ApiError(f"{container}:{path}: the daemon could not look at it", answer.status)
    if answer.status == 404:
        client.get(f"/containers/{quote(container)}/json")  # no such container says so itself
        return None
    raise ApiError(f"{container}:{path}: the daemon refused (status {answer.status})", answer.status)


def _archive(container: str, parameters: dict[str, Any]) -> str:
    return f"/containers/{quote(container)}/archive" + query(parameters)


def copy_out(client: Client, container: str, source: str, target: str, options: Options) -> None:
    """`cp CONTAINER:SOURCE TARGET`."""
    if options.on("follow-link"):
        found = stat_path(client, container, source)
        if found and found["mode"] & IS_SYMLINK and found.get("linkTarget"):
            link = str(found["linkTarget"])
            source = link if link.startswith("/") else f"{os.path.dirname(source.rstrip('/'))}/{link}"
    answer = client.request("GET", _archive(container, {"path": source}))
    if target == "-":
        save_stream(answer, "-", "cp")
        return
    from cove.cli.unpack import unpack

    is_directory = True
    encoded = answer.headers.get("x-docker-container-path-stat", "")
    if encoded:
        import binascii

        is_directory = bool(wirejson.loads(binascii.a2b_base64(encoded).decode())["mode"] & IS_DIR)
    contents = source.endswith("/.") or source in (".", "/")
    root, name = place_out(os.path.basename(source.rstrip("/")), is_directory, contents, target)
    progress = Progress(f"cp {container}:{source}")

    def chunks() -> Iterator[bytes]:
        for data in answer.chunks():
            progress.add(len(data))
            yield data

    try:
        unpack(chunks(), root, name, keep_owner=options.on("archive"))
    finally:
        progress.end()


def place_out(base: str, is_directory: bool, contents: bool, target: str) -> tuple[str, str]:
    """(an existing directory, the name below it); name "" puts the content of the source into it."""
    try:
        mode = os.stat(target).st_mode
    except FileNotFoundError:
        parent = os.path.dirname(target.rstrip("/")) or "."
        if target.endswith("/") and not is_directory:
            raise CliError(
                f"{target}: there is no such directory; make it first, e.g. mkdir {target}", 1
            ) from None
        if not os.path.isdir(parent):
            raise CliError(f"{target}: {parent} is no directory; make it first", 1) from None
        if is_directory:
            os.mkdir(target)
            return target, ""
        return parent, os.path.basename(target.rstrip("/"))
    if stat.S_ISDIR(mode):
        return target, "" if contents and is_directory else base
    if is_directory:
        raise CliError(f"{target}: a directory can't be copied onto a file; name a directory", 1)
    return os.path.dirname(target) or ".", os.path.basename(target)


# --- into a container ---------------------------------------------------------------------


def copy_in(client: Client, source: str, container: str, target: str, options: Options) -> None:
    """`cp SOURCE CONTAINER:TARGET`."""
    parameters: dict[str, Any] = {"noOverwriteDirNonDir": True, "copyUIDGID": options.on("archive")}
    if source == "-":
        client.request(
            "PUT", _archive(container, {"path": target, **parameters}), stream=read_archive("-", "cp")
        ).read()
        return
    follow = options.on("follow-link") or source.endswith("/")
    try:
        info = os.stat(source) if follow else os.lstat(source)
    except OSError as error:
        raise CliError(f"{source}: {error.strerror}", 1) from None
    is_directory = stat.S_ISDIR(info.st_mode)
    found = stat_path(client, container, target)
    for _ in range(40):  # as many links as path_resolution(7) follows
        if not found or not found["mode"] & IS_SYMLINK or not found.get("linkTarget"):
            break
        link = str(found["linkTarget"])
        target = link if link.startswith("/") else f"{os.path.dirname(target.rstrip('/'))}/{link}"
        found = stat_path(client, container, target)
    contents = source.endswith("/.") or source == "."
    base = os.path.basename(os.path.abspath(source))
    if found and found["mode"] & IS_DIR:
        directory, name = target, "" if contents and is_directory else base
    else:
        if is_directory and found:
            raise CliError(
                f"{container}:{target}: a directory can't be copied onto a file; name a directory", 1
            )
        if not found and target.endswith("/") and not is_directory:
            raise CliError(f"{container}:{target}: there is no such directory; make it first", 1)
        stripped = target.rstrip("/")
        directory, name = os.path.dirname(stripped) or "/", os.path.basename(stripped)
    stream = pack(os.path.realpath(source) if follow else source, name, keep_owner=options.on("archive"))
    client.request("PUT", _archive(container, {"path": directory, **parameters}), stream=stream).read()


def pack(source: str, name: str, *, keep_owner: bool) -> Iterator[bytes]:
    """A tar stream of `source`, which is called `name` in it; "" is the directory's content alone."""
    import io
    import tarfile

    builder = tarfile.open(fileobj=io.BytesIO(), mode="w", format=tarfile.PAX_FORMAT)  # noqa: SIM115
    progress = Progress(f"cp {source}")

    def entry(path: str, inside: str) -> Iterator[bytes]:
        try:
            if stat.S_ISSOCK(os.lstat(path).st_mode):
                return  # tar has no form for a socket
            info = builder.gettarinfo(path, inside)
        except OSError as error:
            raise CliError(f"{path}: {error.strerror}", 1) from None
        if not keep_owner:
            info.uid = info.gid = 0
            info.uname = info.gname = ""
        yield info.tobuf(tarfile.PAX_FORMAT, "utf-8", "surrogateescape")
        if not info.isreg():
            return
        left = info.size
        with open(path, "rb", buffering=0) as file:
            while left:
                data = file.read(min(PIECE, left))
                if not data:  # it shrank meanwhile: the header's size still holds
                    data = bytes(min(PIECE, left))
                left -= len(data)
                progress.add(len(data))
                yield data
        yield bytes(-info.size % 512)

    def walk(path: str, inside: str) -> Iterator[bytes]:
        if inside:
            yield from entry(path, inside)
        if os.path.isdir(path) and not os.path.islink(path):
            for child in sorted(os.listdir(path)):
                yield from walk(f"{path}/{child}", f"{inside}/{child}" if inside else child)

    try:
        yield from walk(source.rstrip("/") or "/", name)
        yield bytes(1024)
    finally:
        progress.end()
        builder.close()


COMMANDS = {
    "cp": Command(
        "cp",
        run_cp,
        "[OPTIONS] CONTAINER:PATH PATH|- | PATH|- CONTAINER:PATH",
        "Copy files between a container and the host. - is a tar archive on standard input or output.",
        flags=(
            ("a", "archive", "bool", "", "Keep users, groups and setuid bits"),
            ("L", "follow-link", "bool", "", "Copy what a symbolic link points to"),
            ("q", "quiet", "bool", "", "Show no progress"),
        ),
        needed=2,
        example="cove cp web:/etc/hosts .\ncove cp site/. web:/srv",
    ),
}
