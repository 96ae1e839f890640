"""A planner: this program with everything imported, waiting for calls. Starting Python and importing is four fifths of
what a call takes.

A call that was made without one leaves it behind; it ends after a minute without calls ($COVE_RUNTIME_WARM: seconds,
0: none is left), and when a file that it was loaded from has changed. A child, forked in advance, takes one call: it
gets the client's descriptors, working directory, umask and environment and runs the verb as the client would have;
what has to happen in the client's place, the client does (caller.py). The socket's name and a check of the peer see
to it that a planner serves only callers that are like the one who left it: same user, namespaces, capabilities, limits.

    client ──connect──▶ child ──READY──▶ client ──call──▶ child ──SPAWN, HOOK, WAIT …, EXIT──▶ client
                          └──"taken"──▶ planner, which forks the next one
"""

from __future__ import annotations

import _signal  # type: ignore[import-not-found]
import _socket
import fcntl
import gc
import os
import select
import struct
import sys
import time

from cove.ociruntime import caller
from cove.ociruntime.state import start_time
from cove.runtime.executor import Launcher

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from typing import NoReturn

IDLE_S = 60
VERSION = 2
# native/client/cove-runtime.c, enum message
FALLBACK, SPAWN, HOOK, WAIT, HOLD_SIGNALS, FOREGROUND, EXIT, READY = 1, 2, 3, 4, 5, 6, 7, 8
_ORDER = struct.Struct("<IiII")
_CALL = struct.Struct("<IIII")
_SIGCHLD, _SIGPIPE = 17, 13
_MAX_TEXT = 128 * 1024  # a hook may get the whole environment, in one message
_TICK_NS = 20_000_000  # files have the time of the last tick, processes that of the last 10 ms
_ALIKE = ("Uid:", "Gid:", "Groups:", "Cap", "NoNewPrivs:", "Seccomp")
_NAMESPACES = ("mnt", "pid", "user", "net", "cgroup", "uts", "ipc", "time")


