"""`create` and `run`: from a bundle to a container.

Order that must hold: the id is claimed, state.json says what is about to be made, then it is made; hooks of the host
run once the process is cloned and its mounts are there; the pid is in state.json before anybody hears of it. A
failure takes everything back, and so does `delete --force` after a kill -9.
"""

from __future__ import annotations

import os
import stat
import time

import msgspec

from cove.model import wirejson
from cove.model.errors import HostError, Invalid
from cove.ociruntime import caller, cgroup, teardown
from cove.ociruntime.console import connect, hand_over, with_own_size
from cove.ociruntime.filters import filter_compiler
from cove.ociruntime.grants import grant
from cove.ociruntime.hooks import run_hooks
from cove.ociruntime.launch import Started, launch
from cove.ociruntime.preserve import (
    copy_descriptors,
    find_listening,
    find_preserved,
    pass_on,
    with_listening,
)
from cove.ociruntime.slots import close_all, open_slots
from cove.ociruntime.state import Container, claim, start_time, write_atomically
from cove.ociruntime.unprivileged import check_unlimited, is_delegated, with_own_mounts
from cove.ociruntime.words import explain, outline
from cove.runtime import protocol
from cove.runtime.cgroups import find_path
from cove.runtime.cgroups_detect import detect_cgroups
from cove.runtime.encode import MAX_PLAN
from cove.runtime.executor import StepFailed
from cove.runtime.host import find_host
from cove.runtime.host_check import check_host
from cove.runtime.oci import Config, encode_config, parse_config, place_in_bundle
from cove.runtime.oci_check import check_config
from cove.runtime.plan import plan_start
from cove.runtime.plan_cgroups import NO_RESOURCES
from cove.runtime.plan_inputs import PlanFacts
from cove.runtime.plan_namespaces import mount_mode
from cove.runtime.steps import Hold, RemoveHostDir
from cove.runtime.usermaps import keeps_setgroups, write_maps

MAX_STATE = protocol.MAX_HOOK_INPUT - 64  # a pid is still to come

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from cove.ociruntime.main import Call
    from cove.runtime.cgroups import Cgroups
    from cove.runtime.cgroups_systemd import Unit
    from cove.runtime.facts import Layout
    from cove.runtime.oci import Seccomp
    from cove.runtime.steps import Plan


def create_command(call: Call) -> int:
    config = read_bundle(call)
    check_console(call, config.process.terminal, detach=True)
    Creation(call, config, held=True).make().close()
    return 0


def run_command(call: Call) -> int:
    from cove.ociruntime import foreground
    from cove.ociruntime.control import release

    detach = call.options.on("detach")
    config = read_bundle(call)
    check_console(call, config.process.terminal, detach=detach)
    if not detach:
        caller.current.begin_foreground(config.process.terminal)
        config = msgspec.structs.replace(config, process=with_own_size(config.process))
    creation = Creation(call, config, held=bool(config.hooks.start_container))
    started = creation.make()
    container = creation.container
    try:
        if creation.held:
            release(container)
        run_poststart(container, config)
        if detach:
            return 0
        status = foreground.wait(started)
    except BaseException:
        teardown.destroy(call, container, config.hooks.poststop)
        raise
    finally:
        started.close()
    if not call.options.on("keep"):
        teardown.destroy(call, container, config.hooks.poststop)
    return status


def read_bundle(call: Call) -> Config:
    """The config of --bundle, with absolute paths; the bundle becomes the working directory, as with runc. Raises
    Invalid."""
    given = call.options.given
    if "pid-file" in given:
        given["pid-file"] = os.path.abspath(given["pid-file"])
    bundle = os.path.abspath(call.options.text("bundle") or ".")
    try:
        os.chdir(bundle)
        text = read_file("config.json")
        if caller.is_own_path(text):
            caller.current.only_here()
    except FileNotFoundError as error:
        if error.filename == "config.json":
            raise Invalid("JSON specification file config.json not found") from None
        raise Invalid(f"chdir {bundle}: no such file or directory") from None
    except OSError as error:
        raise Invalid(f"{error.filename or 'config.json'}: {(error.strerror or '').lower()}") from None
    warnings: list[str] = []
    config = place_in_bundle(parse_config(text, warnings), bundle)
    for warning in (*warnings, *check_config(config)):
        call.log.warn(warning)
    if not os.path.isdir(config.root.path):
        raise Invalid(f"invalid rootfs: stat {config.root.path}: no such file or directory")
    return config


def read_file(path: str) -> bytes:
    """A config's text. Raises OSError, Invalid for what is no plain file or too large to be one."""
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC)
    try:
        info = os.fstat(descriptor)
        if not stat.S_ISREG(info.st_mode) or info.st_size > MAX_PLAN:
            raise Invalid(f"{path}: expected a plain file of at most {MAX_PLAN >> 20} MiB")
        with open(descriptor, "rb", closefd=False) as file:
            return file.read(MAX_PLAN)
    finally:
        os.close(descriptor)


