"""Where an image's bytes are: by layer, directory and file, and which of them nobody sees. Inside a worker.

A file that a later layer replaces or deletes stays in its own: its bytes are *wasted*. The largest are listed,
everything is counted. Memory is bounded: sums for directories down to a depth, the largest files in heaps.
"""

from __future__ import annotations

import heapq
import os
import stat
from collections.abc import Sequence
from typing import Any

from cove.image.stack import Hidden, Stack, shown
from cove.image.tooljobs import LayerFacts, SizedPath, Surveyed, Wasted

_LISTED = 40
_DEPTH = 4
_DIRECTORIES_MAX = 200_000


class _Layer:
    def __init__(self) -> None:
        self.files = self.bytes = self.hidden_files = self.hidden_bytes = self.whiteouts = 0
        self.largest: list[tuple[int, bytes]] = []
        self.directories: dict[bytes, int] = {}
        self.links: set[int] = set()  # inodes that have been counted


def survey(roots: Sequence[int]) -> Surveyed:
    """Look at all files of a stack of layers, lowest first."""
    stack = Stack(roots)
    layers = [_Layer() for _ in roots]
    wasted: list[tuple[int, bytes, int, int, str]] = []

    def hidden(one: Hidden) -> None:
        layer = layers[one.layer]
        total = count = 0
        for path, status in stack.hidden_files(one):
            count += 1
            total += _count(layer, path, status)
        layer.hidden_files += count
        layer.hidden_bytes += total
        if total:
            _keep(wasted, (total, one.path, one.layer, one.by, one.how), 2 * _LISTED)

    for item in stack.walk(hidden):
        layer = layers[item.layer]
        if item.whiteout:
            layer.whiteouts += 1
        elif item.below is None:
            _count(layer, item.path, item.status)
    return Surveyed(
        layers=tuple(_facts(layer) for layer in layers),
        wasted=tuple(
            Wasted(path=shown(path), bytes=size, layer=layer, by=by, how=how)
            for size, path, layer, by, how in sorted(wasted, key=lambda row: (-row[0], row[1]))
        ),
    )


def _count(layer: _Layer, path: bytes, status: os.stat_result) -> int:
    layer.files += 1
    if not stat.S_ISREG(status.st_mode):
        return 0
    if status.st_nlink > 1:
        if status.st_ino in layer.links:
            return 0
        layer.links.add(status.st_ino)
    size = status.st_size
    layer.bytes += size
    _keep(layer.largest, (size, path), _LISTED)
    parts = path.split(b"/")[:-1]
    for end in range(1, min(len(parts), _DEPTH) + 1):
        above = b"/".join(parts[:end])
        if above in layer.directories or len(layer.directories) < _DIRECTORIES_MAX:
            layer.directories[above] = layer.directories.get(above, 0) + size
    return size


def _keep(heap: list[Any], row: tuple[Any, ...], most: int) -> None:
    if len(heap) < most:
        heapq.heappush(heap, row)
    else:
        heapq.heappushpop(heap, row)


def _facts(layer: _Layer) -> LayerFacts:
    directories = heapq.nlargest(_LISTED, layer.directories.items(), key=lambda pair: (pair[1], pair[0]))
    return LayerFacts(
        files=layer.files,
        bytes=layer.bytes,
        hidden_files=layer.hidden_files,
        hidden_bytes=layer.hidden_bytes,
        whiteouts=layer.whiteouts,
        directories=tuple(SizedPath(path=shown(path), bytes=size) for path, size in directories if size),
        largest=tuple(
            SizedPath(path=shown(path), bytes=size)
            for size, path in sorted(layer.largest, reverse=True)
            if size
        ),
    )
