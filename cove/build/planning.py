"""From a Dockerfile and a request to a Graph: base images are found, or pulled, and the planner is asked.

`PullImage` is what brings an image that isn't here; it raises NotFound in the registry's words.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

import msgspec

from cove.build.graph import Graph
from cove.build.planner import needed_images, plan_build
from cove.build.request import BaseImage, PlanRequest
from cove.dockerfile.instructions import Dockerfile
from cove.image.images import Images
from cove.image.types import MIB
from cove.model.errors import Invalid, NotFound
from cove.model.objects import Image

MAX_DOCKERFILE_BYTES = MIB
Admit = Callable[[Image, str], Awaitable[None]]  # whether an image may run, used by this reference
PullImage = Callable[[str, str], Awaitable[Image]]  # a reference, a platform
_ROUNDS_MAX = 32  # of ONBUILD triggers that name images with ONBUILD triggers


async def plan(
    images: Images,
    dockerfile: Dockerfile,
    request: PlanRequest,
    pull: PullImage,
    admit: Admit,
    *,
    always: bool = False,
) -> Graph:
    """The graph. `always`: look for newer base images although some are here. Raises DockerfileError, NotFound,
    Forbidden for a base image that may not run here, and what a pull raises."""
    bases: dict[str, BaseImage] = {}
    for _ in range(_ROUNDS_MAX):
        needed = needed_images(dockerfile, request, bases)
        if not needed:
            return plan_build(dockerfile, request, bases)
        for one in needed:
            image = await _find(images, one.reference, one.platform, pull, always=always)
            await admit(image, one.reference)
            bases[one.key] = base_image(images, image)
    raise Invalid(f"ONBUILD triggers name further images more than {_ROUNDS_MAX} times")


async def _find(images: Images, reference: str, platform: str, pull: PullImage, *, always: bool) -> Image:
    if not always:
        try:
            image = images.find_image(reference)
        except NotFound:
            return await pull(reference, platform)
        if not platform or _fits(image, platform):
            return image
    return await pull(reference, platform)


def _fits(image: Image, platform: str) -> bool:
    parts = platform.split("/")
    architecture = parts[1] if len(parts) > 1 else parts[0]
    return image.architecture in ("", architecture)


def base_image(images: Images, image: Image) -> BaseImage:
    """What the planner has to know of an image."""
    document = msgspec.json.decode(images.raw_config(image), type=dict[str, Any])
    return BaseImage(
        image_id=image.id,
        config=document.get("config") or {},
        architecture=image.architecture or images.architecture,
        variant=image.variant,
        os=image.os or "linux",
    )
