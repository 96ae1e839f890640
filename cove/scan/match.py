"""Which vulnerabilities the packages of an image have. Pure over a reader of the database.

A version is affected when it is listed, or lies in a range by the ecosystem's own order (OSV schema, "Evaluation").
Several databases that tell of one vulnerability are one finding: by its CVE where there is one, else by the entry's id.
A notice of several (DSA, RHSA) counts for each of them.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from functools import cmp_to_key
from typing import Protocol

import msgspec

from cove.scan.advisory import Advisory, Affected, Event
from cove.scan.ecosystems import ecosystem_of, names_of, version_of
from cove.scan.inventory import Component, Inventory
from cove.scan.model import MAX_NOTES, Wire
from cove.scan.severity import LEVELS, rank
from cove.scan.versions import Unreadable, compare

MAX_FINDINGS = 100_000


class Entries(Protocol):
    """What is known of a package."""

    def find(self, ecosystem: str, name: str) -> Iterable[tuple[str, Advisory, Affected]]: ...


class Finding(Wire, frozen=True, kw_only=True):
    """A vulnerability of one package of the image."""

    id: str
    component: int  # its place in the inventory
    aliases: tuple[str, ...] = ()
    level: str = "unknown"
    own_level: bool = False  # the distribution's or ecosystem's own word, not a score's
    score: float = 0.0
    vector: str = ""
    fixed: str = ""  # the first version without it, "" where there is none
    status: str = ""
    summary: str = ""
    url: str = ""
    sources: tuple[str, ...] = ()


class Matched(Wire, frozen=True, kw_only=True):
    findings: tuple[Finding, ...] = ()
    notes: tuple[str, ...] = ()
    unmatched: int = 0  # packages that no ecosystem is known for


def match(inventory: Inventory, entries: Entries) -> Matched:
    """Every vulnerability of every package, the worst first."""
    found: dict[tuple[int, str], Finding] = {}
    notes: list[str] = []
    unmatched = 0
    for number, component in enumerate(inventory.components):
        package = component.package
        ecosystem = ecosystem_of(package, inventory.distribution)
        if package.owner or package.version == "(devel)":
            continue  # the distribution's package is looked up, and knows what was fixed in it
        if not ecosystem:
            unmatched += 1
            continue
        for name in names_of(package):
            for source, advisory, affected in entries.find(ecosystem, name):
                try:
                    hit = is_affected(package.kind, version_of(package), affected)
                except Unreadable as error:
                    if len(notes) < MAX_NOTES:
                        notes.append(f"{package.name}: {advisory.id}: {error}")
                    continue
                if hit is None:
                    continue
                for one in _findings(number, source, advisory, affected, hit):
                    key = (number, one.id)
                    before = found.get(key)
                    if before is None and len(found) >= MAX_FINDINGS:
                        notes.append(f"there are more than {MAX_FINDINGS} findings; the rest isn't shown")
                        return Matched(findings=_sorted(found.values(), inventory), notes=tuple(notes))
                    found[key] = one if before is None else _merge(package.kind, before, one)
    return Matched(findings=_sorted(found.values(), inventory), notes=tuple(notes), unmatched=unmatched)


def _sorted(found: Iterable[Finding], inventory: Inventory) -> tuple[Finding, ...]:
    def place(finding: Finding) -> tuple[object, ...]:
        package = inventory.components[finding.component].package
        return (-rank(finding.level), -finding.score, package.name, package.version, finding.id)

    return tuple(sorted(found, key=place))


def _findings(
    number: int, source: str, advisory: Advisory, affected: Affected, fixed: str
) -> Iterator[Finding]:
    cves = [name for name in (advisory.id, *advisory.aliases) if name.startswith("CVE-")]
    ids = advisory.covers or (cves[:1] or [advisory.id])
    for name in ids:
        aliases = (advisory.id,) if advisory.covers else (advisory.id, *advisory.aliases)
        yield Finding(
            id=name,
            component=number,
            aliases=tuple(dict.fromkeys(alias for alias in aliases if alias != name))[:50],
            level=affected.level or advisory.level,
            own_level=bool(affected.level),
            score=advisory.score,
            vector=advisory.vector,
            fixed=fixed,
            status=affected.status,
            summary=advisory.summary,
            url=advisory.url,
            sources=(source,),
        )


def _merge(kind: str, one: Finding, other: Finding) -> Finding:
    """Two tellings of one vulnerability: the distribution's own word goes before scores, then the worse one."""
    best = max(one, other, key=lambda f: (f.own_level and f.level != "unknown", rank(f.level), f.score))
    scored = max(one, other, key=lambda f: f.score)
    return msgspec.structs.replace(
        best,
        aliases=tuple(dict.fromkeys((*one.aliases, *other.aliases)))[:50],
        score=scored.score,
        vector=scored.vector,
        fixed=_sooner(kind, one.fixed, other.fixed),
        status=one.status or other.status,
        summary=one.summary or other.summary,
        url=one.url or other.url,
        sources=tuple(dict.fromkeys((*one.sources, *other.sources))),
    )


def _sooner(kind: str, one: str, other: str) -> str:
    if not one or not other:
        return one or other
    try:
        return one if compare(kind, one, other) <= 0 else other
    except Unreadable:
        return one


def is_affected(kind: str, version: str, affected: Affected) -> str | None:
    """None when a version isn't affected; else the version that mends it, or "". Unreadable."""
    hit: str | None = None
    for events in affected.ranges:
        fixed = _in_range(kind, version, events)
        if fixed is not None:
            hit = fixed if hit is None else _sooner(kind, hit, fixed)
    if hit is None and affected.versions:
        bare = version.removeprefix("v") if kind == "golang" else version
        if bare in affected.versions or version in affected.versions:
            hit = ""
    return hit


def _in_range(kind: str, version: str, events: Sequence[Event]) -> str | None:
    def order(one: str, other: str) -> int:
        if one == other:
            return 0
        if "0" in (one, other):  # before every version (OSV schema)
            return -1 if one == "0" else 1
        return compare(kind, one, other)

    limits = [event.limit for event in events if event.limit and event.limit != "*"]
    if limits and all(order(version, limit) >= 0 for limit in limits):
        return None
    steps = [event for event in events if not event.limit]
    steps.sort(key=cmp_to_key(lambda a, b: order(_at(a), _at(b))))
    affected = False
    for event in steps:
        if event.introduced and order(version, event.introduced) >= 0:
            affected = True
        elif (event.fixed and order(version, event.fixed) >= 0) or (
            event.last_affected and order(version, event.last_affected) > 0
        ):
            affected = False
    if not affected:
        return None
    later = [event.fixed for event in steps if event.fixed and order(version, event.fixed) < 0]
    return later[0] if later else ""


def _at(event: Event) -> str:
    return event.introduced or event.fixed or event.last_affected or "0"


def count_levels(findings: Iterable[Finding]) -> dict[str, int]:
    """How many there are of each level, the worst first."""
    counts = dict.fromkeys(reversed(LEVELS), 0)
    for finding in findings:
        counts[finding.level] += 1
    return counts


def component_of(finding: Finding, inventory: Inventory) -> Component:
    return inventory.components[finding.component]
