"""Compile a system call filter: from the OCI config's form to a BPF program (struct sock_filter[]).

libseccomp makes the program (a binary tree: its cost doesn't grow with the number of rules). Two things are
ours. Names that this libseccomp doesn't know are passed over. And calls newer than any that the profile names
get ENOSYS rather than the profile's errno: programs try new calls first and fall back on ENOSYS only, so that
a profile written today doesn't break tomorrow's libraries.

The result depends on the argument alone and touches nothing outside this process (libseccomp writes to a
memfd); it is kept, for compiling takes 10 to 30 ms.
"""

from __future__ import annotations

import errno
import os
import struct
from functools import lru_cache
from typing import Any

from cove.model.errors import HostError, Invalid, Unavailable
from cove.runtime.oci import Seccomp, SeccompSyscall

_ARCHES = {
    "SCMP_ARCH_X86": "X86",
    "SCMP_ARCH_X86_64": "X86_64",
    "SCMP_ARCH_X32": "X32",
    "SCMP_ARCH_ARM": "ARM",
    "SCMP_ARCH_AARCH64": "AARCH64",
    "SCMP_ARCH_MIPS": "MIPS",
    "SCMP_ARCH_MIPS64": "MIPS64",
    "SCMP_ARCH_MIPS64N32": "MIPS64N32",
    "SCMP_ARCH_MIPSEL": "MIPSEL",
    "SCMP_ARCH_MIPSEL64": "MIPSEL64",
    "SCMP_ARCH_MIPSEL64N32": "MIPSEL64N32",
    "SCMP_ARCH_PPC": "PPC",
    "SCMP_ARCH_PPC64": "PPC64",
    "SCMP_ARCH_PPC64LE": "PPC64LE",
    "SCMP_ARCH_S390": "S390",
    "SCMP_ARCH_S390X": "S390X",
    "SCMP_ARCH_RISCV64": "RISCV64",
}
_OPERATORS = {
    "SCMP_CMP_NE": "NE",
    "SCMP_CMP_LT": "LT",
    "SCMP_CMP_LE": "LE",
    "SCMP_CMP_EQ": "EQ",
    "SCMP_CMP_GE": "GE",
    "SCMP_CMP_GT": "GT",
    "SCMP_CMP_MASKED_EQ": "MASKED_EQ",
}
# seccomp(2); the listener and wait-killable flags are for supervisors, which Cove isn't
FLAGS = {
    "SECCOMP_FILTER_FLAG_TSYNC": 1,
    "SECCOMP_FILTER_FLAG_LOG": 2,
    "SECCOMP_FILTER_FLAG_SPEC_ALLOW": 4,
}
_X32_BIT = 0x40000000


def filter_flags(filter_: Seccomp) -> int:
    """The flags for seccomp(2). TSYNC is left out: the process has one thread. Raises Invalid."""
    bits = 0
    for name in filter_.flags:
        if name not in FLAGS:
            raise Invalid(f"seccomp flag {name!r} is not supported, use some of {sorted(FLAGS)}")
        bits |= FLAGS[name]
    return bits & ~FLAGS["SECCOMP_FILTER_FLAG_TSYNC"]


@lru_cache(maxsize=128)
def compile_filter(filter_: Seccomp) -> bytes:
    """The program. Raises Invalid for a rule that libseccomp refuses, Unavailable without libseccomp."""
    library = _library()
    default = _action(library, filter_.default_action, filter_.default_errno_ret)
    tree = library.SyscallFilter(default)
    native = library.system_arch()
    known: dict[int, int] = {}  # architecture -> the highest number that the profile names
    architectures = [native]
    for name in filter_.architectures:
        if name not in _ARCHES:
            raise Invalid(f"seccomp architecture {name!r} is unknown, use some of {sorted(_ARCHES)}")
        number = getattr(library.Arch, _ARCHES[name])
        if number != native:
            tree.add_arch(number)
            architectures.append(number)
    tree.set_attr(library.Attr.CTL_OPTIMIZE, 2)
    for rule in filter_.syscalls:
        action = _action(library, rule.action, rule.errno_ret)
        for name in rule.names:
            number = library.resolve_syscall(native, name)
            for architecture in architectures:
                there = library.resolve_syscall(architecture, name)
                if there >= 0:
                    known[architecture] = max(known.get(architecture, 0), there)
            if number == -1:  # __NR_SCMP_ERROR: newer than this libseccomp
                continue
            if action == default and not rule.args:
                continue  # says what holds anyway; libseccomp would answer EACCES
            _add(library, tree, action, number, rule, name)
    program = _export(tree)
    if filter_.default_action != "SCMP_ACT_ERRNO" or default == library.ERRNO(errno.ENOSYS):
        return program
    return _unknown_calls(library, known) + program


