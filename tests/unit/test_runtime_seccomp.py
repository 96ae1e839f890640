"""What the filters let through, by running the compiled programs in a small BPF machine."""

from __future__ import annotations

import ctypes
import errno
import json
import os
import stat
import struct
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cove.model.errors import Invalid
from cove.runtime import capabilities, seccomp_cache
from cove.runtime.oci import Seccomp, SeccompArg, SeccompSyscall
from cove.runtime.seccomp import parse_profile, select
from cove.runtime.seccomp_cache import compile_cached
from cove.runtime.seccomp_check import ACTIONS, ARCHITECTURES, OPERATORS, PERMISSIVE, action_number
from cove.runtime.seccomp_compile import compile_filter, filter_flags

X86_64, X86 = 0xC000003E, 0x40000003
ALLOW, KILL_PROCESS = 0x7FFF0000, 0x80000000
CLONE_NEWUSER = 0x10000000
X32 = 0x4000003E  # libseccomp's number of it
pytestmark = pytest.mark.skipif(os.uname().machine != "x86_64", reason="numbers below are x86-64's")


def run(program: bytes, number: int, *args: int, arch: int = X86_64) -> int:
    """The verdict of a struct sock_filter[] program (bpf(4)) on one system call."""
    padded = (*args, *([0] * (6 - len(args))))
    data = struct.pack("=IIQ6Q", number & 0xFFFFFFFF, arch, 0, *padded)
    code = [struct.unpack_from("=HBBI", program, at) for at in range(0, len(program), 8)]
    accumulator, at = 0, 0
    while True:
        op, yes, no, value = code[at]
        at += 1
        if op == 0x20:
            (accumulator,) = struct.unpack_from("=I", data, value)
        elif op == 0x54:
            accumulator &= value
        elif op == 0x06:
            return int(value)
        elif op == 0x05:
            at += value
        else:
            holds = {0x15: accumulator == value, 0x25: accumulator > value, 0x35: accumulator >= value,
                     0x45: bool(accumulator & value)}[op]  # fmt: skip
            at += yes if holds else no


_find = ctypes.CDLL("libseccomp.so.2").seccomp_syscall_resolve_name_arch
_find.argtypes = (ctypes.c_uint32, ctypes.c_char_p)


def nr(name: str, arch: int = X86_64) -> int:
    return int(_find(arch, name.encode()))


def fails_with(number: int) -> int:
    return 0x00050000 | number


def default(bits: int = capabilities.DEFAULT, kernel: tuple[int, int] = (6, 1)) -> bytes:
    chosen = select("", bits, "amd64", kernel)
    assert chosen is not None
    return compile_filter(chosen)


@pytest.mark.parametrize(
    "name", ["read", "execve", "openat2", "chroot", "futex_waitv", "ptrace", "close_range"]
)
def test_default_policy_allows_ordinary_calls(name: str) -> None:
    assert run(default(), nr(name)) == ALLOW


@pytest.mark.parametrize(
    "name",
    ["mount", "unshare", "setns", "bpf", "init_module", "reboot", "keyctl", "add_key", "io_uring_setup",
     "userfaultfd", "pidfd_getfd", "open_by_handle_at", "kexec_load", "settimeofday", "swapon"],
)  # fmt: skip
def test_default_policy_refuses_dangerous_calls(name: str) -> None:
    assert run(default(), nr(name)) == fails_with(errno.EPERM)


@pytest.mark.parametrize(
    ("capability", "name"),
    [("CAP_SYS_ADMIN", "mount"), ("CAP_SYS_BOOT", "reboot"), ("CAP_BPF", "bpf"), ("CAP_SYS_TIME", "settimeofday"),
     ("CAP_SYS_MODULE", "init_module"), ("CAP_DAC_READ_SEARCH", "open_by_handle_at"), ("CAP_SYS_PTRACE", "kcmp")],
)  # fmt: skip
def test_a_capability_brings_its_calls(capability: str, name: str) -> None:
    with_it = capabilities.DEFAULT | capabilities.mask([capability])
    assert run(default(with_it), nr(name)) == ALLOW
    assert run(default(), nr(name)) == fails_with(errno.EPERM)


