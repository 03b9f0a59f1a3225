"""A pod's own ServiceAccount: the token that a kubelet would mount, in a kubeconfig of the pod's own."""

from __future__ import annotations

import asyncio
import json
import logging
import os
from base64 import b64encode
from datetime import datetime
from pathlib import Path

from greenthread.clock import Clock, parse_time
from greenthread.kube.aio import AsyncClient
from greenthread.kube.config import ClusterConfig
from greenthread.kube.core import Object
from greenthread.kube.errors import ApiError, KubeError, NotFound
from greenthread.kube.resources import Resource
from localcluster.supervisor.container_spec import Refused

log = logging.getLogger(__name__)

#: Seconds for which a token is asked for, and before a failed request for one is made again.
LIFETIME, RETRY = 3600, 2.0
#: After this part of its life a token is replaced, as kubelets do it.
RENEW_AT = 0.8


class Account:
    """Call `obtain` before the pod's containers start, and let `keep` run as long as they do."""

    def __init__(self, pod: Object, client: AsyncClient, clock: Clock, cluster: ClusterConfig, folder: Path) -> None:
        """`client` may make tokens; `cluster` is what the pod's programs speak to; `folder` is the pod's own."""
        metadata = pod["metadata"]
        self.name: str = pod["spec"]["serviceAccountName"]
        self._namespace: str = metadata["namespace"]
        self._label = f"{self._namespace}/{metadata['name']}"
        # the API server adds the name of the node that the pod is bound to
        self._bound_to = {"kind": "Pod", "apiVersion": "v1", "name": metadata["name"], "uid": metadata["uid"]}
        self._client, self._clock, self._cluster = client, clock, cluster
        self._folder = folder / "account"
        self._renew_in = 0.0

    @property
    def kubeconfig(self) -> Path:
        """For the containers' KUBECONFIG."""
        return self._folder / "kubeconfig"

    async def obtain(self) -> None:
        """Writes the kubeconfig and a token. Waits for an API that does not answer; raises Refused."""
        self._folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        while True:
            try:
                await self._renew()
                break
            except NotFound:
                raise Refused(f"there is no ServiceAccount {self._namespace}/{self.name}: create it") from None
            except KubeError as error:
                if isinstance(error, ApiError) and error.status in (403, 422):
                    raise Refused(f"no token for the ServiceAccount {self.name}: {error}") from None
                log.warning("%s: no token for ServiceAccount %s yet: %s", self._label, self.name, error)
            await asyncio.sleep(RETRY)
        _write(self.kubeconfig, json.dumps(kubeconfig(self._cluster, self._namespace, self.name), indent=1))

    async def keep(self) -> None:
        """Replaces the token in time, until cancelled."""
        while True:
            await asyncio.sleep(self._renew_in)
            try:
                await self._renew()
            except KubeError as error:
                log.warning("%s: the token of ServiceAccount %s is not renewed: %s", self._label, self.name, error)
                self._renew_in = RETRY

    async def _renew(self) -> None:
        tokens = Resource("", "v1", f"serviceaccounts/{self.name}/token", "TokenRequest")
        spec = {"expirationSeconds": LIFETIME, "boundObjectRef": self._bound_to}
        answer = await self._client.create(
            tokens, {"apiVersion": "authentication.k8s.io/v1", "spec": spec}, self._namespace
        )
        _write(self._folder / "token", answer["status"]["token"])
        self._renew_in = renew_in(answer["status"]["expirationTimestamp"], self._clock.now())


def renew_in(expires: str, now: datetime) -> float:
    """Seconds until a new token's replacement is due."""
    return max(RETRY, (parse_time(expires) - now).total_seconds() * RENEW_AT)


def kubeconfig(cluster: ClusterConfig, namespace: str, name: str) -> Object:
    """Speaks to the cluster as the account; programs read the file `token` beside it for each request."""
    there: Object = {"server": cluster.server}
    if cluster.ca is not None:
        there["certificate-authority-data"] = b64encode(cluster.ca).decode()
    if cluster.tls_server_name:
        there["tls-server-name"] = cluster.tls_server_name
    if cluster.insecure:
        there["insecure-skip-tls-verify"] = True
    context = {"cluster": "here", "user": name, "namespace": namespace}
    return {
        "apiVersion": "v1",
        "kind": "Config",
        "current-context": "pod",
        "clusters": [{"name": "here", "cluster": there}],
        "users": [{"name": name, "user": {"tokenFile": "token"}}],
        "contexts": [{"name": "pod", "context": context}],
    }


def _write(file: Path, text: str) -> None:
    """Whole or not at all, and for its owner only."""
    temporary = file.with_suffix(".new")
    temporary.unlink(missing_ok=True)
    with os.fdopen(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as opened:
        opened.write(text)
    temporary.replace(file)
