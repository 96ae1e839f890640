"""DNS messages: what the embedded server has to read and write of them. Pure.

Reads one question and the size that the client can take (EDNS); everything else of a query is forwarded as it came.
Writes answers of a few types. RFC 1035 (messages), 2782 (SRV), 3596 (AAAA), 6891 (EDNS).
"""

from __future__ import annotations

import ipaddress
import struct
from collections.abc import Sequence
from dataclasses import dataclass

A, PTR, AAAA, SRV, OPT, ANY = 1, 12, 28, 33, 41, 255
IN = 1
NOERROR, FORMERR, SERVFAIL, NXDOMAIN, NOTIMP, REFUSED = 0, 1, 2, 3, 4, 5

MAX_MESSAGE = 65535
SMALLEST_LIMIT = 512  # what every client can take by UDP (RFC 1035, 4.2.1)
OUR_LIMIT = 4096  # what is told to clients that tell theirs
_HEADER = struct.Struct(">HHHHHH")
_QR, _TC, _RD, _RA = 0x8000, 0x0200, 0x0100, 0x0080
_OPCODE = 0x7800
_QUESTION_AT = 12
_POINTER_TO_QUESTION = b"\xc0\x0c"


class Malformed(Exception):
    """Not a query that can be read; `reply` is the answer to it, empty where there is nobody to answer."""

    def __init__(self, reply: bytes = b"") -> None:
        super().__init__()
        self.reply = reply


@dataclass(frozen=True, slots=True)
class Query:
    """One question. `name` has no final dot and is in lower case; None when no local name can be meant by it."""

    id: int
    flags: int
    name: str | None
    kind: int
    klass: int
    question: bytes  # name, type and class as they came
    limit: int  # the greatest answer that its sender takes by UDP
    edns: bool


@dataclass(frozen=True, slots=True)
class Answer:
    """One resource record. An empty `owner` is the question's name."""

    kind: int
    data: bytes
    owner: str = ""


def parse_query(data: bytes) -> Query:
    """Raises Malformed."""
    if len(data) < _QUESTION_AT:
        raise Malformed
    id, flags, questions, answers, authorities, additional = _HEADER.unpack_from(data)
    if flags & _QR:
        raise Malformed  # an answer: to answer it could go on for ever
    if flags & _OPCODE:
        raise Malformed(_bare_reply(id, flags, NOTIMP))
    if questions != 1 or answers or authorities:
        raise Malformed(_bare_reply(id, flags, FORMERR))
    end, name = _parse_name(data, _QUESTION_AT)
    if not end or end + 4 > len(data):
        raise Malformed(_bare_reply(id, flags, FORMERR))
    kind, klass = struct.unpack_from(">HH", data, end)
    limit = _client_limit(data, end + 4) if additional else 0
    return Query(
        id,
        flags,
        name,
        kind,
        klass,
        data[_QUESTION_AT : end + 4],
        limit=max(limit, SMALLEST_LIMIT),
        edns=limit > 0,
    )


def build_reply(
    query: Query,
    rcode: int,
    answers: Sequence[Answer] = (),
    additional: Sequence[Answer] = (),
    *,
    ttl: int = 0,
    limit: int = MAX_MESSAGE,
) -> bytes:
    """An answer of at most `limit` bytes: the additional records go first, then whole answers, which is told (TC)."""
    option = _encode_option() if query.edns else b""
    room = limit - _QUESTION_AT - len(query.question) - len(option)
    flags = _QR | _RA | (query.flags & _RD) | rcode
    sections: list[list[bytes]] = [[], []]
    for section, records in zip(sections, (answers, additional), strict=True):
        for record in records:
            encoded = _encode(record, ttl)
            if len(encoded) > room:
                flags |= _TC if section is sections[0] else 0
                room = 0
                break
            room -= len(encoded)
            section.append(encoded)
    counts = (1, len(sections[0]), 0, len(sections[1]) + bool(option))
    return b"".join(
        (_HEADER.pack(query.id, flags, *counts), query.question, *sections[0], *sections[1], option)
    )


def truncated(query: Query) -> bytes:
    """The answer that has the client ask again by TCP."""
    reply = bytearray(build_reply(query, NOERROR))
    reply[2] |= _TC >> 8
    return bytes(reply)


