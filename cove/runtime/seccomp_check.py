"""What a system call filter may say: the words of the OCI specification (config-linux.md, "Seccomp"), their numbers
for the kernel, and whether a filter keeps to them. Pure.
"""

from __future__ import annotations

from cove.model.errors import Invalid
from cove.runtime.oci import Seccomp, SeccompSyscall

# seccomp(2), linux/seccomp.h: SECCOMP_RET_*; the low 16 bits are an errno or a tracer's message
ACTIONS = {
    "SCMP_ACT_KILL": 0x00000000,
    "SCMP_ACT_KILL_THREAD": 0x00000000,
    "SCMP_ACT_KILL_PROCESS": 0x80000000,
    "SCMP_ACT_TRAP": 0x00030000,
    "SCMP_ACT_ERRNO": 0x00050000,
    "SCMP_ACT_NOTIFY": 0x7FC00000,
    "SCMP_ACT_TRACE": 0x7FF00000,
    "SCMP_ACT_LOG": 0x7FFC0000,
    "SCMP_ACT_ALLOW": 0x7FFF0000,
}
_WITH_ERRNO = {
    "SCMP_ACT_ERRNO": 4094,
    "SCMP_ACT_TRACE": 65535,
}  # what libseccomp takes: below MAX_ERRNO; 16 bits
# a call that these meet gets done, or a tracer decides: it knows what to do with calls of the future
PERMISSIVE = frozenset({"SCMP_ACT_ALLOW", "SCMP_ACT_LOG", "SCMP_ACT_TRACE"})

# seccomp.h of libseccomp: enum scmp_compare
OPERATORS = {
    "SCMP_CMP_NE": 1,
    "SCMP_CMP_LT": 2,
    "SCMP_CMP_LE": 3,
    "SCMP_CMP_EQ": 4,
    "SCMP_CMP_GE": 5,
    "SCMP_CMP_GT": 6,
    "SCMP_CMP_MASKED_EQ": 7,
}

_64, _LE = 0x80000000, 0x40000000
# linux/audit.h: AUDIT_ARCH_*; x32 is libseccomp's number: to the kernel it is x86-64 with a bit in the call's number
ARCHITECTURES = {
    "SCMP_ARCH_X86": 3 | _LE,
    "SCMP_ARCH_X86_64": 62 | _64 | _LE,
    "SCMP_ARCH_X32": 62 | _LE,
    "SCMP_ARCH_ARM": 40 | _LE,
    "SCMP_ARCH_AARCH64": 183 | _64 | _LE,
    "SCMP_ARCH_LOONGARCH64": 258 | _64 | _LE,
    "SCMP_ARCH_M68K": 4,
    "SCMP_ARCH_MIPS": 8,
    "SCMP_ARCH_MIPS64": 8 | _64,
    "SCMP_ARCH_MIPS64N32": 8 | _64 | 0x20000000,
    "SCMP_ARCH_MIPSEL": 8 | _LE,
    "SCMP_ARCH_MIPSEL64": 8 | _64 | _LE,
    "SCMP_ARCH_MIPSEL64N32": 8 | _64 | _LE | 0x20000000,
    "SCMP_ARCH_PARISC": 15,
    "SCMP_ARCH_PARISC64": 15 | _64,
    "SCMP_ARCH_PPC": 20,
    "SCMP_ARCH_PPC64": 21 | _64,
    "SCMP_ARCH_PPC64LE": 21 | _64 | _LE,
    "SCMP_ARCH_RISCV64": 243 | _64 | _LE,
    "SCMP_ARCH_S390": 22,
    "SCMP_ARCH_S390X": 22 | _64,
    "SCMP_ARCH_SH": 42 | _LE,
    "SCMP_ARCH_SHEB": 42,
}

# linux/seccomp.h: SECCOMP_FILTER_FLAG_*
FLAGS = {
    "SECCOMP_FILTER_FLAG_TSYNC": 1 << 0,
    "SECCOMP_FILTER_FLAG_LOG": 1 << 1,
    "SECCOMP_FILTER_FLAG_SPEC_ALLOW": 1 << 2,
    "SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV": 1 << 5,
}
NEW_LISTENER = 1 << 3

# runc writes the listener's number when the filter holds already: what runs here is to run there
_NEVER_NOTIFIED = ("write",)


