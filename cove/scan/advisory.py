"""One entry of a vulnerability database as it is kept here, whatever form it came in. No I/O."""

from __future__ import annotations

from cove.scan.model import Wire


class Event(Wire, frozen=True, kw_only=True):
    """A version at which something begins or ends: one of the four is given (OSV, affected[].ranges[].events)."""

    introduced: str = ""
    fixed: str = ""
    last_affected: str = ""
    limit: str = ""


class Affected(Wire, frozen=True, kw_only=True):
    """Which versions of one package are affected: those listed, and those in a range."""

    ecosystem: str
    name: str
    ranges: tuple[tuple[Event, ...], ...] = ()
    versions: tuple[str, ...] = ()
    level: str = ""  # as the package's own distribution says it
    status: str = ""  # why it isn't fixed, where that is told: e.g. Debian's "no-dsa"


class Advisory(Wire, frozen=True, kw_only=True):
    """A vulnerability, or a notice of several."""

    id: str
    modified: str = ""
    withdrawn: bool = False
    aliases: tuple[str, ...] = ()  # the same vulnerability elsewhere
    covers: tuple[str, ...] = ()  # vulnerabilities that this is a notice of
    summary: str = ""
    level: str = "unknown"
    score: float = 0.0
    vector: str = ""
    url: str = ""
    affected: tuple[Affected, ...] = ()
