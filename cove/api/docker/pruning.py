"""What the filters of the four prunes select: for the prune itself, and for showing it beforehand."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence

from cove.api.docker.filters import boolean, label_filter, prune_before
from cove.api.docker.text import parse_rfc3339_seconds
from cove.engine.types import View
from cove.model.objects import Image, Network, VolumeRecord

Filters = Mapping[str, Sequence[str]]
CONTAINER_PRUNE_KEYS = frozenset(("label", "label!", "until"))
IMAGE_PRUNE_KEYS = frozenset(("dangling", "label", "label!", "until"))
NETWORK_PRUNE_KEYS = CONTAINER_PRUNE_KEYS
VOLUME_PRUNE_KEYS = frozenset(("all", "label", "label!"))


def select_containers(filters: Filters) -> Callable[[View], bool]:
    """Of those that don't run."""
    latest_ns = prune_before(filters, time.time_ns())
    labels = label_filter(filters)
    return lambda view: view.container.created_ns <= latest_ns and labels(view.container.labels)


def select_images(filters: Filters) -> Callable[[Image], bool]:
    """Of those that no container uses: without names, or all with dangling=false."""
    dangling_only = boolean(filters, "dangling", True)
    labels = label_filter(filters)
    latest_ns = prune_before(filters, time.time_ns())
    return lambda image: (
        not (image.names and dangling_only)
        and labels(image.config.labels)
        and parse_rfc3339_seconds(image.created) * 1_000_000_000 <= latest_ns
    )


def select_networks(filters: Filters) -> Callable[[Network], bool]:
    """Of those that no container is on, and that aren't built in."""
    labels = label_filter(filters)
    latest_ns = prune_before(filters, time.time_ns())
    return lambda network: network.created_ns <= latest_ns and labels(network.labels)


def select_volumes(filters: Filters, version: int) -> Callable[[VolumeRecord], bool]:
    """Of those that no container uses: anonymous ones, or all with all=true (always, before API 1.42)."""
    named_too = boolean(filters, "all", False) or version < 1042
    labels = label_filter(filters)
    return lambda record: (record.anonymous or named_too) and labels(record.labels)
