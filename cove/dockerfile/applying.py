"""What instructions do to an image's configuration, and which of their words have variables. Pure.

For the builder and for `commit --change` alike. `expanded` replaces the variables of one instruction, `apply_config`
puts an expanded one into the `config` object of an OCI image configuration (OCI image-spec config.md; Healthcheck,
Shell and OnBuild are Docker's additions).
"""

from __future__ import annotations

import posixpath
from collections.abc import Callable
from typing import Any

import msgspec

from cove.dockerfile import instructions as ins
from cove.dockerfile.errors import DockerfileError
from cove.dockerfile.expand import Expansion
from cove.dockerfile.values import check_mode, expose_port, stop_signal
from cove.dockerfile.words import Pair

DEFAULT_SHELL = ("/bin/sh", "-c")
Expand = Callable[[str], Expansion]


def expanded(instruction: ins.Instruction, expand: Expand) -> ins.Instruction:
    """The instruction with its variables replaced, where it has any. RUN's and heredocs' are the caller's."""

    def one(word: str) -> str:
        return expand(word).text

    if isinstance(instruction, ins.Env | ins.Label):
        pairs = tuple(Pair(one(pair.name), one(pair.value), pair.legacy) for pair in instruction.pairs)
        return msgspec.structs.replace(instruction, pairs=pairs)
    if isinstance(instruction, ins.Copy):
        changes: dict[str, Any] = {
            "sources": tuple(map(one, instruction.sources)),
            "target": one(instruction.target),
            "owner": one(instruction.owner),
            "mode": one(instruction.mode),
        }
        if isinstance(instruction, ins.Add):
            changes["checksum"] = one(instruction.checksum)
        if changes["mode"]:
            check_mode(changes["mode"])
        return msgspec.structs.replace(instruction, **changes)
    if isinstance(instruction, ins.Workdir):
        return msgspec.structs.replace(instruction, path=one(instruction.path))
    if isinstance(instruction, ins.User):
        user = one(instruction.user)
        if any(map(str.isspace, user)):
            raise DockerfileError("USER requires exactly one argument, e.g. USER app:app")
        return msgspec.structs.replace(instruction, user=user)
    if isinstance(instruction, ins.StopSignal):
        return msgspec.structs.replace(instruction, signal=stop_signal(one(instruction.signal)))
    if isinstance(instruction, ins.Volume):
        paths = tuple(map(one, instruction.paths))
        if not all(paths):
            raise DockerfileError("VOLUME specified can not be an empty string")
        return msgspec.structs.replace(instruction, paths=paths)
    if isinstance(instruction, ins.Expose):
        words = [word for port in instruction.ports for word in expand(port).words]
        ports = tuple(port for word in words for port in expose_port(word).ports)
        return msgspec.structs.replace(instruction, ports=ports)
    return instruction


def apply_config(config: dict[str, Any], instruction: ins.Instruction, *, cmd_was_set: bool = False) -> bool:
    """Put an expanded instruction into `config`; False when it is one that changes no configuration.

    A new ENTRYPOINT drops the command of the base image, but not one that this stage has set (`cmd_was_set`).
    """
    if isinstance(instruction, ins.Env):
        for pair in instruction.pairs:
            _set_env(config, pair.name, pair.value)
    elif isinstance(instruction, ins.Label):
        config["Labels"] = {
            **(config.get("Labels") or {}),
            **{pair.name: pair.value for pair in instruction.pairs},
        }
    elif isinstance(instruction, ins.Cmd):
        config["Cmd"] = command_words(config, instruction)
    elif isinstance(instruction, ins.Entrypoint):
        words = command_words(config, instruction)
        config["Entrypoint"] = words
        if not words:
            del config["Entrypoint"]
        if not cmd_was_set:
            config.pop("Cmd", None)
    elif isinstance(instruction, ins.Workdir):
        config["WorkingDir"] = working_dir(config, instruction.path)
    elif isinstance(instruction, ins.User):
        config["User"] = instruction.user
    elif isinstance(instruction, ins.Expose):
        config["ExposedPorts"] = {
            **(config.get("ExposedPorts") or {}),
            **{port: {} for port in instruction.ports},
        }
    elif isinstance(instruction, ins.Volume):
        config["Volumes"] = {**(config.get("Volumes") or {}), **{path: {} for path in instruction.paths}}
    elif isinstance(instruction, ins.Shell):
        config["Shell"] = list(instruction.words)
    elif isinstance(instruction, ins.StopSignal):
        config["StopSignal"] = instruction.signal
    elif isinstance(instruction, ins.OnBuild):
        config["OnBuild"] = [*(config.get("OnBuild") or []), instruction.trigger]
    elif isinstance(instruction, ins.HealthCheck):
        config["Healthcheck"] = _health(instruction)
    else:
        return False
    return True


def command_words(config: dict[str, Any], instruction: ins.CommandLine) -> list[str]:
    """The words of the JSON form as they are; the other form as the argument of the image's shell."""
    if not instruction.shell:
        return list(instruction.words)
    return [*(config.get("Shell") or DEFAULT_SHELL), " ".join(instruction.words)]


def working_dir(config: dict[str, Any], path: str) -> str:
    """The absolute path of WORKDIR `path`; a relative one goes on from the last."""
    joined = posixpath.join("/", config.get("WorkingDir") or "/", path)
    return "/" + posixpath.normpath(joined).lstrip("/")


def _set_env(config: dict[str, Any], name: str, value: str) -> None:
    env = list(config.get("Env") or [])
    item = f"{name}={value}"
    places = [index for index, known in enumerate(env) if known.partition("=")[0] == name]
    if places:
        env[places[0]] = item
    else:
        env.append(item)
    config["Env"] = env


def _health(instruction: ins.HealthCheck) -> dict[str, Any]:
    times = {
        "Interval": instruction.interval_ns,
        "Timeout": instruction.timeout_ns,
        "StartPeriod": instruction.start_period_ns,
        "StartInterval": instruction.start_interval_ns,
        "Retries": instruction.retries,
    }
    return {"Test": list(instruction.test), **{key: value for key, value in times.items() if value}}
