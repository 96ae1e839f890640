"""Parse a command's arguments by its table of flags, and write its help from the same table.

Docker's conventions: `--flag value` and `--flag=value`, `-f value`, `-fvalue` and `-f=value`, short flags
combined (`-itd`), `--` ends the flags, a boolean takes a value only by `=`. A command that runs
another one (run, exec) stops at its first positional argument. Pure: nothing here prints.
"""

from __future__ import annotations

from cove.cli.fail import CliError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from typing import Any

    # short, long, kind, what the help calls the value, help. Kinds: bool; str: the last one counts;
    # list: may be repeated; int: a whole number. A help text of "" hides the flag (an old spelling).
    Flag = tuple[str, str, str, str, str]

TRUE = ("true", "1", "t", "T", "TRUE", "True")
FALSE = ("false", "0", "f", "F", "FALSE", "False")


class Command:
    """One command: its function, its arguments and what its help says."""

    __slots__ = (
        "example",
        "flags",
        "function",
        "hints",
        "most",
        "name",
        "needed",
        "stops",
        "summary",
        "usage",
    )

    def __init__(
        self,
        name: str,
        function: Callable[[Any, Options], int],
        usage: str,
        summary: str,
        *,
        flags: Sequence[Flag] = (),
        needed: int = 0,
        most: int | None = None,
        stops: bool = False,
        example: str = "",
        hints: Mapping[str, str] | None = None,
    ) -> None:
        self.name = name
        self.function = function
        self.usage = usage
        self.summary = summary
        self.flags = flags
        self.needed = needed  # positional arguments at least
        self.most = needed if most is None else most  # and at most; -1: any number
        self.stops = stops  # flags end at the first positional argument
        self.example = example
        self.hints = hints or {}  # flags of other commands, -e or --env: what to do instead


class Options:
    """Flags and positional arguments as given; a flag not given has its type's empty value."""

    __slots__ = ("args", "given")

    def __init__(self) -> None:
        self.given: dict[str, Any] = {}
        self.args: list[str] = []

    def __contains__(self, name: str) -> bool:
        return name in self.given

    def on(self, name: str, default: bool = False) -> bool:
        """A boolean flag."""
        value = self.given.get(name)
        return default if value is None else bool(value)

    def text(self, name: str, default: str = "") -> str:
        """A flag's last value."""
        value = self.given.get(name)
        return default if value is None else str(value)

    def all(self, name: str) -> list[str]:
        """Every value of a flag that may be repeated, in order."""
        return list(self.given.get(name, ()))

    def number(self, name: str) -> int | None:
        """A whole number; None when the flag isn't there."""
        value = self.given.get(name)
        return None if value is None else int(value)


def parse_arguments(command: Command, arguments: Sequence[str]) -> Options:
    """Sort `arguments` into flags and positional ones; CliError names the input, the rule and a way out."""
    longs: dict[str, Flag] = {}
    shorts: dict[str, Flag] = {}
    for flag in command.flags:
        longs[flag[1]] = flag
        if flag[0]:
            shorts[flag[0]] = flag
    options = Options()
    position = 0
    while position < len(arguments):
        argument = arguments[position]
        position += 1
        if argument == "--":
            options.args += arguments[position:]
            break
        if len(argument) < 2 or argument[0] != "-":
            options.args.append(argument)
            if command.stops:
                options.args += arguments[position:]
                break
            continue
        if argument.startswith("--"):
            name, equals, value = argument[2:].partition("=")
            found = longs.get(name)
            if found is None:
                raise CliError(_unknown(command, f"--{name}", longs))
            if not equals and found[2] != "bool":
                value, position = _next_value(argument, found, arguments, position)
            _store(options, found, f"--{name}", value if equals or found[2] != "bool" else "true")
            continue
        letters = argument[1:]
        while letters:
            found = shorts.get(letters[0])
            if found is None:
                raise CliError(_unknown(command, f"-{letters[0]}", longs))
            shown = f"-{letters[0]}"
            rest = letters[1:]
            if found[2] == "bool":
                if rest.startswith("="):
                    _store(options, found, shown, rest[1:])
                    break
                _store(options, found, shown, "true")
                letters = rest
                continue
            if rest:
                value = rest[1:] if rest.startswith("=") else rest
            else:
                value, position = _next_value(shown, found, arguments, position)
            _store(options, found, shown, value)
            break
    _check_count(command, options.args)
    return options


