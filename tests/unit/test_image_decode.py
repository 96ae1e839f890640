"""Decompression: every form, cut, damaged, and bombs."""

from __future__ import annotations

import gzip
import io
import os
from pathlib import Path

import pytest

from cove.image.decode import compression_of, decoder
from cove.image.frames import FrameWriter, read_frame
from cove.image.types import Limits
from cove.model.errors import HostError, Invalid
from tests.imagekit import compressors

DATA = b"".join(b"%d " % i for i in range(300_000))
FORMS = {name: make for name, make in compressors().items() if name != "plain"}


def decode(data: bytes, *, chunk: int = 10_000, limits: Limits | None = None) -> bytes:
    chunks = iter([data[i : i + chunk] for i in range(0, len(data), chunk)])
    read = decoder(compression_of(data), lambda: next(chunks, b""), limits or Limits())
    result = b""
    while piece := read():
        assert len(piece) <= 1 << 20
        result += piece
    return result


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("chunk", [7, 10_000, 1 << 24])
def test_every_form_is_told_by_its_first_bytes(form: str, chunk: int) -> None:
    packed = FORMS[form](DATA)
    assert compression_of(packed) == form
    assert decode(packed, chunk=chunk) == DATA


@pytest.mark.parametrize("form", FORMS)
def test_streams_that_follow_one_another_are_one(form: str) -> None:
    assert decode(FORMS[form](b"one") + FORMS[form](b"two")) == b"onetwo"


@pytest.mark.parametrize("form", ["gzip", "xz", "bzip2"])
def test_a_cut_stream_is_refused(form: str) -> None:
    with pytest.raises(Invalid, match="cut off"):
        decode(FORMS[form](DATA)[:-20])


@pytest.mark.parametrize("form", FORMS)
def test_a_damaged_stream_is_refused(form: str) -> None:
    packed = bytearray(FORMS[form](os.urandom(5000) + DATA))
    packed[len(packed) // 2] ^= 0xFF
    packed[len(packed) // 3] ^= 0xFF
    try:
        assert decode(bytes(packed)) != DATA  # zstd has no checksum by default: the digest tells
    except Invalid as error:
        assert "damaged or cut off" in str(error)


def test_padding_of_zeros_after_gzip_is_fine() -> None:
    assert decode(gzip.compress(b"x") + bytes(1000)) == b"x"


def test_a_bomb_of_zeros_is_stopped() -> None:
    packed = gzip.compress(bytes(300 << 20), 9)
    with pytest.raises(Invalid, match="more than 400 times its size"):
        chunks = iter([packed])
        read = decoder("gzip", lambda: next(chunks, b""), Limits())
        while read():
            pass


def test_a_frame_and_the_files_give_the_archive_again(tmp_path: Path) -> None:
    layer, moved = tmp_path / "layer", tmp_path / "moved"
    (layer / "d").mkdir(parents=True)
    (moved / "0").mkdir(parents=True)
    (layer / "d" / "f").write_bytes(b"new")
    (moved / "0" / "f").write_bytes(b"older")
    buffer = io.BytesIO()
    frame = FrameWriter(buffer)
    frame.raw(b"<1>")
    frame.file(b"d/f", 5)
    frame.raw(b"<2>")
    assert frame.move(b"d") == 0
    frame.raw(b"<3>")
    frame.file(b"d/f", 3)
    frame.close()
    layer_fd, moved_fd = os.open(layer, os.O_RDONLY), os.open(moved, os.O_RDONLY)
    try:
        buffer.seek(0)
        assert b"".join(read_frame(buffer, layer_fd, moved_fd)) == b"<1>older<2><3>new"
        (layer / "d" / "f").write_bytes(b"n")
        buffer.seek(0)
        with pytest.raises(HostError, match="was changed"):
            list(read_frame(buffer, layer_fd, moved_fd))
        damaged = io.BytesIO(b"not a frame")
        with pytest.raises(HostError, match="the image store is damaged"):
            list(read_frame(damaged, layer_fd, moved_fd))
    finally:
        os.close(layer_fd)
        os.close(moved_fd)
