"""The verbs and flags of `cove-runtime`: runc's (man/ of its repository, 1.1 to 1.3), as a table.

A flag is (short, long, kind, what the help calls the value, help). Kinds: bool; str: the last one counts; list: may be
repeated; int: a whole number. A help text of "" hides a flag.
"""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    Flag = tuple[str, str, str, str, str]


class Command:
    """One verb: the module and function behind it, its arguments, what its help says."""

    __slots__ = ("flags", "function", "module", "most", "name", "needed", "stops", "summary", "usage")

    def __init__(
        self,
        name: str,
        module: str,
        summary: str,
        usage: str = "CONTAINER",
        *,
        flags: tuple[Flag, ...] = (),
        needed: int = 1,
        most: int | None = None,
        stops: bool = False,
    ) -> None:
        self.name = name
        self.module = module
        self.function = name + "_command"
        self.summary = summary
        self.usage = usage
        self.flags = flags
        self.needed = needed
        self.most = needed if most is None else most  # -1: any number
        self.stops = stops  # flags end at the first positional argument


GLOBAL: tuple[Flag, ...] = (
    ("", "root", "str", "DIRECTORY", "Keep containers' state in DIRECTORY (default: /run/cove-runtime)"),
    ("", "log", "str", "FILE", "Append errors and warnings to FILE (default: standard error)"),
    ("", "log-format", "str", "FORMAT", "Log as text or json (default: text)"),
    ("", "debug", "bool", "", "Log what is done, too"),
    ("", "systemd-cgroup", "bool", "", 'Have systemd make cgroups; cgroupsPath is then "slice:prefix:name"'),
    (
        "",
        "rootless",
        "str",
        "MODE",
        "Pass over cgroups that can't be made: true, false or auto (default: auto)",
    ),
    ("", "criu", "str", "PATH", ""),
    ("h", "help", "bool", "", "Show this help"),
    ("v", "version", "bool", "", "Print the version"),
)

_PID_FILE: Flag = ("", "pid-file", "str", "FILE", "Write the process id, seen from the host, to FILE")
_CONSOLE: Flag = (
    "", "console-socket", "str", "SOCKET",
    "Send the terminal's master to the unix socket SOCKET (SCM_RIGHTS)",
)  # fmt: skip
_PIDFD: Flag = ("", "pidfd-socket", "str", "SOCKET", "Send a pidfd of the process to the unix socket SOCKET")
_PRESERVE: Flag = ("", "preserve-fds", "int", "N", "Leave N more descriptors open, from 3 on (default: 0)")
_DETACH: Flag = ("d", "detach", "bool", "", "Return once the process runs")
_CREATE: tuple[Flag, ...] = (
    (
        "b",
        "bundle",
        "str",
        "DIRECTORY",
        "The bundle: a directory with config.json (default: the current one)",
    ),
    _CONSOLE,
    _PIDFD,
    _PID_FILE,
    ("", "no-pivot", "bool", "", "Accepted; the root is always changed by pivot_root(2)"),
    ("", "no-new-keyring", "bool", "", "Let the container keep the caller's session keyring"),
    _PRESERVE,
)
_EXEC: tuple[Flag, ...] = (
    _CONSOLE,
    _PIDFD,
    ("", "cwd", "str", "DIRECTORY", "Start in DIRECTORY of the container"),
    ("e", "env", "list", "NAME=VALUE", "Set a variable, e.g. -e TERM=xterm; may be repeated"),
    ("t", "tty", "bool", "", "Give it a terminal"),
    ("u", "user", "str", "UID[:GID]", "Run as this user, e.g. -u 1000:1000"),
    ("g", "additional-gids", "list", "GID", "Add a supplementary group; may be repeated"),
    ("p", "process", "str", "FILE", "Read the whole process object from FILE, as in config.json"),
    _DETACH,
    _PID_FILE,
    ("", "process-label", "str", "LABEL", "Set the SELinux label"),
    ("", "apparmor", "str", "PROFILE", "Set the AppArmor profile"),
    ("", "no-new-privs", "bool", "", "Forbid new privileges"),
    ("c", "cap", "list", "CAPABILITY", "Add a capability, e.g. -c CAP_SYS_PTRACE; may be repeated"),
    _PRESERVE,
    ("", "cgroup", "list", "[CONTROLLER:]PATH", "Run in a cgroup below the container's, which has to exist"),
    ("", "ignore-paused", "bool", "", "Start it in a paused container, too; it runs when that is resumed"),
)
_FORMAT: Flag = ("f", "format", "str", "FORMAT", "Print a table or json (default: table)")
_UPDATE: tuple[Flag, ...] = (
    (
        "r",
        "resources",
        "str",
        "FILE",
        "Read linux.resources from FILE, - for standard input; other flags don't count",
    ),
    ("", "blkio-weight", "int", "N", "Relative weight of I/O, 10 to 1000"),
    ("", "cpu-period", "int", "MICROSECONDS", "Period of the quota"),
    ("", "cpu-quota", "int", "MICROSECONDS", "CPU time in a period; -1: no limit"),
    ("", "cpu-burst", "int", "MICROSECONDS", "Unused quota that may be saved up"),
    ("", "cpu-share", "int", "N", "Relative weight of CPU time, 2 to 262144"),
    ("", "cpu-rt-period", "int", "MICROSECONDS", "Period of real-time scheduling"),
    ("", "cpu-rt-runtime", "int", "MICROSECONDS", "Real-time CPU time in a period"),
    ("", "cpu-idle", "int", "0|1", "1: run only when nothing else does (cgroup v2)"),
    ("", "cpuset-cpus", "str", "LIST", "Processors, e.g. 0-3,7"),
    ("", "cpuset-mems", "str", "LIST", "Memory nodes, e.g. 0"),
    ("", "memory", "str", "SIZE", "Limit memory, e.g. 512m; -1: no limit"),
    ("", "memory-reservation", "str", "SIZE", "Soft limit of memory, e.g. 256m"),
    ("", "memory-swap", "str", "SIZE", "Limit memory plus swap, e.g. 1g; -1: no limit"),
    ("", "kernel-memory", "str", "SIZE", ""),
    ("", "kernel-memory-tcp", "str", "SIZE", ""),
    ("", "pids-limit", "int", "N", "Limit the number of processes; 0 or -1: no limit"),
    ("", "l3-cache-schema", "str", "SCHEMA", "Line of the resctrl schemata for the L3 cache"),
    ("", "mem-bw-schema", "str", "SCHEMA", "Line of the resctrl schemata for memory bandwidth"),
)

