"""How a refused config.json is put into words. Pure."""

from __future__ import annotations

from collections.abc import Iterable

from cove.model.errors import Invalid


def invalid(sentence: str) -> Invalid:
    """An error in one line, whatever the config's own words have in them."""
    if not sentence.isprintable():
        sentence = "".join(char if char.isprintable() else f"\\u{ord(char):04x}" for char in sentence)
    return Invalid(sentence)


def refuse(path: str, sentence: str) -> Invalid:
    """The error for the field at `path`; the sentence has the rule and a value that works."""
    return invalid(f"config.json: {path}: {sentence}")


def one_of(words: Iterable[str]) -> str:
    """a, b or c"""
    *most, last = words
    return f"{', '.join(most)} or {last}" if most else last


def check_list(path: str, text: str, limit: int) -> None:
    """A list of numbers below `limit` such as 0-3,7 (cpuset(7), "List Format"); "" is fine. Raises Invalid."""
    if not text:
        return
    for part in text.split(","):
        first, dash, last = part.strip().partition("-")
        if not dash:
            last = first
        if not (first.isascii() and first.isdecimal() and last.isascii() and last.isdecimal()):
            raise refuse(path, f'"{text}" is no list of numbers: write e.g. 0-3,7')
        if len(last) > 5 or len(first) > 5 or not int(first) <= int(last) < limit:
            raise refuse(
                path, f'"{text}" must have numbers from 0 to {limit - 1}, lower ones first, e.g. 0-3,7'
            )
