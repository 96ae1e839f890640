"""`--secret`: what goes into the create body, and what is refused."""

from __future__ import annotations

import base64
from pathlib import Path

import pytest

from cove.cli.fail import CliError
from cove.cli.secrets import parse_secret


def test_a_named_secret_has_no_content() -> None:
    assert parse_secret("db", {}) == ("db:target=db", "db", None)
    assert parse_secret("db,target=/run/secrets/pw,uid=1,mode=0400", {}) == (
        "db:target=/run/secrets/pw;uid=1;mode=0400",
        "pw",
        None,
    )


def test_a_file_s_or_a_variable_s_content_comes_along(tmp_path: Path) -> None:
    (tmp_path / "key").write_bytes(b"\0x")
    assert parse_secret(f"source={tmp_path}/key", {}) == (
        ":target=key",
        "key",
        base64.b64encode(b"\0x").decode(),
    )
    assert parse_secret("env=A,target=b", {"A": "c"}) == (":target=b", "b", "Yw==")


@pytest.mark.parametrize(
    "text", ["db,size=1", "source=x,env=y", "target=x", "env=MISSING", "source=/nonexistent"]
)
def test_what_makes_no_sense_is_refused(text: str) -> None:
    with pytest.raises(CliError, match=r"--secret|/nonexistent"):
        parse_secret(text, {})
