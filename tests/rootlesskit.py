"""A rootless daemon for a test: of a user who exists only in a mount namespace of the test's."""

from __future__ import annotations

import contextlib
import os
import stat
from collections.abc import Sequence
from pathlib import Path

from tests.daemon import Daemon
from tests.nanny import descendants
from tests.privatemounts import private_mounts

USER, FIRST, COUNT = 54321, 1_300_000, 65536


class RootlessDaemon(Daemon):
    """A user of its own, who exists only in a mount namespace of the test's, with a /dev/net/tun for everybody."""

    def __init__(
        self, *options: str, ranges: bool = True, network: str = "auto", before: Sequence[str] = ()
    ) -> None:
        """`ranges`: with subordinate ids; `before`: words of a command that executes the rest, as root."""
        super().__init__(
            *options, f"--rootless-network={network}", environment={"PYTHONDONTWRITEBYTECODE": "1"}
        )
        self._before = list(before)
        os.chmod(self.base, 0o711)
        home = self.base / "home"
        for directory in (home, self.data_root, self.run_dir):
            directory.mkdir(mode=0o700)
            os.chown(directory, USER, USER)
        self._environment["HOME"] = str(home)
        line = f"walker:{FIRST}:{COUNT}\n" if ranges else ""
        self._files: dict[str, Path] = {}
        for name, text in (
            ("passwd", Path("/etc/passwd").read_text() + f"walker:x:{USER}:{USER}::{home}:/bin/sh\n"),
            ("group", Path("/etc/group").read_text() + f"walker:x:{USER}:\n"),
            ("subuid", line),
            ("subgid", line),
        ):
            (self.base / name).write_text(text)
            self._files[f"/etc/{name}"] = self.base / name
        if os.path.exists("/dev/net/tun"):
            os.mknod(self.base / "tun", stat.S_IFCHR | 0o666, os.makedev(10, 200))
            os.chmod(self.base / "tun", 0o666)
            self._files["/dev/net/tun"] = self.base / "tun"

    def _command(self) -> list[str]:
        user = ["setpriv", f"--reuid={USER}", f"--regid={USER}", "--clear-groups"]
        return [*private_mounts(self._files), *self._before, *user, *super()._command()]

    def start(self) -> None:
        mask = os.umask(0)  # the socket on which readiness is told has to take the user's word
        try:
            super().start()
        finally:
            os.umask(mask)

    def __enter__(self) -> RootlessDaemon:
        super().__enter__()
        return self

    def inner_pid(self) -> int:
        """The daemon proper: the child that executes cove.daemon."""
        for pid in descendants(self.pid):
            with contextlib.suppress(OSError):
                if b"cove.daemon" in Path(f"/proc/{pid}/cmdline").read_bytes():
                    return pid
        raise AssertionError(self.log_text())