def test_clone_makes_threads_and_processes_but_no_namespaces() -> None:
    assert run(default(), nr("clone"), 0x3D0F00) == ALLOW
    assert run(default(), nr("clone"), CLONE_NEWUSER | 17) == fails_with(errno.EPERM)
    admin = default(capabilities.DEFAULT | capabilities.mask(["CAP_SYS_ADMIN"]))
    assert run(admin, nr("clone"), CLONE_NEWUSER | 17) == ALLOW


def test_clone3_does_not_exist_without_admin() -> None:
    assert run(default(), nr("clone3")) == fails_with(errno.ENOSYS)
    admin = default(capabilities.DEFAULT | capabilities.mask(["CAP_SYS_ADMIN"]))
    assert run(admin, nr("clone3")) == ALLOW


@pytest.mark.parametrize(
    ("family", "verdict"), [(1, ALLOW), (2, ALLOW), (10, ALLOW), (16, ALLOW), (39, ALLOW)]
)
def test_sockets_of_ordinary_families_are_allowed(family: int, verdict: int) -> None:
    assert run(default(), nr("socket"), family) == verdict


@pytest.mark.parametrize("family", [38, 40, 2**32 + 38, 2**32 + 40, 2**63 + 38, 64])
def test_sockets_of_kernel_crypto_and_hypervisor_are_refused(family: int) -> None:
    """Also where the kernel drops the upper half of the number, which is an int (CVE-2026-31431)."""
    assert run(default(), nr("socket"), family) == fails_with(errno.EPERM)


def test_the_32_bit_multiplexer_makes_no_sockets_but_uses_them() -> None:
    """Its arguments lie in memory, where no filter looks: the family would be anybody's choice."""
    socketcall = nr("socketcall", X86)
    assert run(default(), socketcall, 1, arch=X86) == fails_with(errno.ENOSYS)
    verdicts = {run(default(), socketcall, call, arch=X86) for call in range(2, 21)}
    assert verdicts == {ALLOW}
    socket, shmget = 359, 395  # which libseccomp has other numbers for
    assert run(default(), socket, 2, arch=X86) == ALLOW
    assert run(default(), socket, 38, arch=X86) == fails_with(errno.EPERM)
    assert run(default(), shmget, arch=X86) == ALLOW


def test_ptrace_needs_a_kernel_that_does_not_let_it_around_filters() -> None:
    assert run(default(kernel=(4, 7)), nr("ptrace")) == fails_with(errno.EPERM)


def test_personality_knows_five_values() -> None:
    assert run(default(), nr("personality"), 0xFFFFFFFF) == ALLOW
    assert run(default(), nr("personality"), 0x0040000) == fails_with(errno.EPERM)


@pytest.mark.parametrize("number", [600, 100_000, 0x3FFFFFFF, 0x40000000 + 5000])
def test_calls_from_the_future_do_not_exist(number: int) -> None:
    assert run(default(), number) == fails_with(errno.ENOSYS)
    assert run(default(), 5000, arch=X86) == fails_with(errno.ENOSYS)


def test_32_bit_calls_are_filtered_by_their_own_numbers() -> None:
    assert run(default(), nr("waitpid", X86), arch=X86) == ALLOW
    assert run(default(), nr("mount", X86), arch=X86) == fails_with(errno.EPERM)


def test_a_call_skipped_by_a_tracer_reaches_the_policy() -> None:
    assert run(default(), -1) == fails_with(errno.EPERM)


def test_unknown_architectures_are_killed() -> None:
    assert run(default(), 0, arch=0x123) == KILL_PROCESS


def test_the_same_question_is_answered_from_memory() -> None:
    first = select("", capabilities.DEFAULT, "amd64", (6, 1))
    assert first is select("", capabilities.DEFAULT, "amd64", (6, 1))
    assert first is not None and compile_filter(first) is compile_filter(first)


def test_unconfined_and_empty_profiles_mean_no_filter() -> None:
    assert select("unconfined", 0, "amd64", (6, 1)) is None
    assert select("{}", 0, "amd64", (6, 1)) is None