class Client(caller.Caller):
    """The C client at the other end does what has to be done in its place."""

    def __init__(self, connection: _socket.socket, launcher: Launcher, pid: int) -> None:
        self.pid = str(pid)
        self._connection = connection
        self._launcher = launcher

    def only_here(self) -> None:
        raise caller.Fallback

    def launcher(self) -> Launcher:
        return self._launcher.copy()

    def spawn_init(self, launcher: Launcher, title: str, control: int) -> int:
        return self._ask(SPAWN, descriptors=(launcher.fileno(), control), args=("cove-init", title))

    def spawn_hook(
        self, path: str, args: Sequence[str], env: Mapping[str, str], stdin: int, output: int
    ) -> int:
        directory = os.open(".", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            variables = [f"{name}={value}" for name, value in env.items()]
            return self._ask(HOOK, descriptors=(stdin, output, directory), args=(path, *args), env=variables)
        finally:
            os.close(directory)

    def wait(self, pid: int) -> int:
        return self._ask(WAIT, pid)

    def begin_foreground(self, terminal: bool) -> None:
        if terminal:  # it is in the client's session, and so are the signals of its size
            raise caller.Fallback
        self._ask(HOLD_SIGNALS)

    def wait_foreground(self, pid: int, wait: Callable[[], int]) -> int:
        return self._ask(FOREGROUND, pid)

    def _ask(
        self,
        kind: int,
        value: int = 0,
        descriptors: Sequence[int] = (),
        args: Sequence[str] = (),
        env: Sequence[str] = (),
    ) -> int:
        """One order and its answer; a negative answer is an errno. Raises OSError."""
        strings = b"".join(text.encode(errors="surrogateescape") + b"\0" for text in (*args, *env))
        message = _ORDER.pack(kind, value, len(args), len(env)) + strings
        rights = struct.pack(f"{len(descriptors)}i", *descriptors)
        ancillary = [(_socket.SOL_SOCKET, _socket.SCM_RIGHTS, rights)] if descriptors else []
        self._connection.sendmsg([message], ancillary)
        data = self._connection.recv(4)
        if len(data) < 4:
            os._exit(1)  # the client was killed, as this program would have been in its place
        answer: int = struct.unpack("<i", data)[0]
        if answer < 0:
            raise OSError(-answer, os.strerror(-answer))
        return answer


# --- the planner ------------------------------------------------------------------------------------


def leave_behind(path: str, idle: str) -> None:
    """Fork a planner that listens at `path` for `idle` seconds; the caller goes on, and isn't its parent."""
    if any(name.startswith("LD_") for name in os.environ):
        return  # what such a caller asks of the loader is no other's wish
    begin_ns = _begin_ns()
    middle = os.fork()
    if middle:
        os.waitpid(middle, 0)
        return
    os.setsid()
    if os.fork():
        os._exit(0)
    try:
        _serve(path, int(idle) if idle.isdecimal() else IDLE_S, begin_ns)
    finally:
        os._exit(1)


def _serve(path: str, idle_s: int, begin_ns: int) -> NoReturn:
    null = os.open("/dev/null", os.O_RDWR)
    for descriptor in (0, 1, 2):
        os.dup2(null, descriptor)
    os.closerange(3, 65536)
    os.chdir("/")
    os.umask(0o077)
    for signo in caller.ALL_SIGNALS:
        if signo not in (9, 19):
            _signal.signal(signo, _signal.SIG_DFL)
    _signal.pthread_sigmask(_signal.SIG_SETMASK, ())
    _signal.signal(_SIGCHLD, _signal.SIG_IGN)  # children are reaped by the kernel
    listener = _listen(path)
    if listener is None:
        os._exit(0)
    inode = os.stat(path).st_ino
    try:
        _prepare(listener, idle_s, begin_ns)
    finally:
        try:
            if os.stat(path).st_ino == inode:
                os.unlink(path)
        except FileNotFoundError:
            pass
        os._exit(0)


def _prepare(listener: _socket.socket, idle_s: int, begin_ns: int) -> None:
    """Load everything, then have a child wait for each call; returns when nobody has called for `idle_s`."""
    from cove.ociruntime import control, create, execute, foreground, processes, teardown  # noqa: F401
    from cove.runtime import trees  # noqa: F401

    _leave_cgroup()
    _rehearse()
    launcher = Launcher.open(caller.find_binary())
    stamps = {file: _stamp(file) for file in _loaded_files()}
    if any(changed_ns >= begin_ns for changed_ns, _, _ in stamps.values()):
        return  # one may have changed since it was loaded
    own = _identity(os.getpid())
    gc.collect()
    gc.freeze()
    gc.disable()
    taken = b"+"
    while taken:
        ours, theirs = os.pipe()
        if os.fork() == 0:
            os.close(ours)
            _wait_for_call(listener, idle_s, stamps, theirs, launcher, own)
        os.close(theirs)
        taken = os.read(ours, 1)
        os.close(ours)


def _leave_cgroup() -> None:
    """Move to the hierarchies' roots where that is allowed: a planner isn't to keep its maker's cgroup, nor to be
    frozen or counted there."""
    with open("/proc/self/cgroup", encoding="ascii", errors="replace") as file:
        if all(line.rstrip("\n").endswith(":/") for line in file):
            return
    root = "/sys/fs/cgroup"
    for directory in (
        root,
        *(entry.path for entry in os.scandir(root) if entry.is_dir(follow_symlinks=False)),
    ):
        try:
            with open(f"{directory}/cgroup.procs", "r+", encoding="ascii") as procs:
                procs.write("0")
        except OSError:
            pass  # an ordinary user's stays where it is
        if os.path.exists(f"{root}/cgroup.controllers"):
            return


def _rehearse() -> None:
    """Plan a container once: decoders are made, constant parts of plans are cached, the last modules are imported."""
    from cove.model import wirejson
    from cove.model.errors import CoveError
    from cove.runtime.cgroups_detect import detect_cgroups
    from cove.runtime.default_spec import default_spec
    from cove.runtime.encode import encode
    from cove.runtime.host import find_host
    from cove.runtime.oci import encode_config, parse_config
    from cove.runtime.oci_check import check_config
    from cove.runtime.plan import plan_start
    from cove.runtime.plan_inputs import PlanFacts

    try:
        config = parse_config(wirejson.dumps(default_spec(False)))
        check_config(config)
        encode_config(config)
        encode(plan_start(config, PlanFacts(id="0", held=True), find_host(detect_cgroups().layout))[0])
    except (CoveError, OSError):
        pass  # what this host can't do will be said to whoever asks for it


def _listen(path: str) -> _socket.socket | None:
    """The listening socket, in a directory that is this user's alone; None when another planner listens."""
    directory = os.path.dirname(path)
    try:
        os.mkdir(directory, 0o700)
    except FileExistsError:
        info = os.lstat(directory)
        if info.st_uid != os.geteuid() or info.st_mode & 0o170077 != 0o040000:
            return None
    lock = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX)  # two at once would each take the other's socket for a dead one's
        return _bind(path)
    finally:
        os.close(lock)


def _bind(path: str) -> _socket.socket | None:
    listener = _socket.socket(_socket.AF_UNIX, _socket.SOCK_SEQPACKET)
    listener.setblocking(False)
    try:
        listener.connect(path)
        return None
    except FileNotFoundError:
        pass
    except BlockingIOError:
        return None  # its backlog is full
    except OSError:
        os.unlink(path)  # of a planner that was killed
    listener = _socket.socket(_socket.AF_UNIX, _socket.SOCK_SEQPACKET)
    try:
        listener.bind(path)
    except OSError:
        return None
    listener.listen(64)
    return listener


def _loaded_files() -> list[str]:
    files = [getattr(module, "__file__", None) for module in list(sys.modules.values())]
    return sorted({file for file in files if file} | {caller.find_binary()})


def _stamp(file: str) -> tuple[int, int, int]:
    try:
        info = os.stat(file)
    except OSError:
        return 0, 0, 0
    return info.st_ctime_ns, info.st_ino, info.st_size


