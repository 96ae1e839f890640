"""A failed start in runc's words where callers look for them: dockerd makes 127 and 126 of what it finds
(moby, daemon/start.go, translateContainerdStartErr). Pure."""

from __future__ import annotations

import errno
import os

TYPE_CHECKING = False
if TYPE_CHECKING:
    from cove.runtime.executor import StepFailed
    from cove.runtime.steps import Step

_PREFIX = "unable to start container process: "


def explain(error: StepFailed) -> str:
    """Why cove-init couldn't start the process."""
    if error.step is None or error.section != "child":
        return f"{_PREFIX}{str(error).lower() if error.step is None else error}"
    return explain_failure(*outline(error.step), error.errno)


def outline(step: Step) -> tuple[str, str]:
    """What is needed of a step for `explain_failure`: its kind, and what it is about."""
    from cove.runtime.steps import Chdir, Exec, Hold, RunHook

    match step:
        case Hold():
            return "exec", step.program
        case Exec():
            return "exec", step.args[0]
        case Chdir():
            return "chdir", step.path
        case RunHook():
            return "hook", step.path
    return "step", step.describe()


def explain_failure(kind: str, what: str, number: int) -> str:
    """The sentence for a step of `outline` that failed with this errno."""
    reason = os.strerror(number).lower()
    if kind == "exec":
        if number == errno.ENOENT:
            reason = "executable file not found in $PATH" if "/" not in what else f"stat {what}: {reason}"
        return f'{_PREFIX}exec: "{what}": {reason}'
    if kind == "chdir":
        return f'{_PREFIX}chdir to cwd ("{what}") set in config.json failed: {reason}'
    if kind == "hook":
        told = {errno.EPROTO: "it did not end with status 0", errno.ETIME: "it did not end in time"}
        return f"{_PREFIX}error running hook {what}: {told.get(number, reason)}"
    return f"{_PREFIX}{what}: {reason}"