# --- profiles -----------------------------------------------------------------------------------------


def profile(**fields: Any) -> str:
    return json.dumps({"defaultAction": "SCMP_ACT_ALLOW", **fields})


def compiled(text: str, bits: int = 0, kernel: tuple[int, int] = (6, 1)) -> bytes:
    chosen = select(text, bits, "amd64", kernel)
    assert chosen is not None
    return compile_filter(chosen)


def test_a_profile_of_ones_own_replaces_the_default() -> None:
    rule = {"names": ["mkdir"], "action": "SCMP_ACT_ERRNO", "errnoRet": 13}
    program = compiled(profile(syscalls=[rule]))
    assert run(program, nr("mkdir")) == fails_with(13)
    assert run(program, nr("mount")) == ALLOW


def test_the_older_single_name_is_understood() -> None:
    program = compiled(profile(syscalls=[{"name": "mkdir", "action": "SCMP_ACT_ERRNO"}]))
    assert run(program, nr("mkdir")) == fails_with(errno.EPERM)


def test_conditions_choose_the_rules() -> None:
    refuse = {"action": "SCMP_ACT_ERRNO"}
    text = profile(
        syscalls=[
            {"names": ["mkdir"], **refuse, "includes": {"caps": ["CAP_CHOWN"]}},
            {"names": ["rmdir"], **refuse, "excludes": {"caps": ["CAP_CHOWN"]}},
            {"names": ["link"], **refuse, "includes": {"arches": ["arm64"]}},
            {"names": ["symlink"], **refuse, "includes": {"minKernel": "6.2"}},
            {"names": ["unlink"], **refuse, "excludes": {"arches": ["amd64"]}},
        ]
    )
    with_cap = compiled(text, capabilities.mask(["CAP_CHOWN"]))
    without = compiled(text, 0, (6, 2))
    refused = fails_with(errno.EPERM)
    names = ("mkdir", "rmdir", "link", "symlink", "unlink")
    assert [run(with_cap, nr(name)) == refused for name in names] == [True, False, False, False, False]
    assert [run(without, nr(name)) == refused for name in names] == [False, True, False, True, False]


def test_two_conditions_on_one_argument_are_alternatives() -> None:
    args = tuple(SeccompArg(index=0, value=value, op="SCMP_CMP_EQ") for value in (1, 2))
    rule = SeccompSyscall(names=("dup",), action="SCMP_ACT_ALLOW", args=args)
    program = compile_filter(Seccomp(default_action="SCMP_ACT_ERRNO", syscalls=(rule,)))
    verdicts = [run(program, nr("dup"), value) for value in (1, 2, 3)]
    assert verdicts == [ALLOW, ALLOW, fails_with(errno.EPERM)]


def test_conditions_on_two_arguments_all_hold() -> None:
    args = tuple(SeccompArg(index=index, value=1, op="SCMP_CMP_EQ") for index in (0, 1))
    rule = SeccompSyscall(names=("dup2",), action="SCMP_ACT_ALLOW", args=args)
    program = compile_filter(Seccomp(default_action="SCMP_ACT_ERRNO", syscalls=(rule,)))
    assert run(program, nr("dup2"), 1, 1) == ALLOW
    assert run(program, nr("dup2"), 1, 2) == fails_with(errno.EPERM)


