"""Variables and quotes in an instruction's words, as the Dockerfile reference has them. Pure.

`$x`, `${x}`, `${x:-w}`, `${x-w}`, `${x:+w}`, `${x+w}`, `${x:?message}`, `${x?message}`, `${x#p}`, `${x##p}`,
`${x%p}`, `${x%%p}`, `${x/p/r}`, `${x//p/r}`; single and double quotes; the escape character. A name that isn't
set is empty text. (docs.docker.com/reference/dockerfile, "Environment replacement"; what isn't written there is
as BuildKit's shell lexer does it.)

Bounds, because variables can be made of variables: a value of 128 KiB (the kernel takes no longer argument:
MAX_ARG_STRLEN), the content of a heredoc 1 MiB, all results of one Dockerfile 16 MiB, 50 levels of `${`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

import msgspec

from cove.dockerfile.globs import Glob, GlobError
from cove.model.errors import Invalid

MAX_VALUE_CHARS = 128 << 10
MAX_CONTENT_CHARS = 1 << 20
MAX_WORK = 16 << 20
MAX_DEPTH = 50
_SPACES = re.compile(r"\s")
_SPECIAL = "@*#?-$!0"  # parameters of a shell, never set here


class ExpansionError(Invalid):
    """A word can't be expanded; the sentence says why, the caller knows the line."""


class BudgetSpent(ExpansionError):
    """A Dockerfile's expansions are too many, all together."""


class Budget:
    """How many characters one Dockerfile's expansions may make, all together."""

    def __init__(self, left: int = MAX_WORK) -> None:
        self._left = left

    def spend(self, characters: int) -> None:
        """Raises BudgetSpent when nothing is left, also after that."""
        self._left -= characters
        if self._left < 0:
            problem = f"variables make too much text: at most {MAX_WORK} characters in a Dockerfile"
            raise BudgetSpent(problem)


class Expansion(msgspec.Struct, frozen=True):
    """What a word became."""

    text: str
    words: tuple[str, ...]  # the text split at spaces that aren't quoted
    used: frozenset[str]  # names that are set
    unset: frozenset[str]  # names that aren't


class Rules(msgspec.Struct, frozen=True, kw_only=True):
    """How words are read; the defaults are for an instruction's arguments."""

    escape: str = "\\"
    keep_quotes: bool = False  # quotes stay in the result, and mean what they mean
    keep_escapes: bool = False
    plain_quotes: bool = False  # quotes are characters like others (contents of heredocs)
    keep_unset: bool = False  # a variable that isn't set stays as it is written
    max_chars: int = MAX_VALUE_CHARS


def expand(
    word: str, env: Mapping[str, str], rules: Rules | None = None, budget: Budget | None = None
) -> Expansion:
    """The word with its variables replaced and its quotes gone. Raises ExpansionError."""
    rules = rules or Rules()
    if len(word) > rules.max_chars:
        raise ExpansionError(f"{len(word)} characters are too many in one value: at most {rules.max_chars}")
    budget = budget or Budget()
    budget.spend(len(word))
    reader = _Reader(word, env, rules, budget)
    text, words = reader.until("", rules.keep_escapes)
    return Expansion(text, tuple(words), frozenset(reader.used), frozenset(reader.unset))


class _Words:
    """The result, as one text and split into words."""

    def __init__(self) -> None:
        self.parts: list[str] = []
        self.words: list[str] = []
        self._word: list[str] = []

    def add(self, text: str) -> None:
        """Text that isn't quoted: spaces end a word."""
        self.parts.append(text)
        first, *rest = _SPACES.split(text)
        if first:
            self._word.append(first)
        for part in rest:
            if self._word:
                self.words.append("".join(self._word))
            self._word = [part] if part else []

    def add_quoted(self, text: str) -> None:
        self.parts.append(text)
        if text:
            self._word.append(text)

    def result(self) -> tuple[str, list[str]]:
        if self._word:
            self.words.append("".join(self._word))
            self._word = []
        return "".join(self.parts), self.words


