"""Bodies for the API by property-based testing: the shapes of cove.api.docker.wire, filled with what may fit."""

from __future__ import annotations

from typing import Any

import msgspec
from hypothesis import strategies as st

from cove.api.docker import wire

scalars = st.none() | st.booleans() | st.integers(-(1 << 70), 1 << 70) | st.floats() | st.text(max_size=20)
values = st.recursive(
    scalars,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
)


Texts = st.SearchStrategy[str]
WORDS: Texts = st.sampled_from(
    ["", "/", "/a", "/a:/b", "a:/b:ro", "host", "container:x", "80/tcp", "0-1", "1-0", "no", "always", "c 1:3 rwm",
     "192.0.2.1", "::1", "A=b", "seccomp=unconfined", "seccomp={}", "bind", "volume", "tmpfs", "size=1m", "nofile",
     "rshared", "x" * 300, "\0", "8000-8010", "db:host-gateway"]
) | st.text(max_size=12)  # fmt: skip
NUMBERS = (
    st.sampled_from([0, -1, 1, 1000, 1 << 31, (1 << 63) - 1, -(1 << 63), 8 << 20, 10**9]) | st.integers()
)


def shaped(
    shape: type[msgspec.Struct], words: Texts = WORDS, depth: int = 0
) -> st.SearchStrategy[dict[str, Any]]:
    """Objects with the shape's own field names: values of the right type, or anything."""
    fields = {field.encode_name: _likely(field.type, words, depth) for field in msgspec.structs.fields(shape)}
    return st.fixed_dictionaries({}, optional=fields)


def _likely(annotation: Any, words: Texts, depth: int) -> st.SearchStrategy[Any]:
    text = str(annotation)
    if depth < 2:
        for name, found in vars(wire).items():
            if isinstance(found, type) and issubclass(found, msgspec.Struct) and f"wire.{name}" in text:
                inner = shaped(found, words, depth + 1)
                if "dict[" in text:
                    return st.dictionaries(words, st.lists(inner, max_size=2) | inner | st.none(), max_size=2)
                return st.lists(inner, max_size=2) if "list[" in text else inner | st.none()
    if "dict[" in text:
        return st.dictionaries(words, words | st.none() | st.just({}), max_size=3)
    if "list[" in text:
        return st.lists(NUMBERS if "int" in text else words, max_size=3) | words
    if "int" in text:
        return NUMBERS
    return st.booleans() if "bool" in text else words
