"""What a check of a Dockerfile found, and how it is shown. Pure."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from cove.dockerfile.errors import excerpt


class Finding(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One finding; BuildKit's rule names (docs.docker.com/reference/build-checks). Lines and columns from 1."""

    rule: str  # e.g. StageNameCasing
    message: str
    line: int
    column: int = 1
    end_line: int = 0
    url: str = ""


def findings_text(findings: Sequence[Finding], lines: Sequence[str], file: str = "Dockerfile") -> str:
    """The findings for people: rule, sentence, place, the line and a caret; "" for none."""
    out: list[str] = []
    for finding in findings:
        url = f" - {finding.url}" if finding.url else ""
        text = lines[finding.line - 1] if 0 < finding.line <= len(lines) else ""
        out += [
            f"WARNING: {finding.rule}{url}",
            finding.message,
            f"{file}:{finding.line}:{finding.column}",
            excerpt(text, finding.line, finding.column),
            "",
        ]
    return "\n".join(out)


def summary_text(findings: Sequence[Finding]) -> str:
    """How many there are, as `--check` ends."""
    count = len(findings)
    if not count:
        return "Check complete, no warnings found."
    return f"Check complete, {count} warning{'s' * (count > 1)} {'have' if count > 1 else 'has'} been found!"
