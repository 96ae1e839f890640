"""The daemon's life: puts the rooms together, listens, reloads, and leaves without taking a container along.

Order that must hold: the run dir's lock, the sockets (an address in use is told before anything
is touched), the store, images, volumes, networks, then adoption of what runs, and only then the
first request is accepted. Clients that connect meanwhile wait in the sockets' backlog.

SIGTERM and SIGINT end the daemon and leave containers running, the next one adopts them; without live-restore
they are stopped first. A second signal ends it at once. SIGHUP reads the configuration again.
`--uninstall` ends the containers too and removes bridge, nftables table and cgroups.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import gc
import json
import logging
import os
import resource
import signal
import socket
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import uvloop

from cove import __version__
from cove.api.server import ApiServer
from cove.api.sockets import notify
from cove.config.load import Source, command_line, plan_source
from cove.config.read import Config, changed_keys, shown_config, without_effect
from cove.daemon.door import Certificates, TlsDoor, find_certificates
from cove.daemon.messages import set_level, set_up_log
from cove.daemon.settings import is_debug, plan_settings, reloadable_settings
from cove.daemon.sockets import inherited_sockets, listen, lock_run_dir
from cove.engine.engine import Engine
from cove.image.overlayfs import in_user_namespace
from cove.model.errors import CoveError, Invalid

if TYPE_CHECKING:
    from cove.api.metrics import MetricsServer

log = logging.getLogger("cove.daemon")

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3
GRACE_S = 10.0  # for requests that change something when the daemon is told to end


class Daemon:
    """One running daemon: its configuration, engine and server."""

    def __init__(
        self, source: Source, config: Config, engine: Engine, certificates: Certificates | None
    ) -> None:
        self._source = source
        self._config = config
        self._engine = engine
        self._certificates = certificates
        self._door: TlsDoor | None = None
        self._metrics: MetricsServer | None = None
        self._count_connections: Callable[[], int] = lambda: 0
        self._stop = asyncio.Event()
        self._reloading = asyncio.Lock()
        self._reload: asyncio.Task[None] | None = None

    async def answer(self, sockets: Sequence[socket.socket]) -> None:
        """Accept requests until a signal says to stop."""
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._told_to_stop)
        server = ApiServer(self._engine, reload=self.reload)
        guarded = [sock for sock in sockets if self._certificates and sock.family != socket.AF_UNIX]
        for sock in sockets:
            if sock not in guarded:
                await server.listen(sock)
        if guarded and self._certificates:
            self._door = TlsDoor(guarded, self._certificates, lambda sock, peer: server.adopt(sock))
            await self._door.open()
        loop.add_signal_handler(signal.SIGHUP, self._told_to_reload)
        gc.collect()
        gc.freeze()
        self._count_connections = lambda: server.connections
        await self._serve_metrics(self._config.text("metrics-addr"))
        log.info("cove %s answers on %s", __version__, ", ".join(str(s.getsockname()) for s in sockets))
        notify("READY=1")
        await self._stop.wait()
        notify("STOPPING=1")
        if self._door is not None:
            self._door.close()
        if self._metrics is not None:
            await self._metrics.close()
        await server.close(GRACE_S)
        if not self._engine.settings.live_restore:
            await self._engine.stop_all()

    async def _serve_metrics(self, address: str) -> None:
        """Serve metrics at this address alone ("": nowhere). Nothing has changed when it raises Invalid."""
        fresh = None
        if address:
            from cove.api.metrics import MetricsServer

            sock = listen(f"tcp://{address}", "")
            fresh = MetricsServer(self._engine, lambda: self._count_connections())
            await fresh.listen(sock)
        old, self._metrics = self._metrics, fresh
        if old is not None:
            await old.close()

    def _told_to_stop(self) -> None:
        if self._stop.is_set():
            log.warning("told to stop a second time: ending at once; containers run on")
            os._exit(1)
        self._stop.set()

    def _told_to_reload(self) -> None:
        async def reload() -> None:
            notify("RELOADING=1")
            try:
                await self.reload()
            except CoveError as error:
                log.error("the configuration stays as it was: %s", "; ".join(str(error).splitlines()))
            notify("READY=1")

        self._reload = asyncio.get_running_loop().create_task(reload())

    async def reload(self) -> tuple[list[str], list[str]]:
        """Read the configuration again; returns the names of the keys that count now, and of those that wait for
        the next start. Nothing has changed when it raises Invalid."""
        async with self._reloading:
            fresh = self._source.read()
            settings = reloadable_settings(self._engine.settings, fresh)
            policy = await self._engine.admission.read(settings.image_policy)
            now, later = changed_keys(self._config, fresh)
            merged = Config(
                {**self._config.values, **{key.name: fresh.values[key.name] for key in now}}, fresh.given
            )
            if self._door is not None and (certificates := find_certificates(merged)) is not None:
                await self._door.renew(certificates)  # the files may have others in them, by the same names
            if fresh.text("metrics-addr") != self._config.text("metrics-addr"):
                await self._serve_metrics(fresh.text("metrics-addr"))
            set_level("debug" if is_debug(fresh) else fresh.text("log-level"))
            self._config = merged
            self._engine.admission.use(settings.image_policy, policy)
            self._engine.reload(settings, reload_attributes(merged))
        for key in later:
            log.warning("%s has changed in the configuration and counts from the next start on", key.name)
        log.info("configuration read again: %s", ", ".join(key.name for key in now) or "nothing changed")
        return [key.name for key in now], [key.name for key in later]


def reload_attributes(config: Config) -> dict[str, str]:
    """What the event `reload` tells, by dockerd's names (moby, daemon/reload.go)."""
    found = {}
    for name in (
        "debug", "labels", "max-concurrent-downloads", "max-concurrent-uploads", "max-download-attempts",
        "shutdown-timeout", "default-stop-timeout", "insecure-registries", "registry-mirrors", "live-restore",
        "features", "default-runtime", "default-shm-size", "default-ipc-mode", "default-cgroupns-mode",
    ):  # fmt: skip
        value = config.values[name]
        found[name] = value if isinstance(value, str) else json.dumps(value, separators=(",", ":"))
    found["runtimes"] = "cove:cove-init runc:cove-init"
    return found


