"""What is in an image, and what is wrong with it: sbom, scan, vulns."""

from __future__ import annotations

import os

from cove.cli import output
from cove.cli.archivefile import save_stream
from cove.cli.client import query
from cove.cli.fail import CliError
from cove.cli.options import Command
from cove.cli.shown import printable
from cove.model import wirejson

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import Any

    from cove.cli.client import Client, Response
    from cove.cli.options import Options

FORMATS = ("cyclonedx", "spdx", "json")
SCAN_FORMATS = ("table", "json", "sarif")
LEVELS = ("critical", "high", "medium", "low", "negligible", "unknown")
FOUND = 3  # the exit status of a scan that found what --severity asks for
_COLORS = {"critical": "35", "high": "31", "medium": "33"}
_IGNORE_BYTES = 1 << 20


def source_date() -> str:
    """SOURCE_DATE_EPOCH (reproducible-builds.org/specs/source-date-epoch), or ""."""
    text = os.environ.get("SOURCE_DATE_EPOCH", "")
    if text and not text.isdecimal():
        raise CliError(f"SOURCE_DATE_EPOCH={text}: expected seconds since 1970, e.g. 1700000000")
    return text


def run_sbom(client: Client, options: Options) -> int:
    """cove sbom"""
    form = options.text("format") or "cyclonedx"
    if form not in FORMATS:
        raise CliError(f"--format {form}: expected one of {', '.join(FORMATS)}, e.g. --format spdx")
    image = options.args[0]
    parameters = query({"image": image, "format": form, "epoch": source_date()})
    if options.on("push"):
        from cove.cli.credentials import auth_headers

        if form == "json":
            raise CliError("--push: expected --format cyclonedx or spdx, which other tools read")
        path = f"/cove/v1/images/sbom/push{parameters}"
        told = client.request("POST", path, headers=auth_headers(image)).json()
        print(f"{told['Digest']} refers to {told['Subject']}")
        return 0
    write_out(client.request("GET", f"/cove/v1/images/sbom{parameters}"), options.text("output"), "sbom")
    return 0


def write_out(answer: Response, path: str, what: str) -> None:
    """Write an answer to a file, or to standard output, a terminal too."""
    if path:
        save_stream(answer, path, what)
        return
    from cove.cli.session import write_all

    for data in answer.chunks():
        write_all(1, data)


def read_ignored(path: str) -> list[str]:
    """The ids of an ignore file: one a line, `ID` or `ID:PACKAGE`, what follows a # is a note."""
    try:
        with open(path, encoding="utf-8", errors="replace") as file:
            text = file.read(_IGNORE_BYTES + 1)
    except OSError as error:
        raise CliError(f"--ignore-file {path}: {error.strerror}") from None
    if len(text) > _IGNORE_BYTES:
        raise CliError(f"--ignore-file {path}: it is larger than {_IGNORE_BYTES} characters")
    found = []
    for number, line in enumerate(text.splitlines(), 1):
        words = line.partition("#")[0].split()
        if len(words) > 1:
            raise CliError(
                f"--ignore-file {path}: line {number}: expected one id, e.g. CVE-2021-44228  # why"
            )
        found += words
    return found


def run_scan(client: Client, options: Options) -> int:
    """cove scan"""
    form, level = options.text("format") or "table", options.text("severity").lower()
    if form not in SCAN_FORMATS:
        raise CliError(f"--format {form}: expected one of {', '.join(SCAN_FORMATS)}, e.g. --format sarif")
    if level and level not in LEVELS:
        raise CliError(f"--severity {level}: expected one of {', '.join(LEVELS)}, e.g. --severity high")
    ignored = options.all("ignore")
    for path in options.all("ignore-file"):
        ignored = [*ignored, *read_ignored(path)]
    asked = not options.on("secrets-only")
    body = {
        "Image": options.args[0],
        "Severity": level,
        "Ignore": ignored,
        "OnlyFixed": options.on("only-fixed"),
        "Secrets": options.on("secrets", True),
        "Vulnerabilities": asked,
    }
    report = client.post("/cove/v1/images/scan", {**body, "Format": "json"})
    if form == "sarif":
        answer = client.request("POST", "/cove/v1/images/scan", {**body, "Format": "sarif"})
        write_out(answer, options.text("output"), "scan")
    else:
        text = render_report(report, asked=asked) if form == "table" else wirejson.dumps(report) + "\n"
        _print(text, options.text("output"))
    found = len(report["Vulnerabilities"]) + len(report["Secrets"])
    return FOUND if level and found else 0


def _print(text: str, path: str) -> None:
    if not path:
        print(text, end="")
        return
    try:
        with open(path, "w", encoding="utf-8", errors="surrogateescape") as file:
            file.write(text)
    except OSError as error:
        raise CliError(f"{path}: {error.strerror}", 1) from None


