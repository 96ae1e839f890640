"""The walls around a worker: namespaces, the tree it is left with, capabilities, limits, seccomp.

Does what it is told; only a worker process calls it, while it has one thread. Order that must hold:
everything is imported and every library loaded; `unshare_all` (or `join_mount_namespace`); mounts;
`pivot_into`; `set_limits`; `keep_capabilities`; `allow_file_calls` last. After the pivot nothing is
looked up by name in order to be loaded: no import, no NSS, no dlopen (CVE-2019-14271).
"""

from __future__ import annotations

import ctypes
import errno
import os
import resource
import struct
from collections.abc import Sequence

from cove.model.errors import HostError

CLONE_NEWNS = 0x00020000
CLONE_NEWIPC = 0x08000000
CLONE_NEWUSER = 0x10000000
CLONE_NEWPID = 0x20000000
CLONE_NEWNET = 0x40000000
MS_RDONLY = 0x1
MS_REMOUNT = 0x20
MS_BIND = 0x1000
MS_REC = 0x4000
MS_PRIVATE = 0x40000
MNT_DETACH = 2

RESOLVE_NO_MAGICLINKS = 0x02
RESOLVE_NO_SYMLINKS = 0x04
RESOLVE_BENEATH = 0x08
RESOLVE_IN_ROOT = 0x10
O_PATH = os.O_PATH

CAP_CHOWN, CAP_DAC_OVERRIDE, CAP_FOWNER, CAP_FSETID = 0, 1, 3, 4
CAP_SYS_CHROOT, CAP_SYS_ADMIN, CAP_MKNOD, CAP_SETFCAP = 18, 21, 27, 31
FILE_CAPABILITIES = (CAP_CHOWN, CAP_DAC_OVERRIDE, CAP_FOWNER, CAP_FSETID, CAP_MKNOD, CAP_SETFCAP)

_SYS_OPENAT2 = 437  # the same on every architecture, Linux 5.6
_SYS_MOUNT_SETATTR, _AT_RECURSIVE, _MOUNT_ATTR_RDONLY = 442, 0x8000, 0x1
_PR_CAPBSET_READ, _PR_CAPBSET_DROP, _PR_CAP_AMBIENT, _PR_CAP_AMBIENT_CLEAR_ALL, _PR_SET_PDEATHSIG = (
    23,
    24,
    47,
    4,
    1,
)
_PR_SET_DUMPABLE = 4
_PR_SET_NO_NEW_PRIVS = 38
_CAPABILITY_VERSION_3 = 0x20080522
_SCMP_CMP_EQ = 4  # enum scmp_compare
_SCMP_ALLOW, _SCMP_EPERM = 0x7FFF0000, 0x00050000 | errno.EPERM

# What a worker still needs once it is walled in: memory, threads, its descriptors, files by descriptor.
_CALLS = """
access arch_prctl brk chdir chmod chown clock_gettime clock_nanosleep clone3 clone close close_range
copy_file_range dup exit exit_group faccessat faccessat2 fadvise64 fallocate fchdir fchmod fchmodat
fchmodat2 fchown fchownat fcntl fdatasync fgetxattr flistxattr fremovexattr fsetxattr fstat fstatfs fsync
ftruncate futex getdents64 getpid getrandom gettid getxattr ioctl lgetxattr link linkat listxattr
llistxattr lseek lsetxattr lstat madvise membarrier mkdir mkdirat mknod mknodat mmap mprotect mremap munmap
nanosleep newfstatat open openat openat2 poll ppoll pread64 preadv preadv2 pwrite64 pwritev pwritev2 read
readlink readlinkat readv recvfrom recvmsg rename renameat renameat2 restart_syscall rmdir rseq
rt_sigaction rt_sigprocmask rt_sigreturn sched_getaffinity sched_yield select pselect6 sendfile sendmsg
sendto set_robust_list setxattr shutdown sigaltstack splice stat statfs statx symlink symlinkat
sync_file_range syncfs umask unlink unlinkat utimensat write writev
""".split()

_libc = ctypes.CDLL(None, use_errno=True)


def openat2(directory: int, path: bytes, flags: int, resolve: int, mode: int = 0) -> int:
    """openat2(2): open `path` below `directory` under the rules of `resolve`. OSError as open(2)."""
    how = struct.pack("=QQQ", flags | os.O_CLOEXEC, mode, resolve)
    while True:
        fd: int = _libc.syscall(_SYS_OPENAT2, directory, path, how, len(how))
        if fd >= 0:
            return fd
        number = ctypes.get_errno()
        # EAGAIN: a rename raced with ".." under RESOLVE_IN_ROOT; the lookup is done anew.
        if number not in (errno.EINTR, errno.EAGAIN):
            raise OSError(number, os.strerror(number), path)


