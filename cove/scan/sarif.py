"""A scan's report as SARIF 2.1.0 (docs.oasis-open.org/sarif), which code hosts show beside the code. Pure."""

from __future__ import annotations

from typing import Any
from urllib.parse import quote

from cove import __version__

_LEVELS = {"critical": "error", "high": "error", "medium": "warning", "low": "note"}
_SCORES = {"critical": "9.5", "high": "8.0", "medium": "5.5", "low": "2.0"}


def sarif(report: dict[str, Any]) -> dict[str, Any]:
    """The findings of a report (findings.py) as SARIF."""
    rules: dict[str, dict[str, Any]] = {}
    results = []
    for one in report["Vulnerabilities"]:
        rules.setdefault(one["ID"], _rule(one))
        mended = f"update to {one['Fixed']}" if one["Fixed"] else "no fixed version is known"
        text = f"{one['Package']} {one['Version']}: {one['ID']} ({one['Severity']}); {mended}"
        results.append(_result(one["ID"], _LEVELS.get(one["Severity"], "none"), text, one["Paths"], 1, one))
    for secret in report["Secrets"]:
        name = f"secret/{secret['Rule']}"
        rules.setdefault(
            name,
            {"id": name, "shortDescription": {"text": secret["Title"]}, "properties": {"tags": ["secret"]}},
        )
        text = f"{secret['Title']} {secret['Masked']} in layer {secret['Layer']}"
        results.append(_result(name, "error", text, [secret["Path"]], max(1, secret["Line"]), secret))
    order = {name: number for number, name in enumerate(rules)}
    for result in results:
        result["ruleIndex"] = order[result["ruleId"]]
    return {
        "$schema": "https://json.schemastore.org/sarif-2.1.0.json",
        "version": "2.1.0",
        "runs": [
            {
                "tool": {
                    "driver": {
                        "name": "cove scan",
                        "semanticVersion": __version__,
                        "rules": list(rules.values()),
                    }
                },
                "properties": {"image": report["Image"]["Name"], "imageID": report["Image"]["ID"]},
                "results": results,
            }
        ],
    }


def _rule(one: dict[str, Any]) -> dict[str, Any]:
    score = f"{one['Score']:.1f}" if one["Score"] else _SCORES.get(one["Severity"], "0.0")
    rule: dict[str, Any] = {
        "id": one["ID"],
        "shortDescription": {"text": one["Summary"] or one["ID"]},
        "properties": {"tags": ["vulnerability", one["Severity"]], "security-severity": score},
    }
    if one["URL"]:
        rule["helpUri"] = one["URL"]
    return rule


def _result(
    rule: str, level: str, text: str, paths: list[str], line: int, one: dict[str, Any]
) -> dict[str, Any]:
    return {
        "ruleId": rule,
        "level": level,
        "message": {"text": text},
        "locations": [
            {
                "physicalLocation": {
                    "artifactLocation": {"uri": quote(path.lstrip("/") or "config")},
                    "region": {"startLine": line},
                }
            }
            for path in paths[:10]
        ],
        "partialFingerprints": {"coveFinding/v1": f"{rule}/{one.get('PURL') or one.get('Path', '')}"},
    }
