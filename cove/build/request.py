"""What a build is asked for, and what it must know of its base images. Pure data."""

from __future__ import annotations

from typing import Any, Literal

import msgspec

from cove.dockerfile.errors import DockerfileError
from cove.dockerfile.giturl import parse_git_url
from cove.dockerfile.values import Platform, parse_platform

MAX_BUILD_ARGS = 1000
MAX_CONTEXTS = 100
HOST_PLATFORM = "linux/amd64"


class PlanRequest(msgspec.Struct, frozen=True, kw_only=True):
    """The options of one build that change its plan."""

    build_args: dict[str, str] = {}
    target: str = ""  # the stage to build, by name or number; "" is the last
    labels: dict[str, str] = {}
    platform: str = ""  # of the image, e.g. linux/arm64; "" is `build_platform`
    build_platform: str = HOST_PLATFORM  # of this host
    no_cache: bool = False
    no_cache_stages: tuple[str, ...] = ()  # names of stages whose steps all run again
    network: Literal["", "default", "none", "host"] = ""  # of RUN without --network
    contexts: dict[
        str, str
    ] = {}  # --build-context: NAME to a path, a URL, docker-image://… or oci-layout://…
    hosts: tuple[str, ...] = ()  # --add-host, NAME:ADDRESS

    def native(self) -> Platform:
        return parse_platform(self.build_platform, Platform("linux", "amd64"))

    def wanted(self) -> Platform:
        return parse_platform(self.platform, self.native()) if self.platform else self.native()

    def check(self) -> None:
        """Raises DockerfileError for a request with more than anybody means."""
        if len(self.build_args) > MAX_BUILD_ARGS:
            raise DockerfileError(
                f"{len(self.build_args)} build arguments are too many: at most {MAX_BUILD_ARGS}"
            )
        if len(self.contexts) > MAX_CONTEXTS:
            raise DockerfileError(f"{len(self.contexts)} build contexts are too many: at most {MAX_CONTEXTS}")


class NeededImage(msgspec.Struct, frozen=True, kw_only=True):
    """An image that must be on record before the build can be planned."""

    reference: str
    platform: str
    key: str  # of the mapping that `plan_build` takes: the reference, with the platform where FROM names one


class BaseImage(msgspec.Struct, frozen=True, kw_only=True):
    """What the plan must know of an image."""

    image_id: str  # sha256:…
    config: dict[str, Any]  # the `config` object of the OCI image configuration
    architecture: str = "amd64"
    variant: str = ""
    os: str = "linux"


class NamedContext(msgspec.Struct, frozen=True):
    """A --build-context, sorted out."""

    kind: Literal["image", "git", "tree"]
    value: (
        str  # the reference of an image (oci-layout://… stays), the URL of a repository, the name of a tree
    )


def named_context(request: PlanRequest, name: str) -> NamedContext | None:
    """The context that takes the place of a stage or an image of this name; None when there is none."""
    for spelling in _spellings(name):
        value = request.contexts.get(spelling)
        if value is None:
            continue
        if value.startswith("docker-image://"):
            return NamedContext("image", value.removeprefix("docker-image://"))
        if value.startswith("oci-layout://"):
            return NamedContext("image", value)
        if parse_git_url(value, is_context=True) is not None:
            return NamedContext("git", value)
        return NamedContext("tree", spelling)
    return None


def _spellings(name: str) -> tuple[str, ...]:
    """A name as it may be written for the same image: without and with the registry, library and tag."""
    lower = name.lower()
    if lower in ("scratch", "context"):
        return ()
    full = lower.removeprefix("docker.io/").removeprefix("library/")
    bare = full.removesuffix(":latest")
    forms = (name, lower, full, bare, f"{bare}:latest", f"docker.io/library/{full}", f"docker.io/{full}")
    return tuple(dict.fromkeys(forms))
