"""Which fields of Kubernetes' objects are honoured, and why the others are refused. Pure: tables.

The reader refuses by them and docs/kube.md is made of them, so that neither says what isn't so.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class Field:
    """`note` says how a field is honoured; `refused` why it isn't, but for the values of `only`."""

    note: str = ""
    refused: str = ""
    only: tuple[Any, ...] = ()


def _yes(*names: str, **notes: str) -> dict[str, Field]:
    return {**{name: Field() for name in names}, **{name: Field(note) for name, note in notes.items()}}


def _no(reason: str, *names: str, only: tuple[Any, ...] = ()) -> dict[str, Field]:
    return {name: Field(refused=reason, only=only) for name in names}


_ONE_HOST = "there is one host and no scheduler: leave it out"
_NO_SERVER = "there is no Kubernetes API server to speak to: leave it out"
_NO_REGISTRY = "a play pulls nothing: bring images with cove pull (after cove login), and leave it out"
_SERVER = "written by a server; read over"

OBJECT = _yes("apiVersion", "kind", "metadata", "spec", status=_SERVER)

METADATA = {
    **_yes(
        name="the pod's name; NAME-pod for what isn't a Pod",
        namespace="for fieldRef alone",
        labels="labels of the pod and its containers",
        annotations="annotations of the pod and its containers",
        **dict.fromkeys(
            (
                "creationTimestamp",
                "generation",
                "managedFields",
                "ownerReferences",
                "resourceVersion",
                "selfLink",
                "uid",
            ),
            _SERVER,
        ),
    ),
    **_no("names are made by nobody here: give a name", "generateName"),
    **_no(_NO_SERVER, "finalizers", "deletionTimestamp", "deletionGracePeriodSeconds"),
}

POD_SPEC = {
    **_yes(
        containers="POD-NAME each",
        initContainers="run to their end in order, before the others; restartPolicy: Always makes one that stays",
        volumes="",
        restartPolicy="Always, OnFailure or Never",
        terminationGracePeriodSeconds="time between SIGTERM and SIGKILL; 30",
        hostNetwork="",
        hostPID="",
        hostIPC="",
        hostname="",
        hostAliases="",
        dnsPolicy="ClusterFirst, ClusterFirstWithHostNet and Default are the daemon's servers, None those of dnsConfig",
        dnsConfig="",
        securityContext="",
    ),
    **_no(_ONE_HOST, "affinity", "nodeName", "nodeSelector", "overhead", "preemptionPolicy", "priority"),
    **_no(_ONE_HOST, "priorityClassName", "readinessGates", "runtimeClassName", "schedulingGates"),
    **_no(_ONE_HOST, "tolerations", "topologySpreadConstraints", "resourceClaims"),
    **_no(_ONE_HOST, "schedulerName", only=("default-scheduler",)),
    **_no(_NO_SERVER, "serviceAccount", "serviceAccountName", only=("default", "")),
    **_no(_NO_SERVER, "automountServiceAccountToken", only=(False,)),
    **_no("there are no Services whose variables could be set", "enableServiceLinks", only=(False, True)),
    **_no(_NO_REGISTRY, "imagePullSecrets"),
    **_no("containers run on Linux alone", "os", only=({"name": "linux"},)),
    **_no("containers that are added to a running pod come with cove run --pod", "ephemeralContainers"),
    **_no("a time limit of a pod isn't kept", "activeDeadlineSeconds"),
    **_no("user namespaces are the daemon's to say: cove daemon --userns-remap", "hostUsers", only=(True,)),
    **_no("there are no Services: give hostname the whole name", "subdomain", "hostnameOverride"),
    **_no("give hostname the whole name", "setHostnameAsFQDN", only=(False,)),
    **_no("containers of a pod have process lists of their own", "shareProcessNamespace", only=(False,)),
    **_no("limits are a container's: resources of each container", "resources"),
}