def notifies(filter_: Seccomp) -> bool:
    """Whether some rule asks an agent, so that the filter has a listener."""
    return any(rule.action == "SCMP_ACT_NOTIFY" for rule in filter_.syscalls)


def action_number(action: str, errno_ret: int | None) -> int:
    """What the program returns for an action. Without an errno it is EPERM (config-linux.md)."""
    data = (1 if errno_ret is None else errno_ret) if action in _WITH_ERRNO else 0
    return ACTIONS[action] | data


def check_filter(filter_: Seccomp, prefix: str = "linux.seccomp.") -> None:
    """Raises Invalid with the path, after `prefix`, of the first thing that no filter can say."""
    _check_action(f"{prefix}defaultAction", filter_.default_action)
    _check_errno(f"{prefix}defaultErrnoRet", filter_.default_action, filter_.default_errno_ret)
    if filter_.default_action == "SCMP_ACT_NOTIFY":
        raise Invalid(
            f"{prefix}defaultAction: SCMP_ACT_NOTIFY can't be the default: "
            "name the calls that an agent is to decide about in syscalls"
        )
    for index, name in enumerate(filter_.architectures):
        if name not in ARCHITECTURES:
            raise Invalid(f"{prefix}architectures[{index}]: {name!r} is unknown, use {_words(ARCHITECTURES)}")
    for index, name in enumerate(filter_.flags):
        if name not in FLAGS:
            raise Invalid(f"{prefix}flags[{index}]: {name!r} is unknown, use {_words(FLAGS)}")
    for index, rule in enumerate(filter_.syscalls):
        _check_rule(f"{prefix}syscalls[{index}]", rule)
    if notifies(filter_) and not filter_.listener_path:
        raise Invalid(
            f"{prefix}listenerPath: SCMP_ACT_NOTIFY needs the unix socket of an agent, e.g. /run/agent.sock"
        )
    if filter_.listener_path and not filter_.listener_path.startswith("/"):
        raise Invalid(
            f"{prefix}listenerPath: {filter_.listener_path!r} must be absolute, e.g. /run/agent.sock"
        )
    if filter_.listener_metadata and not filter_.listener_path:
        raise Invalid(f"{prefix}listenerMetadata: it is for the agent of listenerPath, which isn't set")


def _check_rule(where: str, rule: SeccompSyscall) -> None:
    if not rule.names:
        raise Invalid(f"{where}.names: name at least one system call, e.g. mkdir")
    for index, name in enumerate(rule.names):
        if not name or "\0" in name:
            raise Invalid(f"{where}.names[{index}]: {name!r} is no system call's name, e.g. use mkdir")
        if rule.action == "SCMP_ACT_NOTIFY" and name in _NEVER_NOTIFIED:
            raise Invalid(
                f"{where}.names[{index}]: SCMP_ACT_NOTIFY can't be used for {name}, "
                "by which OCI runtimes tell of the listener: use SCMP_ACT_ERRNO or SCMP_ACT_TRACE"
            )
    _check_action(f"{where}.action", rule.action)
    _check_errno(f"{where}.errnoRet", rule.action, rule.errno_ret)
    for index, arg in enumerate(rule.args):
        place = f"{where}.args[{index}]"
        if not 0 <= arg.index <= 5:
            raise Invalid(f"{place}.index: {arg.index} is no argument of a system call, use 0 to 5")
        if arg.op not in OPERATORS:
            raise Invalid(f"{place}.op: {arg.op!r} is unknown, use {_words(OPERATORS)}")
        for name, value in (("value", arg.value), ("valueTwo", arg.value_two)):
            if not 0 <= value < 2**64:
                raise Invalid(f"{place}.{name}: {value} has no 64 bits, use 0 to {2**64 - 1}")


def _check_action(where: str, action: str) -> None:
    if action not in ACTIONS:
        raise Invalid(f"{where}: {action!r} is unknown, use {_words(ACTIONS)}")


def _check_errno(where: str, action: str, number: int | None) -> None:
    if number is None:
        return
    if action not in _WITH_ERRNO:
        raise Invalid(f"{where}: {action} returns no errno, leave it out or use SCMP_ACT_ERRNO")
    if not 0 <= number <= _WITH_ERRNO[action]:
        raise Invalid(f"{where}: {number} is out of range, use 0 to {_WITH_ERRNO[action]}")


def _words(table: dict[str, int]) -> str:
    *most, last = table
    return f"{', '.join(most)} or {last}"
