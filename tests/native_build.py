"""Builds of cove-init for tests, made when missing or stale; one process at a time builds."""

from __future__ import annotations

import fcntl
import functools
import os
import shutil
import subprocess
from pathlib import Path

ROOT = Path(__file__).parent.parent
_BUILDS = {
    "native": ((), "musl-gcc"),
    "native-asan": (("-Dsanitize=true", "--buildtype=debug"), ""),
    "native-fuzz": (("-Dfuzz=true", "--buildtype=debug"), "clang"),
}


@functools.cache
def build(name: str) -> Path:
    """The directory of an up-to-date build. Raises FileNotFoundError when a tool is missing."""
    if os.environ.get("COVE_LAB"):  # the lab's machine brings the build along (tests/lab), and no compiler
        if not (ROOT / "build" / name).is_dir():
            raise FileNotFoundError(f"the lab's machine has no build/{name}")
        return ROOT / "build" / name
    options, compiler = _BUILDS[name]
    for tool in ("meson", "ninja", compiler if compiler == "clang" else "gcc"):
        if shutil.which(tool) is None:
            raise FileNotFoundError(f"{tool} isn't installed")
    directory = ROOT / "build" / name
    directory.parent.mkdir(exist_ok=True)
    environment = dict(os.environ)
    if compiler and shutil.which(compiler):
        environment["CC"] = compiler
    with open(directory.parent / f".{name}.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (directory / "build.ninja").exists():
            _run(["meson", "setup", str(directory), str(ROOT / "native"), *options], environment)
        _run(["ninja", "-C", str(directory)], environment)
    return directory


def _run(command: list[str], environment: dict[str, str]) -> None:
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{' '.join(command)}:\n{done.stdout}{done.stderr}"