def test_names_of_no_system_call_are_passed_over() -> None:
    program = compiled(
        profile(syscalls=[{"names": ["from_the_future", "mkdir"], "action": "SCMP_ACT_ERRNO"}])
    )
    assert run(program, nr("mkdir")) == fails_with(errno.EPERM)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("{", "Decoding seccomp profile failed"),
        ('{"defaultAction": 1}', "$.defaultAction"),
        ('{"syscalls": [{"names": ["read"], "action": "SCMP_ACT_ALLOW"}]}', "defaultAction is missing"),
        (profile(architectures=["SCMP_ARCH_X86"], archMap=[{"architecture": "SCMP_ARCH_X86"}]), "archMap"),
        (profile(syscalls=[{"names": ["a"], "name": "b", "action": "SCMP_ACT_LOG"}]), "'name' and 'names'"),
        (profile(syscalls=[{"names": ["a"], "action": "SCMP_ACT_DANCE"}]), "SCMP_ACT_DANCE"),
        (profile(syscalls=[{"names": ["a"], "action": "SCMP_ACT_LOG", "includes": {"minKernel": "x"}}]), "kernel"),
        (profile(syscalls=[{"names": ["a"], "action": "SCMP_ACT_LOG",
                            "args": [{"index": 6, "value": 0}]}]), "seccomp profile: syscalls[0].args[0].index: 6"),
        (profile(syscalls=[{"names": ["a"], "action": "SCMP_ACT_LOG",
                            "args": [{"index": 0, "value": 0, "op": "LIKE"}]}]), "syscalls[0].args[0].op: 'LIKE'"),
    ],
)  # fmt: skip
def test_a_wrong_profile_is_refused_with_the_reason(text: str, words: str) -> None:
    with pytest.raises(Invalid, match=r".") as caught:
        parse_profile(text)
    assert words in str(caught.value)


def test_flags_become_bits_and_unknown_ones_are_refused() -> None:
    named = ("SECCOMP_FILTER_FLAG_LOG", "SECCOMP_FILTER_FLAG_TSYNC", "SECCOMP_FILTER_FLAG_SPEC_ALLOW")
    assert filter_flags(Seccomp(default_action="SCMP_ACT_ALLOW", flags=named)) == 2 | 4
    with pytest.raises(Invalid, match=r"^linux\.seccomp\.flags\[0\]: 'SECCOMP_FILTER_FLAG_NEW_LISTENER'"):
        filter_flags(Seccomp(default_action="SCMP_ACT_ALLOW", flags=("SECCOMP_FILTER_FLAG_NEW_LISTENER",)))


def test_a_filter_that_asks_has_a_listener_and_only_then_one_to_wait_for() -> None:
    waits = ("SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV",)
    asks = SeccompSyscall(names=("mkdir",), action="SCMP_ACT_NOTIFY")
    filter_ = Seccomp(
        default_action="SCMP_ACT_ALLOW", flags=waits, listener_path="/agent.sock", syscalls=(asks,)
    )
    assert filter_flags(filter_) == 8 | 32
    assert filter_flags(Seccomp(default_action="SCMP_ACT_ALLOW", flags=waits)) == 0
    assert run(compile_filter(filter_), nr("mkdir")) == 0x7FC00000


# --- the OCI form -------------------------------------------------------------------------------------


def oci_filter(action: str = "SCMP_ACT_ERRNO", **rule: Any) -> Seccomp:
    made = SeccompSyscall(**{"names": ("mkdir",), "action": "SCMP_ACT_ALLOW", **rule})
    return Seccomp(default_action=action, syscalls=(made,))


