"""The same Dockerfiles built by Cove and by dockerd's classic builder give the same images: files, and configuration.

Compared is what a container sees: every path with its kind, mode, owner, content or target, as the layers of
`docker save` add up to it. What differs on purpose is said with the case.
"""

from __future__ import annotations

import hashlib
import io
import json
import tarfile
from collections.abc import Iterator
from typing import Any

import pytest

from tests.buildkit import Built, Files, context
from tests.clients.engines import Engine, running_engine
from tests.imagekit import Dir, Entry, File, Hardlink, Symlink, make_layer

CONFIG = ("Env", "Cmd", "Entrypoint", "WorkingDir", "User", "Labels", "ExposedPorts", "Volumes")
CONFIG += ("Healthcheck", "Shell", "StopSignal", "OnBuild")


@pytest.fixture(scope="module")
def cove() -> Iterator[Engine]:
    yield from running_engine("cove")


@pytest.fixture(scope="module")
def dockerd() -> Iterator[Engine]:
    yield from running_engine("dockerd")


def built(engine: Engine, files: Files, **query: Any) -> Built:
    client = engine.client.api
    response = client._post(
        client._url("/build"),
        data=context(files),
        params={"networkmode": "none", "rm": "1", **query},
        headers={"Content-Type": "application/x-tar"},
    )
    if response.status_code != 200:
        return Built(response.status_code, [], response.json()["message"])
    return Built(200, [json.loads(line) for line in response.content.splitlines() if line.strip()])


def image_of(engine: Engine, image: str) -> tuple[dict[str, Any], dict[str, tuple[object, ...]]]:
    """Configuration and files of an image; whiteouts are applied."""
    data = b"".join(engine.client.images.get(image).save())
    files: dict[str, tuple[object, ...]] = {}
    with tarfile.open(fileobj=io.BytesIO(data)) as archive:
        manifest = json.load(archive.extractfile("manifest.json"))[0]  # type: ignore[arg-type]
        config = json.load(archive.extractfile(manifest["Config"]))["config"]  # type: ignore[arg-type]
        for name in manifest["Layers"]:
            with tarfile.open(fileobj=archive.extractfile(name)) as layer:
                _apply(layer, files)
    return {key: config.get(key) or None for key in CONFIG}, files


def _apply(layer: tarfile.TarFile, files: dict[str, tuple[object, ...]]) -> None:
    for member in layer.getmembers():
        path = member.name.strip("/").removeprefix("./")
        above, _, base = path.rpartition("/")
        if base == ".wh..wh..opq":
            _remove(files, above + "/" if above else "")
        elif base.startswith(".wh."):
            gone = f"{above}/{base[4:]}".strip("/")
            files.pop(gone, None)
            _remove(files, gone + "/")
    for member in layer.getmembers():
        path = member.name.strip("/").removeprefix("./")
        if not path or path.rpartition("/")[2].startswith(".wh."):
            continue
        kind = "file" if member.islnk() or member.isreg() else member.type.decode()
        source = layer.extractfile(member) if kind == "file" else None
        content = hashlib.sha256(source.read()).hexdigest() if source is not None else member.linkname
        mode = 0 if member.issym() else member.mode & 0o7777
        files[path] = (kind, oct(mode), member.uid, member.gid, content)


def _remove(files: dict[str, tuple[object, ...]], prefix: str) -> None:
    for path in [path for path in files if path.startswith(prefix)]:
        del files[path]


TREE: tuple[Entry, ...] = (
    File("a.txt", b"a\n"),
    File("b.txt", b"b\n", mode=0o600),
    File("run.sh", b"#!/bin/sh\necho run\n", mode=0o755),
    Dir("sub", mode=0o750),
    File("sub/one", b"1"),
    Dir("sub/deep"),
    File("sub/deep/two", b"2", mode=0o640),
    Symlink("sub/link", "one"),
    Symlink("top", "sub/deep"),
    Hardlink("hard", "a.txt"),
    File("in.tar", make_layer([File("from/tar", b"t", uid=5, gid=6, mode=0o604), Symlink("from/l", "tar")])),
    File("odd name", b"odd"),
)

