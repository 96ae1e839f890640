"""Messages between the daemon and a supervisor (cove-init), over a SOCK_SEQPACKET socket.

Pure: bytes in, bytes out; descriptors travel beside a message (SCM_RIGHTS) and are named in
each function. The other side is native/src/protocol.h, with the same numbers. Little-endian;
each message starts with `u32 type, u32 id`, an answer carries its request's id. A supervisor
of an earlier release may still run, so a number is never given another meaning.
"""

from __future__ import annotations

import struct

import msgspec

MAX_MESSAGE = 160 * 1024  # below the kernel's default socket buffer (net.core.wmem_default, 208 KiB)
MAX_SLOTS = 64
MAX_INITIAL = 32 * 1024
MAX_DETACH_KEYS = 16
MAX_GROUPS = 1024
MAX_ENV_ADDITIONS = 16
MAX_ANSWER = 32 * 1024
MAX_HOOK_INPUT = MAX_ANSWER - 8

# to the supervisor
START, RESOLVED, UNRESOLVED, ATTACH, RESIZE, CLOSE_STDIN, QUERY, CONTINUE = 1, 2, 3, 4, 5, 6, 7, 8
# to the daemon
RESOLVE, STARTED, FAILED, REFUSED, DONE, DETACHED, STATE, EXITED = 16, 17, 18, 19, 20, 21, 22, 23
CLONED, PAUSED, TERMINAL, LISTENER = 24, 25, 26, 27

SUPERVISE, DETACHED_MODE = 0, 1  # modes of a start

SECTIONS = ("before", "clone", "parent", "child", "exit")
LOG_DRIVERS = {"none": 0, "local": 1, "json-file": 2}

_HEAD = struct.Struct("<II")
_START = struct.Struct("<IIQQIIIIIIII")
_ATTACH = struct.Struct("<IIIII16s")
_RESIZE = struct.Struct("<IIII")
_ANSWER = struct.Struct("<IIIIII")
_FAILED = struct.Struct("<IIIIi")
_STARTED = struct.Struct("<III")
_STATUS = struct.Struct("<Ii")
_DONE = struct.Struct("<IIi")
_STATE = struct.Struct("<IIIIQ")
_EXITED = struct.Struct("<IIIIQQ")


class Start(msgspec.Struct, frozen=True, kw_only=True):
    """The first message. Beside it: the plan (memfd), the state directory, the listening control
    socket, the log directory (unless the driver is none), then the slots.

    With `mode` DETACHED_MODE: the plan and the slots only, no log and no attaches. Then the process is a child of
    whoever started the supervisor, in a session of its own, and keeps that one's 0, 1 and 2 unless it has a
    terminal; the supervisor ends once it has sent Started. That one gets a second child, which has ended, by a SetNs
    of `before`, and by one of `child` that joins a pid namespace: the process is then the one of Started, and the
    one of Cloned has ended.
    """

    plan_size: int
    log_max_bytes: int = 0
    log_max_files: int = 0
    log_driver: int = 0
    terminal: bool
    stdin: bool = False
    stdin_once: bool = False
    slots: int
    attaches: int = 0  # that many Attach messages follow at once
    mode: int = SUPERVISE

    def encode(self) -> bytes:
        return _START.pack(
            START, 0, self.plan_size, self.log_max_bytes, self.log_max_files, self.log_driver,
            self.terminal, self.stdin, self.stdin_once, self.slots, self.attaches, self.mode,
        )  # fmt: skip


def encode_attach(
    ident: int,
    *,
    stdin: bool,
    stdout: bool,
    stderr: bool,
    multiplex: bool,
    detach_keys: bytes,
    initial: bytes,
) -> bytes:
    """Serve a client; beside it: the client's socket. `initial` is input read ahead of it."""
    flags = stdin | stdout << 1 | stderr << 2 | multiplex << 3
    head = _ATTACH.pack(ATTACH, ident, flags, len(detach_keys), len(initial), detach_keys)
    return head + initial


def encode_resize(ident: int, rows: int, cols: int) -> bytes:
    return _RESIZE.pack(RESIZE, ident, rows, cols)


def encode_simple(kind: int, ident: int) -> bytes:
    """CLOSE_STDIN, QUERY and UNRESOLVED have no body."""
    return _HEAD.pack(kind, ident)


def encode_go(text: bytes) -> bytes:
    """What starts a held process, written to its FIFO `go`; `text` and errors as with encode_continue."""
    _check_text(text)
    return len(text).to_bytes(4, "little") + text


def decode_status(data: bytes) -> tuple[int, int] | None:
    """What a held process wrote to its FIFO `status` before it was closed: None when it was executed, or the
    index of the child's step that failed and an errno. Raises ValueError for anything else."""
    if not data:
        return None
    if len(data) != _STATUS.size:
        raise ValueError(f"malformed status of {len(data)} bytes from a process")
    index, errno = _STATUS.unpack(data)
    return index, errno


