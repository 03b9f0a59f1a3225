"""Defaults and checks of the built-in kinds, as far as the schema cannot say them."""

import base64
import binascii
import zlib
from typing import Any

from .errors import Cause, cause
from .metadata import dns_label
from .storage import Object


def namespace(obj: Object, old: Object | None, now: str) -> None:
    if old is None:
        obj["spec"] = {"finalizers": ["kubernetes"]}
        obj["status"] = {"phase": "Active"}
    name = obj["metadata"].get("name")
    if name:
        obj["metadata"].setdefault("labels", {})["kubernetes.io/metadata.name"] = name


def node(obj: Object, old: Object | None, now: str) -> None:
    obj.setdefault("spec", {})


_POD_DEFAULTS = {
    "restartPolicy": "Always",
    "terminationGracePeriodSeconds": 30,
    "dnsPolicy": "ClusterFirst",
    "securityContext": {},
    "schedulerName": "default-scheduler",
    "enableServiceLinks": True,
    "serviceAccountName": "default",
}


def pod(obj: Object, old: Object | None, now: str) -> None:
    spec = obj.get("spec")
    if not isinstance(spec, dict):
        return
    for key, value in _POD_DEFAULTS.items():
        if spec.get(key) is None:
            spec[key] = {} if value == {} else value
    for container in [*(spec.get("initContainers") or ()), *(spec.get("containers") or ())]:
        if isinstance(container, dict):
            _container(container)
    if old is None:
        obj["status"] = {"phase": "Pending", "qosClass": _quality(spec)}


def _container(container: Object) -> None:
    container.setdefault("resources", {})
    container.setdefault("terminationMessagePath", "/dev/termination-log")
    container.setdefault("terminationMessagePolicy", "File")
    image = str(container.get("image") or "")
    tag = image.rpartition("/")[2].partition(":")[2]
    container.setdefault("imagePullPolicy", "Always" if "@" not in image and tag in ("", "latest") else "IfNotPresent")
    for port in container.get("ports") or ():
        if isinstance(port, dict):
            port.setdefault("protocol", "TCP")
    for name in ("livenessProbe", "readinessProbe", "startupProbe"):
        probe = container.get(name)
        if isinstance(probe, dict):
            for key, value in (
                ("timeoutSeconds", 1),
                ("periodSeconds", 10),
                ("successThreshold", 1),
                ("failureThreshold", 3),
            ):
                probe.setdefault(key, value)
            if isinstance(probe.get("httpGet"), dict):
                probe["httpGet"].setdefault("path", "/")
                probe["httpGet"].setdefault("scheme", "HTTP")
    limits = container["resources"].get("limits") if isinstance(container["resources"], dict) else None
    if limits:
        requests = container["resources"].setdefault("requests", {})
        for key, value in limits.items():
            requests.setdefault(key, value)


def _quality(spec: Object) -> str:
    containers = [c for c in spec.get("containers") or () if isinstance(c, dict)]
    resources = [c.get("resources") or {} for c in containers]
    if not any((r.get("limits") or r.get("requests")) for r in resources):
        return "BestEffort"
    for r in resources:
        limits, requests = r.get("limits") or {}, r.get("requests") or {}
        if any(k not in limits or limits[k] != requests.get(k, limits[k]) for k in ("cpu", "memory")):
            return "Burstable"
    return "Guaranteed"


_POD_MUTABLE = (
    "`spec.containers[*].image`,`spec.initContainers[*].image`,`spec.activeDeadlineSeconds`,`spec.tolerations` (only "
    "additions to existing tolerations),`spec.terminationGracePeriodSeconds` (allow it to be set to 1 if it was "
    "previously negative)"
)


