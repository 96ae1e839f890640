"""The daemon as a whole: events, info, version, disk use, pruning."""

from __future__ import annotations

import os
import sys

from cove.cli import output
from cove.cli.client import filters, query
from cove.cli.fail import CliError
from cove.cli.options import Command
from cove.cli.shown import for_terminal, printable
from cove.model import wirejson

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from cove.cli.client import Client
    from cove.cli.options import Options


# --- events -------------------------------------------------------------------------------


def show_event(event: dict[str, Any]) -> str:
    """`TIME TYPE ACTION ID (name=web, …)`, as docker prints events."""
    import time

    nanoseconds = int(event.get("timeNano") or event.get("time", 0) * 1_000_000_000)
    local = time.localtime(nanoseconds // 1_000_000_000)
    zone = time.strftime("%z", local)
    stamp = (
        time.strftime("%Y-%m-%dT%H:%M:%S", local) + f".{nanoseconds % 1_000_000_000:09d}{zone[:3]}:{zone[3:]}"
    )
    actor = event.get("Actor") or {}
    text = f"{stamp} {event.get('Type', '')} {event.get('Action', '')} {actor.get('ID', '')}"
    attributes = actor.get("Attributes") or {}
    if attributes:
        text += " (" + ", ".join(f"{name}={attributes[name]}" for name in sorted(attributes)) + ")"
    return text


def run_events(client: Client, options: Options) -> int:
    """cove events"""
    import time

    from cove.cli.containers import parse_time

    now_s = time.time()
    parameters = {
        "since": parse_time("since", options.text("since"), now_s),
        "until": parse_time("until", options.text("until"), now_s),
        "filters": filters(options.all("filter")),
    }
    format = options.text("format")
    for event in client.request("GET", "/events" + query(parameters)).lines():
        shown = output.render_value(format, event) if format else show_event(event)
        print(for_terminal(shown), flush=True)
    return 0


# --- info and version ---------------------------------------------------------------------


def run_info(client: Client, options: Options) -> int:
    """cove info"""
    info = client.get("/info")
    if options.text("format"):
        print(output.render_value(options.text("format"), info))
        return 0
    plugins = info.get("Plugins") or {}
    rows = [
        ("Server Version", info.get("ServerVersion")),
        ("Containers", info.get("Containers")),
        (" Running", info.get("ContainersRunning")),
        (" Paused", info.get("ContainersPaused")),
        (" Stopped", info.get("ContainersStopped")),
        ("Images", info.get("Images")),
        ("Storage Driver", info.get("Driver")),
        ("Logging Driver", info.get("LoggingDriver")),
        ("Cgroup Driver", info.get("CgroupDriver")),
        ("Cgroup Version", info.get("CgroupVersion")),
        ("Firewall", _firewall(info)),
        ("Networks", " ".join(plugins.get("Network") or ())),
        ("Runtimes", " ".join(sorted(info.get("Runtimes") or {}))),
        ("Security Options", " ".join(info.get("SecurityOptions") or ())),
        ("Kernel Version", info.get("KernelVersion")),
        ("Operating System", info.get("OperatingSystem")),
        ("Architecture", info.get("Architecture")),
        ("CPUs", info.get("NCPU")),
        ("Total Memory", output.human_memory(info.get("MemTotal") or 0)),
        ("Name", info.get("Name")),
        ("Data Root", info.get("DockerRootDir")),
        ("Address", client.address.text),
    ]
    for name, value in rows:
        if value not in (None, ""):
            print(f"{name}: {value}")
    for warning in info.get("Warnings") or ():
        print(f"warning: {printable(warning)}", file=sys.stderr)
    return 0


def _firewall(info: dict[str, Any]) -> str:
    """Whose rules let clients reach published ports."""
    facts = dict((info.get("FirewallBackend") or {}).get("Info") or ())
    return str(facts.get("PublishedPorts", ""))


def run_version(client: Client, options: Options) -> int:
    """cove version"""
    from cove import __version__

    problem: CliError | None = None
    server: dict[str, Any] | None = None
    try:
        server = client.get("/version")
    except CliError as error:
        problem = error
    own = {"Version": __version__, "Os": os.uname().sysname.lower(), "Arch": os.uname().machine}
    if options.text("format"):
        print(output.render_value(options.text("format"), {"Client": own, "Server": server}))
    else:
        print(f"Client:\n Version:      {own['Version']}\n OS/Arch:      {own['Os']}/{own['Arch']}")
        if server:
            print("\nServer:")
            for name, key in (
                ("Version", "Version"),
                ("API version", "ApiVersion"),
                ("Minimum API", "MinAPIVersion"),
                ("OS/Arch", ""),
                ("Kernel", "KernelVersion"),
            ):
                value = server.get(key) if key else f"{server.get('Os')}/{server.get('Arch')}"
                print(f" {name + ':':<14}{value}")
    sys.stdout.flush()
    if problem is not None:
        raise problem
    return 0


# --- disk use and pruning -----------------------------------------------------------------


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


def confirm(what: str, options: Options) -> bool:
    """Ask before removing; -f answers yes, and without a terminal nobody can."""
    if options.on("force"):
        return True
    if not os.isatty(0):
        raise CliError(f"this removes {what}, and nobody is there to ask; say -f to do it without asking")
    sys.stdout.write(f"This removes {what}. Continue? [y/N] ")
    sys.stdout.flush()
    return sys.stdin.readline().strip().lower() in ("y", "yes")


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
    if confirm(what, options):
        freed = sum(prune(client, kind, [*options.all("filter"), *extra]) for kind, extra in kinds)
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


_FORCE = ("f", "force", "bool", "", "Do not ask")
_FILTER = ("", "filter", "list", "NAME=VALUE", "Only those that match, e.g. until=24h, label=tier=web")
_FORMAT = ("f", "format", "str", "FORMAT", "json or a template, e.g. '{{.ServerVersion}}'")
_ALL_IMAGES = ("a", "all", "bool", "", "Images with a name too, where no container uses them")


def _prune_command(name: str, function: Any, summary: str, *flags: Any) -> Command:
    group = name.split()[0]
    return Command(
        name,
        function,
        "[OPTIONS]",
        summary,
        flags=(*flags, _FORCE, _FILTER),
        example=f"cove {group} prune -f",
    )


COMMANDS = {
    "events": Command(
        "events",
        run_events,
        "[OPTIONS]",
        "Show events as they happen, until ctrl-c or --until.",
        flags=(
            ("f", "filter", "list", "NAME=VALUE", "Only those that match, e.g. event=die, container=web"),
            ("", "since", "str", "TIME", "Begin at TIME, e.g. 10m or 2026-01-31T09:30:00Z (default: now)"),
            ("", "until", "str", "TIME", "End at TIME, e.g. 0s for now (default: never)"),
            ("", "format", "str", "FORMAT", "json or a template, e.g. '{{.Action}}'"),
        ),
        example="cove events --since 10m --until 0s --filter event=die",
    ),
    "info": Command(
        "info", run_info, "[OPTIONS]", "Show the daemon's state.", flags=(_FORMAT,), example="cove info"
    ),
    "version": Command(
        "version",
        run_version,
        "[OPTIONS]",
        "Show the versions of this command line and of the daemon.",
        flags=(_FORMAT,),
        example="cove version -f '{{.Server.Version}}'",
    ),
    "system df": Command(
        "system df",
        run_df,
        "[OPTIONS]",
        "Show what is kept on disk.",
        flags=(
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
