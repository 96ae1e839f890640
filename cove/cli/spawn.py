"""Start the default daemon when a command needs it and none runs.

Order that must hold: take the lock, look again (another command may have been faster), start,
wait for the socket or the daemon's end. The daemon is a session of its own and keeps no
descriptor of its caller.
"""

from __future__ import annotations

import errno
import fcntl
import os
import time

from cove.cli.address import Address, open_socket, user_run_dir
from cove.cli.fail import CliError

WAIT_S = 30.0


def daemon_command(arguments: list[str]) -> tuple[str, list[str], dict[str, str]]:
    """Program, arguments and environment that run the daemon of this checkout.

    -P keeps the caller's working directory off the module path.
    """
    root = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
    python = f"{root}/.venv/bin/python"
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    environment["PYTHONPATH"] = root
    module = "cove.daemon" if os.geteuid() == 0 else "cove.rootless"
    return python, [python, "-P", "-m", module, *arguments], environment


def start_daemon(socket_path: str) -> None:
    """Start a daemon listening at `socket_path` and return once it does; CliError with its own words."""
    run_dir = os.path.dirname(socket_path)
    if os.geteuid() != 0 and run_dir != user_run_dir():
        raise CliError(
            f"no daemon runs at unix://{socket_path}, and only root can start one: use sudo cove …"
        )
    os.makedirs(run_dir, 0o711 if os.geteuid() == 0 else 0o700, exist_ok=True)
    lock = os.open(f"{run_dir}/start.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if _listens(socket_path):
            return
        _start_and_wait(socket_path, run_dir)
    finally:
        os.close(lock)


def _listens(socket_path: str) -> bool:
    try:
        open_socket(Address("unix://" + socket_path)).close()
    except OSError as error:
        if error.errno in (errno.ENOENT, errno.ECONNREFUSED):
            return False
        raise
    return True


def _start_and_wait(socket_path: str, run_dir: str) -> None:
    log_path = f"{run_dir}/daemon.log"
    log = os.open(log_path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
    offset = os.fstat(log).st_size
    # what the environment says, and no more: the rest is the configuration file's to say
    given = ["--run-dir", run_dir] if os.environ.get("COVE_RUN_DIR") else []
    if os.environ.get("COVE_DATA_ROOT"):
        given += ["--data-root", os.environ["COVE_DATA_ROOT"]]
    program, arguments, environment = daemon_command(given)
    null = os.open("/dev/null", os.O_RDONLY | os.O_CLOEXEC)
    here = os.open(".", os.O_PATH | os.O_CLOEXEC)
    os.chdir("/")  # the daemon must not keep the caller's file system busy
    try:
        child = os.posix_spawn(
            program,
            arguments,
            environment,
            file_actions=[
                (os.POSIX_SPAWN_DUP2, null, 0),
                (os.POSIX_SPAWN_DUP2, log, 1),
                (os.POSIX_SPAWN_DUP2, log, 2),
            ],
            setsid=True,
        )
    except OSError as error:
        raise CliError(
            f"cannot start the daemon: {program}: {error.strerror}; run sh scripts/setup.sh run"
        ) from None
    finally:
        os.fchdir(here)
        os.close(here)
        os.close(null)
        os.close(log)
    deadline = time.monotonic() + WAIT_S
    while not _listens(socket_path):
        ended, _ = os.waitpid(child, os.WNOHANG)
        if ended:
            raise CliError(f"the daemon did not start: {_last_words(log_path, offset)} (log: {log_path})")
        if time.monotonic() > deadline:
            raise CliError(
                f"the daemon did not answer within {WAIT_S:.0f} s: {_last_words(log_path, offset)} "
                f"(log: {log_path})"
            )
        time.sleep(0.005)


def _last_words(log_path: str, offset: int) -> str:
    """The last line that the daemon wrote since `offset`."""
    with open(log_path, "rb") as log:
        log.seek(offset)
        lines = [
            line.strip() for line in log.read(1 << 20).decode("utf-8", "replace").splitlines() if line.strip()
        ]
    return lines[-1] if lines else "it said nothing"
