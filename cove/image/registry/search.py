"""Search for repositories: Docker Hub's protocol where a registry has it, else the list of what the registry has.

`GET /v1/search?q=TERM&n=LIMIT` is the registry API's version 1, which Docker Hub still answers; `GET /v2/_catalog` is
distribution's (docs/content/spec/api.md, "Listing Repositories"). Answers are a stranger's: bounded, and cleaned of
what a terminal would act on.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import parse_qs, urlencode

import msgspec

from cove.image.references import DEFAULT_DOMAIN, Reference
from cove.image.registry import PullOptions
from cove.image.registry.artifacts import next_query
from cove.image.registry.endpoints import Endpoint, plan_endpoints
from cove.image.registry.fetcher import Fetcher
from cove.model.errors import CoveError, Invalid, Unauthorized

LIMIT_DEFAULT, LIMIT_MAX = 25, 100
_HUB = Endpoint(url="https://index.docker.io")
_DOCUMENT_BYTES = 4 << 20
_PAGE = 1000
_PAGES_MAX = 20
_TERM_MAX = 512


@dataclass(frozen=True, slots=True, kw_only=True)
class Found:
    """A repository that matches."""

    name: str
    description: str = ""
    stars: int = 0
    official: bool = False
    automated: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Wish:
    """What is looked for."""

    term: str
    limit: int = LIMIT_DEFAULT
    stars: int = 0  # at least
    official: bool | None = None
    automated: bool | None = None

    def accepts(self, found: Found) -> bool:
        return (
            found.stars >= self.stars
            and self.official in (None, found.official)
            and self.automated in (None, found.automated)
        )


def split_term(text: str) -> tuple[str, str]:
    """The registry and what is looked for there: `registry.example/app`, or `app` at Docker Hub. Invalid."""
    if not text.strip("/ ") or len(text) > _TERM_MAX or not text.isprintable():
        raise Invalid(f"term: expected some words, e.g. postgres, of up to {_TERM_MAX} characters")
    if "://" in text:
        raise Invalid(
            "invalid repository name: repository name should not have a scheme, e.g. registry.example/app"
        )
    head, slash, rest = text.partition("/")
    if slash and (any(c in head for c in ".:") or head == "localhost"):
        return (DEFAULT_DOMAIN if head in ("index.docker.io", DEFAULT_DOMAIN) else head), rest
    return DEFAULT_DOMAIN, text


async def search(wish: Wish, options: PullOptions, root: Path) -> list[Found]:
    """Repositories that match, at most `limit`. Invalid, Unauthorized, Unavailable, HostError."""
    host, term = split_term(wish.term)
    hub = host == DEFAULT_DOMAIN
    endpoints = (_HUB,) if hub else tuple(e for e in plan_endpoints(host, options.registries) if not e.mirror)
    reference = Reference(domain=host, path="")
    fetcher = await Fetcher.start(reference, options, root, endpoints=endpoints)
    try:
        try:
            query = urlencode({"q": term.removeprefix("library/") if hub else term, "n": wish.limit})
            data = await fetcher.get(f"/v1/search?{query}", limit=_DOCUMENT_BYTES)
            found = parse_results(data, "" if hub else f"{host}/")
        except Unauthorized:
            raise
        except CoveError:
            if hub:
                raise
            found = await _from_catalog(fetcher, host, term)
    finally:
        await fetcher.release()
    return [one for one in found if wish.accepts(one)][: wish.limit]


async def _from_catalog(fetcher: Fetcher, host: str, term: str) -> list[Found]:
    path = f"/v2/_catalog?n={_PAGE}"
    found: list[Found] = []
    for _ in range(_PAGES_MAX):
        document = await fetcher.document(path, limit=_DOCUMENT_BYTES)
        names = parse_catalog(document.data)
        found += [Found(name=f"{host}/{name}") for name in names if term.lower() in name.lower()]
        last = next_page(document.link)
        if not last or not names:
            break
        path = "/v2/_catalog?" + urlencode({"n": _PAGE, "last": last})
    return found


class _Result(msgspec.Struct):
    name: str
    description: str | None = None
    star_count: int = 0
    is_official: bool = False
    is_automated: bool = False


class _Results(msgspec.Struct):
    results: list[_Result] | None = None


class _Catalog(msgspec.Struct):
    repositories: list[str] | None = None


def parse_results(data: bytes, prefix: str) -> list[Found]:
    """The answer of /v1/search. Invalid."""
    try:
        results = msgspec.json.decode(data, type=_Results).results or []
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise Invalid(f"the registry's search results are malformed: {str(error)[:200]}") from None
    return [
        Found(
            name=prefix + _clean(one.name.removeprefix("library/"), 255),
            description=_clean(one.description or "", 1000),
            stars=one.star_count,
            official=one.is_official,
            automated=one.is_automated,
        )
        for one in results
    ]


def parse_catalog(data: bytes) -> Sequence[str]:
    """The names in an answer of /v2/_catalog. Invalid."""
    try:
        names = msgspec.json.decode(data, type=_Catalog).repositories or []
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise Invalid(f"the registry's list of repositories is malformed: {str(error)[:200]}") from None
    return [_clean(name, 255) for name in names]


def next_page(link: str) -> str:
    """What a `Link` to the next page has as `last`, or "". Only that is taken of the address."""
    return parse_qs(next_query(link).removeprefix("?")).get("last", [""])[0][:255]


def _clean(text: str, limit: int) -> str:
    return "".join(c if c.isprintable() else " " for c in text[:limit]).strip()
