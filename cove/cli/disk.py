"""What takes the disk's space, and pruning, which shows what it would delete before it asks."""

from __future__ import annotations

import os
import sys

from cove.cli import output
from cove.cli.client import filters, query
from cove.cli.fail import ApiError, CliError
from cove.cli.options import Command
from cove.cli.shown import printable
from cove.model import wirejson

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from cove.cli.client import Client
    from cove.cli.options import Options


def usage_rows(usage: dict[str, Any]) -> list[dict[str, Any]]:
    """The rows of system df: how many there are, are used, their size, and what pruning would free."""
    images, containers = usage.get("Images") or [], usage.get("Containers") or []
    volumes, builds = usage.get("Volumes") or [], usage.get("BuildCache") or []

    def volume_size(volume: dict[str, Any]) -> int:
        return max(int((volume.get("UsageData") or {}).get("Size") or 0), 0)

    used_volumes = [volume for volume in volumes if (volume.get("UsageData") or {}).get("RefCount", 0) > 0]
    used_images = [image for image in images if (image.get("Containers") or 0) > 0]
    running = [one for one in containers if one.get("State") in ("running", "paused", "restarting")]
    layers = int(usage.get("LayersSize") or 0)
    idle_images = sum(
        max(int(image.get("Size") or 0) - max(int(image.get("SharedSize") or 0), 0), 0)
        for image in images
        if (image.get("Containers") or 0) <= 0
    )
    idle = sum(int(one.get("SizeRw") or 0) for one in containers if one not in running)
    table = (
        ("Images", len(images), len(used_images), layers, min(idle_images, layers)),
        (
            "Containers",
            len(containers),
            len(running),
            sum(int(one.get("SizeRw") or 0) for one in containers),
            idle,
        ),
        (
            "Local Volumes",
            len(volumes),
            len(used_volumes),
            sum(map(volume_size, volumes)),
            sum(volume_size(volume) for volume in volumes if volume not in used_volumes),
        ),
        ("Build Cache", len(builds), 0, 0, 0),
    )
    return [
        {
            "Type": name,
            "TotalCount": str(count),
            "Active": str(active),
            "Size": output.human_size(size),
            "Reclaimable": output.human_size(free) + (f" ({free * 100 // size}%)" if size else ""),
        }
        for name, count, active, size, free in table
    ]


def run_df(client: Client, options: Options) -> int:
    """cove system df"""
    if options.on("explain"):
        return _explain(client, options)
    usage = client.get("/system/df")
    if options.on("verbose"):
        print(wirejson.pretty(usage))
        return 0
    columns = (
        ("Type", "TYPE"),
        ("TotalCount", "TOTAL"),
        ("Active", "ACTIVE"),
        ("Size", "SIZE"),
        ("Reclaimable", "RECLAIMABLE"),
    )
    output.print_rows(usage_rows(usage), columns, format=options.text("format"))
    return 0


def _explain(client: Client, options: Options) -> int:
    """What takes the space, largest first, who uses it, and the command that would free it."""
    found = client.get("/cove/v1/disk")
    if options.text("format") == "json":
        print(wirejson.pretty(found))
        return 0
    rows = [
        {
            "Kind": row["Kind"],
            "Name": row["Name"] if len(row["Name"]) != 64 else row["Name"][:12],
            "Size": output.human_size(row["Size"]),
            "UsedBy": ", ".join(row["UsedBy"]) or "-",
            "Note": row["Note"] or "-",
            "Free": row["Free"] or "-",
        }
        for row in found["Items"]
        if row["Size"] or options.on("verbose")
    ]
    columns = (
        ("Kind", "WHAT"),
        ("Name", "NAME"),
        ("Size", "SIZE"),
        ("UsedBy", "USED BY"),
        ("Note", "NOTE"),
        ("Free", "FREED BY"),
    )
    output.print_rows(rows, columns, format=options.text("format"))
    if not options.text("format"):
        total, unused = output.human_size(found["TotalSize"]), output.human_size(found["Unused"])
        print(f"\n{total} in {printable(found['DataRoot'])}, {unused} of it used by nothing")
    return 0


def confirm(what: str, options: Options) -> bool:
    """Ask before removing; -f answers yes, and without a terminal nobody can."""
    if options.on("force"):
        return True
    if not os.isatty(0):
        raise CliError(f"this removes {what}, and nobody is there to ask; say -f to do it without asking")
    sys.stdout.write(f"This removes {what}. Continue? [y/N] ")
    sys.stdout.flush()
    return sys.stdin.readline().strip().lower() in ("y", "yes")


def _plan(client: Client, kinds: list[tuple[str, list[str]]]) -> dict[str, Any]:
    """What the daemon would delete."""
    parameters: dict[str, Any] = {kind: filters(asked) for kind, asked in kinds}
    found: dict[str, Any] = client.get(
        "/cove/v1/prune" + query({"kind": [kind for kind, _ in kinds], **parameters})
    )
    return found


def _show_plan(found: dict[str, Any]) -> None:
    for key, heading in (
        ("Containers", "Containers:"),
        ("Networks", "Networks:"),
        ("Volumes", "Volumes:"),
        ("Images", "Images:"),
    ):
        items = found.get(key) or []
        if items:
            print(heading)
        for item in items:
            print("  " + printable(_shown(key, item)))
    print(f"Space that this frees: {output.human_size(found['SpaceReclaimed'])}")


