"""A stranger's YAML → plain data, within bounds. Pure.

Built from the parser's events, not by recursion: a depth, a count of values (an alias counts as much as what it
stands for) and a size bound what a file can cost. Scalars mean what they mean to Kubernetes' own reader (YAML 1.1:
yes and on are booleans, 0644 is octal), but for dates, which stay text. A key that comes twice is refused, for the one
that loses would be silently dropped; so are merge keys (<<) and tags.
"""

from __future__ import annotations

import math
import re
from typing import Any

from cove.model.errors import Invalid

MAX_BYTES = 1 << 20
MAX_DEPTH = 64
MAX_VALUES = 50_000
MAX_DOCUMENTS = 256
_MAX_DIGITS = 20

_NULLS = ("", "~", "null", "Null", "NULL")
_BOOLEANS = {
    text: value
    for value, words in ((True, ("true", "yes", "on")), (False, ("false", "no", "off")))
    for word in words
    for text in (word, word.capitalize(), word.upper())
}
_INTEGER = re.compile(r"[-+]?(0|[1-9][0-9]*)")
_OCTAL = re.compile(r"([-+]?)0o?([0-7]+)")
_HEXADECIMAL = re.compile(r"[-+]?0x[0-9a-fA-F]+")
_FLOAT = re.compile(r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?")


def parse_documents(data: bytes) -> list[Any]:
    """The documents of a file, without the empty ones. Raises Invalid with the line."""
    if len(data) > MAX_BYTES:
        raise Invalid(f"the YAML has {len(data)} bytes, and up to {MAX_BYTES} are read: split it")
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise Invalid(f"the YAML is not UTF-8: byte {error.start} is wrong") from None
    # PyYAML costs 2 MiB and 10 ms, and most daemons are never given a file
    import yaml

    loader = yaml.CSafeLoader if hasattr(yaml, "CSafeLoader") else yaml.SafeLoader
    builder = _Builder()
    try:
        for event in yaml.parse(text, Loader=loader):
            builder.take(event, type(event).__name__)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f"line {mark.line + 1}, column {mark.column + 1}: " if mark is not None else ""
        problem = getattr(error, "problem", None) or getattr(error, "reason", None) or "it can't be read"
        raise Invalid(f"not YAML: {where}{str(problem)[:200]}") from None
    return builder.documents


class _Open:
    """A mapping or list whose end hasn't come yet."""

    __slots__ = ("anchor", "has_key", "key", "size", "value")

    def __init__(self, value: dict[str, Any] | list[Any], anchor: str | None) -> None:
        self.value, self.anchor = value, anchor
        self.key, self.has_key, self.size = "", False, 1


class _Builder:
    def __init__(self) -> None:
        self.documents: list[Any] = []
        self._open: list[_Open] = []
        self._anchors: dict[str, tuple[Any, int] | None] = {}  # None: it hasn't ended yet
        self._values = 0

    def take(self, event: Any, kind: str) -> None:
        line = event.start_mark.line + 1
        if kind == "DocumentStartEvent":
            self._anchors.clear()
        elif kind in ("MappingStartEvent", "SequenceStartEvent"):
            self._refuse_tag(event, line)
            if len(self._open) >= MAX_DEPTH:
                raise Invalid(f"line {line}: nested more than {MAX_DEPTH} deep")
            if self._open and isinstance(self._open[-1].value, dict) and not self._open[-1].has_key:
                raise Invalid(f"line {line}: a key has to be text, e.g. name")
            self._count(1, line)
            self._open.append(_Open({} if kind[0] == "M" else [], event.anchor))
            if event.anchor:
                self._anchors[event.anchor] = None
        elif kind in ("MappingEndEvent", "SequenceEndEvent"):
            done = self._open.pop()
            self._add(done.value, done.size, done.anchor, line)
        elif kind == "ScalarEvent":
            plain = event.implicit[0]
            if not plain:
                self._refuse_tag(event, line)
            self._count(1, line)
            self._add_scalar(event.value, plain, event.anchor, line)
        elif kind == "AliasEvent":
            found = self._anchors.get(event.anchor)
            if found is None:
                raise Invalid(
                    f"line {line}: *{str(event.anchor)[:80]} stands for nothing that has ended before it"
                )
            self._count(found[1], line)
            self._add(found[0], found[1], None, line)

    def _refuse_tag(self, event: Any, line: int) -> None:
        if event.tag not in (None, "!", "tag:yaml.org,2002:str"):
            raise Invalid(f"line {line}: the tag {event.tag[:80]} is not read: leave it out")

    def _count(self, values: int, line: int) -> None:
        self._values += values
        if self._values > MAX_VALUES:
            raise Invalid(f"line {line}: more than {MAX_VALUES} values, aliases written out: split the file")

    def _add_scalar(self, text: str, plain: bool, anchor: str | None, line: int) -> None:
        parent = self._open[-1] if self._open else None
        if parent is not None and isinstance(parent.value, dict) and not parent.has_key:
            if plain and text == "<<":
                raise Invalid(f"line {line}: merge keys (<<) are not read: write the fields out")
            if text in parent.value:
                raise Invalid(f"line {line}: {text[:80]!r} comes twice: leave one out")
            parent.key, parent.has_key = text, True
            if anchor:
                self._anchors[anchor] = text, 1
            return
        try:
            value = resolve(text) if plain else text
        except ValueError as error:
            raise Invalid(f"line {line}: {error}") from None
        self._add(value, 1, anchor, line)

    def _add(self, value: Any, size: int, anchor: str | None, line: int) -> None:
        if anchor:
            self._anchors[anchor] = value, size
        if not self._open:
            if value is not None:
                self.documents.append(value)
            if len(self.documents) > MAX_DOCUMENTS:
                raise Invalid(f"line {line}: more than {MAX_DOCUMENTS} documents: split the file")
            return
        parent = self._open[-1]
        parent.size += size
        if isinstance(parent.value, list):
            parent.value.append(value)
        elif parent.has_key:
            parent.value[parent.key] = value
            parent.has_key = False
        elif isinstance(value, str) and value not in parent.value:
            parent.key, parent.has_key = value, True
        else:
            raise Invalid(f"line {line}: a key has to be text that comes once, e.g. name")


def resolve(text: str) -> Any:
    """What a scalar without quotes is. Raises ValueError for a number that nobody means."""
    if text in _NULLS:
        return None
    if text in _BOOLEANS:
        return _BOOLEANS[text]
    if text[0] not in "+-.0123456789":
        return text
    number: int | float | None = None
    if len(text) <= _MAX_DIGITS and (match := _OCTAL.fullmatch(text)):
        number = int(match[1] + match[2], 8)
    elif _HEXADECIMAL.fullmatch(text) and len(text) <= _MAX_DIGITS:
        number = int(text, 16)
    elif _INTEGER.fullmatch(text):
        if len(text) > _MAX_DIGITS:
            raise ValueError(f"{text[:40]} is too large a number: put it in quotes to have it as text")
        number = int(text)
    elif _FLOAT.fullmatch(text):
        number = float(text)
        if not math.isfinite(number):
            raise ValueError(f"{text[:40]} is too large a number: put it in quotes to have it as text")
    return text if number is None else number
