"""Files of vulnerabilities as one tar stream: what `cove vulns import` sends. Of directories, *.json and *.zip."""

from __future__ import annotations

import os
import tarfile

from cove.cli.archivefile import PIECE, Progress
from cove.cli.fail import CliError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

_ENDINGS = (".json", ".zip")


def find_files(paths: Sequence[str]) -> list[str]:
    """The files that are named, and those below directories that are named, sorted."""
    found = []
    for path in paths:
        if not os.path.isdir(path):
            found.append(path)
            continue
        below = [
            os.path.join(directory, name)
            for directory, _, names in os.walk(path)
            for name in names
            if name.endswith(_ENDINGS)
        ]
        if not below:
            raise CliError(f"{path}: there is no *.json or *.zip in it")
        found += sorted(below)
    return found


def archive_stream(paths: Sequence[str]) -> Iterator[bytes]:
    """The files as a tar archive. A file that can't be read is a CliError before anything is sent."""
    files = find_files(paths)
    sizes = []
    for path in files:
        try:
            with open(path, "rb") as file:
                sizes.append(os.fstat(file.fileno()).st_size)
        except OSError as error:
            raise CliError(f"{path}: {error.strerror}", 1) from None
    return _stream(files, sizes)


def _stream(files: Sequence[str], sizes: Sequence[int]) -> Iterator[bytes]:
    progress = Progress("vulns import", sum(sizes))
    try:
        for path, size in zip(files, sizes, strict=True):
            header = tarfile.TarInfo(path.lstrip("/").encode("utf-8", "replace").decode())
            header.size = size
            yield header.tobuf(tarfile.PAX_FORMAT, "utf-8", "replace")
            with open(path, "rb") as file:
                left = size
                while left and (data := file.read(min(PIECE, left))):
                    left -= len(data)
                    progress.add(len(data))
                    yield data
            if left:
                raise CliError(f"{path}: it became shorter while it was read: try again", 1)
            yield bytes(-size % tarfile.BLOCKSIZE)
        yield bytes(2 * tarfile.BLOCKSIZE)
    finally:
        progress.end()
