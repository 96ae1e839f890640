"""A layer as an EROFS image, by mkfs.erofs: for virtual machines, and to be mounted. Inside a worker.

The image has what the directory has: owners, modes, times to the nanosecond, attributes (overlayfs' own, too) and
whiteouts as they are, so that a stack of images mounts as the stack of directories does. It is the same for the same
files: no identifier, and the time of building is a constant. It isn't compressed: pages are read as they are.

mkfs.erofs reads names and attributes that strangers wrote. It runs in namespaces of its own, with nothing to write but
its image, two capabilities, and a filter for file work.
"""

from __future__ import annotations

import os
import shutil
import subprocess

from cove.image import sandbox
from cove.image.tooljobs import BuildErofs, ErofsBuilt
from cove.model.errors import HostError, Unavailable

_NO_UUID = "00000000-0000-0000-0000-000000000000"
# mkfs.erofs takes it as the time of building and cuts later times off: what 32 bits hold (SOURCE_DATE_EPOCH).
_EPOCH = "4294967295"
_CALLS = (
    *("execve", "wait4", "waitid", "vfork", "fork", "pipe2", "dup2", "dup3", "prctl", "set_tid_address"),
    *(
        "prlimit64",
        "getuid",
        "geteuid",
        "getgid",
        "getegid",
        "getppid",
        "uname",
        "sysinfo",
        "getcwd",
        "getrusage",
    ),
    *("gettimeofday", "fork", "setsid", "tgkill", "kill", "fgetxattr", "lgetxattr"),
)


def build(job: BuildErofs, calls: sandbox.FileCalls) -> ErofsBuilt:
    """Make the image. Unavailable: there is no mkfs.erofs. HostError."""
    program = shutil.which("mkfs.erofs", path="/usr/local/sbin:/usr/sbin:/sbin:/usr/bin:/bin")
    if program is None:
        raise Unavailable("there is no mkfs.erofs on this host: install erofs-utils")
    sandbox.unshare_all()
    sandbox.read_only_but(job.staging)
    os.chdir(job.staging)
    sandbox.set_limits()
    sandbox.keep_capabilities((sandbox.CAP_DAC_OVERRIDE, sandbox.CAP_SYS_ADMIN), programs=True)
    calls.allow(_CALLS)
    calls.apply()
    done = subprocess.run(
        [program, "--quiet", "-U", _NO_UUID, job.image, job.layer],
        env={"SOURCE_DATE_EPOCH": _EPOCH, "LC_ALL": "C"},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        preexec_fn=sandbox.die_with_parent,
        check=False,
    )
    if done.returncode:
        lines = done.stderr.decode(errors="replace").strip().splitlines() or [
            f"exit status {done.returncode}"
        ]
        raise HostError(f"mkfs.erofs: {lines[-1][:200]}")
    fd = os.open(job.image, os.O_RDONLY)
    try:
        os.fsync(fd)
        return ErofsBuilt(bytes=os.fstat(fd).st_size)
    finally:
        os.close(fd)