@pytest.mark.parametrize(
    ("filter_", "words"),
    [
        (oci_filter("SCMP_ACT_DANCE"), "linux.seccomp.defaultAction: 'SCMP_ACT_DANCE' is unknown"),
        (oci_filter("SCMP_ACT_NOTIFY"), "linux.seccomp.defaultAction: SCMP_ACT_NOTIFY"),
        (Seccomp(default_action="SCMP_ACT_KILL", default_errno_ret=1), "linux.seccomp.defaultErrnoRet: SCMP_ACT_KILL"),
        (Seccomp(default_action="SCMP_ACT_KILL", architectures=("SCMP_ARCH_X86", "VAX")),
         "linux.seccomp.architectures[1]: 'VAX'"),
        (oci_filter(names=()), "linux.seccomp.syscalls[0].names: name at least one"),
        (oci_filter(names=("mkdir", "")), "linux.seccomp.syscalls[0].names[1]: ''"),
        (oci_filter("SCMP_ACT_LOG", errno_ret=1), "linux.seccomp.syscalls[0].errnoRet: SCMP_ACT_ALLOW returns no"),
        (Seccomp(default_action="SCMP_ACT_ERRNO", default_errno_ret=4095), "use 0 to 4094"),
        (oci_filter(args=(SeccompArg(index=0, value=1), SeccompArg(index=6, value=1))),
         "linux.seccomp.syscalls[0].args[1].index: 6"),
        (oci_filter(args=(SeccompArg(index=0, value=2**64),)), "linux.seccomp.syscalls[0].args[0].value"),
        (oci_filter(args=(SeccompArg(index=0, value=-1),)), "linux.seccomp.syscalls[0].args[0].value"),
        (oci_filter(args=(SeccompArg(index=0, value=1, op="LIKE"),)), "linux.seccomp.syscalls[0].args[0].op: 'LIKE'"),
        (Seccomp(default_action="SCMP_ACT_ALLOW", listener_metadata="x"), "linux.seccomp.listenerMetadata"),
        (Seccomp(default_action="SCMP_ACT_ALLOW", listener_path="x"), "linux.seccomp.listenerPath: 'x' must be"),
        (Seccomp(default_action="SCMP_ACT_ALLOW",
                 syscalls=(SeccompSyscall(names=("mkdir",), action="SCMP_ACT_NOTIFY"),)),
         "linux.seccomp.listenerPath: SCMP_ACT_NOTIFY needs"),
        (Seccomp(default_action="SCMP_ACT_ALLOW", listener_path="/x",
                 syscalls=(SeccompSyscall(names=("mkdir", "write"), action="SCMP_ACT_NOTIFY"),)),
         "linux.seccomp.syscalls[0].names[1]: SCMP_ACT_NOTIFY can't be used for write"),
    ],
)  # fmt: skip
def test_what_no_filter_can_say_is_refused_with_its_path(filter_: Seccomp, words: str) -> None:
    with pytest.raises(Invalid, match=r".") as caught:
        compile_filter(filter_)
    assert words in str(caught.value)


@pytest.mark.parametrize("action", sorted(ACTIONS))
def test_calls_from_the_future_get_enosys_wherever_the_default_refuses(action: str) -> None:
    if action == "SCMP_ACT_NOTIFY":
        pytest.skip("it can't be the default action")
    rule = SeccompSyscall(names=("mkdir", "openat2"), action="SCMP_ACT_LOG")
    program = compile_filter(
        Seccomp(default_action=action, architectures=("SCMP_ARCH_X86",), syscalls=(rule,))
    )
    own = action_number(action, None)
    future = (
        own if action in ("SCMP_ACT_ALLOW", "SCMP_ACT_LOG", "SCMP_ACT_TRACE") else fails_with(errno.ENOSYS)
    )
    for arch in (X86_64, X86):
        assert run(program, nr("openat2", arch), arch=arch) == ACTIONS["SCMP_ACT_LOG"]
        assert run(program, nr("openat2", arch) + 1, arch=arch) == future
        assert run(program, nr("openat2", arch) - 1, arch=arch) == own
        assert run(program, -1, arch=arch) == own


def test_a_call_known_on_one_architecture_is_none_of_the_future_on_another() -> None:
    """The highest number is each architecture's own: openat2 has 437 on both, mkdir 83 and 39."""
    rules = (SeccompSyscall(names=("mkdir", "waitpid"), action="SCMP_ACT_ALLOW"),)
    program = compile_filter(
        Seccomp(default_action="SCMP_ACT_KILL_PROCESS", architectures=("SCMP_ARCH_X86",), syscalls=rules)
    )
    assert [run(program, number) for number in (82, 83, 84)] == [KILL_PROCESS, ALLOW, fails_with(38)]
    assert [run(program, number, arch=X86) for number in (38, 39, 40)] == [
        KILL_PROCESS,
        ALLOW,
        fails_with(38),
    ]


def test_ranges_of_one_argument_let_nothing_through_between_them() -> None:
    """libseccomp 2.5.4 makes a program of this that allows 1."""
    args = (
        SeccompArg(index=0, value=0, op="SCMP_CMP_LE"),
        SeccompArg(index=0, value=2**32, op="SCMP_CMP_GE"),
    )
    program = compile_filter(oci_filter(names=("dup",), args=args))
    verdicts = [run(program, nr("dup"), value) == ALLOW for value in (0, 1, 2**32 - 1, 2**32, 2**64 - 1)]
    assert verdicts == [True, False, False, True, True]


