"""System call filters: Docker's default policy, Docker's profile format, and which rules hold where.

Pure. A profile is a list of rules that hold under conditions (`includes`, `excludes`: capabilities of the
container, architecture, least kernel); `select` turns it into the unconditional form of the OCI config, which
seccomp_compile.py turns into a program. The default policy follows moby's (github.com/moby/profiles), but for
sockets, where it is stricter: what it allows and under which capabilities is here as tables.
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import lru_cache

import msgspec

from cove.model.errors import Invalid
from cove.runtime import capabilities
from cove.runtime.oci import Seccomp, SeccompArg, SeccompSyscall
from cove.runtime.seccomp_check import ARCHITECTURES, check_filter

# --- the profile format (moby's: the OCI form with conditions) --------------------------------------


class Conditions(msgspec.Struct, frozen=True, kw_only=True, rename="camel"):
    """All of `caps` and the kernel, any of `arches` for includes; any of each for excludes."""

    caps: tuple[str, ...] = ()
    arches: tuple[str, ...] = ()
    min_kernel: str = ""


class ProfileArg(msgspec.Struct, frozen=True, kw_only=True, rename="camel"):
    index: int
    value: int
    value_two: int = 0
    op: str = "SCMP_CMP_EQ"


class ProfileRule(msgspec.Struct, frozen=True, kw_only=True, rename="camel"):
    """`name` is an older form of `names`."""

    names: tuple[str, ...] = ()
    name: str = ""
    action: str
    errno_ret: int | None = None
    args: tuple[ProfileArg, ...] | None = None
    comment: str = ""
    includes: Conditions | None = None
    excludes: Conditions | None = None


class ArchMap(msgspec.Struct, frozen=True, kw_only=True, rename="camel"):
    architecture: str
    sub_architectures: tuple[str, ...] | None = None


class Profile(msgspec.Struct, frozen=True, kw_only=True, rename="camel"):
    """A profile as `--security-opt seccomp=FILE` has it."""

    default_action: str = ""
    default_errno_ret: int | None = None
    architectures: tuple[str, ...] | None = None
    arch_map: tuple[ArchMap, ...] | None = None
    flags: tuple[str, ...] | None = None
    listener_path: str = ""
    listener_metadata: str = ""
    syscalls: tuple[ProfileRule, ...] | None = None


_decoder = msgspec.json.Decoder(Profile)

# Docker's name of the host's architecture -> the name in profiles
_ARCH_NAMES = {
    "386": "SCMP_ARCH_X86",
    "amd64": "SCMP_ARCH_X86_64",
    "arm": "SCMP_ARCH_ARM",
    "arm64": "SCMP_ARCH_AARCH64",
    "loong64": "SCMP_ARCH_LOONGARCH64",
    "ppc64le": "SCMP_ARCH_PPC64LE",
    "riscv64": "SCMP_ARCH_RISCV64",
    "s390x": "SCMP_ARCH_S390X",
}


@lru_cache(maxsize=64)
def parse_profile(text: str) -> Profile:
    """Read a profile's JSON. Raises Invalid with the path of what is wrong."""
    try:
        profile = _decoder.decode(text)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise Invalid(f"Decoding seccomp profile failed: {error}") from None
    if profile.architectures and profile.arch_map:
        raise Invalid(
            "both 'architectures' and 'archMap' are specified in the seccomp profile, use either "
            "'architectures' or 'archMap'"
        )
    rules = profile.syscalls or ()
    if not profile.default_action and rules:
        raise Invalid("seccomp profile: defaultAction is missing, e.g. SCMP_ACT_ERRNO")
    for rule in rules:
        if rule.name and rule.names:
            raise Invalid(
                "both 'name' and 'names' are specified in the seccomp profile, use either 'name' or 'names'"
            )
        for conditions in (rule.includes, rule.excludes):
            if conditions is not None and conditions.min_kernel:
                _parse_kernel(conditions.min_kernel)
    for index, entry in enumerate(profile.arch_map or ()):
        for name in (entry.architecture, *(entry.sub_architectures or ())):
            if name not in ARCHITECTURES:
                raise Invalid(
                    f"seccomp profile: archMap[{index}]: {name!r} is unknown, e.g. use SCMP_ARCH_X86_64"
                )
    if profile.default_action:
        check_filter(_filter(profile, rules, profile.architectures or ()), "seccomp profile: ")
    return profile