def encode_resolved(uid: int, gid: int, groups: tuple[int, ...], env: tuple[str, ...]) -> bytes:
    """The answer to RESOLVE. Raises ValueError, naming the limit, when it's too large to apply."""
    if len(groups) > MAX_GROUPS:
        raise ValueError(f"user has {len(groups)} supplementary groups, at most {MAX_GROUPS} are possible")
    if len(env) > MAX_ENV_ADDITIONS:
        raise ValueError(f"{len(env)} variables were added for the user, at most {MAX_ENV_ADDITIONS}")
    message = _ANSWER.pack(RESOLVED, 0, uid, gid, len(groups), len(env))
    message += struct.pack(f"<{len(groups)}I", *groups)
    message += b"".join(variable.encode(errors="surrogateescape") + b"\0" for variable in env)
    if len(message) > MAX_ANSWER:
        raise ValueError(f"variables added for the user take {len(message)} bytes, at most {MAX_ANSWER}")
    return message


def encode_continue(text: bytes) -> bytes:
    """The answer to PAUSED; `text` is the input of later RunHook steps. (UNRESOLVED is the other answer: the step
    fails with ECANCELED.) Raises ValueError, naming the limit, when it is too long."""
    _check_text(text)
    return _HEAD.pack(CONTINUE, 0) + text


def _check_text(text: bytes) -> None:
    if len(text) > MAX_HOOK_INPUT:
        raise ValueError(
            f"the state for hooks takes {len(text)} bytes, at most {MAX_HOOK_INPUT} are possible"
        )


class Resolve(msgspec.Struct, frozen=True):
    """Look the user up; beside it: a descriptor (O_PATH) of the container's root."""


class Started(msgspec.Struct, frozen=True):
    """The process has been executed; beside it: its pidfd."""

    pid: int


class Failed(msgspec.Struct, frozen=True):
    """A step failed, and what was made is undone. `errno` is a positive number."""

    section: str
    index: int
    errno: int


class Refused(msgspec.Struct, frozen=True):
    """The plan didn't pass the check; nothing was run."""

    section: str
    index: int
    reason: str


class Done(msgspec.Struct, frozen=True):
    """The answer to a request: 0 or an errno."""

    ident: int
    errno: int


class Detached(msgspec.Struct, frozen=True):
    """The client of that Attach typed its detach keys."""

    ident: int


class StateReport(msgspec.Struct, frozen=True):
    """The answer to QUERY; beside it: pidfds of the supervisor and of the process."""

    pid: int
    supervisor_pid: int
    log_dropped_bytes: int


class Exited(msgspec.Struct, frozen=True):
    exit_code: int
    oom_killed: bool
    finished_ns: int
    log_dropped_bytes: int


class Cloned(msgspec.Struct, frozen=True):
    """The child exists and runs its steps; beside it: its pidfd. Told of a detached process, and before Paused
    and Listener."""

    pid: int


class Paused(msgspec.Struct, frozen=True):
    """The child has reached the Pause step with that index, and waits for CONTINUE or UNRESOLVED."""

    index: int


class Master(msgspec.Struct, frozen=True):
    """Detached mode: the terminal has been made; beside it: its master."""


class Listener(msgspec.Struct, frozen=True):
    """The filter has been installed; beside it: its listener (seccomp_unotify(2))."""


Message = (
    Resolve
    | Started
    | Failed
    | Refused
    | Done
    | Detached
    | StateReport
    | Exited
    | Cloned
    | Paused
    | Master
    | Listener
)


def decode(data: bytes) -> Message | None:
    """A message of a supervisor; None for a type this release doesn't know (a later one's).

    Raises ValueError when a known type is cut short: the peer isn't a supervisor.
    """
    try:
        kind, ident = _HEAD.unpack_from(data)
        if kind == RESOLVE:
            return Resolve()
        if kind == STARTED:
            return Started(_STARTED.unpack_from(data)[2])
        if kind == CLONED:
            return Cloned(_STARTED.unpack_from(data)[2])
        if kind == PAUSED:
            return Paused(_STARTED.unpack_from(data)[2])
        if kind == TERMINAL:
            return Master()
        if kind == LISTENER:
            return Listener()
        if kind == FAILED:
            _, _, section, index, errno = _FAILED.unpack_from(data)
            return Failed(SECTIONS[section], index, errno)
        if kind == REFUSED:
            _, _, section, index, _ = _FAILED.unpack_from(data)
            return Refused(SECTIONS[section], index, data[_FAILED.size :].decode(errors="replace"))
        if kind == DONE:
            return Done(ident, _DONE.unpack_from(data)[2])
        if kind == DETACHED:
            return Detached(ident)
        if kind == STATE:
            _, _, pid, supervisor_pid, dropped = _STATE.unpack_from(data)
            return StateReport(pid, supervisor_pid, dropped)
        if kind == EXITED:
            _, _, code, oom, finished, dropped = _EXITED.unpack_from(data)
            return Exited(code, bool(oom), finished, dropped)
    except (struct.error, IndexError) as error:
        raise ValueError(f"malformed message of {len(data)} bytes from a supervisor") from error
    return None