def render_report(report: dict[str, Any], *, asked: bool) -> str:
    """A scan's report for a person. `asked`: vulnerabilities were looked for."""
    summary = report["Summary"]
    distribution = report["Distribution"]
    system = distribution["Name"] or f"{distribution['ID']} {distribution['Version']}".strip()
    lines = [
        printable(
            f"{report['Image']['Name']}: {system or 'an unknown distribution'}, {summary['packages']} packages"
        ),
    ]
    if report["Vulnerabilities"]:
        rows = [
            [
                one["Severity"],
                one["ID"],
                one["Package"],
                one["Version"],
                one["Fixed"] or one["Status"] or "-",
                str(one["Layer"]),
                output.ellipsis(one["Summary"], 60),
            ]
            for one in report["Vulnerabilities"]
        ]
        headings = ("SEVERITY", "ID", "PACKAGE", "VERSION", "FIXED IN", "LAYER", "SUMMARY")
        lines += ["", *_table(headings, rows)]
    if report["Secrets"]:
        rows = [
            [
                one["Severity"],
                one["Title"],
                f"{one['Path']}:{one['Line']}",
                one["Masked"],
                str(one["Layer"]) if one["Layer"] >= 0 else "config",
                "yes" if one["Deleted"] else "-",
                output.ellipsis(one["CreatedBy"], 60),
            ]
            for one in report["Secrets"]
        ]
        lines += [
            "",
            *_table(("SEVERITY", "SECRET", "WHERE", "IT IS", "LAYER", "DELETED", "CREATED BY"), rows),
        ]
    counted = [f"{summary[level]} {level}" for level in LEVELS if summary[level]]
    told = ", ".join(counted) or "none"
    lines.append("")
    if asked:
        lines.append(f"Vulnerabilities: {told}; {summary['fixable']} of them fixed in a newer version")
    if summary["secrets"]:
        lines.append(f"Secrets: {summary['secrets']}; take them out of the build, and make new ones")
    elif not asked:
        lines.append("Secrets: none")
    if summary["ignored"] or summary["below"]:
        lines.append(f"Not shown: {summary['ignored']} ignored, {summary['below']} below what was asked for")
    if summary["unmatched"]:
        lines.append(f"Not looked up: {summary['unmatched']} packages, of an ecosystem that isn't known")
    lines += [printable(f"Note: {note}") for note in report["Notes"]]
    return "\n".join(lines) + "\n"


def _table(headings: Sequence[str], rows: list[list[str]]) -> list[str]:
    first, *rest = output.render_table(headings, rows).splitlines()
    return [first, *(_colored(line, row[0]) for line, row in zip(rest, rows, strict=True))]


def _colored(line: str, level: str) -> str:
    return output.paint(line, _COLORS[level]) if level in _COLORS else line


def run_import(client: Client, options: Options) -> int:
    """cove vulns import"""
    from cove.cli.vulnfiles import archive_stream

    stream = archive_stream(options.args)
    done = client.request("POST", "/cove/v1/vulns/import", stream=stream).json()
    print(
        f"{done['Read']} entries read: {done['Added']} added, {done['Changed']} changed, "
        f"{done['Unchanged']} unchanged, {done['Removed']} removed before"
    )
    return 0


def run_info(client: Client, options: Options) -> int:
    """cove vulns info"""
    told = client.get("/cove/v1/vulns")
    if options.text("format"):
        print(output.render_value(options.text("format"), told))
        return 0
    rows = [
        [one["Name"], str(one["Entries"]), one["Newest"][:10] or "-", one["Imported"]]
        for one in told["Sources"]
    ]
    print(output.render_table(("SOURCE", "ENTRIES", "NEWEST", "IMPORTED"), rows), end="")
    counts = ", ".join(f"{name} {count}" for name, count in told["Ecosystems"].items())
    print(f"Packages by ecosystem: {counts or 'none'}")
    return 0


COMMANDS = {
    "sbom": Command(
        "sbom",
        run_sbom,
        "[OPTIONS] IMAGE",
        "Write an image's bill of materials: every package that is found in it, and the layer that brought it.",
        flags=(
            ("", "format", "str", "FORMAT", "cyclonedx, spdx or json (default: cyclonedx)"),
            ("o", "output", "str", "FILE", "Write to FILE (default: standard output)"),
            ("", "push", "bool", "", "Put it beside the image in its registry instead, as an artifact"),
        ),
        needed=1,
        example="cove sbom --format spdx -o debian.spdx.json debian",
    ),
    "scan": Command(
        "scan",
        run_scan,
        "[OPTIONS] IMAGE",
        "Show the known vulnerabilities of an image's packages, and secrets left in its layers. The exit status is 3 "
        "where --severity finds some.",
        flags=(
            (
                "s",
                "severity",
                "str",
                "LEVEL",
                "Show LEVEL and worse only, and exit with 3 when there are any, e.g. high",
            ),
            ("", "ignore", "list", "ID[:PACKAGE]", "Leave a vulnerability out, e.g. CVE-2021-44228"),
            (
                "",
                "ignore-file",
                "list",
                "FILE",
                "Leave out those that FILE names, one a line; # begins a note",
            ),
            ("", "only-fixed", "bool", "", "Show only what a newer version mends"),
            ("", "secrets", "bool", "", "Look for secrets left in layers as well (default: true)"),
            ("", "secrets-only", "bool", "", "Look for secrets alone; that needs no database"),
            ("", "format", "str", "FORMAT", "table, json or sarif (default: table)"),
            ("o", "output", "str", "FILE", "Write to FILE (default: standard output)"),
        ),
        needed=1,
        example="cove scan --severity high --only-fixed debian",
    ),
    "vulns import": Command(
        "vulns import",
        run_import,
        "PATH...",
        "Take in vulnerabilities: entries of OSV, a zip of them, a directory, or Debian's tracker in JSON.",
        needed=1,
        most=-1,
        example="cove vulns import all.zip tracker.json",
    ),
    "vulns info": Command(
        "vulns info",
        run_info,
        "[OPTIONS]",
        "Show what the database of vulnerabilities has.",
        flags=(("", "format", "str", "FORMAT", "json, or a template, e.g. '{{json .Sources}}'"),),
        example="cove vulns info",
    ),
}
