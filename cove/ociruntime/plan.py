"""`plan`: print the steps that would make a bundle's container, each with its reason, as JSON; nothing is made.

An ordinary user sees the plan that root would get.
"""

from __future__ import annotations

import os
from dataclasses import replace

import msgspec

from cove.model import wirejson
from cove.ociruntime.create import read_bundle
from cove.ociruntime.grants import grant
from cove.runtime import capabilities
from cove.runtime.cgroups import find_path
from cove.runtime.cgroups_detect import detect_cgroups
from cove.runtime.host import find_host
from cove.runtime.host_check import check_host
from cove.runtime.plan import plan_start
from cove.runtime.plan_explain import explain_json
from cove.runtime.plan_inputs import PlanFacts

TYPE_CHECKING = False
if TYPE_CHECKING:
    from cove.ociruntime.main import Call

PLANNED_ID = "0" * 64  # a planned container has none yet


def plan_command(call: Call) -> int:
    config = read_bundle(call)
    host = find_host(detect_cgroups().layout)
    if os.geteuid() != 0:
        host = replace(host, capabilities=find_bounding())
    check_host(config, host)
    path = find_path(host.cgroups, config.linux.cgroups_path, PLANNED_ID)
    linux = msgspec.structs.replace(config.linux, cgroups_path=path)
    process = grant(config.process, config, host, call.log)
    config = msgspec.structs.replace(config, linux=linux, process=process)
    plan, _ = plan_start(config, PlanFacts(id=PLANNED_ID, held=True, all_cgroups=True), host)
    print(wirejson.dumps({"steps": explain_json(plan), "warnings": []}))
    return 0


def find_bounding() -> int:
    """The capabilities that root can have here: the bounding set, which sudo(8) does not go beyond."""
    with open("/proc/self/status", encoding="ascii", errors="replace") as file:
        mask = next(line for line in file if line.startswith("CapBnd:")).split()[1]
    return int(mask, 16) & capabilities.KNOWN