async def serve(source: Source, config: Config, *, uninstall: bool) -> None:
    """Run until a signal says to stop."""
    settings, network = plan_settings(config)
    certificates = find_certificates(config)
    lock = lock_run_dir(settings.run_dir)
    sockets = inherited_sockets()
    pidfile = config.text("pidfile")
    try:
        if not uninstall:
            addresses = config.words("hosts") or (
                () if sockets else (f"unix://{settings.run_dir}/docker.sock",)
            )
            sockets += [listen(address, config.text("group")) for address in addresses if address != "fd://"]
            if pidfile:
                write_pidfile(Path(pidfile))
        for sentence in without_effect(config):
            log.warning("%s", sentence)
        engine = await Engine.open(settings, network)
        try:
            if uninstall:
                await engine.uninstall()
                return
            await Daemon(source, config, engine, certificates).answer(sockets)
        finally:
            await engine.close()
    finally:
        for sock in sockets:
            sock.close()
        if pidfile and not uninstall:
            Path(pidfile).unlink(missing_ok=True)
        os.close(lock)


def write_pidfile(path: Path) -> None:
    """Leave this process's id at `path`. Raises Invalid when another process that lives has left its own."""
    with contextlib.suppress(FileNotFoundError, ValueError):
        other = int(path.read_text())
        if other != os.getpid() and os.path.exists(f"/proc/{other}"):
            raise Invalid(
                f"pidfile {path}: process {other} has written it and runs still: remove it, or choose another"
            )
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    temporary.write_text(f"{os.getpid()}\n")
    temporary.rename(path)


def default_file() -> str:
    """The file that a daemon reads without being told: an ordinary user's own, or the host's."""
    if os.geteuid() == 0 and not in_user_namespace():
        from cove.config.table import DEFAULT_FILE

        return DEFAULT_FILE
    base = os.environ.get("XDG_CONFIG_HOME") or os.path.expanduser("~/.config")
    return f"{base}/cove/daemon.json"


def main(argv: Sequence[str] | None = None) -> int:
    options = command_line().parse_args(argv)
    try:
        source = plan_source(options, default_file=default_file())
        config = source.read()
        if "print_config" in options:
            print(json.dumps(shown_config(config), indent=2))
            return 0
        if "validate" in options:
            plan_settings(config)
            find_certificates(config)
            print("configuration OK")
            return 0
    except CoveError as error:
        print("\n".join(f"cove daemon: {line}" for line in str(error).splitlines()), file=sys.stderr)
        return 1
    return run(source, config, options, sys.argv[1:] if argv is None else argv)


def keep_memory_small() -> None:
    """Have large blocks go back to the kernel when they are freed (mallopt(3)).

    glibc raises its bound for mmap(2) with the blocks that it sees, up to 32 MiB: then the pieces of archives in many
    streams leave a heap full of holes.
    """
    import ctypes

    libc = ctypes.CDLL(None)
    if hasattr(libc, "mallopt"):
        libc.mallopt(M_MMAP_THRESHOLD, 128 << 10)
        libc.mallopt(M_TRIM_THRESHOLD, 256 << 10)


def run(source: Source, config: Config, options: argparse.Namespace, arguments: Sequence[str]) -> int:
    """Be the daemon, or an ordinary user's; its exit code."""
    set_up_log("debug" if is_debug(config) else config.text("log-level"), config.text("log-format"))
    if os.geteuid() != 0:
        os.environ["PYTHONPATH"] = str(Path(__file__).resolve().parent.parent.parent)
        os.execv(sys.executable, [sys.executable, "-P", "-m", "cove.rootless", *arguments])  # noqa: S606 - no shell
    keep_memory_small()
    os.umask(0o022)
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))  # a published port takes a descriptor or two
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        uvloop.run(serve(source, config, uninstall="uninstall" in options))
    except CoveError as error:
        print(f"cove daemon: {error}", file=sys.stderr)
        return 1
    except OSError as error:
        where = f"{error.filename}: " if error.filename else ""
        print(f"cove daemon: {where}{error.strerror or error}", file=sys.stderr)
        return 1
    return 0
