"""DNS messages: what is read of a query, and that what is written is a message (dnspython reads it)."""

from __future__ import annotations

import dns.edns
import dns.exception
import dns.flags
import dns.message
import dns.rcode
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from cove.network.dns import wire


def query(name: str, kind: str = "A", **options: object) -> bytes:
    return dns.message.make_query(name, kind, **options).to_wire()


def test_a_question_is_read() -> None:
    read = wire.parse_query(query("Web.Front", "AAAA"))
    assert (read.name, read.kind, read.klass) == ("web.front", wire.AAAA, wire.IN)
    assert (read.limit, read.edns) == (512, False)


@pytest.mark.parametrize(("told", "limit"), [(1232, 1232), (100, 512), (65535, 65535)])
def test_the_size_that_a_client_takes_is_read(told: int, limit: int) -> None:
    read = wire.parse_query(query("web", use_edns=0, payload=told))
    assert (read.limit, read.edns) == (limit, True)


def test_a_name_that_no_container_can_have_is_none() -> None:
    assert wire.parse_query(query(r"a\.b.front")).name is None
    assert wire.parse_query(query(r"\255.front")).name is None


def test_an_answer_is_ignored_and_another_opcode_refused() -> None:
    answer = bytearray(query("web"))
    answer[2] |= 0x80
    with pytest.raises(wire.Malformed) as caught:
        wire.parse_query(bytes(answer))
    assert caught.value.reply == b""
    update = bytearray(query("web"))
    update[2] |= 5 << 3
    with pytest.raises(wire.Malformed) as caught:
        wire.parse_query(bytes(update))
    assert dns.message.from_wire(caught.value.reply, ignore_trailing=True).rcode() == dns.rcode.NOTIMP


def test_a_reply_holds_its_records() -> None:
    read = wire.parse_query(query("_80._tcp.web", "SRV", use_edns=0))
    reply = wire.build_reply(
        read,
        wire.NOERROR,
        [wire.service_answer(80, "web.front")],
        [wire.address_answer("10.0.0.2", "web.front"), wire.address_answer("fd00::2", "web.front")],
        ttl=5,
    )
    message = dns.message.from_wire(reply)
    assert [str(rdata) for rrset in message.answer for rdata in rrset] == ["0 0 80 web.front."]
    assert sorted(str(rdata) for rrset in message.additional for rdata in rrset) == ["10.0.0.2", "fd00::2"]
    assert message.flags & dns.flags.RA and message.edns == 0 and message.answer[0].ttl == 5


def test_what_is_too_long_is_cut_at_a_record_and_told() -> None:
    read = wire.parse_query(query("web"))
    answers = [wire.address_answer(f"10.0.{i}.1") for i in range(100)]
    reply = wire.build_reply(read, wire.NOERROR, answers, limit=read.limit)
    message = dns.message.from_wire(reply)
    assert len(reply) <= 512 and message.flags & dns.flags.TC
    assert len(message.answer[0]) == (512 - 12 - 9) // 16
    assert dns.message.from_wire(wire.truncated(read)).flags & dns.flags.TC


@pytest.mark.parametrize(
    ("name", "address"),
    [
        ("2.0.21.172.in-addr.arpa", "172.21.0.2"),
        ("21.172.in-addr.arpa", ""),
        ("999.0.21.172.in-addr.arpa", ""),
        ("2" + ".0" * 30 + ".d.f.ip6.arpa", ""),
        ("2" + ".0" * 29 + ".d.f.ip6.arpa", "fd00::2"),
        ("web.front", ""),
    ],
)
def test_reverse_names(name: str, address: str) -> None:
    assert wire.parse_reverse(name) == address


def test_only_the_answer_to_the_question_is_one() -> None:
    asked = query("web.example")
    read = wire.parse_query(asked)
    reply = wire.build_reply(read, wire.NOERROR)
    assert wire.answers_question(reply, read.id, read.question)
    assert not wire.answers_question(reply, read.id ^ 1, read.question)
    assert not wire.answers_question(asked, read.id, read.question)
    other = wire.build_reply(wire.parse_query(query("wob.example")), wire.NOERROR)
    assert not wire.answers_question(wire.with_id(other, read.id), read.id, read.question)


@given(st.binary(max_size=600))
@example(query("web", use_edns=0)[:-3])
@example(b"\0\0\0\0\0\1\0\0\0\0\0\0" + b"\xc0\x0c" + b"\0\1\0\1")
@example(b"\0\0\0\0\0\1\0\0\0\0\0\0" + b"\x3f" * 400)
def test_any_packet_is_read_or_refused(packet: bytes) -> None:
    try:
        read = wire.parse_query(packet)
    except wire.Malformed as malformed:
        if malformed.reply:
            assert malformed.reply[:2] == packet[:2] and malformed.reply[2] & 0x80
        return
    reply = wire.build_reply(read, wire.NOERROR, [wire.address_answer("10.0.0.1")], limit=read.limit)
    assert len(reply) <= max(read.limit, 12 + len(read.question) + 11)
    assert wire.answers_question(reply, read.id, read.question)


@given(st.lists(st.integers(0, 255), max_size=40), st.data())
def test_a_damaged_query_is_read_as_dnspython_reads_it(positions: list[int], data: st.DataObject) -> None:
    packet = bytearray(query("web.front.example", use_edns=0, payload=1232))
    for position in positions:
        packet[position % len(packet)] = data.draw(st.integers(0, 255))
    try:
        read = wire.parse_query(bytes(packet))
    except wire.Malformed:
        return
    try:
        theirs = dns.message.from_wire(bytes(packet), ignore_trailing=True, raise_on_truncation=False)
    except (dns.exception.DNSException, ValueError):
        return
    if theirs.question and read.name is not None:
        assert theirs.question[0].name.to_text(omit_final_dot=True).lower().isascii()
        assert (int(theirs.question[0].rdtype), int(theirs.question[0].rdclass) & 0xFFFF) == (
            read.kind,
            read.klass,
        )
