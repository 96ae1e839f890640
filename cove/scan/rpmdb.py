"""The headers in an rpm database, of each of its forms: SQLite, ndb, and Berkeley DB's hash. Pure, read-only, bounded.

rpmdb.sqlite: a table of blobs (rpm 4.16 on). Packages.db: slots that point to blobs (rpm's lib/backend/ndb/rpmpkg.c).
Packages: Berkeley DB, a hash whose values mostly lie on chains of overflow pages (db 5.3's src/dbinc/db_page.h).
A database that points in circles ends at the bound of what it has pages for.
"""

from __future__ import annotations

import sqlite3
import struct
from collections.abc import Iterator

from cove.scan.model import MAX_PACKAGES, MIB, Malformed, clean
from cove.scan.rpmheader import HEADER_MAX

DATABASE_MAX = 512 * MIB
_BDB_HASH, _BDB_META_SIZE = 0x061561, 72
_PAGE_HASH_UNSORTED, _PAGE_OVERFLOW, _PAGE_HASH = 2, 7, 13
_KEY_DATA, _OFF_PAGE = 1, 3
_NDB_PAGE, _NDB_HEADER, _NDB_SLOT, _NDB_BLOCK = 4096, 32, 16, 16


def read_database(name: str, data: bytes) -> Iterator[bytes]:
    """Every header of a database file by its last name. Malformed."""
    if name == "rpmdb.sqlite":
        found = _read_sqlite(data)
    elif name == "Packages.db":
        found = _read_ndb(data)
    else:
        found = _read_bdb(data)
    for count, header in enumerate(found):
        if count >= MAX_PACKAGES:
            raise Malformed(f"it has more than {MAX_PACKAGES} packages")
        yield header


def _read_sqlite(data: bytes) -> Iterator[bytes]:
    if data[:16] != b"SQLite format 3\0" or len(data) < 512:
        raise Malformed("it isn't a database of SQLite")
    # Bytes 18 and 19 say that there is a write-ahead log (sqlite.org/fileformat2.html): a copy in memory has none.
    document = data[:18] + b"\1\1" + data[20:]
    connection = sqlite3.connect(":memory:")
    try:
        connection.deserialize(document)
        connection.execute("PRAGMA trusted_schema=OFF")
        connection.execute("PRAGMA cell_size_check=ON")
        kind = connection.execute("SELECT type FROM sqlite_master WHERE name='Packages'").fetchall()
        if kind != [("table",)]:
            raise Malformed("it has no table Packages")
        for (blob,) in connection.execute("SELECT blob FROM Packages"):
            if isinstance(blob, bytes):
                yield blob
    except sqlite3.Error as error:
        raise Malformed(f"its SQLite database is damaged: {clean(str(error))}") from None
    finally:
        connection.close()


def _read_ndb(data: bytes) -> Iterator[bytes]:
    if len(data) < _NDB_PAGE or data[:4] != b"RpmP":
        raise Malformed("it isn't a database of rpm's ndb")
    (pages,) = struct.unpack_from("<I", data, 12)
    end = min(pages * _NDB_PAGE, len(data))
    taken = 0
    for at in range(_NDB_HEADER, end - _NDB_SLOT + 1, _NDB_SLOT):
        magic, index, block, _ = struct.unpack_from("<4sIII", data, at)
        if magic != b"Slot" or not index:
            continue
        start = block * _NDB_BLOCK
        if start + 16 > len(data):
            raise Malformed(f"its package {index} lies beyond the file's end")
        blob, number, _, length = struct.unpack_from("<4sIII", data, start)
        if blob != b"BlbS" or number != index or length > HEADER_MAX or start + 16 + length > len(data):
            raise Malformed(f"its package {index} is damaged")
        taken += length
        if taken > 2 * len(data):
            raise Malformed("its packages overlap")
        yield data[start + 16 : start + 16 + length]


def _read_bdb(data: bytes) -> Iterator[bytes]:
    if len(data) < _BDB_META_SIZE:
        raise Malformed("it isn't a database of Berkeley DB")
    order = "<"
    if struct.unpack_from("<I", data, 12)[0] != _BDB_HASH:
        order = ">"
        if struct.unpack_from(">I", data, 12)[0] != _BDB_HASH:
            raise Malformed("it isn't a hash of Berkeley DB")
    (size,) = struct.unpack_from(order + "I", data, 20)
    if size not in (512, 1024, 2048, 4096, 8192, 16384, 32768, 65536):
        raise Malformed(f"its pages have {size} bytes")
    taken = 0
    for start in range(size, len(data) - size + 1, size):
        entries, _, _, kind = struct.unpack_from(order + "HHBB", data, start + 20)
        if kind not in (_PAGE_HASH, _PAGE_HASH_UNSORTED):
            continue
        if 26 + 2 * entries > size:
            raise Malformed("a page of its hash is damaged")
        places = struct.unpack_from(f"{order}{entries}H", data, start + 26)
        for number in range(1, entries, 2):  # a key, its value, a key …
            value = _bdb_value(data, start, size, order, places, number)
            taken += len(value)
            if taken > 2 * len(data):
                raise Malformed("its packages overlap")
            if len(value) > 32:  # else the counter that rpm keeps under the key 0
                yield value


def _bdb_value(data: bytes, start: int, size: int, order: str, places: tuple[int, ...], number: int) -> bytes:
    at = places[number]
    if not 26 <= at < size:
        raise Malformed("a page of its hash is damaged")
    kind = data[start + at]
    if kind == _KEY_DATA:
        return data[start + at + 1 : start + min(places[number - 1], size)]
    if kind != _OFF_PAGE or at + 12 > size:
        return b""
    page, length = struct.unpack_from(order + "II", data, start + at + 4)
    if length > HEADER_MAX:
        raise Malformed(f"a package of it has {length} bytes")
    return _bdb_chain(data, size, order, page, length)


def _bdb_chain(data: bytes, size: int, order: str, page: int, length: int) -> bytes:
    found = bytearray()
    while len(found) < length and page:
        start = page * size
        if start + size > len(data) or data[start + 25] != _PAGE_OVERFLOW:
            raise Malformed("a chain of its overflow pages is damaged")
        (page,) = struct.unpack_from(order + "I", data, start + 16)
        (used,) = struct.unpack_from(order + "H", data, start + 22)
        if not 0 < used <= size - 26:
            raise Malformed("a chain of its overflow pages is damaged")
        found += data[start + 26 : start + 26 + used]
    return bytes(found[:length])
