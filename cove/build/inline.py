"""Files whose contents are in the Dockerfile, as a packed tree: the pack is in memory."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence

from cove.build.keys import key_of
from cove.build.sources import PackedTree
from cove.image.treeindex import FileEntry, TreeIndex


def inline_tree(files: Sequence[tuple[str, bytes]]) -> PackedTree:
    """A tree of the files."""
    pack = os.memfd_create("build-files", os.MFD_CLOEXEC)
    entries = []
    offset = 0
    for name, data in files:
        os.write(pack, data)
        entries.append(
            FileEntry(
                os.fsencode(name.strip("/")),
                "file",
                0o644,
                size=len(data),
                digest=hashlib.sha256(data).digest(),
                offset=offset,
            )
        )
        offset += len(data)
    key = key_of("inline", [[entry.path.hex(), entry.digest.hex()] for entry in entries])
    return PackedTree(TreeIndex(entries), (pack,), key)