CONTAINER = {
    **_yes(
        name="",
        image="",
        imagePullPolicy="IfNotPresent and Never take the image that is here",
        command="the entrypoint; $(NAME) is replaced",
        args="the command; $(NAME) is replaced",
        env="",
        envFrom="",
        ports="",
        volumeMounts="",
        resources="",
        workingDir="",
        tty="",
        stdin="",
        stdinOnce="",
        securityContext="",
        livenessProbe="the health check; a container that fails it is restarted, or stopped with restartPolicy: Never",
        readinessProbe="the health check of a container without a livenessProbe; beside one that differs, not run, "
        "with a warning",
        startupProbe="the time that the health check gives a start; alone, a health check that restarts nothing",
        restartPolicy="of an init container: Always",
    ),
    **_no("hooks aren't run: do it in the command, or in an init container", "lifecycle"),
    **_no(
        "block devices aren't handed through volumes: use hostPath with type: BlockDevice", "volumeDevices"
    ),
    **_no("limits are changed with cove update", "resizePolicy"),
    **_no("restartPolicy says when a container starts again", "restartPolicyRules"),
    **_no("read the container's log", "terminationMessagePath", only=("/dev/termination-log",)),
    **_no("read the container's log", "terminationMessagePolicy", only=("File",)),
}

_SECURITY_NO = {
    **_no("SELinux labels aren't set", "seLinuxOptions"),
    **_no("containers run on Linux alone", "windowsOptions"),
    **_no("AppArmor profiles aren't set", "appArmorProfile", only=({"type": "Unconfined"},)),
}
POD_SECURITY = {
    **_yes(
        runAsUser="",
        runAsGroup="with runAsUser",
        runAsNonRoot="true needs a runAsUser other than 0",
        supplementalGroups="",
        fsGroup="a further group, and the group of emptyDir, configMap and secret volumes",
        sysctls="",
        seccompProfile="RuntimeDefault or Unconfined",
    ),
    **_no("the group of volumes is set once, when they are made", "fsGroupChangePolicy"),
    **_no("groups of the image count, too", "supplementalGroupsPolicy", only=("Merge",)),
    **_no("SELinux labels aren't set", "seLinuxChangePolicy"),
    **_SECURITY_NO,
}
CONTAINER_SECURITY = {
    **_yes(
        runAsUser="",
        runAsGroup="with runAsUser",
        runAsNonRoot="true needs a runAsUser other than 0",
        capabilities="add, drop",
        privileged="",
        readOnlyRootFilesystem="",
        allowPrivilegeEscalation="false is no-new-privileges",
        seccompProfile="RuntimeDefault or Unconfined",
        procMount="Default or Unmasked",
    ),
    **_SECURITY_NO,
}
SECCOMP = {
    **_yes("type"),
    **_no("profiles in files aren't read: cove run --security-opt seccomp=FILE", "localhostProfile"),
}
CAPABILITIES = _yes("add", "drop")
SYSCTL = _yes("name", "value")

PORT = _yes(
    name="for probes",
    containerPort="",
    hostPort="published at this port of the host",
    hostIP="",
    protocol="TCP, UDP or SCTP",
)
ENV = _yes("name", "value", "valueFrom")
ENV_SOURCE = {
    **_yes(
        configMapKeyRef="of a ConfigMap in the same file",
        secretKeyRef="of a Secret in the same file; inspect shows the value",
        fieldRef="metadata.name, metadata.namespace, metadata.labels['KEY'], metadata.annotations['KEY']",
    ),
    **_no("limits aren't given by variables: write the value", "resourceFieldRef"),
    **_no("files aren't read for variables", "fileKeyRef"),
}
FIELD_REF = {**_yes("fieldPath"), **_no("there is one version", "apiVersion", only=("v1",))}
KEY_REF = _yes("name", "key", "optional")
ENV_FROM = _yes("prefix", "configMapRef", "secretRef")
OBJECT_REF = _yes("name", "optional")

RESOURCES = {
    **_yes(limits="cpu and memory", requests="cpu is a share, memory a reservation"),
    **_no("devices are asked for with cove run --device", "claims"),
}
AMOUNTS = {
    **_yes("cpu", "memory"),
    **_no("the size of a writable layer is limited with cove run --storage-opt size=", "ephemeral-storage"),
}

