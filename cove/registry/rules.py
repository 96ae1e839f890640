"""The policy file: TOML into rules.

    anonymous = "pull"               # what callers without a login may do where no rule fits: none, pull or push

    [[rule]]
    repositories = "team/**"         # * is anything within one part, ** anything
    pull = ["*"]                     # users by name, @users (whoever has logged in), * (anybody)
    push = ["alice", "ci"]
    delete = ["alice"]

The first rule that fits a repository decides. Pure, but for the reading.
"""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Any

from cove.model.errors import Invalid
from cove.registry.access import ACTIONS, PULL, Policy, Rule
from cove.registry.passwords import parse_names

RULES_MAX = 1000
_ANONYMOUS: dict[str, tuple[str, ...]] = {"none": (), "pull": (PULL,), "push": ACTIONS}
_FIELDS = {"repositories", *ACTIONS}


def plan_policy(path: Path | None, anonymous: str, *, users: bool, read_only: bool) -> Policy:
    """The policy of a file (None: no rules) and of what --anonymous says. Raises Invalid."""
    raw: dict[str, Any] = {}
    if path is not None:
        try:
            raw = tomllib.loads(path.read_text())
        except OSError as error:
            raise Invalid(f"--policy {path}: {error.strerror}") from None
        except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
            raise Invalid(f"--policy {path}: {error}") from None
    return parse_policy(raw, f"--policy {path}", anonymous, users=users, read_only=read_only)


def parse_policy(raw: dict[str, Any], where: str, anonymous: str, *, users: bool, read_only: bool) -> Policy:
    """The same from what the file holds."""
    if unknown := raw.keys() - {"anonymous", "rule"}:
        raise Invalid(f"{where}: {', '.join(sorted(unknown))}: unknown; there are anonymous and [[rule]]")
    word = anonymous or raw.get("anonymous", "none")
    if word not in _ANONYMOUS:
        raise Invalid(f"anonymous: {word!r}: expected none, pull or push")
    entries = raw.get("rule", [])
    if not isinstance(entries, list) or len(entries) > RULES_MAX:
        raise Invalid(f"{where}: rule: expected at most {RULES_MAX} tables [[rule]]")
    return Policy(
        users=users,
        anonymous=_ANONYMOUS[word],
        rules=tuple(_rule(each, f"{where}: rule {number}") for number, each in enumerate(entries, 1)),
        read_only=read_only,
        said=bool(anonymous or "anonymous" in raw),
    )


def _rule(raw: Any, where: str) -> Rule:
    if not isinstance(raw, dict) or raw.keys() - _FIELDS or not isinstance(raw.get("repositories"), str):
        raise Invalid(
            f"{where}: expected repositories (a pattern), and pull, push and delete (lists of users)"
        )
    lists = {}
    for action in ACTIONS:
        names = raw.get(action, [])
        if not isinstance(names, list) or not all(isinstance(each, str) for each in names):
            raise Invalid(f'{where}: {action}: expected a list of users, e.g. ["alice"]')
        parse_names(names)
        lists[action] = tuple(names)
    return Rule(pattern=raw["repositories"], **lists)
