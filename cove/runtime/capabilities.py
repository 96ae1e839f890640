"""Capabilities: names, masks, and Docker's rules for adding and dropping them.

Pure. Numbers are those of linux/capability.h; a mask has bit N for capability N. What a container can
get is bounded by what this daemon itself may give (its bounding set), as in Docker.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import lru_cache

from cove.model.errors import Invalid

NAMES = tuple(
    f"CAP_{name}"
    for name in (
        "CHOWN DAC_OVERRIDE DAC_READ_SEARCH FOWNER FSETID KILL SETGID SETUID SETPCAP LINUX_IMMUTABLE "
        "NET_BIND_SERVICE NET_BROADCAST NET_ADMIN NET_RAW IPC_LOCK IPC_OWNER SYS_MODULE SYS_RAWIO "
        "SYS_CHROOT SYS_PTRACE SYS_PACCT SYS_ADMIN SYS_BOOT SYS_NICE SYS_RESOURCE SYS_TIME "
        "SYS_TTY_CONFIG MKNOD LEASE AUDIT_WRITE AUDIT_CONTROL SETFCAP MAC_OVERRIDE MAC_ADMIN SYSLOG "
        "WAKE_ALARM BLOCK_SUSPEND AUDIT_READ PERFMON BPF CHECKPOINT_RESTORE"
    ).split()
)
NUMBERS = {name: number for number, name in enumerate(NAMES)}
KNOWN = (1 << len(NAMES)) - 1


def mask(names: Iterable[str]) -> int:
    """The mask of full names; raises Invalid for one that doesn't exist."""
    bits = 0
    for name in names:
        number = NUMBERS.get(name)
        if number is None:
            raise Invalid(f'unknown capability: "{name}": use one of capabilities(7), e.g. CAP_NET_ADMIN')
        bits |= 1 << number
    return bits


@lru_cache(maxsize=256)
def names(bits: int) -> tuple[str, ...]:
    """The names in a mask, in the kernel's order; bits without a name are left out."""
    return tuple(name for number, name in enumerate(NAMES) if bits >> number & 1)


DEFAULT = mask(
    f"CAP_{name}"
    for name in (
        "CHOWN DAC_OVERRIDE FSETID FOWNER MKNOD NET_RAW SETGID SETUID SETFCAP SETPCAP NET_BIND_SERVICE "
        "SYS_CHROOT KILL AUDIT_WRITE"
    ).split()
)


def parse_names(given: Sequence[str], available: int) -> tuple[int, bool]:
    """Read `--cap-add`/`--cap-drop` values: any case, with or without CAP_. Returns mask and "ALL given".

    Raises Invalid, in Docker's words, for an unknown one and for one that this host can't give.
    """
    bits, everything = 0, False
    for item in given:
        name = item.upper()
        if name == "ALL":
            everything = True
            continue
        name = name if name.startswith("CAP_") else f"CAP_{name}"
        number = NUMBERS.get(name)
        if number is None:
            raise Invalid(f'unknown capability: "{name}"')
        if not available >> number & 1:
            raise Invalid(
                "capability not supported by your kernel or not available in the current environment: "
                f'"{name}"'
            )
        bits |= 1 << number
    return bits, everything


def container_mask(*, add: Sequence[str], drop: Sequence[str], privileged: bool, available: int) -> int:
    """The capabilities of a container, as Docker decides.

    Privileged: all that this host can give. `--cap-add ALL` starts from these, `--cap-drop ALL` from none,
    otherwise the default set; then drops are taken away and (but for add ALL) adds come on top.
    """
    if privileged:
        return available
    if not add and not drop:
        return DEFAULT & available
    dropped, drop_all = parse_names(drop, available)
    added, add_all = parse_names(add, available)
    if add_all:
        return available & ~dropped
    if drop_all:
        return added
    return (DEFAULT & available & ~dropped) | added
