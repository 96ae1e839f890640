"""Which files of a tree a COPY means: paths and wildcards, resolved within the tree. Pure over a small interface.

A wildcard is Go's filepath.Match, part by part; links on the way are followed within the tree, whose root they can't
leave, and so is one that a source names (BuildKit: FollowLinks). A source that is a directory means what is in it.
"""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from functools import lru_cache
from typing import NamedTuple, Protocol

from cove.dockerfile.ignore import DockerIgnore
from cove.image.tarformat import show_name
from cove.model.errors import Invalid, NotFound

_LINKS_MAX = 255
_MATCHES_MAX = 100_000


class Fact(NamedTuple):
    """What is at a path: file, dir, symlink or other; `link` is a link's target."""

    kind: str
    link: bytes = b""


class Tree(Protocol):
    """A tree that can be asked; paths have no links in them, and no slash at either end."""

    def fact(self, path: bytes) -> Fact | None: ...

    def names(self, path: bytes) -> Sequence[bytes]: ...


class Found(NamedTuple):
    """A source that was found: the path it has in the tree once links are followed, and the name it was found by."""

    path: bytes
    name: bytes
    kind: str


def find_items(tree: Tree, pattern: bytes) -> list[Found]:
    """What a source stands for, sorted. NotFound in Docker's words, Invalid."""
    clean = clean_path(pattern)
    if not clean:
        return [Found(b"", b"", "dir")]
    parts = clean.split(b"/")
    if not any(_is_wild(part) for part in parts):
        path = resolve(tree, clean)
        fact = tree.fact(path) if path is not None else None
        if path is None or fact is None:
            raise NotFound(
                "file not found in build context or excluded by .dockerignore: "
                f"stat {_shown(clean)}: file does not exist"
            )
        return [Found(path, clean, fact.kind)]
    found = []
    for name in _expand(tree, parts):
        path = resolve(tree, name)
        fact = tree.fact(path) if path is not None else None
        if path is not None and fact is not None:
            found.append(Found(path, name, fact.kind))
    if not found:
        raise NotFound(f"no source files were specified: nothing matches {show_name(pattern)}")
    return found


def resolve(tree: Tree, path: bytes, *, last: bool = True) -> bytes | None:
    """Follow the links of a path within the tree; None when it leads nowhere. Without `last` one at its end stays."""
    todo = [part for part in path.split(b"/") if part not in (b"", b".")][::-1]
    done: list[bytes] = []
    links = 0
    while todo:
        part = todo.pop()
        if part == b"..":
            done = done[:-1]
            continue
        here = b"/".join((*done, part))
        fact = tree.fact(here)
        if fact is None:
            return None
        if fact.kind == "symlink" and (todo or last):
            links += 1
            if links > _LINKS_MAX:
                raise Invalid(f"{show_name(path)} goes through more than {_LINKS_MAX} symbolic links")
            if fact.link.startswith(b"/"):
                done = []
            todo += [p for p in fact.link.split(b"/") if p not in (b"", b".")][::-1]
            continue
        if todo and fact.kind != "dir":
            return None
        done.append(part)
    return b"/".join(done)


def kept_name(pivot: bytes, name: bytes) -> bytes:
    """What --parents keeps of a name that was found: all of it, or what lies below the directory `pivot`."""
    count = len([part for part in pivot.split(b"/") if part not in (b"", b".")])
    return b"/".join(name.split(b"/")[count:])


class Excludes:
    """--exclude: what of the sources isn't copied. Patterns as in .dockerignore, of paths relative to a source that
    is a directory, or of the name of one that is a file; with `rooted` (--parents) of paths in the tree."""

    def __init__(self, patterns: Sequence[str], *, rooted: bool) -> None:
        self._patterns = DockerIgnore("\n".join(patterns), "--exclude") if patterns else None
        self._rooted = rooted

    def leaves_out(self, shown: bytes, path: bytes) -> bool:
        """`shown` is what the source was found as, `path` is relative to it."""
        if self._patterns is None:
            return False
        text = b"/".join(part for part in (shown, path) if part) if self._rooted else path
        text = text or shown.rpartition(b"/")[2]
        return bool(text) and self._patterns.matches(os.fsdecode(text))


