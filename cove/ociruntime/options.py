"""Sort a command line into flags and arguments by the table of commands.py, and write its help. Pure.

As in Go's flag package, which runc's users write for: `--flag value`, `--flag=value`, `-flag value`, a boolean takes a
value only by `=`, `--` ends the flags.
"""

from __future__ import annotations

from cove.model.errors import Invalid
from cove.ociruntime.commands import COMMANDS, GLOBAL, Command

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import Any

    from cove.ociruntime.commands import Flag


class Options:
    """Flags as given, and the arguments; a flag not given has its kind's empty value."""

    __slots__ = ("args", "given")

    def __init__(self) -> None:
        self.given: dict[str, Any] = {}
        self.args: list[str] = []

    def on(self, name: str) -> bool:
        return bool(self.given.get(name))

    def text(self, name: str) -> str:
        return str(self.given.get(name, ""))

    def all(self, name: str) -> list[str]:
        return list(self.given.get(name, ()))

    def number(self, name: str) -> int | None:
        """None when the flag isn't there."""
        value = self.given.get(name)
        return None if value is None else int(value)


def parse_flags(flags: Sequence[Flag], arguments: Sequence[str], options: Options, *, stops: bool) -> None:
    """Fill `options`; with `stops` everything from the first argument that is no flag on is left in `args`.
    Raises Invalid, naming the flag."""
    position = 0
    while position < len(arguments):
        argument = arguments[position]
        position += 1
        if argument == "--":
            options.args += arguments[position:]
            return
        if len(argument) < 2 or argument[0] != "-" or argument[1:].isdecimal():
            options.args.append(argument)
            if stops:
                options.args += arguments[position:]
                return
            continue
        name, equals, value = argument.lstrip("-").partition("=")
        for flag in flags:
            if name in (flag[0], flag[1]) and name:
                break
        else:
            raise Invalid(f"flag provided but not defined: -{name}; --help lists the flags")
        if flag[2] != "bool" and not equals:
            if position >= len(arguments):
                raise Invalid(f"flag needs an argument: {argument} {flag[3]}")
            value = arguments[position]
            position += 1
        _store(options, flag, argument, value if equals or flag[2] != "bool" else "true")


def _store(options: Options, flag: Flag, shown: str, value: str) -> None:
    kind, name = flag[2], flag[1]
    if kind == "bool":
        if value.lower() not in ("true", "false", "1", "0", "t", "f"):
            raise Invalid(f"{shown}: expected true or false, e.g. --{name}=false")
        options.given[name] = value.lower() in ("true", "1", "t")
    elif kind == "list":
        options.given.setdefault(name, []).append(value)
    elif kind == "int":
        digits = value[1:] if value[:1] in ("+", "-") else value
        if not (digits.isascii() and digits.isdecimal()) or abs(int(digits)) >= 1 << 63:
            raise Invalid(f"--{name} {value}: expected a whole number, e.g. --{name} 100")
        options.given[name] = int(value)
    else:
        options.given[name] = value


def check_count(command: Command, args: Sequence[str]) -> None:
    """Raises Invalid for too few or too many arguments."""
    if len(args) < command.needed:
        kind = "exactly" if command.most == command.needed else "a minimum of"
        raise Invalid(f'"{command.name}" requires {kind} {command.needed} argument(s): {_usage(command)}')
    if 0 <= command.most < len(args):
        kind = "exactly" if command.most == command.needed else "a maximum of"
        raise Invalid(f'"{command.name}" requires {kind} {command.most} argument(s): {_usage(command)}')


def _usage(command: Command) -> str:
    flags = " [FLAG...]" if command.flags else ""
    return f"cove-runtime [GLOBAL FLAG...] {command.name}{flags} {command.usage}".rstrip()


def render_help(command: Command | None) -> str:
    """The help of a verb, or the overview."""
    if command is None:
        rows = [(f"  {each.name}", each.summary) for each in COMMANDS]
        lines = ["Usage: cove-runtime [GLOBAL FLAG...] COMMAND [FLAG...] [ARG...]", ""]
        lines += ["Run containers of OCI bundles.", "", "Commands:", *_columns(rows), ""]
        lines += ["Global flags:", *_columns(_flag_rows(GLOBAL)), ""]
        return "\n".join([*lines, "cove-runtime COMMAND --help says more about a command.", ""])
    lines = [f"Usage: {_usage(command)}", "", f"{command.summary}."]
    if command.flags:
        lines += ["", "Flags:", *_columns(_flag_rows(command.flags))]
    return "\n".join(lines) + "\n"


def _flag_rows(flags: Sequence[Flag]) -> list[tuple[str, str]]:
    rows = []
    for short, long, _, value, text in flags:
        if text:
            rows.append((f"  {f'-{short},' if short else '   '} --{long} {value}".rstrip(), text))
    return rows


def _columns(rows: Sequence[tuple[str, str]]) -> list[str]:
    width = max(len(head) for head, _ in rows)
    return [f"{head:<{width}}  {text}" for head, text in rows]
