"""Compile a system call filter: from the OCI config's form to a BPF program (struct sock_filter[], bpf(4)).

Libseccomp knows the calls' numbers on each architecture; the program is made here, since libseccomp 2.5 joins
comparisons of one argument such that calls get through which no rule allows (tests/unit/test_runtime_seccomp.py
compares ours with the rules' meaning). Per architecture it is a binary search among ranges of numbers that are
treated alike; a call's conditions are tried one rule after the other. What holds:

    rules overlap      one without conditions, else the first whose conditions hold (libseccomp, and so runc,
                       has the former rule, too)
    32 bits            architectures with 32-bit arguments compare the lower halves
    unknown names      are passed over; calls that Linux got since libseccomp 2.5 are known without it, so that a rule
                       which refuses one isn't lost
    unknown calls      newer than any that the profile names for their architecture: ENOSYS where the default
                       action refuses or kills. Programs try new calls first and fall back on ENOSYS only, so
                       that a profile written today doesn't break tomorrow's libraries
    multiplexers       socketcall(2) and ipc(2) hide what they call from a filter: a rule without conditions, or
                       one that refuses, holds for its call through them as well; one that allows doesn't
    other systems      an architecture that isn't the machine's own and isn't named kills the process

The result depends on the argument alone and touches nothing; it is kept, for compiling takes milliseconds.
"""

from __future__ import annotations

import errno
import sys
from collections.abc import Callable, Iterable
from functools import lru_cache
from struct import pack

from cove.model.errors import Invalid, Unavailable
from cove.runtime.oci import Seccomp, SeccompArg, SeccompSyscall
from cove.runtime.seccomp_check import (
    ACTIONS,
    ARCHITECTURES,
    FLAGS,
    NEW_LISTENER,
    PERMISSIVE,
    action_number,
    check_filter,
    notifies,
)

Resolve = Callable[[int, str], int]  # architecture, name -> number; negative: there is none
_Code = tuple[tuple[int, int, int, int], ...]  # operation, value, jump if true, jump if false

_LOAD, _AND, _RETURN, _JUMP = 0x20, 0x54, 0x06, 0x05  # linux/bpf_common.h
_JEQ, _JGT, _JGE = 0x15, 0x25, 0x35
_NUMBER, _ARCHITECTURE, _ARGUMENTS = 0, 4, 16  # struct seccomp_data: int nr, u32 arch, u64 ip, u64 args[6]
_LOW, _HIGH = (0, 4) if sys.byteorder == "little" else (4, 0)
_FAR = 255  # the longest conditional jump
_MAX_INSTRUCTIONS = 4096  # BPF_MAXINSNS

_X86_64, _X32 = ARCHITECTURES["SCMP_ARCH_X86_64"], ARCHITECTURES["SCMP_ARCH_X32"]
_X32_BIT = 0x40000000
_SKIPPED = 0xFFFFFFFF  # -1: what a tracer sets to have a call skipped
_64_BIT = 0x80000000
_ENOSYS = action_number("SCMP_ACT_ERRNO", errno.ENOSYS)

# asm-generic/unistd.h up to Linux 6.19: since 424 a call is as far from the others on every architecture
_SHARED = ("io_uring_setup", 425)
_NEWER = {
    name: 451 + index
    for index, name in enumerate(
        "cachestat fchmodat2 map_shadow_stack futex_wake futex_wait futex_requeue statmount listmount "
        "lsm_get_self_attr lsm_set_self_attr lsm_list_modules mseal setxattrat getxattrat listxattrat removexattrat "
        "open_tree_attr file_getattr file_setattr listns".split()
    )
}

# linux/net.h SYS_*, linux/ipc.h: what the first argument of a multiplexer stands for
_MULTIPLEXED_NUMBERS = -100  # libseccomp's numbers of these calls, where there is a multiplexer, are below
_NUMBERS = 1024  # more than any architecture has calls
_MULTIPLEXED = {
    name: (multiplexer, number)
    for multiplexer, names in (
        (
            "socketcall",
            ". socket bind connect listen accept getsockname getpeername socketpair send recv sendto recvfrom "
            "shutdown setsockopt getsockopt sendmsg recvmsg accept4 recvmmsg sendmmsg",
        ),
        (
            "ipc",
            ". semop semget semctl semtimedop . . . . . . msgsnd msgrcv msgget msgctl . . . . . . "
            "shmat shmdt shmget shmctl",
        ),
    )
    for number, name in enumerate(names.split())
    if name != "."
}


@lru_cache(maxsize=128)
def filter_flags(filter_: Seccomp) -> int:
    """The flags for seccomp(2). A filter that asks an agent has a listener; without one there is nobody whose
    waiting could be killable. TSYNC is left out: the process has one thread. Raises Invalid."""
    check_filter(filter_)
    bits = 0
    for name in filter_.flags:
        bits |= FLAGS[name]
    bits &= ~FLAGS["SECCOMP_FILTER_FLAG_TSYNC"]
    if notifies(filter_):
        return bits | NEW_LISTENER
    return bits & ~FLAGS["SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV"]


