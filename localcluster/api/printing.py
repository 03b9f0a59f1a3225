"""The columns of `kubectl get` for the built-in kinds."""

from datetime import UTC, datetime
from typing import Any

from .resources import Column
from .storage import Object
from .tables import AGE, NAME, human_duration, jsonpath

_NONE = "<none>"


def _at(path: str, name: str, **more: Any) -> Column:
    return Column(name, jsonpath(path), **more)


def _or_none(column: Column) -> Column:
    return Column(column.name, lambda obj: column.read(obj) or _NONE, column.type, column.priority, column.format)


def _containers(obj: Object) -> list[Object]:
    return list(obj["spec"].get("containers") or ())


def _statuses(obj: Object, kind: str = "containerStatuses") -> list[Object]:
    return list((obj.get("status") or {}).get(kind) or ())


def _ready(obj: Object) -> str:
    return f"{sum(bool(s.get('ready')) for s in _statuses(obj))}/{len(_containers(obj))}"


def pod_status(obj: Object) -> str:
    """The word in the STATUS column of a pod."""
    status = obj.get("status") or {}
    reason: str = status.get("reason") or status.get("phase") or "Unknown"
    starting = False
    inits = _statuses(obj, "initContainerStatuses")
    for index, container in enumerate(inits):
        state = container.get("state") or {}
        ended, waiting = state.get("terminated"), state.get("waiting")
        if ended and ended.get("exitCode") == 0:
            continue
        if ended:
            reason = "Init:" + (ended.get("reason") or f"ExitCode:{ended.get('exitCode')}")
        elif waiting and waiting.get("reason") not in (None, "", "PodInitializing"):
            reason = "Init:" + waiting["reason"]
        else:
            reason = f"Init:{index}/{len(obj['spec'].get('initContainers') or ())}"
        starting = True
        break
    if not starting:
        running = False
        for container in reversed(_statuses(obj)):
            state = container.get("state") or {}
            ended, waiting = state.get("terminated"), state.get("waiting")
            if waiting and waiting.get("reason"):
                reason = waiting["reason"]
            elif ended:
                signal = ended.get("signal")
                reason = ended.get("reason") or (f"Signal:{signal}" if signal else f"ExitCode:{ended.get('exitCode')}")
            elif container.get("ready") and state.get("running"):
                running = True
        if reason == "Completed" and running:
            conditions = {c.get("type"): c.get("status") for c in status.get("conditions") or ()}
            reason = "Running" if conditions.get("Ready") == "True" else "NotReady"
    if obj["metadata"].get("deletionTimestamp") and status.get("phase") not in ("Failed", "Succeeded"):
        reason = "Unknown" if status.get("reason") == "NodeLost" else "Terminating"
    return reason


def _restarts(obj: Object) -> str:
    statuses = _statuses(obj)
    count = sum(int(s.get("restartCount", 0)) for s in statuses)
    times = [
        ended["finishedAt"]
        for s in statuses
        if (ended := (s.get("lastState") or {}).get("terminated")) and ended.get("finishedAt")
    ]
    if not count or not times:
        return str(count)
    try:
        last = max(datetime.fromisoformat(t.replace("Z", "+00:00")) for t in times)
    except ValueError:
        return str(count)
    return f"{count} ({human_duration(max(int((datetime.now(UTC) - last).total_seconds()), 0))} ago)"


def _gates(obj: Object) -> str:
    gates = obj["spec"].get("readinessGates") or ()
    if not gates:
        return _NONE
    conditions = {c.get("type"): c.get("status") for c in (obj.get("status") or {}).get("conditions") or ()}
    return f"{sum(conditions.get(g.get('conditionType')) == 'True' for g in gates)}/{len(gates)}"


PODS = (
    NAME,
    Column("Ready", _ready),
    Column("Status", pod_status),
    Column("Restarts", _restarts),
    AGE,
    _or_none(_at(".status.podIP", "IP", priority=1)),
    _or_none(_at(".spec.nodeName", "Node", priority=1)),
    _or_none(_at(".status.nominatedNodeName", "Nominated Node", priority=1)),
    Column("Readiness Gates", _gates, priority=1),
)


def _labels(labels: Any) -> str:
    return ",".join(f"{k}={v}" for k, v in sorted((labels or {}).items())) or _NONE


def _service_ports(obj: Object) -> str:
    def one(port: Object) -> str:
        node = f":{port['nodePort']}" if port.get("nodePort") else ""
        return f"{port.get('port')}{node}/{port.get('protocol', 'TCP')}"

    return ",".join(one(p) for p in obj["spec"].get("ports") or ()) or _NONE


def _external(obj: Object) -> str:
    spec = obj["spec"]
    if spec.get("type") == "ExternalName":
        return str(spec.get("externalName"))
    if spec.get("externalIPs"):
        return ",".join(spec["externalIPs"])
    return "<pending>" if spec.get("type") == "LoadBalancer" else _NONE