def check_console(call: Call, terminal: bool, *, detach: bool) -> None:
    """Raises Invalid in runc's words for a terminal that nobody would hold, and a socket that would get none."""
    given = bool(call.options.text("console-socket"))
    if detach and terminal and not given:
        raise Invalid("cannot allocate tty if cove-runtime will detach without setting console socket")
    if given and not (detach and terminal):
        raise Invalid("cannot use console socket if cove-runtime will not detach or allocate tty")


def run_poststart(container: Container, config: Config) -> None:
    """What fails here ends the container (runtime.md, "Lifecycle", step 9, since 1.3, and runc). Raises HostError."""
    try:
        run_hooks("poststart", config.hooks.poststart, container.public("running"))
    except HostError:
        cgroup.kill_all(container.data["cgroups"], container.data["freezer"])
        raise


def announce(call: Call, started: Started) -> None:
    """Tell whoever asked for it: --pidfd-socket, and --pid-file last."""
    options = call.options
    if options.text("pidfd-socket"):
        hand_over(connect(options.text("pidfd-socket"), "--pidfd-socket"), started.pidfd)
    if options.text("pid-file"):
        write_atomically(options.text("pid-file"), str(started.pid), 0o644)


def hand_listener(seccomp: Seccomp, listener: int, pid: int, state: dict[str, Any]) -> None:
    """Send a filter's listener to its agent. Raises HostError."""
    from cove.runtime.seccomp_notify import process_state, send_listener  # few filters have one

    send_listener(seccomp.listener_path, listener, process_state(pid, seccomp.listener_metadata, state))


def freezer_file(layout: Layout, path: str) -> str:
    """The control file that freezes the cgroup; "" on a host without the freezer."""
    if layout.version == 2:
        return f"{layout.root}/{path}/cgroup.freeze"
    if layout.hierarchy("freezer") is None:
        return ""
    return f"{layout.directory('freezer', path)}/freezer.state"


def encode_state(state: dict[str, Any]) -> bytes:
    """A state as hooks read it."""
    return wirejson.dumps(state).encode(errors="surrogateescape")


def outline_rest(plan: Plan) -> dict[str, tuple[str, str]]:
    """What may still fail behind Hold, by the step's index, for the words of a `start` that fails."""
    held = next(index for index, step in enumerate(plan.child) if isinstance(step, Hold))
    return {str(index): outline(step) for index, step in enumerate(plan.child) if index > held}


