"""`exec`: another process in a container's namespaces and cgroup."""

from __future__ import annotations

import os

import msgspec

from cove.model.errors import Conflict, HostError, Invalid
from cove.ociruntime import caller, foreground
from cove.ociruntime.console import connect, hand_over
from cove.ociruntime.create import announce, check_console, hand_listener
from cove.ociruntime.filters import filter_compiler
from cove.ociruntime.grants import grant
from cove.ociruntime.launch import Started, launch
from cove.ociruntime.preserve import copy_descriptors, find_preserved, pass_on
from cove.ociruntime.slots import close_all, open_slots
from cove.ociruntime.state import Container, load
from cove.ociruntime.words import explain
from cove.runtime.cgroups import find_exec_path
from cove.runtime.cgroups_detect import detect_cgroups
from cove.runtime.executor import StepFailed
from cove.runtime.host import find_host
from cove.runtime.oci import Capabilities, Config, Process, User, parse_config, parse_process
from cove.runtime.oci_check import check_process
from cove.runtime.plan import plan_exec
from cove.runtime.plan_inputs import PlanFacts
from cove.runtime.usermaps import keeps_setgroups

TYPE_CHECKING = False
if TYPE_CHECKING:
    from cove.ociruntime.main import Call
    from cove.ociruntime.options import Options


def exec_command(call: Call) -> int:
    options = call.options
    if options.text("pid-file"):
        options.given["pid-file"] = os.path.abspath(options.text("pid-file"))
    container = load(call.root, options.args[0])
    status = container.status()
    if status in ("stopped", "creating"):
        raise Conflict(f"cannot exec in a {status} container")
    if status == "paused" and not options.on("ignore-paused"):
        raise Conflict("cannot exec in a paused container (use --ignore-paused to override)")
    config = read_config(container)
    process = read_process(call, config)
    check_console(call, process.terminal, detach=options.on("detach"))
    layout = detect_cgroups().layout
    path = find_exec_path(layout, container.data["cgroup"], container.pid)
    config = msgspec.structs.replace(config, linux=msgspec.structs.replace(config.linux, cgroups_path=path))
    facts = PlanFacts(
        id=container.id,
        all_cgroups=True,
        setgroups=keeps_setgroups(config.linux.gid_mappings),
        mount_at=container.data["mount_at"],
    )
    host = find_host(layout)
    granted = grant(process, config, host, call.log)
    plan, slots = plan_exec(config, granted, facts, host, filter_compiler(call.root))
    preserved = find_preserved(options)
    plan = pass_on(plan, len(slots), preserved)
    if not options.on("detach"):
        caller.current.begin_foreground(process.terminal)
    console = None
    pidfd = container.open_process()
    try:
        descriptors = open_slots(slots, process=pidfd)
    finally:
        os.close(pidfd)
    try:
        descriptors += copy_descriptors(preserved)
        if options.text("console-socket"):
            console = connect(options.text("console-socket"), "--console-socket")
        started = launch(
            plan,
            descriptors,
            container.id,
            on_listener=lambda pid, listener: _hand_listener(container, config, pid, listener),
        )
    except StepFailed as error:
        raise HostError(explain(error)) from error
    finally:
        close_all(descriptors)
    try:
        if console is not None:
            hand_over(console, started.terminal)
        announce(call, started)
    except BaseException:
        kill(started)
        started.close()
        raise
    try:
        return 0 if options.on("detach") else foreground.wait(started)
    finally:
        started.close()


def kill(started: Started) -> None:
    """End a process of which nobody will hear."""
    from _signal import pidfd_send_signal  # type: ignore[import-not-found]

    try:
        pidfd_send_signal(started.pidfd, 9)
    except ProcessLookupError:
        pass


def _hand_listener(container: Container, config: Config, pid: int, listener: int) -> None:
    assert config.linux.seccomp is not None
    hand_listener(config.linux.seccomp, listener, pid, container.public(container.status()))


def read_config(container: Container) -> Config:
    """The config that the container was made of."""
    with open(f"{container.directory}/config.json", "rb") as file:
        return parse_config(file.read())


def read_process(call: Call, config: Config) -> Process:
    """The process object of --process, or the container's own with what the flags change. Raises Invalid."""
    options = call.options
    warnings: list[str] = []
    if options.text("process"):
        try:
            with open(options.text("process"), "rb") as file:
                process = parse_process(file.read(), warnings)
        except OSError as error:
            raise Invalid(f"--process {options.text('process')}: {(error.strerror or '').lower()}") from None
    else:
        process = change_process(config.process, options)
    check_process(process)
    for warning in warnings:
        call.log.warn(warning)
    return process


def change_process(process: Process, options: Options) -> Process:
    """The container's process as the flags of exec change it. Raises Invalid."""
    if len(options.args) < 2:
        raise Invalid("exec args cannot be empty")
    capabilities = process.capabilities
    if added := tuple(options.all("cap")):
        capabilities = add_capabilities(capabilities or Capabilities(), added)
    return msgspec.structs.replace(
        process,
        args=tuple(options.args[1:]),
        cwd=options.text("cwd") or process.cwd,
        env=(*process.env, *options.all("env")),
        terminal=options.on("tty"),
        user=change_user(process.user, options),
        capabilities=capabilities,
        no_new_privileges=options.given.get("no-new-privs", process.no_new_privileges),
        apparmor_profile=options.text("apparmor") or process.apparmor_profile,
        selinux_label=options.text("process-label") or process.selinux_label,
    )


def change_user(user: User, options: Options) -> User:
    """--user UID[:GID] and --additional-gids. Raises Invalid."""
    uid, gid = user.uid, user.gid
    if text := options.text("user"):
        first, colon, second = text.partition(":")
        uid = _number(first, "--user", "1000 or 1000:1000")
        gid = _number(second, "--user", "1000:1000") if colon else gid
    added = tuple(_number(each, "--additional-gids", "100") for each in options.all("additional-gids"))
    return msgspec.structs.replace(user, uid=uid, gid=gid, additional_gids=(*user.additional_gids, *added))


def _number(text: str, flag: str, example: str) -> int:
    if not (text.isascii() and text.isdecimal()) or int(text) >= 2**32 - 1:
        raise Invalid(f"{flag} {text}: expected a number, e.g. {flag} {example}")
    return int(text)


def add_capabilities(sets: Capabilities, added: tuple[str, ...]) -> Capabilities:
    """As runc: ambient only when something is inheritable, for it counts only then."""
    return msgspec.structs.replace(
        sets,
        bounding=(*sets.bounding, *added),
        effective=(*sets.effective, *added),
        permitted=(*sets.permitted, *added),
        ambient=(*sets.ambient, *added) if sets.inheritable else sets.ambient,
    )
