"""Search: GET /images/search."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from cove.api.docker.context import Api
from cove.api.docker.filters import boolean, parse_filters
from cove.api.docker.pulling import pull_options
from cove.api.http import Request, Response, json_response
from cove.api.router import Route
from cove.image.registry.search import LIMIT_DEFAULT, LIMIT_MAX, Wish
from cove.model.errors import Invalid

KEYS = frozenset(("is-automated", "is-official", "stars"))


async def search(api: Api, request: Request) -> Response:
    """Repositories whose names or descriptions match a term, at Docker Hub or at the registry that the term names."""
    query = request.query
    filters = parse_filters(query.get("filters"), KEYS)
    limit = query.integer("limit", LIMIT_DEFAULT, low=0, high=LIMIT_MAX) or LIMIT_DEFAULT
    wish = Wish(
        term=query.get("term"),
        limit=limit,
        stars=_stars(filters),
        official=boolean(filters, "is-official", False) if "is-official" in filters else None,
        automated=boolean(filters, "is-automated", False) if "is-automated" in filters else None,
    )
    request.bind_to_client()
    found = await api.engine.images.search(wish, pull_options(api, request))
    return json_response(
        [
            {
                "star_count": one.stars,
                "is_official": one.official,
                "name": one.name,
                "is_automated": one.automated,
                "description": one.description,
            }
            for one in found
        ]
    )


def _stars(filters: Mapping[str, Sequence[str]]) -> int:
    stars = 0
    for text in filters.get("stars", ()):
        if not (text.isascii() and text.isdigit() and len(text) < 10):
            raise Invalid(f"invalid filter 'stars={text}': expected a number, e.g. stars=3")
        stars = max(stars, int(text))
    return stars


ROUTES: tuple[Route[Api], ...] = (("GET", "/images/search", search),)
