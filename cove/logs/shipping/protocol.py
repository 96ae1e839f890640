"""What the daemon and the shipper tell each other: one JSON object in a line, each with its kind."""

from __future__ import annotations

import msgspec

MOST_LINE = 64 << 10


class Follow(msgspec.Struct, frozen=True, kw_only=True, tag="follow"):
    """Send this container's log on; `running`: it may still grow. Said again at each start of the container."""

    container_id: str
    log_dir: str
    running: bool


class Ended(msgspec.Struct, frozen=True, kw_only=True, tag="ended"):
    """The container has ended, and its log is complete."""

    container_id: str


class Left(msgspec.Struct, frozen=True, kw_only=True, tag="left"):
    """The container was removed; its log lies at `log_dir` until it's sent, and is the shipper's to remove."""

    container_id: str
    log_dir: str


Order = Follow | Ended | Left


class Told(msgspec.Struct, frozen=True, kw_only=True, tag="told"):
    """What the shipper has to say of a log; counts are what came since it said so last."""

    container_id: str
    trouble: str = ""  # the receiver can't be reached, or takes nothing
    recovered: bool = False
    sent: int = 0  # messages
    lost_bytes: int = 0  # rotated away, or dropped, unsent
    done: bool = False  # what a removed container had left is sent, or dropped


def encode_line(message: Order | Told) -> bytes:
    return msgspec.json.encode(message) + b"\n"


decode_order = msgspec.json.Decoder(Order).decode
decode_told = msgspec.json.Decoder(Told).decode
