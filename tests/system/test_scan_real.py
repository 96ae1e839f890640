"""Packages as the ecosystems' own programs leave them: rpm, Berkeley DB, Go, npm, dpkg's own tree."""

from __future__ import annotations

import shutil
import sqlite3
import struct
import subprocess
from collections.abc import Sequence
from pathlib import Path

import pytest

from cove.scan.model import LayerScan
from cove.scan.rpmheader import Header
from tests.scankit import names, scan, scan_file

SPEC = """Name: {name}
Version: 1.2
Release: 3.el9
Epoch: {epoch}
Summary: a test
License: MIT
BuildArch: noarch
%description
a test
%install
mkdir -p %{{buildroot}}/usr/lib/python3/site-packages/{name}.dist-info
printf 'Name: {name}\\nVersion: 1.2\\n' >%{{buildroot}}/usr/lib/python3/site-packages/{name}.dist-info/METADATA
%files
/usr/lib/python3/site-packages/{name}.dist-info
"""
COUNT = 40


def run(*command: str | Path, timeout: float = 240, **more: object) -> str:
    done = subprocess.run(command, capture_output=True, text=True, timeout=timeout, **more)  # type: ignore[call-overload]
    assert done.returncode == 0, f"{command}: {done.stderr}"
    return str(done.stdout)