def _next_value(shown: str, flag: Flag, arguments: Sequence[str], position: int) -> tuple[str, int]:
    if position >= len(arguments):
        raise CliError(f"{shown}: expected a value: {shown} {flag[3] or 'VALUE'}")
    return arguments[position], position + 1


def _store(options: Options, flag: Flag, shown: str, value: str) -> None:
    kind, name = flag[2], flag[1]
    if kind == "bool":
        if value in TRUE:
            options.given[name] = True
        elif value in FALSE:
            options.given[name] = False
        else:
            raise CliError(f"{shown}={value}: expected true or false, e.g. --{name}=false")
    elif kind == "list":
        options.given.setdefault(name, []).append(value)
    elif kind == "int":
        digits = value[1:] if value[:1] in "+-" else value
        if not (digits.isascii() and digits.isdecimal()) or abs(int(digits)) >= 1 << 63:
            raise CliError(f"{shown} {value}: expected a whole number, e.g. --{name} 10")
        options.given[name] = int(value)
    else:
        options.given[name] = value


def _check_count(command: Command, args: Sequence[str]) -> None:
    if len(args) < command.needed:
        what = f"{command.needed} argument{'s' if command.needed > 1 else ''}"
        more = "" if command.most == command.needed else "at least "
        raise CliError(f"{command.name}: expected {more}{what}: cove {command.name} {command.usage}")
    if command.most >= 0 and len(args) > command.most:
        extra = args[command.most]
        raise CliError(
            f"{command.name}: unexpected argument {extra!r}: cove {command.name} {command.usage}".rstrip()
        )


def _unknown(command: Command, shown: str, longs: dict[str, Flag]) -> str:
    if shown in command.hints:
        return f"{shown}: {command.hints[shown]}"
    best = nearest(shown.lstrip("-"), list(longs)) if shown.startswith("--") else ""
    hint = f"did you mean --{best}?" if best else f"cove {command.name} --help lists the flags"
    return f"{shown}: {command.name} has no such flag; {hint}"


def nearest(word: str, known: Sequence[str]) -> str:
    """The known word at most two edits away, or ""."""
    best, best_distance = "", 3
    for candidate in known:
        if abs(len(candidate) - len(word)) > 2:
            continue
        row = list(range(len(candidate) + 1))
        for i, letter in enumerate(word, 1):
            previous, row[0] = row[0], i
            for j, other in enumerate(candidate, 1):
                previous, row[j] = row[j], min(row[j] + 1, row[j - 1] + 1, previous + (letter != other))
        if row[-1] < best_distance and row[-1] < len(word):
            best, best_distance = candidate, row[-1]
    return best


def render_help(command: Command) -> str:
    """The text of `cove COMMAND --help`."""
    lines = [f"Usage: cove {command.name} {command.usage}".rstrip(), "", command.summary]
    rows = []
    for short, long, kind, value, text in command.flags:
        if not text:
            continue
        head = f"  {'-' + short + ',' if short else '   '} --{long}"
        if kind != "bool":
            head += f" {value or 'VALUE'}"
        rows.append((head, text))
    if rows:
        lines += ["", "Options:"]
        width = min(max(len(head) for head, _ in rows), 36)
        for head, text in rows:
            lines.append(
                f"{head:<{width}}  {text}" if len(head) <= width else f"{head}\n{'':<{width}}  {text}"
            )
    if command.example:
        lines += ["", "Example:"]
        lines += ["  " + row for row in command.example.splitlines()]
    return "\n".join(lines) + "\n"
