"""How bad a vulnerability is: scores and the words of databases on one scale. Pure.

The words for scores are by the qualitative scale of CVSS 3: below 4.0 low, below 7.0 medium, below 9.0 high.
"""

from __future__ import annotations

LEVELS = ("unknown", "negligible", "low", "medium", "high", "critical")
_WORDS = {
    "unimportant": "negligible",
    "negligible": "negligible",
    "none": "negligible",
    "low": "low",
    "medium": "medium",
    "moderate": "medium",
    "high": "high",
    "important": "high",
    "critical": "critical",
}


def rank(level: str) -> int:
    """A level's place on the scale, 0 for unknown."""
    return LEVELS.index(level)


def level_of_word(word: object) -> str:
    """A database's word as a level; unknown for one that says nothing, as Debian's "not yet assigned"."""
    return _WORDS.get(word.strip().rstrip("*").lower(), "unknown") if isinstance(word, str) else "unknown"


def level_of_score(score: float) -> str:
    """A score from 0 to 10 as a level."""
    if score <= 0:
        return "negligible"
    return "low" if score < 4 else "medium" if score < 7 else "high" if score < 9 else "critical"
