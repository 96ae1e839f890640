"""A stack of layers as the tar stream of one layer. Inside a worker.

Of a whole image it is the tree that a container sees. Of the upper layers alone, what they delete and hide of the
lower ones becomes whiteouts of the OCI image format (image-spec, layer.md). `only` leaves out what nobody asked for
(slim). Entries come sorted, parents first, so that one stack always gives the same bytes.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence

from cove.image.archive import member
from cove.image.stack import Directory, Item, Stack
from cove.image.tarformat import END, Entry, encode_header, show_name
from cove.model.errors import Invalid

_WHITEOUT = b".wh."
_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW


def stack_stream(
    roots: Sequence[int], *, whole: bool, only: Callable[[Item], bool] = lambda _: True
) -> Iterator[bytes]:
    """The layer. `whole`: there is nothing below the stack, so nothing has to be hidden. Invalid, HostError."""
    stack = Stack(roots)
    seen: list[dict[tuple[int, int], bytes]] = [{} for _ in roots]
    waiting: list[Directory] = [stack.root]
    while waiting:
        directory = waiting.pop()
        items = [item for item in stack.read(directory) if only(item)]
        opened: dict[int, int] = {}
        try:
            for item in items:
                if item.layer not in opened:
                    opened[item.layer] = stack.open(item.layer, directory.path, _DIRECTORY)
                if item.whiteout and (whole or directory.opaque):
                    continue  # there is nothing for it to hide
                yield from _member(item, opened[item.layer], seen[item.layer])
                if whole or item.below is None:
                    continue
                if item.below.opaque and not directory.opaque:
                    yield _empty_file(item.path + b"/.wh..wh..opq")
        finally:
            for fd in opened.values():
                os.close(fd)
        waiting += [item.below for item in reversed(items) if item.below is not None]
    yield END


def _member(item: Item, directory: int, seen: dict[tuple[int, int], bytes]) -> Iterator[bytes]:
    if item.whiteout:
        yield _empty_file(item.path[: -len(item.name)] + _WHITEOUT + item.name)
        return
    if item.name.startswith(_WHITEOUT):
        raise Invalid(
            f"{show_name(item.path)} can't be in a layer: a name that begins with .wh. means a deletion"
        )
    yield from member(directory, item.name, item.path, seen)


def _empty_file(name: bytes) -> bytes:
    return encode_header(Entry(name=name, kind="file", mode=0o600))
