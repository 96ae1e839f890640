"""A value of a document together with its path, read by type. Pure.

Every refusal begins with the object and the path of the value: `Pod/web: spec.containers[0].image: …`.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterator, Mapping
from typing import Any

from cove.kube.fields import Field
from cove.model.errors import Invalid

_NAMES = {
    dict: "a mapping",
    list: "a list",
    str: "text",
    bool: "true or false",
    int: "a whole number",
    float: "a number",
    type(None): "nothing",
}
_LABEL = re.compile(r"[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?")


class At:
    """A value and where it stands; `value` is None where there is none."""

    __slots__ = ("owner", "path", "value")

    def __init__(self, owner: str, path: str, value: Any) -> None:
        self.owner, self.path, self.value = owner, path, value

    def __bool__(self) -> bool:
        return self.value is not None

    def error(self, sentence: str) -> Invalid:
        return Invalid(f"{self.owner}: {self.path}: {sentence}" if self.path else f"{self.owner}: {sentence}")

    def _wrong(self, expected: str) -> Invalid:
        shown = _NAMES.get(type(self.value), "something else")
        hint = (
            "; put it in quotes" if expected == "text" and isinstance(self.value, bool | int | float) else ""
        )
        return self.error(f"expected {expected}, got {shown}{hint}")

    def get(self, name: str) -> At:
        """A field of a mapping; of nothing, nothing."""
        inner = self.value.get(name) if isinstance(self.value, dict) else None
        return At(self.owner, f"{self.path}.{name}" if self.path else name, inner)

    def need(self, name: str, example: str) -> At:
        found = self.get(name)
        if found.value is None:
            raise found.error(f"is missing, e.g. {example}")
        return found

    def check(self, table: Mapping[str, Field]) -> At:
        """Refuse what isn't a mapping of the table's fields, and the fields that the table refuses."""
        if self.value is None:
            return self
        if not isinstance(self.value, dict):
            raise self._wrong("a mapping")
        for name, value in self.value.items():
            at = self.get(name)
            field = table.get(name)
            if field is None:
                near = difflib.get_close_matches(name, table, 1)
                hint = f"did you mean {near[0]}?" if near else f"there are {', '.join(table)}"
                raise At(self.owner, at.path[:200], None).error(f"no such field; {hint}")
            if value in (None, {}, []) or not field.refused:  # what `kubectl create --dry-run` writes
                continue
            if field.only and value in field.only and type(value) in {type(one) for one in field.only}:
                continue
            hint = f" (it can be {field.only[0]!r})" if field.only and field.only[0] != "" else ""
            raise at.error(field.refused + hint)
        return self

    def items(self, most: int = 1000) -> Iterator[At]:
        """The elements of a list."""
        if self.value is None:
            return
        if not isinstance(self.value, list):
            raise self._wrong("a list")
        if len(self.value) > most:
            raise self.error(f"{len(self.value)} entries, and there can be {most}")
        for index, value in enumerate(self.value):
            yield At(self.owner, f"{self.path}[{index}]", value)

    def text(self, default: str = "") -> str:
        if self.value is None:
            return default
        if not isinstance(self.value, str):
            raise self._wrong("text")
        if "\0" in self.value:
            raise self.error("a NUL byte is not allowed")
        return self.value

    def choice(self, words: tuple[str, ...], default: str) -> str:
        found = self.text(default)
        if found not in words:
            raise self.error(
                f"{found[:80]!r}: expected one of {', '.join(word or chr(34) * 2 for word in words)}"
            )
        return found

    def texts(self) -> list[str]:
        return [item.text() for item in self.items()]

    def flag(self, default: bool = False) -> bool:
        if self.value is None:
            return default
        if not isinstance(self.value, bool):
            raise self._wrong("true or false")
        return self.value

    def number(self, default: int, low: int, high: int) -> int:
        if self.value is None:
            return default
        if not isinstance(self.value, int) or isinstance(self.value, bool):
            raise self._wrong("a whole number")
        if not low <= self.value <= high:
            raise self.error(f"{self.value}: expected {low} to {high}")
        return self.value

    def path_text(self, example: str) -> str:
        """An absolute path without a component that goes up."""
        found = self.text()
        if not found.startswith("/") or ".." in found.split("/"):
            raise self.error(f"{found[:80]!r}: expected an absolute path without .., e.g. {example}")
        return found

    def relative_path(self, example: str) -> str:
        found = self.text()
        if not found or found.startswith("/") or {"..", ".", ""} & set(found.split("/")) or len(found) > 1000:
            raise self.error(f"{found[:80]!r}: expected a relative path without .., e.g. {example}")
        return found

    def strings(self) -> dict[str, str]:
        """A mapping of text to text, as labels are."""
        if self.value is None:
            return {}
        if not isinstance(self.value, dict):
            raise self._wrong("a mapping")
        return {name: self.get(name).text() for name in self.value}

    def label(self, example: str) -> str:
        """A name as RFC 1123 has it."""
        found = self.text()
        if not _LABEL.fullmatch(found):
            raise self.error(
                f"{found[:80]!r}: expected up to 63 lower-case letters, digits and '-', e.g. {example}"
            )
        return found

    def name(self, example: str) -> str:
        """Labels joined by dots."""
        found = self.text()
        if len(found) > 200 or not all(_LABEL.fullmatch(part) for part in found.split(".")):
            raise self.error(
                f"{found[:80]!r}: expected lower-case letters, digits, '-' and '.', e.g. {example}"
            )
        return found
