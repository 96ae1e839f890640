"""The log of `--log` and `--log-format`: lines as logrus writes them, for that is what callers parse.

containerd's shim reads the file of its `--log`, JSON, and takes the last line with level "error" as the reason of a
failure (cmd/containerd-shim-runc-v2/process/utils.go, getLastRuntimeError).
"""

from __future__ import annotations

import os
import time

from cove.model import wirejson
from cove.model.errors import HostError, Invalid


class Log:
    """Where errors and warnings go: a file, or standard error when there is none."""

    def __init__(self, path: str, form: str, *, debug: bool) -> None:
        if form not in ("", "text", "json"):
            raise Invalid(f"invalid log-format: {form}: use text or json")
        self._json = form == "json"
        self._debug = debug
        self._file = 2
        if path:
            try:
                self._file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o644)
            except OSError as error:
                raise HostError(f"open {path}: {(error.strerror or '').lower()}") from None

    def error(self, message: str) -> None:
        """The last word: in the log, and on standard error."""
        self._write("error", message)
        if self._file != 2:
            _write_all(2, f"{message}\n")

    def warn(self, message: str) -> None:
        self._write("warning", message)

    def debug(self, message: str) -> None:
        if self._debug:
            self._write("debug", message)

    def _write(self, level: str, message: str) -> None:
        now = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
        if self._json:
            line = wirejson.dumps({"level": level, "msg": message, "time": now})
        else:
            line = f'time="{now}" level={level} msg={wirejson.dumps(message)}'
        _write_all(self._file, line + "\n")


def _write_all(descriptor: int, text: str) -> None:
    """A log that can't be written, or isn't read any more, holds nobody up."""
    try:
        os.write(descriptor, text.encode(errors="surrogateescape"))
    except OSError:
        pass