def _shown(key: str, item: dict[str, Any]) -> str:
    if key == "Containers":
        size = output.human_size(item["Size"])
        return f"{item['Id'][:12]}  {item['Name']}  ({item['Image']}, {item['State']}, {size})"
    if key == "Volumes":
        return f"{item['Name']}  ({output.human_size(item['Size'])})"
    if key == "Networks":
        return f"{item['Id'][:12]}  {item['Name']}"
    return f"untagged: {item['Untagged']}" if item.get("Untagged") else f"deleted: {item['Deleted']}"


# kind: (what the answer calls the removed, how to show one)
_PRUNED = {
    "containers": ("ContainersDeleted", "Deleted Containers:"),
    "networks": ("NetworksDeleted", "Deleted Networks:"),
    "volumes": ("VolumesDeleted", "Deleted Volumes:"),
    "images": ("ImagesDeleted", "Deleted Images:"),
}


def prune(client: Client, kind: str, asked: list[str]) -> int:
    """Prune one kind, say what went, and return the bytes that were freed."""
    answer = client.post(f"/{kind}/prune" + query({"filters": filters(asked)})) or {}
    key, heading = _PRUNED[kind]
    removed = answer.get(key) or []
    if removed:
        print(heading)
    for item in removed:
        if isinstance(item, dict):
            for word in ("Untagged", "Deleted"):
                if item.get(word):
                    print(printable(f"{word.lower()}: {item[word]}"))
        else:
            print(item)
    if removed:
        print()
    return int(answer.get("SpaceReclaimed") or 0)


def _run_prune(client: Client, options: Options, what: str, kinds: list[tuple[str, list[str]]]) -> int:
    asked = [(kind, [*options.all("filter"), *extra]) for kind, extra in kinds]
    if options.on("dry-run"):
        _show_plan(_plan(client, asked))
        return 0
    if not options.on("force") and os.isatty(0):
        try:
            plan = _plan(client, asked)
        except ApiError as error:
            if error.http != 404:  # another engine, which can't tell beforehand
                raise
        else:
            _show_plan(plan)
            if not any(plan.get(key) for key in ("Containers", "Networks", "Volumes", "Images")):
                return 0
    if confirm(what, options):
        freed = sum(prune(client, kind, given) for kind, given in asked)
        print(f"Total reclaimed space: {output.human_size(freed)}")
    return 0


def run_container_prune(client: Client, options: Options) -> int:
    """cove container prune"""
    return _run_prune(client, options, "all stopped containers", [("containers", [])])


def _image_filters(options: Options) -> list[str]:
    return ["dangling=false"] if options.on("all") else []


def run_image_prune(client: Client, options: Options) -> int:
    """cove image prune"""
    what = "all images that no container uses" if options.on("all") else "all images without a name"
    return _run_prune(client, options, what, [("images", _image_filters(options))])


def run_volume_prune(client: Client, options: Options) -> int:
    """cove volume prune"""
    every = options.on("all")
    what = "all volumes that no container uses" if every else "all anonymous volumes that no container uses"
    return _run_prune(client, options, what, [("volumes", ["all=true"] if every else [])])


def run_network_prune(client: Client, options: Options) -> int:
    """cove network prune"""
    return _run_prune(client, options, "all networks that no container uses", [("networks", [])])


def run_system_prune(client: Client, options: Options) -> int:
    """cove system prune"""
    what = "all stopped containers, unused networks and "
    what += "unused images" if options.on("all") else "images without a name"
    kinds: list[tuple[str, list[str]]] = [
        ("containers", []),
        ("networks", []),
        ("images", _image_filters(options)),
    ]
    if options.on("volumes"):
        what += ", and anonymous volumes that no container uses"
        kinds.insert(2, ("volumes", []))
    return _run_prune(client, options, what, kinds)


_DRY_RUN = ("", "dry-run", "bool", "", "Show what would be removed and freed, and remove nothing")
_FORCE = ("f", "force", "bool", "", "Do not ask")
_FILTER = ("", "filter", "list", "NAME=VALUE", "Only those that match, e.g. until=24h, label=tier=web")
_ALL_IMAGES = ("a", "all", "bool", "", "Images with a name too, where no container uses them")


def _prune_command(name: str, function: Any, summary: str, *flags: Any) -> Command:
    group = name.split()[0]
    return Command(
        name,
        function,
        "[OPTIONS]",
        summary,
        flags=(*flags, _DRY_RUN, _FORCE, _FILTER),
        example=f"cove {group} prune -f",
    )


COMMANDS = {
    "system df": Command(
        "system df",
        run_df,
        "[OPTIONS]",
        "Show what is kept on disk.",
        flags=(
            (
                "",
                "explain",
                "bool",
                "",
                "Show what takes the space, who uses it, and the command that frees it",
            ),
            ("v", "verbose", "bool", "", "Everything the daemon knows, as JSON"),
            ("", "format", "str", "FORMAT", "json or a template, e.g. '{{.Type}} {{.Size}}'"),
        ),
        example="cove system df",
    ),
    "system prune": _prune_command(
        "system prune",
        run_system_prune,
        "Remove everything that isn't used.",
        _ALL_IMAGES,
        ("", "volumes", "bool", "", "Anonymous volumes too"),
    ),
    "container prune": _prune_command(
        "container prune", run_container_prune, "Remove all stopped containers."
    ),
    "image prune": _prune_command(
        "image prune", run_image_prune, "Remove images without a name.", _ALL_IMAGES
    ),
    "volume prune": _prune_command(
        "volume prune",
        run_volume_prune,
        "Remove anonymous volumes that no container uses.",
        ("a", "all", "bool", "", "Named volumes too"),
    ),
    "network prune": _prune_command(
        "network prune", run_network_prune, "Remove networks that no container uses."
    ),
}
