"""The daemon: puts the rooms together, listens, and leaves without taking a container along.

Order that must hold: the run dir's lock, the sockets (an address in use is told before anything
is touched), the store, images, volumes, networks, then adoption of what runs, and only then the
first request is accepted. Clients that connect meanwhile wait in the sockets' backlog.

SIGTERM and SIGINT end the daemon and leave containers running: the next one adopts them.
`--uninstall` ends the containers too and removes bridge, nftables table and cgroups.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import fcntl
import gc
import hashlib
import logging
import os
import resource
import signal
import socket
import stat
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import uvloop

from cove import __version__
from cove.api.server import ApiServer
from cove.engine.engine import Engine
from cove.engine.types import Settings
from cove.image.overlayfs import in_user_namespace
from cove.model.errors import CoveError, Invalid
from cove.network.model import NetworkSettings
from cove.rootless.ports import OutsidePorts
from cove.runtime.subids import find_remap

log = logging.getLogger("cove.daemon")

DEFAULT_DATA_ROOT = Path("/var/lib/cove")
DEFAULT_RUN_DIR = Path("/run/cove")
BACKLOG = 1024


@dataclass(frozen=True, slots=True, kw_only=True)
class Names:
    """What this daemon calls the host's objects; a daemon with another run dir gets other names."""

    bridge: str
    table: str
    cgroup_parent: str


def plan_names(run_dir: Path) -> Names:
    if run_dir == DEFAULT_RUN_DIR:
        return Names(bridge="cove0", table="cove", cgroup_parent="cove")
    tag = hashlib.sha256(os.fsencode(run_dir)).hexdigest()[:8]
    return Names(bridge=f"cove-{tag}", table=f"cove-{tag}", cgroup_parent=f"cove-{tag}")


def parser() -> argparse.ArgumentParser:
    p = argparse.ArgumentParser(
        prog="cove daemon",
        description="Run the daemon in the foreground.",
        epilog="example: cove daemon --data-root /srv/cove --run-dir /run/cove2 -H unix:///run/cove2/docker.sock",
    )
    p.add_argument(
        "--data-root",
        type=Path,
        default=DEFAULT_DATA_ROOT,
        metavar="DIR",
        help="keep images, containers and volumes in DIR (default: %(default)s)",
    )
    p.add_argument(
        "--run-dir",
        type=Path,
        default=DEFAULT_RUN_DIR,
        metavar="DIR",
        help="keep sockets and what lives until a reboot in DIR (default: %(default)s)",
    )
    p.add_argument(
        "-H",
        "--host",
        action="append",
        default=[],
        metavar="ADDRESS",
        help="listen on ADDRESS, e.g. unix:///run/cove/docker.sock or tcp://127.0.0.1:2375; "
        "may be repeated (default: docker.sock in the run dir)",
    )
    p.add_argument(
        "--group", default="", metavar="NAME", help="let the group NAME use the unix sockets, e.g. docker"
    )
    p.add_argument("--bridge", default="", metavar="NAME", help="name the default bridge NAME, e.g. cove0")
    p.add_argument(
        "--subnet",
        default="",
        metavar="CIDR",
        help="use CIDR on the default bridge, e.g. 10.88.0.0/16 (default: one that is free)",
    )
    p.add_argument("--subnet6", default="", metavar="CIDR", help="use CIDR for IPv6 on the default bridge")
    p.add_argument(
        "--cgroup-parent",
        default="",
        metavar="NAME",
        help="put containers below the cgroup NAME; with systemd's driver a slice, e.g. team.slice",
    )
    p.add_argument(
        "--exec-opt",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="native.cgroupdriver=systemd has systemd make a scope for each container, native.cgroupdriver=cgroupfs "
        "has the daemon make cgroups itself (default: cgroupfs)",
    )
    p.add_argument(
        "--default-log-driver",
        default="local",
        metavar="NAME",
        help="log with NAME where a container names no driver: local, json-file or none (default: local)",
    )
    p.add_argument(
        "--log-level",
        default="info",
        choices=("debug", "info", "warning", "error"),
        help="write messages from this level on to standard error (default: info)",
    )
    p.add_argument(
        "--network-pool",
        type=int,
        default=4,
        metavar="N",
        help="keep N network namespaces ready (default: 4)",
    )
    p.add_argument(
        "--userns-remap",
        default="",
        metavar="USER[:GROUP]",
        help="run containers in user namespaces of their own, with the subordinate ids of USER (/etc/subuid, "
        "/etc/subgid), or of cove for the word default; --userns=host exempts one (default: no)",
    )
    p.add_argument(
        "--rootless-network",
        default="auto",
        metavar="NAME",
        help="connect a daemon that an ordinary user starts by NAME: pasta, slirp4netns, none, or auto for the "
        "first that is installed (default: auto)",
    )
    p.add_argument("--native", type=Path, default=None, metavar="FILE", help="use FILE as cove-init")
    p.add_argument(
        "--uninstall",
        action="store_true",
        help="end every container of this daemon, remove its bridge, nftables table and cgroups, and exit",
    )
    p.add_argument("--version", action="version", version=f"cove {__version__}")
    return p  # fmt: skip


