"""What a program was built from, as Go and Rust write it into the program. Pure.

Go: a blob "\\xff Go buildinf:" at the start of the data, in two forms: from Go 1.18 on the two texts follow it, before
that it has pointers to them (debug/buildinfo of Go's library). Rust: cargo-auditable's section `.dep-v0`, JSON in zlib
(github.com/rust-secure-code/cargo-auditable, PARSING.md).
"""

from __future__ import annotations

import re
import zlib
from collections.abc import Iterator
from typing import Literal

import msgspec

from cove.scan.elf import Elf
from cove.scan.model import MAX_PACKAGES, MIB, Malformed, Package, clean

Order = Literal["little", "big"]
MAGIC = b"\xff Go buildinf:"
_HEAD = 32
_SEARCH = 1 * MIB
_MODULES_MAX = 16 * MIB
_AUDIT_MAX = 16 * MIB
_GO_VERSION = re.compile(r"go(\d[0-9A-Za-z.]*)")


class _Crate(msgspec.Struct):
    name: str
    version: str
    source: str = ""
    kind: str = "runtime"


class _Audit(msgspec.Struct):
    packages: list[_Crate]


def find_modules(elf: Elf) -> Iterator[Package]:
    """The modules that a Go program is made of, Go's own library among them; none of another program. Malformed."""
    found = _build_info(elf)
    if found is None:
        return
    version, text = found
    if match := _GO_VERSION.match(version):
        yield Package(kind="golang", name="stdlib", version=match[1])
    yield from parse_modules(text)


def _build_info(elf: Elf) -> tuple[str, str] | None:
    section = elf.find_section(b".go.buildinfo")
    if section is not None:
        places = [(section.offset, section.size)]
    elif any(s.name in (b".gopclntab", b".note.go.buildid") for s in elf.sections) or not elf.sections:
        places = [(s.offset, s.size) for s in elf.segments if s.writable]
    else:
        return None
    for offset, size in places:
        data = elf.file.read(offset, min(size, _SEARCH))
        at = data.find(MAGIC)
        while at >= 0 and (offset + at) % 16:
            at = data.find(MAGIC, at + 1)
        if at < 0 or len(data) < at + _HEAD:
            continue
        width, flags = data[at + 14], data[at + 15]
        if flags & 2:
            whole = elf.file.read(offset + at + _HEAD, _MODULES_MAX)
            version, rest = _counted(whole)
            modules, _ = _counted(rest)
        else:
            if width not in (4, 8):
                raise Malformed(f"its Go build information has pointers of {width} bytes")
            order: Order = "big" if flags & 1 else "little"
            version, modules = (
                _pointed(elf, data[at + 16 + n * width : at + 16 + (n + 1) * width], width, order)
                for n in (0, 1)
            )
        modules = modules[16:-16] if len(modules) >= 33 and modules[-17:-16] == b"\n" else b""
        return clean(version), modules.decode("utf-8", "replace")
    return None


def _counted(data: bytes) -> tuple[bytes, bytes]:
    """A text with its length as a varint in front, and what follows."""
    length = shift = 0
    for index, byte in enumerate(data[:10]):
        length |= (byte & 0x7F) << shift
        shift += 7
        if byte < 0x80:
            start = index + 1
            if length > len(data) - start:
                raise Malformed(f"its Go build information claims {length} bytes and has {len(data) - start}")
            return data[start : start + length], data[start + length :]
    raise Malformed("its Go build information is damaged")


def _pointed(elf: Elf, pointer: bytes, width: int, order: Order) -> bytes:
    """The text of a Go string that is pointed to: an address and a length there."""
    head = elf.read_address(int.from_bytes(pointer, order), 2 * width)
    if len(head) < 2 * width:
        return b""
    address, length = (int.from_bytes(part, order) for part in (head[:width], head[width:]))
    if length > _MODULES_MAX:
        raise Malformed(f"its Go build information claims {length} bytes; up to {_MODULES_MAX} are read")
    return elf.read_address(address, length)


def parse_modules(text: str) -> Iterator[Package]:
    """The lines `mod`, `dep` and `=>` of `go version -m`; a replacement comes in place of the line above. Malformed."""
    waiting: Package | None = None
    count = 0
    for line in text.split("\n"):
        kind, *fields = line.split("\t")
        if kind not in ("mod", "dep", "=>") or not fields:
            continue
        name, version = clean(fields[0]), clean(fields[1]) if len(fields) > 1 else ""
        if kind != "=>" and waiting is not None:
            yield waiting
        count += 1
        if count > MAX_PACKAGES:
            raise Malformed(f"it names more than {MAX_PACKAGES} modules")
        usable = name and version and not name.startswith((".", "/"))
        waiting = Package(kind="golang", name=name, version=version) if usable else None
    if waiting is not None:
        yield waiting


def find_crates(elf: Elf) -> Iterator[Package]:
    """The crates that cargo-auditable noted; none where there is no note. Malformed."""
    section = elf.find_section(b".dep-v0")
    if section is None:
        return
    packed = elf.file.read(section.offset, min(section.size, _AUDIT_MAX))
    unpacking = zlib.decompressobj()
    try:
        data = unpacking.decompress(packed, _AUDIT_MAX)
        if unpacking.unconsumed_tail:
            raise Malformed(f"its list of crates is larger than {_AUDIT_MAX} bytes")
        audit = msgspec.json.decode(data, type=_Audit)
    except (zlib.error, msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise Malformed(f"its list of crates is damaged: {clean(str(error))}") from None
    if len(audit.packages) > MAX_PACKAGES:
        raise Malformed(f"it names more than {MAX_PACKAGES} crates")
    for crate in audit.packages:
        name, version = clean(crate.name), clean(crate.version)
        if name and version and crate.kind != "build" and crate.source not in ("local",):
            yield Package(kind="cargo", name=name, version=version)
