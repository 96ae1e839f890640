"""References: what a person may write for an image, and what it stands for.

Pure. The grammar and its wording are those of github.com/distribution/reference (v0.6), which Docker
uses: `[domain/]path[:tag][@digest]`, where Docker Hub's domain and `library/` may be left out.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from cove.model.errors import Invalid

DEFAULT_DOMAIN = "docker.io"
DEFAULT_TAG = "latest"
NAME_LENGTH_MAX = 255

_DOMAIN_PART = r"(?:[a-zA-Z0-9]|[a-zA-Z0-9][a-zA-Z0-9-]*[a-zA-Z0-9])"
_DOMAIN = rf"(?:{_DOMAIN_PART}(?:\.{_DOMAIN_PART})*|\[[a-fA-F0-9:]+\])(?::[0-9]+)?"
_PATH_PART = r"[a-z0-9]+(?:(?:[._]|__|-+)[a-z0-9]+)*"
_PATH = rf"{_PATH_PART}(?:/{_PATH_PART})*"
_TAG = r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,127}"
_DIGEST = r"[A-Za-z][A-Za-z0-9]*(?:[-_+.][A-Za-z][A-Za-z0-9]*)*:[0-9a-fA-F]{32,}"

_REFERENCE_RE = re.compile(rf"({_DOMAIN})/({_PATH})(?::({_TAG}))?(?:@({_DIGEST}))?", re.ASCII)
_TAG_RE = re.compile(_TAG, re.ASCII)
_HEX64_RE = re.compile(r"[a-f0-9]{64}")
_ID_PREFIX_RE = re.compile(r"(?:sha256:)?([a-f0-9]{1,64})")
_DIGEST_LENGTHS = {"sha256": 64, "sha384": 96, "sha512": 128}


@dataclass(frozen=True, slots=True, kw_only=True)
class Reference:
    """A full reference; `tag` or `digest` may be "" when they weren't written."""

    domain: str
    path: str
    tag: str = ""
    digest: str = ""

    @property
    def name(self) -> str:
        """Domain and path in full: docker.io/library/debian."""
        return f"{self.domain}/{self.path}"

    @property
    def familiar_name(self) -> str:
        """The name as people write it: debian, user/app, registry.example/app."""
        if self.domain != DEFAULT_DOMAIN:
            return self.name
        rest = self.path.removeprefix("library/")
        return self.path if "/" in rest else rest

    @property
    def familiar(self) -> str:
        """The familiar name with tag and digest."""
        tag = f":{self.tag}" if self.tag else ""
        digest = f"@{self.digest}" if self.digest else ""
        return f"{self.familiar_name}{tag}{digest}"

    def with_default_tag(self) -> Reference:
        """The same with tag latest where neither tag nor digest was written."""
        if self.tag or self.digest:
            return self
        return Reference(domain=self.domain, path=self.path, tag=DEFAULT_TAG)


def parse_reference(text: str) -> Reference:
    """Read a reference as a person writes it; Invalid with Docker's wording."""
    if _HEX64_RE.fullmatch(text):
        raise Invalid(f"invalid repository name ({text}), cannot specify 64-byte hexadecimal strings")
    domain, rest = _split_domain(text)
    name_part = rest.partition(":")[0]
    if name_part.lower() != name_part:
        raise Invalid(f"invalid reference format: repository name ({name_part}) must be lowercase")
    match = _REFERENCE_RE.fullmatch(f"{domain}/{rest}")
    if match is None:
        raise Invalid("invalid reference format")
    found_domain, path, tag, digest = match.groups(default="")
    if len(path) > NAME_LENGTH_MAX:
        raise Invalid(f"repository name must not be more than {NAME_LENGTH_MAX} characters")
    if digest:
        parse_digest(digest)
    return Reference(domain=found_domain, path=path, tag=tag, digest=digest)


def parse_tagged(text: str) -> Reference:
    """A reference that a tag can be given to: default tag latest; a digest is refused."""
    reference = parse_reference(text).with_default_tag()
    if reference.digest:
        raise Invalid("refusing to create a tag with a digest reference")
    return reference


def parse_digest(text: str) -> str:
    """A digest such as sha256:<64 lower-case hex digits>, unchanged; Invalid otherwise."""
    algorithm, colon, value = text.partition(":")
    length = _DIGEST_LENGTHS.get(algorithm)
    if not colon:
        raise Invalid("invalid checksum digest format")
    if length is None:
        raise Invalid("unsupported digest algorithm")
    if len(value) != length:
        raise Invalid("invalid checksum digest length")
    if not re.fullmatch(r"[a-f0-9]+", value):
        raise Invalid("invalid checksum digest format")
    return text


def is_image_id(text: str) -> bool:
    """Whether this is a whole image id: sha256:<hex>, or its 64 digits alone."""
    return bool(_HEX64_RE.fullmatch(text.removeprefix("sha256:")))


def id_prefix(text: str) -> str:
    """The hex digits of what may be an abbreviated id, or ""."""
    match = _ID_PREFIX_RE.fullmatch(text)
    return match.group(1) if match else ""


def _split_domain(text: str) -> tuple[str, str]:
    head, slash, tail = text.partition("/")
    if not slash or (not any(c in head for c in ".:") and head != "localhost" and head.lower() == head):
        domain, rest = DEFAULT_DOMAIN, text
    else:
        domain, rest = head, tail
    if domain == "index.docker.io":
        domain = DEFAULT_DOMAIN
    if domain == DEFAULT_DOMAIN and "/" not in rest:
        rest = f"library/{rest}"
    return domain, rest
