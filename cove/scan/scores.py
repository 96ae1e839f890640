"""CVSS vectors to scores by FIRST's formulas (first.org/cvss: 2.0, 3.0, 3.1, 4.0), of the library `cvss`. Pure."""

from __future__ import annotations

import cvss

_VECTOR_MAX = 400


def score_of(vector: str) -> float | None:
    """The base score of a CVSS vector; None for what isn't one."""
    if len(vector) > _VECTOR_MAX:
        return None
    try:
        if vector.startswith("CVSS:4"):
            return float(cvss.CVSS4(vector).base_score)
        if vector.startswith("CVSS:3"):
            return float(cvss.CVSS3(vector).scores()[0])
        return float(cvss.CVSS2(vector).scores()[0])
    except (cvss.exceptions.CVSSError, ArithmeticError, KeyError, ValueError, IndexError):
        return None