def check_pod(obj: Object, old: Object | None) -> list[Cause]:
    found: list[Cause] = []
    spec = obj.get("spec")
    if not isinstance(spec, dict):
        return [cause("FieldValueRequired", "spec")]
    if old is not None:
        if _fixed(spec) != _fixed(old["spec"]):
            found.append(
                cause("FieldValueForbidden", "spec", f"pod updates may not change fields other than {_POD_MUTABLE}")
            )
        return found
    if not spec.get("containers"):
        found.append(cause("FieldValueRequired", "spec.containers"))
    if spec.get("restartPolicy") not in ("Always", "OnFailure", "Never"):
        found.append(
            cause("FieldValueNotSupported", "spec.restartPolicy", 'supported values: "Always", "OnFailure", "Never"',
                  spec.get("restartPolicy"))
        )  # fmt: skip
    volumes = set()
    for index, volume in enumerate(spec.get("volumes") or ()):
        name = volume.get("name", "")
        here = f"spec.volumes[{index}].name"
        if not name:
            found.append(cause("FieldValueRequired", here))
        elif wrong := dns_label(name):
            found.append(cause("FieldValueInvalid", here, wrong, name))
        elif name in volumes:
            found.append(cause("FieldValueDuplicate", here, value=name))
        volumes.add(name)
    seen: set[str] = set()
    for kind in ("initContainers", "containers"):
        for index, container in enumerate(spec.get(kind) or ()):
            _check_container(container, f"spec.{kind}[{index}]", seen, volumes, found)
    return found


def _fixed(spec: Object) -> Object:
    free = (
        "activeDeadlineSeconds",
        "tolerations",
        "terminationGracePeriodSeconds",
        "nodeName",
        "containers",
        "initContainers",
    )
    fixed = {key: value for key, value in spec.items() if key not in free}
    for kind in ("containers", "initContainers"):
        fixed[kind] = [{k: v for k, v in c.items() if k != "image"} for c in spec.get(kind) or ()]
    return fixed


def _check_container(container: Object, here: str, seen: set[str], volumes: set[str], found: list[Cause]) -> None:
    name = container.get("name", "")
    if not name:
        found.append(cause("FieldValueRequired", f"{here}.name"))
    elif wrong := dns_label(name):
        found.append(cause("FieldValueInvalid", f"{here}.name", wrong, name))
    elif name in seen:
        found.append(cause("FieldValueDuplicate", f"{here}.name", value=name))
    seen.add(name)
    if not container.get("image"):
        found.append(cause("FieldValueRequired", f"{here}.image"))
    ports: set[str] = set()
    for index, port in enumerate(container.get("ports") or ()):
        number = port.get("containerPort")
        place = f"{here}.ports[{index}]"
        if not number:
            found.append(cause("FieldValueRequired", f"{place}.containerPort"))
        elif not 0 < number < 65536:
            found.append(
                cause("FieldValueInvalid", f"{place}.containerPort", "must be between 1 and 65535, inclusive", number)
            )
        if port.get("name"):
            if port["name"] in ports:
                found.append(cause("FieldValueDuplicate", f"{place}.name", value=port["name"]))
            ports.add(port["name"])
    for index, env in enumerate(container.get("env") or ()):
        if not env.get("name"):
            found.append(cause("FieldValueRequired", f"{here}.env[{index}].name"))
    for index, mount in enumerate(container.get("volumeMounts") or ()):
        place = f"{here}.volumeMounts[{index}]"
        if not mount.get("name"):
            found.append(cause("FieldValueRequired", f"{place}.name"))
        elif mount["name"] not in volumes:
            found.append(cause("FieldValueNotFound", f"{place}.name", value=mount["name"]))
        if not mount.get("mountPath"):
            found.append(cause("FieldValueRequired", f"{place}.mountPath"))


def service(obj: Object, old: Object | None, now: str) -> None:
    spec = obj.get("spec")
    if not isinstance(spec, dict):
        return
    spec.setdefault("type", "ClusterIP")
    spec.setdefault("sessionAffinity", "None")
    for port in spec.get("ports") or ():
        if isinstance(port, dict):
            port.setdefault("protocol", "TCP")
            if "port" in port:
                port.setdefault("targetPort", port["port"])
    if spec["type"] != "ExternalName":
        spec.setdefault("internalTrafficPolicy", "Cluster")
        spec.setdefault("ipFamilies", ["IPv4"])
        spec.setdefault("ipFamilyPolicy", "SingleStack")
        before = (old or {}).get("spec", {}).get("clusterIP")
        if not spec.get("clusterIP"):
            spec["clusterIP"] = before or _address(obj["metadata"])
        spec["clusterIPs"] = [spec["clusterIP"]]
    if old is None:
        obj["status"] = {"loadBalancer": {}}