def test_a_rule_holds_through_the_32_bit_multiplexers_unless_it_allows_conditionally() -> None:
    program = compile_filter(
        Seccomp(
            default_action="SCMP_ACT_KILL",
            architectures=("SCMP_ARCH_X86",),
            syscalls=(
                SeccompSyscall(names=("shmat", "connect"), action="SCMP_ACT_ALLOW"),
                SeccompSyscall(
                    names=("socket",), action="SCMP_ACT_ALLOW", args=(SeccompArg(index=0, value=2),)
                ),
                SeccompSyscall(
                    names=("bind",), action="SCMP_ACT_ERRNO", args=(SeccompArg(index=0, value=2),)
                ),
            ),
        )
    )
    ipc, socketcall = nr("ipc", X86), nr("socketcall", X86)
    assert [run(program, ipc, call, arch=X86) for call in (21, 22, 21 | 1 << 16)] == [ALLOW, 0, ALLOW]
    assert [run(program, socketcall, call, arch=X86) for call in (1, 2, 3)] == [0, fails_with(1), ALLOW]


def test_a_rule_about_a_call_that_libseccomp_does_not_know_yet_is_not_lost() -> None:
    rule = SeccompSyscall(names=("file_setattr", "cachestat"), action="SCMP_ACT_ERRNO")
    arches = ("SCMP_ARCH_X86", "SCMP_ARCH_X32", "SCMP_ARCH_MIPSEL64")
    program = compile_filter(Seccomp(default_action="SCMP_ACT_ALLOW", architectures=arches, syscalls=(rule,)))
    mips64 = ARCHITECTURES["SCMP_ARCH_MIPSEL64"]
    for first, arch in ((0, X86_64), (0, X86), (1 << 30, X86_64), (5000, mips64)):
        verdicts = [run(program, first + number, arch=arch) for number in (451, 452, 468, 469, 470)]
        assert verdicts == [fails_with(1), ALLOW, ALLOW, fails_with(1), ALLOW]


def test_every_architecture_of_the_specification_may_be_named() -> None:
    rule = SeccompSyscall(names=("openat", "socket", "shmget"), action="SCMP_ACT_ALLOW")
    program = compile_filter(
        Seccomp(default_action="SCMP_ACT_ERRNO", architectures=tuple(ARCHITECTURES), syscalls=(rule,))
    )
    for name, arch in ARCHITECTURES.items():
        number = nr("openat", arch)
        if number >= 0:  # this libseccomp knows it
            verdict = run(program, number, arch=X86_64 if name == "SCMP_ARCH_X32" else arch)
            assert verdict == ALLOW, name


# --- the program against the rules' meaning -----------------------------------------------------------

FOREIGN = ("SCMP_ARCH_AARCH64", "SCMP_ARCH_ARM", "SCMP_ARCH_RISCV64", "SCMP_ARCH_PPC64LE", "SCMP_ARCH_MIPSEL")
ARCHES = {
    name: ARCHITECTURES[name] for name in ("SCMP_ARCH_X86_64", "SCMP_ARCH_X86", "SCMP_ARCH_X32", *FOREIGN)
}
# none of those that a multiplexer stands for; two are on 32 bits only
CALLS = (
    "read mkdir dup2 openat fchmodat2 kill getuid tgkill clone waitpid oldfstat preadv no_such_call".split()
)
numbers = st.one_of(
    st.integers(0, 3),
    st.sampled_from([2**31, 2**32 - 1, 2**32, 2**32 + 1, 2**63, 2**64 - 1]),
    st.integers(0, 2**64 - 1),
)
conditions = st.builds(
    SeccompArg,
    index=st.sampled_from([0, 0, 1, 5]),
    value=numbers,
    value_two=numbers,
    op=st.sampled_from(sorted(OPERATORS)),
)


@st.composite
def actions(draw: st.DrawFn, of: frozenset[str] = frozenset(ACTIONS)) -> tuple[str, int | None]:
    action = draw(st.sampled_from(sorted(of)))
    with_errno = action in ("SCMP_ACT_ERRNO", "SCMP_ACT_TRACE")
    return action, draw(st.sampled_from([None, 0, 13, 38, 4094])) if with_errno else None


