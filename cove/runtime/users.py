"""Users: which ids a container's process gets, from the passwd and group files of its own root.

`resolve` is pure: bytes in, ids out. The readers open the two files by descriptor below a root with
openat2(2) RESOLVE_IN_ROOT, so no symlink of an image leads outside; without blocking, regular files only
and bounded in size, so that neither a FIFO (CVE-2024-9676) nor an endless file (CVE-2026-47262) holds the
daemon up. Numbers are digits only, 0 … 2**31-1 (CVE-2026-30892: "0x0", " 1" and "+1" are no ids). Nothing is
looked up by the host's NSS.
"""

from __future__ import annotations

import ctypes
import os
import stat
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from cove.model.errors import Invalid

MAX_ID = 2**31 - 1
MAX_FILE_BYTES = 4 << 20
MAX_LINE_BYTES = 1 << 20
MAX_ENTRIES = 65536  # of one file: four million short lines would hold the daemon up, and fill its memory
MAX_GROUPS = 65536  # NGROUPS_MAX, limits.h

_RANGE = f"uids and gids must be in range 0-{MAX_ID}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Resolved:
    """Who a process runs as. `groups` are all supplementary groups, the primary one first (as Docker)."""

    uid: int
    gid: int
    groups: tuple[int, ...]
    home: str = "/"

    def environment(self, env: Sequence[str]) -> tuple[str, ...]:
        """What `env` lacks: HOME, when it isn't set there (or set to nothing)."""
        if any(item.startswith("HOME=") and len(item) > 5 for item in env):
            return ()
        return (f"HOME={self.home}",)


@dataclass(frozen=True, slots=True)
class UserFiles:
    """The content of /etc/passwd and /etc/group; b"" where there is none."""

    passwd: bytes = b""
    group: bytes = b""


def resolve(files: UserFiles, user: str, group_add: Sequence[str] = ()) -> Resolved:
    """Docker's rules for `--user` and `--group-add`: "", name, uid, each with ":group" or ":gid".

    A numeric user or group needs no entry; a name does. With an explicit group the user's supplementary
    groups don't count. The first matching line wins. Raises Invalid in Docker's words.
    """
    name, _, group = user.partition(":")
    uid_given, gid_given = parse_id(name), parse_id(group)
    wanted_uid = 0 if not name else uid_given

    uid, gid, home, matched = wanted_uid, 0, "/", ""
    for fields in _lines(files.passwd, "passwd"):
        entry_uid = parse_entry_id(fields, 2)
        if entry_uid is None:
            continue
        if (entry_uid == wanted_uid) if wanted_uid is not None else (fields[0] == name):
            uid, gid = entry_uid, parse_entry_id(fields, 3) or 0
            matched = fields[0]
            home = fields[5] if len(fields) > 5 and fields[5] else "/"
            break
    if uid is None:
        raise Invalid(f"unable to find user {name}: no matching entries in passwd file")

    added = [(item, parse_id(item)) for item in group_add]
    by_name = (bool(group) and gid_given is None) or any(given is None for _, given in added)
    entries = list(_lines(files.group, "group")) if by_name or (matched and not group) else []
    supplementary: list[int] = []
    if group:
        gid = _find_group(entries, group) if gid_given is None else gid_given
    elif matched:
        for fields in entries:
            entry_gid = parse_entry_id(fields, 2)
            if entry_gid is not None and len(fields) > 3 and matched in fields[3].split(","):
                supplementary.append(entry_gid)

    for item, given in added:
        supplementary.append(_find_group(entries, item) if given is None else given)
    groups = tuple(dict.fromkeys([gid, *supplementary]))
    if len(groups) > MAX_GROUPS:
        raise Invalid(f"user {user!r} is in {len(groups)} groups: the kernel allows {MAX_GROUPS}")
    return Resolved(uid=uid, gid=gid, groups=groups, home=home)


def parse_id(text: str) -> int | None:
    """A user or group id: ASCII digits only. None when `text` isn't one (then it's a name).

    Raises Invalid when it is a number that is too large, or negative.
    """
    digits = text.removeprefix("-")
    if not digits or not digits.isascii() or not digits.isdigit():
        return None
    if text[0] == "-" or len(digits) > 10 or int(digits) > MAX_ID:
        raise Invalid(f"user or group {text[:32]!r}: {_RANGE}")
    return int(digits)


def parse_entry_id(fields: Sequence[str], index: int) -> int | None:
    """The id in a passwd(5) or group(5) line; None when it is missing, no number or out of range."""
    if index >= len(fields):
        return None
    text = fields[index]
    if not text.isascii() or not text.isdigit() or len(text) > 10 or int(text) > MAX_ID:
        return None
    return int(text)


def _find_group(entries: Sequence[Sequence[str]], name: str) -> int:
    for fields in entries:
        if fields[0] == name:
            gid = parse_entry_id(fields, 2)
            if gid is not None:
                return gid
    raise Invalid(f"unable to find group {name}: no matching entries in group file")


