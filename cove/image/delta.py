"""A writable layer as the tar stream of an image's layer (`docker commit`), inside a worker.

The worker's root is the layer's directory. Overlayfs' whiteouts (a character device 0:0) and opaque directories
become the files `.wh.NAME` and `.wh..wh..opq` of the OCI image format (image-spec, layer.md). Which
directories are opaque the daemon says: the attribute is readable with CAP_SYS_ADMIN only, which a worker lacks.
"""

from __future__ import annotations

import os
import posixpath
import stat
from collections.abc import Collection, Iterator

from cove.image.archive import member, walk
from cove.image.tarformat import END, Entry, encode_header, show_name
from cove.model.errors import Invalid

_WHITEOUT = b".wh."


def layer_stream(root: int, *, opaque: Collection[bytes], left_out: Collection[bytes]) -> Iterator[bytes]:
    """The layer below `root`, sorted by path. `opaque` and `left_out` are paths relative to it.

    Raises Invalid for a name that would mean a deletion in a layer.
    """
    seen: dict[tuple[int, int], bytes] = {}
    if b"" in opaque:
        yield _empty_file(b".wh..wh..opq")
    for directory, base, name in walk(root, b""):
        if name in left_out:
            continue
        if base.startswith(_WHITEOUT):
            raise Invalid(
                f"{show_name(name)} can't be in an image: a name that begins with .wh. means a deletion in a layer; "
                "rename it"
            )
        if _is_whiteout(directory, base):
            yield _empty_file(posixpath.join(posixpath.dirname(name), _WHITEOUT + base))
            continue
        yield from member(directory, base, name, seen)
        if name in opaque:
            yield _empty_file(name + b"/.wh..wh..opq")
    yield END


def _is_whiteout(directory: int, base: bytes) -> bool:
    try:
        found = os.stat(base, dir_fd=directory, follow_symlinks=False)
    except FileNotFoundError:
        return False
    return stat.S_ISCHR(found.st_mode) and found.st_rdev == 0


def _empty_file(name: bytes) -> bytes:
    return encode_header(Entry(name=name, kind="file", mode=0o600))
