"""Kubernetes files → plans: golden ones, every refusal's sentence, and strangers' bytes.

COVE_GOLDEN=write writes tests/golden/kube/NAME.json anew; the diff is to be reviewed like code.
"""

from __future__ import annotations

import json
import os
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cove.kube.fields import DOCUMENTED, render_tables
from cove.kube.plan import plan_file
from cove.kube.quantity import parse_quantity
from cove.kube.types import Options, Plan
from cove.kube.yamlfile import MAX_BYTES, parse_documents, resolve
from cove.model.errors import Invalid

ROOT = Path(__file__).resolve().parents[2]
GOLDEN = ROOT / "tests/golden/kube"
OPTIONS = {"published": Options(network="shop", publish=("8081:81", "[::1]:54:54/udp"))}
CASES = sorted(path.stem for path in GOLDEN.glob("*.yaml"))


def plain(plan: Plan) -> Any:
    return json.loads(json.dumps(asdict(plan), default=lambda value: value.decode()))


@pytest.mark.parametrize("name", CASES)
def test_the_plan_of_a_file_is_the_golden_one(name: str) -> None:
    plan = plan_file((GOLDEN / f"{name}.yaml").read_bytes(), OPTIONS.get(name, Options()))
    text = json.dumps(plain(plan), indent=1, sort_keys=True) + "\n"
    path = GOLDEN / f"{name}.json"
    if os.environ.get("COVE_GOLDEN") == "write":
        path.write_text(text)
    assert text == path.read_text()


def test_every_golden_plan_has_its_file() -> None:
    assert sorted(path.stem for path in GOLDEN.glob("*.json")) == CASES


def test_a_plan_shows_no_content_of_a_secret() -> None:
    plan = plan_file((GOLDEN / "config.yaml").read_bytes(), Options())
    for word in ("c2VjcmV0", "plain", "PASSWORD", "fast"):
        assert word not in repr(plan)


# --- refusals -----------------------------------------------------------------------------


def pod(container: str = "", spec: str = "", metadata: str = "") -> bytes:
    """A pod with more fields, in flow style."""
    return (
        f"apiVersion: v1\nkind: Pod\nmetadata: {{name: web, {metadata}}}\n"
        f"spec: {{containers: [{{name: a, image: busybox, {container}}}], {spec}}}\n"
    ).encode()


