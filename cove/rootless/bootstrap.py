"""`cove daemon` for an ordinary user: puts the daemon into namespaces of the user's own, and stays outside.

    bootstrap (the user, the host's namespaces) ── binds published ports, passes signals on, cleans up
     ├─ holder         keeps the namespaces; outlives both others as long as containers run
     ├─ pasta          the way out; lives as long as the holder
     └─ cove.daemon    root of the user namespace; everything else is as on a host of its own

Order that must hold: the run dir's lock, the holder (the one that is there, or a new one), the way out, the daemon. At
the end: the daemon is gone; when no container runs either, the way out and the holder go.
"""

from __future__ import annotations

import fcntl
import os
import select
import signal
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from cove.config.load import command_line, plan_source
from cove.model.errors import CoveError, Invalid
from cove.rootless import holder as holders
from cove.rootless.holder import Holder
from cove.rootless.outside import choose_programs, connect
from cove.rootless.ports import ENVIRONMENT, PortServer

_LINGER_S = 2.0  # supervisors of containers that have just ended


def default_run_dir() -> Path:
    """$XDG_RUNTIME_DIR/cove, or /tmp/cove-UID where there is none. The command line looks there, too."""
    given = os.environ.get("XDG_RUNTIME_DIR", "")
    return Path(given, "cove") if given else Path(f"/tmp/cove-{os.getuid()}")  # noqa: S108 - checked to be ours


def default_data_root() -> Path:
    """$XDG_DATA_HOME/cove, or ~/.local/share/cove."""
    given = os.environ.get("XDG_DATA_HOME", "")
    return Path(given, "cove") if given else Path.home() / ".local/share/cove"


def default_config_file() -> str:
    """$XDG_CONFIG_HOME/cove/daemon.json, or ~/.config/cove/daemon.json."""
    given = os.environ.get("XDG_CONFIG_HOME", "")
    return str(Path(given) if given else Path.home() / ".config") + "/cove/daemon.json"


def main(argv: Sequence[str]) -> int:
    """Run the daemon with these arguments; returns its exit code."""
    os.environ["PYTHONPATH"] = str(Path(__file__).resolve().parent.parent.parent)
    options = command_line().parse_args(argv)
    own = default_config_file()
    source = plan_source(
        options,
        default_file=own,
        defaults={"run-dir": str(default_run_dir()), "data-root": str(default_data_root())},
    )
    try:
        config = source.read()
        arguments = list(argv)
        if not source.required:  # the daemon's own home is root's
            arguments += ["--config-file", own if os.path.exists(own) else ""]
        for name in ("run-dir", "data-root"):
            if name not in config.given:
                arguments += [f"--{name}", config.text(name)]
        if "validate" in options or "print_config" in options:
            command = [sys.executable, "-P", "-m", "cove.daemon", *arguments]
            return os.spawnv(os.P_WAIT, sys.executable, command)  # noqa: S606 - no shell
        run_dir = Path(os.path.abspath(config.text("run-dir")))
        data_root = Path(os.path.abspath(config.text("data-root")))
        programs = () if "uninstall" in options else choose_programs(config.text("rootless-network"))
        make_run_dir(run_dir)
        data_root.mkdir(parents=True, exist_ok=True, mode=0o700)
        lock = _lock(run_dir)
        try:
            return _run(run_dir, programs, arguments)
        finally:
            os.close(lock)
    except (CoveError, OSError) as error:
        where = f"{error.filename}: {error.strerror}" if isinstance(error, OSError) else str(error)
        print(f"cove daemon: {where}", file=sys.stderr)
        return 1


def make_run_dir(run_dir: Path) -> None:
    """The run dir, for nobody else; Invalid when another user made it (in /tmp anybody may)."""
    run_dir.mkdir(parents=True, exist_ok=True, mode=0o700)
    info = run_dir.lstat()
    if (
        info.st_uid != os.getuid()
        or info.st_mode & 0o022
        or not os.path.isdir(run_dir)
        or run_dir.is_symlink()
    ):
        raise Invalid(
            f"{run_dir} isn't this user's alone: remove it, or choose another --run-dir, e.g. ~/.cove-run"
        )


