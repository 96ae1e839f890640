"""Whether a registry takes a user's password: what `docker login` asks of the engine.

`GET /v2/` of the OCI distribution specification, which a registry answers to whoever it knows; where it wants a token,
one without a scope is asked for. Nothing of an answer is used, and no error has the password.
"""

from __future__ import annotations

from pathlib import Path
from urllib.parse import urlsplit

from cove.image.references import DEFAULT_DOMAIN, Reference
from cove.image.registry import PullOptions
from cove.image.registry.endpoints import plan_endpoints
from cove.image.registry.fetcher import Fetcher
from cove.model.errors import Forbidden, Invalid, NotFound, Unauthorized, Unavailable

DOCKER_HUB = "https://index.docker.io/v1/"
_HUB_HOSTS = ("index.docker.io", "docker.io", "registry-1.docker.io")
_ANSWER_BYTES = 256 << 10


async def check_login(server: str, options: PullOptions, root: Path) -> None:
    """Return if the registry at `server` takes the credentials of `options`.

    Raises Invalid for an address that isn't one, Unauthorized, and Unavailable for a registry that can't be asked.
    """
    host = find_registry(server)
    endpoints = [endpoint for endpoint in plan_endpoints(host, options.registries) if not endpoint.mirror]
    fetcher = await Fetcher.start(Reference(domain=host, path=""), options, root, endpoints=endpoints)
    try:
        await fetcher.document("/v2/", limit=_ANSWER_BYTES)
    except (Unauthorized, Forbidden) as error:
        status = 401 if isinstance(error, Unauthorized) else 403
        raise Unauthorized(
            f"login attempt to {host} failed with status: {status}: unknown user, or wrong password"
        ) from None
    except NotFound:
        raise Unavailable(f"the registry {host} can't be asked: it has no API of version 2") from None
    except Unavailable as error:
        raise Unavailable(f"the registry {host} can't be asked: {error}") from None
    finally:
        await fetcher.release()


def find_registry(server: str) -> str:
    """The domain of a registry's address, as references have it. Raises Invalid."""
    text = server or DOCKER_HUB
    try:
        parts = urlsplit(text if "://" in text else f"https://{text}")
        port, name, bad = parts.port, parts.hostname, parts.username is not None
        bad = bad or parts.scheme not in ("http", "https") or not text.isprintable() or " " in text
    except ValueError:
        port, name, bad = None, None, True
    if not name or bad:
        raise Invalid(
            f"serveraddress: {text[:200]!r} isn't a registry's address, e.g. registry.example.org:5000"
        )
    if name in _HUB_HOSTS:
        return DEFAULT_DOMAIN
    host = f"[{name}]" if ":" in name else name
    return f"{host}:{port}" if port else host
