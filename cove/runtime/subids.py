"""Subordinate ids: the ranges of /etc/subuid and /etc/subgid (subuid(5)) and the maps made of them.

Reads those two files, passwd and group. A map gives the container's ids from 0 on the ranges in the files' order
(as dockerd: by their starts).
"""

from __future__ import annotations

import grp
import pwd
from collections.abc import Collection
from pathlib import Path

import msgspec

from cove.model.errors import Invalid
from cove.runtime.oci import IdMapping
from cove.runtime.plan_inputs import IdMaps

DEFAULT_OWNER = "cove"
_EXAMPLE = 231072
_MAX_LINES = 340  # of a uid_map, user_namespaces(7)


class Range(msgspec.Struct, frozen=True):
    """`count` ids from `start` on."""

    start: int
    count: int


def parse_subids(text: str, owners: Collection[str]) -> tuple[Range, ...]:
    """The ranges of those lines `OWNER:START:COUNT` whose owner (a name or a number) is among `owners`; lines of
    another form are passed over, as newuidmap(1) does."""
    found = []
    for line in text.splitlines():
        fields = line.strip().split(":")
        if len(fields) == 3 and fields[0] in owners and fields[1].isdecimal() and fields[2].isdecimal():
            found.append(Range(int(fields[1]), int(fields[2])))
    return tuple(sorted((each for each in found if each.count > 0), key=lambda each: each.start))


def plan_map(ranges: Collection[Range], *, first: int = 0) -> tuple[IdMapping, ...]:
    """A map of the container's ids from `first` on to `ranges`, one after the other."""
    result, inside = [], first
    for each in ranges:
        result.append(IdMapping(container_id=inside, host_id=each.start, size=each.count))
        inside += each.count
    return tuple(result[:_MAX_LINES])


def find_remap(
    option: str, *, subuid: Path = Path("/etc/subuid"), subgid: Path = Path("/etc/subgid")
) -> IdMaps:
    """The maps for `--userns-remap`: USER, UID, USER:GROUP, or "default" for the user `cove`, who needs no account.

    Raises Invalid for a user that isn't there, and for one without ranges: it says which lines to add.
    """
    user, colon, group = option.partition(":")
    if option == "default":
        user = group = DEFAULT_OWNER
        uid_owners = gid_owners = {DEFAULT_OWNER}
    else:
        if not user or (colon and not group):
            raise Invalid(f"--userns-remap={option}: expected USER, USER:GROUP or default")
        uid_owners = _user_names(option, user)
        gid_owners = _group_names(option, group) if colon else uid_owners
    return IdMaps(
        plan_map(_ranges(option, subuid, uid_owners, user)),
        plan_map(_ranges(option, subgid, gid_owners, group or user)),
    )


def _ranges(option: str, file: Path, owners: Collection[str], shown: str) -> tuple[Range, ...]:
    ranges = parse_subids(read_subids(file), owners)
    if not ranges:
        raise Invalid(
            f"--userns-remap={option}: {file} has no range for {shown}: "
            f"add one, e.g. echo {shown}:{_EXAMPLE}:65536 >> {file}"
        )
    return ranges


def read_subids(file: Path) -> str:
    """The file's text; "" when there is none."""
    try:
        return file.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""


def _user_names(option: str, user: str) -> set[str]:
    try:
        found = pwd.getpwuid(int(user)) if user.isdecimal() else pwd.getpwnam(user)
    except KeyError:
        raise Invalid(f"--userns-remap={option}: no user {user}: make it with useradd") from None
    return {found.pw_name, str(found.pw_uid)}


def _group_names(option: str, group: str) -> set[str]:
    try:
        found = grp.getgrgid(int(group)) if group.isdecimal() else grp.getgrnam(group)
    except KeyError:
        raise Invalid(f"--userns-remap={option}: no group {group}: make it with groupadd") from None
    return {found.gr_name, str(found.gr_gid)}
