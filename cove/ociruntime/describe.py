"""`spec` and `features`, and the verbs that this runtime doesn't have."""

from __future__ import annotations

import json
import os

from cove.model.errors import Conflict, Unavailable

TYPE_CHECKING = False
if TYPE_CHECKING:
    from cove.ociruntime.main import Call


def spec_command(call: Call) -> int:
    from cove.runtime.default_spec import default_spec

    path = os.path.join(call.options.text("bundle") or ".", "config.json")
    spec = default_spec(
        call.options.on("rootless"),
        uid=os.geteuid(),
        gid=os.getegid(),
        cgroup_namespace=os.path.exists("/sys/fs/cgroup/cgroup.controllers"),
    )
    text = json.dumps(spec, indent="\t")
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666)
    except FileExistsError:
        raise Conflict("File config.json exists. Remove it first") from None
    with open(descriptor, "w") as file:
        file.write(text)
    return 0


def features_command(call: Call) -> int:
    from cove.runtime.features import features

    print(json.dumps(features(), indent=4))
    return 0


def checkpoint_command(call: Call) -> int:
    raise Unavailable(
        "checkpoint: the state of processes can't be saved: stop the container, and start it again"
    )


def restore_command(call: Call) -> int:
    raise Unavailable("restore: the state of processes can't be restored: create the container anew")