A = "Pod/web: spec.containers[0]"
REFUSALS: list[tuple[bytes, str]] = [
    (b"", "the file has no documents"),
    (b"[]", "document 1: expected a mapping"),
    (b"kind: Service\n", "document 1: kind: a Service isn't played: ports are published with hostPort"),
    (b"kind: Thing\n", "document 1: kind: 'Thing': expected one of Pod, "),
    (b"kind: Pod\n", "document 1: apiVersion: is missing, e.g. v1"),
    (b"kind: Job\napiVersion: v1\n", "document 1: apiVersion: 'v1': a Job has batch/v1"),
    (b"kind: Pod\napiVersion: v1\n", "document 1: metadata: is missing"),
    (b"kind: Pod\napiVersion: v1\nmetadata: {}\n", "document 1: metadata.name: is missing, e.g. web"),
    (
        b"kind: Pod\napiVersion: v1\nmetadata: {name: A_b}\n",
        "metadata.name: 'A_b': expected lower-case letters",
    ),
    (
        b"kind: Pod\napiVersion: v1\nmetadata: {generateName: a}\n",
        "metadata.generateName: names are made by nobody",
    ),
    (
        b"kind: Pod\napiVersion: v1\nmetadata: {name: web}\nspec: {}\n",
        "Pod/web: spec.containers: a pod needs",
    ),
    (pod() + b"---\n" + pod(), "Pod/web: comes twice in this file"),
    (
        pod(metadata="labels: {a: 1}"),
        "Pod/web: metadata.labels.a: expected text, got a whole number; put it in quotes",
    ),
    (pod(spec="containers: []"), "'containers' comes twice"),
    (pod(spec="nodeSelector: {a: b}"), "Pod/web: spec.nodeSelector: there is one host and no scheduler"),
    (pod(spec="tolerations: [{key: a}]"), "Pod/web: spec.tolerations: there is one host"),
    (pod(spec="imagePullSecrets: [{name: a}]"), "spec.imagePullSecrets: a play pulls nothing"),
    (
        pod(spec="shareProcessNamespace: true"),
        "spec.shareProcessNamespace: containers of a pod have process lists",
    ),
    (pod(spec="serviceAccountName: robot"), "spec.serviceAccountName: there is no Kubernetes API server"),
    (pod(spec="hostnam: a"), "Pod/web: spec.hostnam: no such field; did you mean hostname?"),
    (
        pod(spec="restartPolicy: Sometimes"),
        "spec.restartPolicy: 'Sometimes': expected one of Always, OnFailure, Never",
    ),
    (pod(spec="hostNetwork: 1"), "spec.hostNetwork: expected true or false, got a whole number"),
    (pod(spec="dnsPolicy: None"), "spec.dnsPolicy: None needs dnsConfig.nameservers"),
    (pod(spec="terminationGracePeriodSeconds: -1"), "terminationGracePeriodSeconds: -1: expected 0 to "),
    (pod(spec="securityContext: {seLinuxOptions: {level: a}}"), "seLinuxOptions: SELinux labels aren't set"),
    (
        pod(spec="volumes: [{name: a, projected: {sources: [1]}}]"),
        "volumes[0].projected: list configMap and secret",
    ),
    (pod(spec="volumes: [{name: a, nfs: {server: a}}]"), "spec.volumes[0].nfs: there is no driver for it"),
    (pod(spec="volumes: [{name: a}]"), "spec.volumes[0]: expected one of emptyDir"),
    (pod(spec="volumes: [{name: a, emptyDir: {}}, {name: a, emptyDir: {}}]"), "two volumes are called a"),
    (
        pod(spec="volumes: [{name: a, emptyDir: {sizeLimit: 1Mi}}]"),
        "emptyDir.sizeLimit: a limit needs medium: Memory",
    ),
    (
        pod(spec="volumes: [{name: a, hostPath: {path: ../x}}]"),
        "hostPath.path: '../x': expected an absolute path",
    ),
    (
        pod(spec="volumes: [{name: a, hostPath: {path: /x, type: Dir}}]"),
        "hostPath.type: 'Dir': expected one of",
    ),
    (pod(spec="volumes: [{name: a, configMap: {name: b}}]"), "configMap.name: no ConfigMap 'b' in this file"),
    (
        pod(spec="initContainers: [{name: a, image: b, livenessProbe: {tcpSocket: {port: 1}}}]"),
        "an init container has none",
    ),
    (pod("image: b"), "line 4: 'image' comes twice"),
    (pod("imagePullPolicy: Always"), f"{A}.imagePullPolicy: a play pulls nothing"),
    (pod("lifecycle: {preStop: {exec: {command: [a]}}}"), f"{A}.lifecycle: hooks aren't run"),
    (pod("command: true"), f"{A}.command: expected a list, got true or false"),
    (pod("args: [1]"), f"{A}.args[0]: expected text, got a whole number; put it in quotes"),
    (
        pod("env: [{name: A, value: yes}]"),
        f"{A}.env[0].value: expected text, got true or false; put it in quotes",
    ),
    (pod("env: [{name: A=, value: a}]"), f"{A}.env[0].name: 'A=': expected a variable's name"),
    (
        pod("env: [{name: A, valueFrom: {fieldRef: {fieldPath: status.podIP}}}]"),
        "fieldPath: an address is chosen at each start",
    ),
    (
        pod("env: [{name: A, valueFrom: {resourceFieldRef: {resource: a}}}]"),
        "resourceFieldRef: limits aren't given",
    ),
    (pod("env: [{name: A, valueFrom: {secretKeyRef: {name: b, key: c}}}]"), "no Secret 'b' in this file"),
    (pod("envFrom: [{prefix: a}]"), "envFrom[0]: expected one of configMapRef and secretRef"),
    (pod("ports: [{hostPort: 80}]"), "ports[0].containerPort: is missing, e.g. 80"),
    (pod("ports: [{containerPort: 70000}]"), "ports[0].containerPort: 70000: expected 1 to 65535"),
    (pod("ports: [{containerPort: 80, hostIP: 127.0.0.1}]"), "hostIP: is of use beside a hostPort alone"),
    (
        pod("ports: [{containerPort: 80, hostPort: 81}]", "hostNetwork: true"),
        "with hostNetwork it can't be other",
    ),
    (pod("ports: [{containerPort: 80, protocol: ICMP}]"), "protocol: 'ICMP': expected one of TCP, UDP, SCTP"),
    (
        pod("resources: {limits: {cpu: much}}"),
        f"{A}.resources.limits.cpu: 'much': expected an amount, e.g. 500m",
    ),
    (pod("resources: {limits: {memory: 0}}"), "limits.memory: '0': expected 1 byte to 8Ei"),
    (
        pod("resources: {limits: {nvidia.com/gpu: 1}}"),
        "limits.nvidia.com/gpu: no such field; there are cpu, memory",
    ),
    (pod("resources: {limits: {cpu: 1}, requests: {cpu: 2}}"), "requests.cpu: is more than the limit"),
    (pod("volumeMounts: [{name: a, mountPath: /a}]"), "volumeMounts[0].name: no volume 'a' in spec.volumes"),
    (
        pod(
            "volumeMounts: [{name: a, mountPath: /a, subPath: b}]",
            "volumes: [{name: a, hostPath: {path: /a}}]",
        ),
        "subPath: of a hostPath it isn't honoured",
    ),
    (
        pod("volumeMounts: [{name: a, mountPath: /a, subPath: ../b}]", "volumes: [{name: a, emptyDir: {}}]"),
        "subPath: '../b': expected a relative path",
    ),
    (pod("livenessProbe: {grpc: {port: 1}}"), "livenessProbe.grpc: gRPC isn't spoken"),
    (pod("livenessProbe: {periodSeconds: 1}"), "livenessProbe: expected one of exec, httpGet and tcpSocket"),
    (
        pod("livenessProbe: {tcpSocket: {port: http}}"),
        "port: 'http': no port of this container has that name",
    ),
    (
        pod("livenessProbe: {tcpSocket: {port: 1}, successThreshold: 2}"),
        "successThreshold: one success is enough (it can be 1)",
    ),
    (pod("securityContext: {runAsNonRoot: true}"), "runAsNonRoot: needs a runAsUser other than 0"),
    (pod("securityContext: {runAsGroup: 1}"), "runAsGroup: needs a runAsUser beside it"),
    (
        pod("securityContext: {privileged: true, allowPrivilegeEscalation: false}"),
        "a privileged container escalates",
    ),
    (
        pod("securityContext: {seccompProfile: {type: Localhost}}"),
        "type: 'Localhost': expected one of RuntimeDefault",
    ),
    (pod("restartPolicy: Always"), f"{A}.restartPolicy: a container has the pod's restartPolicy"),
    (pod("name2: a"), f"{A}.name2: no such field; did you mean name?"),
    (
        (GOLDEN / "deployment.yaml")
        .read_bytes()
        .replace(b"containerPort: 80", b"containerPort: 80, hostPort: 80"),
        "Deployment/shop: port 80 of the host is that of shop-pod already",
    ),
    (
        (GOLDEN / "job.yaml").read_bytes().replace(b"restartPolicy: OnFailure", b"hostPID: false"),
        "a job's pod has OnFailure or Never",
    ),
    (
        b"kind: Secret\napiVersion: v1\nmetadata: {name: a}\ndata: {b: '%'}\n",
        "Secret/a: data.b: expected base64",
    ),
    (b"kind: Secret\napiVersion: v1\nmetadata: {name: a}\ndata: {b/c: ''}\n", "'b/c': a key has letters"),
    (b"a: [", "not YAML: line 2, column 1"),
    (b"\xff", "the YAML is not UTF-8: byte 0"),
    (
        b"a: !!python/object:os.system {}",
        "line 1: the tag tag:yaml.org,2002:python/object:os.system is not read",
    ),
    (b"a: &a [*a]", "line 1: *a stands for nothing that has ended before it"),
    (b"a: {<<: {b: c}}", "line 1: merge keys (<<) are not read"),
    (b"? [a]\n: b", "line 1: a key has to be text"),
    (b"[" * 100 + b"]" * 100, "line 1: nested more than 64 deep"),
    (b"[" * 100_000, "exceeded maximum nesting depth"),
    (b"{" * 100_000, "exceeded maximum nesting depth"),
    (b"#" * (MAX_BYTES + 1), "up to 1048576 are read"),
    (b"---\na\n" * 300, "more than 256 documents"),
    (b"9" * 5000, "is too large a number"),
    (b"a: 1e999", "is too large a number"),
]


