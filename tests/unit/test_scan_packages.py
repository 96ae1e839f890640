"""Which packages are found in which files, and that no file stops the search."""

from __future__ import annotations

import io
import json
import struct
import subprocess
import sys
import zipfile
import zlib
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cove.scan import binaries, debs, jars, languages, layer, rpmdb
from cove.scan.distribution import parse_os_release
from cove.scan.elf import Elf
from cove.scan.model import Malformed, Package
from cove.scan.rpmheader import Header
from tests.scankit import MemoryFile, names, scan

STATUS = b"""Package: curl
Status: install ok installed
Architecture: amd64
Version: 7.88.1-10+deb12u5
Description: command line tool
 Version: 9 in a description is no field

Package: libblkid1
Status: install ok installed
Source: util-linux (2.38.1-5)
Version: 2.38.1-5+b1
Architecture: amd64

Package: gone
Status: deinstall ok config-files
Version: 1.0
Architecture: all

Package: half
Status: install reinstreq half-installed
Version: 2.0
Architecture: all
"""


def test_dpkg_tells_packages_with_their_sources_and_leaves_out_what_is_gone() -> None:
    found = list(debs.parse_dpkg(STATUS))
    assert [(p.name, p.version, p.source, p.source_version) for p in found] == [
        ("curl", "7.88.1-10+deb12u5", "curl", "7.88.1-10+deb12u5"),
        ("libblkid1", "2.38.1-5+b1", "util-linux", "2.38.1-5"),
        ("half", "2.0", "half", "2.0"),
    ]


def test_this_machine_s_dpkg_is_read_as_dpkg_reads_it() -> None:
    form = "${db:Status-Abbrev} ${Package} ${Version} ${source:Package} ${source:Version}\n"
    told = subprocess.run(["dpkg-query", "-W", "-f", form], capture_output=True, text=True, check=True).stdout
    wanted = sorted(line.split()[1:] for line in told.splitlines() if not line.startswith(("rc", "un")))
    found = debs.parse_dpkg(Path("/var/lib/dpkg/status").read_bytes())
    assert sorted([p.name, p.version, p.source, p.source_version] for p in found) == wanted


def test_an_image_without_dpkg_has_a_file_for_each_package() -> None:
    result = scan(
        {
            "var/lib/dpkg/status.d/tzdata": b"Package: tzdata\nVersion: 2024a-0+deb12u1\nArchitecture: all\n",
            "var/lib/dpkg/status.d/tzdata.md5sums": b"Package: no\nVersion: 1\n",
        }
    )
    assert names(result) == ["deb tzdata 2024a-0+deb12u1"]


APK = b"""C:Q1abc=
P:musl
V:1.2.4-r2
A:x86_64
L:MIT
o:musl
F:lib
R:ld-musl-x86_64.so.1

P:libcrypto3
V:3.1.4-r1
A:x86_64
L:Apache-2.0
o:openssl
"""


def test_apk_tells_packages_with_their_origins() -> None:
    found = list(debs.parse_apk(APK))
    assert [(p.name, p.version, p.source, p.license) for p in found] == [
        ("musl", "1.2.4-r2", "musl", "MIT"),
        ("libcrypto3", "3.1.4-r1", "openssl", "Apache-2.0"),
    ]
    assert list(debs.apk_paths(APK)) == ["lib/ld-musl-x86_64.so.1"]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ('ID=debian\nVERSION_ID="12"\nPRETTY_NAME="Debian GNU/Linux 12"\n', ("debian", "12")),
        ("ID='rocky'\nVERSION_ID='9.3'\n", ("rocky", "9.3")),
        ('ID="alpine"\r\nVERSION_ID=3.18.4\n# a note\nnonsense', ("alpine", "3.18.4")),
        ("", ("", "")),
        ('NAME="a\\"b"\n', ("", "")),
    ],
)
def test_os_release(text: str, expected: tuple[str, str]) -> None:
    found = parse_os_release(text.encode())
    assert (found.id, found.version) == expected


METADATA = b"""Metadata-Version: 2.1
Name: Flask_Login
Version: 0.6.3
Classifier: License :: OSI Approved :: MIT License
Requires-Dist: Flask

Version: 9 is what the description says
"""


