"""A program that does what a hostile one would (probe.c), built once, for containers to run."""

from __future__ import annotations

import fcntl
import functools
import os
import platform
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.native_build import ROOT

# asm/unistd_64.h, asm/unistd_32.h
SOCKET, KEYCTL, IOCTL, PTRACE, MKNOD, RENAMEAT2, ADD_KEY, OPENAT2 = 41, 250, 16, 101, 133, 316, 248, 437
PRCTL, SETNS, BPF, MOUNT, UNSHARE, OPEN_BY_HANDLE_AT, PIDFD_GETFD, IO_URING_SETUP = (
    157, 308, 321, 165, 272, 304, 438, 425,
)  # fmt: skip
SOCKETCALL_32 = 102
AT_FDCWD, RENAME_EXCHANGE = -100, 2


@functools.cache
def probe() -> Path:
    """The program, which needs no library. Skips the test where it can't be built."""
    if platform.machine() != "x86_64":
        pytest.skip("the probe's 32-bit calls are x86-64's")
    if shutil.which("musl-gcc") is None:
        pytest.skip("musl-gcc isn't installed (Debian: musl-tools)")
    source = Path(__file__).with_name("probe.c")
    target = ROOT / "build/probe"
    target.parent.mkdir(exist_ok=True)
    with open(target.parent / ".probe.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not target.exists() or target.stat().st_mtime < source.stat().st_mtime:
            made = target.with_suffix(".new")
            subprocess.run(
                ["musl-gcc", "-static", "-no-pie", "-fno-pie", "-O1", "-Wall", "-o", str(made), str(source)],
                check=True, capture_output=True, timeout=120,
            )  # fmt: skip
            os.rename(made, target)
    return target