def _lock(run_dir: Path) -> int:
    fd = os.open(run_dir / "rootless.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(fd)
        raise Invalid(
            f"a daemon is running already in {run_dir}: stop it, or choose another --run-dir"
        ) from None
    return fd


def _run(run_dir: Path, programs: Sequence[str], arguments: list[str]) -> int:
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, lambda *_: None)  # what the loop below is told of
    waker, told = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
    signal.set_wakeup_fd(told, warn_on_full_buffer=False)
    holder = find_holder(run_dir, programs)
    ports = PortServer()
    try:
        child = _spawn(holder, ports, arguments)
        ports.theirs.close()
        return _accompany(child, ports, waker)
    finally:
        signal.set_wakeup_fd(-1)
        ports.close()
        _settle(run_dir, holder)


def find_holder(run_dir: Path, programs: Sequence[str]) -> Holder:
    """The run dir's holder with its way out; made when there is none. Raises Unavailable, HostError."""
    found = holders.read_holder(run_dir) or holders.make_holder()
    try:
        if found.helper is None or not found.helper.lives():
            helper = connect(programs, found, run_dir / "network.log")
            found = Holder(found.process, helper)
        holders.write_holder(run_dir, found)
    except BaseException:
        if not holders.lodgers(found):
            holders.end_holder(run_dir, found)
        raise
    return found


def _spawn(holder: Holder, ports: PortServer, arguments: list[str]) -> int:
    """The daemon's process; returns its number."""
    parent = os.getpid()
    pid = os.fork()
    if pid:
        return pid
    try:
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, signal.SIG_DFL)
        signal.set_wakeup_fd(-1)
        holders.enter(holder)
        os.chdir("/")
        os.set_inheritable(ports.theirs.fileno(), True)
        os.environ[ENVIRONMENT] = str(ports.theirs.fileno())
        if os.environ.get("LISTEN_PID") == str(parent):
            os.environ["LISTEN_PID"] = str(os.getpid())
        holders.die_with_parent()
        if os.getppid() == parent:
            os.execv(sys.executable, [sys.executable, "-P", "-m", "cove.daemon", *arguments])  # noqa: S606
    except OSError as error:
        print(f"cove daemon: {error.filename}: {error.strerror}", file=sys.stderr)
    finally:
        os._exit(1)


def _accompany(child: int, ports: PortServer, waker: int) -> int:
    """Answer and pass signals on until the daemon ends; its exit code."""
    pidfd = os.pidfd_open(child)
    waiting = [pidfd, waker, ports.ours.fileno()]
    try:
        while True:
            ready, _, _ = select.select(waiting, [], [])
            if ports.ours.fileno() in ready and not ports.answer():
                waiting.remove(ports.ours.fileno())
            if waker in ready:
                for number in set(os.read(waker, 64)):  # a reload for a reload, the end for the rest
                    signal.pidfd_send_signal(
                        pidfd, signal.SIGHUP if number == signal.SIGHUP else signal.SIGTERM
                    )
            if pidfd in ready:
                _, status = os.waitpid(child, 0)
                return os.waitstatus_to_exitcode(status) & 0xFF
    finally:
        os.close(pidfd)


def _settle(run_dir: Path, holder: Holder) -> None:
    """Without containers there is nothing to hold."""
    deadline = time.monotonic() + _LINGER_S
    while left := holders.lodgers(holder):
        if time.monotonic() > deadline:
            print(
                f"cove daemon: containers run on ({len(left)} processes); the next daemon finds them",
                file=sys.stderr,
            )
            return
        time.sleep(0.02)
    holders.end_holder(run_dir, holder)
