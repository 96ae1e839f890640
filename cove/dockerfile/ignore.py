"""The patterns of .dockerignore: which paths of a build context aren't sent. Pure.

As moby/patternmatcher reads them (docs.docker.com/build/concepts/context, ".dockerignore files"): paths from the
context's root; `*` and `?` stay within a name, `**` crosses directories, `[a-z]` is a class, `\\` takes a character as
it is, `!` brings back what an earlier line left out; the last line that matches a path or a directory above it counts.

Each run of lines of one kind is one regular expression that can't backtrack (every piece between stars is taken at
its leftmost place, in an atomic group): 20,000 paths and a stranger's patterns cost what their lengths say. `**`
beside other characters (a**b) has no such form and is matched state by state.
"""

from __future__ import annotations

import posixpath
import re
from collections.abc import Iterable

from cove.model.errors import Invalid

MAX_BYTES = 1 << 20
MAX_PATTERNS = 10_000
MAX_PATTERN_CHARS = 4096


class IgnoreError(Invalid):
    """A line that isn't a pattern; the sentence has file and line."""


class DockerIgnore:
    """The patterns of one file. Raises IgnoreError."""

    def __init__(self, text: str | bytes, name: str = ".dockerignore") -> None:
        self._patterns = tuple(_parse(text, name))
        self._runs = _compile_runs(self._patterns)
        self._back = tuple(pattern.names for pattern in self._patterns if pattern.exclusion)

    @property
    def empty(self) -> bool:
        return not self._patterns

    @property
    def has_exclusions(self) -> bool:
        """Whether any line brings paths back."""
        return bool(self._back)

    def matches(self, path: str) -> bool:
        """Whether `path` (relative, slashes, without . and ..) is left out."""
        if path in (".", ""):
            return False  # the context itself stays
        return any_run(self._runs, path)

    def skips(self, directory: str) -> bool:
        """Whether the directory is left out with all that it has: nothing below it is brought back."""
        if not self.matches(directory):
            return False
        names = directory.split("/")
        return not any(_may_reach(pattern, names) for pattern in self._back)

    def leaves_all_out(self) -> bool:
        """Whether a line leaves out every name of the root, as `*` does."""
        return any(
            not pattern.exclusion and pattern.text in ("*", "**", "**/*") for pattern in self._patterns
        )


class _Pattern:
    def __init__(self, text: str, exclusion: bool) -> None:
        self.text, self.exclusion = text, exclusion
        self.names = text.split("/")
        self.regex, self.odd = _regex(text)


def any_run(runs: Iterable[_Run], path: str) -> bool:
    """What the last run with a match says; False without one. `runs` begin with the last."""
    for run in runs:
        if run.matches(path):
            return not run.exclusion
    return False


class _Run:
    """Lines of one kind that follow each other."""

    def __init__(self, patterns: list[_Pattern]) -> None:
        self.exclusion = patterns[0].exclusion
        plain = [pattern.regex for pattern in patterns if not pattern.odd]
        # A directory that matches takes what is below it along.
        self._regex = re.compile(f"(?:{'|'.join(plain)})(?:/.*)?", re.DOTALL) if plain else None
        self._odd = [_States(pattern.text) for pattern in patterns if pattern.odd]

    def matches(self, path: str) -> bool:
        if self._regex is not None and self._regex.fullmatch(path) is not None:
            return True
        return any(states.match(path) for states in self._odd)


def _compile_runs(patterns: Iterable[_Pattern]) -> tuple[_Run, ...]:
    runs: list[list[_Pattern]] = []
    for pattern in patterns:
        if not runs or runs[-1][0].exclusion != pattern.exclusion or len(runs[-1]) >= 500:
            runs.append([])
        runs[-1].append(pattern)
    return tuple(_Run(run) for run in reversed(runs))


def _parse(text: str | bytes, name: str) -> list[_Pattern]:
    if isinstance(text, bytes):
        text = text.decode(errors="surrogateescape")  # names in a context needn't be UTF-8
    if len(text) > MAX_BYTES:
        raise IgnoreError(f"{name}: {len(text)} characters are too many: at most {MAX_BYTES}")
    patterns: list[_Pattern] = []
    for number, line in enumerate(text.removeprefix("\ufeff").split("\n"), 1):
        if line.startswith("#") or not line.strip():
            continue
        line = line.strip()
        exclusion = line.startswith("!")
        pattern = line[1:].strip() if exclusion else line
        if not pattern:
            raise IgnoreError(
                f'{name}:{number}: illegal exclusion pattern "!": a path must follow, e.g. !README.md'
            )
        if len(pattern) > MAX_PATTERN_CHARS:
            raise IgnoreError(f"{name}:{number}: a pattern of more than {MAX_PATTERN_CHARS} characters")
        pattern = posixpath.normpath(pattern)
        if len(pattern) > 1:
            pattern = pattern.lstrip("/")
        if pattern in (".", "/"):
            continue  # the context itself can't be left out
        try:
            patterns.append(_Pattern(pattern, exclusion))
        except (ValueError, re.error):
            problem = (
                f"{name}:{number}: syntax error in pattern {pattern[:80]!r}: an open [ or a \\ at the end"
            )
            raise IgnoreError(problem) from None
        if len(patterns) > MAX_PATTERNS:
            raise IgnoreError(f"{name}: too many patterns: at most {MAX_PATTERNS}")
    return patterns


# --- one pattern -------------------------------------------------------------------------------


