"""What a smaller image would keep: the files that were opened, and what they need around them. Inside a worker.

Kept are the files that were opened or are asked for by a pattern; the directories on the way to them, those that were
opened, and those that are empty; links that lead to something kept; and a few files that a system is told by
(`ALWAYS`): users, groups, name resolution, the release, and the databases of packages, by which scanners still know
what the rest came from. What was only looked at (stat(2)) and never opened isn't known and isn't kept.
"""

from __future__ import annotations

import heapq
import os
import posixpath
import stat
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from cove.image.globs import matches, parse_patterns
from cove.image.stack import Item, Stack, shown
from cove.image.tooljobs import Share, SizedPath, Slimmed

ALWAYS = (
    *("etc/passwd", "etc/group", "etc/nsswitch.conf", "etc/hosts", "etc/resolv.conf", "etc/hostname"),
    *("etc/os-release", "usr/lib/os-release", "etc/ld.so.cache", "etc/ld.so.conf", "etc/localtime"),
    *("var/lib/dpkg/status", "lib/apk/db/installed", "usr/lib/apk/db/installed", "var/lib/rpm/rpmdb.sqlite"),
    *("usr/lib/sysimage/rpm/rpmdb.sqlite",),
)
_LINKS_MAX = 40  # as the kernel has it, path_resolution(7)
_LISTED = 40
_LIST_BYTES = 16 << 20  # of one package's list
_LISTS_BYTES = 256 << 20
_OWNED_MAX = 2_000_000


@dataclass(slots=True)
class Keep:
    """What is kept, by path."""

    files: set[bytes] = field(default_factory=set)
    directories: set[bytes] = field(default_factory=set)
    links: set[bytes] = field(default_factory=set)
    missing: list[str] = field(default_factory=list)

    def keeps(self, item: Item) -> bool:
        """Whether an entry of the stack is kept."""
        if item.below is not None:
            return item.path in self.directories
        return item.path in self.files or item.path in self.links


def plan_keep(stack: Stack, opened: Sequence[bytes], include: Sequence[str]) -> Keep:
    """Decide. `opened`: absolute paths as the kernel has them. Invalid."""
    patterns = parse_patterns(include)
    wanted = {path.strip(b"/") for path in opened} | {path.encode() for path in ALWAYS}
    used: set[int] = set()
    keep = Keep()
    links: dict[bytes, bytes] = {}
    filled: set[bytes] = set()
    directories: list[bytes] = []
    for item in stack.walk():
        if item.whiteout:
            continue
        filled.add(_above(item.path))
        parts = item.path.split(b"/") if patterns else []
        number = next((n for n, pattern in enumerate(patterns) if matches(pattern, parts)), -1)
        used.add(number)
        asked = number >= 0 or item.path in wanted
        if item.below is not None:
            directories.append(item.path)
            if asked:
                keep.directories.add(item.path)
        elif stat.S_ISLNK(item.status.st_mode):
            links[item.path] = _read_link(stack, item)
            if asked:
                keep.links.add(item.path)
        elif asked:
            keep.files.add(item.path)
    keep.directories.update(path for path in directories if path not in filled)
    for path in [*keep.files, *keep.links, *keep.directories]:
        _keep_above(keep, path)
    _keep_links(keep, links)
    keep.missing = [include[n] for n in range(len(patterns)) if n not in used]
    return keep


def _keep_links(keep: Keep, links: dict[bytes, bytes]) -> None:
    """Links that lead to what is kept; a link that was asked for brings its target's directory only."""
    for path in links:
        target = resolve(path, links)
        if target in keep.files or target in keep.directories or target in keep.links or target == b"":
            keep.links.add(path)
    for path in list(keep.links):
        _keep_above(keep, path)
    # A directory that is on the way to a link only may itself be behind another link.
    for path in links:
        if path not in keep.links and resolve(path, links) in keep.directories:
            keep.links.add(path)
            _keep_above(keep, path)


def _keep_above(keep: Keep, path: bytes) -> None:
    while (path := _above(path)) and path not in keep.directories:
        keep.directories.add(path)


def _above(path: bytes) -> bytes:
    return path.rpartition(b"/")[0]


def resolve(path: bytes, links: dict[bytes, bytes]) -> bytes:
    """Where a path leads to, all links followed, within the image. A circle leads nowhere: to itself."""
    todo = path.split(b"/")[::-1]
    done: list[bytes] = []
    followed = 0
    while todo:
        part = todo.pop()
        if part in (b"", b"."):
            continue
        if part == b"..":
            done = done[:-1]
            continue
        target = links.get(b"/".join([*done, part]))
        if target is None:
            done.append(part)
            continue
        followed += 1
        if followed > _LINKS_MAX:
            return path
        if target.startswith(b"/"):
            done = []
        todo += target.split(b"/")[::-1]
    return b"/".join(done)


