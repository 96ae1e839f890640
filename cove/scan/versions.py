"""Which of two versions is newer, by the rules of their own ecosystem. Pure.

The library `univers` knows the rules of dpkg, rpm, PEP 440, semver, Go, Maven and Ruby, and is right on the tables of
known cases in the tests, but for Maven's `release`, which is one more word for a release (Maven's ComparableVersion).
apk's are written here: univers doesn't read the suffixes _git, _cvs, _svn, _hg and ~HASH (apk-tools, version.c).
"""

from __future__ import annotations

import re
from collections.abc import Callable
from functools import lru_cache
from typing import Any

from univers import versions as univers

LENGTH_MAX = 200
_SUFFIXES = {"alpha": -4, "beta": -3, "pre": -2, "rc": -1, "cvs": 0, "svn": 1, "git": 2, "hg": 3, "p": 4}
_APK = re.compile(r"(\d+)((?:\.\d+)*)([a-z]?)((?:_[a-z]+\d*)*)(?:~[0-9a-f]+)?(?:-r(\d+))?")
_APK_SUFFIX = re.compile(r"_([a-z]+)(\d*)")
_DIGIT, _LETTER, _SUFFIX, _SUFFIX_NUMBER, _REVISION, _END = range(6)
_MAVEN_RELEASE = re.compile(r"(?i)[.-]release$")


class Unreadable(Exception):
    """A version that its ecosystem's rules don't allow; the sentence says which."""


class ApkVersion:
    """A version of Alpine's apk."""

    def __init__(self, text: str) -> None:
        match = _APK.fullmatch(text)
        if match is None:
            raise ValueError(f"{text} is no version of apk")
        first, rest, letter, suffixes, revision = match.groups()
        tokens = [(_DIGIT, int(first))]
        for part in rest.split(".")[1:]:
            digits = part.lstrip("0")
            if len(digits) < len(
                part
            ):  # zeros in front: as many as there are below any number, then the number
                tokens.append((_DIGIT, len(digits) - len(part)))
            if digits:
                tokens.append((_DIGIT, int(digits)))
        tokens += [(_LETTER, ord(letter))] if letter else []
        for name, number in _APK_SUFFIX.findall(suffixes):
            if name not in _SUFFIXES:
                raise ValueError(f"{text} is no version of apk: it has no suffix _{name}")
            tokens.append((_SUFFIX, _SUFFIXES[name]))
            tokens += [(_SUFFIX_NUMBER, int(number))] if number else []
        tokens += [(_REVISION, int(revision))] if revision else []
        self.tokens = [*tokens, (_END, 0)]

    def compare(self, other: ApkVersion) -> int:
        for (mine, value), (theirs, worth) in zip(self.tokens, other.tokens, strict=False):
            if mine == theirs:
                if value != worth:
                    return -1 if value < worth else 1
                continue
            if mine == _SUFFIX and value < 0:
                return -1
            if theirs == _SUFFIX and worth < 0:
                return 1
            return -1 if mine > theirs else 1
        return 0


def _maven(text: str) -> Any:
    return univers.MavenVersion(_MAVEN_RELEASE.sub("", text))


def _semver(text: str) -> Any:
    return univers.SemverVersion(text.removeprefix("v"))


_READERS: dict[str, Callable[[str], Any]] = {
    "deb": univers.DebianVersion,
    "rpm": univers.RpmVersion,
    "apk": ApkVersion,
    "pypi": univers.PypiVersion,
    "npm": _semver,
    "cargo": _semver,
    "golang": _semver,
    "gem": univers.RubygemsVersion,
    "maven": _maven,
}


@lru_cache(maxsize=4096)
def _read(kind: str, text: str) -> Any:
    if not 0 < len(text) <= LENGTH_MAX:
        raise Unreadable(f"a version of {len(text)} characters: up to {LENGTH_MAX} are compared")
    try:
        return _READERS[kind](text)
    except Exception as error:  # the library's own, of many kinds: whatever it is, the version can't be read
        raise Unreadable(f"{text}: no version of {kind}: {type(error).__name__}") from None


def compare(kind: str, one: str, other: str) -> int:
    """-1, 0 or 1: whether a version of a kind of package is older than another, the same, or newer. Unreadable."""
    first, second = _read(kind, one), _read(kind, other)
    if isinstance(first, ApkVersion):
        return first.compare(second)
    try:
        if first < second:
            return -1
        return 1 if second < first else 0
    except Exception as error:
        raise Unreadable(f"{one} and {other}: can't be compared: {type(error).__name__}") from None
