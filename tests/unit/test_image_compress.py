"""Layers compressed for registries: what comes out is a plain gzip or zstd stream, and the same one each time."""

from __future__ import annotations

import gzip
import hashlib
import os
import subprocess
from pathlib import Path

import pytest
import zstandard
from hypothesis import given
from hypothesis import strategies as st

from cove.image.compress import Spool, compress
from cove.model.errors import HostError

MIB = 1 << 20


def pack(pieces: list[bytes], *, compression: str = "gzip", level: int = 2, threads: int = 3) -> bytes:
    out: list[bytes] = []
    diff_id = f"sha256:{hashlib.sha256(b''.join(pieces)).hexdigest()}"
    digest, size = compress(
        pieces, out.append, compression=compression, level=level, threads=threads, diff_id=diff_id
    )
    data = b"".join(out)
    assert (digest, size) == (f"sha256:{hashlib.sha256(data).hexdigest()}", len(data))
    return data


def unpack(data: bytes, compression: str) -> bytes:
    if compression == "gzip":
        return gzip.decompress(data)
    return zstandard.ZstdDecompressor().decompressobj().decompress(data)


@pytest.mark.parametrize(
    ("compression", "level"), [("gzip", 1), ("gzip", 2), ("gzip", 3), ("gzip", 6), ("zstd", 3), ("zstd", 9)]
)
def test_what_goes_in_comes_out(compression: str, level: int) -> None:
    text = b"".join(b"%d bottles\n" % number for number in range(200_000))
    pieces = [text[:10], b"", text[10 : 3 * MIB], os.urandom(MIB), text, b"x"]
    data = pack(pieces, compression=compression, level=level)
    assert unpack(data, compression) == b"".join(pieces)
    assert len(data) < MIB * 3 // 2 + len(text)
    one_by_one = [bytes([byte]) for byte in text[:1000]]
    assert unpack(pack(one_by_one, compression=compression, level=level), compression) == text[:1000]


@given(st.lists(st.binary(max_size=200), max_size=8), st.sampled_from(["gzip", "zstd"]))
def test_any_pieces_and_none_are_a_stream(pieces: list[bytes], compression: str) -> None:
    assert unpack(pack(pieces, compression=compression), compression) == b"".join(pieces)


@pytest.mark.parametrize("compression", ["gzip", "zstd"])
def test_neither_threads_nor_pieces_nor_time_change_the_digest(compression: str) -> None:
    data = os.urandom(MIB) + b"abc" * MIB
    found = {
        pack(
            [data[i : i + step] for i in range(0, len(data), step)], compression=compression, threads=threads
        )
        for step in (1000, MIB, len(data))
        for threads in (1, 2, 5)
    }
    assert len(found) == 1


def test_gzip_and_zstd_of_the_system_read_it(tmp_path: Path) -> None:
    data = b"layer " * MIB
    for compression, program in (("gzip", "gzip"), ("zstd", "zstd")):
        packed = pack([data], compression=compression)
        done = subprocess.run([program, "-dc"], input=packed, capture_output=True, check=True)
        assert done.stdout == data


def test_a_layer_that_is_another_one_is_not_pushed() -> None:
    with pytest.raises(HostError, match="the image store is damaged: a layer isn't sha256:00"):
        compress([b"x"], lambda _: None, compression="gzip", level=2, threads=1, diff_id="sha256:00")


def test_a_spool_holds_blobs_one_behind_the_other_and_stops_at_its_budget(tmp_path: Path) -> None:
    told: list[int] = []
    with open(tmp_path / "spool", "wb", buffering=0) as file:
        spool = Spool(file.write, 3 * MIB, told.append)
        spool.begin()
        spool.write(bytes(MIB + 5))
        spool.begin()
        assert (spool.offset, spool.size) == (MIB + 5, 0)
        spool.write(b"b" * 7)
        assert told == [MIB + 5]
        with pytest.raises(HostError, match="no space left on the image store's disk"):
            spool.write(bytes(2 * MIB))
    assert (tmp_path / "spool").read_bytes()[MIB + 5 :] == b"b" * 7
