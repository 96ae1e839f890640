"""The OCI runtime specification's own conformance programs find in bin/cove-runtime what the table here says.

What they find is written down with its reason, and a problem that isn't found any more is a failure, too.
docs/conformance.md sets this beside runc.
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path

import pytest

from cove.runtime.cgroups_detect import detect_cgroups
from tests.conformance.programs import RUNTIME, Outcome, build, machine_lock, missing, run_programs

MISSING = missing()
pytestmark = [
    pytest.mark.skipif(bool(MISSING), reason=f"the conformance programs can't be built: {MISSING}"),
    pytest.mark.timeout(900),
]


@dataclass(frozen=True)
class Expected:
    """A problem that a program finds, always or sometimes, where `here` holds, and why that is so."""

    problem: str
    why: str
    here: bool = True
    always: bool = True


_NO_FILE = (
    "the host's kernel lacks the controller or its file: the config is refused, as the specification demands"
)
_POINTERS = "the program compares two pointers, not what they point to"
_KERNEL_MEMORY = "Linux has no limit of kernel memory since 5.16: the file takes anything and does nothing"
_CLONED = (
    "shared and slave binds are cloned in the host's mount namespace, before the container's own mounts are made, and "
    "Linux 6.8 lists mounts by the time they were made; they are attached in order"
)
_PRESTART = (
    "since 1.0.2 prestart hooks are part of create; the program wants them in start, and runc fails alike"
)

_V1 = Path("/sys/fs/cgroup")
_V2 = detect_cgroups().layout.version == 2
_KERNEL = tuple(int(number) for number in re.findall(r"\d+", os.uname().release)[:2])


def lacks(file: str) -> bool:
    return not (_V1 / file).exists()


def lacks_capability(number: int) -> bool:
    status = Path("/proc/self/status").read_text()
    return not int(status.partition("CapBnd:")[2].split()[0], 16) >> number & 1


PROGRAMS = """
    config_updates_without_affect create default delete delete_only_create_resources
    delete_resources hooks hooks_stdin hostname kill kill_no_effect killsig linux_cgroups_blkio
    linux_cgroups_cpus linux_cgroups_devices linux_cgroups_hugetlb linux_cgroups_memory
    linux_cgroups_network linux_cgroups_pids linux_cgroups_relative_blkio linux_cgroups_relative_cpus
    linux_cgroups_relative_devices linux_cgroups_relative_hugetlb linux_cgroups_relative_memory
    linux_cgroups_relative_network linux_cgroups_relative_pids linux_devices linux_masked_paths
    linux_mount_label linux_ns_itype linux_ns_nopath linux_ns_path linux_ns_path_type
    linux_process_apparmor_profile linux_readonly_paths linux_rootfs_propagation linux_seccomp
    linux_sysctl linux_uid_mappings misc_props mounts pidfile poststart poststart_fail poststop
    poststop_fail prestart prestart_fail process process_capabilities process_capabilities_fail
    process_oom_score_adj process_rlimits process_rlimits_fail process_user root_readonly_true start
    state
