"""Kubernetes' quantities: `500m`, `64Mi`, `1.5G`. Pure."""

from __future__ import annotations

import re
from fractions import Fraction

from cove.kube.reading import At

_QUANTITY = re.compile(
    r"([0-9]{1,18}(?:\.[0-9]{0,9})?|\.[0-9]{1,9})(m|k|[MGTPE]|[KMGTPE]i|[eE][-+]?[0-9]{1,2})?"
)
_SCALES = {
    "": Fraction(1),
    "m": Fraction(1, 1000),
    **{letter: Fraction(1000 ** (index + 1)) for index, letter in enumerate("kMGTPE")},
    **{letter + "i": Fraction(1024 ** (index + 1)) for index, letter in enumerate("KMGTPE")},
}
_MOST_CPUS = 1 << 20


def parse_quantity(text: str) -> Fraction | None:
    match = _QUANTITY.fullmatch(text)
    if match is None:
        return None
    suffix = match[2] or ""
    scale = _SCALES.get(suffix)
    if scale is None:  # e3, E-2
        scale = Fraction(10) ** int(suffix[1:])
    return Fraction(match[1] if match[1] != "." else "0") * scale


def _read(at: At, example: str) -> Fraction:
    value = at.value
    text = str(value) if isinstance(value, int | float) and not isinstance(value, bool) else at.text()
    found = parse_quantity(text)
    if found is None:
        raise at.error(f"{text[:80]!r}: expected an amount, e.g. {example}")
    return found


def read_bytes(at: At) -> int:
    """Bytes, rounded up; 0 where nothing is said."""
    if not at:
        return 0
    found = -(-_read(at, "64Mi") // 1)
    if not 0 < found < 1 << 63:
        raise at.error(f"{str(at.value)[:80]!r}: expected 1 byte to 8Ei, e.g. 64Mi")
    return int(found)


def read_milli_cpus(at: At) -> int:
    """Thousandths of a CPU, rounded up; 0 where nothing is said."""
    if not at:
        return 0
    found = -(-_read(at, "500m") * 1000 // 1)
    if not 0 < found <= _MOST_CPUS * 1000:
        raise at.error(f"{str(at.value)[:80]!r}: expected 1m to {_MOST_CPUS} CPUs, e.g. 500m")
    return int(found)