SERVICES = (
    NAME,
    _at(".spec.type", "Type"),
    _or_none(_at(".spec.clusterIP", "Cluster-IP")),
    Column("External-IP", _external),
    Column("Port(s)", _service_ports),
    AGE,
    Column("Selector", lambda obj: _labels(obj["spec"].get("selector")), priority=1),
)
NAMESPACES = (NAME, _at(".status.phase", "Status"), AGE)
SECRETS = (NAME, _at(".type", "Type"), Column("Data", lambda obj: len(obj.get("data") or ())), AGE)
CONFIG_MAPS = (
    NAME,
    Column("Data", lambda obj: len(obj.get("data") or ()) + len(obj.get("binaryData") or ())),
    AGE,
)
SERVICE_ACCOUNTS = (NAME, Column("Secrets", lambda obj: len(obj.get("secrets") or ())), AGE)


def _node_status(obj: Object) -> str:
    conditions = (obj.get("status") or {}).get("conditions") or ()
    ready = next((c.get("status") for c in conditions if c.get("type") == "Ready"), None)
    word = {"True": "Ready", None: "Unknown"}.get(ready, "NotReady")
    return word + (",SchedulingDisabled" if obj["spec"].get("unschedulable") else "")


def _roles(obj: Object) -> str:
    prefix = "node-role.kubernetes.io/"
    labels = obj["metadata"].get("labels") or {}
    return ",".join(sorted(k[len(prefix) :] for k in labels if k.startswith(prefix))) or _NONE


def _node_address(kind: str) -> Column:
    def read(obj: Object) -> str:
        addresses = (obj.get("status") or {}).get("addresses") or ()
        return next((a.get("address", "") for a in addresses if a.get("type") == kind), _NONE)

    return Column(kind.replace("IP", "-IP"), read, priority=1)


def _info(name: str, key: str) -> Column:
    return Column(
        name, lambda obj: ((obj.get("status") or {}).get("nodeInfo") or {}).get(key) or "<unknown>", priority=1
    )


NODES = (
    NAME,
    Column("Status", _node_status),
    Column("Roles", _roles),
    AGE,
    Column("Version", lambda obj: ((obj.get("status") or {}).get("nodeInfo") or {}).get("kubeletVersion", "")),
    _node_address("InternalIP"),
    _node_address("ExternalIP"),
    _info("OS-Image", "osImage"),
    _info("Kernel-Version", "kernelVersion"),
    _info("Container-Runtime", "containerRuntimeVersion"),
)


def _regarding(obj: Object) -> Object:
    return obj.get("involvedObject") or obj.get("regarding") or {}


def _last_seen(obj: Object) -> Any:
    series = obj.get("series") or {}
    return (
        series.get("lastObservedTime")
        or obj.get("lastTimestamp")
        or obj.get("deprecatedLastTimestamp")
        or obj.get("eventTime")
        or obj["metadata"].get("creationTimestamp")
    )


def _event_object(obj: Object) -> str:
    about = _regarding(obj)
    return f"{str(about.get('kind', '')).lower()}/{about.get('name', '')}"


def _event_source(obj: Object) -> str:
    old = obj.get("source") or obj.get("deprecatedSource") or {}
    return str(obj.get("reportingComponent") or obj.get("reportingController") or old.get("component", ""))


def _event_count(obj: Object) -> int:
    return int(obj.get("count") or obj.get("deprecatedCount") or (obj.get("series") or {}).get("count") or 1)


EVENTS = (
    Column("Last Seen", _last_seen, "date"),
    _at(".type", "Type"),
    _at(".reason", "Reason"),
    Column("Object", _event_object),
    Column("Subobject", lambda obj: _regarding(obj).get("fieldPath", ""), priority=1),
    Column("Source", _event_source, priority=1),
    Column("Message", lambda obj: (obj.get("message") or obj.get("note") or "").strip()),
    Column(
        "First Seen",
        lambda obj: obj.get("firstTimestamp") or obj.get("deprecatedFirstTimestamp") or obj.get("eventTime"),
        "date",
        1,
    ),
    Column("Count", _event_count, "integer", 1),
    Column("Name", lambda obj: obj["metadata"]["name"], priority=1, format="name"),
)  # fmt: skip


def _slice_ports(obj: Object) -> str:
    return ",".join(str(p.get("port", "*")) for p in obj.get("ports") or ()) or "<unset>"


def _slice_addresses(obj: Object) -> str:
    return ",".join(a for e in obj.get("endpoints") or () for a in e.get("addresses") or ()) or "<unset>"


ENDPOINT_SLICES = (
    NAME,
    _at(".addressType", "AddressType"),
    Column("Ports", _slice_ports),
    Column("Endpoints", _slice_addresses),
    AGE,
)


def _endpoints(obj: Object) -> str:
    pairs = [
        f"{address.get('ip')}:{port.get('port')}"
        for subset in obj.get("subsets") or ()
        for address in subset.get("addresses") or ()
        for port in subset.get("ports") or [dict[str, Any]()]
    ]
    return ",".join(pairs) or _NONE


ENDPOINTS = (NAME, Column("Endpoints", _endpoints), AGE)
LEASES = (NAME, _at(".spec.holderIdentity", "Holder"), AGE)
CRDS = (
    NAME,
    Column("Created At", lambda obj: obj["metadata"].get("creationTimestamp")),
)
