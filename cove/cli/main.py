"""Entry: global options, the table of commands, and how every failure ends.

Only the module of the command that was asked for is imported: a command's start is Python's own
start and little more. Exit statuses are docker's: 125 the command line or daemon refused, 1 an
answer that says error, 130 interrupted, 141 the reader of standard output went away.
"""

from __future__ import annotations

import os
import sys

from cove.cli.fail import CliError, Exit
from cove.cli.options import Command, nearest, parse_arguments, render_help
from cove.cli.shown import KEPT, printable

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import NoReturn

# name, module, what the overview says. Groups take a second word.
COMMANDS = (
    ("run", "run", "Create and start a container"),
    ("create", "run", "Create a container without starting it"),
    ("exec", "run", "Run a command in a running container"),
    ("start", "run", "Start stopped containers"),
    ("attach", "run", "Connect to a running container's streams"),
    ("ps", "containerlist", "List containers"),
    ("logs", "containers", "Show a container's output"),
    ("stop", "containers", "Stop containers"),
    ("restart", "containers", "Restart containers"),
    ("kill", "containers", "Send a signal to containers"),
    ("rm", "containers", "Remove containers"),
    ("pause", "containers", "Freeze containers"),
    ("unpause", "containers", "Thaw containers"),
    ("wait", "containers", "Wait until containers end and print their exit codes"),
    ("rename", "containers", "Rename a container"),
    ("update", "containers", "Change limits, ports, labels and health checks of a container"),
    ("recreate", "recreate", "Put another container in a container's place, with something different"),
    ("port", "containers", "List a container's published ports"),
    ("top", "containers", "List a container's processes"),
    ("diff", "containers", "List what a container changed in its file system"),
    ("export", "containers", "Write a container's file system as a tar archive"),
    ("commit", "images", "Make an image of a container"),
    ("stats", "stats", "Show what containers use"),
    ("inspect", "inspect", "Show everything about containers, images, volumes or networks"),
    ("cp", "copy", "Copy files between a container and the host"),
    ("plan", "plan", "Print how a container would be isolated, step by step"),
    ("images", "images", "List images"),
    ("build", "build", "Build an image from a Dockerfile"),
    ("pull", "pull", "Get an image from its registry"),
    ("load", "images", "Load images from an archive"),
    ("import", "images", "Make an image from a file system's tar archive"),
    ("save", "images", "Write images to an archive"),
    ("tag", "images", "Give an image another name"),
    ("rmi", "images", "Remove images"),
    ("history", "images", "Show how an image was made"),
    ("push", "push", "Push an image to a registry"),
    ("search", "push", "Look for images in a registry"),
    ("login", "login", "Log in to a registry"),
    ("logout", "login", "Forget a registry's password"),
    ("scan", "scan", "Show the known vulnerabilities of an image"),
    ("sbom", "scan", "Write an image's bill of materials"),
    ("sign", "signing", "Sign an image with a key"),
    ("verify", "signing", "Check an image's signatures"),
    ("events", "system", "Show events as they happen"),
    ("info", "system", "Show the daemon's state"),
    ("version", "system", "Show versions"),
    ("systemd", "systemdunit", "Write a systemd unit for a container"),
    ("daemon", "daemon", "Run the daemon in the foreground"),
    ("completion", "completion", "Print completion for bash, zsh or fish"),
)

