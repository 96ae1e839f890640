"""The image that a report is about, and the report of its packages as JSON. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from cove.scan.inventory import Component, Inventory
from cove.scan.model import Subject
from cove.scan.purl import package_url


def layer_json(subject: Subject, number: int) -> dict[str, Any]:
    """A layer as reports show it."""
    made = subject.created_by[number] if number < len(subject.created_by) else ""
    return {"Number": number, "DiffID": subject.diff_ids[number], "CreatedBy": made[:400]}


def component_json(component: Component, inventory: Inventory) -> dict[str, Any]:
    package = component.package
    found: dict[str, Any] = {
        "Type": package.kind,
        "Name": package.name,
        "Version": package.version,
        "PURL": package_url(package, inventory.distribution),
        "Layer": component.layer,
        "Paths": [shown(path) for path in component.paths],
    }
    optional = {
        "Architecture": package.architecture,
        "Source": package.source if package.source != package.name else "",
        "SourceVersion": package.source_version if package.source_version != package.version else "",
        "License": package.license,
        "Module": package.module,
        "Owner": package.owner,
    }
    return found | {key: value for key, value in optional.items() if value}


def image_json(subject: Subject, inventory: Inventory) -> dict[str, Any]:
    """The head that every report has."""
    distribution = inventory.distribution
    return {
        "Image": {
            "Name": subject.name,
            "ID": subject.id,
            "Manifest": subject.manifest,
            "Architecture": subject.architecture,
        },
        "Distribution": {
            "ID": distribution.id,
            "Version": distribution.version,
            "Name": distribution.name,
        },
        "Layers": [layer_json(subject, number) for number in range(len(subject.diff_ids))],
    }


def packages_json(subject: Subject, inventory: Inventory) -> dict[str, Any]:
    """The report of an image's packages."""
    return {
        **image_json(subject, inventory),
        "Packages": [component_json(component, inventory) for component in inventory.components],
        "Notes": list(inventory.notes),
    }


def shown(path: str) -> str:
    """A path as text that any JSON can hold, from the root."""
    return "/" + path.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")


def created_by(history: Sequence[Any], layers: int) -> tuple[str, ...]:
    """For each layer the line of the history that brought it; those of an image that tells of fewer stay out."""
    lines = [entry.created_by for entry in history if not entry.empty_layer]
    return tuple(lines) if len(lines) == layers else ()
