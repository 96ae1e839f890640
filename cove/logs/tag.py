"""The `tag` option: the part of Go's text/template that tags are written in. Pure.

Text, `{{.Field}}`, functions (json, split, join, title, lower, upper, pad, truncate, index, print), quoted
strings, numbers, parentheses, pipes. A tag goes into headers of protocols, so what comes out has no control
characters.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from cove.model.errors import Invalid

MOST_TEMPLATE = 1024
MOST_TAG = 4096
_TOKEN = re.compile(
    r"""\s*(?:(?P<string>"(?:[^"\\]|\\.)*"|`[^`]*`)|(?P<number>\d+)|(?P<path>(?:\.[A-Za-z_]\w*)+)|"""
    r"""(?P<word>[A-Za-z]\w*)|(?P<mark>[|()]))""",
    re.ASCII,
)
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029]")
Token = tuple[str, str]


def render_tag(template: str, fields: Mapping[str, Any]) -> str:
    """A container's tag. Raises Invalid, which names the fields that there are."""
    if len(template) > MOST_TEMPLATE:
        raise Invalid(
            f"template: log-tag: it has {len(template)} characters, at most {MOST_TEMPLATE} are possible"
        )
    out = []
    rest = template
    while True:
        plain, opening, rest = rest.partition("{{")
        out.append(plain)
        if not opening:
            break
        action, closing, rest = rest.partition("}}")
        if not closing:
            raise Invalid(f"template: log-tag: {template}: unclosed action: expected {{{{.Name}}}}")
        out.append(_show(_Action(action.strip(" -"), fields).value()))
    tag = _CONTROL.sub("_", "".join(out))
    if len(tag) > MOST_TAG:
        raise Invalid(
            f"template: log-tag: the tag has {len(tag)} characters, at most {MOST_TAG} are possible"
        )
    return tag


class _Action:
    """What stands between one pair of braces."""

    def __init__(self, text: str, fields: Mapping[str, Any]) -> None:
        self._text = text
        self._fields = fields
        self._tokens: list[Token] = []
        self._at = 0
        end = 0
        while end < len(text):
            match = _TOKEN.match(text, end)
            if match is None or match.lastgroup is None:
                raise self._wrong(f"unexpected {text[end:].strip()[:20]!r}")
            self._tokens.append((match.lastgroup, match[match.lastgroup]))
            end = match.end()

    def value(self) -> Any:
        value = self._pipe()
        if self._at < len(self._tokens):
            raise self._wrong(f"unexpected {self._tokens[self._at][1]!r}")
        return value

    def _pipe(self) -> Any:
        value = self._command(())
        while self._peek() == ("mark", "|"):
            self._at += 1
            value = self._command((value,))
        return value

    def _command(self, last: tuple[Any, ...]) -> Any:
        kind, text = self._next()
        if kind != "word":
            self._at -= 1
            return self._operand()
        function = _FUNCTIONS.get(text)
        if function is None:
            raise self._wrong(f'function "{text}" not defined: there are {", ".join(_FUNCTIONS)}')
        arguments: list[Any] = []
        while (token := self._peek()) is not None and token not in (("mark", "|"), ("mark", ")")):
            arguments.append(self._operand())
        try:
            return function(*arguments, *last)
        except (TypeError, ValueError, AttributeError, LookupError):
            raise self._wrong(f'wrong arguments of "{text}"') from None

    def _operand(self) -> Any:
        kind, text = self._next()
        match kind:
            case "string":
                return text[1:-1] if text[0] == "`" else re.sub(r"\\(.)", r"\1", text[1:-1])
            case "number":
                return int(text[:9])
            case "path":
                return self._field(self._fields, text)
            case "mark" if text == "(":
                value = self._pipe()
                if self._next() != ("mark", ")"):
                    raise self._wrong("a parenthesis isn't closed")
                token = self._peek()
                if token is not None and token[0] == "path":
                    self._at += 1
                    return self._field(value, token[1])
                return value
        raise self._wrong(f"unexpected {text!r}")

    def _field(self, value: Any, path: str) -> Any:
        for name in path[1:].split("."):
            if value is self._fields:
                if name not in self._fields:
                    raise self._wrong(
                        f"can't evaluate field {name}: there are {', '.join(self._fields)}, e.g. {{{{.Name}}}}"
                    )
                value = self._fields[name]
                if name == "ExtraAttributes" and self._peek() == ("word", "nil"):
                    self._at += 1  # a method in Go, whose argument changes keys
            elif isinstance(value, Mapping):
                value = value.get(name, "")
            else:
                raise self._wrong(f"can't evaluate field {name}")
        return value

    def _peek(self) -> Token | None:
        return self._tokens[self._at] if self._at < len(self._tokens) else None

    def _next(self) -> Token:
        token = self._peek()
        if token is None:
            raise self._wrong("missing value for command")
        self._at += 1
        return token

    def _wrong(self, why: str) -> Invalid:
        return Invalid(f"template: log-tag: {{{{{self._text}}}}}: {why}")


def _show(value: Any) -> str:
    if isinstance(value, str | int):
        return str(value)
    if isinstance(value, Mapping):
        return "map[" + " ".join(f"{key}:{value[key]}" for key in sorted(value)) + "]"
    return "[" + " ".join(map(str, value)) + "]"


def _index(value: Any, *keys: Any) -> Any:
    for key in keys:
        value = value.get(key, "") if isinstance(value, Mapping) else value[key]
    return value


def _pad(text: str, before: int, after: int) -> str:
    return f"{' ' * min(before, MOST_TAG)}{text}{' ' * min(after, MOST_TAG)}" if text else text


def _join(items: Sequence[str], separator: str) -> str:
    return separator.join(items)


def _split(text: str, separator: str) -> list[str]:
    return text.split(separator) if separator else list(text)


def _truncate(text: str, length: int) -> str:
    return text[:length]


_FUNCTIONS: Mapping[str, Callable[..., Any]] = {
    "json": lambda value: json.dumps(value, ensure_ascii=False, separators=(",", ":")),
    "split": _split,
    "join": _join,
    "title": lambda text: re.sub(r"\b[a-z]", lambda match: match[0].upper(), text),
    "lower": lambda text: text.lower(),
    "upper": lambda text: text.upper(),
    "pad": _pad,
    "truncate": _truncate,
    "index": _index,
    "print": lambda *values: "".join(map(_show, values)),
}
