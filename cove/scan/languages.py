"""Packages of languages, by the files that their installers leave: Python, npm, Ruby, Cargo.lock. Pure.

Python: `METADATA` of *.dist-info and `PKG-INFO` of *.egg-info (packaging.python.org, "Core metadata"). npm: the
package.json of a directory in node_modules. Ruby: the gemspec that a gem's installation writes.
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Iterator

import msgspec

from cove.scan.model import MAX_PACKAGES, Malformed, Package, clean

_NPM_NAME = re.compile(r"(?:@[a-z0-9~._-]+/)?[A-Za-z0-9~._-]+")
_GEM_FIELD = re.compile(rb"""^\s*s\.(name|version)\s*=\s*["']([^"'\n]{1,200})["']""", re.M)
_NESTING = 64


class _PackageJson(msgspec.Struct):
    name: object = None
    version: object = None
    license: object = None


def parse_python(data: bytes) -> Iterator[Package]:
    """The package that a METADATA or PKG-INFO describes; its body, a description, isn't read."""
    fields: dict[str, str] = {}
    classifier = ""
    for line in data.split(b"\n"):
        line = line.rstrip(b"\r")
        if not line:
            break
        if line[:1] in b" \t":
            continue
        field, colon, value = line.partition(b":")
        key = field.decode("latin-1").lower()
        if not colon:
            continue
        if key == "classifier" and b"License ::" in value and not classifier:
            classifier = clean(value.rpartition(b"::")[2])
        fields.setdefault(key, clean(value))
    name, version = fields.get("name", ""), fields.get("version", "")
    if name and version:
        license = fields.get("license-expression") or fields.get("license") or classifier
        yield Package(kind="pypi", name=name, version=version, license=license[:100])


def normalized_python(name: str) -> str:
    """A project's name as indexes compare it (PEP 503)."""
    return re.sub(r"[-_.]+", "-", name).lower()


def parse_npm(data: bytes) -> Iterator[Package]:
    """The package of a package.json. Malformed."""
    try:
        found = msgspec.json.decode(data.removeprefix(b"\xef\xbb\xbf"), type=_PackageJson)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise Malformed(f"it isn't JSON of a package: {clean(str(error))}") from None
    name, version = clean(found.name), clean(found.version)
    if not name or not version or not _NPM_NAME.fullmatch(name):
        return  # a file of that name in the middle of a package, with no more than "type"
    license = found.license
    if isinstance(license, dict):
        license = license.get("type")
    yield Package(kind="npm", name=name, version=version, license=clean(license)[:100])


def parse_gemspec(data: bytes) -> Iterator[Package]:
    """The gem of an installed gemspec, whose first lines are always written alike."""
    fields = {match[1].decode(): clean(match[2]) for match in _GEM_FIELD.finditer(data)}
    if fields.get("name") and fields.get("version"):
        yield Package(kind="gem", name=fields["name"], version=fields["version"])


def parse_cargo_lock(data: bytes) -> Iterator[Package]:
    """The crates of a Cargo.lock that come from a registry. Malformed."""
    text = data.decode("utf-8", "replace")
    if _nests(text):
        raise Malformed(f"it nests deeper than {_NESTING} levels")
    try:
        document = tomllib.loads(text)
    except (tomllib.TOMLDecodeError, RecursionError, ValueError) as error:
        raise Malformed(f"it isn't TOML: {clean(str(error))}") from None
    packages = document.get("package", ())
    if not isinstance(packages, list):
        raise Malformed("its `package` isn't a list")
    if len(packages) > MAX_PACKAGES:
        raise Malformed(f"it names more than {MAX_PACKAGES} packages")
    for package in packages:
        if not isinstance(package, dict):
            continue
        name, version = clean(package.get("name")), clean(package.get("version"))
        if name and version and clean(package.get("source")).startswith("registry+"):
            yield Package(kind="cargo", name=name, version=version)


def _nests(text: str) -> bool:
    depth = 0
    for match in re.finditer(r"[][{}]", text):
        depth += 1 if match[0] in "[{" else -1
        if depth > _NESTING:
            return True
    return False
