"""Patterns of paths: `*` and `?` within a name, `**` for any number of names, and all that is below what matches.

Pure, and in time linear in the path for each pattern's length, whatever it says (no regular expression).
"""

from __future__ import annotations

from collections.abc import Sequence

from cove.model.errors import Invalid

PATTERNS_MAX = 1000
_LENGTH_MAX = 1024


def parse_patterns(texts: Sequence[str]) -> list[tuple[bytes, ...]]:
    """Patterns as their names. Invalid."""
    if len(texts) > PATTERNS_MAX:
        raise Invalid(f"include: there are {len(texts)} patterns; the limit is {PATTERNS_MAX}")
    found = []
    for text in texts:
        names = tuple(
            name.encode("utf-8", "surrogateescape") for name in text.split("/") if name not in ("", ".")
        )
        if not text.startswith("/") or ".." in text.split("/") or not names or len(text) > _LENGTH_MAX:
            raise Invalid(
                f"include: {text[:80]!r} isn't an absolute path or pattern of at most {_LENGTH_MAX} characters, "
                "e.g. /etc/ssl or /usr/share/locale/de*/**"
            )
        found.append(names)
    return found


def matches(pattern: Sequence[bytes], path: Sequence[bytes]) -> bool:
    """Whether a path, or a directory that it is in, is meant."""
    places = _skip({0}, pattern)  # in the pattern, where the names so far can have led to
    for name in path:
        if len(pattern) in places:
            return True
        places = _skip(
            {at for at in places if pattern[at] == b"**"}
            | {at + 1 for at in places if pattern[at] != b"**" and match_name(pattern[at], name)},
            pattern,
        )
    return len(pattern) in places


def _skip(places: set[int], pattern: Sequence[bytes]) -> set[int]:
    found = set(places)
    for at in places:
        while at < len(pattern) and pattern[at] == b"**":
            at += 1
            found.add(at)
    return found


def match_name(pattern: bytes, name: bytes) -> bool:
    """One name: `*` any bytes, `?` one. The last star alone is tried again, which is enough."""
    at = position = 0
    star, again = -1, 0
    while position < len(name):
        if at < len(pattern) and pattern[at] == 0x2A:
            star, again = at, position
            at += 1
        elif at < len(pattern) and pattern[at] in (0x3F, name[position]):
            at += 1
            position += 1
        elif star >= 0:
            again += 1
            at, position = star + 1, again
        else:
            return False
    return all(byte == 0x2A for byte in pattern[at:])
