"""Registries: where to ask, who one is, one HTTP exchange, what the documents say, pulling.

`endpoints`, `auth`, `documents` and `messages` are pure. `transport` speaks HTTP; it, `blobs` and `fetch` run in a
worker process only, since registries are strangers. `fetcher`, `arrivals` and `pull` are the daemon's side and move
no byte of a layer themselves.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Protocol

from cove.image.references import Reference
from cove.image.registry.auth import Credentials
from cove.image.registry.endpoints import Registries
from cove.image.registry.messages import Timing


class Documents(Protocol):
    """Small documents of one repository, for whoever checks an image before it is pulled."""

    async def get(self, path: str, *, accept: str = "", limit: int = 4 << 20) -> bytes:
        """`path` in the repository: manifests/REFERENCE, blobs/DIGEST, referrers/DIGEST. Not verified.

        NotFound, Unauthorized, Forbidden, Invalid (too large), Unavailable, HostError.
        """


class PullCheck(Protocol):
    """Asked after the manifest has come and before any layer is fetched; raising refuses the pull."""

    async def __call__(
        self, reference: Reference, digest: str, manifest: bytes, index_digest: str, documents: Documents
    ) -> None:
        """`digest` and `manifest` are the platform's; `index_digest` is "" when no index named it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PullOptions:
    """How a pull goes. `credentials` are for the reference's registry; `platform` is os/arch[/variant] or ""."""

    platform: str = ""
    credentials: Credentials = field(default_factory=Credentials)
    registries: Registries = field(default_factory=Registries)
    downloads: int = 3  # layers at a time, in the whole daemon
    timing: Timing = field(default_factory=Timing)
    all_tags: bool = False
    check: PullCheck | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class PullEvent:
    """One line of a pull, in Docker's words. `id` is a layer's or a tag; `total` above 0: bytes of a layer."""

    status: str
    id: str = ""
    current: int = 0
    total: int = 0