def with_id(message: bytes, id: int) -> bytes:
    return struct.pack(">H", id) + message[2:]


def answers_question(message: bytes, id: int, question: bytes) -> bool:
    """Whether a message is the answer to a question that was sent with this id. Letters' cases don't count."""
    if len(message) < _QUESTION_AT + len(question):
        return False
    got, flags, questions, *_ = _HEADER.unpack_from(message)
    if got != id or not flags & _QR or questions != 1:
        return False
    return message[_QUESTION_AT : _QUESTION_AT + len(question)].lower() == question.lower()


def is_truncated(message: bytes) -> bool:
    return bool(message[2] & (_TC >> 8))


def rcode_of(message: bytes) -> int:
    return message[3] & 0xF


# --- record data ----------------------------------------------------------------------------


def address_answer(address: str, owner: str = "") -> Answer:
    """A or AAAA of an address."""
    parsed = ipaddress.ip_address(address)
    return Answer(A if parsed.version == 4 else AAAA, parsed.packed, owner)


def pointer_answer(name: str) -> Answer:
    return Answer(PTR, encode_name(name))


def service_answer(port: int, target: str) -> Answer:
    return Answer(SRV, struct.pack(">HHH", 0, 0, port) + encode_name(target))


def encode_name(name: str) -> bytes:
    """A name as a message has it. Raises ValueError for one that no message can have."""
    labels = [label.encode() for label in name.rstrip(".").split(".")] if name.rstrip(".") else []
    if any(not 1 <= len(label) <= 63 for label in labels):
        raise ValueError(name)
    encoded = b"".join(bytes((len(label),)) + label for label in labels) + b"\0"
    if len(encoded) > 255:
        raise ValueError(name)
    return encoded


def parse_reverse(name: str) -> str:
    """The address that a name below in-addr.arpa or ip6.arpa stands for; "" for any other name."""
    if name.endswith(".in-addr.arpa"):
        digits = name.removesuffix(".in-addr.arpa").split(".")
        text = ".".join(reversed(digits)) if len(digits) == 4 else ""
    elif name.endswith(".ip6.arpa"):
        nibbles = name.removesuffix(".ip6.arpa").split(".")
        if len(nibbles) != 32 or any(len(nibble) != 1 for nibble in nibbles):
            return ""
        joined = "".join(reversed(nibbles))
        text = ":".join(joined[i : i + 4] for i in range(0, 32, 4))
    else:
        return ""
    try:
        return str(ipaddress.ip_address(text))
    except ValueError:
        return ""


# --- inside ---------------------------------------------------------------------------------


def _parse_name(data: bytes, at: int) -> tuple[int, str | None]:
    """The offset behind an uncompressed name, 0 for one that can't be read; and the name."""
    start = at
    labels = []
    while True:
        if at >= len(data) or at - start >= 255:
            return 0, None
        size = data[at]
        at += 1
        if size == 0:
            break
        if size > 63 or at + size > len(data):
            return 0, None
        labels.append(data[at : at + size])
        at += size
    if at - start > 255:
        return 0, None
    try:
        words = [label.decode("utf-8").lower() for label in labels]
    except UnicodeDecodeError:
        return at, None
    return at, None if any("." in word for word in words) else ".".join(words)


def _client_limit(data: bytes, at: int) -> int:
    """What the first additional record says, where that is EDNS's (clients send no other one); else 0."""
    if len(data) < at + 11 or data[at] != 0:
        return 0
    kind, size = struct.unpack_from(">HH", data, at + 1)
    return max(size, SMALLEST_LIMIT) if kind == OPT else 0


def _encode(record: Answer, ttl: int) -> bytes:
    owner = encode_name(record.owner) if record.owner else _POINTER_TO_QUESTION
    return owner + struct.pack(">HHIH", record.kind, IN, ttl, len(record.data)) + record.data


def _encode_option() -> bytes:
    return struct.pack(">BHHIH", 0, OPT, OUR_LIMIT, 0, 0)


def _bare_reply(id: int, flags: int, rcode: int) -> bytes:
    return _HEADER.pack(id, _QR | _RA | (flags & (_OPCODE | _RD)) | rcode, 0, 0, 0, 0)