@st.composite
def rules(draw: st.DrawFn) -> SeccompSyscall:
    action, errno_ret = draw(actions())
    names = draw(st.lists(st.sampled_from(CALLS), min_size=1, max_size=3))
    args = draw(st.lists(conditions, max_size=3))
    return SeccompSyscall(names=tuple(names), action=action, errno_ret=errno_ret, args=tuple(args))


@st.composite
def filters(draw: st.DrawFn) -> Seccomp:
    action, errno_ret = draw(actions(of=frozenset(ACTIONS) - {"SCMP_ACT_NOTIFY"}))
    return Seccomp(
        default_action=action,
        default_errno_ret=errno_ret,
        architectures=tuple(draw(st.lists(st.sampled_from(sorted(ARCHES)), unique=True))),
        listener_path="/agent.sock",
        syscalls=tuple(draw(st.lists(rules(), max_size=6))),
    )


def holds(arg: SeccompArg, given: int, bits: int) -> bool:
    value, second = arg.value & (1 << bits) - 1, arg.value_two & (1 << bits) - 1
    return {
        "NE": given != value, "LT": given < value, "LE": given <= value, "EQ": given == value,
        "GE": given >= value, "GT": given > value, "MASKED_EQ": given & value == second & value,
    }[arg.op.removeprefix("SCMP_CMP_")]  # fmt: skip


def meaning(filter_: Seccomp, arch: int, number: int, given: list[int]) -> int:
    """What a filter's rules say of a call, one after the other."""
    default_ = action_number(filter_.default_action, filter_.default_errno_ret)
    named = [[nr(name, arch) for name in rule.names] for rule in filter_.syscalls]
    highest = max((number for rule in named for number in rule), default=-1)
    if 0 <= highest < number and filter_.default_action not in PERMISSIVE:
        return fails_with(errno.ENOSYS)
    matching = []
    for rule, its in zip(filter_.syscalls, named, strict=True):
        action = action_number(rule.action, rule.errno_ret)
        if number not in its or action == default_:
            continue
        tests = [holds(arg, given[arg.index], 64 if arch >> 31 else 32) for arg in rule.args]
        alternatives = len({arg.index for arg in rule.args}) < len(rule.args)
        if any(tests) if alternatives else all(tests):
            matching.append((bool(rule.args), action))
    return min(matching, key=lambda each: each[0])[1] if matching else default_


@settings(max_examples=80, deadline=None)
@given(filters(), st.lists(st.lists(numbers, min_size=6, max_size=6), min_size=1, max_size=3))
def test_a_program_does_what_its_rules_mean(filter_: Seccomp, calls: list[list[int]]) -> None:
    program = compile_filter(filter_)
    edges = [arg.value for rule in filter_.syscalls for arg in rule.args]
    calls = [*calls, *([edge + more & 2**64 - 1] * 6 for edge in edges for more in (-1, 0, 1))]
    for arch in {X86_64, *(ARCHES[name] for name in filter_.architectures)}:
        # numbers that are nobody's, too; x32's have a bit
        known = [nr(name, arch) for name in CALLS]
        for number in {*known, *(number + 1 for number in known)}:
            if number < 0 or (arch == X32) != (number >= 1 << 30):
                continue
            for args in calls:
                seen = args if arch >> 31 else [arg & 2**32 - 1 for arg in args]
                verdict = run(program, number, *seen, arch=X86_64 if arch == X32 else arch)
                assert verdict == meaning(filter_, arch, number, seen), (hex(arch), number, seen)


# --- on disk --------------------------------------------------------------------------------------------


def test_a_program_is_compiled_once_and_read_from_then_on(tmp_path: Path) -> None:
    directory = tmp_path / "cache"
    filter_ = oci_filter(names=("rmdir",))
    program = compile_cached(filter_, str(directory))
    (file,) = directory.iterdir()
    assert (stat.S_IMODE(directory.stat().st_mode), stat.S_IMODE(file.stat().st_mode)) == (0o700, 0o600)
    compile_filter.cache_clear()
    assert compile_cached(filter_, str(directory)) == program == compile_filter.__wrapped__(filter_)
    assert compile_filter.cache_info().misses == 0
    assert compile_cached(oci_filter(names=("mkdir",)), str(directory)) != program
    assert len(list(directory.iterdir())) == 2


