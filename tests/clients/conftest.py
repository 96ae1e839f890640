"""Each test here must leave the host as it found it (tests/leaks.py)."""

from tests.leaks import no_leaks

__all__ = ["no_leaks"]