def _filter(profile: Profile, rules: Iterable[ProfileRule], architectures: tuple[str, ...]) -> Seccomp:
    return Seccomp(
        default_action=profile.default_action,
        default_errno_ret=profile.default_errno_ret,
        architectures=architectures,
        flags=profile.flags or (),
        listener_path=profile.listener_path,
        listener_metadata=profile.listener_metadata,
        syscalls=tuple(
            SeccompSyscall(
                names=rule.names or ((rule.name,) if rule.name else ()),
                action=rule.action,
                errno_ret=rule.errno_ret,
                args=tuple(
                    SeccompArg(index=arg.index, value=arg.value, value_two=arg.value_two, op=arg.op)
                    for arg in rule.args or ()
                ),
            )
            for rule in rules
        ),
    )


def _parse_kernel(text: str) -> tuple[int, int]:
    major, dot, minor = text.partition(".")
    if not (dot and major.isdigit() and minor.isdigit()) or (int(major), int(minor)) == (0, 0):
        raise Invalid(f'seccomp profile: invalid kernel version: "{text}", expected "<kernel>.<major>"')
    return int(major), int(minor)


# --- which rules hold -------------------------------------------------------------------------------


@lru_cache(maxsize=256)
def select(text: str, bounding: int, architecture: str, kernel: tuple[int, int]) -> Seccomp | None:
    """The filter of a container: `text` is "" (the default policy), "unconfined" or a profile's JSON.

    None means no filter: unconfined, or a profile that says nothing. Answers are kept: the same question gets
    the same object. Raises Invalid.
    """
    if text == "unconfined":
        return None
    profile = parse_profile(text) if text else DEFAULT
    if not profile.default_action:
        return None
    native = _ARCH_NAMES.get(architecture, "")
    architectures = profile.architectures or ()
    for entry in profile.arch_map or ():
        if entry.architecture == native:
            architectures = (native, *(entry.sub_architectures or ()))
            break
    names = frozenset(capabilities.names(bounding))
    rules = (rule for rule in profile.syscalls or () if _holds(rule, names, architecture, kernel))
    return _filter(profile, rules, architectures)


def _holds(rule: ProfileRule, names: frozenset[str], architecture: str, kernel: tuple[int, int]) -> bool:
    no = rule.excludes
    if no is not None and (
        architecture in no.arches
        or not names.isdisjoint(no.caps)
        or (no.min_kernel and kernel >= _parse_kernel(no.min_kernel))
    ):
        return False
    yes = rule.includes
    return yes is None or (
        (not yes.arches or architecture in yes.arches)
        and names.issuperset(yes.caps)
        and (not yes.min_kernel or kernel >= _parse_kernel(yes.min_kernel))
    )


# --- the default policy -----------------------------------------------------------------------------

