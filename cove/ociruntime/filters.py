"""System call filters, compiled once and kept below the root: a name that no container can have."""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from cove.runtime.oci import Seccomp


def filter_compiler(root: str) -> Callable[[Seccomp], bytes]:
    """Compiles by way of the cache of a runtime's root directory."""

    def compile_(filter_: Seccomp) -> bytes:
        from cove.runtime.seccomp_cache import compile_cached

        return compile_cached(filter_, f"{root}/~filters")

    return compile_
