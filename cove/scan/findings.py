"""The report of a scan: which findings are shown, and Cove's JSON of them. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from cove.scan.inventory import Inventory, Provider
from cove.scan.match import Finding, Matched, count_levels
from cove.scan.model import LayerScan, Secret, Subject, Wire
from cove.scan.purl import package_url
from cove.scan.secrets import title_of
from cove.scan.severity import rank
from cove.scan.subject import image_json, shown


class Choice(Wire, frozen=True, kw_only=True):
    """Which findings a person wants to see."""

    level: str = ""  # and worse ones
    ignore: tuple[str, ...] = ()  # ids, or ID:PACKAGE
    only_fixed: bool = False
    secrets: bool = True


class Chosen(Wire, frozen=True, kw_only=True):
    findings: tuple[Finding, ...] = ()
    ignored: int = 0
    below: int = 0  # not as bad as asked for, or not mended anywhere


def choose(matched: Matched, inventory: Inventory, choice: Choice) -> Chosen:
    """Leave out what is ignored, then what isn't bad enough."""
    ignored = {word.strip().upper() for word in choice.ignore}
    least = rank(choice.level) if choice.level else 0
    shown_ones: list[Finding] = []
    left_out = below = 0
    for finding in matched.findings:
        package = inventory.components[finding.component].package
        names = [name.upper() for name in (finding.id, *finding.aliases)]
        if any(name in ignored or f"{name}:{package.name.upper()}" in ignored for name in names):
            left_out += 1
        elif rank(finding.level) < least or (choice.only_fixed and not finding.fixed):
            below += 1
        else:
            shown_ones.append(finding)
    return Chosen(findings=tuple(shown_ones), ignored=left_out, below=below)


def finding_json(finding: Finding, inventory: Inventory) -> dict[str, Any]:
    component = inventory.components[finding.component]
    package = component.package
    return {
        "ID": finding.id,
        "Aliases": list(finding.aliases),
        "Severity": finding.level,
        "Score": finding.score,
        "Vector": finding.vector,
        "Type": package.kind,
        "Package": package.name,
        "Source": package.source or package.name,
        "Version": package.version,
        "Fixed": finding.fixed,
        "Status": finding.status,
        "PURL": package_url(package, inventory.distribution),
        "Layer": component.layer,
        "Paths": [shown(path) for path in component.paths],
        "Summary": finding.summary,
        "URL": finding.url,
        "Databases": list(finding.sources),
    }


def scan_json(
    subject: Subject,
    inventory: Inventory,
    matched: Matched,
    chosen: Chosen,
    sources: Sequence[dict[str, Any]],
    secrets: Sequence[dict[str, Any]] = (),
) -> dict[str, Any]:
    """The report of a scan."""
    return {
        **image_json(subject, inventory),
        "Databases": list(sources),
        "Summary": {
            **count_levels(chosen.findings),
            "fixable": sum(bool(finding.fixed) for finding in chosen.findings),
            "ignored": chosen.ignored,
            "below": chosen.below,
            "secrets": len(secrets),
            "packages": len(inventory.components),
            "unmatched": matched.unmatched,
        },
        "Vulnerabilities": [finding_json(finding, inventory) for finding in chosen.findings],
        "Secrets": list(secrets),
        "Notes": [*inventory.notes, *matched.notes],
    }


_LESS_BAD = {"password-hash": "medium"}  # of secrets; the others are high


def image_secrets(
    subject: Subject, scans: Sequence[LayerScan], provider: Provider, config: Sequence[Secret]
) -> list[dict[str, Any]]:
    """The secrets of every layer, those too that an upper layer hides: whoever has the image has the layer."""
    found = []
    for number, scan in enumerate(scans):
        made = subject.created_by[number] if number < len(subject.created_by) else ""
        for secret in scan.secrets:
            hidden = provider(secret.path) != number
            found.append(_secret_json(secret, shown(secret.path), number, made[:400], hidden=hidden))
    return [*found, *(_secret_json(secret, secret.path, -1, "", hidden=False) for secret in config)]


def _secret_json(secret: Secret, path: str, layer: int, made: str, *, hidden: bool) -> dict[str, Any]:
    return {
        "Rule": secret.rule,
        "Title": title_of(secret.rule),
        "Severity": _LESS_BAD.get(secret.rule, "high"),
        "Path": path,
        "Line": secret.line,
        "Masked": secret.masked,
        "Layer": layer,
        "CreatedBy": made,
        "Deleted": hidden,
    }


def choose_secrets(secrets: Sequence[dict[str, Any]], choice: Choice) -> list[dict[str, Any]]:
    """Leave out what is ignored (`RULE`, `RULE:PATH`) and what isn't bad enough."""
    ignored = {word.strip() for word in choice.ignore}
    least = rank(choice.level) if choice.level else 0
    return [
        one
        for one in secrets
        if rank(one["Severity"]) >= least
        and one["Rule"] not in ignored
        and f"{one['Rule']}:{one['Path']}" not in ignored
    ]
