"""completion: shell completion. The shells' scripts only ask `cove completion words`.

So completion knows every flag of the tables in the command modules, and the containers, images,
volumes and networks of the daemon at that moment. It never starts a daemon and never complains.
"""

from __future__ import annotations

from cove.cli.client import Client
from cove.cli.fail import CliError
from cove.cli.options import Command

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

    from cove.cli.options import Options

BASH = """_cove() {
    local -a words
    IFS=' ' read -ra words <<<"${COMP_LINE:0:COMP_POINT}"
    [[ ${COMP_LINE:0:COMP_POINT} == *' ' ]] && words+=("")
    local current=${words[-1]} IFS=$'\\n'
    COMPREPLY=($(cove completion words -- "${words[@]:1}" 2>/dev/null))
    # readline breaks words at colons: what is before the last one is there already
    [[ $COMP_WORDBREAKS == *:* ]] && COMPREPLY=("${COMPREPLY[@]#"${current%"${current##*:}"}"}")
}
complete -o default -F _cove cove
"""

ZSH = """#compdef cove
_cove() {
    local -a found
    found=(${(f)"$(cove completion words -- "${(@)words[2,CURRENT]}" 2>/dev/null)"})
    if (( ${#found} )); then compadd -a found; else _files; fi
}
compdef _cove cove
"""

FISH = """function __cove_words
    set -l words (commandline -opc)
    cove completion words -- $words[2..-1] (commandline -ct) 2>/dev/null
end
complete -c cove -a '(__cove_words)'
"""

SHELLS = {"bash": BASH, "zsh": ZSH, "fish": FISH}

# What a command's positional arguments name.
CONTAINERS = (
    *(
        "attach",
        "commit",
        "cp",
        "diff",
        "exec",
        "export",
        "inspect",
        "kill",
        "logs",
        "pause",
        "port",
        "rename",
        "restart",
    ),
    *("rm", "start", "stats", "stop", "systemd", "top", "unpause", "update", "wait", "container inspect"),
    "recreate",
)
IMAGES = (
    *("run", "create", "plan", "push", "save", "tag", "rmi", "history", "images"),
    *(
        "image inspect",
        "image tree",
        "image diff",
        "image squash",
        "image mount",
        "image unmount",
        "image slim",
    ),
    *("sign", "verify", "policy test"),
)
ONLY_FIRST = ("run", "create", "plan", "exec", "rename", "tag", "top", "commit", "recreate")


def complete(words: Sequence[str], client: Client | None) -> list[str]:
    """What could stand for the last of `words` (which may be empty); `client` None: no names of objects."""
    from cove.cli import main

    *before, current = words or [""]
    while before and before[0].startswith("-"):
        before = before[2:] if before[0] in ("-H", "--host") else before[1:]
    if not before:
        return _starting([row[0] for row in main.COMMANDS] + list(main.GROUPS) + ["help"], current)
    if before[0] in main.GROUPS and len(before) == 1:
        return _starting(list(main.GROUPS[before[0]][1]), current)
    try:
        command, rest = main.find_command(before)
    except CliError:
        return []
    if command is None:
        return []
    if current.startswith("-"):
        return _starting([f"--{flag[1]}" for flag in command.flags if flag[4]] + ["--help"], current)
    positions = _count_positional(command, rest)
    if command.name == "completion":
        return _starting(list(SHELLS), current)
    if client is None or (command.name in ONLY_FIRST and positions > 0):
        return []
    return _starting(_names(client, command.name), current)


def _count_positional(command: Command, words: Sequence[str]) -> int:
    takes = {flag[1]: flag[2] != "bool" for flag in command.flags}
    takes.update({flag[0]: flag[2] != "bool" for flag in command.flags if flag[0]})
    count, skip = 0, False
    for word in words:
        if skip:
            skip = False
        elif word.startswith("-"):
            name = word.lstrip("-") if word.startswith("--") else word[-1]
            skip = "=" not in word and takes.get(name, False)
        else:
            count += 1
    return count


def _names(client: Client, command: str) -> list[str]:
    if command in CONTAINERS:
        names = [name.lstrip("/") for one in client.get("/containers/json?all=1") for name in one["Names"]]
        return [f"{name}:" for name in names] if command == "cp" else names
    if command in IMAGES:
        return [name for image in client.get("/images/json") for name in image.get("RepoTags") or ()]
    if command.startswith("volume "):
        return [volume["Name"] for volume in client.get("/volumes")["Volumes"] or ()]
    if command.startswith("pod "):
        return [pod["Name"] for pod in client.get("/cove/v1/pods")]
    if command.startswith("secret "):
        return [secret["Name"] for secret in client.get("/cove/v1/secrets")]
    if command.startswith("network "):
        return [network["Name"] for network in client.get("/networks")]
    return []


def _starting(candidates: list[str], current: str) -> list[str]:
    return sorted({candidate for candidate in candidates if candidate.startswith(current)})


def run_completion(client: Client, options: Options) -> int:
    """cove completion"""
    shell, *words = options.args
    if shell == "words":
        quiet = Client(client.address.text)
        try:
            found = complete(words, quiet)
        except CliError:
            found = []
        print("\n".join(found))
        return 0
    if shell not in SHELLS:
        raise CliError(f"{shell}: expected bash, zsh or fish, e.g. cove completion bash")
    print(SHELLS[shell], end="")
    return 0


COMMANDS = {
    "completion": Command(
        "completion",
        run_completion,
        "bash|zsh|fish",
        "Print what makes a shell complete commands, flags and names.",
        needed=1,
        most=-1,
        example='eval "$(cove completion bash)"',
    ),
}
