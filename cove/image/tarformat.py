"""The tar format: reading a stream of members, and writing headers.

Sans I/O: a reader pulls chunks from a callable and pushes what isn't a file's content to another. It knows
v7, ustar, pax (POSIX.1-2001) with SCHILY and LIBARCHIVE xattrs, GNU long names, base-256 numbers and all
GNU sparse forms (tar(5) of libarchive; GNU tar's manual, "Sparse Formats"). It is Cove's own because an
image must be saved again byte for byte: the reader has to hand out every raw byte of the headers, which
libarchive keeps to itself. It is Python, so that a hostile header can't corrupt memory.

Names are bytes as they stand in the archive. Nothing here decides where a name leads; extract.py does.
"""

from __future__ import annotations

import base64
import struct
import urllib.parse
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Literal

from cove.image.types import Limits
from cove.model.errors import Invalid

BLOCK = 512
_ZEROS = bytes(BLOCK)
_HEADER = struct.Struct("100s8s8s8s12s12s8sc100s8s32s32s8s8s155s12x")
_SPARSE_PAIR = struct.Struct("12s12s")
_SPARSE_MAX = 1_000_000
_NUMBER_DIGITS_MAX = 20
_SHOWN_MAX = 120

Kind = Literal["file", "dir", "symlink", "link", "char", "block", "fifo"]
_KINDS: dict[bytes, Kind] = {
    b"0": "file",
    b"\0": "file",
    b"7": "file",
    b"S": "file",
    b"1": "link",
    b"2": "symlink",
    b"3": "char",
    b"4": "block",
    b"5": "dir",
    b"6": "fifo",
}
_TYPEFLAGS: dict[Kind, bytes] = {
    "file": b"0",
    "link": b"1",
    "symlink": b"2",
    "char": b"3",
    "block": b"4",
    "dir": b"5",
    "fifo": b"6",
}

Bytes = bytes | memoryview


@dataclass(slots=True, kw_only=True)
class Entry:
    """One member. `size` is the file's size when unpacked; `stored` what its content takes in the archive."""

    name: bytes
    kind: Kind = "file"
    mode: int = 0o644
    uid: int = 0
    gid: int = 0
    size: int = 0
    stored: int = 0
    mtime_ns: int = 0
    link: bytes = b""
    major: int = 0
    minor: int = 0
    xattrs: dict[str, bytes] = field(default_factory=dict)
    sparse: list[tuple[int, int]] | None = None  # (offset, length) of the stored parts