CASES = {
    "plain": "FROM busybox\nRUN echo 1 > /one\n",
    "shell and exec form": 'FROM busybox\nRUN ["/bin/sh", "-c", "echo $0 > /zero"]\nRUN echo $HOME > /home.txt\n',
    "copy a file": "FROM busybox\nCOPY a.txt /a\nCOPY a.txt /dir/\nCOPY b.txt /x/y/z\n",
    "copy several": "FROM busybox\nCOPY a.txt b.txt run.sh /into/\n",
    "copy with a wildcard": "FROM busybox\nCOPY *.txt /t/\nCOPY s*/one /o/\nCOPY ?.txt /u/\n",
    "copy a directory": "FROM busybox\nCOPY sub /sub\nCOPY sub /sub2/\nCOPY sub/ /sub3\n",
    "copy everything": "FROM busybox\nCOPY . /app\n",
    "copy into what is there": "FROM busybox\nRUN mkdir -m 700 /d && echo x > /d/one\nCOPY sub /d/\n",
    "copy over a file": "FROM busybox\nRUN echo old > /f && chmod 777 /f\nCOPY a.txt /f\n",
    "copy through a link of the image": "FROM busybox\nRUN mkdir /real && ln -s /real /l\nCOPY a.txt /l/\n",
    "copy a link that is named": "FROM busybox\nCOPY top /t\nCOPY sub/link /l\n",
    "copy names with spaces": 'FROM busybox\nCOPY ["odd name", "/with space/"]\n',
    "copy to a relative path": "FROM busybox\nWORKDIR /w\nCOPY a.txt b.txt rel/\nCOPY run.sh .\n",
    "chown by numbers": "FROM busybox\nCOPY --chown=12:34 sub /s\nCOPY --chown=7 a.txt /n/a\n",
    "chown by names": "FROM busybox\nRUN echo ada:x:777:777::/:/bin/sh >> /etc/passwd\n"
    "RUN echo crew:x:888: >> /etc/group && echo ada:x:777: >> /etc/group\n"
    "COPY --chown=ada:crew sub /s\nCOPY --chown=ada a.txt /b\n",
    "add a file and an archive": "FROM busybox\nADD a.txt /x/\nADD in.tar /tar/\n",
    "add with chown": "FROM busybox\nADD --chown=3:4 sub /s\n",
    "workdir": "FROM busybox\nWORKDIR /a\nWORKDIR b/c\nRUN pwd > here\nWORKDIR /tmp\n",
    "env": 'FROM busybox\nENV A=1 B="two words"\nENV C $A-${B}\nRUN echo "$A $B $C" > /env\nENV PATH=/x:$PATH\n',
    "args": "ARG V=latest\nFROM busybox:$V\nARG X=default\nARG Y\nRUN echo $X $Y > /args\nENV Z=${X:-none}\n",
    "user": "FROM busybox\nRUN echo ada:x:777:777::/:/bin/sh >> /etc/passwd\n"
    "USER ada\nRUN id > /tmp/id && touch /tmp/mine\n",
    "stages": "FROM busybox AS one\nRUN mkdir /o && echo 1 > /o/f && chown 9:9 /o/f && ln -s f /o/l\n"
    "FROM busybox\nCOPY --from=one /o /o\nCOPY --from=0 /o/f /g\n",
    "stage on stage": "FROM busybox AS base\nENV A=1\nRUN echo b > /b\nFROM base\nRUN echo $A >> /b\n",
    "target": "FROM busybox AS first\nRUN echo 1 > /1\nFROM first AS second\nRUN echo 2 > /2\n",
    "from scratch": "FROM scratch\nCOPY a.txt /a\nCOPY sub /s/\n",
    "delete and make again": "FROM busybox\nRUN mkdir -p /d/e && touch /d/e/f /d/g\n"
    "RUN rm -r /d/e && rm /d/g && mkdir /d/e && touch /d/e/new\nRUN rm -r /d\n",
    "modes": "FROM busybox\nRUN touch /s && chmod 4755 /s && mkdir -m 1777 /t && mkfifo /p && chown 1:2 /t\n"
    "RUN chmod 600 /s && chmod g+s /t\n",
    "hard links": "FROM busybox\nRUN echo x > /x && ln /x /y\nRUN echo more >> /x\n",
    "configuration": "FROM busybox\nLABEL a=1 b='2 3'\nEXPOSE 80 443/tcp 53/udp\nVOLUME /data /more\n"
    "STOPSIGNAL SIGINT\nHEALTHCHECK --interval=5s --retries=2 CMD true\nWORKDIR /w\nUSER 1:1\n"
    'ENTRYPOINT ["/bin/sh"]\nCMD ["-c", "true"]\nONBUILD RUN echo child\n',
    "shell": 'FROM busybox\nSHELL ["/bin/sh", "-ec"]\nRUN false || true; echo s > /s\nCMD echo hi\n',
    "entrypoint in shell form": "FROM busybox\nENTRYPOINT echo hi\n",
    "a new entrypoint drops the command": 'FROM busybox\nENTRYPOINT ["/bin/true"]\n',
    "comments and continuation": "# hello\nFROM busybox\nRUN echo a \\\n# within\n  b > /c && \\\n  echo d >> /c\n",
}