def _library() -> Any:
    try:
        import pyseccomp  # imported late: it runs ldconfig(8) to find the library
    except (ImportError, RuntimeError) as error:
        raise Unavailable(f"seccomp filters need libseccomp (Debian: libseccomp2): {error}") from None
    return pyseccomp


def _action(library: Any, name: str, errno_ret: int | None) -> int:
    number = errno.EPERM if errno_ret is None else errno_ret
    if name == "SCMP_ACT_ERRNO":
        return int(library.ERRNO(number))
    if name == "SCMP_ACT_TRACE":
        return int(library.TRACE(number))
    table = {
        "SCMP_ACT_KILL": library.KILL_THREAD,
        "SCMP_ACT_KILL_THREAD": library.KILL_THREAD,
        "SCMP_ACT_KILL_PROCESS": library.KILL_PROCESS,
        "SCMP_ACT_TRAP": library.TRAP,
        "SCMP_ACT_ALLOW": library.ALLOW,
        "SCMP_ACT_LOG": library.LOG,
    }
    if name not in table:
        raise Invalid(f"seccomp action {name!r} is not supported, use SCMP_ACT_ERRNO, SCMP_ACT_ALLOW …")
    return int(table[name])


def _add(library: Any, tree: Any, action: int, number: int, rule: SeccompSyscall, name: str) -> None:
    """One rule. Several conditions on one argument are alternatives, as in runc; else all hold."""
    args = []
    for arg in rule.args:
        operator = getattr(library, _OPERATORS[arg.op])
        if arg.op == "SCMP_CMP_MASKED_EQ":
            args.append((arg.index, library.Arg(arg.index, operator, arg.value, arg.value_two)))
        else:
            args.append((arg.index, library.Arg(arg.index, operator, arg.value)))
    indexes = [index for index, _ in args]
    groups = [[arg] for _, arg in args] if len(set(indexes)) < len(indexes) else [[arg for _, arg in args]]
    try:
        for group in groups:
            tree.add_rule(action, number, *group)
    except OSError as error:
        if error.errno == errno.EEXIST:
            return
        raise Invalid(f"seccomp rule for {name}: libseccomp refuses it: {error.strerror}") from None


def _export(tree: Any) -> bytes:
    descriptor = os.memfd_create("seccomp", os.MFD_CLOEXEC)
    try:
        with os.fdopen(descriptor, "rb") as file:
            tree.export_bpf(file)
            file.seek(0)
            return file.read()
    except OSError as error:
        raise HostError(f"libseccomp couldn't make the program: {error.strerror}") from None


# --- calls that the profile can't know ----------------------------------------------------------------

_LOAD, _JEQ, _JGT, _JGE, _JA, _RETURN = 0x20, 0x15, 0x25, 0x35, 0x05, 0x06  # linux/bpf_common.h
_NUMBER_OFFSET, _ARCH_OFFSET = 0, 4  # struct seccomp_data


def _statement(code: int, value: int, yes: int = 0, no: int = 0) -> bytes:
    return struct.pack("=HBBI", code, yes, no, value)


def _unknown_calls(library: Any, known: dict[int, int]) -> bytes:
    """A head for the program: numbers above the highest known one of their architecture return ENOSYS."""
    enosys = library.ERRNO(errno.ENOSYS)
    x32, x86_64 = library.Arch.X32, library.Arch.X86_64
    blocks: list[tuple[int, list[bytes]]] = []
    for architecture, highest in known.items():
        if architecture == x32:
            continue
        body = [_statement(_LOAD, _NUMBER_OFFSET)]
        if architecture == x86_64:
            # x32 has the same audit number and a bit in the call's; -1 (a tracer's "skip") is for the tree
            body.append(_statement(_JGE, _X32_BIT, 2 if x32 not in known else 3, 0))
            body += [_statement(_JGT, highest, 0, 1), _statement(_RETURN, enosys)]
            if x32 in known:
                body.append(_statement(_JA, 3))
                body += [
                    _statement(_JEQ, 0xFFFFFFFF, 2, 0),
                    _statement(_JGT, known[x32], 0, 1),
                    _statement(_RETURN, enosys),
                ]
        else:
            body += [
                _statement(_JEQ, 0xFFFFFFFF, 2, 0),
                _statement(_JGT, highest, 0, 1),
                _statement(_RETURN, enosys),
            ]
        blocks.append((architecture, body))
    head: list[bytes] = [_statement(_LOAD, _ARCH_OFFSET)]
    sizes = [len(body) + 2 for _, body in blocks]  # the test before it, the jump to the tree after it
    for index, (architecture, body) in enumerate(blocks):
        head.append(_statement(_JEQ, architecture, 0, len(body) + 1))
        head += body
        head.append(_statement(_JA, sum(sizes[index + 1 :])))
    return b"".join(head)
