"""Entries in OSV's form (ossf.github.io/osv-schema, up to 1.7) as advisories. Pure; errors name the field."""

from __future__ import annotations

import re

import msgspec

from cove.scan.advisory import Advisory, Affected, Event
from cove.scan.ecosystems import kind_of_ecosystem, stored_name
from cove.scan.model import Malformed, clean
from cove.scan.scores import score_of
from cove.scan.severity import level_of_score, level_of_word, rank

ENTRY_MAX = 64 << 20
_AFFECTED_MAX = 20_000
_EVENTS_MAX = 20_000
_VERSIONS_MAX = 50_000
_NAMES_MAX = 5_000
_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._:+-]{1,127}")
_NOTICE = re.compile(
    r"(?:DSA|DLA|DTSA|USN|LSN|RHSA|RHBA|RHEA|ALSA|ALBA|ALEA|RLSA|RXSA|SUSE|openSUSE|MGASA|OESA|ELSA|PHSA)-"
)
_PREFIXED_CVE = re.compile(r"(?:DEBIAN|UBUNTU|ALPINE|PSF|BELL|MINI|CGA)-(CVE-\d{4}-\d{4,})")


class _Event(msgspec.Struct):
    introduced: str = ""
    fixed: str = ""
    last_affected: str = ""
    limit: str = ""


class _Range(msgspec.Struct):
    type: str
    events: list[_Event]


class _Package(msgspec.Struct):
    ecosystem: str
    name: str


class _Severity(msgspec.Struct):
    type: str
    score: str


class _Affected(msgspec.Struct):
    package: _Package | None = None
    ranges: list[_Range] | None = None
    versions: list[str] | None = None
    severity: list[_Severity] | None = None
    ecosystem_specific: object = None
    database_specific: object = None


class _Reference(msgspec.Struct):
    type: str = ""
    url: str = ""


class _Entry(msgspec.Struct):
    id: str
    modified: str
    withdrawn: str | None = None
    aliases: list[str] | None = None
    upstream: list[str] | None = None
    related: list[str] | None = None
    summary: str | None = None
    details: str | None = None
    severity: list[_Severity] | None = None
    affected: list[_Affected] | None = None
    references: list[_Reference] | None = None
    database_specific: object = None


_decoder = msgspec.json.Decoder(_Entry)


def parse_entry(data: bytes) -> Advisory:
    """An entry. Malformed, with the field."""
    if len(data) > ENTRY_MAX:
        raise Malformed(f"it has {len(data)} bytes; an entry has up to {ENTRY_MAX}")
    try:
        entry = _decoder.decode(data)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise Malformed(f"it isn't an entry of OSV: {clean(str(error))}") from None
    if not _ID.fullmatch(entry.id):
        raise Malformed(f"id: {clean(entry.id)!r} can't be one, e.g. CVE-2021-44228")
    affected = entry.affected or []
    if len(affected) > _AFFECTED_MAX:
        raise Malformed(f"affected: it has {len(affected)} items; up to {_AFFECTED_MAX} are read")
    score, vector = _best_vector(entry.severity or [])
    level = level_of_score(score) if vector else "unknown"
    own = level_of_word(_field(entry.database_specific, "severity"))
    if not vector:
        for one in affected:
            score, vector = max((score, vector), _best_vector(one.severity or []))
        level = level_of_score(score) if vector else own
    return Advisory(
        id=entry.id,
        modified=clean(entry.modified)[:40],
        withdrawn=bool(entry.withdrawn),
        aliases=_aliases(entry),
        covers=_covers(entry),
        summary=_summary(entry),
        level=level,
        score=score,
        vector=vector,
        url=_url(entry.references or []),
        affected=tuple(found for one in affected if (found := _affected(one)) is not None),
    )


def _names(given: list[str] | None) -> tuple[str, ...]:
    return tuple(dict.fromkeys(name for name in (given or [])[:_NAMES_MAX] if _ID.fullmatch(name)))


def _aliases(entry: _Entry) -> tuple[str, ...]:
    if _NOTICE.match(entry.id):
        return ()
    found = _names(entry.aliases)
    if match := _PREFIXED_CVE.fullmatch(entry.id):
        found = tuple(dict.fromkeys((match[1], *found)))
    return found


def _covers(entry: _Entry) -> tuple[str, ...]:
    """The vulnerabilities of a notice: its aliases, what it calls upstream, and what is related to it."""
    if not _NOTICE.match(entry.id):
        return ()
    given = (*_names(entry.aliases), *_names(entry.upstream), *_names(entry.related))
    found = [match[1] if (match := _PREFIXED_CVE.fullmatch(name)) else name for name in given]
    return tuple(dict.fromkeys(name for name in found if name.startswith("CVE-")))


def _summary(entry: _Entry) -> str:
    text = entry.summary or (entry.details or "").lstrip().partition("\n")[0]
    return clean(text)[:300]


def _url(references: list[_Reference]) -> str:
    by_type = {one.type: one.url for one in reversed(references[:200])}
    url = by_type.get("ADVISORY") or by_type.get("WEB") or next(iter(by_type.values()), "")
    return clean(url) if url.startswith(("https://", "http://")) else ""


def _best_vector(given: list[_Severity]) -> tuple[float, str]:
    """The score of the newest version of CVSS among several."""
    for kind in ("CVSS_V4", "CVSS_V3", "CVSS_V2"):
        for one in given[:20]:
            if one.type == kind and (score := score_of(one.score)) is not None:
                return score, one.score
    return 0.0, ""


def _field(value: object, name: str) -> object:
    return value.get(name) if isinstance(value, dict) else None


def _affected(one: _Affected) -> Affected | None:
    """What an entry says of one package; None where the ecosystem isn't known here."""
    package = one.package
    if package is None or not kind_of_ecosystem(package.ecosystem) or not package.name:
        return None
    ranges, versions = one.ranges or [], one.versions or []
    events = sum(len(found.events) for found in ranges)
    if events > _EVENTS_MAX:
        raise Malformed(f"affected.ranges: {events} events; up to {_EVENTS_MAX} are read")
    if len(versions) > _VERSIONS_MAX:
        raise Malformed(f"affected.versions: {len(versions)} versions; up to {_VERSIONS_MAX} are read")
    words = [level_of_word(found.score) for found in one.severity or [] if not found.type.startswith("CVSS")]
    words += [level_of_word(_field(one.ecosystem_specific, key)) for key in ("urgency", "severity")]
    words += [level_of_word(_field(one.database_specific, "severity"))]
    level = max(words, key=rank)
    return Affected(
        ecosystem=clean(package.ecosystem),
        name=stored_name(package.ecosystem, clean(package.name)),
        ranges=tuple(
            tuple(
                Event(
                    introduced=clean(event.introduced),
                    fixed=clean(event.fixed),
                    last_affected=clean(event.last_affected),
                    limit=clean(event.limit),
                )
                for event in found.events
            )
            for found in ranges
            if found.type in ("SEMVER", "ECOSYSTEM")
        ),
        versions=tuple(clean(version) for version in versions),
        level="" if level == "unknown" else level,
    )