PROBE = {
    **_yes(
        exec="",
        httpGet="from within the pod's network, without a process in the container",
        tcpSocket="likewise",
        initialDelaySeconds="failures don't count meanwhile",
        periodSeconds="10",
        timeoutSeconds="1",
        failureThreshold="3",
    ),
    **_no("the pod's counts: leave it out", "terminationGracePeriodSeconds"),
    **_no("gRPC isn't spoken: use exec, httpGet or tcpSocket", "grpc"),
    **_no("one success is enough", "successThreshold", only=(1,)),
}
PROBE_EXEC = _yes("command")
PROBE_HTTP = _yes("path", "port", "host", "scheme", "httpHeaders")
PROBE_TCP = _yes("port", "host")
HEADER = _yes("name", "value")

MOUNT = {
    **_yes(
        name="",
        mountPath="",
        readOnly="",
        subPath="not of a hostPath, nor of one in memory",
        mountPropagation="of a hostPath: None, HostToContainer or Bidirectional",
    ),
    **_no("variables aren't replaced in paths: use subPath", "subPathExpr"),
    **_no("a read-only mount is recursively so", "recursiveReadOnly", only=("Disabled", "IfPossible")),
}
_BY_OTHERS = "there is no driver for it: use hostPath, emptyDir or persistentVolumeClaim"
VOLUME = {
    **_yes(
        name="",
        emptyDir="a volume POD-NAME; medium: Memory is a tmpfs",
        hostPath="",
        configMap="a read-only volume with the keys as files",
        secret="the same, with a Secret of the same file",  # noqa: S106 - a sentence
        persistentVolumeClaim="the volume of that name, made if it isn't there, kept by down",
    ),
    **_no("list configMap and secret volumes by themselves", "projected"),
    **_no("use env with fieldRef", "downwardAPI"),
    **_no(
        _BY_OTHERS,
        *(
            "awsElasticBlockStore azureDisk azureFile cephfs cinder csi ephemeral fc flexVolume flocker "
            "gcePersistentDisk gitRepo glusterfs image iscsi nfs photonPersistentDisk portworxVolume quobyte rbd "
            "scaleIO storageos vsphereVolume"
        ).split(),
    ),
}
EMPTY_DIR = _yes(medium="Memory, or nothing", sizeLimit="with medium: Memory")
HOST_PATH = _yes("path", "type")
CONFIG_VOLUME = _yes("name", "items", "defaultMode", "optional")
SECRET_VOLUME = _yes("secretName", "items", "defaultMode", "optional")
KEY_PATH = _yes("key", "path", "mode")
CLAIM = _yes("claimName", "readOnly")

HOST_ALIAS = _yes("ip", "hostnames")
DNS_CONFIG = _yes("nameservers", "searches", "options")
DNS_OPTION = _yes("name", "value")

CONFIG_MAP = {
    **_yes("apiVersion", "kind", "metadata", "data", "binaryData"),
    **_no("a play reads it once", "immutable", only=(True, False)),
}
SECRET = {
    **_yes("apiVersion", "kind", "metadata", "data", "stringData"),
    **_yes(type="read over: the keys are what counts"),
    **_no("a play reads it once", "immutable", only=(True, False)),
}
CLAIM_SPEC = {
    **_yes(
        accessModes="there is one host, so all of them hold",
        resources="a request says what is needed at least: no limit is set",
        volumeMode="Filesystem",
    ),
    **_no("volumes are made by the local driver", "storageClassName", only=("",)),
    **_no("the volume has the claim's name", "volumeName", "selector"),
    **_no("volumes aren't filled from others", "dataSource", "dataSourceRef"),
    **_no("volumes have no classes", "volumeAttributesClassName"),
}

