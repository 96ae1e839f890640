"""Who may do what: callers, and the rules for repositories. Pure.

Actions are `pull`, `push` and `delete`; whoever may push may pull. Rules are looked at in order, the first whose
pattern fits the repository decides. A pattern is a repository's name, where `*` stands for anything within one part
and `**` for anything. With neither users nor rules the registry is open: then everybody may do everything.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

PULL, PUSH, DELETE = "pull", "push", "delete"
ACTIONS = (PULL, PUSH, DELETE)
ANYBODY, USERS = "*", "@users"  # in a rule's lists: whoever comes, and whoever has logged in


@dataclass(frozen=True, slots=True, kw_only=True)
class Caller:
    """Who asks: a user by password, certificate or token, or nobody in particular (name "")."""

    name: str = ""
    grants: tuple[tuple[str, frozenset[str]], ...] | None = (
        None  # a token's own bounds: repositories and actions
    )
    catalog: bool = False  # a token that may list what its user may pull


@dataclass(frozen=True, slots=True, kw_only=True)
class Rule:
    """Who may do what in the repositories that a pattern fits."""

    pattern: str
    pull: tuple[str, ...] = ()
    push: tuple[str, ...] = ()
    delete: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Policy:
    """All rules, and whether anybody has to log in at all."""

    users: bool = False  # there are users
    anonymous: tuple[str, ...] = ()  # what callers without a name may do where no rule fits
    rules: tuple[Rule, ...] = ()
    read_only: bool = False
    said: bool = False  # somebody has said what callers without a name may do

    def may(self, caller: Caller, action: str, name: str) -> bool:
        """Whether this caller may do this in this repository."""
        if self.read_only and action != PULL:
            return False
        if caller.grants is not None and not any(
            name == granted and action in actions for granted, actions in caller.grants
        ):
            return False
        for rule in self.rules:
            if _compiled(rule.pattern).fullmatch(name):
                lists = {PULL: (rule.pull, rule.push), PUSH: (rule.push,), DELETE: (rule.delete,)}[action]
                return any(_listed(caller, who) for who in lists)
        if not self.users and not self.rules:
            return not self.said or action in self.anonymous
        return bool(caller.name) or action in self.anonymous

    @property
    def unguarded(self) -> bool:
        """Whether everybody may push everything, and nobody has said so."""
        return not self.users and not self.rules and not self.said and not self.read_only


def _listed(caller: Caller, who: Sequence[str]) -> bool:
    return ANYBODY in who or (bool(caller.name) and (USERS in who or caller.name in who))


@lru_cache(maxsize=1024)
def _compiled(pattern: str) -> re.Pattern[str]:
    parts = re.split(r"(\*\*|\*)", pattern)
    return re.compile("".join({"**": ".*", "*": "[^/]*"}.get(part, re.escape(part)) for part in parts))