def _units(text: str) -> list[str]:
    """The parts of a pattern: "*", "**", or a regular expression of one character. Raises ValueError."""
    units: list[str] = []
    at = 0
    while at < len(text):
        char = text[at]
        at += 1
        if char == "*":
            if text.startswith("*", at):
                at += 1
                at += text.startswith("/", at)  # **/ is **
                units.append("**")
            else:
                units.append("*")
        elif char == "?":
            units.append("[^/]")
        elif char == "[":
            unit, at = _class(text, at)
            units.append(unit)
        elif char == "\\":
            if at == len(text):
                raise ValueError("a backslash at the end")
            units.append(re.escape(text[at]))
            at += 1
        else:
            units.append(re.escape(char))
    return units


def _class(text: str, at: int) -> tuple[str, int]:
    """A class in brackets, from after its [; and where it ends. Go's path.Match has no others."""
    negated = text.startswith("^", at)
    at += negated
    out: list[str] = []
    while True:
        if out and text.startswith("]", at):
            return f"[{'^' if negated else ''}{''.join(out)}]", at + 1
        low, at = _class_char(text, at)
        if text.startswith("-", at):
            high, at = _class_char(text, at + 1)
            if high < low:
                raise ValueError("a range backwards")
            out.append(f"{re.escape(low)}-{re.escape(high)}")
        else:
            out.append(re.escape(low))


def _class_char(text: str, at: int) -> tuple[str, int]:
    if at >= len(text) or text[at] in "-]":
        raise ValueError("an open class")
    if text[at] == "\\":
        at += 1
        if at >= len(text):
            raise ValueError("a backslash at the end")
    return text[at], at + 1


def _regex(text: str) -> tuple[str, bool]:
    """The pattern as a regular expression; or "" and True for one with ** beside other characters."""
    names = text.split("/")
    _units(text)  # for the errors: a class may have a slash in it
    if any("**" in name.replace("\\*", "") and name != "**" for name in names) or _slash_in_class(text):
        return "", True
    # The parts between ** : each is names one after the other.
    parts: list[list[str]] = [[]]
    for name in names:
        if name != "**":
            parts[-1].append(_name(name))
        elif parts[-1] or len(parts) == 1:
            parts.append([])
    if len(parts) == 1:
        return "/".join(parts[0]), False
    *middle, last = ["/".join(part) for part in parts]
    out = [f"{middle[0]}/" if middle[0] else ""]
    out += [f"(?>(?:.*?/)??{part}/)" for part in middle[1:]]
    if last:
        out.append(f"(?:.*/)?{last}")
    elif len(middle) == 1 and not middle[0]:
        out.append(".*")  # ** alone
    else:
        out.append(".*")  # a/**: what is below a, not a itself
    return "".join(out), False


def _name(name: str) -> str:
    """One name's pattern: pieces between stars, the last of which must end the name."""
    pieces: list[list[str]] = [[]]
    for unit in _units(name):
        if unit == "*":
            pieces.append([])
        else:
            pieces[-1].append(unit)
    first, *rest = ["".join(piece) for piece in pieces]
    if not rest:
        return first
    middle = "".join(f"(?>[^/]*?{piece})" for piece in rest[:-1] if piece)
    return f"{first}{middle}[^/]*{rest[-1]}"


def _slash_in_class(text: str) -> bool:
    return any(unit.startswith("[") and "/" in unit and unit != "[^/]" for unit in _units(text))


class _States:
    """A pattern matched by the set of places that it can be in: for the few that have no good expression."""

    def __init__(self, text: str) -> None:
        self._suffix = ""
        units = _units(text)
        literal = text[2:]
        if text.startswith("**") and "*" not in units and "**" not in units[1:] and _is_literal(literal):
            self._suffix = literal  # **file is any path that ends with it
        self._units = [unit if unit in ("*", "**") else re.compile(unit, re.DOTALL) for unit in units]

    def match(self, path: str) -> bool:
        """Whether the path or a directory above it matches."""
        if self._suffix:
            return any(prefix.endswith(self._suffix) for prefix in _prefixes(path))
        final = len(self._units)
        # A place is (unit, inside): `inside` a ** that has taken characters and may leave after a slash.
        places = self._closed({(0, False)})
        for char in path:
            if char == "/" and (final, False) in places:
                return True
            following: set[tuple[int, bool]] = set()
            for place, _ in places:
                if place == final:
                    continue
                unit = self._units[place]
                if unit == "**":
                    following.add((place, True))
                    if char == "/" or place == final - 1:
                        following.add((place + 1, False))
                elif unit == "*":
                    if char != "/":
                        following.add((place, False))
                elif isinstance(unit, re.Pattern) and unit.fullmatch(char):
                    following.add((place + 1, False))
            places = self._closed(following)
            if not places:
                return False
        return (final, False) in places

    def _closed(self, places: set[tuple[int, bool]]) -> set[tuple[int, bool]]:
        """With what is reached without a character: * and ** may be empty."""
        found, waiting = set(places), list(places)
        while waiting:
            place, inside = waiting.pop()
            if place < len(self._units) and self._units[place] in ("*", "**") and not inside:
                following = (place + 1, False)
                if following not in found:
                    found.add(following)
                    waiting.append(following)
        return found


def _is_literal(text: str) -> bool:
    return not any(char in "*?[]\\" for char in text)


def _prefixes(path: str) -> Iterable[str]:
    """The path and the directories above it."""
    names = path.split("/")
    return ("/".join(names[:count]) for count in range(len(names), 0, -1))


def _may_reach(pattern: list[str], names: list[str]) -> bool:
    """Whether a pattern that brings back can match below this directory."""
    for mine, name in zip(pattern, names, strict=False):
        if "**" in mine:
            return True
        if _is_literal(mine) and mine != name:
            return False
    return True