class TarReader:
    """Members of a tar stream, one after the other.

    `read` returns the next chunk, empty at the end. `raw` gets, in order, every byte that isn't handed out
    by `content` (headers, padding, what follows the end mark). Raises Invalid for a malformed or cut stream.
    """

    def __init__(
        self,
        read: Callable[[], Bytes],
        limits: Limits,
        *,
        entries_max: int,
        raw: Callable[[Bytes], None] | None = None,
    ) -> None:
        self._read = read
        self._raw = raw
        self._limits = limits
        self._entries_max = entries_max
        self._chunk = memoryview(b"")
        self._left = 0  # bytes of the current member's content not handed out yet
        self._padding = 0
        self.count = 0

    def next_entry(self) -> Entry | None:
        """Skip to the next member; None at the end of the archive (the stream is then read to its end)."""
        self._skip_content()
        long_name = long_link = b""
        records: list[tuple[bytes, bytes]] = []
        while True:
            block = self._take_header()
            if block is None:
                if long_name or long_link or records:
                    raise Invalid("the archive ends after an extended header: it is cut off")
                self._drain()
                return None
            fields = _HEADER.unpack(block)
            typeflag = fields[7]
            if typeflag in b"xgLKX":
                body = self._take_extended(_number(fields[4], "size"))
                if typeflag in b"xX":
                    records += _pax_records(body)
                elif typeflag == b"L":
                    long_name = body.partition(b"\0")[0]
                elif typeflag == b"K":
                    long_link = body.partition(b"\0")[0]
                continue  # a global header (g) changes nothing, as in Docker
            self.count += 1
            if self.count > self._entries_max:
                raise Invalid(f"the archive has more than {self._entries_max} members, which is the limit")
            return self._entry(block, fields, long_name, long_link, records)

    def content(self, *, raw: bool = False) -> Iterator[memoryview]:
        """The current member's stored content, in pieces; with `raw` they go to the raw sink too."""
        while self._left:
            piece = self._piece(self._left)
            self._left -= len(piece)
            if raw and self._raw is not None:
                self._raw(piece)
            yield piece

    def _entry(
        self,
        block: bytes,
        fields: tuple[bytes, ...],
        long_name: bytes,
        long_link: bytes,
        records: list[tuple[bytes, bytes]],
    ) -> Entry:
        name = _text(fields[0])
        magic = fields[9]
        if magic[:6] == b"ustar\0" and fields[14][0]:
            name = _text(fields[14]) + b"/" + name
        kind = _KINDS.get(fields[7])
        if kind is None:
            raise Invalid(f"the archive has a member of the unknown type {fields[7]!r}: {show_name(name)}")
        entry = Entry(
            name=long_name or name,
            kind=kind,
            mode=_number(fields[1], "mode") & 0o7777,
            uid=_number(fields[2], "uid"),
            gid=_number(fields[3], "gid"),
            size=_number(fields[4], "size"),
            mtime_ns=_number(fields[5], "mtime", signed=True) * 1_000_000_000,
            link=long_link or _text(fields[8]),
        )
        if kind in ("char", "block"):
            entry.major, entry.minor = _number(fields[12], "device"), _number(fields[13], "device")
        sparse = _apply_pax(entry, records) if records else {}
        if kind == "file" and entry.name.endswith(b"/"):
            entry.kind = "dir"
        if entry.kind != "file":
            entry.size = 0
        for what, value in (("name", entry.name), ("link", entry.link)):
            if len(value) > self._limits.path_bytes:
                raise Invalid(
                    f"a {what} in the archive has {len(value)} bytes; the limit is "
                    f"{self._limits.path_bytes}: {show_name(value[:60])}…"
                )
            if b"\0" in value:
                raise Invalid(f"a {what} in the archive contains a NUL byte: {show_name(value)}")
        entry.stored = entry.size
        self._left = entry.size
        self._padding = -entry.size % BLOCK
        if fields[7] == b"S":
            self._old_gnu_sparse(entry, block)
        elif sparse:
            self._pax_sparse(entry, sparse)
        if entry.sparse is not None:
            _check_sparse(entry)
        return entry

    def _old_gnu_sparse(self, entry: Entry, block: bytes) -> None:
        pairs = [_SPARSE_PAIR.unpack_from(block, 386 + 24 * i) for i in range(4)]
        more = block[482]
        while more:
            extension = self._take(BLOCK)
            self._emit(extension)
            pairs += [_SPARSE_PAIR.unpack_from(extension, 24 * i) for i in range(21)]
            more = extension[504]
            if len(pairs) > _SPARSE_MAX:
                raise Invalid(f"{show_name(entry.name)} has more than {_SPARSE_MAX} sparse parts")
        entry.sparse = [
            (_number(offset, "sparse offset"), _number(length, "sparse length"))
            for offset, length in pairs
            if offset.strip(b"\0 ") or length.strip(b"\0 ")
        ]
        entry.size = _number(block[483:495], "real size")

    def _pax_sparse(self, entry: Entry, sparse: dict[bytes, list[bytes]]) -> None:
        def last(key: bytes) -> bytes:
            return sparse.get(key, [b""])[-1]

        if last(b"name"):
            entry.name = last(b"name")
        if last(b"major") == b"1":
            entry.size = _decimal(last(b"realsize"), "real size")
            entry.sparse = self._sparse_map_in_content()
            entry.stored = self._left
            return
        if last(b"size"):
            entry.size = _decimal(last(b"size"), "real size")
        if b"map" in sparse:
            numbers = [_decimal(n, "sparse map") for n in last(b"map").split(b",") if n]
            offsets, lengths = numbers[0::2], numbers[1::2]
        else:
            offsets = [_decimal(n, "sparse offset") for n in sparse.get(b"offset", [])]
            lengths = [_decimal(n, "sparse length") for n in sparse.get(b"numbytes", [])]
        if len(offsets) != len(lengths):
            raise Invalid(f"{show_name(entry.name)} has a broken sparse map")
        entry.sparse = list(zip(offsets, lengths, strict=True))

    def _sparse_map_in_content(self) -> list[tuple[int, int]]:
        numbers: list[int] = []
        text = b""
        want = 1
        while len(numbers) < want:
            line, newline, rest = text.partition(b"\n")
            if not newline:
                if self._left < BLOCK:
                    raise Invalid("a sparse map is cut off")
                block = self._take(BLOCK)
                self._emit(block)
                self._left -= BLOCK
                text += block
                continue
            numbers.append(_decimal(line, "sparse map"))
            text = rest
            if len(numbers) == 1:
                if numbers[0] > _SPARSE_MAX:
                    raise Invalid(f"a sparse map has more than {_SPARSE_MAX} parts")
                want = 1 + 2 * numbers[0]
        return list(zip(numbers[1::2], numbers[2::2], strict=True))

    # --- bytes --------------------------------------------------------------------------------

    def _emit(self, data: Bytes) -> None:
        if self._raw is not None:
            self._raw(data)

    def _fill(self) -> bool:
        """Have a chunk; False at the end of the stream."""
        if not self._chunk:
            self._chunk = memoryview(self._read())
        return bool(self._chunk)

    def _piece(self, limit: int) -> memoryview:
        """Some bytes, at most `limit`, from the current chunk."""
        if not self._fill():
            raise Invalid("the archive is cut off in the middle of a member")
        piece = self._chunk[:limit]
        self._chunk = self._chunk[limit:]
        return piece

    def _take(self, size: int) -> bytes:
        if len(self._chunk) >= size:
            taken = bytes(self._chunk[:size])
            self._chunk = self._chunk[size:]
            return taken
        parts = []
        while size:
            piece = self._piece(size)
            size -= len(piece)
            parts.append(bytes(piece))
        return b"".join(parts)

    def _take_header(self) -> bytes | None:
        """The next header block; None at two blocks of zeros or at the end of the stream."""
        for _ in range(2):
            if not self._fill():
                return None
            block = self._take(BLOCK)
            self._emit(block)
            if block != _ZEROS:
                _check_sum(block)
                return block
        return None

    def _take_extended(self, size: int) -> bytes:
        if size > self._limits.header_bytes:
            raise Invalid(f"an extended header has {size} bytes; the limit is {self._limits.header_bytes}")
        padded = self._take(size + -size % BLOCK)
        self._emit(padded)
        return padded[:size]

    def _skip_content(self) -> None:
        for _ in self.content(raw=True):
            pass
        if self._padding:
            if not self._fill():
                self._padding = 0
                return  # umoci's insert leaves out the last member's padding and the end mark; Docker takes that
            padding = self._take(self._padding)
            self._padding = 0
            self._emit(padding)

    def _drain(self) -> None:
        while True:
            if self._chunk:
                self._emit(self._chunk)
            self._chunk = memoryview(self._read())
            if not self._chunk:
                return


