"""Hooks on the host around a start, which CDI devices bring (runtime-spec, config.md, "POSIX-platform Hooks").

Each gets the container's state on its standard input. One that fails, or doesn't end in its time, fails
the start; one without a time has MAX_HOOK_S. The container's own hooks are steps of its plan.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
from collections.abc import Iterable
from pathlib import Path

import msgspec

from cove.model.container import Container
from cove.model.errors import HostError
from cove.runtime import oci

MAX_HOOK_S = 120.0
_SHOWN_BYTES = 4096


def write_bundle(directory: Path, config: oci.Config) -> None:
    """config.json, in which hooks look for the container's root."""
    (directory / "config.json").write_bytes(oci.encode_config(config))


async def run_start_hooks(hooks: oci.Hooks, container: Container, bundle: Path, pid: int) -> bytes:
    """Prestart and createRuntime hooks, at the pause before the container's own, whose input is returned.

    Raises HostError at the first that fails.
    """
    text = _state(container, bundle, pid, "creating")
    await _run("prestart", hooks.prestart, text)
    await _run("createRuntime", hooks.create_runtime, text)
    return text


async def run_poststart_hooks(hooks: oci.Hooks, container: Container, bundle: Path, pid: int) -> None:
    """Raises HostError at the first that fails."""
    await _run("poststart", hooks.poststart, _state(container, bundle, pid, "running"))


def _state(container: Container, bundle: Path, pid: int, status: str) -> bytes:
    """The state of the specification (runtime.md, "State")."""
    return msgspec.json.encode(
        {
            "ociVersion": oci.VERSION,
            "id": container.id,
            "status": status,
            "pid": pid,
            "bundle": str(bundle),
            "annotations": container.spec.annotations,
        }
    )


async def _run(kind: str, hooks: Iterable[oci.Hook], text: bytes) -> None:
    for index, hook in enumerate(hooks):
        reason = await _run_hook(hook, text)
        if reason:
            raise HostError(f"error running {kind} hook #{index}: {hook.path}: {reason}")


async def _run_hook(hook: oci.Hook, text: bytes) -> str:
    """Run one; "" or why it failed."""
    environment = dict(item.partition("=")[::2] for item in hook.env) if hook.env else dict(os.environ)
    # In memory, not through a pipe: a hook that doesn't read it may have ended before it could be written.
    state = os.memfd_create("state", os.MFD_CLOEXEC)
    try:
        os.write(state, text)
        os.lseek(state, 0, os.SEEK_SET)
        process = await asyncio.create_subprocess_exec(
            *(hook.args or (hook.path,)),
            executable=hook.path,
            env=environment,
            stdin=state,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
            start_new_session=True,
        )
    except OSError as error:
        return (error.strerror or str(error)).lower()
    finally:
        os.close(state)
    limit_s = float(hook.timeout or MAX_HOOK_S)
    try:
        async with asyncio.timeout(limit_s):
            shown = await _read_output(process)
            status = await process.wait()
    except TimeoutError:
        return f"did not end within {limit_s:g} s"
    finally:
        if process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            await process.wait()
    if status == 0:
        return ""
    reason = f"killed by signal {-status}" if status < 0 else f"exit status {status}"
    output = shown.decode(errors="replace").strip()
    return f"{reason}, output: {output}" if output else reason


async def _read_output(process: asyncio.subprocess.Process) -> bytes:
    """All of its output, of which the first bytes are kept."""
    assert process.stdout is not None
    kept = b""
    while piece := await process.stdout.read(65536):
        kept += piece[: _SHOWN_BYTES - len(kept)]
    return kept
