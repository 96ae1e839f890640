"""What the members of an image archive mean, without unpacking any."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cove.image.jobs import Member
from cove.image.manifests import (
    ArchiveIndex,
    LayerBlob,
    SavedImage,
    build_documents,
    build_manifest,
    chain_ids,
    history_of,
    parse_config,
)
from cove.image.references import parse_reference
from cove.image.types import Limits
from cove.model.errors import Invalid
from tests.imagekit import digest_of, make_config

LAYER = "sha256:" + "1" * 64


def blob(data: bytes) -> Member:
    return Member(
        name=f"blobs/sha256/{digest_of(data)[7:]}", digest=digest_of(data), size=len(data), data=data
    )


def layer_blob(digest: str = LAYER) -> Member:
    return Member(name=f"blobs/sha256/{digest[7:]}", digest=digest, size=10, layer=0, diff_id=LAYER)


def document(name: str, content: object) -> Member:
    data = content if isinstance(content, bytes) else json.dumps(content).encode()
    return Member(name=name, digest=digest_of(data), size=len(data), data=data)


def described(member: Member, **more: object) -> dict[str, object]:
    return {"digest": member.digest, "size": member.size, **more}


def images(*members: Member, known: dict[str, str] | None = None, limits: Limits | None = None):
    return ArchiveIndex(members, known or {}, limits or Limits()).images("amd64")


CONFIG = blob(make_config([LAYER]))
MANIFEST = blob(json.dumps({"config": described(CONFIG), "layers": [described(layer_blob())]}).encode())


def test_a_docker_archive_gives_its_images_and_names() -> None:
    manifest = document("manifest.json", [{"Config": CONFIG.name, "RepoTags": ["a:1", "b"], "Layers": ["l"]}])
    layer = Member(name="l", digest=LAYER, size=10, layer=0, diff_id=LAYER)
    (found,) = images(CONFIG, layer, manifest)
    assert found.image.id == CONFIG.digest
    assert [name.familiar for name in found.names] == ["a:1", "b:latest"]
    assert found.manifest is None


def test_links_of_old_archives_are_followed() -> None:
    manifest = document("manifest.json", [{"Config": CONFIG.name, "Layers": ["b/layer.tar"]}])
    layer = Member(name="a/layer.tar", digest=LAYER, size=10, layer=0, diff_id=LAYER)
    link = Member(name="b/layer.tar", link="a/layer.tar")
    assert images(CONFIG, layer, link, manifest)[0].layers == (layer,)
    loop = Member(name="b/layer.tar", link="b/layer.tar")
    with pytest.raises(Invalid, match="chain"):
        images(CONFIG, loop, manifest)


def test_the_original_manifest_is_kept_when_both_documents_are_there() -> None:
    manifest = document(
        "manifest.json", [{"Config": CONFIG.name, "RepoTags": ["a"], "Layers": [layer_blob().name]}]
    )
    index = document("index.json", {"manifests": [described(MANIFEST)]})
    (found,) = images(CONFIG, layer_blob(), MANIFEST, manifest, index)
    assert found.manifest == MANIFEST.data
    assert found.manifest_layers == (LAYER,)


def test_a_nested_index_gives_the_platform_of_this_machine() -> None:
    other = blob(b'{"config":{"digest":"sha256:' + b"9" * 64 + b'"}}')
    nested = blob(
        json.dumps(
            {
                "manifests": [
                    described(other, platform={"os": "linux", "architecture": "arm64"}),
                    described(MANIFEST, platform={"os": "linux", "architecture": "amd64"}),
                    described(other, annotations={"vnd.docker.reference.type": "attestation-manifest"}),
                ]
            }
        ).encode()
    )
    media = "application/vnd.oci.image.index.v1+json"
    index = {
        "manifests": [described(nested, mediaType=media, annotations={"io.containerd.image.name": "x:1"})]
    }
    (found,) = images(CONFIG, layer_blob(), MANIFEST, nested, document("index.json", index))
    assert found.image.id == CONFIG.digest
    assert [name.familiar for name in found.names] == ["x:1"]


def test_an_archive_for_another_platform_says_so() -> None:
    index = {"manifests": [described(MANIFEST, platform={"os": "linux", "architecture": "arm64"})]}
    with pytest.raises(Invalid, match="no image for linux/amd64"):
        images(CONFIG, layer_blob(), MANIFEST, document("index.json", index))


def test_an_index_that_contains_itself_ends() -> None:
    inner = Member(name="blobs/sha256/" + "5" * 64, digest="sha256:" + "5" * 64, size=3, data=b"")
    media = "application/vnd.oci.image.index.v1+json"
    data = json.dumps({"manifests": [{"digest": inner.digest, "mediaType": media}]}).encode()
    inner = Member(name=inner.name, digest=inner.digest, size=len(data), data=data)
    with pytest.raises(Invalid, match="nest deeper"):
        images(inner, document("index.json", data))


def test_a_layer_the_store_knows_need_not_be_in_the_archive() -> None:
    index = document("index.json", {"manifests": [described(MANIFEST)]})
    (found,) = images(CONFIG, MANIFEST, index, known={LAYER: LAYER})
    assert found.layers[0].known


@pytest.mark.parametrize(
    ("members", "message"),
    [
        ([document("x", b"{}")], "neither manifest.json"),
        ([document("manifest.json", b"{")], "manifest.json is malformed"),
        ([document("manifest.json", b"[1]")], r"manifest.json is malformed: .*\$\[0\]"),
        ([document("manifest.json", [{"Config": "c"}])], "names c and doesn't have it"),
        ([CONFIG, document("manifest.json", [{"Config": CONFIG.name}])], "1 layers by its configuration and 0"),
        (
            [CONFIG, document("manifest.json", [{"Config": CONFIG.name, "Layers": [CONFIG.name]}])],
            "isn't a tar archive",
        ),
        (
            [
                CONFIG,
                Member(name="l", digest="sha256:2", layer=0, diff_id="sha256:2"),
                document("manifest.json", [{"Config": CONFIG.name, "Layers": ["l"]}]),
            ],
            "invalid diffID for layer 0: expected 'sha256:1111",
        ),
        (
            [Member(name="blobs/sha256/" + "1" * 64, digest="sha256:" + "2" * 64), document("manifest.json", [])],
            "another content than its name says",
        ),
        ([document("index.json", {"manifests": [{"digest": "md5:x"}]})], "unsupported digest"),
        ([document("index.json", {"manifests": [{"digest": LAYER}]}), layer_blob()], "a layer and not a document"),
        (
            [document("manifest.json", [{"Config": CONFIG.name, "Layers": ["l"], "RepoTags": ["A b"]}]),
             CONFIG, Member(name="l", digest=LAYER, layer=0, diff_id=LAYER)],
            "invalid reference format",
        ),
        ([Member(name="manifest.json", digest="sha256:1", size=5 << 20)], "5242880 bytes; the limit is 4194304"),
    ],
)  # fmt: skip
def test_a_wrong_archive_gets_one_clear_sentence(members: list[Member], message: str) -> None:
    with pytest.raises(Invalid, match=message) as caught:
        images(*members)
    assert "\n" not in str(caught.value)


def test_a_configuration_with_nulls_reads_as_docker_reads_it() -> None:
    config = {"Cmd": None, "Env": None, "Labels": None, "ExposedPorts": None, "Healthcheck": None}
    image = parse_config(make_config([], config, history=None, author=None), LAYER, Limits())
    assert image.config.command == () and image.config.labels == {} and image.history == ()


def test_too_many_layers_and_foreign_systems_are_refused() -> None:
    with pytest.raises(Invalid, match="128 layers; the limit is 127"):
        parse_config(make_config([LAYER] * 128), LAYER, Limits())
    with pytest.raises(Invalid, match="cannot load windows image on linux"):
        parse_config(make_config([], os="windows"), LAYER, Limits())


@given(st.binary(max_size=200))
def test_noise_as_a_document_raises_invalid(data: bytes) -> None:
    with pytest.raises(Invalid):
        images(document("manifest.json", data + b"x"))


def test_documents_say_the_same_every_time() -> None:
    saved = SavedImage(
        image_id=CONFIG.digest,
        manifest_digest=MANIFEST.digest,
        manifest_size=5,
        layers=(LAYER,),
        names=(parse_reference("a:1"), parse_reference("r.example/b:2")),
    )
    documents = dict(build_documents([saved]))
    assert documents == dict(build_documents([saved]))
    assert json.loads(documents["manifest.json"])[0]["RepoTags"] == ["a:1", "r.example/b:2"]
    assert json.loads(documents["repositories"]) == {"a": {"1": "1" * 64}, "r.example/b": {"2": "1" * 64}}
    names = [
        m["annotations"]["io.containerd.image.name"] for m in json.loads(documents["index.json"])["manifests"]
    ]
    assert names == ["docker.io/library/a:1", "r.example/b:2"]
    manifest = build_manifest(CONFIG.digest, 3, [LayerBlob(digest=LAYER, size=4, compression="zstd")])
    assert json.loads(manifest)["layers"][0]["mediaType"].endswith("tar+zstd")


def test_chain_ids_follow_the_specification() -> None:
    a, b = "sha256:" + "a" * 64, "sha256:" + "b" * 64
    assert chain_ids([a, b]) == [a, digest_of(f"{a} {b}".encode())]


def test_history_gives_sizes_to_the_entries_that_have_layers() -> None:
    history = [{"created_by": "one"}, {"created_by": "env", "empty_layer": True}, {"created_by": "two"}]
    image = parse_config(make_config([LAYER, LAYER], history=history), LAYER, Limits())
    lines = history_of(image, [10, 20])
    assert [(line.created_by, line.size_bytes, line.id) for line in lines] == [
        ("two", 20, LAYER),
        ("env", 0, "<missing>"),
        ("one", 10, "<missing>"),
    ]
