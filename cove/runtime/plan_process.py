"""Plan what the process becomes: terminal, limits, scheduling, labels, identity, capabilities, filter. Pure (system
call filters are compiled by libseccomp, a function of their rules)."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import lru_cache

import msgspec

from cove.model.errors import Invalid, Unavailable
from cove.runtime import capabilities, oci
from cove.runtime.facts import Host
from cove.runtime.plan_inputs import PlanFacts
from cove.runtime.seccomp_compile import filter_flags
from cove.runtime.steps import (
    Affinity,
    Capabilities,
    DropBounding,
    IoPriority,
    MemoryPolicy,
    NoNewPrivs,
    Personality,
    ResolveUser,
    Rlimit,
    Scheduler,
    Seccomp,
    SessionKeyring,
    SetIds,
    Step,
    Terminal,
    Umask,
    WriteSelf,
)

RLIMITS = {
    "cpu": 0, "fsize": 1, "data": 2, "stack": 3, "core": 4, "rss": 5, "nproc": 6, "nofile": 7,
    "memlock": 8, "as": 9, "locks": 10, "sigpending": 11, "msgqueue": 12, "nice": 13, "rtprio": 14,
    "rttime": 15,
}  # fmt: skip
# sched(7), sched_setattr(2)
POLICIES = {"SCHED_OTHER": 0, "SCHED_FIFO": 1, "SCHED_RR": 2, "SCHED_BATCH": 3, "SCHED_ISO": 4, "SCHED_IDLE": 5,
            "SCHED_DEADLINE": 6}  # fmt: skip
SCHEDULER_FLAGS = {"SCHED_FLAG_RESET_ON_FORK": 0x01, "SCHED_FLAG_RECLAIM": 0x02, "SCHED_FLAG_DL_OVERRUN": 0x04,
                   "SCHED_FLAG_KEEP_POLICY": 0x08, "SCHED_FLAG_KEEP_PARAMS": 0x10, "SCHED_FLAG_UTIL_CLAMP_MIN": 0x20,
                   "SCHED_FLAG_UTIL_CLAMP_MAX": 0x40}  # fmt: skip
IO_CLASSES = {"IOPRIO_CLASS_RT": 1, "IOPRIO_CLASS_BE": 2, "IOPRIO_CLASS_IDLE": 3}  # ioprio_set(2)
PERSONALITIES = {"LINUX": 0x0000, "LINUX32": 0x0008}  # personality(2)
# set_mempolicy(2)
MEMORY_MODES = {"MPOL_DEFAULT": 0, "MPOL_PREFERRED": 1, "MPOL_BIND": 2, "MPOL_INTERLEAVE": 3, "MPOL_LOCAL": 4,
                "MPOL_PREFERRED_MANY": 5, "MPOL_WEIGHTED_INTERLEAVE": 6}  # fmt: skip
MEMORY_FLAGS = {
    "MPOL_F_STATIC_NODES": 1 << 15,
    "MPOL_F_RELATIVE_NODES": 1 << 14,
    "MPOL_F_NUMA_BALANCING": 1 << 13,
}
MAX_CPUS = 8192  # CONFIG_NR_CPUS of the kernels there are

Compile = Callable[[oci.Seccomp], bytes]  # seccomp_compile.compile_filter, or one with a cache


def plan_terminal(process: oci.Process, *, console: bool) -> Iterator[Step]:
    if process.terminal:
        size = process.console_size
        yield Terminal(
            rows=size.height if size else 0,
            cols=size.width if size else 0,
            console=int(console),
            uid=0 if process.user.username else process.user.uid,
        )


def plan_user_lookup(process: oci.Process, group_add: tuple[str, ...]) -> Iterator[Step]:
    if process.user.username:
        yield ResolveUser(user=process.user.username, groups=group_add)


def plan_labels(process: oci.Process, host: Host) -> Iterator[Step]:
    """What security modules give the program at its exec: by the host's /proc, so before the pivot. Raises
    Unavailable where the module isn't there."""
    if process.apparmor_profile and process.apparmor_profile != "unconfined":
        if "apparmor" not in host.security_modules:
            raise Unavailable(
                f"process.apparmorProfile {process.apparmor_profile!r}: AppArmor is not enabled on this host, "
                "leave it out"
            )
        yield WriteSelf(name="attr/apparmor/exec", data=f"exec {process.apparmor_profile}")
    if process.selinux_label:
        if "selinux" not in host.security_modules:
            raise Unavailable(
                f"process.selinuxLabel {process.selinux_label!r}: SELinux is not enabled on this host, leave it out"
            )
        yield WriteSelf(name="attr/exec", data=process.selinux_label)
        yield WriteSelf(name="attr/keycreate", data=process.selinux_label)


def plan_raised_limits(process: oci.Process, host: Host) -> Iterator[Step]:
    """For `parent`: hard limits above this daemon's own need the host's CAP_SYS_RESOURCE, which a process in a
    user namespace hasn't got. The child sets them to what they shall be."""
    own = dict(host.limits)
    for limit in process.rlimits:
        number = _limit_number(limit)
        if limit.hard > own.get(number, 2**64 - 1):
            yield Rlimit(resource=number, soft=own[number], hard=limit.hard)


def _limit_number(limit: oci.Rlimit) -> int:
    number = RLIMITS.get(limit.type.removeprefix("RLIMIT_").lower())
    if number is None:
        raise Invalid(f"process.rlimits: {limit.type!r} is unknown, e.g. use RLIMIT_NOFILE")
    return number