def sync_filesystem(fd: int) -> None:
    """syncfs(2): write out everything of the file system that `fd` is on."""
    _check(_libc.syncfs(fd), "write the files to the disk")


def mount(source: str, target: str, fstype: str, flags: int, data: str = "") -> None:
    """mount(2)."""
    _check(
        _libc.mount(source.encode(), target.encode(), fstype.encode(), ctypes.c_ulong(flags), data.encode()),
        f"mount {source or fstype} on {target}",
    )


def die_with_parent() -> None:
    """End when the daemon does; whoever was to read the answer is gone."""
    _check(_libc.prctl(_PR_SET_PDEATHSIG, 9, 0, 0, 0), "tie the worker to its parent")


def hide_from_tracers() -> None:
    """Only CAP_SYS_PTRACE may look into this process from here on: a container in the host's pid namespace has
    as many capabilities as a worker keeps, and would get at its tree and its descriptors. PR_SET_DUMPABLE."""
    _check(_libc.prctl(_PR_SET_DUMPABLE, 0, 0, 0, 0), "hide the worker")


def unshare_all() -> None:
    """Namespaces of its own for mounts, network and IPC; no mount leaves for the host or comes from it."""
    _check(_libc.unshare(CLONE_NEWNS | CLONE_NEWNET | CLONE_NEWIPC), "make namespaces for a worker")
    mount("", "/", "", MS_REC | MS_PRIVATE)


def unshare(flags: int) -> None:
    """Further namespaces; one of processes is for the next child and what that starts."""
    _check(_libc.unshare(flags), "make namespaces for a worker")


def no_new_privileges() -> None:
    """No program that is executed from here on gains anything by its owner or its capabilities."""
    _check(_libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0), "give up new privileges")


def unshare_files() -> None:
    """A mount namespace of its own, the network stays."""
    _check(_libc.unshare(CLONE_NEWNS | CLONE_NEWIPC), "make namespaces for a worker")
    mount("", "/", "", MS_REC | MS_PRIVATE)


def become(uid: int) -> None:
    """Another user and group, for good, where the user namespace has that one; then be as before to the parent. The
    bounding set goes first, which takes a capability that only the former user has."""
    number = 0
    while _libc.prctl(_PR_CAPBSET_DROP, number, 0, 0, 0) == 0:
        number += 1
    try:
        os.setgroups([])
        os.setresgid(uid, uid, uid)
        os.setresuid(uid, uid, uid)
    except OSError as error:
        if error.errno not in (
            errno.EINVAL,
            errno.EPERM,
        ):  # a user namespace with one user, without setgroups(2)
            raise
    die_with_parent()  # prctl(2): cleared by a change of the credentials
    hide_from_tracers()


def join_mount_namespace(pidfd: int) -> None:
    """Enter the mount namespace of a process, and its user namespace; its root becomes the root. setns(2) with a
    pidfd, Linux 5.8."""
    _check(_libc.unshare(CLONE_NEWNET | CLONE_NEWIPC), "make namespaces for a worker")
    if _libc.setns(pidfd, CLONE_NEWUSER) == 0:  # owners are those that the container sees
        os.setresgid(0, 0, 0)
        os.setresuid(0, 0, 0)
    elif ctypes.get_errno() != errno.EINVAL:  # which says that it is this process's own
        _check(-1, "enter the container's user namespace")
    _check(_libc.setns(pidfd, CLONE_NEWNS), "enter the container's mount namespace")


def pivot_into(path: str, *, bind: bool = True) -> None:
    """Make `path` the root and let go of everything else. `bind`: it isn't a mount point yet."""
    if bind:
        mount(path, path, "", MS_BIND)
    os.chdir(path)
    _check(_libc.pivot_root(b".", b"."), f"make {path} the root")
    _check(_libc.umount2(b".", MNT_DETACH), "let go of the host's files")
    os.chdir("/")


def read_only_but(path: str) -> None:
    """Nothing can be written any more but below `path`; in a mount namespace of its own. mount_setattr(2)."""
    mount(path, path, "", MS_BIND)
    _set_read_only(b"/", read_only=True)
    _set_read_only(path.encode(), read_only=False)