def _expand(tree: Tree, parts: Sequence[bytes]) -> list[bytes]:
    found = [b""]
    for part in parts:
        after: list[bytes] = []
        for above in found:
            at = resolve(tree, above) if above else b""
            if at is None:
                continue
            if not _is_wild(part):
                names = [_unescape(part)]
                names = [n for n in names if tree.fact(at + b"/" + n if at else n) is not None]
            else:
                matcher = _matcher(part)
                names = [name for name in tree.names(at) if matcher.matches(name)]
            after += [above + b"/" + name if above else name for name in names]
        if len(after) > _MATCHES_MAX:
            raise Invalid(f"a wildcard matches more than {_MATCHES_MAX} files: name a directory instead")
        found = after
    return found


def _is_wild(part: bytes) -> bool:
    return any(char in part for char in b"*?[\\")


class Wildcard:
    """filepath.Match of one part: * ? [a-z] [^a] and \\ before a character. Invalid for what can't be read.

    No regular expression of the whole: with several stars one that fails tries them all, each at each byte of a name.
    """

    def __init__(self, part: bytes) -> None:
        self._units: list[re.Pattern[bytes] | None] = []  # of one byte each; None is a star
        at = 0
        while at < len(part):
            char = part[at : at + 1]
            at += 1
            if char == b"*":
                if not self._units or self._units[-1] is not None:
                    self._units.append(None)
                continue
            expression = re.escape(char)
            if char == b"?":
                expression = b"."
            elif char == b"\\":
                if at == len(part):
                    raise Invalid(
                        f"the pattern {show_name(part)} ends with a backslash: syntax error in pattern"
                    )
                expression = re.escape(part[at : at + 1])
                at += 1
            elif char == b"[":
                end = part.find(b"]", at + 1)
                if end < 0:
                    raise Invalid(
                        f"the pattern {show_name(part)} has a [ without its ]: syntax error in pattern"
                    )
                expression = _one_of(part[at:end])
                at = end + 1
            try:
                self._units.append(re.compile(expression, re.DOTALL))
            except re.error:
                raise Invalid(
                    f"the pattern {show_name(part)} can't be read: syntax error in pattern"
                ) from None

    def matches(self, name: bytes) -> bool:
        """Whether a name is meant. When it fails after a star, the last star alone has to take one byte more."""
        units = self._units
        unit = at = 0
        star, again = -1, 0
        while at < len(name):
            wanted = units[unit] if unit < len(units) else None
            if unit < len(units) and wanted is None:
                star, again = unit, at
                unit += 1
            elif wanted is not None and wanted.match(name, at):
                unit += 1
                at += 1
            elif star >= 0:
                again += 1
                unit, at = star + 1, again
            else:
                return False
        return all(left is None for left in units[unit:])


def _one_of(inner: bytes) -> bytes:
    negated = inner.startswith(b"^")
    body = inner[1:] if negated else inner
    return b"[" + (b"^" if negated else b"") + re.sub(rb"([\[\]\\&~|])", rb"\\\1", body) + b"]"


@lru_cache(maxsize=256)
def _matcher(part: bytes) -> Wildcard:
    return Wildcard(part)


def _unescape(part: bytes) -> bytes:
    return re.sub(rb"\\(.)", rb"\1", part)


def clean_path(path: bytes) -> bytes:
    """The path without empty parts, `.` and `..`, and not above the root."""
    done: list[bytes] = []
    for part in path.split(b"/"):
        if part == b"..":
            done = done[:-1]
        elif part not in (b"", b"."):
            done.append(part)
    return b"/".join(done)


def _shown(path: bytes) -> str:
    return path.decode("utf-8", "backslashreplace")


__all__ = ["Excludes", "Fact", "Found", "Tree", "clean_path", "find_items", "kept_name", "resolve"]
