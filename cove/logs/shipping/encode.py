"""Messages to what receivers expect, byte for byte as Docker's drivers send them. Pure but for the clock's zone.

syslog: RFC 3164, RFC 5424, RFC 5425 (framing under TLS). gelf: GELF 1.1. fluentd: the forward protocol, in its
Forward mode, one array of entries for a batch. journald: the journal's native protocol.
"""

from __future__ import annotations

import re
import secrets
import struct
import time
import zlib
from collections.abc import Sequence
from datetime import UTC, datetime

import msgspec

from cove.logs.destinations import Fluentd, Gelf, Source, Syslog
from cove.logs.model import STDERR
from cove.logs.shipping.cut import Message

_ERROR, _INFO = 3, 6  # syslog's severities of stderr and stdout
_MONTHS = "Jan Feb Mar Apr May Jun Jul Aug Sep Oct Nov Dec".split()


class SyslogEncoder:
    """One message to the bytes of one; `octets` counts them in front (RFC 5425)."""

    def __init__(self, destination: Syslog, source: Source, pid: int, *, octets: bool) -> None:
        self._format = destination.format
        self._octets = octets and destination.format.startswith("rfc5424")
        self._priorities = {
            stderr: destination.facility * 8 + (_ERROR if stderr else _INFO) for stderr in (0, 1)
        }
        host = source.host_name or "localhost"
        # Fields of RFC 5424 are divided by spaces.
        self._tag = source.tag.replace(" ", "_") if self._format.startswith("rfc5424") else source.tag
        if self._format.startswith("rfc5424"):
            self._middle = f" {host} {self._tag} {pid} {self._tag} - ".encode()
        elif self._format == "rfc3164":
            self._middle = f" {host} {self._tag}[{pid}]: ".encode()
        else:
            self._middle = f" {self._tag}[{pid}]: ".encode()
        self._second = -1
        self._stamp = ""
        self._zone = ""

    def encode(self, message: Message) -> bytes:
        """Empty for an empty line, which Docker doesn't send either."""
        if not message.data:
            return b""
        priority = self._priorities[message.stream == STDERR]
        version = "1 " if self._format.startswith("rfc5424") else ""
        head = f"<{priority}>{version}{self._time(message.time_ns)}".encode()
        data = b"%b%b%b\n" % (head, self._middle, message.data)
        return b"%d %b" % (len(data), data) if self._octets else data

    def _time(self, time_ns: int) -> str:
        second, rest = divmod(time_ns, 10**9)
        if second != self._second:
            self._second = second
            local = time.localtime(second)
            if self._format.startswith("rfc5424"):
                self._stamp = time.strftime("%Y-%m-%dT%H:%M:%S", local)
                minutes = local.tm_gmtoff // 60
                sign = "-" if minutes < 0 else "+"
                self._zone = f"{sign}{abs(minutes) // 60:02}:{abs(minutes) % 60:02}" if minutes else "Z"
            else:
                self._stamp = (
                    f"{_MONTHS[local.tm_mon - 1]} {local.tm_mday:2} "
                    f"{local.tm_hour:02}:{local.tm_min:02}:{local.tm_sec:02}"
                )
        if self._format == "rfc5424micro":
            return f"{self._stamp}.{rest // 1000:06}{self._zone}"
        return self._stamp + self._zone


_CHUNK_BYTES = 1420  # of a datagram: what fits in an Ethernet frame
_CHUNK_HEAD = 12
_MOST_CHUNKS = 128


