"""An instruction's text in pieces: the keyword, flags, words with their quotes, JSON arrays, pairs. Pure.

The rules are BuildKit's (frontend/dockerfile/parser), which differ by instruction: flags lose their quotes here,
words keep them until variables are replaced (expand.py), and a text in brackets that isn't JSON is plain words.
"""

from __future__ import annotations

import re

import msgspec

from cove.dockerfile.errors import DockerfileError
from cove.dockerfile.expand import ExpansionError, Rules, expand
from cove.dockerfile.lexer import Heredoc

_SPACE = re.compile(r"[\t\v\f\r ]+")
_HEREDOC = re.compile(r"(\d*)<<(-?)\s*([^<]*)$")


class Command(msgspec.Struct, frozen=True):
    """An instruction in its three parts."""

    keyword: str  # as written
    flags: tuple[str, ...]  # --name or --name=value, without quotes
    rest: str


class Pair(msgspec.Struct, frozen=True):
    """NAME=VALUE; `legacy` for the old form with a space."""

    name: str
    value: str
    legacy: bool = False


def split_command(text: str, escape: str) -> Command:
    """The keyword, the flags that follow it, and the rest."""
    keyword, *rest = _SPACE.split(text.strip(), maxsplit=1)
    flags, arguments = _split_flags(rest[0] if rest else "", escape)
    return Command(keyword, tuple(flags), arguments.strip())


def _split_flags(text: str, escape: str) -> tuple[list[str], str]:
    flags: list[str] = []
    at = 0
    while True:
        while at < len(text) and text[at].isspace():
            at += 1
        if not text.startswith("--", at):
            return flags, text[at:]
        flag, at = _flag(text, at, escape)
        if flag == "--":
            return flags, text[at:]
        flags.append(flag)


def _flag(text: str, at: int, escape: str) -> tuple[str, int]:
    """The flag at `at`, without its quotes and escapes, and where it ends."""
    out: list[str] = []
    quote = ""
    while at < len(text) and (quote or not text[at].isspace()):
        char = text[at]
        at += 1
        if char == quote:
            quote = ""
        elif not quote and char in "'\"":
            quote = char
        elif char == escape:
            out.append(text[at : at + 1])
            at += 1
        else:
            out.append(char)
    return "".join(out), at


def split_words(text: str, escape: str) -> list[str]:
    """Words at spaces that aren't in quotes or escaped; quotes and escapes stay in them."""
    words: list[str] = []
    word: list[str] = []
    quote = ""
    at = 0
    while at < len(text):
        char = text[at]
        at += 1
        if not quote and char.isspace():
            if word:
                words.append("".join(word))
                word = []
            continue
        if char == escape and quote != "'":
            if at == len(text):
                break  # an escape character at the end is nothing
            char += text[at]
            at += 1
        elif char == quote:
            quote = ""
        elif not quote and char in "'\"":
            quote = char
        word.append(char)
    if word:
        words.append("".join(word))
    return words


def split_spaces(text: str) -> list[str]:
    """Words at spaces, whatever quotes say."""
    return _SPACE.split(text) if text else []


def json_words(text: str) -> list[str] | None:
    """The strings of a JSON array; None when the text isn't one. Raises DockerfileError for one of other values."""
    if not text.startswith("["):
        return None
    try:
        items = msgspec.json.decode(text, type=list[msgspec.Raw])
    except (msgspec.MsgspecError, RecursionError):
        return None
    try:
        words = [msgspec.json.decode(item, type=str) for item in items]
    except (msgspec.MsgspecError, RecursionError):
        raise DockerfileError(
            'when using JSON array syntax, arrays must be comprised of strings only, e.g. ["a", "b"]'
        ) from None
    if any("\0" in word for word in words):
        raise DockerfileError("a NUL character in a JSON string: no argument of a process can have one")
    return words


def split_pairs(keyword: str, text: str, escape: str) -> tuple[Pair, ...]:
    """ENV and LABEL: NAME=VALUE ..., or the old NAME VALUE. Raises DockerfileError."""
    words = split_words(text, escape)
    if not words:
        return ()
    if "=" not in words[0]:
        name, *value = _SPACE.split(text, maxsplit=1)
        if not value:
            raise DockerfileError(f"{keyword} must have two arguments, e.g. {keyword} {name}=value")
        return (Pair(name, value[0], legacy=True),)
    pairs = []
    for word in words:
        name, equals, value_text = word.partition("=")
        if not equals:
            raise DockerfileError(f'can\'t find = in "{word}": must be of the form name=value')
        if not name:
            raise DockerfileError(f"{keyword} names can not be blank: {word}")
        pairs.append(Pair(name, value_text))
    return tuple(pairs)


def heredoc_of(word: str) -> Heredoc | None:
    """The heredoc that a word like <<-"EOF" announces; None when it is another word. Raises ExpansionError."""
    match = _HEREDOC.match(word)
    if match is None or not match[3]:
        return None
    plain = expand(match[3], {}, Rules(keep_unset=True)).words
    if len(plain) != 1:
        return None
    raw = expand(match[3], {}, Rules(keep_unset=True, keep_quotes=True)).words
    quoted = sum(map(raw[0].count, "'\"")) != sum(map(plain[0].count, "'\"")) if raw else False
    return Heredoc(name=plain[0], expand=not quoted, chomp=match[2] == "-")


def find_heredocs(text: str) -> tuple[Heredoc, ...]:
    """The heredocs that an instruction's text announces, in order. Raises DockerfileError."""
    rules = Rules(keep_quotes=True, keep_escapes=True, keep_unset=True, max_chars=len(text))
    try:
        words = expand(text, {}, rules).words
    except ExpansionError:
        return ()  # quotes that a shell sorts out: no heredocs, as in BuildKit
    try:
        found = [heredoc for word in words if (heredoc := heredoc_of(word))]
    except ExpansionError as error:
        raise DockerfileError(f"bad heredoc: {error}") from None
    if len(found) > 100:
        raise DockerfileError("too many heredocs in one instruction: at most 100")
    return tuple(found)