def looks_like_tar(head: bytes) -> bool:
    """Whether these first 512 bytes are a tar header, or the end mark of an empty archive."""
    if len(head) < BLOCK:
        return False
    block = head[:BLOCK]
    if block == _ZEROS:
        return True
    try:
        _check_sum(block)
    except Invalid:
        return False
    return True


# --- fields -------------------------------------------------------------------------------


def _text(raw: bytes) -> bytes:
    return raw.partition(b"\0")[0]


def show_name(name: bytes) -> str:
    """A name for a person: quoted, on one line, cut when it is long."""
    text = ascii(name.decode("utf-8", "backslashreplace"))
    return text if len(text) <= _SHOWN_MAX else f"{text[:_SHOWN_MAX]}…'"


def _number(raw: bytes, what: str, *, signed: bool = False) -> int:
    if raw[0] & 0x80:  # base-256: two's complement, the first bit being the mark
        value = int.from_bytes(raw, "big") & ((1 << (8 * len(raw) - 1)) - 1)
        if raw[0] & 0x40:
            value -= 1 << (8 * len(raw) - 1)
    else:
        digits = raw.strip(b"\0 ").partition(b"\0")[0]
        if not digits:
            return 0
        try:
            value = int(digits, 8) if digits.isdigit() else -1
        except ValueError:
            value = -1
        if value < 0:
            raise Invalid(f"a header's {what} isn't an octal number: {show_name(digits)}")
    if not -(1 << 62) < value < 1 << 62 or (value < 0 and not signed):
        raise Invalid(f"a header's {what} is out of range: {value}")
    return min(max(value, -(1 << 33)), 1 << 33) if signed else value


