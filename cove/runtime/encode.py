"""Encode a plan for cove-init: Plan -> bytes. Pure.

The format, which native/src/plan.c decodes (little-endian, everything aligned to 8 bytes):

    header   u32 magic "CVPL", u32 version, u64 clone_flags, u64 total size,
             then for each section (before, parent, child, exit): u32 steps, u32 bytes
    string   cgroup_path
    steps    u16 kind, u16 fields, u32 bytes of the fields; then the fields in the class's order

    int      u64 (a negative one as two's complement)
    string   u64 length without the final NUL; the bytes, a NUL, zeros up to 8 bytes
    bytes    as a string
    list     u64 count, then strings
"""

from __future__ import annotations

import struct
from functools import lru_cache

from cove.runtime.steps import PLAN_VERSION, Plan, Step

MAGIC = 0x4C505643  # "CVPL"
MAX_PLAN = 16 * 1024 * 1024

_HEADER = struct.Struct("<IIQQ8I")
_STEP = struct.Struct("<HHI")
_U64 = struct.Struct("<Q")
_ZEROS = tuple(bytes(8 - n % 8) for n in range(8))  # at least the final NUL


def encode(plan: Plan) -> bytes:
    """The plan on the wire. Raises ValueError, naming step and field, for a value that has no encoding
    (a NUL within a string, a number beyond 64 bits), and for a plan over 16 MiB."""
    sections = [_encode_section(steps) for steps in (plan.before, plan.parent, plan.child, plan.exit)]
    cgroup = _encode_text(plan.cgroup_path, "cgroup_path")
    total = _HEADER.size + len(cgroup) + sum(map(len, sections))
    if total > MAX_PLAN:
        raise ValueError(
            f"the plan takes {total} bytes, at most {MAX_PLAN} are possible: pass fewer arguments"
        )
    counts = (len(plan.before), len(plan.parent), len(plan.child), len(plan.exit))
    numbers = [n for pair in zip(counts, map(len, sections), strict=True) for n in pair]
    header = _HEADER.pack(MAGIC, PLAN_VERSION, plan.clone_flags, total, *numbers)
    return b"".join((header, cgroup, *sections))


def _encode_section(steps: tuple[Step, ...]) -> bytes:
    return b"".join(map(_encode_step, steps))


@lru_cache(maxsize=1024)  # most steps of a plan are the same as in the last one
def _encode_step(step: Step) -> bytes:
    names = step.__struct_fields__
    parts: list[bytes] = []
    for name in names:
        value = getattr(step, name)
        kind = type(value)
        if kind is str:
            data = value.encode(errors="surrogateescape")
            if b"\0" in data:
                raise ValueError(f"{type(step).__name__}.{name} has a NUL byte in {value!r}: remove it")
            parts += (_U64.pack(len(data)), data, _ZEROS[len(data) & 7])
        elif kind is int or kind is bool:
            if not -(2**63) <= value < 2**64:
                raise ValueError(f"{type(step).__name__}.{name} is {value}: expected a number of 64 bits")
            parts.append(_U64.pack(value & 0xFFFFFFFFFFFFFFFF))
        elif kind is bytes:
            parts += (_U64.pack(len(value)), value, _ZEROS[len(value) & 7])
        else:
            parts.append(_U64.pack(len(value)))
            parts += [_encode_text(item, f"{type(step).__name__}.{name}") for item in value]
    body = b"".join(parts)
    return _STEP.pack(step.KIND, len(names), len(body)) + body


def _encode_text(text: str, where: str) -> bytes:
    data = text.encode(errors="surrogateescape")
    if b"\0" in data:
        raise ValueError(f"{where} has a NUL byte in {text!r}: remove it")
    return _U64.pack(len(data)) + data + _ZEROS[len(data) & 7]