def _lines(content: bytes, file: str) -> Iterator[list[str]]:
    """The fields of each entry, as long as they are wanted; comments, blank and overlong lines are passed over."""
    start = count = 0
    while start < len(content):
        end = content.find(b"\n", start)
        end = len(content) if end < 0 else end
        line = content[start:end].strip()
        start = end + 1
        count += 1
        if count > MAX_ENTRIES:
            raise Invalid(f"/etc/{file} of the container has more than {MAX_ENTRIES} lines: make it shorter")
        if line and not line.startswith(b"#") and len(line) <= MAX_LINE_BYTES:
            yield line.decode("utf-8", "surrogateescape").split(":")


# --- reading, by descriptor -----------------------------------------------------------------------

_SYS_OPENAT2 = 437  # the same number on every architecture
_RESOLVE_NO_MAGICLINKS = 0x02
_RESOLVE_NO_SYMLINKS = 0x04
_RESOLVE_IN_ROOT = 0x10
_libc = ctypes.CDLL(None, use_errno=True)
_libc.syscall.restype = ctypes.c_long


class _OpenHow(ctypes.Structure):
    _fields_ = (("flags", ctypes.c_uint64), ("mode", ctypes.c_uint64), ("resolve", ctypes.c_uint64))


def open_in_root(root_fd: int, path: str, flags: int, *, symlinks: bool = True, in_root: bool = True) -> int:
    """openat2(2) of `path` with the directory `root_fd` as the root (or, not `in_root`, relative to it as
    openat(2) has it). Magic links are refused. Raises OSError."""
    resolve_flags = _RESOLVE_NO_MAGICLINKS | (_RESOLVE_IN_ROOT if in_root else 0)
    resolve_flags |= 0 if symlinks else _RESOLVE_NO_SYMLINKS
    how = _OpenHow(flags | os.O_CLOEXEC, 0, resolve_flags)
    fd = _libc.syscall(
        ctypes.c_long(_SYS_OPENAT2), ctypes.c_int(root_fd), ctypes.c_char_p(os.fsencode(path)),
        ctypes.byref(how), ctypes.c_size_t(ctypes.sizeof(how)),
    )  # fmt: skip
    if fd < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number), path)
    return int(fd)


def read_user_files(root_fd: int) -> UserFiles:
    """The two files below the directory `root_fd`. A missing or unreadable one, or what is no regular file,
    counts as empty, as in Docker; one larger than 4 MiB raises Invalid."""
    return UserFiles(_read_small(root_fd, "/etc/passwd"), _read_small(root_fd, "/etc/group"))


def _read_small(root_fd: int, path: str, *, symlinks: bool = True) -> bytes:
    try:
        fd = open_in_root(root_fd, path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY, symlinks=symlinks)
    except OSError:
        return b""
    try:
        info = os.fstat(fd)
        if not stat.S_ISREG(info.st_mode):
            return b""
        chunks, left = [], MAX_FILE_BYTES + 1
        while left > 0 and (chunk := os.read(fd, min(left, 1 << 16))):
            chunks.append(chunk)
            left -= len(chunk)
    except OSError:
        return b""
    finally:
        os.close(fd)
    if left <= 0:
        raise Invalid(f"{path} of the container is larger than {MAX_FILE_BYTES} bytes: make it smaller")
    return b"".join(chunks)


def resolve_user(root_fd: int, user: str, group_add: Sequence[str] = ()) -> Resolved:
    """Look `user` up in the root `root_fd` (a descriptor of a directory, which stays the caller's)."""
    return resolve(read_user_files(root_fd), user, group_add)


def read_layered_user_files(directories: Sequence[str]) -> UserFiles | None:
    """The two files as an overlay of `directories` (highest first) would show them, without mounting it.

    None when only a mounted overlay can tell: a symlink, a whiteout or an opaque directory is there. For an
    image's layers this answer can be kept as long as the image; a container's upper directory comes first.
    """
    found: list[bytes] = []
    for name in ("passwd", "group"):
        content = b""
        for directory in directories:
            answer = _read_layer(directory, name)
            if answer is None:
                return None
            if answer is not _ABSENT:
                content = answer
                break
        found.append(content)
    return UserFiles(*found)


_OVERLAY_NOTES = frozenset(
    f"{kind}.overlay.{name}" for kind in ("trusted", "user") for name in ("opaque", "redirect")
)
_ABSENT = bytes(bytearray(b"absent"))  # an object of its own, compared by identity


def _read_layer(directory: str, name: str) -> bytes | None:
    """The file of one layer; _ABSENT when the layers below it decide, None when this can't be told."""
    etc = os.path.join(directory, "etc")
    try:
        info = os.lstat(etc)
    except FileNotFoundError:
        return _ABSENT
    except OSError:
        return None
    if not stat.S_ISDIR(info.st_mode):
        return None
    try:
        for attribute in os.listxattr(etc, follow_symlinks=False):
            if attribute in _OVERLAY_NOTES:
                return None
        info = os.lstat(os.path.join(etc, name))
    except FileNotFoundError:
        return _ABSENT
    except OSError:
        return None
    if not stat.S_ISREG(info.st_mode):
        return None
    root_fd = os.open(directory, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        return _read_small(root_fd, f"/etc/{name}", symlinks=False)
    finally:
        os.close(root_fd)