def _set_read_only(path: bytes, *, read_only: bool) -> None:
    change = (_MOUNT_ATTR_RDONLY, 0) if read_only else (0, _MOUNT_ATTR_RDONLY)
    attributes = struct.pack("=QQQQ", *change, 0, 0)
    result = _libc.syscall(_SYS_MOUNT_SETATTR, -100, path, _AT_RECURSIVE, attributes, len(attributes))
    _check(result, "make the host's files read-only for a worker")


def set_limits(*, memory_bytes: int = 4 << 30, files: int = 512) -> None:
    """Bounds on what a worker can take of the machine."""
    for which, value in (
        (resource.RLIMIT_AS, memory_bytes),
        (resource.RLIMIT_NOFILE, files),
        (resource.RLIMIT_CORE, 0),
    ):
        hard = resource.getrlimit(which)[1]
        value = value if hard == resource.RLIM_INFINITY else min(value, hard)
        resource.setrlimit(which, (value, value))


def keep_capabilities(keep: Sequence[int], *, programs: bool = False) -> None:
    """Give up every capability but these, for good. `programs`: what is executed has them, too, and else has none."""
    _libc.prctl(_PR_CAP_AMBIENT, _PR_CAP_AMBIENT_CLEAR_ALL, 0, 0, 0)
    number = 0
    while _libc.prctl(_PR_CAPBSET_READ, number, 0, 0, 0) >= 0:
        if not (programs and number in keep):
            _libc.prctl(_PR_CAPBSET_DROP, number, 0, 0, 0)
        number += 1
    mask = sum(1 << c for c in keep)
    header = struct.pack("=Ii", _CAPABILITY_VERSION_3, 0)
    low, high = mask & 0xFFFFFFFF, mask >> 32
    data = struct.pack("=6I", low, low, 0, high, high, 0)
    _check(_libc.capset(header, data), "drop capabilities")


class _Comparison(ctypes.Structure):
    """struct scmp_arg_cmp of libseccomp: the argument's place, how it is compared, with what."""

    _fields_ = (
        ("argument", ctypes.c_uint),
        ("operator", ctypes.c_int),
        ("first", ctypes.c_uint64),
        ("second", ctypes.c_uint64),
    )


class FileCalls:
    """A seccomp filter that lets only file work (or `names`) through; made while libraries can still be loaded."""

    def __init__(self, names: Sequence[str] = _CALLS) -> None:
        library = ctypes.CDLL("libseccomp.so.2", use_errno=True)
        library.seccomp_init.restype = ctypes.c_void_p
        library.seccomp_rule_add.argtypes = (ctypes.c_void_p, ctypes.c_uint32, ctypes.c_int, ctypes.c_uint)
        library.seccomp_load.argtypes = (ctypes.c_void_p,)
        context = library.seccomp_init(_SCMP_EPERM)
        if not context:
            raise HostError("libseccomp can't make a filter")
        library.seccomp_rule_add_array.argtypes = (
            ctypes.c_void_p,
            ctypes.c_uint32,
            ctypes.c_int,
            ctypes.c_uint,
            ctypes.POINTER(_Comparison),
        )
        for name in names:
            number = library.seccomp_syscall_resolve_name(name.encode())
            if number >= 0:  # negative: this architecture doesn't have the call
                library.seccomp_rule_add(context, _SCMP_ALLOW, number, 0)
        self._library, self._context = library, context

    def allow(self, names: Sequence[str]) -> None:
        """Let further system calls through."""
        for name in names:
            number = self._library.seccomp_syscall_resolve_name(name.encode())
            self._library.seccomp_rule_add(self._context, _SCMP_ALLOW, number, 0)

    def allow_sockets(self, families: Sequence[int]) -> None:
        """Let sockets of these families be made."""
        number = self._library.seccomp_syscall_resolve_name(b"socket")
        for family in families:
            same = _Comparison(0, _SCMP_CMP_EQ, family, 0)
            self._library.seccomp_rule_add_array(self._context, _SCMP_ALLOW, number, 1, ctypes.byref(same))

    def apply(self) -> None:
        """From here on every other system call fails with EPERM. Sets no_new_privs."""
        result = self._library.seccomp_load(self._context)
        if result < 0:
            raise HostError(f"load the worker's seccomp filter: {os.strerror(-result)}")


def _check(result: int, what: str) -> None:
    if result < 0:
        raise HostError(f"{what}: {os.strerror(ctypes.get_errno())}")
