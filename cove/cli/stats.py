"""stats: what containers use, once or redrawn every second. The arithmetic is docker's, and pure."""

from __future__ import annotations

import os
import sys

from cove.cli import output
from cove.cli.client import Connection, query, quote
from cove.cli.fail import ApiError, CliError
from cove.cli.options import Command

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from cove.cli.client import Client
    from cove.cli.options import Options

COLUMNS = (
    ("ID", "CONTAINER ID"),
    ("Name", "NAME"),
    ("CPUPerc", "CPU %"),
    ("MemUsage", "MEM USAGE / LIMIT"),
    ("MemPerc", "MEM %"),
    ("NetIO", "NET I/O"),
    ("BlockIO", "BLOCK I/O"),
    ("PIDs", "PIDS"),
)


# on cgroup v2 only, by --format: how much of the last 10 s some task waited, or all of them at once
_PRESSURE = {"cpu": "CPUPressure", "memory": "MemPressure", "io": "IOPressure"}


def cpu_percent(now: dict[str, Any], before: dict[str, Any]) -> float:
    """Percent of one CPU between two samples."""
    used = now.get("cpu_usage", {}).get("total_usage", 0) - before.get("cpu_usage", {}).get("total_usage", 0)
    passed = now.get("system_cpu_usage", 0) - before.get("system_cpu_usage", 0)
    cpus = now.get("online_cpus") or len(now.get("cpu_usage", {}).get("percpu_usage") or ()) or 1
    return used / passed * cpus * 100 if used > 0 and passed > 0 else 0.0


def memory_used(memory: dict[str, Any]) -> int:
    """Bytes in use without the page cache that the kernel can drop (docker's rule for v1 and v2)."""
    usage, details = int(memory.get("usage") or 0), memory.get("stats") or {}
    for name in ("total_inactive_file", "inactive_file"):
        if 0 < details.get(name, 0) < usage:
            return usage - int(details[name])
    return usage


def stats_row(sample: dict[str, Any], *, whole: bool) -> dict[str, Any]:
    """One row of the table."""
    memory = sample.get("memory_stats") or {}
    used, limit = memory_used(memory), int(memory.get("limit") or 0)
    received = sum(net.get("rx_bytes", 0) for net in (sample.get("networks") or {}).values())
    sent = sum(net.get("tx_bytes", 0) for net in (sample.get("networks") or {}).values())
    blocks = (sample.get("blkio_stats") or {}).get("io_service_bytes_recursive") or ()
    read = sum(entry["value"] for entry in blocks if entry["op"].lower() == "read")
    written = sum(entry["value"] for entry in blocks if entry["op"].lower() == "write")
    percent = cpu_percent(sample.get("cpu_stats") or {}, sample.get("precpu_stats") or {})
    name = str(sample.get("name", "")).lstrip("/")
    row = {
        "ID": output.short_id(sample.get("id", ""), whole),
        "Container": output.short_id(sample.get("id", ""), whole),
        "Name": name,
        "CPUPerc": f"{percent:.2f}%",
        "MemUsage": f"{output.human_memory(used)} / {output.human_memory(limit)}",
        "MemPerc": f"{used / limit * 100 if limit else 0:.2f}%",
        "NetIO": f"{output.human_size(received)} / {output.human_size(sent)}",
        "BlockIO": f"{output.human_size(read)} / {output.human_size(written)}",
        "PIDs": str((sample.get("pids_stats") or {}).get("current", 0)),
    }
    for resource, lines in (sample.get("pressure_stats") or {}).items():
        if resource in _PRESSURE:
            row[_PRESSURE[resource]] = f"{lines['some']['avg10']:.2f}% / {lines['full']['avg10']:.2f}%"
    return row


def take_samples(client: Client, names: list[str], *, strict: bool) -> list[dict[str, Any]]:
    """One sample of each container. All are asked for at once: each takes the daemon a second."""
    asked: list[tuple[str, Connection]] = []
    samples = []
    try:
        for name in names:
            connection = client.connect()
            asked.append((name, connection))
            connection.send("GET", f"/containers/{quote(name)}/stats" + query({"stream": "false"}))
        for _, connection in asked:
            try:
                samples.append(connection.receive().check().json())
            except ApiError:
                if strict:
                    raise
                # listed a moment ago, gone now
    finally:
        for _, connection in asked:
            connection.close()
    return samples


def run_stats(client: Client, options: Options) -> int:
    """cove stats"""
    format, whole = options.text("format"), options.on("no-trunc")
    once = options.on("no-stream")
    if not once and not format and not os.isatty(1):
        raise CliError("stats: standard output is no terminal to redraw; use --no-stream")
    while True:
        names = options.args
        if not names:
            listed = client.get("/containers/json" + query({"all": options.on("all")}))
            names = [container["Id"] for container in listed]
        samples = take_samples(client, names, strict=bool(options.args))
        rows = [stats_row(sample, whole=whole) for sample in samples]
        if not once and not format:
            sys.stdout.write("\x1b[H\x1b[J")
        output.print_rows(rows, COLUMNS, format=format)
        sys.stdout.flush()
        if once:
            return 0
        if not names:
            wait_for_container(client)


def wait_for_container(client: Client) -> None:
    """Return when any container starts; the table is empty until then."""
    from cove.cli.client import filters

    events = client.connect()
    try:
        events.send("GET", "/events" + query({"filters": filters(["type=container", "event=start"])}))
        next(events.receive().check().lines(), None)
    finally:
        events.close()


COMMANDS = {
    "stats": Command(
        "stats",
        run_stats,
        "[OPTIONS] [CONTAINER...]",
        "Show CPU, memory, network, disk and processes of containers, redrawn until ctrl-c.",
        flags=(
            ("a", "all", "bool", "", "Stopped containers too"),
            ("", "no-stream", "bool", "", "Print once"),
            ("", "format", "str", "FORMAT", "json, a template, or 'table …', e.g. '{{.Name}} {{.MemUsage}}'"),
            ("", "no-trunc", "bool", "", "Show everything in full"),
        ),
        most=-1,
        example="cove stats --no-stream web",
    ),
}
