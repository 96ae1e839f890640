"""What `features` prints: which words of a config.json are known here (runtime-spec, features.md, features-linux.md).

It says what the runtime recognizes, "irrespective of the host"; only the filter flags that work depend on the kernel.
"""

from __future__ import annotations

import os
from typing import Any

from cove.runtime.capabilities import NAMES
from cove.runtime.oci import VERSION
from cove.runtime.plan_mounts import KNOWN_OPTIONS
from cove.runtime.plan_namespaces import CLONE_FLAGS
from cove.runtime.plan_process import MEMORY_FLAGS, MEMORY_MODES
from cove.runtime.seccomp_check import ACTIONS, ARCHITECTURES, FLAGS, OPERATORS

HOOKS = ("prestart", "createRuntime", "createContainer", "startContainer", "poststart", "poststop")
# seccomp(2)
_FLAGS_SINCE = {
    "SECCOMP_FILTER_FLAG_TSYNC": (3, 17),
    "SECCOMP_FILTER_FLAG_LOG": (4, 14),
    "SECCOMP_FILTER_FLAG_SPEC_ALLOW": (4, 17),
    "SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV": (5, 19),
}


def features() -> dict[str, Any]:
    """The features structure as data, in the specification's order."""
    major, minor = os.uname().release.split(".")[:2]
    kernel = (int(major), int("".join(filter(str.isdigit, minor))))
    return {
        "ociVersionMin": "1.0.0",
        "ociVersionMax": VERSION,
        "hooks": list(HOOKS),
        "mountOptions": list(KNOWN_OPTIONS),
        "linux": {
            "namespaces": sorted(CLONE_FLAGS),
            "capabilities": list(NAMES),
            "cgroup": {"v1": True, "v2": True, "systemd": True, "systemdUser": True, "rdma": True},
            "seccomp": {
                "enabled": True,
                "actions": sorted(ACTIONS),
                "operators": sorted(OPERATORS),
                "archs": sorted(ARCHITECTURES),
                "knownFlags": sorted(FLAGS),
                "supportedFlags": sorted(flag for flag in FLAGS if kernel >= _FLAGS_SINCE[flag]),
            },
            "apparmor": {"enabled": True},
            "selinux": {"enabled": True},
            "intelRdt": {"enabled": True, "schemata": True, "monitoring": True},
            "memoryPolicy": {"modes": list(MEMORY_MODES), "flags": list(MEMORY_FLAGS)},
            "mountExtensions": {"idmap": {"enabled": True}},
            "netDevices": {"enabled": True},
        },
    }
