"""What the registry counts, and its page for Prometheus."""

from __future__ import annotations

from typing import TYPE_CHECKING

from cove.metrics.exposition import Histogram, Page

if TYPE_CHECKING:
    from cove.registry.store import Store


class Meters:
    """One server's counters since its start."""

    def __init__(self) -> None:
        self.requests: dict[tuple[str, str, int], int] = {}
        self.seconds: dict[str, Histogram] = {}
        self.pushes = 0
        self.linked = 0  # blobs taken from the machine's image store
        self.linked_bytes = 0
        self.proxied: dict[str, int] = {}  # by hit, miss, stale

    def request(self, method: str, route: str, status: int, elapsed_s: float) -> None:
        """Count an answered request; `route` is the target's kind, never a name."""
        method = method if method in ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE") else "other"
        key = method, route, status
        self.requests[key] = self.requests.get(key, 0) + 1
        self.seconds.setdefault(route, Histogram()).observe(elapsed_s)

    def proxy(self, outcome: str) -> None:
        self.proxied[outcome] = self.proxied.get(outcome, 0) + 1

    def render(self, store: Store, logins_failed: int) -> bytes:
        """The page's text."""
        page = Page()
        page.family("cove_registry_requests_total", "counter", "Answered requests.")
        for (method, route, status), count in sorted(self.requests.items()):
            labels = {"method": method, "route": route, "status": str(status)}
            page.sample("cove_registry_requests_total", count, labels)
        page.family("cove_registry_request_seconds", "histogram", "From a request to its answer's head.")
        for route, found in sorted(self.seconds.items()):
            page.histogram("cove_registry_request_seconds", found, {"route": route})
        repositories, contents, size = store.catalog.totals()
        page.single("cove_registry_repositories", "gauge", "Repositories.", repositories)
        page.single("cove_registry_blobs", "gauge", "Blobs and manifests, each once.", contents)
        page.single("cove_registry_blob_bytes", "gauge", "Their size.", size)
        page.single("cove_registry_uploads", "gauge", "Uploads under way.", store.uploads.count)
        page.single(
            "cove_registry_received_bytes_total", "counter", "Bytes of uploads.", store.uploads.received_bytes
        )
        page.single("cove_registry_pushes_total", "counter", "Manifests pushed.", self.pushes)
        page.single(
            "cove_registry_logins_failed_total", "counter", "Wrong users or passwords.", logins_failed
        )
        page.single(
            "cove_registry_linked_total", "counter", "Blobs taken from the image store by link.", self.linked
        )
        page.single("cove_registry_linked_bytes_total", "counter", "Their size.", self.linked_bytes)
        page.family("cove_registry_proxy_total", "counter", "What the cache of other registries did.")
        for outcome, count in sorted(self.proxied.items()):
            page.sample("cove_registry_proxy_total", count, {"outcome": outcome})
        return page.render()
