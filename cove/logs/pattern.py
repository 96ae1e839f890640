"""Regular expressions that strangers wrote: matched in time that grows only with pattern and text. Pure.

Python's own matcher tries one way after the other, and a short pattern can keep it busy for years; Go's, whose
users write `labels-regex` and `env-regex`, follows all ways at once, and so does this: the parsed pattern becomes
a graph of states, of which there are at most MOST_STATES. Like Go's it knows no back references and no looking around.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Callable, Iterator
from re import _constants as words  # type: ignore[attr-defined]  # the only way to the parsed form
from re import _parser as parser  # type: ignore[attr-defined]
from typing import Any

from cove.model.errors import Invalid

MOST_PATTERN = 512
MOST_STATES = 2000
MOST_TEXT = 4096

Test = Callable[[str], bool]


class Pattern:
    """A compiled pattern; `search` says whether it matches anywhere. Raises Invalid for one that it can't be."""

    def __init__(self, option: str, text: str) -> None:
        self._option = option
        self._text = text
        self._tests: list[tuple[Test, int]] = []  # by state: what a character must be, the state after it
        self._free: list[list[tuple[str, int]]] = []  # by state: ways without a character ("" or an anchor)
        if len(text) > MOST_PATTERN:
            raise self._wrong(f"it has {len(text)} characters, at most {MOST_PATTERN} are possible")
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                tree = parser.parse(text.replace("\\z", "\\Z"))
        except (re.error, OverflowError, RecursionError) as error:
            raise self._wrong(str(error)) from None
        self._ignore_case = bool(tree.state.flags & re.IGNORECASE)
        self._start = self._state()
        self._final = self._state()
        self._add(tree, self._start, self._final)

    def search(self, text: str) -> bool:
        text = text[:MOST_TEXT]
        current: set[int] = set()
        for at in range(len(text) + 1):
            current.add(self._start)
            self._close(current, text, at)
            if self._final in current:
                return True
            if at < len(text):
                character = text[at]
                current = {
                    after
                    for state in current
                    if self._tests[state][1] >= 0
                    for test, after in (self._tests[state],)
                    if test(character)
                }
        return False

    def _close(self, current: set[int], text: str, at: int) -> None:
        waiting = list(current)
        while waiting:
            for anchor, after in self._free[waiting.pop()]:
                if after not in current and (not anchor or _holds(anchor, text, at)):
                    current.add(after)
                    waiting.append(after)

    # --- making the graph -----------------------------------------------------------------

    def _state(self) -> int:
        if len(self._tests) >= MOST_STATES:
            raise self._wrong("it is too large")
        self._tests.append((_never, -1))
        self._free.append([])
        return len(self._tests) - 1

    def _add(self, tree: Any, start: int, end: int) -> None:
        for operation, argument in tree:
            after = self._state()
            self._add_one(operation, argument, start, after)
            start = after
        self._free[start].append(("", end))

    def _add_one(self, operation: Any, argument: Any, start: int, end: int) -> None:
        if operation in (words.MAX_REPEAT, words.MIN_REPEAT):
            least, most, tree = argument
            self._repeat(least, most, tree, start, end)
        elif operation == words.BRANCH:
            for branch in argument[1]:
                inner = self._state()  # a state has one test, and each branch may begin with its own
                self._free[start].append(("", inner))
                self._add(branch, inner, end)
        elif operation == words.SUBPATTERN:
            self._add(argument[3], start, end)
        elif operation == words.AT:
            self._free[start].append((str(argument), end))
        else:
            self._tests[start] = (self._test(operation, argument), end)

    def _repeat(self, least: int, most: Any, tree: Any, start: int, end: int) -> None:
        for _ in range(least):
            after = self._state()
            self._add(tree, start, after)
            start = after
        if most == words.MAXREPEAT:
            inner = self._state()
            self._free[start] += [("", inner), ("", end)]
            after = self._state()
            self._add(tree, inner, after)
            self._free[after] += [("", inner), ("", end)]
            return
        self._free[start].append(("", end))
        for _ in range(least, most):
            inner, after = self._state(), self._state()
            self._free[start].append(("", inner))
            self._add(tree, inner, after)
            start = after
            self._free[start].append(("", end))

    def _test(self, operation: Any, argument: Any) -> Test:
        match operation:
            case words.LITERAL:
                wanted = self._cases(chr(argument))
                return lambda character: character in wanted
            case words.NOT_LITERAL:
                unwanted = self._cases(chr(argument))
                return lambda character: character not in unwanted
            case words.ANY:
                return lambda character: character != "\n"
            case words.IN:
                return self._class(argument)
        raise self._wrong(f"{str(operation).lower()} isn't possible in it")

    def _class(self, members: Any) -> Test:
        negated: bool = members[0][0] == words.NEGATE
        tests = list(self._members(members[1:] if negated else members))

        def test(character: str) -> bool:
            return any(one(character) for one in tests) is not negated

        return test

    def _members(self, members: Any) -> Iterator[Test]:
        for operation, argument in members:
            if operation == words.RANGE:
                low, high = map(chr, argument)
                yield lambda c, low=low, high=high: any(low <= x <= high for x in self._cases(c))  # type: ignore[misc]
            elif operation == words.CATEGORY:
                yield _CATEGORIES[str(argument)]
            else:
                yield self._test(operation, argument)

    def _cases(self, character: str) -> tuple[str, ...]:
        return (character, character.lower(), character.upper()) if self._ignore_case else (character,)

    def _wrong(self, why: str) -> Invalid:
        return Invalid(
            f"invalid value for {self._option}: {self._text[:80]}: {why}: expected e.g. ^com\\.example\\."
        )


def _never(character: str) -> bool:
    return False


def _is_word(character: str) -> bool:
    return character.isascii() and (character.isalnum() or character == "_")


_CATEGORIES: dict[str, Test] = {
    "CATEGORY_DIGIT": lambda c: c.isascii() and c.isdecimal(),
    "CATEGORY_NOT_DIGIT": lambda c: not (c.isascii() and c.isdecimal()),
    "CATEGORY_SPACE": lambda c: c in " \t\n\r\f\v",
    "CATEGORY_NOT_SPACE": lambda c: c not in " \t\n\r\f\v",
    "CATEGORY_WORD": _is_word,
    "CATEGORY_NOT_WORD": lambda c: not _is_word(c),
}


def _holds(anchor: str, text: str, at: int) -> bool:
    """Whether a place without a width is here."""
    match anchor:
        case "AT_BEGINNING" | "AT_BEGINNING_STRING":
            return at == 0
        case "AT_END" | "AT_END_STRING":
            return at == len(text)
    before = at > 0 and _is_word(text[at - 1])
    after = at < len(text) and _is_word(text[at])
    return (before != after) == (anchor == "AT_BOUNDARY")