def _read_link(stack: Stack, item: Item) -> bytes:
    fd = stack.open(item.layer, item.path, os.O_PATH | os.O_NOFOLLOW)
    try:
        return os.readlink(b"", dir_fd=fd)
    finally:
        os.close(fd)


# --- the account ----------------------------------------------------------------------------


class _Sum:
    def __init__(self) -> None:
        self.kept_files = self.kept_bytes = self.files = self.bytes = 0

    def add(self, size: int, kept: bool) -> None:
        self.files += 1
        self.bytes += size
        if kept:
            self.kept_files += 1
            self.kept_bytes += size

    def share(self, name: str) -> Share:
        return Share(
            name=name,
            kept_files=self.kept_files,
            kept_bytes=self.kept_bytes,
            files=self.files,
            bytes=self.bytes,
        )


def plan_slim(stack: Stack, opened: Sequence[bytes], include: Sequence[str]) -> Slimmed:
    """What would be kept and left out: in all, by layer, directory and package."""
    keep = plan_keep(stack, opened, include)
    owners = _package_files(stack)
    total = _Sum()
    layers: dict[int, _Sum] = {}
    directories: dict[bytes, _Sum] = {}
    packages: dict[str, _Sum] = {}
    largest: list[tuple[int, bytes]] = []
    for item in stack.walk():
        if item.whiteout or not stat.S_ISREG(item.status.st_mode):
            continue
        size, kept = item.status.st_size, item.path in keep.files
        total.add(size, kept)
        layers.setdefault(item.layer, _Sum()).add(size, kept)
        directories.setdefault(b"/".join(item.path.split(b"/")[:-1][:2]), _Sum()).add(size, kept)
        packages.setdefault(owners.get(item.path, ""), _Sum()).add(size, kept)
        if not kept:
            (heapq.heappush if len(largest) < _LISTED else heapq.heappushpop)(largest, (size, item.path))
    return Slimmed(
        kept_files=total.kept_files,
        kept_bytes=total.kept_bytes,
        files=total.files,
        bytes=total.bytes,
        layers=tuple(layers[number].share(str(number + 1)) for number in sorted(layers)),
        directories=tuple(
            one.share(shown(path))
            for path, one in sorted(directories.items(), key=lambda pair: -pair[1].bytes)[:200]
        ),
        packages=tuple(
            one.share(name)
            for name, one in sorted(packages.items(), key=lambda pair: -pair[1].bytes)
            if owners
        ),
        largest_left=tuple(
            SizedPath(path=shown(path), bytes=size) for size, path in sorted(largest, reverse=True)
        ),
        missing=tuple(keep.missing),
    )


def _package_files(stack: Stack) -> dict[bytes, str]:
    """Which package a file came with, by dpkg's lists (dpkg-query(1), --listfiles) and apk's database (apk(5))."""
    owners: dict[bytes, str] = {}
    top = {
        item.path: _read_link(stack, item)
        for item in stack.read(stack.root)
        if stat.S_ISLNK(item.status.st_mode)
    }
    budget = _LISTS_BYTES
    for item in stack.walk():
        if not stat.S_ISREG(item.status.st_mode):
            continue
        if item.path.startswith(b"var/lib/dpkg/info/") and item.path.endswith(b".list"):
            pairs = _dpkg_list(item, data := _read_list(stack, item, budget))
        elif item.path in (b"lib/apk/db/installed", b"usr/lib/apk/db/installed"):
            pairs = _apk_database(data := _read_list(stack, item, budget))
        else:
            continue
        budget -= len(data)
        for path, name in pairs:
            if len(owners) < _OWNED_MAX:
                head, slash, rest = path.partition(b"/")
                if head in top:  # /bin of a merged /usr
                    path = posixpath.normpath(top[head].strip(b"/") + slash + rest)
                owners.setdefault(path, name)
    return owners


def _read_list(stack: Stack, item: Item, budget: int) -> bytes:
    size = min(item.status.st_size, _LIST_BYTES, budget)
    fd = stack.open(item.layer, item.path, os.O_RDONLY | os.O_NOFOLLOW)
    try:
        return os.pread(fd, size, 0) if size > 0 else b""
    finally:
        os.close(fd)


def _dpkg_list(item: Item, data: bytes) -> Iterator[tuple[bytes, str]]:
    name = item.name.removesuffix(b".list").partition(b":")[0].decode(errors="replace")
    for line in data.splitlines():
        yield line.strip(b"/"), name


def _apk_database(data: bytes) -> Iterator[tuple[bytes, str]]:
    name, directory = "", b""
    for line in data.splitlines():
        letter, _, value = line.partition(b":")
        if letter == b"P":
            name = value.decode(errors="replace")
        elif letter == b"F":
            directory = value.strip(b"/")
        elif letter == b"R":
            yield (directory + b"/" + value).strip(b"/"), name