class GelfEncoder:
    """One message to datagrams, or to a text with its NUL."""

    def __init__(self, destination: Gelf, source: Source) -> None:
        self._destination = destination
        created = datetime.fromtimestamp(source.created_ns // 10**9, UTC)
        extra = {
            # first: no label or variable takes the place of what is told of the container
            **{key if key.startswith("_") else f"_{key}": value for key, value in source.attributes.items()},
            "_container_id": source.container_id,
            "_container_name": source.container_name,
            "_image_id": source.image_id,
            "_image_name": source.image_name,
            "_command": source.command,
            "_tag": source.tag,
            "_created": f"{created:%Y-%m-%dT%H:%M:%S}.{source.created_ns % 10**9:09}Z",
        }
        self._head = msgspec.json.encode({"version": "1.1", "host": source.host_name})[:-1]
        self._extra = msgspec.json.encode(extra)[1:]

    def encode(self, message: Message) -> bytes:
        """Empty for an empty line, which Docker doesn't send either."""
        if not message.data:
            return b""
        text = msgspec.json.encode(message.data.decode("utf-8", "replace"))
        milliseconds = message.time_ns // 1_000_000
        level = _ERROR if message.stream == STDERR else _INFO
        return b'%b,"short_message":%b,"timestamp":%d.%03d,"level":%d,%b' % (
            self._head, text, milliseconds // 1000, milliseconds % 1000, level, self._extra,
        )  # fmt: skip

    def datagrams(self, message: Message) -> list[bytes] | None:
        """None: it's too long, even in MOST_CHUNKS pieces."""
        data = self.encode(message)
        if not data:
            return []
        if self._destination.compression != "none":
            bits = 31 if self._destination.compression == "gzip" else 15
            packer = zlib.compressobj(self._destination.level, zlib.DEFLATED, bits)
            data = packer.compress(data) + packer.flush()
        if len(data) <= _CHUNK_BYTES:
            return [data]
        room = _CHUNK_BYTES - _CHUNK_HEAD
        count = -(-len(data) // room)
        if count > _MOST_CHUNKS:
            return None
        ident = secrets.token_bytes(8)
        return [
            b"\x1e\x0f" + ident + bytes((number, count)) + data[number * room : (number + 1) * room]
            for number in range(count)
        ]


class FluentdEncoder:
    """A batch to one event of Forward mode."""

    def __init__(self, destination: Fluentd, source: Source) -> None:
        self._destination = destination
        self._tag = source.tag
        self._record = {
            "container_id": source.container_id,
            "container_name": f"/{source.container_name}",
        }
        self._attributes = source.attributes
        self._encoder = msgspec.msgpack.Encoder()

    def encode(self, batch: Sequence[Message]) -> tuple[bytes, str]:
        """The bytes, and the id with which the receiver acknowledges them ("": it needn't)."""
        chunk = secrets.token_hex(16) if self._destination.acknowledge else ""
        options = {"chunk": chunk, "size": len(batch)} if chunk else {"size": len(batch)}
        entries = [[self._time(message.time_ns), self._entry(message)] for message in batch]
        return self._encoder.encode([self._tag, entries, options]), chunk

    def _time(self, time_ns: int) -> object:
        if not self._destination.nanoseconds:
            return time_ns // 10**9
        second, rest = divmod(time_ns, 10**9)
        return msgspec.msgpack.Ext(0, struct.pack(">II", second & 0xFFFFFFFF, rest))

    def _entry(self, message: Message) -> dict[str, str]:
        entry = {
            **self._attributes,
            **self._record,
            "source": "stderr" if message.stream == STDERR else "stdout",
            "log": message.data.decode("utf-8", "replace"),
        }
        if message.partial is not None:
            entry["partial_message"] = "true"
            entry["partial_id"] = message.partial.id
            entry["partial_ordinal"] = str(message.partial.ordinal)
            entry["partial_last"] = "true" if message.partial.last else "false"
        return entry


# Fields of a message that no label or variable may add to; those that begin with CONTAINER_ are its container's.
_JOURNAL_FIELDS = frozenset({"MESSAGE", "MESSAGE_ID", "PRIORITY", "SYSLOG_TIMESTAMP"})


class JournaldEncoder:
    """One message to one datagram. `epoch` tells the messages of one sender from others'."""

    def __init__(self, source: Source, epoch: str) -> None:
        fields = {
            "CONTAINER_ID": source.container_id[:12],
            "CONTAINER_ID_FULL": source.container_id,
            "CONTAINER_NAME": source.container_name,
            "CONTAINER_TAG": source.tag,
            "IMAGE_NAME": source.image_name,
            "SYSLOG_IDENTIFIER": source.tag,
            "CONTAINER_LOG_EPOCH": epoch,
        }
        for key, value in source.attributes.items():
            name = journal_name(key)
            if name and name not in _JOURNAL_FIELDS and not name.startswith("CONTAINER_"):
                fields.setdefault(name, value)
        self._fields = b"".join(_field(name, value.encode()) for name, value in fields.items())
        self._ordinal = 0

    def encode(self, message: Message) -> bytes:
        self._ordinal += 1
        second, rest = divmod(message.time_ns, 10**9)
        stamp = f"{datetime.fromtimestamp(second, UTC):%Y-%m-%dT%H:%M:%S}.{rest:09}Z"
        parts = [
            _field("MESSAGE", message.data),
            b"PRIORITY=%d\n" % (_ERROR if message.stream == STDERR else _INFO),
            b"SYSLOG_TIMESTAMP=%b\nCONTAINER_LOG_ORDINAL=%d\n" % (stamp.encode(), self._ordinal),
            self._fields,
        ]
        if message.partial is not None:
            last = message.partial.last
            parts.append(
                f"CONTAINER_PARTIAL_ID={message.partial.id}\n"
                f"CONTAINER_PARTIAL_ORDINAL={message.partial.ordinal}\n"
                f"CONTAINER_PARTIAL_LAST={'true' if last else 'false'}\n".encode()
            )
            if not last:
                parts.append(b"CONTAINER_PARTIAL_MESSAGE=true\n")
        return b"".join(parts)


def journal_name(key: str) -> str:
    """A field's name: upper-case letters, digits and underscores, none of them in front; at most 64 of them."""
    return re.sub(r"[^A-Z0-9]", "_", key.upper()).lstrip("_")[:64]


def _field(name: str, value: bytes) -> bytes:
    if b"\n" not in value:
        return b"%b=%b\n" % (name.encode(), value)
    return b"%b\n%b%b\n" % (name.encode(), struct.pack("<Q", len(value)), value)