def test_python_packages_are_read_from_their_metadata() -> None:
    result = scan(
        {
            "usr/lib/python3/site-packages/Flask_Login-0.6.3.dist-info/METADATA": METADATA,
            "opt/x/old.egg-info": b"Name: old\nVersion: 1\nLicense: BSD\n",
            "opt/x/older.egg-info/PKG-INFO": b"Name: older\r\nVersion: 2\r\n",
            "opt/x/METADATA": METADATA,
        }
    )
    assert names(result) == ["pypi old 1", "pypi older 2", "pypi Flask_Login 0.6.3"]
    assert languages.normalized_python("Flask_Login") == "flask-login"


def test_a_real_virtual_environment_is_read_as_its_own_library_reads_it() -> None:
    site = Path(next(path for path in sys.path if path.endswith("site-packages")))
    files = {
        str(path.relative_to(site)): path.read_bytes()
        for path in site.rglob("*")
        if path.name in ("METADATA", "PKG-INFO")
    }
    import importlib.metadata

    wanted = {(d.metadata["Name"], d.version) for d in importlib.metadata.distributions(path=[str(site)])}
    found = {(p.name, p.version) for f in scan(files).files for p in f.packages}
    assert len(wanted) > 20 and wanted <= found


def test_npm_packages_are_read_where_npm_puts_them() -> None:
    one = json.dumps({"name": "left-pad", "version": "1.3.0", "license": "WTFPL"}).encode()
    scoped = json.dumps({"name": "@babel/core", "version": "7.23.0", "license": {"type": "MIT"}}).encode()
    result = scan(
        {
            "app/node_modules/left-pad/package.json": one,
            "app/node_modules/@babel/core/package.json": scoped,
            "app/node_modules/left-pad/test/package.json": b'{"name": "no", "version": "1"}',
            "app/package.json": b'{"name": "app", "version": "1"}',
            "app/node_modules/bare/package.json": b'{"type": "module"}',
            "app/node_modules/broken/package.json": b'{"name": ',
            "app/node_modules/deep/package.json": b'{"name":' + b"[" * 5000 + b"]" * 5000 + b"}",
        }
    )
    assert names(result) == ["npm @babel/core 7.23.0", "npm left-pad 1.3.0"]
    assert len(result.notes) == 2 and all("isn't JSON" in note for note in result.notes)


def test_gems_and_crates() -> None:
    gemspec = b'Gem::Specification.new do |s|\n  s.name = "rack".freeze\n  s.version = "2.2.8"\nend\n'
    lock = b"""version = 3
[[package]]
name = "serde"
version = "1.0.190"
source = "registry+https://github.com/rust-lang/crates.io-index"
[[package]]
name = "mine"
version = "0.1.0"
"""
    result = scan(
        {"usr/lib/ruby/gems/3.1.0/specifications/rack-2.2.8.gemspec": gemspec, "src/Cargo.lock": lock}
    )
    assert names(result) == ["cargo serde 1.0.190", "gem rack 2.2.8"]