_ALWAYS = """
_llseek _newselect accept accept4 access adjtimex alarm bind brk cachestat capget capset chdir chmod chown
chown32 clock_adjtime clock_adjtime64 clock_getres clock_getres_time64 clock_gettime clock_gettime64
clock_nanosleep clock_nanosleep_time64 close close_range connect copy_file_range creat dup dup2 dup3
epoll_create epoll_create1 epoll_ctl epoll_ctl_old epoll_pwait epoll_pwait2 epoll_wait epoll_wait_old
eventfd eventfd2 execve execveat exit exit_group faccessat faccessat2 fadvise64 fadvise64_64 fallocate
fanotify_mark fchdir fchmod fchmodat fchmodat2 fchown fchown32 fchownat fcntl fcntl64 fdatasync fgetxattr
flistxattr flock fork fremovexattr fsetxattr fstat fstat64 fstatat64 fstatfs fstatfs64 fsync ftruncate
ftruncate64 futex futex_requeue futex_time64 futex_wait futex_waitv futex_wake futimesat get_robust_list
get_thread_area getcpu getcwd getdents getdents64 getegid getegid32 geteuid geteuid32 getgid getgid32
getgroups getgroups32 getitimer getpeername getpgid getpgrp getpid getppid getpriority getrandom getresgid
getresgid32 getresuid getresuid32 getrlimit getrusage getsid getsockname getsockopt gettid gettimeofday
getuid getuid32 getxattr getxattrat inotify_add_watch inotify_init inotify_init1 inotify_rm_watch
io_cancel io_destroy io_getevents io_pgetevents io_pgetevents_time64 io_setup io_submit ioctl ioprio_get
ioprio_set ipc kill landlock_add_rule landlock_create_ruleset landlock_restrict_self lchown lchown32
lgetxattr link linkat listen listmount listxattr listxattrat llistxattr lremovexattr lseek lsetxattr lstat
lstat64 madvise map_shadow_stack membarrier memfd_create memfd_secret mincore mkdir mkdirat mknod mknodat
mlock mlock2 mlockall mmap mmap2 mprotect mq_getsetattr mq_notify mq_open mq_timedreceive
mq_timedreceive_time64 mq_timedsend mq_timedsend_time64 mq_unlink mremap mseal msgctl msgget msgrcv msgsnd
msync munlock munlockall munmap name_to_handle_at nanosleep newfstatat open openat openat2 pause
pidfd_open pidfd_send_signal pipe pipe2 pkey_alloc pkey_free pkey_mprotect poll ppoll ppoll_time64 prctl
pread64 preadv preadv2 prlimit64 process_mrelease pselect6 pselect6_time64 pwrite64 pwritev pwritev2 read
readahead readlink readlinkat readv recv recvfrom recvmmsg recvmmsg_time64 recvmsg remap_file_pages
removexattr removexattrat rename renameat renameat2 restart_syscall riscv_hwprobe rmdir rseq rt_sigaction
rt_sigpending rt_sigprocmask rt_sigqueueinfo rt_sigreturn rt_sigsuspend rt_sigtimedwait
rt_sigtimedwait_time64 rt_tgsigqueueinfo sched_get_priority_max sched_get_priority_min sched_getaffinity
sched_getattr sched_getparam sched_getscheduler sched_rr_get_interval sched_rr_get_interval_time64
sched_setaffinity sched_setattr sched_setparam sched_setscheduler sched_yield seccomp select semctl semget
semop semtimedop semtimedop_time64 send sendfile sendfile64 sendmmsg sendmsg sendto set_robust_list
set_thread_area set_tid_address setfsgid setfsgid32 setfsuid setfsuid32 setgid setgid32 setgroups
setgroups32 setitimer setpgid setpriority setregid setregid32 setresgid setresgid32 setresuid setresuid32
setreuid setreuid32 setrlimit setsid setsockopt setuid setuid32 setxattr setxattrat shmat shmctl shmdt
shmget shutdown sigaltstack signalfd signalfd4 sigprocmask sigreturn socketpair splice stat
stat64 statfs statfs64 statmount statx symlink symlinkat sync sync_file_range syncfs sysinfo tee tgkill
time timer_create timer_delete timer_getoverrun timer_gettime timer_gettime64 timer_settime
timer_settime64 timerfd_create timerfd_gettime timerfd_gettime64 timerfd_settime timerfd_settime64 times
tkill truncate truncate64 ugetrlimit umask uname unlink unlinkat uretprobe utime utimensat
utimensat_time64 utimes vfork vmsplice wait4 waitid waitpid write writev
"""

# capability -> what it unlocks
_BY_CAPABILITY = {
    "CAP_DAC_READ_SEARCH": "open_by_handle_at",
    "CAP_SYS_ADMIN": """
        bpf clone clone3 fanotify_init fsconfig fsmount fsopen fspick lookup_dcookie lsm_get_self_attr
        lsm_list_modules lsm_set_self_attr mount mount_setattr move_mount open_tree perf_event_open quotactl
        quotactl_fd setdomainname sethostname setns syslog umount umount2 unshare""",
    "CAP_SYS_BOOT": "reboot",
    "CAP_SYS_CHROOT": "chroot",
    "CAP_SYS_MODULE": "delete_module finit_module init_module",
    "CAP_SYS_PACCT": "acct",
    "CAP_SYS_PTRACE": "kcmp pidfd_getfd process_madvise process_vm_readv process_vm_writev ptrace",
    "CAP_SYS_RAWIO": "ioperm iopl",
    "CAP_SYS_TIME": "clock_settime clock_settime64 settimeofday stime",
    "CAP_SYS_TTY_CONFIG": "vhangup",
    "CAP_SYS_NICE": "get_mempolicy mbind set_mempolicy set_mempolicy_home_node",
    "CAP_SYSLOG": "syslog",
    "CAP_BPF": "bpf",
    "CAP_PERFMON": "perf_event_open",
}

# architectures -> what only they have
_BY_ARCHITECTURE = {
    ("ppc64le",): "swapcontext sync_file_range2",
    ("arm", "arm64"): "arm_fadvise64_64 arm_sync_file_range breakpoint cacheflush set_tls sync_file_range2",
    ("amd64", "x32"): "arch_prctl",
    ("amd64", "x32", "x86"): "modify_ldt",
    ("s390", "s390x"): "s390_pci_mmio_read s390_pci_mmio_write s390_runtime_instr",
    ("riscv64",): "riscv_flush_icache",
}

_SUB_ARCHITECTURES = {
    "SCMP_ARCH_X86_64": ("SCMP_ARCH_X86", "SCMP_ARCH_X32"),
    "SCMP_ARCH_AARCH64": ("SCMP_ARCH_ARM",),
    "SCMP_ARCH_S390X": ("SCMP_ARCH_S390",),
    "SCMP_ARCH_RISCV64": (),
    "SCMP_ARCH_LOONGARCH64": (),
}

