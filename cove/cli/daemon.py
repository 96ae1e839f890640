"""daemon: becomes the daemon, in the foreground. Its options are its own: cove daemon --help asks it."""

from __future__ import annotations

import os

from cove.cli import spawn
from cove.cli.fail import CliError
from cove.cli.options import Command

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

    from cove.cli.client import Client
    from cove.cli.options import Options


def run_daemon(host: str, arguments: Sequence[str]) -> int:
    """Execute the daemon with these arguments; COVE_RUN_DIR and COVE_DATA_ROOT fill in what isn't there."""
    given = list(arguments)
    for flag, variable in (("--run-dir", "COVE_RUN_DIR"), ("--data-root", "COVE_DATA_ROOT")):
        named = any(word == flag or word.startswith(flag + "=") for word in given)
        if os.environ.get(variable) and not named:
            given += [flag, os.environ[variable]]
    if host:
        given += ["-H", host]
    program, command, environment = spawn.daemon_command(given)
    try:
        os.execve(program, command, environment)  # noqa: S606 - no shell is wanted
    except OSError as error:
        raise CliError(
            f"cannot start the daemon: {program}: {error.strerror}; run sh scripts/setup.sh run"
        ) from None


def _run(client: Client, options: Options) -> int:
    return run_daemon("", options.args)


COMMANDS = {
    "daemon": Command(
        "daemon",
        _run,
        "[--data-root DIR] [--run-dir DIR] [-H ADDRESS]... [OPTIONS]",
        "Run the daemon in the foreground. Several live side by side, each with directories of its own.",
        most=-1,
        stops=True,
        flags=(
            ("", "config-file", "str", "PATH", "Read keys from a JSON file (default: /etc/cove/daemon.json)"),
            ("", "validate", "bool", "", "Check the configuration, say what is wrong with it, and exit"),
            ("", "print-config", "bool", "", "Print the configuration in effect as JSON, and exit"),
            (
                "",
                "data-root",
                "str",
                "DIR",
                "Keep images, volumes and containers in DIR (default: /var/lib/cove)",
            ),
            ("", "run-dir", "str", "DIR", "Keep sockets and running state in DIR (default: /run/cove)"),
            ("H", "host", "list", "ADDRESS", "Listen here, e.g. unix:///run/cove/docker.sock (the default)"),
            ("", "KEY", "str", "VALUE", "Every key of the configuration file; cove daemon --help lists them"),
        ),
        example="cove daemon --data-root /srv/cove --run-dir /run/cove2 -H unix:///run/cove2/docker.sock",
    ),
}
