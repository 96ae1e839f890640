"""Secrets that are left in files, in every layer, and in an image's configuration. Pure; a secret itself is never kept.

What is shown of one is its public prefix (`ghp_16C7`), so that its owner finds it; of a password nothing. Work is
bounded: the first bytes of a file that is text, so many places in a file, so many findings in a layer.
"""

from __future__ import annotations

import itertools
import json
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any, Final

from cove.scan.model import LayerFile, Secret
from cove.scan.rules import FILE_RULES, RULES, Rule, assigned, looks_real

READ_MAX = 4 << 20  # of one file
_BINARY_LOOK = 8192
_LEAST = 16
_IN_FILE, _IN_LAYER = 20, 1000
_AFTER = 9000
_PLACES_MAX, _ANCHORS_MAX = 200, 20_000
_SPECIAL_MAX = 1 << 20
_ANCHORS = re.compile(b"|".join(re.escape(anchor) for rule in RULES for anchor in rule.anchors))
_BY_ANCHOR: Final = {
    anchor: [rule for rule in RULES if anchor in rule.anchors] for one in RULES for anchor in one.anchors
}
_SPECIAL_NAMES = re.compile(
    r"(?:netrc|rc|pass|cnf|shadow-?|credentials(?:\.toml)?|config|kubeconfig|\.(?:conf|json)|cfg)$"
)
# Keys that libraries test themselves with, and books: nobody's secrets.
_SAMPLES = re.compile(
    r"^(?:usr/|.*/?(?:node_modules|site-packages|dist-packages|vendor|gems|pkg/mod)/).*"
    r"(?:^|/)(?:__tests__|tests?|testdata|testing|test_data|examples?|demos?|docs?|man|fixtures)/"
)
_TITLES: Final[dict[str, str]] = {
    **{rule.name: rule.title for rule in RULES},
    **{rule.name: rule.title for rule in FILE_RULES},
    "environment": "secret in the environment",
    "history": "secret in the history",
}


def title_of(rule: str) -> str:
    """What a rule finds, in words."""
    return _TITLES.get(rule, rule)


class SecretFinder:
    """Looks at a layer's files one by one."""

    def __init__(self) -> None:
        self.found: list[Secret] = []

    def look(self, file: LayerFile) -> None:
        """Look into one file. OSError."""
        if file.size < _LEAST or len(self.found) >= _IN_LAYER or _SAMPLES.match(file.path):
            return
        head = file.read(0, _BINARY_LOOK)
        if b"\0" in head:
            return
        data = head if file.size <= len(head) else head + file.read(len(head), READ_MAX - len(head))
        secrets = list(find_in_file(file.path, data))
        self.found += secrets[: _IN_LAYER - len(self.found)]


def find_in_file(path: str, data: bytes) -> Iterator[Secret]:
    """The secrets of one file's content."""
    count = 0
    places: set[int] = set()
    for rule, place, secret in _matches(path, data):
        if place in places:
            continue
        places.add(place)
        count += 1
        if count > _IN_FILE:
            return
        yield Secret(
            rule=rule[0], path=path, line=data.count(b"\n", 0, place) + 1, masked=_masked(secret, rule[1])
        )


def _matches(path: str, data: bytes) -> Iterator[tuple[tuple[str, int], int, bytes]]:
    if _SPECIAL_NAMES.search(path):
        for special in FILE_RULES:
            if special.path.search(path):
                for match in special.expression.finditer(data[:_SPECIAL_MAX]):
                    secret = match["secret"]
                    if not secret.startswith((b"${", b"$(", b"<", b"%(")):
                        yield (special.name, 0), match.start("secret"), secret
    for rule, place in _places(data):
        # At this place alone, and not far: so work goes with the number of places.
        starts = range(max(0, place - rule.before), place + 1)
        hits = (rule.expression.match(data, start, place + _AFTER) for start in starts)
        hit = next((hit for hit in hits if hit is not None), None)
        if hit is not None and looks_real(hit["secret"], rule):
            kind = hit.groupdict().get("kind")
            yield (rule.name, -1 if kind else rule.shown), hit.start(), kind or hit["secret"]


def _places(data: bytes) -> Iterator[tuple[Rule, int]]:
    """Where rules may find something, up to a number for each."""
    counts: Counter[str] = Counter()
    for match in itertools.islice(_ANCHORS.finditer(data), _ANCHORS_MAX):
        for rule in _BY_ANCHOR[match[0]]:
            counts[rule.name] += 1
            if counts[rule.name] <= _PLACES_MAX:
                yield rule, match.start()


def _masked(secret: bytes, shown: int) -> str:
    """As much of a secret as says which one it is; -1: all of it, which is only what kind of key it is."""
    if shown < 0:
        return secret.decode("ascii", "replace")
    return secret[: min(shown, len(secret) // 3)].decode("ascii", "replace") + "…" if shown else "…"


# --- an image's configuration ---------------------------------------------------------------


def find_in_config(config: bytes) -> list[Secret]:
    """Secrets in the variables and the history of an image's configuration. It is JSON that was checked before."""
    document = json.loads(config)
    found: list[Secret] = []
    for number, text in enumerate(_texts((document.get("config") or {}).get("Env")), 1):
        name, _, value = text.partition("=")
        if assigned(f"{name}='{value}'" if "'" not in value else text):
            found.append(Secret(rule="environment", path=f"ENV {name[:100]}", line=number, masked="…"))
        found += _in_text(text, f"ENV {name[:100]}", number)
    for number, entry in enumerate(document.get("history") or (), 1):
        line = entry.get("created_by") if isinstance(entry, dict) else None
        if not isinstance(line, str):
            continue
        for name, _ in assigned(line):
            found.append(Secret(rule="history", path=f"history {name}", line=number, masked="…"))
        found += _in_text(line, "history", number)
    return found[:_IN_LAYER]


def _in_text(text: str, path: str, number: int) -> list[Secret]:
    return [
        Secret(rule=one.rule, path=path, line=number, masked=one.masked)
        for one in find_in_file("", text.encode("utf-8", "replace"))
    ]


def _texts(value: Any) -> Sequence[str]:
    return [one for one in value if isinstance(one, str)] if isinstance(value, list) else []
