"""`doctor`: is everything there that GreenThread needs, and what to do where it is not."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator

from greenthread.clock import SystemClock, parse_time
from greenthread.kube.core import ObjectList
from greenthread.kube.errors import ApiError, Forbidden, KubeError, NoSuchKind, NotFound, Unreachable
from greenthread.kube.resources import GPUS, LEASES, MODELS, PODS, SELF_SUBJECT_ACCESS_REVIEWS
from greenthread.names import ANNOTATION_FAULT, DEFAULT_NAMESPACE
from greenthread.prometheus import Prometheus, PrometheusError, find
from greenthread.units import short_bytes, short_duration
from greenthread.values import dataclass
from kubectl_greenthread.options import Session
from kubectl_greenthread.output import out, print_data
from kubectl_greenthread.url import gateway
from kubectl_greenthread.version import installed

TYPE_CHECKING = False
if TYPE_CHECKING:
    from greenthread.kube.core import Object

PATIENCE = 3.0
"""Seconds for Prometheus and the gateway to answer."""
RIGHTS = (
    ("see models", "list watch", MODELS.group, "models", ""),
    ("wake, sleep, pin and preempt models", "patch", MODELS.group, "models", ""),
    ("see GPUs", "list watch", GPUS.group, "gpus", ""),
    ("see replicas, queues and requests in flight", "list watch", "", "pods", ""),
    ("see events (explain, --wait)", "list watch", "", "events", ""),
    ("read logs", "get", "", "pods", "log"),
)
"""What it is for, RBAC's verbs, group, resource, subresource."""
NEEDED = ("see models", "see GPUs")
"""Without these nothing works; the others only lack."""


@dataclass(frozen=True)
class Finding:
    """`good`: None when it is neither good nor bad. `advice`: what to do."""

    about: str
    good: bool | None
    text: str
    advice: str = ""


def doctor(session: Session, url: str, prometheus: str) -> int:
    """Check the cluster, the rights, and every part of GreenThread, each in a line, with what to do where it is bad.

    The exit code is 1 when something is bad.
    """
    found = []
    for finding in _examine(session, url, prometheus):
        found.append(finding)
        if not session.output:
            for line in _lines(session, finding):
                out(line)
    if session.output:
        data = [
            {"check": each.about, "ok": each.good, "text": each.text, "advice": each.advice} for each in found
        ]  # fmt: skip
        print_data(session, {"checks": data})
    return 1 if any(each.good is False for each in found) else 0


def _lines(session: Session, finding: Finding) -> Iterator[str]:
    terminal = session.terminal
    glyphs = {True: "✓", False: "✗", None: "·"} if terminal.unicode else {True: "ok", False: "BAD", None: "-"}
    style = {True: "serving", False: "failed", None: "dim"}[finding.good]
    mark = terminal.paint(glyphs[finding.good].ljust(1 if terminal.unicode else 3), style)
    indent = " " * (14 if terminal.unicode else 16)
    first, *rest = terminal.wrap(f"{'':{len(indent) - 11}}{finding.about:<10} {finding.text}", indent)
    yield f"{mark} {first[len(indent) - 11 :]}"
    yield from rest
    if finding.advice:
        yield from terminal.wrap(f"{indent}-> {finding.advice}", indent + "   ")


def _examine(session: Session, url: str, prometheus: str) -> Iterator[Finding]:
    yield Finding("plugin", True, f"greenthread {installed()}")
    cluster = _cluster(session)
    yield cluster
    if not cluster.good:
        return
    kinds = _kinds(session)
    yield kinds
    yield from _rights(session)
    if not kinds.good:
        return
    for check in (_controller, _agents, _gpus, _models):
        try:
            yield from check(session)
        except Forbidden as error:
            yield Finding(check.__name__.strip("_"), None, f"not known: {error}")
        except KubeError as error:
            yield Finding(check.__name__.strip("_"), False, str(error))
    yield _gateway(session, url)
    yield _prometheus(session, prometheus)


def _cluster(session: Session) -> Finding:
    where = f"context {session.config.context}, " if session.config.context else ""
    where += session.config.server
    try:
        began = time.monotonic()
        with session.client.open("GET", "/version", {}, timeout=10.0) as stream:
            status, body = stream.status, stream.read_all()
        took = short_duration(time.monotonic() - began)
    except Unreachable as error:
        return Finding("cluster", False, f"{where}: {error}", "check the context (--context), the network and the VPN")
    if status == 401:
        return Finding(
            "cluster", False, f"{where}: your credentials are not accepted", "log in again; the token may have expired"
        )
    try:
        version = str(json.loads(body).get("gitVersion") or "?")
    except (ValueError, AttributeError):
        return Finding(
            "cluster", False, f"{where}: this is no Kubernetes API", "check the server's address in the kubeconfig"
        )
    return Finding("cluster", True, f"{where}: Kubernetes {version}, answers in {took}")