@pytest.fixture(scope="module")
def rpm_database(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """An SQLite database that rpm made, with a package built here."""
    base = tmp_path_factory.mktemp("rpm")
    for name, epoch in (("hello", 2), ("plain", 0)):
        (base / f"{name}.spec").write_text(SPEC.format(name=name, epoch=epoch))
        run("rpmbuild", "--define", f"_topdir {base}/top", "-bb", str(base / f"{name}.spec"))
    packages = sorted(str(path) for path in (base / "top" / "RPMS").rglob("*.rpm"))
    root = base / "root"
    root.mkdir()
    run("rpm", "--root", str(root), "--dbpath", "/var/lib/rpm", "-i", "--nodeps", *packages)
    return (root / "var/lib/rpm/rpmdb.sqlite").read_bytes()


@pytest.fixture(scope="module")
def headers(rpm_database: bytes) -> list[bytes]:
    connection = sqlite3.connect(":memory:")
    connection.deserialize(rpm_database[:18] + b"\1\1" + rpm_database[20:])
    found = [row[0] for row in connection.execute("SELECT blob FROM Packages")]
    connection.close()
    return found


def check(result: LayerScan) -> None:
    assert not result.notes
    assert sorted(names(result)) == ["rpm hello 2:1.2-3.el9", "rpm plain 1.2-3.el9"]
    hello = next(p for f in result.files for p in f.packages if p.name == "hello")
    assert (hello.architecture, hello.source, hello.license) == ("noarch", "hello", "MIT")
    assert hello.source_version == "1.2-3.el9"


def test_a_database_that_rpm_wrote(rpm_database: bytes) -> None:
    check(scan({"var/lib/rpm/rpmdb.sqlite": rpm_database}))
    check(scan({"usr/lib/sysimage/rpm/rpmdb.sqlite": rpm_database}))


def test_the_files_of_an_rpm_are_its_own(rpm_database: bytes, headers: list[bytes]) -> None:
    path = "usr/lib/python3/site-packages/hello.dist-info/METADATA"
    assert any(path in Header(blob).paths() for blob in headers)
    result = scan({"var/lib/rpm/rpmdb.sqlite": rpm_database, path: b"Name: hello\nVersion: 1.2\n"})
    assert {p.owner for f in result.files for p in f.packages if p.kind == "pypi"} == {"rpm"}


def berkeley(directory: Path, values: Sequence[bytes], *, page: int) -> bytes:
    """A hash of Berkeley DB, written by its own db_load."""
    lines = ["VERSION=3", "format=bytevalue", "type=hash", f"db_pagesize={page}", "HEADER=END"]
    for number, value in enumerate([b"\1\0\0\0", *values]):
        lines += [f" {number.to_bytes(4, 'little').hex()}", f" {value.hex()}"]
    target = directory / "Packages"
    run("db_load", str(target), input="\n".join([*lines, "DATA=END", ""]))
    return target.read_bytes()


@pytest.mark.parametrize("page", [512, 4096, 65536])
def test_a_database_of_berkeley_db(tmp_path: Path, headers: list[bytes], page: int) -> None:
    check(scan({"var/lib/rpm/Packages": berkeley(tmp_path, headers, page=page)}))


def ndb(values: Sequence[bytes], *, gap: int = 0) -> bytes:
    """A database of rpm's ndb, as rpmpkg.c writes it: Debian's rpm has it not compiled in."""
    slots, blobs = b"", b""
    for index, value in enumerate(values, 1):
        block = (4096 + len(blobs)) // 16
        blob = struct.pack("<4sIII", b"BlbS", index, 1, len(value)) + value
        blob += bytes(-(len(blob) + 12) % 16) + struct.pack("<II4s", 0, len(value), b"BlbE")
        slots += struct.pack("<4sIII", b"Slot", index, block, len(blob) // 16)
        blobs += blob
    slots += struct.pack("<4sIII", b"Slot", 0, 0, 0) * ((4096 - 32 - len(slots)) // 16)
    return b"RpmP" + struct.pack("<IIII", 0, 1, 1, len(values) + 1) + bytes(12) + slots + blobs


def test_a_database_of_ndb(headers: list[bytes]) -> None:
    check(scan({"usr/lib/sysimage/rpm/Packages.db": ndb(headers)}))


def test_a_damaged_database_is_noted_and_never_read_forever(tmp_path: Path, headers: list[bytes]) -> None:
    import random

    chance = random.Random(7)
    whole = {
        "var/lib/rpm/Packages": berkeley(tmp_path, headers * COUNT, page=512),
        "var/lib/rpm/Packages.db": ndb(headers * COUNT),
    }
    for path, data in whole.items():
        for _ in range(150):
            damaged = bytearray(data)
            for _ in range(chance.choice((1, 4, 64))):
                damaged[chance.randrange(len(damaged))] = chance.randrange(256)
            scan({path: bytes(damaged[: chance.choice((len(damaged), chance.randrange(len(damaged))))])})


@pytest.mark.skipif(shutil.which("go") is None, reason="there is no Go toolchain on this machine")
def test_a_program_that_go_built(tmp_path: Path) -> None:
    files = {
        "go.mod": "module example.org/app\n\ngo 1.18\n\nrequire example.org/lib v1.2.3\n\n"
        "replace example.org/lib => ./lib\n",
        "main.go": 'package main\n\nimport "example.org/lib"\n\nfunc main() { println(lib.Word) }\n',
        "lib/go.mod": "module example.org/lib\n\ngo 1.18\n",
        "lib/lib.go": 'package lib\n\nvar Word = "hello"\n',
    }
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    environment = {"PATH": "/usr/bin:/bin:/usr/local/go/bin", "HOME": str(tmp_path), "GOFLAGS": "-mod=mod",
                   "GOTOOLCHAIN": "local", "GOCACHE": str(tmp_path / "cache"), "CGO_ENABLED": "0",
                   "GOPROXY": "off"}  # fmt: skip
    go = shutil.which("go") or "go"
    version = run(go, "env", "GOVERSION", env=environment).strip().removeprefix("go")
    for flags in ("", "-s -w"):
        run(go, "build", "-ldflags", flags, "-o", "app", ".", cwd=tmp_path, env=environment)
        found = names(scan_file(tmp_path / "app", "usr/bin/app"))
        # what was replaced by a directory has no version
        assert found == [f"golang stdlib {version}", "golang example.org/app (devel)"]


@pytest.mark.parametrize(
    "program", ["/usr/bin/docker", "/usr/sbin/dockerd", "/usr/bin/skopeo", "/usr/bin/containerd"]
)
def test_a_go_program_of_debian_is_read_as_go_reads_it(program: str) -> None:
    if shutil.which("go") is None or not Path(program).exists():
        pytest.skip(f"there is no go, or no {program}, on this machine")
    lines = [line.split("\t")[1:] for line in run("go", "version", "-m", program).splitlines()[1:]]
    wanted = {f"golang {f[1]} {f[2]}" for f in lines if f[0] == "dep" and len(f) > 2}
    replaced = {f"golang {f[1]} {f[2]}" for f in lines if f[0] == "=>" and len(f) > 2}
    found = set(names(scan_file(Path(program))))
    assert any(name.startswith("golang stdlib ") for name in found)
    assert replaced <= found and len(wanted - found) <= len([f for f in lines if f[0] == "=>"])


def test_a_package_that_npm_installed(tmp_path: Path) -> None:
    if shutil.which("npm") is None:
        pytest.skip("there is no npm on this machine")
    source = tmp_path / "thing"
    source.mkdir()
    (source / "package.json").write_text('{"name":"@scope/thing","version":"1.2.3","license":"MIT"}')
    app = tmp_path / "app"
    app.mkdir()
    packed = run("npm", "pack", "--silent", cwd=source).strip()
    run("npm", "install", "--offline", "--silent", "--no-audit", str(source / packed), cwd=app)
    files = {str(path.relative_to(tmp_path)): path.read_bytes() for path in app.rglob("package.json")}
    assert names(scan(files)) == ["npm @scope/thing 1.2.3"]
