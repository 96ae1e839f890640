"""What the filters let through, by running the compiled programs in a small BPF machine."""

from __future__ import annotations

import errno
import json
import struct
from typing import Any

import pytest

from cove.model.errors import Invalid
from cove.runtime import capabilities
from cove.runtime.oci import Seccomp, SeccompArg, SeccompSyscall
from cove.runtime.seccomp import parse_profile, select
from cove.runtime.seccomp_compile import compile_filter, filter_flags

pyseccomp = pytest.importorskip("pyseccomp", reason="libseccomp is not installed")

X86_64, X86 = 0xC000003E, 0x40000003
ALLOW, KILL_PROCESS = 0x7FFF0000, 0x80000000
CLONE_NEWUSER = 0x10000000
pytestmark = pytest.mark.skipif(pyseccomp.system_arch() != X86_64, reason="numbers below are x86-64's")


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


def nr(name: str, arch: int = X86_64) -> int:
    return int(pyseccomp.resolve_syscall(arch, name))


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


@pytest.mark.parametrize("family", [38, 40])
def test_sockets_of_kernel_crypto_and_hypervisor_are_refused(family: int) -> None:
    assert run(default(), nr("socket"), family) == fails_with(errno.EPERM)


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
    assert run(default(), 0, arch=0x123) in (0, KILL_PROCESS)


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
                            "args": [{"index": 6, "value": 0}]}]), "index"),
        (profile(syscalls=[{"names": ["a"], "action": "SCMP_ACT_LOG",
                            "args": [{"index": 0, "value": 0, "op": "LIKE"}]}]), "LIKE"),
    ],
)  # fmt: skip
def test_a_wrong_profile_is_refused_with_the_reason(text: str, words: str) -> None:
    with pytest.raises(Invalid, match=r".") as caught:
        parse_profile(text)
    assert words in str(caught.value)


def test_flags_become_bits_and_unknown_ones_are_refused() -> None:
    named = ("SECCOMP_FILTER_FLAG_LOG", "SECCOMP_FILTER_FLAG_TSYNC")
    assert filter_flags(Seccomp(default_action="SCMP_ACT_ALLOW", flags=named)) == 2
    with pytest.raises(Invalid, match="NEW_LISTENER"):
        filter_flags(Seccomp(default_action="SCMP_ACT_ALLOW", flags=("SECCOMP_FILTER_FLAG_NEW_LISTENER",)))