_TEMPLATE = _yes("template", selector="read over: the template's containers are what is meant")
DEPLOYMENT_SPEC = {
    **_TEMPLATE,
    **_yes(replicas="pods NAME-pod, NAME-pod-2, …"),
    **_no("a play makes all pods at once", "minReadySeconds", only=(0,)),
    **_no("a play makes all pods at once: cove kube play --replace", "strategy", "progressDeadlineSeconds"),
    **_no("nothing of before is kept", "revisionHistoryLimit", "paused"),
}
DAEMON_SET_SPEC = {
    **_TEMPLATE,
    **_no("a play makes all pods at once", "minReadySeconds", only=(0,)),
    **_no("a play makes all pods at once: cove kube play --replace", "updateStrategy"),
    **_no("nothing of before is kept", "revisionHistoryLimit"),
}
JOB_SPEC = {
    **_yes(
        template="restartPolicy has to be OnFailure or Never",
        backoffLimit="tries with restartPolicy: OnFailure; 6",
    ),
    **_no("a job is one pod", "completions", "parallelism", only=(1,)),
    **_no("a job is one pod", "completionMode", only=("NonIndexed",)),
    **_no(
        "a job is one pod", "backoffLimitPerIndex", "maxFailedIndexes", "successPolicy", "podFailurePolicy"
    ),
    **_no("a job starts when it is played", "suspend", only=(False,)),
    **_no("a job has no time limit", "activeDeadlineSeconds"),
    **_no("a job stays until cove kube down", "ttlSecondsAfterFinished"),
    **_no("the template's containers are what is meant", "selector", "manualSelector", "managedBy"),
    **_no("pods are replaced with cove kube play --replace", "podReplacementPolicy"),
}
TEMPLATE = _yes("metadata", "spec")

KINDS_REFUSED = {
    "Service": "ports are published with hostPort, or with --publish",
    "Ingress": "ports are published with hostPort, or with --publish",
    "StatefulSet": "write a Deployment, or Pods, with claims of their own",
    "ReplicaSet": "write a Deployment",
    "ReplicationController": "write a Deployment",
    "CronJob": "start a Job from cron or a timer",
    "Namespace": "names of a host are in one namespace",
    "PersistentVolume": "a PersistentVolumeClaim is a volume by itself",
    "ServiceAccount": "there is no Kubernetes API server to speak to",
}

# the tables of docs/kube.md, in order
DOCUMENTED: tuple[tuple[str, dict[str, Field]], ...] = (
    ("Pod: spec", POD_SPEC),
    ("Pod: spec.securityContext", POD_SECURITY),
    ("Container", CONTAINER),
    ("Container: securityContext", CONTAINER_SECURITY),
    ("Container: livenessProbe, readinessProbe, startupProbe", PROBE),
    ("Container: ports", PORT),
    ("Container: env valueFrom", ENV_SOURCE),
    ("Container: resources", RESOURCES),
    ("Container: resources limits and requests", AMOUNTS),
    ("Container: volumeMounts", MOUNT),
    ("Pod: spec.volumes", VOLUME),
    ("emptyDir", EMPTY_DIR),
    ("Deployment: spec", DEPLOYMENT_SPEC),
    ("DaemonSet: spec", DAEMON_SET_SPEC),
    ("Job: spec", JOB_SPEC),
    ("PersistentVolumeClaim: spec", CLAIM_SPEC),
    ("ConfigMap", CONFIG_MAP),
    ("Secret", SECRET),
    ("metadata", METADATA),
)


def render_tables() -> str:
    """The tables in Markdown."""
    parts = []
    for title, table in DOCUMENTED:
        parts.append(f"### {title}\n\n| field | | |\n| --- | --- | --- |\n")
        for name, field in table.items():
            if not field.refused:
                parts.append(f"| `{name}` | honoured | {field.note} |\n")
            elif field.only:
                values = ", ".join(f"`{_yaml(one)}`" for one in field.only if one != "")
                parts.append(f"| `{name}` | {values or 'empty'} alone | {field.refused} |\n")
            else:
                parts.append(f"| `{name}` | refused | {field.refused} |\n")
        parts.append("\n")
    return "".join(parts)


def _yaml(value: Any) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, dict):
        return ", ".join(f"{name}: {inner}" for name, inner in value.items())
    return str(value)