def find_native(given: Path | None) -> Path:
    """cove-init: as given, or from this checkout's build, or installed. Invalid when there is none."""
    here = Path(__file__).resolve().parent
    candidates = [given] if given else [here.parent / "build/native/cove-init", here / "cove-init"]
    for candidate in candidates:
        if candidate.is_file():
            return candidate
    raise Invalid(f"cove-init is missing at {candidates[0]}: build it with `make setup`")


def lock_run_dir(run_dir: Path) -> int:
    """A descriptor that holds the run dir's lock for the process's life; Invalid when another daemon has it."""
    run_dir.mkdir(parents=True, exist_ok=True, mode=0o711)
    fd = os.open(run_dir / "daemon.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(fd)
        raise Invalid(
            f"a daemon is running already in {run_dir}: stop it, or choose another --run-dir"
        ) from None
    os.ftruncate(fd, 0)
    os.write(fd, f"{os.getpid()}\n".encode())
    return fd


def inherited_sockets() -> list[socket.socket]:
    """Sockets that systemd hands over (sd_listen_fds(3)); none when LISTEN_PID isn't this process."""
    if os.environ.get("LISTEN_PID") != str(os.getpid()):
        return []
    count = int(os.environ.get("LISTEN_FDS", "0"))
    sockets = []
    for fd in range(3, 3 + count):
        os.set_inheritable(fd, False)
        sockets.append(socket.socket(fileno=fd))
    for name in ("LISTEN_PID", "LISTEN_FDS", "LISTEN_FDNAMES"):
        os.environ.pop(name, None)
    return sockets


def listen(address: str, group: str) -> socket.socket:
    """A listening socket for `unix://PATH` or `tcp://HOST:PORT`. Invalid says what is wrong with the address."""
    if address.startswith("unix://"):
        path = Path(address.removeprefix("unix://"))
        if not path.is_absolute():
            raise Invalid(f"-H {address}: expected an absolute path, e.g. unix:///run/cove/docker.sock")
        return _listen_unix(path, group)
    if address.startswith("tcp://"):
        host, colon, port = address.removeprefix("tcp://").rstrip("/").rpartition(":")
        if not colon or not port.isdecimal() or int(port) > 65535:
            raise Invalid(f"-H {address}: expected a host and a port up to 65535, e.g. tcp://127.0.0.1:2375")
        host = host.strip("[]") or "127.0.0.1"
        try:
            return socket.create_server(
                (host, int(port)),
                family=socket.AF_INET6 if ":" in host else socket.AF_INET,
                backlog=BACKLOG,
            )
        except OSError as error:
            raise Invalid(f"-H {address}: {error.strerror or error}") from None
    raise Invalid(f"-H {address}: expected unix://PATH or tcp://HOST:PORT, e.g. unix:///run/cove/docker.sock")


def _listen_unix(path: Path, group: str) -> socket.socket:
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o711)
    gid = -1
    if group:
        import grp

        try:
            gid = grp.getgrnam(group).gr_gid
        except KeyError:
            raise Invalid(
                f"--group {group}: no such group; make it with groupadd, or leave the option out"
            ) from None
    with contextlib.suppress(FileNotFoundError):
        if not stat.S_ISSOCK(path.lstat().st_mode):
            raise Invalid(f"-H unix://{path}: there is a file that isn't a socket; move it away")
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
            probe.settimeout(1)
            try:
                probe.connect(_short(path))
            except OSError:
                pass
            else:
                raise Invalid(f"-H unix://{path}: another process listens there")
        path.unlink()
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    mask = os.umask(0o117)
    try:
        sock.bind(_short(path))
    except OSError as error:
        sock.close()
        raise Invalid(f"-H unix://{path}: {error.strerror or error}") from None
    finally:
        os.umask(mask)
    if gid >= 0:
        os.chown(path, -1, gid)
    sock.listen(BACKLOG)
    return sock


def _short(path: Path) -> str:
    """The path, or one through its directory's descriptor where it is longer than sun_path (unix(7))."""
    if len(os.fsencode(path)) <= 107:
        return str(path)
    fd = os.open(path.parent, os.O_PATH | os.O_CLOEXEC)  # stays open: one for each long socket path
    return f"/proc/self/fd/{fd}/{path.name}"


