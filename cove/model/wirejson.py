"""JSON for the wire, without the json package: that one imports re and costs half of Python's own start.

The C halves of the standard library's json do all the work. They are private to CPython, so
where they are missing the package takes over, with the same results.
"""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

try:
    import _json
except ImportError:  # another Python than CPython
    import json

    def dumps(value: Any) -> str:
        """Compact JSON text, not escaped to ASCII."""
        return json.dumps(value, ensure_ascii=False, separators=(",", ":"))

    def loads(text: str) -> Any:
        """The value of JSON text; ValueError when it isn't JSON."""
        return json.loads(text)

else:

    class _Context:
        """What the C scanner reads its settings from (json.JSONDecoder's attributes)."""

        strict = False
        object_hook = None
        object_pairs_hook = None
        parse_float = float
        parse_int = int
        memo: dict[str, str] = {}

        @staticmethod
        def parse_constant(name: str) -> float:
            raise ValueError(f"{name} is none of its values")

    _scan: Any = _json.make_scanner(_Context())  # type: ignore[arg-type]

    def _refuse(value: object) -> Any:
        raise TypeError(f"{type(value).__name__} has no JSON form")

    _encode: Any = _json.make_encoder(
        None,
        _refuse,
        _json.encode_basestring,
        None,
        ":",
        ",",
        False,
        False,
        True,
    )

    def dumps(value: Any) -> str:
        """Compact JSON text, not escaped to ASCII."""
        return "".join(_encode(value, 0))

    def loads(text: str) -> Any:
        """The value of JSON text; ValueError when it isn't JSON."""
        start = len(text) - len(text.lstrip())
        try:
            value, end = _scan(text, start)
        except StopIteration as error:
            raise ValueError(f"not JSON at character {error.value}") from None
        except ValueError as error:
            raise ValueError(f"not JSON: {error}") from None
        if text[end:].strip():
            raise ValueError(f"not JSON at character {end}")
        return value


def pretty(value: Any, level: int = 0) -> str:
    """JSON text for people: four spaces a level, as docker inspect prints it."""
    inner = "    " * (level + 1)
    if isinstance(value, dict) and value:
        rows = [f"{inner}{dumps(str(key))}: {pretty(item, level + 1)}" for key, item in value.items()]
        return "{\n" + ",\n".join(rows) + "\n" + "    " * level + "}"
    if isinstance(value, list) and value:
        rows = [inner + pretty(item, level + 1) for item in value]
        return "[\n" + ",\n".join(rows) + "\n" + "    " * level + "]"
    return dumps(value)
