"""Image tools: check, and what shows where the bytes are."""

from __future__ import annotations

from cove.cli import output
from cove.cli.client import query
from cove.cli.options import Command
from cove.cli.shown import printable
from cove.model import wirejson

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import Any

    from cove.cli.client import Client
    from cove.cli.options import Options


def run_check(client: Client, options: Options) -> int:
    """cove image check"""
    found = client.get("/cove/v1/images/check" + query({"deep": options.on("deep")}))
    if options.text("format"):
        print(output.render_value(options.text("format"), found))
    else:
        for problem in found["Problems"]:
            print(printable(f"{problem['Kind']}: {problem['Text']}"))
        read = f", {output.human_size(found['ReadBytes'])} read again" if options.on("deep") else ""
        print(
            f"{found['Images']} images, {found['Layers']} layers, {found['Blobs']} blobs{read}: "
            + (f"{len(found['Problems'])} problems" if found["Problems"] else "all is well")
        )
    return 1 if found["Problems"] else 0


def run_tree(client: Client, options: Options) -> int:
    """cove image tree"""
    if options.args:
        return _survey(client, options)
    found = client.get("/cove/v1/images/tree")
    if options.text("format"):
        print(output.render_value(options.text("format"), found))
        return 0
    for image in found["Empty"]:
        print(printable(f"{_named(image)}  no layers"))
    for layer in found["Layers"]:
        for line in _tree_lines(layer):
            print(printable(line))
    return 0


def _named(image: dict[str, Any]) -> str:
    return ", ".join(image["Names"]) or output.short_id(image["Id"])


def _tree_lines(top: dict[str, Any]) -> list[str]:
    """A layer a line, what is above it below and indented; a chain that nothing branches off stays in its column."""
    lines = []
    waiting = [(top, "", "")]
    while waiting:
        node, lead, indent = waiting.pop()
        size = output.human_size(node["Size"])
        lines.append(f"{lead}{output.short_id(node['DiffId'])}  {size}")
        above = node["Above"]
        for image in node["Images"]:
            unique = output.human_size(image["UniqueSize"])
            mark = "│ " if above else "  "
            lines.append(
                f"{indent}{mark}  ● {_named(image)}  {output.human_size(image['Size'])}, its own {unique}"
            )
        if len(above) == 1:
            waiting.append((above[0], indent, indent))
            continue
        for number, child in reversed(list(enumerate(above))):
            last = number == len(above) - 1
            waiting.append((child, indent + ("└─ " if last else "├─ "), indent + ("   " if last else "│  ")))
    return lines


def _survey(client: Client, options: Options) -> int:
    found = client.get("/cove/v1/images/survey" + query({"image": options.args[0]}))
    if options.text("format"):
        print(output.render_value(options.text("format"), found))
        return 0
    most = options.number("top") or 5
    size = output.human_size
    print(
        printable(
            f"{_named(found)}: {size(found['Size'])} in {len(found['Layers'])} layers, "
            f"{size(found['WastedSize'])} wasted, efficiency {found['Efficiency']:.1%}"
        )
    )
    for number, layer in enumerate(found["Layers"], 1):
        shared = f", shared with {', '.join(layer['SharedWith'])}" if layer["SharedWith"] else ""
        print()
        print(
            printable(
                f"{number}  {output.short_id(layer['DiffId'])}  {size(layer['Size'])}, "
                f"{layer['Files']} files{shared}"
            )
        )
        if layer["CreatedBy"]:
            print(printable(f"   {output.ellipsis(layer['CreatedBy'], 100)}"))
        for title, rows in (("directories", layer["Directories"]), ("files", layer["Largest"])):
            for row in rows[:most]:
                print(
                    printable(
                        f"   {size(row['Size']):>8}  {row['Path']}{'/' if title == 'directories' else ''}"
                    )
                )
    if found["Wasted"]:
        print("\nWasted: in a layer, and replaced or deleted by a later one")
        for row in found["Wasted"][: 2 * most]:
            print(
                printable(
                    f"   {size(row['Size']):>8}  {row['Path']}  in {row['Layer']}, {row['How']} by {row['By']}"
                )
            )
    return 0


