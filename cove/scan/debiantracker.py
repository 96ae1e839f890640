"""Debian's security tracker (security-tracker.debian.org/tracker/data/json) as advisories. Pure; errors name the place.

One document: source package → CVE → releases by codename. `resolved` with a fixed version means that older ones are
affected, with the fixed version 0 that none is; `open` means that all are; `undetermined` says nothing and is left out.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

import msgspec

from cove.scan.advisory import Advisory, Affected, Event
from cove.scan.ecosystems import DEBIAN_RELEASES
from cove.scan.model import Malformed, clean
from cove.scan.severity import level_of_word

_CVE = re.compile(r"(?:CVE-\d{4}-\d{4,}|TEMP-[0-9]+-[0-9A-F]+)")
_RELEASES_MAX = 100


class _Release(msgspec.Struct):
    status: str
    fixed_version: str | None = None
    urgency: str | None = None
    nodsa: str | None = None
    nodsa_reason: str | None = None


class _Issue(msgspec.Struct):
    releases: dict[str, _Release]
    description: str | None = None


_outer = msgspec.json.Decoder(dict[str, msgspec.Raw])
_inner = msgspec.json.Decoder(dict[str, _Issue])


def looks_like(data: bytes) -> bool:
    """Whether a document's beginning is the tracker's: an object of objects of objects."""
    return re.match(rb'\s*\{\s*"[^"]{1,200}"\s*:\s*\{\s*"(?:CVE|TEMP)-', data[:1000]) is not None


def parse_tracker(data: bytes) -> Iterator[tuple[str, Advisory]]:
    """Each package's issues: the package, and an advisory with no more than that package in it. Malformed."""
    try:
        packages = _outer.decode(data)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise Malformed(f"it isn't Debian's tracker: {clean(str(error))}") from None
    for name, raw in packages.items():
        try:
            issues = _inner.decode(raw)
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
            raise Malformed(f"package {clean(name)}: {clean(str(error))}") from None
        for cve, issue in issues.items():
            if not _CVE.fullmatch(cve):
                raise Malformed(f"package {clean(name)}: {clean(cve)!r} is no id, e.g. CVE-2024-3094")
            affected = tuple(_affected(clean(name), issue))
            if affected:
                summary = clean((issue.description or "").partition("\n")[0])[:300]
                yield (
                    clean(name),
                    Advisory(
                        id=cve,
                        summary=summary,
                        url=f"https://security-tracker.debian.org/tracker/{cve}",
                        affected=affected,
                    ),
                )


def _affected(name: str, issue: _Issue) -> Iterator[Affected]:
    if len(issue.releases) > _RELEASES_MAX:
        raise Malformed(f"package {name}: {len(issue.releases)} releases; up to {_RELEASES_MAX} are read")
    for codename, release in issue.releases.items():
        number = DEBIAN_RELEASES.get(codename)
        if number is None or release.status not in ("open", "resolved"):
            continue
        fixed = clean(release.fixed_version) if release.status == "resolved" else ""
        if fixed == "0" or (release.status == "resolved" and not fixed):
            continue
        level = level_of_word(release.urgency)
        events = (Event(introduced="0"), Event(fixed=fixed)) if fixed else (Event(introduced="0"),)
        yield Affected(
            ecosystem=f"Debian:{number}",
            name=name,
            ranges=(events,),
            level="" if level == "unknown" else level,
            status="" if fixed else clean(release.nodsa or release.nodsa_reason or ""),
        )
