"""Text of strangers on somebody's terminal: names of processes and files, an image's command, errors about them.

An escape sequence in it could move the cursor over other lines, set the title or, on some terminals, type input.
"""

from __future__ import annotations

import os

KEPT = "\n\t"  # what arranges lines


def printable(text: str, keep: str = "") -> str:
    r"""`text` with what a terminal wouldn't show as a character written as \n, \x1b, \u202e; `keep` stays."""
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() or c in keep else _escaped(c) for c in text)


def for_terminal(text: str) -> str:
    """Lines of output as they are, unless a terminal reads them: that gets them printable."""
    return printable(text, KEPT) if os.isatty(1) else text


def _escaped(character: str) -> str:
    return character.encode("unicode_escape", "surrogatepass").decode("ascii")