@lru_cache(maxsize=128)
def compile_filter(filter_: Seccomp) -> bytes:
    """The program. Raises Invalid for what no filter can say or a program that is too long, Unavailable without
    libseccomp."""
    check_filter(filter_)
    native, resolve = _libseccomp()
    named = {native, *(ARCHITECTURES[name] for name in filter_.architectures)}
    default = action_number(filter_.default_action, filter_.default_errno_ret)
    unknown = default if filter_.default_action in PERMISSIVE else _ENOSYS
    bad = _return(ACTIONS["SCMP_ACT_KILL_PROCESS"])
    program: _Code = ((_LOAD, _ARCHITECTURE, 0, 0),)
    for architecture in sorted(named - {_X32}, key=lambda each: each != native):
        calls = _find_calls(filter_, architecture, default, resolve)
        ranges = _ranges(calls, 0, _return(default), _return(unknown))
        if architecture == _X86_64:  # x32 is the same to the kernel, but for a bit in the numbers
            ranges.append((_X32_BIT, bad))
            if _X32 in named:
                calls = _find_calls(filter_, _X32, default, resolve)
                ranges += _ranges(calls, _X32_BIT, _return(default), _return(unknown))
        ranges.append((_SKIPPED, _return(default)))
        program += _when(_JEQ, architecture, ((_LOAD, _NUMBER, 0, 0), *_search(_merge(ranges))))
    program += bad
    if len(program) > _MAX_INSTRUCTIONS:
        raise Invalid(
            f"linux.seccomp: the filter takes {len(program)} instructions, the kernel's limit is "
            f"{_MAX_INSTRUCTIONS}: name fewer architectures or use fewer args"
        )
    return b"".join(pack("=HBBI", code, yes, no, value) for code, value, yes, no in program)


# --- which calls ------------------------------------------------------------------------------------


def _find_calls(filter_: Seccomp, architecture: int, default: int, resolve: Resolve) -> dict[int, _Code]:
    """What becomes of each call that the profile names. A rule that says what holds anyway says nothing: where
    another one overlaps it, that one holds."""
    wide = bool(architecture & _64_BIT)
    always: dict[int, int] = {}
    conditional: dict[int, list[_Code]] = {}
    for rule in filter_.syscalls:
        action = action_number(rule.action, rule.errno_ret)
        for name in rule.names:
            for number, args in _places(rule, name, architecture, resolve):
                tests = conditional.setdefault(number, [])
                if action == default:
                    continue
                if not args:
                    always.setdefault(number, action)
                # several conditions on one argument are alternatives, as in runc; else all hold
                elif len({arg.index for arg in args}) < len(args):
                    tests += [_test([arg], action, wide) for arg in args]
                else:
                    tests.append(_test(args, action, wide))
    return {
        number: _return(always[number])
        if number in always
        else tuple(line for test in tests for line in test) + _return(default)
        for number, tests in conditional.items()
    }


def _places(
    rule: SeccompSyscall, name: str, architecture: int, resolve: Resolve
) -> Iterable[tuple[int, tuple[SeccompArg, ...]]]:
    """Where a call is met on this architecture: its number, and a multiplexer's with a first argument."""
    number = resolve(architecture, name)
    if number >= 0:
        yield number, rule.args
    if name in _MULTIPLEXED and not (rule.args and rule.action in PERMISSIVE):
        multiplexer, value = _MULTIPLEXED[name]
        number = resolve(architecture, multiplexer)
        if number >= 0:  # above them ipc(2) has a version
            yield number, (SeccompArg(index=0, op="SCMP_CMP_MASKED_EQ", value=0xFFFF, value_two=value),)


def _ranges(calls: dict[int, _Code], first: int, default: _Code, unknown: _Code) -> list[tuple[int, _Code]]:
    """From which number on what holds, from `first` to the end of all numbers."""
    ranges = [(first, default)]
    for number, code in sorted(calls.items()):
        ranges += [(number, code), (number + 1, default)]
    if calls:
        ranges[-1] = (ranges[-1][0], unknown)
    return ranges


def _merge(ranges: list[tuple[int, _Code]]) -> list[tuple[int, _Code]]:
    """The same with neighbours that are treated alike as one; of two that begin at a number the later holds."""
    merged: list[tuple[int, _Code]] = []
    for start, code in ranges:
        if merged and merged[-1][0] == start:
            merged.pop()
        if not merged or merged[-1][1] != code:
            merged.append((start, code))
    return merged


# --- code -------------------------------------------------------------------------------------------


def _return(action: int) -> _Code:
    return ((_RETURN, action, 0, 0),)