class Creation:
    """One container on its way."""

    def __init__(self, call: Call, config: Config, *, held: bool) -> None:
        """Decides everything, and touches nothing. Raises Invalid, Unavailable."""
        self.call = call
        self.id = call.options.args[0]
        self.held = held
        self._cgroups: Cgroups = detect_cgroups()
        layout = self._cgroups.layout
        host = find_host(layout)
        check_host(config, host)
        self._scope: Unit | None = None
        if call.systemd_cgroup:
            from cove.ociruntime.systemd import find_scope

            self._scope, self._path = find_scope(layout, config.linux.cgroups_path, self.id)
        else:
            self._path = find_path(layout, config.linux.cgroups_path, self.id, caller.current.pid)
        if os.geteuid() != 0:
            config = with_own_mounts(config)
            if call.rootless != "false" and not is_delegated(layout, self._path):
                check_unlimited(layout, config.linux.resources or NO_RESOURCES)
                self._path = ""
        linux = msgspec.structs.replace(config.linux, cgroups_path=self._path)
        listening = find_listening()
        self._preserved = find_preserved(call.options, listening)
        process = with_listening(grant(config.process, config, host, call.log), listening)
        self.config = msgspec.structs.replace(config, linux=linux, process=process)
        facts = PlanFacts(
            id=self.id,
            held=held,
            all_cgroups=True,
            cgroup_pause=self._scope is not None,
            setgroups=keeps_setgroups(config.linux.gid_mappings),
            keyring=not call.options.on("no-new-keyring"),
            mount_at=f"{call.root}/{self.id}/root" if mount_mode(config) == "host" else "",
        )
        self._plan, self._slots = plan_start(self.config, facts, host, filter_compiler(call.root))
        self._plan = pass_on(self._plan, len(self._slots), self._preserved)
        self.container = Container(f"{call.root}/{self.id}", self._state(layout, facts.mount_at))
        hooks = config.hooks
        if hooks.create_container or hooks.start_container:
            size = len(encode_state(self.container.public("creating")))
            if size > MAX_STATE:
                raise Invalid(
                    f"config.json: annotations: hooks in the container get a state of at most {MAX_STATE} bytes, "
                    f"and it has {size}: shorten them"
                )

    def _state(self, layout: Layout, mount_at: str) -> dict[str, Any]:
        config = self.config
        own_pids = any(each.type == "pid" and not each.path for each in config.linux.namespaces)
        now = time.time_ns()
        return {
            "ociVersion": config.oci_version,
            "id": self.id,
            "bundle": os.getcwd(),
            "rootfs": config.root.path,
            "created": f"{time.strftime('%Y-%m-%dT%H:%M:%S', time.gmtime(now // 10**9))}.{now % 10**9:09}Z",
            "annotations": dict(config.annotations),
            "pid": 0,
            "start": 0,
            "maker": [os.getpid(), start_time(os.getpid())],
            "cgroup": self._path,
            "cgroups": [f"{layout.root}/{self._path}"]
            if self._scope
            else [step.path for step in self._plan.exit if isinstance(step, RemoveHostDir)],
            "scope": list(self._scope) if self._scope else None,
            "freezer": freezer_file(layout, self._path) if self._path else "",
            "mount_at": mount_at,
            "own_pids": own_pids,
            "poststart": bool(config.hooks.poststart),
            "poststop": bool(config.hooks.poststop),
            "after_hold": outline_rest(self._plan) if self.held else {},
        }

    def make(self) -> Started:
        """Make it; returns with a process that runs, or waits for its start. Raises CoveError; nothing is left."""
        container, call = self.container, self.call
        claim(call.root, self.id)
        made: list[str] = []
        started = None
        console = None
        try:
            container.save()
            with open(f"{container.directory}/config.json", "xb") as file:
                file.write(encode_config(self.config))
            if container.data["mount_at"]:
                os.mkdir(container.data["mount_at"], 0o700)
            if self.held:
                for name in ("go", "status"):
                    os.mkfifo(f"{container.directory}/{name}", 0o600)
            if call.options.text("console-socket"):
                console = connect(call.options.text("console-socket"), "--console-socket")
            if self._scope is None and self._path:
                made = self._prepare()
            started = self._launch()
            if console is not None:
                hand_over(console, started.terminal)
            announce(call, started)
        except BaseException:
            if started is not None:
                started.close()
            teardown.destroy(call, container, self.config.hooks.poststop)
            self._cgroups.undo(made)
            raise
        finally:
            if console is not None:
                console.close()
        return started

    def _prepare(self) -> list[str]:
        try:
            return self._cgroups.prepare(self._path, self.config.linux.resources or NO_RESOURCES)
        except BaseException:
            self.container.data["cgroups"] = []  # whoever lives there isn't ours to kill
            raise

    def _launch(self) -> Started:
        container = self.container
        descriptors = open_slots(self._slots, container.directory)
        try:
            descriptors += copy_descriptors(self._preserved)
            started = launch(
                self._plan,
                descriptors,
                self.id,
                on_cloned=self._on_cloned,
                on_paused=self._on_paused,
                on_listener=self._on_listener,
            )
        except StepFailed as error:
            raise HostError(explain(error)) from error
        finally:
            close_all(descriptors)
        container.data["pid"] = started.pid
        container.data["start"] = start_time(started.pid)
        container.data["maker"] = None
        container.save()
        return started

    def _on_cloned(self, pid: int) -> None:
        self.container.data["pid"] = pid
        self.container.data["start"] = start_time(pid)
        self.container.save()  # from here on `delete --force` ends it, whatever becomes of this program

    def _on_paused(self, name: str) -> bytes:
        """Do what the waiting child needs; the state is what later hooks read."""
        container, config = self.container, self.config
        if name == "cgroup":
            from cove.ociruntime.systemd import enter

            assert self._scope is not None
            enter(
                self._cgroups, self._scope, self._path, container.pid, config.linux.resources or NO_RESOURCES
            )
            return b""
        if name == "user":
            write_maps(container.pid, config.linux.uid_mappings, config.linux.gid_mappings)
            return b""
        if name == "network":
            from cove.ociruntime.netdevices import move_devices

            move_devices(container.pid, config.linux.net_devices)
            return b""
        assert name == "hooks", name
        # the specification's own tests want prestart hooks to find it created, as they came before createRuntime
        run_hooks("prestart", config.hooks.prestart, container.public("created"))
        state = container.public("creating")
        run_hooks("createRuntime", config.hooks.create_runtime, state)
        return encode_state(state) if config.hooks.create_container else b""

    def _on_listener(self, pid: int, listener: int) -> None:
        seccomp = self.config.linux.seccomp
        assert seccomp is not None
        hand_listener(seccomp, listener, pid, self.container.public("creating"))
