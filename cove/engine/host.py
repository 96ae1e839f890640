"""Facts of this host that `info` and `top` show. Reads /proc, /etc/os-release and runs ps(1) of the host."""

from __future__ import annotations

import asyncio
import os
import shlex
from collections.abc import Collection
from pathlib import Path

from cove.engine.types import Top
from cove.model.errors import HostError, Invalid, Unavailable


def operating_system() -> tuple[str, str]:
    """PRETTY_NAME and VERSION_ID of os-release(5)."""
    for path in ("/etc/os-release", "/usr/lib/os-release"):
        try:
            text = Path(path).read_text(encoding="utf-8", errors="replace")
        except OSError:
            continue
        fields = {}
        for line in text.splitlines():
            key, eq, value = line.partition("=")
            if eq:
                fields[key.strip()] = value.strip().strip("\"'")
        return fields.get("PRETTY_NAME", "Linux"), fields.get("VERSION_ID", "")
    return "Linux", ""


def memory_bytes() -> int:
    """MemTotal of proc_meminfo(5)."""
    with open("/proc/meminfo", encoding="ascii") as file:
        for line in file:
            if line.startswith("MemTotal:"):
                return int(line.split()[1]) * 1024
    return 0


async def list_processes(pids: Collection[int], ps_args: str) -> Top:
    """The rows of the host's `ps ARGS` that belong to `pids`; arguments must keep a PID column.

    Raises Invalid for arguments that ps refuses or that show no PID, Unavailable without ps.
    """
    try:
        args = shlex.split(ps_args) or ["-ef"]
    except ValueError as error:
        raise Invalid(f"ps_args {ps_args!r}: {error}") from None
    for arg in args:
        if "\0" in arg:
            raise Invalid("ps_args: a NUL byte is not allowed")
    try:
        process = await asyncio.create_subprocess_exec(
            "ps", *args, stdin=asyncio.subprocess.DEVNULL, stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE, env={"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "LC_ALL": "C.UTF-8"},
        )  # fmt: skip
    except FileNotFoundError:
        raise Unavailable("top needs the host's ps(1), which is missing: install procps") from None
    out, err = await process.communicate()
    if process.returncode != 0:
        message = err.decode(errors="replace").strip().splitlines()
        raise HostError(
            f"Error running ps: {message[0] if message else 'exit status ' + str(process.returncode)}"
        )
    lines = out.decode(errors="replace").splitlines()
    titles = lines[0].split() if lines else []
    if "PID" not in titles:
        raise Invalid("Couldn't find PID field in ps output: give ps_args that show it, e.g. -eo pid,comm")
    column = titles.index("PID")
    wanted = {str(pid) for pid in pids}
    rows = []
    for line in lines[1:]:
        fields = line.split(None, len(titles) - 1)
        if len(fields) > column and fields[column] in wanted:
            rows.append(fields)
    return Top(titles=titles, processes=rows)


def host_name() -> str:
    return os.uname().nodename
