"""The decoder of chunked bodies: strict, and the same however the bytes are cut."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cove.api.chunked import ChunkedDecoder, MalformedChunk


def encode(pieces: list[bytes]) -> bytes:
    return b"".join(b"%x\r\n%b\r\n" % (len(piece), piece) for piece in pieces if piece) + b"0\r\n\r\n"


@given(
    st.lists(st.binary(max_size=40), max_size=8),
    st.binary(max_size=10),
    st.lists(st.integers(1, 9), max_size=99),
)
def test_the_payload_and_what_follows_are_the_same_however_the_bytes_are_cut(
    pieces: list[bytes], following: bytes, cuts: list[int]
) -> None:
    wire = encode(pieces) + following
    decoder = ChunkedDecoder()
    payload, rest, at = b"", b"", 0
    for cut in [*cuts, len(wire)]:
        part, at = wire[at : at + cut], at + cut
        if decoder.done:
            rest += part
            continue
        found, left = decoder.feed(part)
        payload += b"".join(found)
        rest += left
    assert decoder.done
    assert payload == b"".join(pieces)
    assert rest == following


@pytest.mark.parametrize(
    "wire",
    [
        b"\r\n",
        b"g\r\n",
        b"-1\r\n",
        b"0x5\r\nhello\r\n0\r\n\r\n",
        b" 5\r\nhello\r\n",
        b"5 \r\nhello\r\n",
        b"5\nhello\r\n",
        b"5\r\nhelloo\r\n",
        b"5\r\nhello\n0\r\n\r\n",
        b"1000000000000000\r\n",
        b"5;" + b"x" * 5000,
        b"0\r\n" + b"a: b\r\n" * 65,
    ],
)
def test_what_two_parsers_could_read_in_two_ways_is_refused(wire: bytes) -> None:
    with pytest.raises(MalformedChunk):
        ChunkedDecoder().feed(wire)


def test_extensions_and_trailers_are_passed_over() -> None:
    decoder = ChunkedDecoder()
    found, rest = decoder.feed(b"3;name=value\r\nabc\r\n0\r\nX-Sum: 1\r\n\r\nGET")
    assert (b"".join(found), rest, decoder.done) == (b"abc", b"GET", True)


@given(st.binary(max_size=200))
def test_any_bytes_end_in_a_payload_or_a_refusal(wire: bytes) -> None:
    decoder = ChunkedDecoder()
    try:
        found, rest = decoder.feed(wire)
    except MalformedChunk:
        return
    assert sum(map(len, found)) + len(rest) <= len(wire)