@pytest.mark.parametrize(("data", "sentence"), REFUSALS, ids=[sentence[:60] for _, sentence in REFUSALS])
def test_what_is_not_honoured_is_refused_by_its_path(data: bytes, sentence: str) -> None:
    with pytest.raises(Invalid) as refused:
        plan_file(data, Options())
    assert sentence in str(refused.value)
    assert len(str(refused.value)) < 2000


@pytest.mark.parametrize("publish", ["80", "80:x", "0:80", "70000:80", "1.2.3.4:80:80/icmp"])
def test_a_port_to_publish_is_checked(publish: str) -> None:
    with pytest.raises(Invalid, match="publish: "):
        plan_file(pod(), Options(publish=(publish,)))


def test_every_field_that_a_table_refuses_is_refused_with_its_reason() -> None:
    tables = dict(DOCUMENTED)
    for title, make in (
        ("Pod: spec", lambda name: pod(spec=f"{name}: {{x: y}}")),
        ("Container", lambda name: pod(f"{name}: {{x: y}}")),
        ("Pod: spec.volumes", lambda name: pod(spec=f"volumes: [{{name: v, {name}: {{x: y}}}}]")),
    ):
        for name, field in tables[title].items():
            if field.refused:
                with pytest.raises(Invalid) as refused:
                    plan_file(make(name), Options())
                assert field.refused in str(refused.value)
                assert f".{name}: " in str(refused.value)


