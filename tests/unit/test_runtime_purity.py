"""Planning decides and touches nothing: its modules import nothing that could."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

RUNTIME = Path(__file__).parent.parent.parent / "cove/runtime"
PURE = sorted(
    path
    for path in RUNTIME.rglob("*.py")
    if path.parent.name == "steps"
    or path.name.startswith(("plan", "spec", "oci", "facts", "capabilities"))
    or path.name in ("seccomp.py", "seccomp_check.py", "cgroups_limits.py", "cgroups_devices.py")
)
# compiling a filter is a function of its rules; a user's ids are plain data
ALLOWED = {path.stem for path in PURE} | {"steps", "seccomp_compile", "users"}
EFFECTS = {
    "os",
    "io",
    "pathlib",
    "socket",
    "subprocess",
    "ctypes",
    "asyncio",
    "shutil",
    "time",
    "random",
    "secrets",
}


@pytest.mark.parametrize("path", PURE, ids=lambda path: path.relative_to(RUNTIME).as_posix())
def test_planning_imports_nothing_that_touches_the_host(path: Path) -> None:
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            modules = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            modules = [f"{base}.{alias.name}" for alias in node.names] if base == "cove.runtime" else [base]
        else:
            continue
        for module in modules:
            assert module.partition(".")[0] not in EFFECTS, f"{path.name} imports {module}"
            if module.startswith("cove.") and not module.startswith("cove.model"):
                assert module.split(".")[2] in ALLOWED, f"{path.name} imports {module}"
