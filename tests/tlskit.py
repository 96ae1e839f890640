"""Certificates for a test: an authority, a server's of it, a client's of it, and a stranger's client."""

from __future__ import annotations

import subprocess
from pathlib import Path


def run(*words: str) -> None:
    subprocess.run(["openssl", *words], check=True, capture_output=True, timeout=60)


class Authority:
    """A certificate authority in a directory of its own."""

    def __init__(self, directory: Path, name: str) -> None:
        self.directory = directory
        self.certificate = directory / f"{name}-ca.pem"
        self._key = directory / f"{name}-ca-key.pem"
        run(
            "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days", "2",
            "-subj", f"/CN={name} authority", "-keyout", str(self._key), "-out", str(self.certificate),
        )  # fmt: skip

    def issue(self, name: str, usage: str, directory: Path | None = None) -> Path:
        """A directory with ca.pem, cert.pem and key.pem, as DOCKER_CERT_PATH wants it.

        `usage` is serverAuth or clientAuth.
        """
        found = directory or self.directory / name
        found.mkdir(exist_ok=True)
        request, extensions = found / "request.pem", found / "extensions"
        run(
            "req", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-subj", f"/CN={name}",
            "-keyout", str(found / "key.pem"), "-out", str(request),
        )  # fmt: skip
        extensions.write_text(
            f"subjectAltName=IP:127.0.0.1,IP:::1,DNS:localhost\nextendedKeyUsage={usage}\nkeyUsage=digitalSignature\n"
        )
        run(
            "x509", "-req", "-in", str(request), "-CA", str(self.certificate), "-CAkey", str(self._key),
            "-CAcreateserial", "-days", "2", "-extfile", str(extensions), "-out", str(found / "cert.pem"),
        )  # fmt: skip
        (found / "ca.pem").write_bytes(self.certificate.read_bytes())
        return found
