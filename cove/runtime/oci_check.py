"""What must fit together in a config.json: combinations that no kernel could execute, and words that nobody knows.

Pure. `oci.parse_config` has answered for types and ranges before; what this host lacks is host_check.py's. The rules
are those of the OCI runtime-spec, of the man pages that each check names, and, where these are silent, runc's
(libcontainer/configs/validate). A refusal names the field by its JSON path, the rule, and a value that works.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

from cove.runtime import oci
from cove.runtime.oci_check_linux import check_linux
from cove.runtime.oci_words import check_list, one_of, refuse
from cove.runtime.plan_process import (
    IO_CLASSES,
    MAX_CPUS,
    POLICIES,
    RLIMITS,
    SCHEDULER_FLAGS,
)

_MAX_NAME_BYTES = 64  # uname(2): __NEW_UTS_LEN
_MAX_GROUPS = 256  # of a SetIds step (native/src/process.c)


def check_config(config: oci.Config) -> list[str]:
    """Refuse what can't be executed anywhere, with Invalid; returns warnings of what will have no effect."""
    if not config.root.path:
        raise refuse("root.path", 'is empty: give a directory, e.g. "rootfs"')
    if "" in config.annotations:
        raise refuse("annotations", "a key is empty: give it a name, e.g. org.example.key")
    check_process(config.process)
    for index, mount in enumerate(config.mounts):
        _check_mount(f"mounts[{index}]", mount)
    _check_hooks(config.hooks)
    check_linux(config)
    _check_names(config)
    return list(_find_futile(config))


def _check_names(config: oci.Config) -> None:
    inside = any(namespace.type == "uts" for namespace in config.linux.namespaces)
    for field, name in (("hostname", config.hostname), ("domainname", config.domainname)):
        if not name:
            continue
        if not inside:
            raise refuse(
                field, 'needs a UTS namespace: add {"type": "uts"} to linux.namespaces, or leave it out'
            )
        if len(name.encode()) > _MAX_NAME_BYTES:
            raise refuse(field, f"has {len(name.encode())} bytes: give {_MAX_NAME_BYTES} at most, e.g. web")


def _find_futile(config: oci.Config) -> Iterator[str]:
    joined = any(namespace.type == "uts" and namespace.path for namespace in config.linux.namespaces)
    for field, name in (("hostname", config.hostname), ("domainname", config.domainname)):
        if name and joined:
            yield f"config.json: {field}: isn't set: the UTS namespace is another container's, leave it out"
    memory = config.linux.resources.memory if config.linux.resources else None
    if memory is not None and memory.kernel is not None:
        yield "config.json: linux.resources.memory.kernel: kernels have no such limit any more (5.16), leave it out"


# --- the process ------------------------------------------------------------------------------------


def check_process(process: oci.Process, place: str = "process") -> None:
    """The same for `process` alone: the container's first one, or that of an exec."""
    _check_environment(f"{place}.env", process.env)
    user = process.user
    if user.username:
        raise refuse(f"{place}.user.username", "is for Windows alone: look the name up, and give uid and gid")
    if len(user.additional_gids) > _MAX_GROUPS:
        raise refuse(
            f"{place}.user.additionalGids",
            f"has {len(user.additional_gids)} groups: give {_MAX_GROUPS} at most",
        )
    for name, number in (("uid", user.uid), ("gid", user.gid)):
        if number == 2**32 - 1:  # setresuid(2): "leave it as it is"
            raise refuse(f"{place}.user.{name}", f"{number} means no user at all: use 0 to {2**32 - 2}")
    score = process.oom_score_adj
    if score is not None and not -1000 <= score <= 1000:
        raise refuse(f"{place}.oomScoreAdj", f"{score} is out of range: use -1000 (never killed) to 1000")
    _check_rlimits(f"{place}.rlimits", process.rlimits)
    _check_capabilities(f"{place}.capabilities", process.capabilities)
    if process.scheduler is not None:
        _check_scheduler(f"{place}.scheduler", process.scheduler)
    if process.io_priority is not None:
        _check_io_priority(f"{place}.ioPriority", process.io_priority)
    if process.exec_cpu_affinity is not None:
        affinity = process.exec_cpu_affinity
        for name, cpus in (("initial", affinity.initial), ("final", affinity.final)):
            check_list(f"{place}.execCPUAffinity.{name}", cpus, MAX_CPUS)


def _check_environment(place: str, env: Iterable[str]) -> None:
    for index, item in enumerate(env):
        name, equals, _ = item.partition("=")
        if not name or not equals:
            raise refuse(f"{place}[{index}]", f'"{item}" is no variable: write NAME=VALUE, e.g. TERM=xterm')


def _check_rlimits(place: str, rlimits: Sequence[oci.Rlimit]) -> None:
    """setrlimit(2); the specification forbids a type to be there twice."""
    seen: set[str] = set()
    for index, limit in enumerate(rlimits):
        known = limit.type.startswith("RLIMIT_") and limit.type[7:].lower() in RLIMITS
        if not known or not limit.type.isupper():
            words = (f"RLIMIT_{name.upper()}" for name in RLIMITS)
            raise refuse(f"{place}[{index}].type", f'"{limit.type}" is no resource: use {one_of(words)}')
        if limit.type in seen:
            raise refuse(f"{place}[{index}].type", f"{limit.type} is there twice: leave one out")
        seen.add(limit.type)
        if limit.soft > limit.hard:
            raise refuse(
                f"{place}[{index}].soft",
                f"{limit.soft} is more than hard, {limit.hard}: give {limit.hard} at most",
            )