# group: (what the overview says, {second word: (module, name of the command there)})
GROUPS = {
    "container": (
        "Everything about containers",
        {
            **{name: (module, name) for name, module, _ in COMMANDS[:23]},
            "ls": ("containerlist", "ps"),
            "list": ("containerlist", "ps"),
            "ps": ("containerlist", "ps"),
            "inspect": ("inspect", "container inspect"),
            "cp": ("copy", "cp"),
            "prune": ("disk", "container prune"),
        },
    ),
    "image": (
        "Everything about images",
        {
            "ls": ("images", "images"),
            "list": ("images", "images"),
            "rm": ("images", "rmi"),
            "remove": ("images", "rmi"),
            "inspect": ("inspect", "image inspect"),
            "prune": ("disk", "image prune"),
            "push": ("push", "push"),
            "build": ("build", "build"),
            **{name: ("images", name) for name in ("load", "import", "save", "tag", "history")},
            **{
                name: ("imagetools", f"image {name}")
                for name in ("tree", "diff", "squash", "check", "dedupe")
            },
            "slim": ("imageslim", "image slim"),
            "pull": ("pull", "pull"),
            "mount": ("imagemount", "image mount"),
            "unmount": ("imagemount", "image unmount"),
        },
    ),
    "builder": (
        "What builds keep",
        {
            "build": ("build", "build"),
            "ls": ("build", "builder ls"),
            "list": ("build", "builder ls"),
            "prune": ("build", "builder prune"),
        },
    ),
    "volume": (
        "Everything about volumes",
        {
            "create": ("volumes", "volume create"),
            "ls": ("volumes", "volume ls"),
            "list": ("volumes", "volume ls"),
            "rm": ("volumes", "volume rm"),
            "remove": ("volumes", "volume rm"),
            "update": ("volumes", "volume update"),
            "inspect": ("inspect", "volume inspect"),
            "prune": ("disk", "volume prune"),
        },
    ),
    "network": (
        "Everything about networks",
        {
            "create": ("networks", "network create"),
            "ls": ("networks", "network ls"),
            "list": ("networks", "network ls"),
            "rm": ("networks", "network rm"),
            "remove": ("networks", "network rm"),
            "connect": ("networks", "network connect"),
            "disconnect": ("networks", "network disconnect"),
            "inspect": ("inspect", "network inspect"),
            "prune": ("disk", "network prune"),
        },
    ),
    "pod": (
        "Containers that share a network and a host name",
        {
            "create": ("pods", "pod create"),
            "ls": ("pods", "pod ls"),
            "list": ("pods", "pod ls"),
            "ps": ("pods", "pod ls"),
            "start": ("pods", "pod start"),
            "stop": ("pods", "pod stop"),
            "rm": ("pods", "pod rm"),
            "remove": ("pods", "pod rm"),
            "inspect": ("inspect", "pod inspect"),
        },
    ),
    "kube": (
        "Kubernetes files, played here",
        {
            "play": ("kube", "kube play"),
            "apply": ("kube", "kube play"),
            "down": ("kube", "kube down"),
            "generate": ("kube", "kube generate"),
        },
    ),
    "secret": (
        "Contents that containers get in memory, and that nothing shows",
        {
            "create": ("secrets", "secret create"),
            "update": ("secrets", "secret update"),
            "ls": ("secrets", "secret ls"),
            "list": ("secrets", "secret ls"),
            "rm": ("secrets", "secret rm"),
            "remove": ("secrets", "secret rm"),
            "inspect": ("inspect", "secret inspect"),
        },
    ),
    "policy": (
        "Which images may be pulled and run",
        {
            "check": ("policy", "policy check"),
            "show": ("policy", "policy show"),
            "test": ("policy", "policy test"),
        },
    ),
    "key": (
        "Keys to sign images with",
        {
            "generate": ("keys", "key generate"),
            "public": ("keys", "key public"),
        },
    ),
    "registry": (
        "A registry on this machine",
        {
            "serve": ("registry", "registry serve"),
            "gc": ("registry", "registry gc"),
            "check": ("registry", "registry check"),
        },
    ),
    "vulns": (
        "The database of vulnerabilities",
        {
            "import": ("scan", "vulns import"),
            "info": ("scan", "vulns info"),
        },
    ),
    "system": (
        "The daemon as a whole",
        {
            "df": ("disk", "system df"),
            "prune": ("disk", "system prune"),
            "info": ("system", "info"),
            "events": ("system", "events"),
            "dial-stdio": ("dial", "system dial-stdio"),
        },
    ),
}

TLS_FLAGS = ("tls", "tlsverify", "tlscacert", "tlscert", "tlskey")
HELP = ("help", "-h", "--help")


def start(arguments: Sequence[str]) -> NoReturn:
    """Run the command line and end the process; nothing of Python's own shutdown is waited for."""
    _open_standard_streams()
    status = run_main(arguments)
    try:
        sys.stdout.flush()
    except OSError:
        status = status or 141
    os._exit(status)


def _open_standard_streams() -> None:
    """Give closed standard streams to /dev/null: or else a socket would get their number, and our output."""
    for fd in (0, 1, 2):
        try:
            os.fstat(fd)
        except OSError:
            os.open(os.devnull, os.O_RDWR)
    # Python sets them to None where they are closed.
    streams = {name: getattr(sys, name) for name in ("stdout", "stderr")}
    for fd, (name, stream) in enumerate(streams.items(), 1):
        if stream is None:
            setattr(sys, name, open(fd, "w", closefd=False))  # noqa: SIM115 - for the process's life


def run_main(arguments: Sequence[str]) -> int:
    """Run one command and return its exit status; messages go to standard error."""
    try:
        status = dispatch(arguments)
        sys.stdout.flush()
        return status
    except Exit as end:
        return end.status
    except CliError as error:
        sys.stdout.flush()
        print(f"error: {printable(str(error), KEPT)}", file=sys.stderr)
        return error.status
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:
        return 141
    except OSError as error:
        where = f"{error.filename}: " if error.filename else ""
        print(f"error: {where}{error.strerror or error}", file=sys.stderr)
        return 1