def plan_affinity(cpus: str, where: str) -> Iterator[Step]:
    """Bind to the processors of a list ("0-3,7"); "" leaves them as they are. Raises Invalid."""
    if cpus:
        yield Affinity(mask=number_mask(cpus, where, MAX_CPUS))


def number_mask(text: str, where: str, limit: int) -> bytes:
    """A list of numbers below `limit` as the kernel's unsigned long[] (cpuset(7), "List Format"). Raises Invalid."""
    bits = 0
    for part in text.split(","):
        first, dash, last = part.strip().partition("-")
        low, high = first, last if dash else first
        if not (low.isascii() and low.isdecimal() and high.isascii() and high.isdecimal()):
            raise Invalid(f"{where} {text!r}: give a list of numbers, e.g. 0-3,7")
        if int(low) > int(high) or int(high) >= limit:
            raise Invalid(
                f"{where} {text!r}: give numbers from 0 to {limit - 1}, lower ones first, e.g. 0-3,7"
            )
        bits |= (1 << int(high) + 1) - (1 << int(low))
    return bits.to_bytes((bits.bit_length() + 63) // 64 * 8, "little")


def _plan_scheduling(config: oci.Config, process: oci.Process) -> Iterator[Step]:
    scheduler = process.scheduler
    if scheduler is not None:
        yield Scheduler(
            policy=_word(POLICIES, scheduler.policy, "process.scheduler.policy"),
            flags=_bits(SCHEDULER_FLAGS, scheduler.flags, "process.scheduler.flags"),
            nice=scheduler.nice,
            priority=scheduler.priority,
            runtime=scheduler.runtime,
            deadline=scheduler.deadline,
            period=scheduler.period,
        )
    if process.io_priority is not None:
        yield IoPriority(
            priority_class=_word(IO_CLASSES, process.io_priority.io_class, "process.ioPriority.class"),
            priority=process.io_priority.priority,
        )
    personality = config.linux.personality
    if personality is not None:
        if personality.flags:
            raise Invalid("linux.personality.flags: none are defined by the specification, leave them out")
        yield Personality(persona=_word(PERSONALITIES, personality.domain, "linux.personality.domain"))
    policy = config.linux.memory_policy
    if policy is not None:
        mode = _word(MEMORY_MODES, policy.mode, "linux.memoryPolicy.mode")
        flags = _bits(MEMORY_FLAGS, policy.flags, "linux.memoryPolicy.flags")
        nodes = number_mask(policy.nodes, "linux.memoryPolicy.nodes", 1024) if policy.nodes else b""
        yield MemoryPolicy(mode=mode | flags, nodes=nodes)


def _word(table: dict[str, int], word: str, where: str) -> int:
    number = table.get(word)
    if number is None:
        raise Invalid(f"{where} {word!r}: use one of {', '.join(table)}")
    return number


def _bits(table: dict[str, int], words: tuple[str, ...], where: str) -> int:
    bits = 0
    for word in words:
        bits |= _word(table, word, where)
    return bits


def plan_identity(
    config: oci.Config,
    process: oci.Process,
    facts: PlanFacts,
    host: Host,
    compile_: Compile,
    *,
    user_ns: bool,
) -> Iterator[Step]:
    """Everything between the pivot and the exec. Raises Invalid, Unavailable."""
    for limit in process.rlimits:
        yield Rlimit(resource=_limit_number(limit), soft=limit.soft, hard=limit.hard)
    yield from _plan_scheduling(config, process)
    yield Umask(mask=0o022 if process.user.umask is None else process.user.umask & 0o777)
    if facts.keyring:
        yield SessionKeyring(name=f"_ses.{facts.id}")
    seccomp = None
    if config.linux.seccomp is not None:
        seccomp = Seccomp(program=compile_(config.linux.seccomp), flags=filter_flags(config.linux.seccomp))
    sets = _capability_masks(process.capabilities)
    if not user_ns and (
        missing := (sets.permitted | sets.bounding) & ~host.capabilities & capabilities.KNOWN
    ):
        raise Unavailable(
            f"process.capabilities: this host can't give {', '.join(capabilities.names(missing))}, leave it out"
        )
    yield DropBounding(bounding=sets.bounding)
    if seccomp is not None and not process.no_new_privileges:
        yield seccomp
    yield _plan_ids(process.user, facts)
    yield Capabilities(
        effective=sets.effective,
        permitted=sets.permitted,
        inheritable=sets.inheritable,
        ambient=sets.ambient,
    )
    if process.no_new_privileges:
        yield NoNewPrivs()
        if seccomp is not None:
            yield seccomp


def _plan_ids(user: oci.User, facts: PlanFacts) -> Step:
    groups = user.additional_gids
    if not facts.setgroups:
        if any(group != user.gid for group in user.additional_gids):
            raise Unavailable(
                "process.user.additionalGids: an unprivileged user's own maps allow no supplementary groups, "
                "leave them out"
            )
        groups = ()
    return SetIds(uid=user.uid, gid=user.gid, groups=tuple(map(str, groups)))


class _Masks(msgspec.Struct, frozen=True):
    bounding: int = 0
    effective: int = 0
    permitted: int = 0
    inheritable: int = 0
    ambient: int = 0


@lru_cache(maxsize=256)
def _capability_masks(sets: oci.Capabilities | None) -> _Masks:
    if sets is None:
        return _Masks()
    return _Masks(
        *(
            capabilities.mask(names)
            for names in (sets.bounding, sets.effective, sets.permitted, sets.inheritable, sets.ambient)
        )
    )