def _torn(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-8])


def _changed(file: Path) -> None:
    data = bytearray(file.read_bytes())
    data[-5] ^= 0xFF
    file.write_bytes(data)


def _anothers(file: Path) -> None:
    other = file.parent / "other"
    compile_cached(oci_filter(names=("link",)), str(other))
    file.write_bytes(next(other.iterdir()).read_bytes())
    for entry in other.iterdir():
        entry.unlink()
    other.rmdir()


def _writable(file: Path) -> None:
    file.chmod(0o666)


def _link(file: Path) -> None:
    kept = file.parent.parent / "kept"
    file.rename(kept)
    file.symlink_to(kept)


def _fifo(file: Path) -> None:
    file.unlink()
    os.mkfifo(file)


def _empty(file: Path) -> None:
    file.write_bytes(b"")


@pytest.mark.parametrize("spoil", [_torn, _changed, _anothers, _writable, _link, _fifo, _empty])
def test_a_file_that_is_not_what_it_should_be_is_replaced(
    tmp_path: Path, spoil: Callable[[Path], None]
) -> None:
    directory = tmp_path / "cache"
    filter_ = oci_filter(names=("rmdir",))
    program = compile_cached(filter_, str(directory))
    (file,) = directory.iterdir()
    good = file.read_bytes()
    spoil(file)
    assert compile_cached(filter_, str(directory)) == program
    assert [entry.name for entry in directory.iterdir()] == [file.name]
    assert file.read_bytes() == good and not file.is_symlink() and stat.S_IMODE(file.stat().st_mode) == 0o600


@pytest.mark.skipif(os.geteuid() != 0, reason="gives a file to another user: needs root")
def test_another_users_file_is_not_trusted(tmp_path: Path) -> None:
    directory = tmp_path / "cache"
    filter_ = oci_filter(names=("rmdir",))
    program = compile_cached(filter_, str(directory))
    (file,) = directory.iterdir()
    os.chown(file, 65534, 65534)
    compile_filter.cache_clear()
    assert compile_cached(filter_, str(directory)) == program
    assert compile_filter.cache_info().misses == 1 and file.stat().st_uid == 0


@pytest.mark.parametrize("mode", [0o777, 0o720])
def test_a_directory_that_others_may_write_to_is_not_used(tmp_path: Path, mode: int) -> None:
    directory = tmp_path / "cache"
    directory.mkdir()
    directory.chmod(mode)
    assert compile_cached(oci_filter(), str(directory)) == compile_filter(oci_filter())
    assert list(directory.iterdir()) == []
    assert compile_cached(oci_filter(), str(tmp_path / "missing/cache")) == compile_filter(oci_filter())


def test_a_cache_keeps_its_newest_files(tmp_path: Path) -> None:
    for number in range(seccomp_cache.MAX_FILES + 3):
        args = (SeccompArg(index=0, value=number),)
        compile_cached(oci_filter(args=args), str(tmp_path))
        if number == 0:
            (first,) = tmp_path.iterdir()
            os.utime(first, ns=(0, 0))
    assert len(list(tmp_path.iterdir())) == seccomp_cache.MAX_FILES and not first.exists()


def test_a_cached_program_needs_no_library(tmp_path: Path) -> None:
    script = (
        "import sys; from cove.runtime.oci import Seccomp; from cove.runtime.seccomp_cache import compile_cached; "
        "compile_cached(Seccomp(default_action='SCMP_ACT_ALLOW'), sys.argv[1]); print('ctypes' in sys.modules)"
    )
    runs = [
        subprocess.run(
            [sys.executable, "-c", script, str(tmp_path)],
            capture_output=True,
            text=True,
            timeout=60,
            check=True,
        ).stdout
        for _ in range(2)
    ]
    assert runs == ["True\n", "False\n"]
