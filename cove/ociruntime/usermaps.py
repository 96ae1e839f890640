"""Write the maps of a container's user namespace while its process waits for them (user_namespaces(7)).

With CAP_SETUID and CAP_SETGID they are written here; an ordinary user may map his own ids alone, and asks newuidmap(1)
and newgidmap(1), which go by /etc/subuid and /etc/subgid, for more.
"""

from __future__ import annotations

import errno
import os

from cove.model.errors import HostError, Unavailable

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

    from cove.runtime.oci import IdMapping, Linux


def write_maps(pid: int, linux: Linux) -> None:
    """Both maps of the process's user namespace. Raises HostError, Unavailable."""
    if is_own_map(linux):
        _write(pid, "setgroups", "deny")  # a gid map of one's own is allowed only then
    _write_map(pid, "uid", linux.uid_mappings, os.geteuid())
    _write_map(pid, "gid", linux.gid_mappings, os.getegid())


def is_own_map(linux: Linux) -> bool:
    """Whether an ordinary user maps his own group alone; setgroups(2) is denied then."""
    return os.geteuid() != 0 and _is_own(linux.gid_mappings, os.getegid())


def _is_own(mappings: Sequence[IdMapping], own: int) -> bool:
    return len(mappings) == 1 and mappings[0].size == 1 and mappings[0].host_id == own


def _write_map(pid: int, kind: str, mappings: Sequence[IdMapping], own: int) -> None:
    if os.geteuid() == 0 or _is_own(mappings, own):
        lines = "".join(f"{each.container_id} {each.host_id} {each.size}\n" for each in mappings)
        _write(pid, f"{kind}_map", lines)
        return
    numbers = [str(n) for each in mappings for n in (each.container_id, each.host_id, each.size)]
    program = f"new{kind}map"
    try:
        child = os.posix_spawnp(program, [program, str(pid), *numbers], os.environ, setsigmask=())
    except FileNotFoundError:
        raise Unavailable(
            f"linux.{kind}Mappings: {program} isn't installed: apt-get install uidmap"
        ) from None
    if os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) != 0:
        raise HostError(
            f"linux.{kind}Mappings: {program} refused them: give this user the ids in /etc/sub{kind}"
        )


def _write(pid: int, name: str, text: str) -> None:
    try:
        descriptor = os.open(f"/proc/{pid}/{name}", os.O_WRONLY | os.O_CLOEXEC)
        try:
            os.write(descriptor, text.encode())
        finally:
            os.close(descriptor)
    except OSError as error:
        reason = "overlapping or too many lines" if error.errno == errno.EINVAL else error.strerror
        raise HostError(f"the user namespace's {name} can't be written: {reason}") from None