def _begin_ns() -> int:
    """When this process began, at the latest; all modules were loaded after that. It may have run for days."""
    ticks = start_time(os.getpid())
    age_ns = time.clock_gettime_ns(time.CLOCK_BOOTTIME) - ticks * 1_000_000_000 // os.sysconf("SC_CLK_TCK")
    return time.time_ns() - age_ns - _TICK_NS


def _identity(pid: int) -> tuple[object, ...]:
    """What a client has in common with its planner, or is refused: namespaces, root, identity and rights."""
    with open(f"/proc/{pid}/status", encoding="ascii", errors="replace") as file:
        lines = [line for line in file if line.startswith(_ALIKE)]
    names = set(os.listdir(f"/proc/{pid}/ns")).intersection(_NAMESPACES)  # time: from Linux 5.6 on
    inodes = [os.stat(f"/proc/{pid}/ns/{name}").st_ino for name in sorted(names)]
    root = os.stat(f"/proc/{pid}/root/")
    return (root.st_dev, root.st_ino, *inodes, *lines)


# --- one call ---------------------------------------------------------------------------------------


def _wait_for_call(
    listener: _socket.socket,
    idle_s: int,
    stamps: Mapping[str, tuple[int, int, int]],
    taken: int,
    launcher: Launcher,
    own: tuple[object, ...],
) -> NoReturn:
    """In the child: take one call, and tell the planner, which ends when this one ends without a word."""
    poll = select.poll()
    poll.register(listener.fileno(), select.POLLIN)
    if not poll.poll(idle_s * 1000):
        os._exit(0)
    listener.setblocking(True)
    connection = _socket.socket(fileno=listener._accept()[0])  # type: ignore[attr-defined]
    if any(_stamp(file) != stamp for file, stamp in stamps.items()):
        _send_end(connection, FALLBACK, 0)
        os._exit(0)
    os.write(taken, b"+")
    os.close(taken)
    listener.close()
    _answer(connection, launcher, own)


def _answer(connection: _socket.socket, launcher: Launcher, own: tuple[object, ...]) -> NoReturn:
    """In the child: take the client's place, run the verb, tell the exit status."""
    status = 1
    try:
        _signal.signal(_SIGCHLD, _signal.SIG_DFL)
        _signal.signal(_SIGPIPE, _signal.SIG_IGN)
        pid = _check_peer(connection, own)
        _send_end(connection, READY, 0)
        arguments = _take_place(connection)
        caller.current = Client(connection, launcher, pid)
        from cove.ociruntime.main import run

        status = run(arguments)
        sys.stdout.flush()
        _send_end(connection, EXIT, status)
    except caller.Fallback:
        _send_end(connection, FALLBACK, 0)
    except BrokenPipeError:
        _send_end(connection, EXIT, 141)
    except BaseException:
        sys.excepthook(*sys.exc_info())
        _send_end(connection, EXIT, 1)
    finally:
        os._exit(0)


def _check_peer(connection: _socket.socket, own: tuple[object, ...]) -> int:
    """The client's pid. Raises Fallback for a peer that isn't like the one who left the planner."""
    pid, uid, _ = struct.unpack("iii", connection.getsockopt(_socket.SOL_SOCKET, _socket.SO_PEERCRED, 12))
    try:
        alike = uid == os.geteuid() and _identity(pid) == own
    except OSError:
        alike = False  # it has ended, or is out of sight
    if not alike:
        raise caller.Fallback
    return int(pid)


def _take_place(connection: _socket.socket) -> list[str]:
    """Descriptors 0 to 2, working directory, umask and environment of the client; its arguments."""
    data, ancillary, _, _ = connection.recvmsg(64, _socket.CMSG_SPACE(20), _socket.MSG_CMSG_CLOEXEC)
    descriptors = [fd for _, _, rights in ancillary for fd in struct.unpack(f"{len(rights) // 4}i", rights)]
    if len(data) < _CALL.size or len(descriptors) != 5:
        raise caller.Fallback
    version, mask, args, env = _CALL.unpack_from(data)
    if version != VERSION:
        raise caller.Fallback
    for target, source in enumerate(descriptors[:3]):
        os.dup2(source, target)
    os.fchdir(descriptors[3])
    os.umask(mask)
    size = os.fstat(descriptors[4]).st_size
    strings = os.pread(descriptors[4], size, 0).split(b"\0")[:-1]
    for descriptor in descriptors:
        os.close(descriptor)
    if len(strings) != args + env or size > _MAX_TEXT or any(map(caller.is_own_path, strings[:args])):
        raise caller.Fallback
    os.environ.clear()
    for variable in strings[args:]:
        name, equals, value = variable.partition(b"=")
        if name and equals:
            os.environb[name] = value
    return [os.fsdecode(argument) for argument in strings[:args]]


def _send_end(connection: _socket.socket, kind: int, status: int) -> None:
    try:
        connection.send(_ORDER.pack(kind, status, 0, 0))
    except OSError:
        pass  # the client was killed
