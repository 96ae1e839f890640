"""ps: the table of containers. The rows are pure functions of the API's summaries."""

from __future__ import annotations

import time

from cove.cli import output
from cove.cli.client import filters, query
from cove.cli.options import Command

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from cove.cli.client import Client
    from cove.cli.options import Options

COLUMNS = (
    ("ID", "CONTAINER ID"),
    ("Image", "IMAGE"),
    ("Command", "COMMAND"),
    ("RunningFor", "CREATED"),
    ("Status", "STATUS"),
    ("Ports", "PORTS"),
    ("Names", "NAMES"),
)


def show_ports(ports: list[dict[str, Any]]) -> str:
    """`0.0.0.0:8080->80/tcp, 443/tcp`: neighbouring ports with the same shift become a range."""
    groups: list[list[Any]] = []
    keyed = [
        (port.get("IP", ""), port.get("Type", "tcp"), port["PrivatePort"], port.get("PublicPort", 0))
        for port in ports
    ]
    for ip, kind, private, public in sorted(keyed, key=lambda port: (port[1], port[0], port[2])):
        last = groups[-1] if groups else [None] * 6
        follows = last[5] == public - 1 if public else last[5] == 0
        if last[:2] == [ip, kind] and last[3] == private - 1 and follows:
            last[3], last[5] = private, public
        else:
            groups.append([ip, kind, private, private, public, public])
    shown = []
    for ip, kind, first, last_port, public_first, public_last in groups:
        inside = str(first) if first == last_port else f"{first}-{last_port}"
        if public_first:
            outside = str(public_first) if public_first == public_last else f"{public_first}-{public_last}"
            host = f"[{ip}]" if ":" in ip else ip
            shown.append(f"{host}:{outside}->{inside}/{kind}")
        else:
            shown.append(f"{inside}/{kind}")
    return ", ".join(shown)


def show_status(summary: dict[str, Any]) -> str:
    """`Exited (137) 2 minutes ago, out of memory (limit 64 MiB)`."""
    limited = (summary.get("Cove") or {}).get("Limited", "")
    return f"{summary.get('Status', '')}, {limited}" if limited else summary.get("Status", "")


def container_row(summary: dict[str, Any], now_s: float, *, whole: bool) -> dict[str, Any]:
    """One row of ps: docker's field names, all text."""
    names = [name.lstrip("/") for name in summary.get("Names") or () if name.count("/") <= 1]
    command = '"' + summary.get("Command", "") + '"'
    labels = summary.get("Labels") or {}
    mounts = [mount.get("Name") or mount.get("Source", "") for mount in summary.get("Mounts") or ()]
    image = summary.get("Image", "")
    if image.startswith("sha256:"):
        image = output.short_id(image, whole)
    size = output.human_size(summary.get("SizeRw") or 0)
    if summary.get("SizeRootFs"):
        size += f" (virtual {output.human_size(summary['SizeRootFs'])})"
    return {
        "ID": output.short_id(summary["Id"], whole),
        "Image": image,
        "Command": command if whole else '"' + output.ellipsis(command[1:-1], 20) + '"',
        "CreatedAt": output.local_time(summary["Created"]),
        "RunningFor": output.ago(summary["Created"], now_s),
        "Status": show_status(summary),
        "State": summary.get("State", ""),
        "Pod": (summary.get("Cove") or {}).get("Pod", ""),
        "Ports": show_ports(summary.get("Ports") or []),
        "Names": ",".join(names),
        "Size": size,
        "Labels": output.key_values(labels),
        "Mounts": ",".join(mount if whole else output.ellipsis(mount, 15) for mount in mounts),
        "LocalVolumes": str(
            sum(1 for mount in summary.get("Mounts") or () if mount.get("Driver") == "local")
        ),
        "Networks": ",".join((summary.get("NetworkSettings") or {}).get("Networks") or {}),
    }


def run_ps(client: Client, options: Options) -> int:
    """cove ps"""
    last = options.number("last")
    if options.on("latest"):
        last = 1
    format = options.text("format")
    whole = options.on("no-trunc")
    sized = options.on("size") or ".Size" in format
    parameters = {
        "all": options.on("all") or last is not None,
        "limit": last,
        "size": sized,
        "filters": filters(options.all("filter")),
    }
    summaries = client.get("/containers/json" + query(parameters))
    if options.on("quiet") and not format:
        for summary in summaries:
            print(output.short_id(summary["Id"], whole))
        return 0
    now_s = time.time()
    rows = [container_row(summary, now_s, whole=whole) for summary in summaries]
    columns = (*COLUMNS, ("Size", "SIZE")) if options.on("size") else COLUMNS
    output.print_rows(rows, columns, format=format)
    return 0


COMMANDS = {
    "ps": Command(
        "ps",
        run_ps,
        "[OPTIONS]",
        "List containers; running ones unless -a.",
        flags=(
            ("a", "all", "bool", "", "List stopped containers too"),
            ("q", "quiet", "bool", "", "Print ids only"),
            (
                "f",
                "filter",
                "list",
                "NAME=VALUE",
                "Only those that match, e.g. status=exited, name=web, label=tier=web",
            ),
            (
                "",
                "format",
                "str",
                "FORMAT",
                "json, a template, or 'table …', e.g. 'table {{.Names}}\\t{{.Status}}'",
            ),
            ("n", "last", "int", "NUMBER", "The NUMBER created last, running or not"),
            ("l", "latest", "bool", "", "The one created last, running or not"),
            ("s", "size", "bool", "", "Show what each wrote"),
            ("", "no-trunc", "bool", "", "Show everything in full"),
        ),
        example="cove ps -a --filter status=exited\ncove ps --format '{{.Names}}: {{.Status}}'",
    ),
}