def jar(files: dict[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in files.items():
            archive.writestr(name, data)
    return buffer.getvalue()


POM = b"#Generated\ngroupId=org.apache.logging.log4j\nartifactId=log4j-core\nversion=2.14.1\n"


def test_jars_tell_their_coordinates_and_those_of_jars_in_them() -> None:
    inner = jar({"META-INF/maven/org.apache.logging.log4j/log4j-core/pom.properties": POM})
    manifest = (
        b"Manifest-Version: 1.0\r\nBundle-SymbolicName: com.example.things\r\nImplementation-Version: 1.2\r\n"
    )
    result = scan(
        {
            "app/boot.jar": jar({"BOOT-INF/lib/log4j-core-2.14.1.jar": inner}),
            "app/things-1.2.jar": jar({"META-INF/MANIFEST.MF": manifest}),
            "app/broken.jar": inner[:-30],
        }
    )
    assert names(result) == [
        "maven org.apache.logging.log4j:log4j-core 2.14.1",
        "maven com.example:things 1.2",
    ]
    assert len(result.notes) == 1 and "broken.jar: it isn't a sound zip" in result.notes[0]


def test_a_jar_that_unpacks_to_too_much_is_left_alone() -> None:
    bomb = jar({"lib/inner.jar": bytes(80 << 20)})
    result = scan({"bomb.jar": bomb})
    assert not result.files and "up to 67108864 are read" in result.notes[0]


def test_go_modules_replaced_ones_and_the_main_one() -> None:
    text = (
        "path\texample.org/app\nmod\texample.org/app\t(devel)\t\n"
        "dep\tgolang.org/x/net\tv0.7.0\th1:abc=\ndep\tgithub.com/a/b\tv1.0.0\n=>\tgithub.com/c/b\tv1.0.1\th1:d=\n"
        "dep\tlocal.example/x\tv0.0.0\n=>\t./local\t\nbuild\t-ldflags\tx\n"
    )
    found = [f"{p.name} {p.version}" for p in binaries.parse_modules(text)]
    assert found == ["example.org/app (devel)", "golang.org/x/net v0.7.0", "github.com/c/b v1.0.1"]


def elf(section: str, content: bytes, *, address: int = 0x400000) -> bytes:
    """A 64-bit ELF file with one section and one segment that is writable."""
    names = b"\0.shstrtab\0" + section.encode() + b"\0"
    data_at = 4096
    names_at = data_at + len(content)
    table_at = names_at + len(names)
    head = b"\x7fELF" + bytes([2, 1, 1]) + bytes(9)
    head += struct.pack("<HHIQQQIHHHHHH", 2, 62, 1, address, 64, table_at, 0, 64, 56, 1, 64, 3, 1)
    segment = struct.pack("<IIQQQQQQ", 1, 6, data_at, address, address, len(content), len(content), 4096)
    sections = bytes(64)
    sections += struct.pack("<IIQQQQIIQQ", 1, 3, 0, 0, names_at, len(names), 0, 0, 1, 0)
    sections += struct.pack("<IIQQQQIIQQ", 11, 1, 3, address, data_at, len(content), 0, 0, 16, 0)
    return (head + segment).ljust(data_at, b"\0") + content + names + sections


MODULES = (
    b"0123456789abcdef"
    + b"path\tx\nmod\tx.org/app\tv1.2.3\t\ndep\tgolang.org/x/net\tv0.7.0\th1:=\n"
    + b"0" * 16
)
GO = ["golang stdlib 1.17.5", "golang x.org/app v1.2.3", "golang golang.org/x/net v0.7.0"]


def test_a_go_program_of_the_new_form() -> None:
    blob = (
        (binaries.MAGIC + bytes([8, 2])).ljust(32, b"\0") + b"\x08go1.17.5" + bytes([len(MODULES)]) + MODULES
    )
    assert names(scan({"bin/app": elf(".go.buildinfo", blob)})) == GO


def test_a_go_program_of_the_old_form_with_pointers() -> None:
    base = 0x400000
    version_at, modules_at = 64, 96
    strings = struct.pack("<QQ", base + 128, 8) + bytes(16) + struct.pack("<QQ", base + 160, len(MODULES))
    blob = binaries.MAGIC + bytes([8, 0]) + struct.pack("<QQ", base + version_at, base + modules_at)
    blob = (blob.ljust(64, b"\0") + strings).ljust(128, b"\0") + b"go1.17.5"
    blob = blob.ljust(160, b"\0") + MODULES
    assert names(scan({"bin/app": elf(".go.buildinfo", blob)})) == GO


@pytest.mark.parametrize("flags", [0, 2])
def test_a_go_program_that_claims_too_much_is_noted(flags: int) -> None:
    blob = (binaries.MAGIC + bytes([3 if not flags else 8, flags])).ljust(32, b"\xff") + b"\xff" * 64
    result = scan({"bin/app": elf(".go.buildinfo", blob)})
    assert not result.files and len(result.notes) == 1


def test_crates_that_cargo_auditable_noted() -> None:
    audit = {
        "packages": [
            {"name": "app", "version": "0.1.0", "source": "local", "root": True, "dependencies": [1]},
            {"name": "serde", "version": "1.0.190", "source": "crates.io"},
            {"name": "cc", "version": "1.0.0", "source": "crates.io", "kind": "build"},
        ]
    }
    packed = zlib.compress(json.dumps(audit).encode())
    assert names(scan({"bin/app": elf(".dep-v0", packed)})) == ["cargo serde 1.0.190"]
    bomb = zlib.compress(bytes(64 << 20))
    result = scan({"bin/app": elf(".dep-v0", bomb)})
    assert "larger than" in result.notes[0]


def test_a_language_s_package_that_the_distribution_brought_says_so() -> None:
    lists = b"/.\n/usr\n/usr/lib/python3/dist-packages/six-1.16.0.egg-info/PKG-INFO\n"
    result = scan(
        {
            "var/lib/dpkg/info/python3-six.list": lists,
            "usr/lib/python3/dist-packages/six-1.16.0.egg-info/PKG-INFO": b"Name: six\nVersion: 1.16.0\n",
            "opt/six.dist-info/METADATA": b"Name: six\nVersion: 1.17.0\n",
        }
    )
    owners = {p.version: p.owner for f in result.files for p in f.packages}
    assert owners == {"1.16.0": "deb", "1.17.0": ""}


# --- hostile -------------------------------------------------------------------------------


def swallow(work: object) -> None:
    try:
        assert callable(work)
        work()
    except Malformed as error:
        assert str(error).isprintable() and len(str(error)) < 2000


@settings(max_examples=200, deadline=None)
@given(st.binary(max_size=2000))
def test_no_bytes_make_a_parser_fail_otherwise_than_by_its_own_error(data: bytes) -> None:
    for parse in (
        debs.parse_dpkg, debs.parse_apk, languages.parse_python, languages.parse_npm, languages.parse_gemspec,
        languages.parse_cargo_lock, jars.parse_pom_properties, debs.apk_paths, debs.listed_paths,
    ):  # fmt: skip
        swallow(lambda parse=parse: list(parse(data)))
    swallow(lambda: parse_os_release(data))
    swallow(lambda: list(binaries.parse_modules(data.decode("latin-1"))))
    for name in ("rpmdb.sqlite", "Packages.db", "Packages"):
        swallow(lambda name=name: list(rpmdb.read_database(name, data)))
    swallow(lambda: list(Header(data).paths()))
    swallow(lambda: Header(data).package())
    swallow(lambda: list(jars.read_jar(MemoryFile("a.jar", data))))
    swallow(lambda: Elf(MemoryFile("a", b"\x7fELF" + data)))


@settings(max_examples=200, deadline=None)
@given(st.data())
def test_a_damaged_program_jar_or_database_ends_in_a_note(data: st.DataObject) -> None:
    blob = (
        (binaries.MAGIC + bytes([8, 2])).ljust(32, b"\0") + b"\x08go1.17.5" + bytes([len(MODULES)]) + MODULES
    )
    whole = data.draw(
        st.sampled_from(
            [
                ("bin/app", elf(".go.buildinfo", blob)),
                ("bin/crates", elf(".dep-v0", zlib.compress(b'{"packages":[]}'))),
                ("a.jar", jar({"lib/b.jar": jar({"META-INF/maven/a/b/pom.properties": POM})})),
            ]
        )
    )
    path, content = whole[0], bytearray(whole[1])
    for _ in range(data.draw(st.integers(1, 8))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    cut = data.draw(st.integers(0, len(content)))
    for damaged in (bytes(content), bytes(content[:cut])):
        result = scan({path: damaged})
        assert all(isinstance(p, Package) for f in result.files for p in f.packages)


def test_kinds_go_by_place_and_name() -> None:
    assert layer.kind_of("var/lib/dpkg/status") == "dpkg"
    assert layer.kind_of("x/var/lib/dpkg/status") == ""
    assert layer.kind_of("lib/apk/db/installed") == "apk"
    assert layer.kind_of("var/lib/rpm/Packages") == "rpm"
    assert layer.kind_of("usr/lib/sysimage/rpm/rpmdb.sqlite") == "rpm"
    assert layer.kind_of("home/Packages") == ""
    assert layer.kind_of("node_modules/a/package.json") == "npm"
    assert layer.kind_of("node_modules/a/b/package.json") == ""