def _kinds(session: Session) -> Finding:
    missing = []
    for resource, found in zip((MODELS, GPUS), session.client.lists([(MODELS, session.namespace, "", ""),
                               (GPUS, DEFAULT_NAMESPACE, "", "")]), strict=True):  # fmt: skip
        if isinstance(found, NoSuchKind):
            missing.append(resource.full_name)
    if missing:
        return Finding("kinds", False, f"the cluster does not know {' and '.join(missing)}", "install the CRDs: "
                       "kubectl apply -f manifests/crds (the Helm chart brings them)")  # fmt: skip
    return Finding("kinds", True, f"{MODELS.full_name} and {GPUS.full_name} are served, version {MODELS.version}")


def _rights(session: Session) -> Iterator[Finding]:
    may, lacks = [], []
    for what, verbs, group, resource, sub in RIGHTS:
        try:
            missing = [verb for verb in verbs.split() if not _may(session, verb, group, resource, sub)]
        except ApiError as error:
            yield Finding("rights", None, f"not known: {error}")
            return
        name = f"{resource}/{sub}" if sub else resource
        if missing:
            lacks.append((what, " and ".join(missing), f"{name}.{group}" if group else name))
        else:
            may.append(what)
    if may:
        yield Finding("rights", True, f"you may {'; '.join(may)}")
    for what, verbs, name in lacks:
        where = DEFAULT_NAMESPACE if what == "see GPUs" else session.namespace
        advice = f"ask for a role that allows `{verbs}` on `{name}` in namespace {where}"
        if name in ("models.greenthread.ai", "gpus.greenthread.ai"):
            advice += " (ClusterRole greenthread-operator, or greenthread-viewer to only look)"
        yield Finding("rights", False if what in NEEDED else None, f"you may not {what}", advice)


def _may(session: Session, verb: str, group: str, resource: str, sub: str) -> bool:
    namespace = DEFAULT_NAMESPACE if resource == "gpus" else session.namespace
    attributes = {"namespace": namespace, "verb": verb, "group": group, "resource": resource, "subresource": sub}
    review = {"metadata": {}, "spec": {"resourceAttributes": attributes}}
    answer = session.client.create(SELF_SUBJECT_ACCESS_REVIEWS, review)
    return (answer.get("status") or {}).get("allowed") is True


def _part(session: Session, part: str) -> list[Object]:
    """The pods of a part, as the chart labels them, or `greenthread up`."""
    found = session.client.lists(
        [
            (PODS, DEFAULT_NAMESPACE, f"app.kubernetes.io/name=greenthread-{part}", ""),
            (PODS, DEFAULT_NAMESPACE, f"app.kubernetes.io/name=greenthread,app.kubernetes.io/component={part}", ""),
        ]
    )
    pods: list[Object] = []
    for each in found:
        if not isinstance(each, ObjectList):
            raise each
        pods += each.items
    return pods


def _is_ready(pod: Object) -> bool:
    conditions = (pod.get("status") or {}).get("conditions") or []
    return any(each.get("type") == "Ready" and each.get("status") == "True" for each in conditions)


def _why_not_ready(pod: Object) -> str:
    for each in (pod.get("status") or {}).get("containerStatuses") or ():
        state = each.get("state") or {}
        for kind in ("waiting", "terminated"):
            if reason := (state.get(kind) or {}).get("reason"):
                return f"{pod['metadata']['name']} is {reason}"
    return f"{pod['metadata']['name']} is not ready"


def _logs_of(pod: Object) -> str:
    return f"kubectl logs -n {pod['metadata'].get('namespace')} {pod['metadata']['name']} --all-containers"


def _versions(pods: list[Object]) -> str:
    found = {str((pod["metadata"].get("labels") or {}).get("app.kubernetes.io/version") or "") for pod in pods} - {""}
    return f", version {' and '.join(sorted(found))}" if found else ""


def _controller(session: Session) -> Iterator[Finding]:
    pods = _part(session, "controller")
    if not pods:
        yield Finding("controller", False, f"there is none in namespace {DEFAULT_NAMESPACE}", "install the Helm chart")
        return
    bad = [pod for pod in pods if not _is_ready(pod)]
    leads = ""
    try:
        spec = session.client.get(LEASES, "greenthread-controller", DEFAULT_NAMESPACE).get("spec") or {}
        renewed = parse_time(str(spec.get("renewTime")))
        age = (SystemClock().now() - renewed).total_seconds()
        leads = f"; {spec.get('holderIdentity') or 'nobody'} leads, renewed {short_duration(age)} ago"
        if age > 2 * float(spec.get("leaseDurationSeconds") or 15) or not spec.get("holderIdentity"):
            yield Finding("controller", False, f"nobody leads: the lease was renewed {short_duration(age)} ago",
                          _logs_of(pods[0]))  # fmt: skip
            return
    except (NotFound, Forbidden, ValueError):
        pass
    text = f"{len(pods) - len(bad)} of {len(pods)} ready{_versions(pods)}{leads}"
    if bad:
        text += f"; {_why_not_ready(bad[0])}"
    yield Finding("controller", len(bad) < len(pods), text, _logs_of(bad[0]) if bad else "")


