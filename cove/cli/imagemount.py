"""image mount and unmount: an image's files on this host, read-only, by whoever asks, in their own mount namespace.

The daemon mounts nothing on the host (docs/decisions/0004). It says which directories the layers are, and this process
mounts them, as mount(8) would; so it takes root, and a daemon of this machine. The mount's source names the image,
by which the daemon knows that it is in use.
"""

from __future__ import annotations

import os
import sys

from cove.cli import output
from cove.cli.client import query
from cove.cli.fail import CliError
from cove.cli.options import Command
from cove.cli.shown import printable

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

    from cove.cli.client import Client
    from cove.cli.options import Options

_SOURCE = "cove-image:"
_MS_RDONLY, _MS_NOSUID, _MS_NODEV = 1, 2, 4
_EMPTY = "0"  # a layer without files: overlayfs wants two


def run_mount(client: Client, options: Options) -> int:
    """cove image mount"""
    if not options.args:
        return _list(options)
    name = options.args[0]
    if options.on("erofs"):
        found = client.post("/cove/v1/images/erofs" + query({"image": name}))
        directory = os.path.dirname(found["Empty"])
    else:
        found = client.get("/cove/v1/images/place" + query({"image": name}))
        directory = found["Directory"]
    if not os.path.isdir(directory):
        raise CliError(f"{directory} isn't on this machine: an image is mounted where its daemon runs")
    target = os.path.abspath(options.args[1] if len(options.args) > 1 else _own_directory(found["Id"]))
    if not os.path.isdir(target):
        raise CliError(f"{target}: expected a directory to mount on, e.g. /mnt")
    try:
        if options.on("erofs") and found["Layers"]:
            _mount_erofs(found["Layers"], found["Empty"], found["Id"], target)
        else:
            _mount(directory, found["Layers"] or [_EMPTY], found["Id"], target)
    except OSError as error:
        hint = "; it takes root" if os.geteuid() else ""
        raise CliError(f"mount {name} on {target}: {error.strerror}{hint}") from None
    print(printable(target))
    return 0


def run_unmount(client: Client, options: Options) -> int:
    """cove image unmount"""
    mounts = mounted()
    status = 0
    for word in options.args:
        target = os.path.abspath(word)
        where = [target] if any(target == place for place, _ in mounts) else []
        if not where:
            try:
                image = client.get("/cove/v1/images/place" + query({"image": word}))["Id"]
            except CliError:
                image = ""
            where = [place for place, found in mounts if found == image]
        if not where:
            message = f"error: {printable(word)}: no image is mounted there; cove image mount lists them"
            print(message, file=sys.stderr)
            status = 1
        for place in where:
            try:
                _unmount(place)
            except OSError as error:
                raise CliError(f"unmount {place}: {error.strerror}") from None
            print(printable(place))
    return status


def mounted() -> list[tuple[str, str]]:
    """What is mounted here: the directory and the image's id."""
    found = []
    with open("/proc/self/mountinfo", encoding="utf-8", errors="surrogateescape") as file:
        for line in file:
            front, _, back = line.partition(" - ")
            words, rest = front.split(" "), back.split(" ")
            if len(rest) > 1 and rest[1].startswith(_SOURCE):
                found.append((_unescape(words[4]), "sha256:" + rest[1].removeprefix(_SOURCE)))
    return found


def _list(options: Options) -> int:
    rows = [{"Image": output.short_id(image), "Id": image, "Mountpoint": place} for place, image in mounted()]
    columns = (("Image", "IMAGE ID"), ("Mountpoint", "MOUNTED ON"))
    output.print_rows(rows, columns, format=options.text("format"))
    return 0


def _own_directory(image: str) -> str:
    """A directory for who names none; unmount removes it again."""
    above = (os.environ.get("COVE_RUN_DIR") or "/run/cove").rstrip("/") + "/mounted"
    path = f"{above}/{output.short_id(image)}"
    try:
        os.makedirs(path, mode=0o755, exist_ok=True)
    except OSError as error:
        raise CliError(f"{path}: {error.strerror}; name a directory to mount on, e.g. /mnt") from None
    return path


def _mount(directory: str, layers: Sequence[str], image: str, target: str) -> None:
    """mount(2). Layers are named relative to their directory: 127 absolute ones don't fit into a page of options."""
    import ctypes

    libc = ctypes.CDLL(None, use_errno=True)
    os.chdir(directory)
    kind, data = b"overlay", "lowerdir=" + ":".join([*layers[::-1], *([_EMPTY] if len(layers) < 2 else [])])
    if list(layers) == [_EMPTY]:
        kind, data = b"tmpfs", "mode=755"
    source = _SOURCE + image.removeprefix("sha256:")
    flags = ctypes.c_ulong(_MS_RDONLY | _MS_NOSUID | _MS_NODEV)
    if libc.mount(source.encode(), os.fsencode(target), kind, flags, data.encode()) != 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))


def _mount_erofs(images: Sequence[str], empty: str, image: str, target: str) -> None:
    """An overlay of EROFS images, which are mounted from their files (Linux 6.12). The overlay has mounts of its own of
    them, so that those made here go at once."""
    import ctypes
    import tempfile

    libc = ctypes.CDLL(None, use_errno=True)
    flags = ctypes.c_ulong(_MS_RDONLY | _MS_NOSUID | _MS_NODEV)

    def mount(source: str, place: str, kind: bytes, data: str) -> None:
        if libc.mount(source.encode(), os.fsencode(place), kind, flags, data.encode()) != 0:
            number = ctypes.get_errno()
            raise OSError(number, os.strerror(number))

    with tempfile.TemporaryDirectory(prefix="cove-") as directory:
        made = []
        try:
            os.chdir(directory)
            for number, path in enumerate(images):
                os.mkdir(str(number))
                mount(path, str(number), b"erofs", "")
                made.append(str(number))
            lower = ":".join([*made[::-1], *([empty] if len(made) < 2 else [])])
            mount(_SOURCE + image.removeprefix("sha256:"), target, b"overlay", f"lowerdir={lower}")
        finally:
            for place in made:
                libc.umount2(place.encode(), 2)  # MNT_DETACH
            os.chdir("/")


def _unmount(place: str) -> None:
    import ctypes

    libc = ctypes.CDLL(None, use_errno=True)
    if libc.umount2(os.fsencode(place), 0) != 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
    if os.path.basename(os.path.dirname(place)) == "mounted":
        try:
            os.rmdir(place)
        except OSError:
            pass  # another's


def _unescape(text: str) -> str:
    """proc(5): spaces, tabs, newlines and backslashes are octal."""
    parts = text.split("\\")
    return parts[0] + "".join(chr(int(part[:3], 8)) + part[3:] for part in parts[1:])


COMMANDS = {
    "image mount": Command(
        "image mount",
        run_mount,
        "[OPTIONS] [IMAGE [DIRECTORY]]",
        "Mount an image's files on this host, read-only; without an image, list what is mounted.",
        flags=(
            ("", "erofs", "bool", "", "Mount the layers as EROFS images, which are made for it (Linux 6.12)"),
            ("", "format", "str", "FORMAT", "json, or a template, e.g. '{{.Mountpoint}}'"),
        ),
        most=2,
        example="cove image mount debian /mnt",
    ),
    "image unmount": Command(
        "image unmount",
        run_unmount,
        "IMAGE|DIRECTORY...",
        "Unmount images that image mount mounted.",
        needed=1,
        most=-1,
        example="cove image unmount /mnt",
    ),
}
