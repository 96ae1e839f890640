"""Names and ids of containers: what is allowed, and what Cove chooses. Pure but for `random`."""

from __future__ import annotations

import re
import secrets

from cove.model.errors import Invalid

_NAME = re.compile(r"[a-zA-Z0-9][a-zA-Z0-9_.-]+\Z")

_MOODS = (
    "amber brave brisk calm candid clever cosy crisp deft eager fair fleet fond frank fresh gentle glad "
    "golden happy hardy honest jolly keen kind light lively lucid mellow merry mild neat nimble noble "
    "placid plucky polite proud quick quiet ready robust serene sharp silent sleek smart snug solid "
    "spry stout sunny sure swift tidy trusty upbeat vivid warm wise witty young zesty"
).split()
_PLACES = (
    "anchor bay beacon breaker buoy cape channel cliff coast coral cove creek current delta dune ebb "
    "eddy estuary firth fjord foam gulf gull harbour haven headland inlet island jetty keel kelp lagoon "
    "lantern ledge lighthouse mast marina mole mooring oar ocean pearl pebble pier quay reef ripple "
    "rudder sail sand seal shell shoal shore skiff sound spray spring strait surf tide wake wave wharf"
).split()


def check_name(name: str) -> str:
    """The name without its leading slash; Invalid when Docker would refuse it too."""
    bare = name.removeprefix("/")
    if not _NAME.match(bare):
        raise Invalid(f"Invalid container name ({name}), only [a-zA-Z0-9][a-zA-Z0-9_.-] are allowed")
    if len(bare) > 255:
        raise Invalid(f"Invalid container name: {len(bare)} characters, at most 255 are allowed")
    return bare


def new_id() -> str:
    """64 hex digits; the first twelve aren't all decimal, so that a short id is never a number."""
    while True:
        candidate = secrets.token_hex(32)
        if not candidate[:12].isdecimal():
            return candidate


def choose_name(taken: object) -> str:
    """A free name such as `calm_harbour`; `taken` answers `name in taken`."""
    for attempt in range(1000):
        name = f"{secrets.choice(_MOODS)}_{secrets.choice(_PLACES)}"
        if attempt > 3:
            name += str(secrets.randbelow(10 ** min(attempt, 6)))
        if name not in taken:  # type: ignore[operator]
            return name
    return "container_" + secrets.token_hex(8)