def _agents(session: Session) -> Iterator[Finding]:
    pods = _part(session, "agent")
    of_node = {str((pod.get("spec") or {}).get("nodeName") or ""): pod for pod in pods}
    gpus = session.client.list(GPUS, DEFAULT_NAMESPACE).items
    nodes = sorted({str((gpu.get("status") or {}).get("node") or "") for gpu in gpus} - {""})
    for node in nodes:
        if node not in of_node:
            yield Finding(
                "agents",
                False,
                f"node {node} has GPUs and no agent: their numbers are stale",
                f"kubectl get pods -o wide -n {DEFAULT_NAMESPACE} -l app.kubernetes.io/name=greenthread-agent",
            )
    bad = [pod for pod in pods if not _is_ready(pod)]
    for pod in bad:
        yield Finding("agents", False, _why_not_ready(pod), _logs_of(pod))
    if not pods:
        yield Finding("agents", False, f"there is none in namespace {DEFAULT_NAMESPACE}",
                      "label the GPU nodes so that the agent's DaemonSet runs there")  # fmt: skip
    elif not bad:
        yield Finding("agents", True, f"{len(pods)} ready, {_count(len(nodes), 'node')} with GPUs{_versions(pods)}")


def _gpus(session: Session) -> Iterator[Finding]:
    gpus = session.client.list(GPUS, DEFAULT_NAMESPACE).items
    if not gpus:
        yield Finding("GPUs", False, "none is registered", "see that the agent runs on a node with an NVIDIA driver")
        return
    faults = {gpu["metadata"]["name"]: (gpu["metadata"].get("annotations") or {}).get(ANNOTATION_FAULT) for gpu in gpus}
    for name, fault in faults.items():
        if fault:
            yield Finding("GPUs", False, f"{name}: {fault}", f"kubectl describe gpu -n {DEFAULT_NAMESPACE} {name}")
    total = sum((gpu.get("status") or {}).get("totalMemoryBytes") or 0 for gpu in gpus)
    good = len(gpus) - sum(bool(fault) for fault in faults.values())
    yield Finding("GPUs", good > 0, f"{good} of {len(gpus)} usable, {short_bytes(total)} in all")


def _models(session: Session) -> Iterator[Finding]:
    models = session.client.list(MODELS, session.namespace).items
    failed = [model for model in models if (model.get("status") or {}).get("phase") == "Failed"]
    for model in failed:
        conditions = model["status"].get("conditions") or []
        why = next((each.get("message") for each in conditions if each.get("type") == "Ready"), "") or "it has failed"
        yield Finding("models", False, f"{model['metadata']['name']}: {why}", f"status {model['metadata']['name']}")
    ready = sum((model.get("status") or {}).get("phase") == "Ready" for model in models)
    text = f"{ready} of {len(models)} ready in namespace {session.namespace}"
    yield Finding("models", None if not models else True, text)


def _gateway(session: Session, url: str) -> Finding:
    try:
        address = gateway(session, url)
        with address.open(session.client, "GET", "/health", timeout=PATIENCE) as stream:
            status, body = stream.status, stream.read_all()
    except KubeError as error:
        return Finding("gateway", False, str(error))
    if status == 200:
        return Finding("gateway", True, f"{address.url} ({address.how})")
    if status == 403 and address.path:
        return Finding("gateway", None, "you may not reach it through the API server",
                       "ask for `get` on `services/proxy`, or pass its address with --url")  # fmt: skip
    text = " ".join(body[:200].decode("utf-8", "replace").split())
    return Finding("gateway", False, f"{address.url} answers {status}: {text}",
                   f"kubectl logs -n {DEFAULT_NAMESPACE} -l app.kubernetes.io/component=gateway")  # fmt: skip


def _prometheus(session: Session, given: str) -> Finding:
    try:
        address = find(session.client, given)
        if address is None:
            return Finding("prometheus", None, "none is known: `top` has no requests per second and wake percentiles",
                           "pass --prometheus URL, or set GREENTHREAD_PROMETHEUS")  # fmt: skip
        prometheus = Prometheus(session.client, address, PATIENCE)
        version = prometheus.version()
        known = prometheus.query("count(gthread_sidecar_state == 1)")
    except PrometheusError as error:
        return Finding("prometheus", False, str(error))
    except KubeError as error:
        return Finding("prometheus", False, str(error))
    count = int(known[0].value) if known else 0
    if not count:
        return Finding("prometheus", False, f"{version} at {address.url} knows no model",
                       "let it scrape the sidecars: monitoring.enabled=true in the Helm chart")  # fmt: skip
    return Finding("prometheus", True, f"{version} at {address.url} knows {_count(count, 'replica')} of models")


def _count(number: int, what: str) -> str:
    return f"{number} {what}" if number == 1 else f"{number} {what}s"
