"""The patterns of `${x#pattern}` and `${x/pattern/text}`: `*`, `?` and text. Pure.

Not by regular expressions with a `.*` for each `*`: those backtrack, and a Dockerfile is a stranger's. A pattern is
cut at its stars into pieces of a fixed length, found one after the other: the leftmost place of each is right for
all that follow, and only the last piece can choose. Without bracket expressions, as in BuildKit; `*` and `?` stand
for any character, as in a shell.
"""

from __future__ import annotations

import re

from cove.model.errors import Invalid

MAX_PATTERN_CHARS = 256


class GlobError(Invalid):
    """A pattern that isn't one; the sentence says why."""


class Glob:
    """One pattern. Raises GlobError."""

    def __init__(self, pattern: str) -> None:
        if len(pattern) > MAX_PATTERN_CHARS:
            raise GlobError(f"longer than {MAX_PATTERN_CHARS} characters")
        self._units = _units(pattern)

    def without_prefix(self, value: str, longest: bool) -> str:
        """The value without the shortest or longest beginning that matches."""
        end = _match_at(_pieces(self._units), value, 0, longest)
        return value if end is None else value[end:]

    def without_suffix(self, value: str, longest: bool) -> str:
        """The value without the shortest or longest end that matches."""
        end = _match_at(_pieces(self._units[::-1]), value[::-1], 0, longest)
        return value if end is None else value[: len(value) - end]

    def replace(self, value: str, text: str, everywhere: bool, most: int) -> str:
        """The value with its first match, or all, replaced; each match is the longest. At most `most` long."""
        pieces = _pieces(self._units)
        if len(pieces) == 1 and pieces[0][0]:
            return _replace_fixed(pieces[0][1], value, text, everywhere, most)
        out: list[str] = []
        at, last, size = 0, -1, len(value)
        while at <= len(value):
            found = _search(pieces, value, at)
            if found is None:
                break
            start, end = found
            if end == start == last:
                break  # an empty match right behind another isn't one
            last = end
            out += [value[at:start], text]
            size += len(text)
            if size > most:
                raise GlobError(f"replacing makes more than {most} characters")
            if end == start:
                out.append(value[start : start + 1])
            at = max(end, start + 1)
            if not everywhere:
                break
        return "".join([*out, value[at:]])


def _units(pattern: str) -> list[str]:
    """The pattern's parts: "*", "?", or "=c" for the character c."""
    units: list[str] = []
    chars = iter(pattern)
    for char in chars:
        if char in "*?":
            units.append(char)
        elif char == "\\":
            escaped = next(chars, "")
            if not escaped or escaped not in "*?\\}/":
                raise GlobError(f"invalid escape '\\{escaped}': only *, ?, \\, }} and / are escaped")
            units.append(f"={escaped}")
        else:
            units.append(f"={char}")
    return units


def _pieces(units: list[str]) -> list[tuple[int, re.Pattern[str]]]:
    """What stands between stars, each with its length; as a regular expression that can't backtrack."""
    pieces: list[list[str]] = [[]]
    for unit in units:
        if unit == "*":
            pieces.append([])
        else:
            pieces[-1].append("." if unit == "?" else re.escape(unit[1:]))
    return [(len(piece), re.compile("".join(piece), re.DOTALL)) for piece in pieces]


def _replace_fixed(pattern: re.Pattern[str], value: str, text: str, everywhere: bool, most: int) -> str:
    """`replace` of a pattern without stars."""
    count = sum(1 for _ in pattern.finditer(value)) if everywhere else 1
    if len(value) + count * len(text) > most:
        raise GlobError(f"replacing makes more than {most} characters")
    return pattern.sub(lambda _: text, value, count=0 if everywhere else 1)


def _match_at(pieces: list[tuple[int, re.Pattern[str]]], value: str, at: int, longest: bool) -> int | None:
    """Where a match that begins at `at` ends; None when there is none."""
    size, first = pieces[0]
    if first.match(value, at) is None:
        return None
    at += size
    for index, (size, piece) in enumerate(pieces[1:], 2):
        if index == len(pieces) and longest:
            return _last(size, piece, value, at)
        found = piece.search(value, at)
        if found is None:
            return None
        at = found.end()
    return at


def _last(size: int, piece: re.Pattern[str], value: str, at: int) -> int | None:
    """The end of the rightmost place of `piece` from `at` on."""
    for start in range(len(value) - size, at - 1, -1):
        if piece.match(value, start):
            return start + size
    return None


def _search(pieces: list[tuple[int, re.Pattern[str]]], value: str, at: int) -> tuple[int, int] | None:
    """Start and end of the leftmost match, the longest there."""
    found = pieces[0][1].search(value, at)
    if found is None:
        return None
    end = _match_at(pieces, value, found.start(), True)
    # Where the leftmost place of the first piece has no match, none further right has one: less text follows it.
    return None if end is None else (found.start(), end)