def dispatch(arguments: Sequence[str]) -> int:
    """Take the global options, find the command, parse its arguments, run it."""
    host = ""
    tls: dict[str, str] = {}
    position = 0
    while position < len(arguments) and arguments[position].startswith("-"):
        argument = arguments[position]
        position += 1
        if argument in ("-H", "--host"):
            if position == len(arguments):
                raise CliError(
                    f"{argument}: expected an address, e.g. {argument} unix:///run/cove/docker.sock"
                )
            host = arguments[position]
            position += 1
        elif argument.startswith("--host="):
            host = argument[7:]
        elif argument.startswith("-H"):
            host = argument[2:].removeprefix("=")
        elif argument.removeprefix("--").partition("=")[0] in TLS_FLAGS:
            name, equals, value = argument.removeprefix("--").partition("=")
            if not equals and name not in ("tls", "tlsverify"):
                if position == len(arguments):
                    raise CliError(f"{argument}: expected a file in PEM format, e.g. {argument} ca.pem")
                value = arguments[position]
                position += 1
            tls[name] = value or "true"
        elif argument in ("-v", "--version"):
            from cove import __version__

            print(f"cove version {__version__}")
            return 0
        elif argument in HELP:
            print(render_overview(), end="")
            return 0
        else:
            raise CliError(
                f"{argument}: no such global flag; "
                "there are -H ADDRESS, --tls, --tlsverify, --tlscacert, --tlscert, --tlskey, --version and --help"
            )
    words = list(arguments[position:])
    if not words:
        print(render_overview(), end="")
        return 0
    if words[0] == "help":
        words = [*words[1:], "--help"]
        if len(words) == 1:
            print(render_overview(), end="")
            return 0
    found, rest = find_command(words)
    if found is None:
        print(render_group(words[0]), end="")
        return 0
    if found.name == "daemon":  # its arguments are the daemon's, --help too
        from cove.cli.daemon import run_daemon

        return run_daemon(host, rest)
    if wants_help(found, rest):
        print(render_help(found), end="")
        return 0
    from cove.cli.client import find_client

    options = parse_arguments(found, rest)
    return found.function(find_client(host, tls), options)


def find_command(words: Sequence[str]) -> tuple[Command | None, list[str]]:
    """The command that `words` begin with, and the rest; None for a group's own help."""
    first, rest = words[0], list(words[1:])
    if first in GROUPS:
        members = GROUPS[first][1]
        if not rest or rest[0] in HELP:
            return None, []
        if rest[0] not in members:
            raise CliError(_unknown(f"{first} {rest[0]}", rest[0], list(members), first))
        module, name = members[rest[0]]
        return load_command(module, name), rest[1:]
    for name, module, _ in COMMANDS:
        if name == first:
            return load_command(module, name), rest
    raise CliError(_unknown(first, first, [row[0] for row in COMMANDS] + list(GROUPS), ""))


def load_command(module: str, name: str) -> Command:
    """Import a command's module and return its entry in COMMANDS there."""
    loaded = __import__(f"cove.cli.{module}", fromlist=["COMMANDS"])
    command: Command = loaded.COMMANDS[name]
    return command


def wants_help(command: Command, words: Sequence[str]) -> bool:
    """Whether --help is ours: in `run IMAGE COMMAND --help` it is the command's."""
    for position, word in enumerate(words):
        if word == "--":
            return False
        if word == "--help":
            return not command.stops or position == 0 or _leads(command, words[:position])
    return False


def _leads(command: Command, words: Sequence[str]) -> bool:
    """Whether `words` are flags only, so that what follows is still the command's own."""
    try:
        loose = Command(
            command.name, command.function, "", "", flags=command.flags, most=-1, stops=command.stops
        )
        return not parse_arguments(loose, words).args
    except CliError:
        return True


def _unknown(shown: str, word: str, known: list[str], group: str) -> str:
    best = nearest(word, known)
    prefix = f"{group} " if group else ""
    hint = f"did you mean cove {prefix}{best}?" if best else f"cove {prefix}--help lists them"
    return f"{shown}: no such command; {hint}"


def render_overview() -> str:
    """The text of `cove --help`."""
    lines = ["Usage: cove [-H ADDRESS] COMMAND [ARG...]", "", "Run containers.", "", "Commands:"]
    lines += [f"  {name:<12}{summary}" for name, _, summary in COMMANDS]
    lines += ["", "Groups:"]
    lines += [f"  {name:<12}{group[0]}: {', '.join(sorted(group[1]))}" for name, group in GROUPS.items()]
    lines += [
        "",
        "Global options:",
        "  -H ADDRESS  Speak to this daemon (default: $COVE_HOST, $DOCKER_HOST, unix:///run/cove/docker.sock)",
        "  --tls, --tlsverify, --tlscacert FILE, --tlscert FILE, --tlskey FILE",
        "              Speak TLS to a tcp:// address, and check the daemon's certificate (DOCKER_TLS_VERIFY, "
        "DOCKER_CERT_PATH)",
        "  --version   Print this command line's version",
        "",
        "cove COMMAND --help tells more about a command.",
        "",
        "Example:",
        "  cove run --rm -it debian bash",
    ]
    return "\n".join(lines) + "\n"


def render_group(group: str) -> str:
    """The text of `cove GROUP --help`."""
    summary, members = GROUPS[group]
    lines = [f"Usage: cove {group} COMMAND [ARG...]", "", f"{summary}.", "", "Commands:"]
    for word, (module, name) in members.items():
        lines.append(f"  {word:<12}{load_command(module, name).summary}")
    first, name = next(iter(members.values()))
    example = load_command(first, name).example.partition("\n")[0]
    lines += ["", "Example:", f"  cove {group} ls" if "ls" in members else f"  {example}"]
    return "\n".join(lines) + "\n"
