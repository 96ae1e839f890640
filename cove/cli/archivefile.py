"""Archives between a file (or a pipe) of the caller and the daemon, with progress on a terminal."""

from __future__ import annotations

import os

from cove.cli import output
from cove.cli.fail import CliError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

    from cove.cli.client import Response

PIECE = 1 << 20


class Progress:
    """A line on standard error that is drawn over, where that is a terminal; silent elsewhere."""

    def __init__(self, what: str, total: int = 0) -> None:
        self.what = what
        self.total = total
        self.done = 0
        self._shown = -1
        self._visible = os.isatty(2)

    def add(self, count: int) -> None:
        """`count` more bytes are through."""
        self.done += count
        step = self.done * 50 // self.total if self.total else self.done // (8 * PIECE)
        if self._visible and step != self._shown:
            self._shown = step
            bar = f" [{'#' * min(step, 50):<50}]" if self.total else ""
            self._write(f"\r{self.what}{bar} {output.human_size(self.done)}\x1b[K")

    def end(self) -> None:
        """Wipe the line."""
        if self._visible and self._shown >= 0:
            self._write("\r\x1b[K")

    def _write(self, text: str) -> None:
        os.write(2, text.encode())


def read_archive(path: str, what: str) -> Iterator[bytes]:
    """The bytes of a file, or of standard input for "-" and ""."""
    if path in ("", "-"):
        if os.isatty(0):
            raise CliError(f"{what}: standard input is a terminal; name a file, or pipe an archive in")
        fd, total = 0, 0
    else:
        try:
            fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        except OSError as error:
            raise CliError(f"{path}: {error.strerror}", 1) from None
        total = os.fstat(fd).st_size
    progress = Progress(f"{what} {path or 'standard input'}", total)
    try:
        while True:
            try:
                data = os.read(fd, PIECE)
            except OSError as error:
                raise CliError(f"{path or 'standard input'}: {error.strerror}", 1) from None
            if not data:
                break
            yield data
            progress.add(len(data))
    finally:
        progress.end()
        if fd:
            os.close(fd)


def save_stream(answer: Response, path: str, what: str) -> None:
    """Write an answer's body to a file, which appears when it is whole, or to standard output."""
    from cove.cli.session import write_all

    if path in ("", "-"):
        if os.isatty(1):
            raise CliError(f"{what}: standard output is a terminal; use -o FILE, or redirect it")
        for data in answer.chunks():
            write_all(1, data)
        return
    partial = f"{path}.partial-{os.getpid()}"
    if os.path.exists(path) and not os.path.isfile(path):  # a device or a pipe is written directly
        partial = path
    try:
        fd = os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise CliError(f"{path}: {error.strerror}; name a file in a directory that exists", 1) from None
    progress = Progress(f"{what} {path}")
    try:
        for data in answer.chunks():
            write_all(fd, data)
            progress.add(len(data))
        if partial != path:
            os.rename(partial, path)
    except BaseException:
        if partial != path:
            os.unlink(partial)
        raise
    finally:
        progress.end()
        os.close(fd)
