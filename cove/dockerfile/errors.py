"""What is wrong in a Dockerfile, and where: file, line, column, the line itself and a caret. Pure."""

from __future__ import annotations

from collections.abc import Iterable

import msgspec

from cove.model.errors import Invalid

_SHOWN_CHARS = 100  # of the line that has the mistake


class DockerfileError(Invalid):
    """A mistake in a Dockerfile; lines and columns count from 1, 0 means that it has no place."""

    def __init__(
        self, problem: str, *, file: str = "Dockerfile", line: int = 0, column: int = 0, text: str = ""
    ) -> None:
        super().__init__(problem)
        self.problem, self.file, self.line, self.column, self.text = problem, file, line, column, text

    def sentence(self) -> str:
        """The error in one line."""
        place = f":{self.line}:{self.column}" if self.line else ""
        return f"{self.file}{place}: {self.problem}"

    def __str__(self) -> str:
        if not self.line:
            return self.sentence()
        return f"{self.sentence()}\n{excerpt(self.text, self.line, self.column)}"


def excerpt(text: str, line: int, column: int) -> str:
    """The line and, below it, a caret at the column; of a long line the part around the column."""
    start = max(0, min(column - 1 - _SHOWN_CHARS // 2, len(text) - _SHOWN_CHARS))
    shown = text[start : start + _SHOWN_CHARS].replace("\t", " ")
    shown = "".join(char if char.isprintable() else "�" for char in shown)
    number = f"{line:>4}"
    return f"{number} | {shown}\n{' ' * len(number)} | {' ' * (column - 1 - start)}^"


def nearest(word: str, known: Iterable[str]) -> str:
    """The known word that is at most two letters away; "" when none is, or when the word itself is known."""
    best, least = "", min(3, len(word))
    for other in known:
        if other == word:
            return ""
        if abs(len(other) - len(word)) < least and (distance := _distance(word, other)) < least:
            best, least = other, distance
    return best


def suggestion(word: str, known: Iterable[str]) -> str:
    """ " (did you mean FROM?)", or nothing when no known word is near; letters' case doesn't count."""
    by_lower = {name.lower(): name for name in known}
    near = nearest(word.lower()[:64], by_lower)
    return f" (did you mean {by_lower[near]}?)" if near else ""


def _distance(one: str, other: str) -> int:
    """How many letters to insert, delete, replace or swap with the next (optimal string alignment)."""
    rows = [list(range(len(other) + 1))]
    for place, char in enumerate(one, 1):
        row = [place]
        for at, counterpart in enumerate(other, 1):
            best = min(row[at - 1] + 1, rows[-1][at] + 1, rows[-1][at - 1] + (char != counterpart))
            if place > 1 and at > 1 and char == other[at - 2] and counterpart == one[place - 2]:
                best = min(best, rows[-2][at - 2] + 1)
            row.append(best)
        rows.append(row)
    return rows[-1][-1]


class Source(msgspec.Struct, frozen=True):
    """The text that instructions were read from, to say where a mistake is."""

    name: str
    lines: tuple[str, ...]

    def error(
        self, problem: str, line: int = 0, end_line: int = 0, token: str = "", last: bool = False
    ) -> DockerfileError:
        """An error at `token` between the lines, or at the first character of `line`; `last`: its last place."""
        line = min(line, len(self.lines))
        if line < 1:
            return DockerfileError(problem, file=self.name)
        found = self.place(token, line, max(line, end_line), last) if token else None
        at, column = found or (line, len(self.lines[line - 1]) - len(self.lines[line - 1].lstrip()) + 1)
        return DockerfileError(problem, file=self.name, line=at, column=column, text=self.lines[at - 1])

    def place(self, token: str, line: int, end_line: int, last: bool = False) -> tuple[int, int] | None:
        """Line and column of `token` in these lines; None when it isn't there in one piece."""
        places = [
            (number, at + 1)
            for number in range(line, min(end_line, len(self.lines)) + 1)
            if (at := (self.lines[number - 1].rfind if last else self.lines[number - 1].find)(token)) >= 0
        ]
        return (places[-1] if last else places[0]) if places else None