class _Reader:
    """One word being read; `_at` is the place of the next character."""

    def __init__(self, word: str, env: Mapping[str, str], rules: Rules, budget: Budget) -> None:
        self._text, self._env, self._rules, self._budget = word, env, rules, budget
        self._at = 0
        self._depth = 0
        self._made = 0  # characters of the values so far
        self.used: set[str] = set()
        self.unset: set[str] = set()

    def _peek(self) -> str:
        return self._text[self._at : self._at + 1]

    def _next(self) -> str:
        char = self._peek()
        self._at += 1
        return char

    def until(self, stop: str, keep_escapes: bool) -> tuple[str, list[str]]:
        """Read up to and with the character `stop`, or to the end for ""."""
        out = _Words()
        escape, quotes = self._rules.escape, not self._rules.plain_quotes
        while char := self._peek():
            if char == stop:
                self._at += 1
                return out.result()
            if char == "$":
                out.add(self._bounded(self._dollar()))
            elif quotes and char == "'":
                out.add_quoted(self._single_quoted())
            elif quotes and char == '"':
                out.add_quoted(self._double_quoted(keep_escapes))
            elif char == "<":
                out.add_quoted(self._heredoc_sign())
            elif char == escape:
                self._at += 1
                if keep_escapes:
                    out.add_quoted(escape)
                if escaped := self._next():
                    out.add_quoted(escaped)
            else:
                self._at += 1
                out.add(char)
        if stop:
            raise ExpansionError(f"missing '{stop}' at the end of a substitution, e.g. ${{NAME:-value}}")
        return out.result()

    def _bounded(self, text: str) -> str:
        self._made += len(text)
        self._budget.spend(len(text))
        if self._made > self._rules.max_chars:
            raise ExpansionError(f"variables make more than {self._rules.max_chars} characters of one value")
        return text

    def _single_quoted(self) -> str:
        end = self._text.find("'", self._at + 1)
        if end < 0:
            raise ExpansionError("a single quote isn't closed")
        quoted = self._text[self._at : end + 1]
        self._at = end + 1
        return quoted if self._rules.keep_quotes else quoted[1:-1]

    def _double_quoted(self, keep_escapes: bool) -> str:
        quote = '"' if self._rules.keep_quotes else ""
        out = [quote]
        escape = self._rules.escape
        self._at += 1
        while char := self._peek():
            if char == '"':
                self._at += 1
                return "".join([*out, quote])
            if char == "$":
                out.append(self._bounded(self._dollar()))
                continue
            self._at += 1
            if char == escape:
                if keep_escapes:
                    out.append(char)
                if not self._peek():
                    break
                if self._peek() in ('"', "$", escape):
                    char = self._next()
            out.append(char)
        raise ExpansionError("a double quote isn't closed")

    def _heredoc_sign(self) -> str:
        """`<`, or `<<` with the spaces after it, which don't end the word."""
        start = self._at
        self._at += 1
        if self._peek() != "<":
            return "<"
        self._at += 1
        while self._peek() in ("\t", "\r", " ") and self._peek():
            self._at += 1
        return self._text[start : self._at]

    def _dollar(self) -> str:
        self._at += 1
        if self._peek() != "{":
            name = self._name()
            if not name:
                return "$"
            value = self._value(name)
            return f"${name}" if value is None and self._rules.keep_unset else value or ""
        self._at += 1
        self._depth += 1
        if self._depth > MAX_DEPTH:
            raise ExpansionError(f"substitutions more than {MAX_DEPTH} deep in one another")
        result = self._substitution()
        self._depth -= 1
        return result

    def _substitution(self) -> str:
        """What follows `${`."""
        if not self._peek():
            raise ExpansionError("missing '}' at the end of a substitution, e.g. ${NAME:-value}")
        if self._peek() in "{}:":
            raise ExpansionError("bad substitution: a name must follow ${, e.g. ${NAME:-value}")
        name = self._name()
        operator = self._next()
        if operator == "}":
            value = self._value(name)
            return f"${{{name}}}" if value is None and self._rules.keep_unset else value or ""
        if operator == "/":
            return self._replaced(name)
        empty_is_unset = operator == ":"
        if empty_is_unset:
            operator = self._next()
        shown = ":" * empty_is_unset + operator
        if not operator:
            raise ExpansionError("missing '}' at the end of a substitution, e.g. ${NAME:-value}")
        if operator not in "+-?#%" or (empty_is_unset and operator in "#%"):
            raise ExpansionError(
                f"unsupported modifier ({shown}) in substitution: expected :-, :+, :?, #, % or /"
            )
        word, _ = self.until("}", operator in "#%")
        value = self._value(name)
        if value is None and self._rules.keep_unset:
            return f"${{{name}{shown}{word}}}"
        missing = value is None or (empty_is_unset and not value)
        if operator == "-":
            return word if missing else value or ""
        if operator == "+":
            return "" if missing else word
        if operator == "?":
            if missing:
                default = "is not allowed to be unset" if value is None else "is not allowed to be empty"
                raise ExpansionError(f"{name}: {word or default}")
            return value or ""
        longest = word.startswith(operator)
        glob = self._glob(word[longest:], value or "")
        cut = glob.without_prefix if operator == "#" else glob.without_suffix
        return cut(value or "", longest)

    def _replaced(self, name: str) -> str:
        """`${name/pattern/replacement}`, or with `//` all of them."""
        everywhere = self._peek() == "/"
        self._at += everywhere
        pattern, _ = self.until("/", True)
        replacement, _ = self.until("}", True)
        value = self._value(name)
        if value is None and self._rules.keep_unset:
            return f"${{{name}/{'/' * everywhere}{pattern}/{replacement}}}"
        most = self._rules.max_chars
        return self._glob(pattern, value or "").replace(value or "", replacement, everywhere, most)

    def _glob(self, pattern: str, value: str) -> Glob:
        self._budget.spend(len(value) * (len(pattern) + 4) // 4)  # what matching may cost
        try:
            return Glob(pattern)
        except GlobError as error:
            raise ExpansionError(f"invalid pattern ({pattern[:64]}) in substitution: {error}") from None

    def _name(self) -> str:
        start = self._at
        first = self._peek()
        if first.isdecimal():
            while self._peek().isdecimal():
                self._at += 1
        elif first and first in _SPECIAL:
            self._at += 1
        else:
            while (char := self._peek()).isalpha() or char.isdecimal() or char == "_":
                self._at += 1
        return self._text[start : self._at]

    def _value(self, name: str) -> str | None:
        value = self._env.get(name)
        (self.unset if value is None else self.used).add(name)
        return value
