"""What the DNS server lets go of before it reads a first query: rights, files, the host's processes.

Runs in a process with one thread that has loaded all that it needs. An ordinary user's daemon may have no second user
to become; its server keeps root's number, and no capability.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import resource
import signal
import struct
from collections.abc import Sequence

NOBODY = 65534
CAP_NET_ADMIN, CAP_SYS_ADMIN = 12, 21
_LOG_BYTES = 1 << 20
_MEMORY_BYTES = 1 << 30
_PR_SET_PDEATHSIG, _PR_SET_DUMPABLE, _PR_SET_NAME, _PR_CAPBSET_DROP = 1, 4, 15, 24
_PR_SET_NO_NEW_PRIVS, _PR_CAP_AMBIENT, _PR_CAP_AMBIENT_CLEAR_ALL = 38, 47, 4
_CAPABILITY_VERSION_3 = 0x20080522
_libc = ctypes.CDLL(None, use_errno=True)


def set_name(name: str) -> None:
    """What ps(1) shows."""
    _libc.prctl(_PR_SET_NAME, name.encode(), 0, 0, 0)


def give_up_everything(root: str, parent: int) -> None:
    """Be nobody, in a directory with nothing in it, and end with the parent. Raises OSError."""
    os.chroot(root)
    os.chdir("/")
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_FSIZE, (_LOG_BYTES, _LOG_BYTES))
    resource.setrlimit(resource.RLIMIT_AS, (_MEMORY_BYTES, _MEMORY_BYTES))
    _drop_bounding_set()  # which root alone may
    with contextlib.suppress(OSError):  # a user namespace may forbid the one and not know the other
        os.setgroups([])
    with contextlib.suppress(OSError):
        os.setresgid(NOBODY, NOBODY, NOBODY)
        os.setresuid(NOBODY, NOBODY, NOBODY)
    keep_capabilities(())
    _check(_libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0))
    _check(_libc.prctl(_PR_SET_DUMPABLE, 0, 0, 0, 0))
    _check(_libc.prctl(_PR_SET_PDEATHSIG, int(signal.SIGKILL), 0, 0, 0))
    if os.getppid() != parent:
        os._exit(1)


def keep_capabilities(keep: Sequence[int]) -> None:
    """Give up every capability but these, for good. Raises OSError."""
    _libc.prctl(_PR_CAP_AMBIENT, _PR_CAP_AMBIENT_CLEAR_ALL, 0, 0, 0)
    _drop_bounding_set()
    mask = sum(1 << capability for capability in keep)
    low, high = mask & 0xFFFFFFFF, mask >> 32
    header = struct.pack("=Ii", _CAPABILITY_VERSION_3, 0)
    _check(_libc.capset(header, struct.pack("=6I", low, low, 0, high, high, 0)))


def _drop_bounding_set() -> None:
    number = 0
    while _libc.prctl(_PR_CAPBSET_DROP, number, 0, 0, 0) == 0:
        number += 1


def _check(result: int) -> None:
    if result < 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))
