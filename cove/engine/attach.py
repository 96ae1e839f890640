"""Clients' sockets on their way to a supervisor: options checked, detach keys parsed."""

from __future__ import annotations

import asyncio
import contextlib
import socket

from cove.engine.types import AttachOptions
from cove.model.errors import CoveError, Invalid
from cove.runtime.launch import Attach, Task
from cove.runtime.protocol import MAX_INITIAL

_ENDING_S = 1.0  # between a process's end and its exit status
DEFAULT_DETACH_KEYS = b"\x10\x11"  # ctrl-p ctrl-q


def make_attach(options: AttachOptions, sock: socket.socket, initial: bytes, *, tty: bool) -> Attach:
    """What the supervisor is told of one client of a process with or without a terminal (`tty`).

    Only a client that sends input to a terminal can detach by keys. Whether output is framed is the
    caller's to say: a terminal's output may be, as stream 1 (Docker frames it by the exec start's Tty).
    Raises Invalid for more early input than fits a message.
    """
    if options.stdin and len(initial) > MAX_INITIAL:
        raise Invalid(
            f"attach: {len(initial)} bytes of input came before the answer, at most {MAX_INITIAL} are taken: "
            "send input once the answer is there"
        )
    keys = DEFAULT_DETACH_KEYS if options.detach_keys is None else options.detach_keys
    return Attach(
        sock=sock,
        stdin=options.stdin,
        stdout=options.stdout,
        stderr=options.stderr and not tty,
        multiplex=options.multiplex,
        detach_keys=keys if options.stdin and tty else b"",
        initial=initial if options.stdin else b"",
    )


async def attach_now(task: Task, attach: Attach) -> None:
    """Hand a client over to a running process; one that is just ending has no more output for it."""
    try:
        await task.attach(attach)
    except CoveError:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_ENDING_S):
                await task.wait()
        if task.exited is None:
            raise
        attach.sock.close()


def parse_keys(text: str) -> bytes | None:
    """Detach keys as Docker writes them: `ctrl-p,ctrl-q`, single characters, comma-separated. "" is the default.

    Raises Invalid for an unknown key.
    """
    if not text:
        return None
    keys = bytearray()
    for key in text.split(","):
        lower = key.lower()
        if len(key) == 1 and key.isascii():
            keys.append(ord(key))
        elif (
            lower.startswith("ctrl-")
            and len(lower) == 6
            and ("a" <= lower[5] <= "z" or lower[5] in "@[\\]^_")
        ):
            keys.append(ord(lower[5].upper()) & 0x1F)
        else:
            raise Invalid(f"Invalid detach keys ({text}): Unknown character: '{key}', e.g. ctrl-p,ctrl-q")
    return bytes(keys)
