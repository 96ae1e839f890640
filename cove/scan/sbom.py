"""Bills of materials: CycloneDX 1.6 and SPDX 2.3, as JSON. Pure: the time is an argument.

The same image, version of Cove and time give the same bytes: ids are made of the image's digest (RFC 9562, version 5).
Sources: cyclonedx.org/docs/1.6/json, spdx.github.io/spdx-spec/v2.3.
"""

from __future__ import annotations

import hashlib
import uuid
from datetime import UTC, datetime
from typing import Any

import msgspec
from packageurl import PackageURL

from cove import __version__
from cove.scan.inventory import Component, Inventory
from cove.scan.licenses import spdx_expression
from cove.scan.model import Subject
from cove.scan.purl import package_url
from cove.scan.subject import shown

FORMATS = ("cyclonedx", "spdx", "json")
_NAMESPACE = uuid.UUID("6f0b7d0e-2c39-5a0e-9b51-0f6d3c1a8f10")


def render(document: dict[str, Any]) -> bytes:
    """A document as it is written to a file: indented, with a newline at its end."""
    return msgspec.json.format(msgspec.json.encode(document), indent=2) + b"\n"


def _time(epoch_s: int) -> str:
    return datetime.fromtimestamp(epoch_s, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def _uuid(subject: Subject, kind: str, epoch_s: int) -> uuid.UUID:
    return uuid.uuid5(_NAMESPACE, f"{kind} {subject.id} {subject.name} {epoch_s} {__version__}")


def _image_url(subject: Subject) -> str:
    repository, _, tag = subject.name.rpartition(":")
    if not repository or "/" in tag:
        repository, tag = subject.name, ""
    qualifiers = {"arch": subject.architecture, "tag": tag if not repository.startswith("sha256") else ""}
    name = repository.rpartition("/")[2].lower()
    return PackageURL(
        type="oci",
        name=name if name and not subject.name.startswith("sha256:") else "image",
        version=subject.manifest,
        qualifiers={key: value for key, value in qualifiers.items() if value},
    ).to_string()


def cyclonedx(subject: Subject, inventory: Inventory, epoch_s: int) -> dict[str, Any]:
    """The bill as CycloneDX."""
    components = [
        _cyclonedx_component(one, number, subject, inventory)
        for number, one in enumerate(inventory.components)
    ]
    distribution = inventory.distribution
    if distribution.id:
        components.insert(
            0,
            {
                "type": "operating-system",
                "bom-ref": "os",
                "name": distribution.id,
                **({"version": distribution.version} if distribution.version else {}),
                **({"description": distribution.name} if distribution.name else {}),
            },
        )
    return {
        "$schema": "http://cyclonedx.org/schema/bom-1.6.schema.json",
        "bomFormat": "CycloneDX",
        "specVersion": "1.6",
        "serialNumber": f"urn:uuid:{_uuid(subject, 'cyclonedx', epoch_s)}",
        "version": 1,
        "metadata": {
            "timestamp": _time(epoch_s),
            "tools": {"components": [{"type": "application", "name": "cove", "version": __version__}]},
            "component": {
                "type": "container",
                "bom-ref": "image",
                "name": subject.name,
                "version": subject.id,
                "purl": _image_url(subject),
                "properties": [
                    {"name": "cove:manifest", "value": subject.manifest},
                    *(
                        {"name": f"cove:layer:{number}", "value": diff_id}
                        for number, diff_id in enumerate(subject.diff_ids)
                    ),
                ],
            },
        },
        "components": components,
        "dependencies": [{"ref": "image", "dependsOn": [one["bom-ref"] for one in components]}],
    }


def _cyclonedx_component(
    component: Component, number: int, subject: Subject, inventory: Inventory
) -> dict[str, Any]:
    package = component.package
    url = package_url(package, inventory.distribution)
    group, name = _grouped(package.kind, package.name)
    found: dict[str, Any] = {
        "type": "library",
        "bom-ref": f"{number}:{url or package.name}",
        "name": name,
        "version": package.version,
    }
    if group:
        found["group"] = group
    if url:
        found["purl"] = url
    if package.license:
        expression = spdx_expression(package.license)
        found["licenses"] = (
            [{"expression": expression}] if expression else [{"license": {"name": package.license}}]
        )
    properties = [("cove:layer", subject.diff_ids[component.layer])]
    properties += [("cove:path", shown(path)) for path in component.paths]
    properties += [("cove:owner", package.owner)] if package.owner else []
    if package.source and package.source != package.name:
        properties += [("cove:source", f"{package.source} {package.source_version}")]
    found["properties"] = [{"name": key, "value": value} for key, value in properties]
    return found


def _grouped(kind: str, name: str) -> tuple[str, str]:
    if kind == "maven":
        group, _, artifact = name.partition(":")
        return group, artifact
    if kind == "npm" and name.startswith("@"):
        group, _, rest = name.partition("/")
        return group, rest
    return "", name


def spdx(subject: Subject, inventory: Inventory, epoch_s: int) -> dict[str, Any]:
    """The bill as SPDX."""
    packages: list[dict[str, Any]] = [
        {
            "SPDXID": "SPDXRef-Image",
            "name": subject.name,
            "versionInfo": subject.id,
            "downloadLocation": "NOASSERTION",
            "filesAnalyzed": False,
            "licenseConcluded": "NOASSERTION",
            "licenseDeclared": "NOASSERTION",
            "copyrightText": "NOASSERTION",
            "primaryPackagePurpose": "CONTAINER",
            "checksums": [{"algorithm": "SHA256", "checksumValue": subject.id.removeprefix("sha256:")}],
            "externalRefs": [_external(_image_url(subject))],
        }
    ]
    distribution = inventory.distribution
    if distribution.id:
        packages.append(
            {
                "SPDXID": "SPDXRef-OperatingSystem",
                "name": distribution.id,
                **({"versionInfo": distribution.version} if distribution.version else {}),
                "downloadLocation": "NOASSERTION",
                "filesAnalyzed": False,
                "licenseConcluded": "NOASSERTION",
                "licenseDeclared": "NOASSERTION",
                "copyrightText": "NOASSERTION",
                "primaryPackagePurpose": "OPERATING_SYSTEM",
            }
        )
    packages += [_spdx_package(one, subject, inventory) for one in inventory.components]
    return {
        "spdxVersion": "SPDX-2.3",
        "dataLicense": "CC0-1.0",
        "SPDXID": "SPDXRef-DOCUMENT",
        "name": subject.name,
        "documentNamespace": f"https://spdx.org/spdxdocs/cove-{_uuid(subject, 'spdx', epoch_s)}",
        "creationInfo": {"created": _time(epoch_s), "creators": [f"Tool: cove-{__version__}"]},
        "packages": packages,
        "relationships": [
            {
                "spdxElementId": "SPDXRef-DOCUMENT",
                "relationshipType": "DESCRIBES",
                "relatedSpdxElement": "SPDXRef-Image",
            },
            *(
                {
                    "spdxElementId": "SPDXRef-Image",
                    "relationshipType": "CONTAINS",
                    "relatedSpdxElement": package["SPDXID"],
                }
                for package in packages[1:]
            ),
        ],
    }


def _external(url: str) -> dict[str, str]:
    return {"referenceCategory": "PACKAGE-MANAGER", "referenceType": "purl", "referenceLocator": url}


def _spdx_package(component: Component, subject: Subject, inventory: Inventory) -> dict[str, Any]:
    package = component.package
    url = package_url(package, inventory.distribution)
    expression = spdx_expression(package.license) if package.license else ""
    key = f"{package.kind} {package.name} {package.version} {package.architecture} {package.owner}"
    found: dict[str, Any] = {
        "SPDXID": f"SPDXRef-Package-{hashlib.sha256(key.encode()).hexdigest()[:24]}",
        "name": package.name,
        "versionInfo": package.version,
        "downloadLocation": "NOASSERTION",
        "filesAnalyzed": False,
        "licenseConcluded": "NOASSERTION",
        "licenseDeclared": expression or "NOASSERTION",
        "copyrightText": "NOASSERTION",
        "sourceInfo": f"{', '.join(shown(path) for path in component.paths)} "
        f"in layer {subject.diff_ids[component.layer]}",
    }
    if package.license and not expression:
        found["licenseComments"] = f"The package says: {package.license}"
    if url:
        found["externalRefs"] = [_external(url)]
    return found