def _when(operation: int, value: int, code: _Code) -> _Code:
    """Code that is run if the comparison holds, and jumped over if not."""
    if len(code) <= _FAR:
        return ((operation, value, 0, len(code)), *code)
    return ((operation, value, 1, 0), (_JUMP, len(code), 0, 0), *code)


def _search(ranges: list[tuple[int, _Code]]) -> _Code:
    """Binary search for the range that the number (in the accumulator) lies in."""
    if len(ranges) == 1:
        return ranges[0][1]
    middle = len(ranges) // 2
    return _when(_JGE, ranges[middle][0], _search(ranges[middle:])) + _search(ranges[:middle])


_NEXT = -1  # a jump to the end of the test: the next rule's turn


def _test(args: Iterable[SeccompArg], action: int, wide: bool) -> _Code:
    """One rule: returns the action if all conditions hold, else goes on after it."""
    lines = [line for arg in args for line in _condition(arg, wide)]
    lines.append((_RETURN, action, 0, 0))
    end = len(lines) - 1
    return tuple(
        (code, value, end - at if yes == _NEXT else yes, end - at if no == _NEXT else no)
        for at, (code, value, yes, no) in enumerate(lines)
    )


def _condition(arg: SeccompArg, wide: bool) -> list[tuple[int, int, int, int]]:
    """Goes on when it holds, to the next rule when it doesn't; the upper half decides first."""
    operator = arg.op.removeprefix("SCMP_CMP_")
    value = arg.value & arg.value_two if operator == "MASKED_EQ" else arg.value
    low, high = value & 0xFFFFFFFF, value >> 32
    at = _ARGUMENTS + 8 * arg.index
    load_low, load_high = (_LOAD, at + _LOW, 0, 0), (_LOAD, at + _HIGH, 0, 0)
    match operator:
        case "MASKED_EQ":
            code = [load_low, (_AND, arg.value & 0xFFFFFFFF, 0, 0), (_JEQ, low, 0, _NEXT)]
            upper = [load_high, (_AND, arg.value >> 32, 0, 0), (_JEQ, high, 0, _NEXT)]
        case "EQ":
            code = [load_low, (_JEQ, low, 0, _NEXT)]
            upper = [load_high, (_JEQ, high, 0, _NEXT)]
        case "NE":
            code = [load_low, (_JEQ, low, _NEXT, 0)]
            upper = [load_high, (_JEQ, high, 0, len(code))]
        case "GT" | "GE":
            code = [load_low, (_JGT if operator == "GT" else _JGE, low, 0, _NEXT)]
            upper = [load_high, (_JGT, high, len(code) + 1, 0), (_JEQ, high, 0, _NEXT)]
        case _:  # LT, LE
            code = [load_low, (_JGE if operator == "LT" else _JGT, low, _NEXT, 0)]
            upper = [load_high, (_JGT, high, _NEXT, 0), (_JEQ, high, 0, len(code))]
    return upper + code if wide else code


# --- numbers ----------------------------------------------------------------------------------------


@lru_cache(maxsize=1)
def _libseccomp() -> tuple[int, Resolve]:
    """The machine's architecture, and who knows the numbers of calls."""
    import ctypes  # imported late: most processes find their filters in a cache

    try:
        library = ctypes.CDLL("libseccomp.so.2")
    except OSError as error:
        raise Unavailable(f"seccomp filters need libseccomp (Debian: libseccomp2): {error}") from None
    library.seccomp_arch_native.restype = ctypes.c_uint32
    library.seccomp_syscall_resolve_name_arch.argtypes = (ctypes.c_uint32, ctypes.c_char_p)
    library.seccomp_syscall_resolve_num_arch.argtypes = (ctypes.c_uint32, ctypes.c_int)
    library.seccomp_syscall_resolve_num_arch.restype = ctypes.c_void_p
    free = ctypes.CDLL(None).free
    free.argtypes = (ctypes.c_void_p,)

    def find(architecture: int, name: str) -> int:
        return int(library.seccomp_syscall_resolve_name_arch(architecture, name.encode()))

    @lru_cache(maxsize=8)
    def direct(architecture: int) -> dict[str, int]:
        """The numbers of calls for which libseccomp names a multiplexer, by asking for the names of all."""
        first = find(architecture, "socketcall") // 1000 * 1000  # 4000 on MIPS; names are asked for without
        numbers = {}
        for number in range(_NUMBERS):
            text = library.seccomp_syscall_resolve_num_arch(architecture, number)
            if text:
                numbers[ctypes.string_at(text).decode()] = first + number
                free(text)
        return numbers

    def resolve(architecture: int, name: str) -> int:
        number = find(architecture, name)
        if number <= _MULTIPLEXED_NUMBERS:
            return direct(architecture).get(name, -1)
        if number == -1 and name in _NEWER:
            shared, there = _SHARED
            known = find(architecture, shared)
            return known - there + _NEWER[name] if known >= 0 else -1
        return number

    return library.seccomp_arch_native(), resolve