def _address(metadata: Object) -> str:
    """An address of 10.96.0.0/12 that is the same for the same object. Nothing answers there on one machine."""
    number = zlib.crc32(metadata.get("uid", "").encode()) % (2**20 - 512) + 256
    return f"10.{96 + (number >> 16)}.{number >> 8 & 255}.{number & 255}"


def check_service(obj: Object, old: Object | None) -> list[Cause]:
    found: list[Cause] = []
    spec = obj.get("spec")
    if not isinstance(spec, dict):
        return [cause("FieldValueRequired", "spec.ports")]
    if spec.get("type") not in ("ClusterIP", "NodePort", "LoadBalancer", "ExternalName"):
        found.append(
            cause("FieldValueNotSupported", "spec.type",
                  'supported values: "ClusterIP", "ExternalName", "LoadBalancer", "NodePort"', spec.get("type"))
        )  # fmt: skip
    ports = spec.get("ports") or []
    if not ports and spec.get("clusterIP") != "None" and spec.get("type") != "ExternalName":
        found.append(cause("FieldValueRequired", "spec.ports"))
    names: set[str] = set()
    for index, port in enumerate(ports):
        here = f"spec.ports[{index}]"
        number = port.get("port")
        if not isinstance(number, int) or not 0 < number < 65536:
            found.append(
                cause("FieldValueInvalid", f"{here}.port", "must be between 1 and 65535, inclusive", number or 0)
            )
        name = port.get("name", "")
        if not name and len(ports) > 1:
            found.append(cause("FieldValueRequired", f"{here}.name"))
        elif name and (wrong := dns_label(name)):
            found.append(cause("FieldValueInvalid", f"{here}.name", wrong, name))
        elif name in names:
            found.append(cause("FieldValueDuplicate", f"{here}.name", value=name))
        names.add(name)
    was = (old or {}).get("spec", {})
    if was.get("clusterIP") not in (None, spec.get("clusterIP")) and was.get("type") == spec.get("type"):
        value = [spec.get("clusterIP")]
        found.append(cause("FieldValueInvalid", "spec.clusterIPs[0]", "may not change once set", value))
    return found


def secret(obj: Object, old: Object | None, now: str) -> None:
    plain = obj.pop("stringData", None)
    if isinstance(plain, dict):
        data = obj.setdefault("data", {})
        if isinstance(data, dict):
            for key, value in plain.items():
                data[key] = base64.b64encode(str(value).encode()).decode()
    obj.setdefault("type", "Opaque")


def _check_keys(data: Any, path: str, found: list[Cause]) -> int:
    size = 0
    for key, value in (data or {}).items():
        if (
            not key
            or len(key) > 253
            or not all(c.isascii() and (c.isalnum() or c in "-_.") for c in key)
            or key in (".", "..")
        ):
            found.append(
                cause("FieldValueInvalid", f"{path}[{key}]",
                      "a valid config key must consist of alphanumeric characters, '-', '_' or '.' (e.g. 'key.name',  "
                      "or 'KEY_NAME',  or 'key-name', regex used for validation is '[-._a-zA-Z0-9]+')", key)
            )  # fmt: skip
        size += len(str(value).encode())
    return size


def check_secret(obj: Object, old: Object | None) -> list[Cause]:
    found: list[Cause] = []
    size = _check_keys(obj.get("data"), "data", found)
    for key, value in (obj.get("data") or {}).items():
        try:
            base64.b64decode(value, validate=True)
        except (binascii.Error, ValueError, TypeError):
            found.append(cause("FieldValueInvalid", f"data[{key}]", "must be base64", value))
    if size > 1024 * 1024 * 4 // 3:
        found.append(cause("FieldValueTooLong", "data", "may not be more than 1048576 bytes"))
    if old is not None:
        if obj.get("type") != old.get("type"):
            found.append(cause("FieldValueInvalid", "type", "field is immutable", obj.get("type")))
        found += _immutable(obj, old)
    return found


