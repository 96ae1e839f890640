"""The Docker Engine API, versions 1.24 to 1.55: a module for each kind of object."""

from __future__ import annotations

from cove.api.docker import (
    build,
    commit,
    containers,
    exec,
    images,
    networks,
    pulling,
    pushing,
    searching,
    streams,
    system,
    unsupported,
    usage,
    volumes,
)
from cove.api.docker.context import Api
from cove.api.router import Route

ROUTES: tuple[Route[Api], ...] = (
    *build.ROUTES,
    *containers.ROUTES,
    *commit.ROUTES,
    *streams.ROUTES,
    *exec.ROUTES,
    *images.ROUTES,
    *pulling.ROUTES,
    *pushing.ROUTES,
    *searching.ROUTES,
    *volumes.ROUTES,
    *networks.ROUTES,
    *system.ROUTES,
    *usage.ROUTES,
    *unsupported.ROUTES,
)