def notify(state: str) -> None:
    """Tell systemd (sd_notify(3)); nothing happens without NOTIFY_SOCKET."""
    address = os.environ.get("NOTIFY_SOCKET", "")
    if not address:
        return
    if address.startswith("@"):
        address = "\0" + address[1:]
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock, contextlib.suppress(OSError):
        sock.connect(address)
        sock.sendall(state.encode())


def parse_cgroup_driver(exec_options: Sequence[str]) -> Literal["cgroupfs", "systemd"]:
    """The driver that the last of `--exec-opt` names, as dockerd's. Raises Invalid."""
    driver: Literal["cgroupfs", "systemd"] = "cgroupfs"
    for option in exec_options:
        match option.split("=", 1):
            case ["native.cgroupdriver", ("cgroupfs" | "systemd") as value]:
                driver = value
            case _:
                raise Invalid(
                    f"--exec-opt {option}: expected native.cgroupdriver=systemd or native.cgroupdriver=cgroupfs"
                )
    return driver


def plan_settings(options: argparse.Namespace) -> tuple[Settings, NetworkSettings]:
    """The options as the engine and the networks want them."""
    run_dir = Path(os.path.abspath(options.run_dir))
    data_root = Path(os.path.abspath(options.data_root))
    if options.userns_remap and in_user_namespace():
        raise Invalid(
            "--userns-remap: a rootless daemon's containers are in its user namespace, leave it out"
        )
    driver = parse_cgroup_driver(options.exec_opt)
    if driver == "systemd" and in_user_namespace():
        raise Invalid(
            "--exec-opt native.cgroupdriver=systemd: a rootless daemon's containers are in the cgroup that it was "
            "given, leave it out"
        )
    names = plan_names(run_dir)
    parent = options.cgroup_parent or ("" if driver == "systemd" else names.cgroup_parent)
    outside = OutsidePorts.inherited()
    settings = Settings(
        data_root=data_root,
        run_dir=run_dir,
        native=find_native(options.native),
        cgroup_parent=parent.strip("/"),
        cgroup_driver=driver,
        scope_prefix=names.cgroup_parent,
        default_log_driver=options.default_log_driver,
        debug=options.log_level == "debug",
        remap=find_remap(options.userns_remap) if options.userns_remap else None,
    )
    network = NetworkSettings(
        bridge=options.bridge or names.bridge,
        table=names.table,
        ipv4=options.subnet,
        ipv6=options.subnet6,
        pool_size=options.network_pool,
        bind_outside=outside.bind if outside is not None else None,
    )
    return settings, network


async def serve(options: argparse.Namespace) -> None:
    """Run until a signal says to stop."""
    settings, network = plan_settings(options)
    lock = lock_run_dir(settings.run_dir)
    sockets = inherited_sockets()
    try:
        if not options.uninstall:
            addresses = options.host or ([] if sockets else [f"unix://{settings.run_dir}/docker.sock"])
            sockets += [listen(address, options.group) for address in addresses]
        engine = await Engine.open(settings, network)
        try:
            if options.uninstall:
                await engine.uninstall()
                return
            await _answer(engine, sockets)
        finally:
            await engine.close()
    finally:
        for sock in sockets:
            sock.close()
        os.close(lock)


async def _answer(engine: Engine, sockets: Sequence[socket.socket]) -> None:
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    server = ApiServer(engine)
    for sock in sockets:
        await server.listen(sock)
    gc.collect()
    gc.freeze()
    log.info("cove %s answers on %s", __version__, ", ".join(str(s.getsockname()) for s in sockets))
    notify("READY=1")
    await stop.wait()
    notify("STOPPING=1")
    await server.close()


def main(argv: Sequence[str] | None = None) -> int:
    options = parser().parse_args(argv)
    logging.basicConfig(
        level=options.log_level.upper(),
        stream=sys.stderr,
        format="%(asctime)s %(levelname)s %(name)s: %(message)s",
    )
    if os.geteuid() != 0:
        arguments = sys.argv[1:] if argv is None else argv
        os.environ["PYTHONPATH"] = str(Path(__file__).resolve().parent.parent)
        os.execv(sys.executable, [sys.executable, "-P", "-m", "cove.rootless", *arguments])  # noqa: S606 - no shell
    os.umask(0o022)
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))  # a published port takes a descriptor or two
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        uvloop.run(serve(options))
    except CoveError as error:
        print(f"cove daemon: {error}", file=sys.stderr)
        return 1
    except OSError as error:
        where = f"{error.filename}: " if error.filename else ""
        print(f"cove daemon: {where}{error.strerror or error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