_EPERM, _ENOSYS = 1, 38
_AF_ALG, _AF_VSOCK, _MAX_FAMILY = 38, 40, 63  # Linux 6.18 has 46
_SYS_SOCKET, _SYS_SENDMMSG = 1, 20  # linux/net.h
_NAMESPACE_FLAGS = 0x7E020000  # CLONE_NEW{NS,CGROUP,UTS,IPC,USER,PID,NET}
# personality(2): Linux, Linux with 16-bit uids, the same two for uname 2.6, and asking only
_PERSONALITIES = (0x0, 0x8, 0x20000, 0x20008, 0xFFFFFFFF)


def _allow(
    names: str, *args: ProfileArg, includes: Conditions | None = None, excludes: Conditions | None = None
) -> ProfileRule:
    return ProfileRule(
        names=tuple(names.split()), action="SCMP_ACT_ALLOW", args=args, includes=includes, excludes=excludes
    )


def _argument(index: int, op: str, value: int, value_two: int = 0) -> ProfileArg:
    return ProfileArg(index=index, op=f"SCMP_CMP_{op}", value=value, value_two=value_two)


def _allow_between(name: str, first: int, last: int) -> list[ProfileRule]:
    """`name` with a first argument from `first` to `last`. As aligned blocks, which look at all 64 bits and let
    nothing above through: the kernel drops the upper half of an int, so that 2**32 + 38 is AF_ALG to it and yet
    greater than 40 to a filter."""
    rules = []
    while first <= last:
        size = first & -first or 1 << last.bit_length()
        while first + size - 1 > last:
            size >>= 1
        rules.append(_allow(name, _argument(0, "MASKED_EQ", 2**64 - size, first)))
        first += size
    return rules


def _default_rules() -> list[ProfileRule]:
    no_admin = Conditions(caps=("CAP_SYS_ADMIN",))
    s390 = ("s390", "s390x")
    rules = [
        _allow(_ALWAYS),
        # ptrace(2) could be used to get around seccomp before Linux 4.8
        _allow("process_vm_readv process_vm_writev ptrace", includes=Conditions(min_kernel="4.8")),
    ]
    # every address family but AF_ALG (kernel crypto) and AF_VSOCK (the hypervisor); socketcall(2) hides the family
    # from a filter, so it makes no sockets (CVE-2026-31431): programs of today call socket(2) on 32 bits, too
    rules += _allow_between("socket", 0, _AF_ALG - 1)
    rules += _allow_between("socket", _AF_ALG + 1, _AF_VSOCK - 1)
    rules += _allow_between("socket", _AF_VSOCK + 1, _MAX_FAMILY)
    rules += _allow_between("socketcall", _SYS_SOCKET + 1, _SYS_SENDMMSG)
    rules.append(
        ProfileRule(
            names=("socketcall",),
            action="SCMP_ACT_ERRNO",
            errno_ret=_ENOSYS,
            args=(_argument(0, "EQ", _SYS_SOCKET),),
        )
    )
    rules += [_allow("personality", _argument(0, "EQ", value)) for value in _PERSONALITIES]
    rules += [_allow(names, includes=Conditions(arches=arches)) for arches, names in _BY_ARCHITECTURE.items()]
    rules += [_allow(names, includes=Conditions(caps=(cap,))) for cap, names in _BY_CAPABILITY.items()]
    # without CAP_SYS_ADMIN clone(2) makes no namespaces; clone3(2) hides its flags from a filter, so programs
    # are told that it doesn't exist and fall back
    without = Conditions(caps=("CAP_SYS_ADMIN",), arches=s390)
    rules.append(_allow("clone", _argument(0, "MASKED_EQ", _NAMESPACE_FLAGS), excludes=without))
    rules.append(
        _allow(
            "clone",
            _argument(1, "MASKED_EQ", _NAMESPACE_FLAGS),
            includes=Conditions(arches=s390),
            excludes=no_admin,
        )
    )
    rules.append(
        ProfileRule(names=("clone3",), action="SCMP_ACT_ERRNO", errno_ret=_ENOSYS, excludes=no_admin)
    )
    return rules


DEFAULT = Profile(
    default_action="SCMP_ACT_ERRNO",
    default_errno_ret=_EPERM,
    arch_map=tuple(
        ArchMap(architecture=native, sub_architectures=others)
        for native, others in _SUB_ARCHITECTURES.items()
    ),
    syscalls=tuple(_default_rules()),
)
