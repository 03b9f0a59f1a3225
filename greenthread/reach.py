"""How to reach the gateway, or another HTTP service of the installation, from where a person sits.

On one machine directly; on a cluster at an address that was given, at one that Models, a Gateway or a Service announce,
else through the API server's proxy, which whoever may `get services/proxy` can use. Blocking.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from greenthread import http1
from greenthread.kube.blocking import Client, Stream
from greenthread.kube.core import no_answer
from greenthread.kube.errors import ApiError, Forbidden, KubeError, NotFound
from greenthread.kube.resources import MODELS, PODS, SERVICES, Resource
from greenthread.names import DEFAULT_NAMESPACE
from greenthread.values import dataclass

SERVICE = "greenthread-apiserver"
"""The gateway's Service."""
LABELS = "app.kubernetes.io/name=greenthread,app.kubernetes.io/component=gateway"
"""Of the gateway's Service and of its pods, in a cluster and on one machine."""
GATEWAYS = Resource("gateway.networking.k8s.io", "v1", "gateways", "Gateway")
GATEWAY = "greenthread"
MAX_ANSWER = 64 * 1024 * 1024
"""Most bytes of an answer that is read whole."""
_LOOPBACK = ("127.", "localhost", "[::1]", "::1")


class NoGateway(KubeError):
    """There is no way to the gateway; the message says what was tried and what to do."""


@dataclass(frozen=True, slots=True)
class Address:
    """Where a service answers: at a URL of its own, or (`path`) behind the API server."""

    url: str
    #: How it was found, for people.
    how: str
    #: Path at the API server, when it is reached through that.
    path: str = ""

    def open(
        self,
        client: Client,
        method: str,
        path: str,
        body: bytes | None = None,
        headers: Mapping[str, str] | None = None,
        params: Mapping[str, str] | None = None,
        timeout: float = 600.0,
    ) -> Stream:
        """One request, with an answer that is read as it comes. Raises Unreachable, ConfigError."""
        fields = {"content-type": "application/json"} if body is not None else {}
        fields |= headers or {}
        if self.path:
            return client.open(method, f"{self.path}{path}", params or {}, fields, body, timeout)
        return _direct(self.url, method, path, fields, body, params or {}, timeout)


def _direct(
    url: str,
    method: str,
    path: str,
    headers: Mapping[str, str],
    body: bytes | None,
    params: Mapping[str, str],
    timeout: float,
) -> Stream:
    """The answer of a server that is no API server."""
    from greenthread.kube.core import query

    scheme, host, port, base = http1.split_address(url)
    tls = None
    if scheme == "https":
        import ssl

        tls = ssl.create_default_context()
    connection = http1.Connection(host, port, timeout=timeout, connect_timeout=5.0, tls=tls)
    fields = {"accept": "*/*", "accept-encoding": "identity", "user-agent": "greenthread", **headers}
    target = f"{base}{path}" + (f"?{query(params)}" if params else "")

    def lost(error: OSError) -> KubeError:
        found = no_answer(url, error)
        return type(found)(str(found).replace("API server", "server").replace(
            "is the cluster running, is this the right context?", "is it the right address?"))  # fmt: skip

    return Stream(connection, method, target, fields, body, lost, MAX_ANSWER)


def find_gateway(client: Client, url: str = "", namespace: str = "") -> Address:
    """The gateway. `url`: an address that was given; `namespace`: of the installation, if it is known.

    Raises NoGateway, and the errors of `greenthread.kube.errors` when the cluster itself cannot be asked.
    """
    if url:
        try:
            http1.split_address(url)
        except ValueError as error:
            raise NoGateway(f"--url: {error}") from None
        return Address(url.rstrip("/").removesuffix("/v1"), "the given address")
    here = _on_this_machine(client) or _told_by_models(client)
    if here is not None:
        return here
    namespace = namespace or DEFAULT_NAMESPACE
    announced = _announced_by_gateway(client, namespace)
    if announced is not None:
        return announced
    return _by_service(client, namespace)


def _is_on_this_machine(client: Client) -> bool:
    return http1.split_address(client.config.server)[1].startswith(_LOOPBACK)