def run_diff(client: Client, options: Options) -> int:
    """cove image diff"""
    first, second = options.args
    found = client.get("/cove/v1/images/diff" + query({"from": first, "to": second}))
    if options.text("format"):
        print(output.render_value(options.text("format"), found))
    else:
        for line in _diff_lines(found):
            print(printable(line))
    return 1 if options.on("exit-code") and (found["Files"] or found["Config"]) else 0


def _diff_lines(found: dict[str, Any]) -> Iterator[str]:
    """`A`, `C` and `D` as cove diff has them, then the settings."""
    grown = 0
    for change in found["Files"]:
        letter = {"added": "A", "changed": "C", "removed": "D"}[change["Kind"]]
        grown += change["SizeAfter"] - change["SizeBefore"]
        what = f"  ({', '.join(change['What'])})" if change["What"] else ""
        size = ""
        if change["SizeBefore"] != change["SizeAfter"]:
            delta = change["SizeAfter"] - change["SizeBefore"]
            size = f"  {'+' if delta > 0 else '-'}{output.human_size(abs(delta))}"
        yield f"{letter} {change['Path']}{what}{size}"
    if found["Truncated"]:
        yield f"... more than these {len(found['Files'])} files differ"
    for change in found["Config"]:
        before, after = (wirejson.dumps(change[key]) for key in ("Before", "After"))
        yield f"  {change['Key']}: {before} -> {after}"
    sign = "+" if grown >= 0 else "-"
    yield f"{len(found['Files'])} files differ, {sign}{output.human_size(abs(grown))}"


def run_squash(client: Client, options: Options) -> int:
    """cove image squash"""
    asked = {
        "image": options.args[0],
        "tag": options.text("tag"),
        "from": options.text("from"),
        "message": options.text("message"),
    }
    print(client.post("/cove/v1/images/squash" + query(asked))["Id"])
    return 0


def run_dedupe(client: Client, options: Options) -> int:
    """cove image dedupe"""
    found = client.post("/cove/v1/images/dedupe" + query({"dry-run": options.on("dry-run")}))
    if options.text("format"):
        print(output.render_value(options.text("format"), found))
        return 0
    would = "would be " if options.on("dry-run") else ""
    print(
        f"{found['Joined']} files {would}joined by {found['How']}, {output.human_size(found['SavedSize'])} {would}saved"
    )
    if found["InUse"]:
        print(f"{found['InUse']} more are equal and in use by running containers")
    return 0


_FORMAT = ("", "format", "str", "FORMAT", "json, or a template")

COMMANDS = {
    "image tree": Command(
        "image tree",
        run_tree,
        "[OPTIONS] [IMAGE]",
        "Show which images share which layers; of one image, where its bytes are and which are wasted.",
        flags=(("", "top", "int", "N", "Show the N largest of each kind (default: 5)"), _FORMAT),
        most=1,
        example="cove image tree debian",
    ),
    "image diff": Command(
        "image diff",
        run_diff,
        "[OPTIONS] IMAGE IMAGE",
        "Show what differs between two images: files added (A), changed (C) and removed (D), and settings.",
        flags=(("", "exit-code", "bool", "", "Exit with 1 when they differ"), _FORMAT),
        needed=2,
        example="cove image diff app:1 app:2",
    ),
    "image squash": Command(
        "image squash",
        run_squash,
        "[OPTIONS] IMAGE",
        "Make an image with the same files in one layer, or with its upper layers in one.",
        flags=(
            ("t", "tag", "str", "NAME[:TAG]", "Name the new image"),
            (
                "",
                "from",
                "int",
                "N",
                "Leave the layers below the Nth as they are, 1 is the lowest (default: 1)",
            ),
            ("m", "message", "str", "TEXT", "Note TEXT in the image's history"),
        ),
        needed=1,
        example="cove image squash app:1 -t app:squashed",
    ),
    "image dedupe": Command(
        "image dedupe",
        run_dedupe,
        "[OPTIONS]",
        "Have equal files of different layers share their place on the disk.",
        flags=(("", "dry-run", "bool", "", "Only say what it would save"), _FORMAT),
        example="cove image dedupe --dry-run",
    ),
    "image check": Command(
        "image check",
        run_check,
        "[OPTIONS]",
        "Compare the image store's records with what is on the disk; exit status 1 says that they differ.",
        flags=(("", "deep", "bool", "", "Read every layer again and compare it with its digest"), _FORMAT),
        example="cove image check --deep",
    ),
}
