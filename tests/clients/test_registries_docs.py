"""docs/registries.md's examples do what the page says, in its order, with docker-registry as registry.example:5000."""

from __future__ import annotations

import warnings
from pathlib import Path

from tests.clients.test_cli_docs import ROOT, bin_directory, run_examples
from tests.daemon import Daemon
from tests.registrykit import docker_registry

__all__ = ["bin_directory"]


def test_the_page_s_examples_print_what_it_says(daemon: Daemon, bin_directory: Path, tmp_path: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        import crypt

        hashed = crypt.crypt("s3cret", crypt.mksalt(crypt.METHOD_BLOWFISH, rounds=1 << 5))
    (tmp_path / "htpasswd").write_text(f"ada:{hashed}\n")
    (tmp_path / "password-file").write_text("s3cret\n")
    text = (ROOT / "docs" / "registries.md").read_text()
    with docker_registry(
        tmp_path / "registry",
        REGISTRY_AUTH="htpasswd",
        REGISTRY_AUTH_HTPASSWD_REALM="test",
        REGISTRY_AUTH_HTPASSWD_PATH=str(tmp_path / "htpasswd"),
    ) as host:
        (tmp_path / "page.md").write_text(text.replace("registry.example:5000", host))
        run_examples(tmp_path / "page.md", daemon, bin_directory, tmp_path)