def _decimal(raw: bytes, what: str) -> int:
    if not raw.isdigit() or len(raw) > _NUMBER_DIGITS_MAX or (value := int(raw)) >= 1 << 62:
        raise Invalid(f"an extended header's {what} isn't a number in range: {show_name(raw[:40])}")
    return value


def _time_ns(raw: bytes) -> int:
    whole, _, fraction = raw.partition(b".")
    negative = whole.startswith(b"-")
    seconds = min(_decimal(whole.removeprefix(b"-"), "time"), 1 << 33)
    nanoseconds = _decimal((fraction[:9] or b"0").ljust(9, b"0"), "time")
    total = seconds * 1_000_000_000 + nanoseconds
    return -total if negative else total


def _check_sum(block: bytes) -> None:
    """The sum of a header's bytes, with the sum's own field as spaces; some old tars sum signed bytes."""
    digits = block[148:156].strip(b"\0 ").partition(b"\0")[0].strip()
    total = sum(block) - sum(block[148:156]) + 8 * 32
    if digits.isdigit() and len(digits) <= 8 and b"8" not in digits and b"9" not in digits:
        wanted = int(digits, 8)
        if wanted == total or wanted == total - 256 * sum(
            1 for i, b in enumerate(block) if b > 127 and not 148 <= i < 156
        ):
            return
    raise Invalid("this isn't a tar archive, or it is damaged: a header's checksum is wrong")


def _pax_records(body: bytes) -> list[tuple[bytes, bytes]]:
    records = []
    position = 0
    while position < len(body):
        space = body.find(b" ", position, position + _NUMBER_DIGITS_MAX)
        length = _decimal(body[position:space], "record length") if space > 0 else 0
        end = position + length
        key, equals, value = body[space + 1 : end - 1].partition(b"=")
        if not key or not equals or end > len(body) or end <= space or body[end - 1 : end] != b"\n":
            raise Invalid("an extended header has a malformed record")
        records.append((key, value))
        position = end
    return records


def _apply_pax(entry: Entry, records: list[tuple[bytes, bytes]]) -> dict[bytes, list[bytes]]:
    """Lay the records over the entry; the GNU.sparse ones come back, by their short name."""
    sparse: dict[bytes, list[bytes]] = {}
    for key, value in records:
        if key.startswith(b"GNU.sparse."):
            sparse.setdefault(key[11:], []).append(value)
        elif key.startswith(b"SCHILY.xattr."):
            entry.xattrs[key[13:].decode("utf-8", "surrogateescape")] = value
        elif key.startswith(b"LIBARCHIVE.xattr."):
            name = urllib.parse.unquote_to_bytes(key[17:]).decode("utf-8", "surrogateescape")
            try:
                entry.xattrs.setdefault(name, base64.b64decode(value + b"=" * (-len(value) % 4)))
            except ValueError as error:
                raise Invalid(f"the extended attribute {name!a} isn't valid base64") from error
        elif not value:
            continue  # an empty value takes a record of a global header back
        elif key == b"path":
            entry.name = value
        elif key == b"linkpath":
            entry.link = value
        elif key == b"size":
            entry.size = _decimal(value, "size")
        elif key == b"uid":
            entry.uid = _decimal(value, "uid")
        elif key == b"gid":
            entry.gid = _decimal(value, "gid")
        elif key == b"mtime":
            entry.mtime_ns = _time_ns(value)
    return sparse