def _check_capabilities(place: str, sets: oci.Capabilities | None) -> None:
    """capset(2): what is effective has to be permitted."""
    if sets is None:
        return
    for name in sets.effective:
        if name not in sets.permitted:
            raise refuse(f"{place}.effective", f"{name} isn't permitted: add it to {place}.permitted, too")


def _check_scheduler(place: str, scheduler: oci.Scheduler) -> None:
    """sched_setattr(2)."""
    policy = scheduler.policy
    if policy not in POLICIES or policy == "SCHED_ISO":  # reserved, and in no kernel yet
        words = (word for word in POLICIES if word != "SCHED_ISO")
        raise refuse(f"{place}.policy", f'"{policy}" is no policy: use {one_of(words)}')
    for index, flag in enumerate(scheduler.flags):
        if flag not in SCHEDULER_FLAGS:
            raise refuse(f"{place}.flags[{index}]", f'"{flag}" is no flag: use {one_of(SCHEDULER_FLAGS)}')
    if policy in ("SCHED_OTHER", "SCHED_BATCH") and not -20 <= scheduler.nice <= 19:
        raise refuse(f"{place}.nice", f"{scheduler.nice} is out of range: use -20 (most) to 19 (least)")
    realtime = policy in ("SCHED_FIFO", "SCHED_RR")
    if realtime and not 1 <= scheduler.priority <= 99:
        raise refuse(f"{place}.priority", f"{scheduler.priority} is out of range for {policy}: use 1 to 99")
    if scheduler.priority and not realtime:
        raise refuse(f"{place}.priority", f"is for SCHED_FIFO and SCHED_RR: leave it out with {policy}")
    times = (("runtime", scheduler.runtime), ("deadline", scheduler.deadline), ("period", scheduler.period))
    if policy != "SCHED_DEADLINE":
        for name, value in times:
            if value:
                raise refuse(f"{place}.{name}", f"is for SCHED_DEADLINE: leave it out with {policy}")
        return
    for name, value in times:
        if value >= 1 << 63:
            raise refuse(f"{place}.{name}", f"{value} is out of range: give nanoseconds, less than 2**63")
    period = scheduler.period or scheduler.deadline
    if not 1024 <= scheduler.runtime <= scheduler.deadline <= period:
        raise refuse(
            f"{place}.runtime", "has to be 1024 at least, deadline at least runtime, period at least deadline, "
            "e.g. 10000000, 30000000 and 30000000 nanoseconds",
        )  # fmt: skip


def _check_io_priority(place: str, priority: oci.IoPriority) -> None:
    """ioprio_set(2)."""
    if priority.io_class not in IO_CLASSES:
        raise refuse(f"{place}.class", f'"{priority.io_class}" is no class: use {one_of(IO_CLASSES)}')
    if not 0 <= priority.priority <= 7:
        raise refuse(f"{place}.priority", f"{priority.priority} is out of range: use 0 (first) to 7 (last)")


# --- mounts and hooks -------------------------------------------------------------------------------


def _check_mount(place: str, mount: oci.Mount) -> None:
    if mount.destination == "/":
        raise refuse(f"{place}.destination", '"/" is the root itself: name its directory in root.path')
    bind = mount.type == "bind" or "bind" in mount.options or "rbind" in mount.options
    if bind and not mount.source:
        raise refuse(f"{place}.source", "is empty: name what to bind, e.g. /srv/data")
    if not bind and not mount.type:
        raise refuse(f"{place}.type", 'is empty: name a file system, e.g. tmpfs, or add "rbind" to options')
    for index, option in enumerate(mount.options):
        if not option:
            raise refuse(f"{place}.options[{index}]", "is empty: leave it out")
    if bool(mount.uid_mappings) != bool(mount.gid_mappings):
        missing = "gidMappings" if mount.uid_mappings else "uidMappings"
        raise refuse(f"{place}.{missing}", "is missing: an id-mapped mount needs both kinds")


def _check_hooks(hooks: oci.Hooks) -> None:
    kinds: tuple[tuple[str, Sequence[oci.Hook]], ...] = (
        ("prestart", hooks.prestart),
        ("createRuntime", hooks.create_runtime),
        ("createContainer", hooks.create_container),
        ("startContainer", hooks.start_container),
        ("poststart", hooks.poststart),
        ("poststop", hooks.poststop),
    )
    for kind, items in kinds:
        for index, hook in enumerate(items):
            place = f"hooks.{kind}[{index}]"
            if not hook.path.startswith("/"):
                raise refuse(f"{place}.path", f'"{hook.path}" must be absolute, e.g. /usr/bin/hook')
            if hook.timeout is not None and not 0 < hook.timeout < 1 << 31:
                raise refuse(
                    f"{place}.timeout", f"{hook.timeout} must be a positive number of seconds, e.g. 5"
                )
            _check_environment(f"{place}.env", hook.env)
