"""The daemon as a whole: events, info, version, disk use, pruning."""

from __future__ import annotations

import os
import sys

from cove.cli import output
from cove.cli.client import filters, query
from cove.cli.fail import CliError
from cove.cli.options import Command
from cove.cli.shown import for_terminal, printable

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


_FORMAT = ("f", "format", "str", "FORMAT", "json or a template, e.g. '{{.ServerVersion}}'")

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
}