@pytest.mark.parametrize("name", CASES)
def test_the_image_is_the_same(cove: Engine, dockerd: Engine, name: str) -> None:
    files = [File("Dockerfile", CASES[name].encode()), *TREE]
    query: dict[str, Any] = {"buildargs": json.dumps({"Y": "given"}), "labels": json.dumps({"by": "test"})}
    if name == "target":
        query["target"] = "first"
    if name != "args":
        query.pop("buildargs")
    mine, theirs = built(cove, files, **query), built(dockerd, files, **query)
    assert not theirs.error, theirs.error
    assert not mine.error, mine.error
    my_config, my_files = image_of(cove, mine.image)
    their_config, their_files = image_of(dockerd, theirs.image)
    differing = {
        path: (my_files.get(path), their_files.get(path))
        for path in {*my_files, *their_files}
        if my_files.get(path) != their_files.get(path)
    }
    assert not differing
    assert my_config == their_config


FAILURES = {
    "exit code": "FROM busybox\nRUN exit 5\n",
    "missing file": "FROM busybox\nCOPY nothing /x\n",
    "no program": 'FROM busybox\nRUN ["/nothing"]\n',
}


@pytest.mark.parametrize("name", FAILURES)
def test_a_failure_says_the_same(cove: Engine, dockerd: Engine, name: str) -> None:
    files = [File("Dockerfile", FAILURES[name].encode()), *TREE]
    mine, theirs = built(cove, files), built(dockerd, files)
    if name == "no program":  # dockerd tells of its own runtime
        assert mine.error.endswith("returned a non-zero code: 127") and theirs.error
        return
    assert (mine.error, mine.code) == (theirs.error, theirs.code)


def _shape(text: str) -> list[str]:
    """A stream's lines without ids."""
    import re

    return [re.sub(r"\b[0-9a-f]{12}\b", "ID", line) for line in text.splitlines()]


def test_the_stream_is_the_same(cove: Engine, dockerd: Engine) -> None:
    files = [File("Dockerfile", b"FROM busybox\nCOPY a.txt /\nRUN echo out; echo err >&2\n"), *TREE]
    for _ in range(2):
        mine, theirs = built(cove, files, t="same:1"), built(dockerd, files, t="same:1")
        assert _shape(mine.text) == _shape(theirs.text)
        assert [list(line) for line in mine.lines if "stream" not in line] == [
            list(line) for line in theirs.lines if "stream" not in line
        ]
