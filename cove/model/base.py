"""The base of every stored object. No I/O."""

from __future__ import annotations

import msgspec


class Model(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, omit_defaults=True):
    """Base of all stored objects: frozen, unknown fields refused, defaults not written."""
