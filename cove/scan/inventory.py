"""What an image has, made of what its layers have. Pure.

A file counts where the image still shows it: `provider` tells which layer a path comes from, or -1 where an upper layer
took it away. A package of dpkg, apk or rpm belongs to the lowest layer from which on every database has it: the
database in an upper layer repeats what was there.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import msgspec

from cove.scan.model import Distribution, LayerScan, Package, Wire

Provider = Callable[[str], int]
_SYSTEM = ("deb", "apk", "rpm")
_PATHS_SHOWN = 20


class Component(Wire, frozen=True, kw_only=True):
    """A package, once for each version, and where it is."""

    package: Package
    layer: int  # counted from the lowest, 0
    paths: tuple[str, ...] = ()


class Inventory(Wire, frozen=True, kw_only=True):
    """Everything that was found in an image; components sorted by kind, name, version."""

    distribution: Distribution = Distribution()
    components: tuple[Component, ...] = ()
    notes: tuple[str, ...] = ()


def assemble(scans: Sequence[LayerScan], provider: Provider) -> Inventory:
    """Merge the layers of an image, lowest first."""
    system = [_system_packages(scan) for scan in scans]
    found: dict[tuple[str, ...], Component] = {}
    release: dict[str, Distribution] = {}
    for number, scan in enumerate(scans):
        for file in scan.files:
            if provider(file.path) != number:
                continue
            if file.distribution is not None:
                release[file.path] = file.distribution
            for package in file.packages:
                layer = _origin(system, file.path, package, number) if package.kind in _SYSTEM else number
                _add(found, package, layer, file.path)
    notes = [f"layer {number}: {note}" for number, scan in enumerate(scans) for note in scan.notes]
    return Inventory(
        distribution=release.get("etc/os-release") or release.get("usr/lib/os-release") or Distribution(),
        components=tuple(found[key] for key in sorted(found)),
        notes=tuple(notes),
    )


def _key(package: Package) -> tuple[str, ...]:
    return (package.kind, package.name, package.version, package.architecture, package.owner)


def _add(found: dict[tuple[str, ...], Component], package: Package, layer: int, path: str) -> None:
    key = _key(package)
    before = found.get(key)
    if before is None:
        found[key] = Component(package=msgspec.structs.replace(package, path=""), layer=layer, paths=(path,))
    else:
        paths = before.paths if path in before.paths else (*before.paths, path)[:_PATHS_SHOWN]
        found[key] = msgspec.structs.replace(before, layer=min(before.layer, layer), paths=paths)


def _system_packages(scan: LayerScan) -> dict[str, frozenset[tuple[str, ...]]]:
    """By database file: the packages that it has."""
    return {
        file.path: frozenset(_key(package) for package in file.packages)
        for file in scan.files
        if any(package.kind in _SYSTEM for package in file.packages)
    }


def _origin(
    system: Sequence[dict[str, frozenset[tuple[str, ...]]]], path: str, package: Package, layer: int
) -> int:
    key = _key(package)
    origin = layer
    for number in range(layer - 1, -1, -1):
        database = system[number].get(path)
        if database is None:
            continue
        if key not in database:
            break
        origin = number
    return origin