def _immutable(obj: Object, old: Object) -> list[Cause]:
    found = []
    if old.get("immutable"):
        if not obj.get("immutable"):
            found.append(cause("FieldValueForbidden", "immutable", "field is immutable when `immutable` is set"))
        found += [
            cause("FieldValueForbidden", key, "field is immutable when `immutable` is set")
            for key in ("data", "binaryData")
            if obj.get(key) != old.get(key)
        ]
    return found


def check_config_map(obj: Object, old: Object | None) -> list[Cause]:
    found: list[Cause] = []
    size = _check_keys(obj.get("data"), "data", found) + _check_keys(obj.get("binaryData"), "binaryData", found)
    if size > 1024 * 1024:
        found.append(cause("FieldValueTooLong", "", "may not be more than 1048576 bytes"))
    if old is not None:
        found += _immutable(obj, old)
    return found


def event(obj: Object, old: Object | None, now: str) -> None:
    for key in ("firstTimestamp", "lastTimestamp", "eventTime"):
        obj.setdefault(key, None)
    obj.setdefault("source", {})
    obj.setdefault("reportingComponent", "")
    obj.setdefault("reportingInstance", "")


def check_event(obj: Object, old: Object | None) -> list[Cause]:
    about = obj.get("involvedObject") or {}
    here = obj["metadata"].get("namespace", "")
    named = about.get("namespace", "")
    if named != here and not (not named and here == "default"):
        return [cause("FieldValueInvalid", "involvedObject.namespace", "does not match event.namespace", named)]
    return []


def check_new_event(obj: Object, old: Object | None) -> list[Cause]:
    if old is not None:
        return []
    wanted = ("eventTime", "reportingController", "reportingInstance", "action", "reason")
    return [cause("FieldValueRequired", key) for key in wanted if not obj.get(key)]


_EVENT_NAMES = {
    "regarding": "involvedObject",
    "note": "message",
    "reportingController": "reportingComponent",
    "deprecatedSource": "source",
    "deprecatedFirstTimestamp": "firstTimestamp",
    "deprecatedLastTimestamp": "lastTimestamp",
    "deprecatedCount": "count",
}


def event_to_core(obj: Object) -> Object:
    """An event of events.k8s.io as the core group stores it."""
    out = {_EVENT_NAMES.get(key, key): value for key, value in obj.items()}
    out["apiVersion"] = "v1"
    event(out, None, "")
    out.setdefault("involvedObject", {})
    return out


def event_from_core(obj: Object) -> Object:
    """A core event as events.k8s.io shows it."""
    back = {core: new for new, core in _EVENT_NAMES.items()}
    return {back.get(key, key): value for key, value in obj.items()}


def endpoint_slice(obj: Object, old: Object | None, now: str) -> None:
    for port in obj.get("ports") or ():
        if isinstance(port, dict):
            port.setdefault("name", "")
            port.setdefault("protocol", "TCP")


def check_endpoint_slice(obj: Object, old: Object | None) -> list[Cause]:
    found: list[Cause] = []
    kind = obj.get("addressType")
    if kind not in ("IPv4", "IPv6", "FQDN"):
        if not kind:
            found.append(cause("FieldValueRequired", "addressType"))
        else:
            found.append(
                cause("FieldValueNotSupported", "addressType", 'supported values: "FQDN", "IPv4", "IPv6"', kind)
            )
    if old is not None and old.get("addressType") != kind:
        found.append(cause("FieldValueInvalid", "addressType", "field is immutable", kind))
    for index, endpoint in enumerate(obj.get("endpoints") or ()):
        if not endpoint.get("addresses"):
            found.append(
                cause("FieldValueRequired", f"endpoints[{index}].addresses", "must contain at least 1 address")
            )
    return found


def check_lease(obj: Object, old: Object | None) -> list[Cause]:
    found: list[Cause] = []
    spec = obj.get("spec") or {}
    seconds, moves = spec.get("leaseDurationSeconds"), spec.get("leaseTransitions")
    if seconds is not None and seconds <= 0:
        found.append(cause("FieldValueInvalid", "spec.leaseDurationSeconds", "must be greater than 0", seconds))
    if moves is not None and moves < 0:
        found.append(cause("FieldValueInvalid", "spec.leaseTransitions", "must be greater than or equal to 0", moves))
    return found