def test_the_tables_of_the_docs_are_those_of_the_code() -> None:
    assert render_tables() in (ROOT / "docs/kube.md").read_text(), "run scripts/kube_fields.py"


# --- YAML ---------------------------------------------------------------------------------


def test_aliases_count_as_much_as_what_they_stand_for() -> None:
    bomb = "a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n" + "".join(
        f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 10)}]\n" for i in range(1, 12)
    )
    with pytest.raises(Invalid, match="more than 50000 values"):
        parse_documents(bomb.encode())


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("0644", 420),
        ("0o17", 15),
        ("0x1f", 31),
        ("-3", -3),
        ("1.5", 1.5),
        ("yes", True),
        ("Off", False),
        ("~", None),
        ("", None),
        ("2024-01-01", "2024-01-01"),
        ("1.2.3", "1.2.3"),
        ("089", 89.0),
        ("500m", "500m"),
        ("y", "y"),
    ],
)
def test_scalars_mean_what_they_mean_to_kubernetes(text: str, value: Any) -> None:
    assert resolve(text) == value
    assert type(resolve(text)) is type(value)


@pytest.mark.parametrize(
    ("text", "value"),
    [("500m", 0.5), ("64Mi", 64 << 20), ("1.5G", 1.5e9), ("2e3", 2000), ("1", 1), ("k", None), ("1KB", None)],
)
def test_quantities(text: str, value: float | None) -> None:
    found = parse_quantity(text)
    assert (None if found is None else float(found)) == value


SCALARS = st.none() | st.booleans() | st.integers(-(2**70), 2**70) | st.floats() | st.text(max_size=20)
VALUES = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=10), inner, max_size=3),
    max_leaves=10,
)
SEEDS = [parse_documents((GOLDEN / f"{name}.yaml").read_bytes()) for name in CASES]


@settings(max_examples=300, deadline=None)
@given(st.binary(max_size=200) | st.text(alphabet="[]{}:,&*!<>-?|# \n\t\"'a1~", max_size=80).map(str.encode))
def test_bytes_of_strangers_are_refused_by_a_sentence(data: bytes) -> None:
    try:
        plan_file(data, Options())
    except Invalid as error:
        assert str(error)


@settings(max_examples=400, deadline=None)
@given(st.data())
def test_a_file_with_one_value_changed_is_played_or_refused(data: st.DataObject) -> None:
    documents = json.loads(json.dumps(data.draw(st.sampled_from(SEEDS))))
    places: list[tuple[Any, Any]] = []

    def walk(value: Any) -> None:
        for key in value if isinstance(value, dict) else range(len(value)) if isinstance(value, list) else ():
            places.append((value, key))
            walk(value[key])

    walk(documents)
    parent, key = data.draw(st.sampled_from(places))
    value = data.draw(VALUES)
    if isinstance(parent, dict) and data.draw(st.booleans()):
        key = data.draw(st.text(max_size=10))
    parent[key] = value
    text = "\n---\n".join(json.dumps(document) for document in documents)
    try:
        plan_file(text.encode(), Options())
    except Invalid as error:
        assert str(error)
