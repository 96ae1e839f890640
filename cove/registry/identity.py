"""Whose the registry's directory is, and becoming that user: root is not kept.

The directory may lie below one that only root may enter, as the daemon's does. Then the process gets a mount namespace
of its own, in which the registry's directory stands in the closed one's place: it can be reached by a path, and what
lay beside it can't. Order that must hold: the directory is given to its user, mounts, root goes.
"""

from __future__ import annotations

import ctypes
import errno
import grp
import os
import pwd
from dataclasses import dataclass
from pathlib import Path

from cove.image.sandbox import CLONE_NEWNS, MS_BIND, MS_PRIVATE, MS_REC, mount
from cove.model.errors import HostError, Invalid

USER = "cove-registry"  # where the system has such a user
NOBODY = 65534
_PR_SET_NO_NEW_PRIVS = 38


@dataclass(frozen=True, slots=True)
class Identity:
    """A user to become."""

    uid: int
    gid: int
    name: str


def plan_identity(given: str, root: Path) -> Identity | None:
    """Who serves: --run-as, else the owner of the directory, else the user cove-registry, else nobody. None: stay, for
    whoever isn't root. Raises Invalid."""
    if os.geteuid() != 0:
        if given:
            raise Invalid(f"--run-as {given}: only root can become another user; leave the option out")
        return None
    if given:
        return _find(given)
    try:
        owner = root.stat()
    except FileNotFoundError:
        owner = None
    if owner is not None and owner.st_uid != 0:
        return Identity(owner.st_uid, owner.st_gid, str(owner.st_uid))
    try:
        return _find(USER)
    except Invalid:
        return Identity(NOBODY, NOBODY, "nobody")


def _find(text: str) -> Identity:
    try:
        entry = pwd.getpwuid(int(text)) if text.isdecimal() else pwd.getpwnam(text)
    except KeyError:
        if text.isdecimal() and 0 < int(text) < 1 << 32:
            return Identity(int(text), int(text), text)
        raise Invalid(
            f"--run-as {text}: there is no such user; make it with useradd --system {text}, or name another one"
        ) from None
    return Identity(entry.pw_uid, entry.pw_gid, entry.pw_name)


def hand_over(root: Path, identity: Identity | None) -> None:
    """Make the directory and give it to the user who serves. Raises HostError."""
    try:
        root.mkdir(mode=0o700, parents=True, exist_ok=True)
        if identity is not None and root.stat().st_uid != identity.uid:
            for path in (root, *root.rglob("*")):
                os.chown(path, identity.uid, identity.gid, follow_symlinks=False)
    except OSError as error:
        raise HostError(f"the registry's directory {root}: {error.strerror}") from error


def enter(root: Path, identity: Identity | None) -> Path:
    """Where the new user finds the directory. Raises HostError, with a way out, when that can't be had."""
    root = root.resolve()
    if identity is None or (closed := _find_closed(root, identity)) is None:
        return root
    libc = ctypes.CDLL(None, use_errno=True)
    try:
        if libc.unshare(CLONE_NEWNS) < 0:
            raise HostError(os.strerror(ctypes.get_errno()))
        mount("", "/", "", MS_REC | MS_PRIVATE)
        mount(str(root), str(closed), "", MS_BIND)
    except HostError as error:
        raise HostError(
            f"{identity.name} may not enter {closed}, and no mount can show it {root} ({error}): choose a --root that "
            "it may enter, or another user with --run-as"
        ) from None
    return closed


def _find_closed(root: Path, identity: Identity) -> Path | None:
    """The uppermost directory above `root` that this user may not enter."""
    if identity.uid == 0:
        return None
    for path in reversed(root.parents):
        found = path.stat()
        if found.st_uid == identity.uid:
            allowed = found.st_mode & 0o100
        elif found.st_gid == identity.gid or found.st_gid in _groups(identity):
            allowed = found.st_mode & 0o010
        else:
            allowed = found.st_mode & 0o001
        if not allowed:
            return path
    return None


def become(identity: Identity | None) -> None:
    """Give up root for good: user, groups and every capability go (setuid(2), capabilities(7)), and no program that is
    executed brings any back (PR_SET_NO_NEW_PRIVS)."""
    if identity is not None and os.geteuid() == 0 and identity.uid != 0:
        os.setgroups(_groups(identity))
        os.setresgid(identity.gid, identity.gid, identity.gid)
        os.setresuid(identity.uid, identity.uid, identity.uid)
        assert os.getresuid() == (identity.uid,) * 3
    if ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) < 0:
        raise HostError(f"no_new_privs: {os.strerror(ctypes.get_errno() or errno.EINVAL)}")


def _groups(identity: Identity) -> list[int]:
    return [each.gr_gid for each in grp.getgrall() if identity.name in each.gr_mem]