def _check_sparse(entry: Entry) -> None:
    end = total = 0
    for offset, length in entry.sparse or ():
        if offset < end or offset + length > entry.size:
            raise Invalid(f"{show_name(entry.name)} has a sparse map that overlaps or exceeds its size")
        end = offset + length
        total += length
    if total != entry.stored:
        raise Invalid(f"{show_name(entry.name)} has a sparse map that doesn't match its content")


# --- writing ------------------------------------------------------------------------------


def encode_header(entry: Entry) -> bytes:
    """The header blocks of a member: ustar, with a pax header where ustar can't say it."""
    pax: list[bytes] = []
    name = entry.name
    if entry.kind == "dir" and not name.endswith(b"/"):
        name += b"/"
    size = entry.size if entry.kind == "file" else 0
    if len(name) > 100:
        pax.append(_record(b"path", name))
    if len(entry.link) > 100:
        pax.append(_record(b"linkpath", entry.link))
    for key, value, limit in ((b"size", size, 8**11), (b"uid", entry.uid, 8**7), (b"gid", entry.gid, 8**7)):
        if value >= limit:
            pax.append(_record(key, b"%d" % value))
    seconds, nanoseconds = divmod(entry.mtime_ns, 1_000_000_000)
    if nanoseconds or not 0 <= seconds < 8**11:
        sign = b""
        if entry.mtime_ns < 0:
            sign, (seconds, nanoseconds) = b"-", divmod(-entry.mtime_ns, 1_000_000_000)
        pax.append(_record(b"mtime", b"%b%d.%09d" % (sign, seconds, nanoseconds)))
    for attribute in sorted(entry.xattrs):
        pax.append(
            _record(b"SCHILY.xattr." + attribute.encode("utf-8", "surrogateescape"), entry.xattrs[attribute])
        )
    head = b""
    if pax:
        body = b"".join(pax)
        head = _block(b"x", Entry(name=b"PaxHeaders.0/" + name[-80:].rstrip(b"/")), b"x", len(body))
        head += body + bytes(-len(body) % BLOCK)
    return head + _block(name[:100], entry, _TYPEFLAGS[entry.kind], size)


def padding(size: int) -> bytes:
    """The zeros that fill a content of `size` bytes up to a whole block."""
    return bytes(-size % BLOCK)


END = bytes(2 * BLOCK)


def _record(key: bytes, value: bytes) -> bytes:
    rest = len(key) + len(value) + 3
    length = rest + len(str(rest))
    if rest + len(str(length)) != length:
        length = rest + len(str(length))
    return b"%d %b=%b\n" % (length, key, value)


def _block(name: bytes, entry: Entry, typeflag: bytes, size: int) -> bytes:
    if typeflag == b"x":
        name = entry.name
    seconds = max(entry.mtime_ns // 1_000_000_000, 0)
    raw = bytearray(
        _HEADER.pack(
            name[:100],
            b"%07o\0" % (entry.mode & 0o7777),
            b"%07o\0" % (entry.uid if entry.uid < 8**7 else 0),
            b"%07o\0" % (entry.gid if entry.gid < 8**7 else 0),
            b"%011o\0" % (size if size < 8**11 else 0),
            b"%011o\0" % (seconds if seconds < 8**11 else 0),
            b" " * 8,
            typeflag,
            entry.link[:100],
            b"ustar\00000",
            b"",
            b"",
            b"%07o\0" % entry.major,
            b"%07o\0" % entry.minor,
            b"",
        )
    )
    raw[148:156] = b"%06o\0 " % sum(raw)
    return bytes(raw)
