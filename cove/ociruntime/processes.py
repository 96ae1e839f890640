"""`list` and `ps`: tables of containers and of a container's processes."""

from __future__ import annotations

import os

from cove.model import wirejson
from cove.model.errors import CoveError, HostError, Invalid
from cove.ociruntime import cgroup
from cove.ociruntime.control import describe
from cove.ociruntime.state import list_ids, load

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

    from cove.ociruntime.main import Call


def list_command(call: Call) -> int:
    form = _format(call)
    found = []
    for name in list_ids(call.root):
        try:
            container = load(call.root, name)
            found.append({**describe(container), "owner": _owner(container.directory)})
        except (CoveError, OSError) as error:
            call.log.warn(f"{name}: {error}")  # deleted meanwhile, or damaged: the others are shown
    if call.options.on("quiet"):
        for row in found:
            print(row["id"])
    elif form == "json":
        print(wirejson.dumps(found or None))
    else:
        columns = ("id", "pid", "status", "bundle", "created", "owner")
        rows = [
            tuple(name.upper() for name in columns),
            *(tuple(str(row[name]) for name in columns) for row in found),
        ]
        print_table(rows)
    return 0


def print_table(rows: Sequence[tuple[str, ...]]) -> None:
    """Columns as Go's tabwriter aligns them for runc: three spaces between, twelve characters at least."""
    widths = [max(12, *(len(row[i]) + 3 for row in rows)) for i in range(len(rows[0]) - 1)]
    for row in rows:
        print("".join(cell.ljust(width) for cell, width in zip(row, widths, strict=False)) + row[-1])


def _owner(directory: str) -> str:
    import pwd

    uid = os.stat(directory).st_uid
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return f"#{uid}"


def _format(call: Call) -> str:
    form = call.options.text("format") or "table"
    if form not in ("table", "json"):
        raise Invalid(f"invalid format option {form!r}: use table or json")
    return form


def ps_command(call: Call) -> int:
    form = _format(call)
    name, *arguments = call.options.args
    container = load(call.root, name)
    pids = cgroup.list_pids(container.data["cgroups"])
    if not container.data["cgroups"] and container.lives():  # an ordinary user's, without a cgroup
        pids = [container.pid]
    if form == "json":
        print(wirejson.dumps(pids))
        return 0
    head, *lines = _run_ps(arguments or ["-ef"]).splitlines()
    titles = head.split()
    if "PID" not in titles:
        raise Invalid("couldn't find PID field in ps output: choose options that show it, e.g. -ef")
    column = titles.index("PID")
    print(head)
    for line in lines:
        fields = line.split()
        if len(fields) > column and fields[column].isdecimal() and int(fields[column]) in pids:
            print(line)
    return 0


def _run_ps(arguments: Sequence[str]) -> str:
    import subprocess

    try:
        done = subprocess.run(
            ["ps", *arguments], capture_output=True, text=True, errors="replace", check=False
        )
    except FileNotFoundError:
        raise HostError("ps isn't installed: apt-get install procps") from None
    if done.returncode != 0:
        raise Invalid(f"ps {' '.join(arguments)}: {(done.stderr or done.stdout).strip()}")
    return done.stdout
