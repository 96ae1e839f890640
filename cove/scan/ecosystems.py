"""Whose vulnerabilities concern a package: OSV's ecosystems (ossf.github.io/osv-schema). Pure."""

from __future__ import annotations

from cove.scan.languages import normalized_python
from cove.scan.model import Distribution, Package

DEBIAN_RELEASES = {
    "wheezy": "7", "jessie": "8", "stretch": "9", "buster": "10", "bullseye": "11", "bookworm": "12",
    "trixie": "13", "forky": "14", "duke": "15",
}  # fmt: skip
_LANGUAGES = {
    "pypi": "PyPI",
    "npm": "npm",
    "golang": "Go",
    "cargo": "crates.io",
    "gem": "RubyGems",
    "maven": "Maven",
}
_KINDS = {name: kind for kind, name in _LANGUAGES.items()} | {
    "Debian": "deb",
    "Ubuntu": "deb",
    "Alpine": "apk",
    "Wolfi": "apk",
    "Chainguard": "apk",
    "Rocky Linux": "rpm",
    "AlmaLinux": "rpm",
    "Red Hat": "rpm",
    "SUSE": "rpm",
    "openSUSE": "rpm",
    "openEuler": "rpm",
    "Mageia": "rpm",
    "Photon OS": "rpm",
    "Azure Linux": "rpm",
}
_MAJOR = {"rocky": "Rocky Linux", "almalinux": "AlmaLinux", "mageia": "Mageia"}
_WHOLE = {"photon": "Photon OS", "openeuler": "openEuler"}


def kind_of_ecosystem(ecosystem: str) -> str:
    """The kind of package whose versions an ecosystem has; "" for one that isn't known here."""
    return _KINDS.get(ecosystem.partition(":")[0], "")


def distribution_ecosystem(distribution: Distribution) -> str:
    """The ecosystem of a distribution's packages, without what may follow it after a colon; "" for an unknown one."""
    name, version = distribution.id, distribution.version
    if name == "debian":
        release = version.partition(".")[0] or DEBIAN_RELEASES.get(distribution.codename, "")
        return f"Debian:{release}" if release else ""
    if name == "ubuntu":
        return f"Ubuntu:{version}" if version else ""
    if name == "alpine":
        numbers = version.split(".")
        released = len(numbers) >= 2 and all(number.isdecimal() for number in numbers)
        return f"Alpine:v{numbers[0]}.{numbers[1]}" if released else "Alpine:edge"
    if name in ("wolfi", "chainguard"):
        return name.capitalize()
    if name in _MAJOR:
        return f"{_MAJOR[name]}:{version.partition('.')[0]}"
    if name in _WHOLE:
        return f"{_WHOLE[name]}:{version}"
    if name in ("rhel", "redhat", "centos"):
        return f"Red Hat:enterprise_linux:{version.partition('.')[0]}"
    if name == "opensuse-leap":
        return f"openSUSE:Leap {version}"
    if name == "opensuse-tumbleweed":
        return "openSUSE:Tumbleweed"
    if name in ("sles", "sled", "sle_hpc", "sles_sap"):
        return f"SUSE:Linux Enterprise Server {version.replace('.', ' SP')}"
    if name in ("azurelinux", "mariner"):
        return f"Azure Linux:{version.partition('.')[0]}"
    return ""


def ecosystem_of(package: Package, distribution: Distribution) -> str:
    """The ecosystem that tells of a package's vulnerabilities; "" where none is known."""
    if package.kind in _LANGUAGES:
        return _LANGUAGES[package.kind]
    found = distribution_ecosystem(distribution)
    return found if kind_of_ecosystem(found) == package.kind else ""


def names_of(package: Package) -> tuple[str, ...]:
    """The names that a package's vulnerabilities may be under: of what it was built from, for a distribution's."""
    if package.kind in ("deb", "apk"):
        return (package.source or package.name,)
    if package.kind == "rpm":
        return tuple(dict.fromkeys((package.name, package.source or package.name)))
    if package.kind == "pypi":
        return (normalized_python(package.name),)
    return (package.name,)


def stored_name(ecosystem: str, name: str) -> str:
    """A package's name as it is looked up."""
    return normalized_python(name) if ecosystem == "PyPI" else name


def version_of(package: Package) -> str:
    """The version that vulnerabilities are told by: of what a distribution's package was built from."""
    if package.kind in ("deb", "apk"):
        return package.source_version or package.version
    return package.version


def concerns(ecosystem: str, wanted: str) -> bool:
    """Whether an entry's ecosystem is the wanted one, or a part of it (`Ubuntu:22.04:LTS` of `Ubuntu:22.04`)."""
    if wanted.startswith("SUSE:"):
        return ecosystem.startswith("SUSE:Linux Enterprise") and ecosystem.endswith(
            wanted.removeprefix("SUSE:Linux Enterprise Server")
        )
    return ecosystem == wanted or ecosystem.startswith(f"{wanted}:")
