"""Addresses of git repositories, as ADD and build contexts have them. Pure.

https://host/name.git#ref:directory, git@host:name.git#ref, and the form with a query:
?ref=…|tag=…|branch=…&subdir=…&checksum=…&keep-git-dir=…&submodules=… (docs.docker.com/reference/dockerfile, "ADD
<git ref>"; docs.docker.com/build/concepts/context, "URL queries").
"""

from __future__ import annotations

import posixpath
import re
from urllib.parse import parse_qsl, urlsplit, urlunsplit

import msgspec

from cove.dockerfile.errors import DockerfileError

MAX_CHARS = 4096
_SCP = re.compile(r"(?P<user>[\w.-]+)@(?P<host>[\w.-]+|\[[0-9a-fA-F:]+\]):(?P<rest>[^\s]+)", re.ASCII)
_COMMIT = re.compile(r"[0-9a-f]{4,64}")
_REF = re.compile(r"(?!-)[^\s\x00-\x1f\x7f~^:?*\[\\]{1,255}")
_SCHEMES = ("http", "https", "ssh", "git")
_QUERY = ("ref", "tag", "branch", "subdir", "checksum", "commit", "keep-git-dir", "submodules", "mtime",
          "fetch-by-commit")  # fmt: skip


class GitSource(msgspec.Struct, frozen=True, kw_only=True):
    """Where a repository is, and what of it."""

    url: str  # for git: without fragment and query
    ref: str = ""  # "" is the repository's own HEAD
    subdirectory: str = ""
    checksum: str = ""  # the commit must be this one; its first digits are enough
    keep_git: bool | None = None
    submodules: bool = True


def parse_git_url(text: str, *, is_context: bool = False) -> GitSource | None:
    """The repository that the text names; None when it names another thing. Raises DockerfileError.

    As a build context, github.com/owner/name is one too, from before addresses had a scheme.
    """
    if len(text) > MAX_CHARS or text.startswith(("./", "../", "/")):
        return None
    github = is_context and text.startswith("github.com/")
    if github:
        text = f"https://{text}"
    elif scp := _SCP.fullmatch(text):
        rest, _, fragment = scp["rest"].partition("#")
        path, _, query = rest.partition("?")
        return _source(f"{scp['user']}@{scp['host']}:{path}", query, fragment)
    elif text.partition("://")[0] not in _SCHEMES or "://" not in text:
        return None
    try:
        parts = urlsplit(text)
    except ValueError:
        return None
    if not parts.netloc:
        return None
    if parts.scheme in ("http", "https") and not (github or parts.path.endswith(".git")):
        return None
    return _source(urlunsplit((parts.scheme, parts.netloc, parts.path, "", "")), parts.query, parts.fragment)


def is_url(text: str) -> bool:
    """Whether ADD downloads it."""
    return text.startswith(("http://", "https://"))


def _source(url: str, query: str, fragment: str) -> GitSource:
    ref, _, subdirectory = fragment.partition(":")
    given: dict[str, str] = {}
    for name, value in parse_qsl(query, keep_blank_values=True, max_num_fields=20) if query else ():
        if name not in _QUERY:
            raise DockerfileError(f'unexpected query "{name}" in {url}: there are {", ".join(_QUERY)}')
        if name in given:
            raise DockerfileError(f'query "{name}" has multiple values in {url}')
        if not value and name not in ("keep-git-dir", "submodules", "fetch-by-commit"):
            raise DockerfileError(f'query "{name}" has no value in {url}')
        given[name] = value
    named = [
        ref,
        given.get("ref", ""),
        _full("refs/tags/", given.get("tag")),
        _full("refs/heads/", given.get("branch")),
    ]
    refs = sorted(set(filter(None, named)))
    if len(refs) > 1:
        raise DockerfileError(f"ref conflicts: {' and '.join(refs)} in {url}")
    directories = sorted(set(filter(None, (subdirectory, given.get("subdir", "")))))
    if len(directories) > 1:
        raise DockerfileError(f"subdir conflicts: {' and '.join(directories)} in {url}")
    checksum = given.get("checksum", given.get("commit", ""))
    if checksum and not _COMMIT.fullmatch(checksum):
        raise DockerfileError(
            f"checksum {checksum} of {url} isn't a commit: expected 4 to 64 hexadecimal digits"
        )
    if refs and not _REF.fullmatch(refs[0]):
        raise DockerfileError(f"{refs[0]!r} isn't a branch, tag or commit of {url}, e.g. main")
    return GitSource(
        url=url,
        ref=refs[0] if refs else "",
        subdirectory=posixpath.normpath("/" + directories[0]).lstrip("/") if directories else "",
        checksum=checksum,
        keep_git=_switch("keep-git-dir", given["keep-git-dir"]) if "keep-git-dir" in given else None,
        submodules=_switch("submodules", given["submodules"]) if "submodules" in given else True,
    )


def _full(prefix: str, name: str | None) -> str:
    return f"{prefix}{name.removeprefix(prefix)}" if name else ""


def _switch(name: str, value: str) -> bool:
    if value in ("", "1", "true"):
        return True
    if value in ("0", "false"):
        return False
    raise DockerfileError(f'invalid {name} value: "{value}": expected true or false')
