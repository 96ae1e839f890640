"""Describe the machine and the versions, for the page and the reader. Reads only."""

from __future__ import annotations

import os
import platform
import re
import subprocess
import time
from pathlib import Path

from bench.cove import ROOT
from bench.room import CGROUPS, hierarchies
from bench.workdir import MOUNT_POINT


def describe_machine(directory: Path) -> list[tuple[str, str]]:
    """What the figures depend on: (name, value) pairs. `directory` is where the data lies."""
    return [
        ("date", time.strftime("%Y-%m-%d")),
        ("CPU", f"{cpu_model()}, {os.cpu_count()} cores"),
        ("memory", f"{memory_gib():.1f} GiB"),
        ("kernel", platform.release()),
        ("cgroups", cgroup_mode()),
        ("filesystem of the data", filesystem_of(directory)),
        ("load before", load_average()),
        ("Cove", run(["git", "-C", str(ROOT), "rev-parse", "--short", "HEAD"])),
        ("Python", platform.python_version()),
        ("dockerd", version(["dockerd", "--version"])),
        ("containerd", version(["containerd", "--version"])),
        ("runc", version(["runc", "--version"])),
        ("docker CLI", version(["docker", "--version"])),
    ]


def load_average() -> str:
    """How busy the machine is: over 1, 5 and 15 minutes (proc(5), loadavg)."""
    return ", ".join(f"{value:.2f}" for value in os.getloadavg()) + " (1, 5, 15 minutes)"


def cpu_model() -> str:
    found = re.search(r"^model name\s*:\s*(.+)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
    return found[1].strip() if found else platform.machine()


def memory_gib() -> float:
    found = re.search(r"^MemTotal:\s*(\d+) kB", Path("/proc/meminfo").read_text(), re.MULTILINE)
    return int(found[1]) / 1024 / 1024 if found else 0.0


def cgroup_mode() -> str:
    roots = hierarchies()
    if roots == [CGROUPS]:
        return "v2"
    return "v1: " + ", ".join(root.name for root in roots)


def filesystem_of(directory: Path) -> str:
    kind = run(["findmnt", "--noheadings", "--output", "FSTYPE,SOURCE", "--target", str(directory)])
    return " on ".join(kind.split()) + (", made for this run" if directory.name == MOUNT_POINT else "")


def version(argv: list[str]) -> str:
    """The first version number that a program prints of itself."""
    found = re.search(r"\d+\.\d+[\w.+~-]*", run(argv))
    return found[0] if found else "not installed"


def run(argv: list[str]) -> str:
    path = os.environ.get("PATH", "") + ":/usr/sbin:/sbin"
    try:
        done = subprocess.run(
            argv, capture_output=True, text=True, timeout=20, env=os.environ | {"PATH": path}
        )
    except (OSError, subprocess.SubprocessError):
        return ""
    return done.stdout.strip()