def _on_this_machine(client: Client) -> Address | None:
    """The gateway's own pod, where `greenthread up` runs it."""
    if not _is_on_this_machine(client):
        return None
    try:
        pods = client.list(PODS, DEFAULT_NAMESPACE, LABELS).items
    except ApiError:
        return None
    for pod in pods:
        address = str((pod.get("status") or {}).get("podIP") or "")
        port = _env(pod, "HTTP_PORT")
        if address.startswith(_LOOPBACK) and port.isdecimal():
            return Address(f"http://{address}:{port}", "the gateway on this machine")
    return None


def _told_by_models(client: Client) -> Address | None:
    """The address in the Models' `status.url`, unless only pods of the cluster can use it."""
    for namespace in (None, client.config.namespace):
        try:
            models = client.list(MODELS, namespace).items
        except ApiError:
            continue
        for model in models:
            url = str((model.get("status") or {}).get("url") or "")
            try:
                scheme, host, port, _ = http1.split_address(url)
            except ValueError:
                continue
            inside = "." not in host and ":" not in host and host != "localhost"
            inside = inside or host.endswith((".svc", ".cluster.local"))
            if inside or (host.startswith(_LOOPBACK) and not _is_on_this_machine(client)):
                return None
            shown = f"[{host}]" if ":" in host else host
            default = 443 if scheme == "https" else 80
            return Address(f"{scheme}://{shown}" + (f":{port}" if port != default else ""), "the Models' own word")
        break
    return None


def _env(pod: Mapping[str, Any], name: str) -> str:
    for container in pod["spec"].get("containers") or ():
        for variable in container.get("env") or ():
            if variable.get("name") == name:
                return str(variable.get("value") or "")
    return ""


def _announced_by_gateway(client: Client, namespace: str) -> Address | None:
    try:
        gateway = client.get(GATEWAYS, GATEWAY, namespace)
    except (NotFound, Forbidden):  # also when there is no such kind
        return None
    addresses = (gateway.get("status") or {}).get("addresses") or []
    listeners = gateway["spec"].get("listeners") or []
    listener = next((each for each in listeners if each.get("protocol") in ("HTTP", "HTTPS")), None)
    if not addresses or listener is None:
        return None
    host = str(addresses[0].get("value") or "")
    if not host:
        return None
    scheme = str(listener["protocol"]).lower()
    host = f"[{host}]" if ":" in host else host
    return Address(f"{scheme}://{host}:{listener.get('port', 80)}", f"the Gateway {namespace}/{GATEWAY}")


def _by_service(client: Client, namespace: str) -> Address:
    service = find_service(client, SERVICE, LABELS, namespace)
    if service is None:
        raise NoGateway(
            f"there is no Service {SERVICE} in namespace {namespace}, and no Gateway that has an address: is "
            "GreenThread installed there? Else pass its address: --url http://HOST"
        )
    ports = service["spec"].get("ports") or [{}]
    port = int(ports[0].get("port") or 80)
    meta = service["metadata"]
    for ingress in ((service.get("status") or {}).get("loadBalancer") or {}).get("ingress") or ():
        host = str(ingress.get("hostname") or ingress.get("ip") or "")
        if host:
            host = f"[{host}]" if ":" in host else host
            return Address(f"http://{host}:{port}", f"the Service {meta['namespace']}/{meta['name']}")
    return through_api_server(client, service)


def through_api_server(client: Client, service: Mapping[str, Any]) -> Address:
    """A Service by the API server's proxy."""
    meta, ports = service["metadata"], service["spec"].get("ports") or [{}]
    port = next((each for each in ports if each.get("name") in ("http", "web", "http-web")), ports[0])
    path = f"{SERVICES.path(meta['namespace'], meta['name'])}:{port.get('name') or port.get('port') or 80}/proxy"
    how = f"the Service {meta['namespace']}/{meta['name']} through the API server"
    return Address(f"{client.config.server}{path}", how, path)


def find_service(client: Client, name: str, label: str, namespace: str) -> Mapping[str, Any] | None:
    """A Service by its name in a namespace, else by its label anywhere; None if there is none that may be seen."""
    try:
        return client.get(SERVICES, name, namespace)
    except (NotFound, Forbidden):
        pass
    for where in (None, namespace):
        try:
            found = client.list(SERVICES, where, label).items
        except Forbidden:
            continue
        if found:
            return found[0]
    return None