COMMANDS = (
    Command("create", "create", "Make a container; its process waits for start", flags=_CREATE),
    Command("start", "control", "Let a created container's process run"),
    Command(
        "run", "create", "Make a container, start it, and delete it when it has ended",
        flags=(
            *_CREATE,
            _DETACH,
            ("", "keep", "bool", "", "Keep the stopped container"),
            ("", "no-subreaper", "bool", "", "Leave orphans of the container to the caller"),
        ),
    ),
    Command("state", "control", "Print a container's state as JSON"),
    Command(
        "kill", "control", "Send a signal to a container's first process", "CONTAINER [SIGNAL]", most=2, stops=True,
        flags=(("a", "all", "bool", "", "Send it to every process of the container"),),
    ),
    Command(
        "delete", "control", "Remove what is left of a stopped container",
        flags=(("f", "force", "bool", "", "Kill the container first"),),
    ),
    Command(
        "exec", "execute", "Run another process in a container",
        "CONTAINER COMMAND [ARG...] | --process FILE CONTAINER", flags=_EXEC, most=-1, stops=True,
    ),
    Command(
        "ps", "processes", "List a container's processes", "CONTAINER [PS OPTIONS]",
        flags=(_FORMAT,), most=-1, stops=True,
    ),
    Command("pause", "control", "Freeze a container's processes"),
    Command("resume", "control", "Thaw a container's processes"),
    Command("update", "update", "Change a container's limits", flags=_UPDATE),
    Command(
        "events", "events", "Print what a container uses, every few seconds, and when memory ran out",
        flags=(
            ("", "interval", "str", "DURATION", "Time between two lines, e.g. 1s (default: 5s)"),
            ("", "stats", "bool", "", "Print one line and end"),
        ),
    ),
    Command(
        "list", "processes", "List the containers of this root", "", needed=0,
        flags=(_FORMAT, ("q", "quiet", "bool", "", "Print their ids alone")),
    ),
    Command(
        "spec", "describe", "Write a config.json to begin with", "", needed=0,
        flags=(
            ("b", "bundle", "str", "DIRECTORY", "Write it to DIRECTORY (default: the current one)"),
            ("", "rootless", "bool", "", "Make it for a container that an ordinary user runs"),
        ),
    ),
    Command(
        "plan", "plan", "Print the steps that would make a bundle's container as JSON", "", needed=0,
        flags=(("b", "bundle", "str", "DIRECTORY", "The bundle (default: the current directory)"),),
    ),
    Command("features", "describe", "Print what this runtime can do as JSON", "", needed=0),
    Command("checkpoint", "describe", "Refused: processes can't be saved", "CONTAINER", most=-1, stops=True),
    Command("restore", "describe", "Refused: processes can't be restored", "CONTAINER", most=-1, stops=True),
)  # fmt: skip


def find_command(name: str) -> Command | None:
    for command in COMMANDS:
        if command.name == name:
            return command
    return None
