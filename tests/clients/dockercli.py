"""The docker command line for tests: run it, run it on a terminal, find Debian 12's.

    docker = Docker(daemon.host)
    assert docker("run", "--rm", image, "echo", "hi").out == "hi\n"      # exit code 0 is demanded
    assert docker("run", "--rm", image, "false", code=1).err == ""
    with docker.terminal("run", "-it", image, "sh") as terminal: …

Every call has a configuration directory of its own, so that nothing of the machine's user is read.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import pty
import re
import select
import shutil
import signal
import struct
import subprocess
import tempfile
import termios
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

BOUND_S = 60.0
_VERSION = re.compile(r"Docker version (\d+)\.(\d+)")


@dataclass(frozen=True)
class Result:
    """What a call printed, and how it ended."""

    code: int
    out: str
    err: str
    raw: bytes

    @property
    def lines(self) -> list[str]:
        return self.out.splitlines()

    @property
    def word(self) -> str:
        """The output without the white space around it."""
        return self.out.strip()


class Docker:
    """A docker command line that talks to one daemon."""

    def __init__(self, host: str, binary: str = "docker") -> None:
        self.binary = binary
        self._config = tempfile.TemporaryDirectory(prefix="cove-docker-")
        self.environment = {
            "PATH": os.environ["PATH"],
            "HOME": self._config.name,
            "DOCKER_CONFIG": self._config.name,
            "DOCKER_HOST": host,
            "TERM": "xterm",
            "LC_ALL": "C.UTF-8",
        }

    def close(self) -> None:
        self._config.cleanup()

    @property
    def version(self) -> tuple[int, int]:
        match = _VERSION.match(self("--version").out)
        assert match is not None
        return int(match[1]), int(match[2])

    def __call__(
        self,
        *arguments: str,
        code: int | None = 0,
        input: bytes | None = None,
        environment: Mapping[str, str] | None = None,
        cwd: Path | None = None,
    ) -> Result:
        """Run to the end; `code` is the exit code that is demanded, None takes any."""
        done = subprocess.run(
            [self.binary, *arguments],
            input=input,
            stdin=subprocess.DEVNULL if input is None else None,
            capture_output=True,
            env={**self.environment, **(environment or {})},
            timeout=BOUND_S,
            cwd=cwd,
        )
        out, err = done.stdout.decode(errors="replace"), done.stderr.decode(errors="replace")
        if code is not None:
            assert done.returncode == code, f"docker {' '.join(arguments)}: {done.returncode}\n{out}\n{err}"
        return Result(done.returncode, out, err, done.stdout)

    def start(self, *arguments: str, stdin: bool = True) -> Running:
        """Start and return; without `stdin` its standard input is empty."""
        return Running([self.binary, *arguments], self.environment, stdin)

    def terminal(self, *arguments: str) -> Terminal:
        return Terminal([self.binary, *arguments], self.environment)


class Running:
    """A process on pipes, standard error along with the output; a context manager that ends it."""

    def __init__(self, argv: list[str], environment: Mapping[str, str], stdin: bool) -> None:
        self.process = subprocess.Popen(
            argv,
            env=dict(environment),
            stdin=subprocess.PIPE if stdin else subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
        )
        self._seen = b""

    def write(self, data: bytes) -> None:
        """Write to its standard input."""
        assert self.process.stdin is not None
        self.process.stdin.write(data)
        self.process.stdin.flush()

    def close_input(self) -> None:
        assert self.process.stdin is not None
        self.process.stdin.close()

    def ready(self) -> bool:
        """Whether there is output to read."""
        assert self.process.stdout is not None
        return bool(self._seen) or bool(select.select([self.process.stdout], [], [], 0.05)[0])

    def line(self) -> bytes:
        """The next line of output; b"" at the end."""
        while b"\n" not in self._seen and self._more():
            pass
        line, newline, self._seen = self._seen.partition(b"\n")
        return line + newline

    def rest(self) -> bytes:
        """All output until its end."""
        while self._more():
            pass
        rest, self._seen = self._seen, b""
        return rest

    def wait(self) -> int:
        """The exit code."""
        return self.process.wait(BOUND_S)

    def _more(self) -> bool:
        assert self.process.stdout is not None
        ready, _, _ = select.select([self.process.stdout], [], [], BOUND_S)
        assert ready, f"nothing was printed within {BOUND_S:.0f} s after {self._seen[-500:]!r}"
        data = os.read(self.process.stdout.fileno(), 1 << 16)
        self._seen += data
        return bool(data)

    def __enter__(self) -> Running:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()
        for pipe in (self.process.stdin, self.process.stdout):
            if pipe is not None:
                with contextlib.suppress(BrokenPipeError):
                    pipe.close()


class Terminal:
    """A process on a terminal of its own, 40 rows and 100 columns; a context manager that ends it."""

    def __init__(self, argv: list[str], environment: Mapping[str, str]) -> None:
        self.master, self.slave = pty.openpty()
        self.resize(40, 100)
        self.seen = b""
        self.before = termios.tcgetattr(self.slave)
        self.process = subprocess.Popen(
            argv,
            stdin=self.slave,
            stdout=self.slave,
            stderr=self.slave,
            env=dict(environment),
            start_new_session=True,
            preexec_fn=lambda: fcntl.ioctl(0, termios.TIOCSCTTY, 0),
        )

    def resize(self, rows: int, columns: int) -> None:
        """Change the size; the kernel tells the process in the foreground (SIGWINCH)."""
        fcntl.ioctl(self.master, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))

    def enter(self, data: bytes) -> None:
        """Type this; a line ends with \\r."""
        os.write(self.master, data)

    def expect(self, wanted: bytes) -> None:
        """Read until `wanted` was printed; what is behind it stays for the next call."""
        deadline = time.monotonic() + BOUND_S
        while wanted not in self.seen:
            ready, _, _ = select.select([self.master], [], [], max(0.0, deadline - time.monotonic()))
            assert ready, f"{wanted!r} was not printed within {BOUND_S:.0f} s, but {self.seen!r}"
            self.seen += os.read(self.master, 4096)
        self.seen = self.seen.partition(wanted)[2]

    def wait(self) -> int:
        """The exit code; output is read meanwhile, so that the process never blocks on it."""
        deadline = time.monotonic() + BOUND_S
        while not self.ended():
            assert time.monotonic() < deadline, f"it did not end, and printed {self.seen!r}"
            select.select([self.master], [], [], 0.02)
        return int(self.process.returncode)

    def ended(self) -> bool:
        """Whether it has ended; reads what there is, so that it never blocks on output."""
        while select.select([self.master], [], [], 0)[0]:
            self.seen += os.read(self.master, 4096)
        return self.process.poll() is not None

    def __enter__(self) -> Terminal:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGKILL)
        self.process.wait()
        os.close(self.slave)
        os.close(self.master)


def eventually(holds: Callable[[], object]) -> None:
    """Ask until it holds; for what no event tells."""
    deadline = time.monotonic() + BOUND_S
    while not holds():
        assert time.monotonic() < deadline, f"it did not come to hold within {BOUND_S:.0f} s"
        time.sleep(0.05)


def clean(client: Any) -> None:
    """Remove every container, volume and network that a test made; images it made, too."""
    for container in client.containers.list(all=True, ignore_removed=True):
        container.remove(force=True, v=True)
    for volume in client.volumes.list():
        volume.remove(force=True)
    for network in client.networks.list(filters={"type": "custom"}):
        network.remove()


def debian_docker(directory: Path) -> Iterator[str]:
    """Debian 12's docker (20.10) as a path: the one on PATH, or of the package. Yields a reason's sentence
    that begins with "no " when it can't be had."""
    found = shutil.which("docker")
    if found is not None:
        told = subprocess.run([found, "--version"], capture_output=True, text=True, timeout=BOUND_S).stdout
        if told.startswith("Docker version 20.10"):
            yield found
            return
    for tool in ("apt-get", "dpkg-deb"):
        if shutil.which(tool) is None:
            yield f"no {tool} here to unpack Debian 12's docker.io with"
            return
    try:
        subprocess.run(
            ["apt-get", "-q", "-o", "APT::Sandbox::User=root", "download", "docker.io=20.10*"],
            cwd=directory,
            check=True,
            capture_output=True,
            timeout=2 * BOUND_S,
        )
        [package] = directory.glob("*.deb")
        subprocess.run(
            ["dpkg-deb", "-x", str(package), "unpacked"], cwd=directory, check=True, timeout=BOUND_S
        )
        package.unlink()
    except (subprocess.SubprocessError, ValueError):
        yield "no docker.io 20.10 in the package archives that this machine knows"
        return
    yield str(directory / "unpacked/usr/bin/docker")
