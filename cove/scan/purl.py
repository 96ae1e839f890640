"""Package URLs (github.com/package-url/purl-spec) of what was found. Pure."""

from __future__ import annotations

from packageurl import PackageURL

from cove.scan.languages import normalized_python
from cove.scan.model import Distribution, Package

_VENDORS = {"rpm": "rpm", "deb": "debian", "apk": "alpine"}


def package_url(package: Package, distribution: Distribution) -> str:
    """The package's URL; "" for a name that no URL can be made of."""
    name, namespace, qualifiers = package.name, "", {}
    version = package.version
    if package.kind in _VENDORS:
        namespace = distribution.id or _VENDORS[package.kind]
        qualifiers = {
            "arch": package.architecture,
            "distro": f"{distribution.id}-{distribution.version}" if distribution.version else "",
        }
        if package.kind == "rpm":
            epoch, colon, rest = version.partition(":")
            if colon:
                version, qualifiers["epoch"] = rest, epoch
        if package.source and package.source != package.name:
            qualifiers["upstream"] = package.source
    elif package.kind == "pypi":
        name = normalized_python(name)
    elif package.kind == "maven":
        namespace, _, name = name.partition(":")
    elif "/" in name:
        namespace, _, name = name.rpartition("/")
    try:
        return PackageURL(
            type=package.kind,
            namespace=namespace or None,
            name=name,
            version=version or None,
            qualifiers={key: value for key, value in qualifiers.items() if value},
        ).to_string()
    except ValueError:
        return ""