""".split()
# print nothing where all is well
SILENT = {"poststart", "poststop", "poststop_fail", "prestart_fail", "process_rlimits_fail"}

EXPECTED: dict[str, tuple[Expected, ...]] = {
    "delete": (
        Expected(
            "attempting to `delete` a container that is not `stopped` MUST generate an error",
            "a created container is deleted, as runc does; a running one isn't",
        ),
        Expected(
            "attempting to `delete` a container that is not `stopped` MUST have no effect on the container",
            "the same",
        ),
    ),
    "delete_resources": (Expected("pids limit is set correctly", _POINTERS),),
    "hooks": (
        Expected(
            "Hooks MUST be called in the listed order",
            "the program compares with a text that its own hooks don't write",
        ),
    ),
    "linux_cgroups_blkio": (Expected("exit status 1", _NO_FILE, here=lacks("blkio/blkio.leaf_weight")),),
    "linux_cgroups_hugetlb": (Expected("exit status 1", _NO_FILE, here=lacks("hugetlb")),),
    "linux_cgroups_memory": (
        Expected("memory kernel is set correctly", _KERNEL_MEMORY, here=_KERNEL >= (5, 16)),
    ),
    "linux_cgroups_network": (Expected("exit status 1", _NO_FILE, here=lacks("net_cls")),),
    "linux_cgroups_pids": (Expected("pids limit is set correctly", _POINTERS),),
    "linux_cgroups_relative_blkio": (
        Expected("exit status 1", _NO_FILE, here=lacks("blkio/blkio.leaf_weight")),
    ),
    "linux_cgroups_relative_hugetlb": (Expected("exit status 1", _NO_FILE, here=lacks("hugetlb")),),
    "linux_cgroups_relative_memory": (
        Expected("memory kernel is set correctly", _KERNEL_MEMORY, here=_KERNEL >= (5, 16)),
    ),
    "linux_cgroups_relative_network": (Expected("exit status 1", _NO_FILE, here=lacks("net_cls")),),
    "linux_cgroups_relative_pids": (Expected("pids limit is set correctly", _POINTERS),),
    "linux_mount_label": (
        Expected("exit status 1", "this host has no SELinux", here=not Path("/sys/fs/selinux").exists()),
    ),
    "linux_process_apparmor_profile": (
        Expected(
            "exit status 1",
            "this host has no AppArmor",
            here=not Path("/sys/kernel/security/apparmor").exists(),
        ),
    ),
    "misc_props": (
        Expected(
            "implementations that are reading/processing this configuration file MUST NOT generate an error if they "
            "encounter an unknown annotation key",
            "the program forgets to copy /runtimetest, which this config runs",
        ),
    ),
    "mounts": tuple(
        Expected(rf"mounts[{index}] (/mnt/etc-{kind}) found in order", _CLONED, here=_KERNEL >= (6, 8))
        for index, kind in ((9, "shared"), (10, "rshared"), (11, "slave"), (12, "rslave"))
    ),
    "pidfile": (
        Expected(
            "create with '--pid-file' option works",
            "the program kills a process that may have ended, and takes the error that is due for a failure",
            always=False,
        ),
    ),
    "poststart_fail": (
        Expected(
            "if any poststart hook fails, the runtime MUST log a warning, but the remaining hooks and lifecycle "
            "continue as if the hook had succeeded",
            "since 1.3 the container ends then, and start is an error; runc fails alike",
        ),
    ),
    "prestart": (
        Expected("Pre-start hooks MUST be called after the `start` operation is called", _PRESTART),
    ),
    "process_capabilities": tuple(
        Expected(
            f"expected {kind} capability CAP_SYS_RESOURCE set",
            "this host's root lacks it: it is left out with a warning, where runc fails",
            here=lacks_capability(24),
        )
        for kind in ("bounding", "effective", "inheritable", "permitted", "ambient")
    ),
    "process_capabilities_fail": (
        Expected("exit status 1", "since 1.1 an unknown capability is a warning; the program wants an error"),
    ),
    "process_rlimits": (
        Expected(
            "has expected soft RLIMIT_NOFILE", "/runtimetest is a Go program: Go raises its own soft limit"
        ),
    ),
    "start": (
        Expected(
            "exit status 1",
            "the program wants `start` without a process to succeed: it MUST generate an error",
        ),
    ),
}


@pytest.fixture(scope="module")
def outcomes(request: pytest.FixtureRequest) -> dict[str, Outcome]:
    """What the programs found whose tests are run."""
    try:
        built = build()
    except RuntimeError as error:  # nothing of ours is built: the modules can't be had, or Go doesn't fit
        pytest.skip(f"the conformance programs can't be built: {error}")
    assert built == PROGRAMS
    wanted = {
        item.callspec.params.get("program") for item in request.session.items if hasattr(item, "callspec")
    }
    return run_programs([name for name in built if name in wanted], str(RUNTIME))


@pytest.mark.parametrize("program", PROGRAMS)
def test_a_program_finds_what_is_known_and_nothing_else(outcomes: dict[str, Outcome], program: str) -> None:
    if _V2 and program.startswith(("linux_cgroups_", "delete_")):
        pytest.skip("the program reads the files of cgroup v1, and this host has v2")
    outcome = outcomes[program]
    known = [each for each in EXPECTED.get(program, ()) if each.here]
    found = set(outcome.problems)
    assert found <= {each.problem for each in known}, outcome.err
    assert found >= {each.problem for each in known if each.always}, (
        "a known problem is gone: take it from the table"
    )
    assert found or outcome.passed or program in SILENT


def test_every_program_of_the_table_exists() -> None:
    assert set(EXPECTED) | SILENT <= set(PROGRAMS)


def test_nothing_is_left_of_them(outcomes: dict[str, Outcome]) -> None:
    with machine_lock():
        assert not [path for path in _V1.glob("*/*") if path.name in ("cgrouptest", "testdir")]
        assert not list(Path("/var/tmp").glob("cove-conformance-*"))
        assert "cove-conformance-" not in Path("/proc/self/mountinfo").read_text()
