"""A real daemon for a test: its own data root, run dir, bridge, table and cgroups, and all of it gone after.

    with Daemon() as daemon:
        daemon.client.containers.run(daemon.load_image(), "true", remove=True)   # the docker SDK
        assert daemon.http("GET", "/containers/json").json() == []               # raw requests
        daemon.kill9(); daemon.start()

Fixtures (tests/conftest.py): `daemon` lives as long as the module, `fresh_daemon` is the test's own, both with the
image loaded; `image` is the image's name.
"""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import select
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any

import docker

from cove.daemon import plan_names
from tests import leaks, native_build
from tests.imagekit import busybox_archive
from tests.nanny import descendants

ROOT = Path(__file__).parent.parent
IMAGE = "busybox:latest"
START_BOUND_S = 90.0
STOP_BOUND_S = 90.0
_live: list[Daemon] = []


@dataclass(frozen=True)
class Response:
    """An answer of the API, read whole."""

    status: int
    headers: Mapping[str, str]
    body: bytes = field(repr=False)

    def json(self) -> Any:
        return json.loads(self.body)

    @property
    def message(self) -> str:
        """The sentence of an error body."""
        return str(self.json()["message"])


class Daemon:
    """A daemon process and everything that it owns. A context manager that starts and stops it."""

    def __init__(self, *options: str, environment: Mapping[str, str] | None = None) -> None:
        """`options` are added to the command line; `environment` to this process's."""
        self.base = Path(tempfile.mkdtemp(prefix="cove-test-"))  # short: a socket's path has 107 bytes
        self.data_root = self.base / "data"
        self.run_dir = self.base / "run"
        self.socket_path = self.run_dir / "docker.sock"
        self.host = f"unix://{self.socket_path}"
        self.log_path = self.base / "daemon.log"
        self.names = plan_names(self.run_dir)
        self.pid = 0
        self._options = options
        self._environment = {**os.environ, **(environment or {})}
        self._pidfd = -1
        self._client: docker.DockerClient | None = None
        leaks.own_directory(self.base)
        for name in (self.names.bridge, self.names.table, self.names.cgroup_parent):
            leaks.own_prefix(name)
        self._control, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:
            self._nanny = subprocess.Popen(
                [sys.executable, "-m", "tests.nanny"], stdin=theirs.fileno(), cwd=ROOT, start_new_session=True
            )

    # --- life -----------------------------------------------------------------------------

    def start(self) -> None:
        """Start the daemon and wait until it answers. Its log is part of the failure when it doesn't."""
        assert not self.pid, "it runs already"
        ready = self.base / "notify"
        ready.unlink(missing_ok=True)
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as notify, open(self.log_path, "ab") as log:
            notify.bind(str(ready))
            order = {
                "argv": [*self._command(), "-H", self.host, *self._options],
                "cwd": str(ROOT),
                "env": {**self._environment, "NOTIFY_SOCKET": str(ready)},
            }
            socket.send_fds(self._control, [json.dumps(order).encode()], [log.fileno()])
            answer, descriptors, _, _ = socket.recv_fds(self._control, 64, 1)
            self.pid, self._pidfd = int(answer), descriptors[0]
            deadline = time.monotonic() + START_BOUND_S
            while True:
                left_s = max(0.0, deadline - time.monotonic())
                readable, _, _ = select.select([notify.fileno(), self._pidfd], [], [], left_s)
                if self._pidfd in readable or not readable:
                    ended = "ended" if readable else f"wasn't ready after {START_BOUND_S:.0f} s"
                    self.kill9()
                    raise AssertionError(f"the daemon {ended}:\n{self.log_text()}")
                if b"READY=1" in notify.recv(4096):
                    break
        for directory in self._entry_directories():
            leaks.own_entries(directory)

    def kill9(self) -> None:
        """Kill the daemon; containers and supervisors stay."""
        if self.pid:
            with contextlib.suppress(ProcessLookupError):  # it has ended by itself, and the nanny reaped it
                signal.pidfd_send_signal(self._pidfd, signal.SIGKILL)
            self._wait_ended()

    def terminate(self) -> None:
        """Have the daemon end as systemd would; containers stay."""
        if self.pid:
            with contextlib.suppress(ProcessLookupError):  # it has ended by itself, and the nanny reaped it
                signal.pidfd_send_signal(self._pidfd, signal.SIGTERM)
            self._wait_ended()

    def restart(self) -> None:
        """End the daemon and start it again."""
        self.terminate()
        self.start()

    def stop(self) -> None:
        """End the daemon and its containers, take everything down, and fail if anything is left. Idempotent."""
        if not self.base.exists():
            return
        try:
            self.terminate()
            done = subprocess.run(
                [*self._command(), "--uninstall"],
                cwd=ROOT,
                env=self._environment,
                capture_output=True,
                text=True,
                timeout=STOP_BOUND_S,
            )
            left = self._wait_clean()
            assert done.returncode == 0, f"--uninstall failed:\n{done.stderr}\n{self.log_text()}"
            assert not left, "left behind after --uninstall:\n  " + "\n  ".join(left) + f"\n{self.log_text()}"
        finally:
            self._dispose()

    def __enter__(self) -> Daemon:
        _live.append(self)
        try:
            self.start()
        except BaseException:
            self._dispose()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    # --- use ------------------------------------------------------------------------------

    @property
    def client(self) -> docker.DockerClient:
        """The docker SDK's client; closed with the daemon."""
        if self._client is None:
            self._client = docker.DockerClient(base_url=self.host, version="auto", timeout=120)
        return self._client

    def http(
        self,
        method: str,
        path: str,
        body: object = None,
        *,
        headers: Mapping[str, str] | None = None,
        timeout_s: float = 120,
    ) -> Response:
        """One request; `body` is JSON unless it is bytes or an iterable of bytes (sent in chunks)."""
        connection = _UnixConnection(self.socket_path, timeout_s)
        sent = dict(headers or {})
        data: bytes | Iterable[bytes] | None
        if body is None or isinstance(body, bytes):
            data = body
        elif isinstance(body, Mapping | list | str | int):
            data = json.dumps(body).encode()
            sent.setdefault("Content-Type", "application/json")
        else:
            assert isinstance(body, Iterable)
            data = body
        try:
            connection.request(method, path, data, sent, encode_chunked=not isinstance(data, bytes | None))
            answer = connection.getresponse()
            return Response(answer.status, {k.lower(): v for k, v in answer.getheaders()}, answer.read())
        finally:
            connection.close()

    @property
    def nanny_pid(self) -> int:
        """The process that all of this daemon's processes descend from."""
        return self._nanny.pid

    def connect(self, timeout_s: float = 120) -> socket.socket:
        """A raw connection, for requests that no library would send."""
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        sock.settimeout(timeout_s)
        sock.connect(str(self.socket_path))
        return sock

    def load_image(self) -> str:
        """Load the small image (busybox with its applets) and return its name; there already is fine."""
        if self.http("GET", f"/images/{IMAGE}/json").status != 200:
            answer = self.http(
                "POST",
                "/images/load?quiet=1",
                busybox_archive(IMAGE),
                headers={"Content-Type": "application/x-tar"},
            )
            assert answer.status == 200 and b'"error"' not in answer.body, answer.body.decode(
                errors="replace"
            )
        return IMAGE

    def log_text(self) -> str:
        """What the daemon wrote: its last 64 KiB."""
        try:
            with open(self.log_path, "rb") as file:
                file.seek(max(0, file.seek(0, os.SEEK_END) - (64 << 10)))
                return file.read().decode(errors="replace")
        except FileNotFoundError:
            return ""

    # --- inside ---------------------------------------------------------------------------

    def _command(self) -> list[str]:
        native = native_build.build("native") / "cove-init"
        alone = not any(option.startswith("--config-file") for option in self._options)
        return [
            sys.executable, "-m", "cove.daemon", "--data-root", str(self.data_root),
            "--run-dir", str(self.run_dir), "--native", str(native), *(["--config-file="] if alone else []),
            *([] if {"--log-level", "-l"} & set(self._options) else ["--log-level", "debug"]),
        ]  # fmt: skip

    def _entry_directories(self) -> list[Path]:
        data = [self.data_root / name for name in ("containers", "volumes", "trash")]
        return data + [self.run_dir / name for name in ("containers", "exec")]

    def _wait_ended(self) -> None:
        readable, _, _ = select.select([self._pidfd], [], [], STOP_BOUND_S)
        os.close(self._pidfd)
        pid, self.pid, self._pidfd = self.pid, 0, -1
        if not readable:
            raise AssertionError(
                f"daemon {pid} didn't end within {STOP_BOUND_S:.0f} s:\n{_stacks(pid)}\n{self.log_text()}"
            )

    def _owned(self) -> list[str]:
        """What is on the host by this daemon's names, and its processes."""
        names = (self.names.bridge, self.names.table, self.names.cgroup_parent)
        lines = [
            line for line in leaks.snapshot() if not line.startswith(("process ", "file ", "descriptor "))
        ]
        found = [line for line in lines if any(name in line for name in (*names, str(self.base)))]
        for pid in descendants(self._nanny.pid):
            found.append(f"process {pid}: {_told(pid)}")
        return found

    def _wait_clean(self) -> list[str]:
        deadline = time.monotonic() + leaks.BOUND_S
        while (left := self._owned()) and time.monotonic() < deadline:
            time.sleep(0.05)  # nothing tells when the kernel has freed a namespace's links
        return left

    def _dispose(self) -> None:
        """Whatever happened: no process, no directory, no registration stays."""
        if self in _live:
            _live.remove(self)
        if self._client is not None:
            self._client.close()
        self._control.close()  # the nanny kills everything below it, and ends
        try:
            self._nanny.wait(STOP_BOUND_S)
        finally:
            if self._pidfd >= 0:
                os.close(self._pidfd)
                self.pid, self._pidfd = 0, -1
            for directory in self._entry_directories():
                leaks.disown_entries(directory)
            if not any(str(self.base) in line for line in leaks.snapshot() if line.startswith("mount ")):
                shutil.rmtree(self.base, ignore_errors=True)


class _UnixConnection(http.client.HTTPConnection):
    def __init__(self, path: Path, timeout_s: float) -> None:
        super().__init__("localhost", timeout=timeout_s)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(self.timeout)
        self.sock.connect(str(self._path))


def running_pids() -> set[int]:
    """The daemons that fixtures run now, and their nannies."""
    return {pid for daemon in _live for pid in (daemon.pid, daemon._nanny.pid) if pid}


def live_logs() -> list[tuple[str, str]]:
    """The logs of the daemons that run now, for a failure's report: (title, text)."""
    return [(f"log of the daemon in {daemon.base}", daemon.log_text()) for daemon in _live]


def _told(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
    except (FileNotFoundError, ProcessLookupError):
        return "ended"


def _stacks(pid: int) -> str:
    """Where a process hangs in the kernel."""
    lines = []
    for task in Path(f"/proc/{pid}/task").glob("*"):
        try:
            lines.append(
                f"{task.name}: {(task / 'wchan').read_text()} {(task / 'syscall').read_text().strip()}"
            )
        except OSError:
            continue
    return "\n".join(lines)
