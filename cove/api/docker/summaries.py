"""The entries of `GET /containers/json`, encoded, and kept as long as nothing that they show has changed.

A list of 1,000 containers is asked for by every dashboard again and again. A record is immutable, so an entry stands
while container, state, networks, names and the words for its age are the same objects or words.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import msgspec

from cove.api.docker.summary import status_text, summary_json
from cove.api.http import encode_json
from cove.engine.health import Health
from cove.engine.types import View
from cove.model.objects import Network

FindNetwork = Callable[[str], Network | None]


class _Entry(msgspec.Struct, frozen=True):
    view: View
    networks: tuple[Network | None, ...]
    words: tuple[object, ...]
    encoded: msgspec.Raw


class Summaries:
    """One cache for all clients, by container; what is gone is dropped by `keep`."""

    def __init__(self) -> None:
        self._entries: dict[str, _Entry] = {}

    def encode(
        self,
        view: View,
        *,
        image: str,
        health: Health | None,
        now_ns: int,
        find_network: FindNetwork,
        version: int,
        link_names: Sequence[str],
    ) -> msgspec.Raw:
        """A container's entry, without sizes."""
        spec = view.container.spec
        mode = "bridge" if spec.network_mode == "default" else spec.network_mode
        networks = (find_network(mode), *(find_network(endpoint.network) for endpoint in spec.endpoints))
        streak = health.failing_streak if health is not None else -1
        words = (image, status_text(view.state, health, now_ns), streak, version, *link_names)
        known = self._entries.get(view.container.id)
        if (
            known is not None
            and known.view[0] is view[0]
            and known.view[1] is view[1]
            and known.words == words
            and all(one is other for one, other in zip(known.networks, networks, strict=True))
        ):
            return known.encoded
        found = summary_json(
            view,
            image=image,
            health=health,
            now_ns=now_ns,
            find_network=find_network,
            size=None,
            version=version,
            link_names=link_names,
        )
        encoded = msgspec.Raw(encode_json(found))
        self._entries[view.container.id] = _Entry(view, networks, words, encoded)
        return encoded

    def keep(self, views: Sequence[View]) -> None:
        """Drop the entries of containers that are no more."""
        if len(self._entries) > 2 * len(views) + 64:
            alive = {view.container.id for view in views}
            self._entries = {key: entry for key, entry in self._entries.items() if key in alive}
