"""Write the maps of a user namespace that a process has entered (user_namespaces(7)). Synchronous.

Root writes them itself. An ordinary user may map itself alone, after giving up setgroups(2); for more ids the
set-user-ID programs newuidmap(1) and newgidmap(1) check /etc/subuid and /etc/subgid and write the maps.
"""

from __future__ import annotations

import os

from cove.model.errors import HostError, Unavailable

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

    from cove.runtime.oci import IdMapping

_HELPER_BOUND_S = 10.0


def keeps_setgroups(gid_mappings: Sequence[IdMapping]) -> bool:
    """Whether setgroups(2) goes on working in a namespace with that map, made by this process's user."""
    return os.geteuid() == 0 or not _is_own(gid_mappings, os.getegid())


def write_maps(pid: int, uid_mappings: Sequence[IdMapping], gid_mappings: Sequence[IdMapping]) -> None:
    """Give the user namespace of process `pid`, which has none yet, its maps. Raises HostError when the kernel or
    the helper refuses them, Unavailable without the helper."""
    if os.geteuid() == 0:
        _write(pid, "uid_map", uid_mappings)
        _write(pid, "gid_map", gid_mappings)
        return
    if _is_own(gid_mappings, os.getegid()):
        _write_file(pid, "setgroups", "deny")
        _write(pid, "gid_map", gid_mappings)
    else:
        _call_helper("newgidmap", pid, gid_mappings, "/etc/subgid")
    if _is_own(uid_mappings, os.geteuid()):
        _write(pid, "uid_map", uid_mappings)
    else:
        _call_helper("newuidmap", pid, uid_mappings, "/etc/subuid")


def _is_own(mappings: Sequence[IdMapping], own: int) -> bool:
    return len(mappings) == 1 and mappings[0].size == 1 and mappings[0].host_id == own


def _write(pid: int, name: str, mappings: Sequence[IdMapping]) -> None:
    lines = "".join(f"{each.container_id} {each.host_id} {each.size}\n" for each in mappings)
    _write_file(pid, name, lines)


def _write_file(pid: int, name: str, text: str) -> None:
    """In one write(2), as the kernel wants it."""
    try:
        descriptor = os.open(f"/proc/{pid}/{name}", os.O_WRONLY | os.O_CLOEXEC)
        try:
            os.write(descriptor, text.encode())
        finally:
            os.close(descriptor)
    except OSError as error:
        shown = text.replace("\n", ", ").rstrip(", ")
        raise HostError(f"/proc/{pid}/{name} does not take {shown!r}: {error.strerror}") from None


def _call_helper(name: str, pid: int, mappings: Sequence[IdMapping], table: str) -> None:
    import subprocess  # only ordinary users pay for it

    numbers = [str(number) for each in mappings for number in (each.container_id, each.host_id, each.size)]
    try:
        done = subprocess.run(
            [name, str(pid), *numbers], capture_output=True, text=True, timeout=_HELPER_BOUND_S, check=False
        )
    except FileNotFoundError:
        raise Unavailable(
            f"{name} is missing, which maps more ids than one's own: install it (Debian: uidmap)"
        ) from None
    except subprocess.TimeoutExpired:
        raise HostError(f"{name} did not end within {_HELPER_BOUND_S:g} s") from None
    if done.returncode:
        raise HostError(f"{name} refused the map {' '.join(numbers)}, see {table}: {done.stderr.strip()}")
