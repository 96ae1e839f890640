"""Entry: global flags, the verb, and how every failure ends.

Only the module of the verb that was asked for is imported. Exit statuses are runc's: 1 for a failure, 255 for one of
`exec`; `run` and `exec` end with the process's own status, 128 + signal for a killed one.
"""

from __future__ import annotations

import os
import sys

from cove.model.errors import CoveError, Invalid
from cove.ociruntime.commands import GLOBAL, Command, find_command
from cove.ociruntime.log import Log
from cove.ociruntime.options import Options, check_count, parse_flags, render_help

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import NoReturn


class Call:
    """One call of the runtime: what its verb works with."""

    __slots__ = ("command", "log", "options", "root", "rootless", "systemd_cgroup")

    def __init__(self, command: Command, options: Options, settings: Options, log: Log) -> None:
        self.command = command
        self.options = options
        self.log = log
        self.root = find_root(settings.text("root"))
        self.systemd_cgroup = settings.on("systemd-cgroup")
        self.rootless = settings.text("rootless") or "auto"


def start(arguments: Sequence[str]) -> NoReturn:
    """Run, and end the process without the interpreter's farewell: everything has been closed."""
    planner = os.environ.pop("COVE_RUNTIME_PLANNER", "")
    open_streams()
    try:
        status = run(arguments)
        if sys.stdout is not None:  # as Python has it without descriptor 1
            sys.stdout.flush()
    except BrokenPipeError:
        status = 141
    except KeyboardInterrupt:
        status = 130
    if planner and "cove.ociruntime.create" in sys.modules:
        from cove.ociruntime.planner import leave_behind

        leave_behind(planner, os.environ.get("COVE_RUNTIME_WARM", ""))
    os._exit(status)


def open_streams() -> None:
    """Give a caller who has closed descriptor 0, 1 or 2 /dev/null in its place: the next file to be opened would be
    the process's, else."""
    descriptor = os.open("/dev/null", os.O_RDWR)
    while descriptor <= 2:
        os.set_inheritable(descriptor, True)
        descriptor = os.open("/dev/null", os.O_RDWR)
    os.close(descriptor)


def run(arguments: Sequence[str]) -> int:
    """One command line; its exit status."""
    settings = Options()
    log = Log("", "text", debug=False)
    try:
        parse_flags(GLOBAL, arguments, settings, stops=True)
        if settings.on("version"):
            print_version()
            return 0
        name, *rest = settings.args or [""]
        if settings.on("help") or name in ("", "help", "h"):
            sys.stdout.write(render_help(find_command(rest[0]) if rest else None))
            return 0
        log = Log(settings.text("log"), settings.text("log-format"), debug=settings.on("debug"))
        command = find_command(name)
        if command is None:
            raise Invalid(f"unknown command {name!r}; cove-runtime --help lists them")
        options = Options()
        parse_flags((*command.flags, GLOBAL[-2]), rest, options, stops=command.stops)
        if options.on("help"):
            sys.stdout.write(render_help(command))
            return 0
        check_count(command, options.args)
        module = __import__(f"cove.ociruntime.{command.module}", fromlist=[command.function])
    except CoveError as error:
        log.error(str(error))
        return 1
    try:
        return int(getattr(module, command.function)(Call(command, options, settings, log)))
    except CoveError as error:
        log.error(f"exec failed: {error}" if command.name == "exec" else str(error))
    except OSError as error:
        where = f"{error.filename}: " if error.filename else ""
        log.error(f"{command.name}: {where}{(error.strerror or str(error)).lower()}")
    return 255 if command.name == "exec" else 1


def find_root(given: str) -> str:
    """The directory of all containers' state; an ordinary user's lies in $XDG_RUNTIME_DIR. Raises Invalid."""
    if given:
        root = os.path.abspath(given)
        if root == "/":
            raise Invalid("--root should not be /: give a directory of its own, e.g. /run/cove-runtime")
        return root
    runtime_dir = os.environ.get("XDG_RUNTIME_DIR", "")
    if runtime_dir and os.geteuid() != 0:
        return f"{runtime_dir}/cove-runtime"
    return "/run/cove-runtime"


def print_version() -> None:
    from cove import __version__
    from cove.runtime.oci import VERSION

    print(f"cove-runtime version {__version__}\nspec: {VERSION}")
