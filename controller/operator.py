"""kopf as the framework that watches: it logs in as we do, feeds the controller, and writes nothing itself."""

from __future__ import annotations

import asyncio
import logging
import signal
from typing import Any

import kopf

from controller.core import WATCHED, Controller
from greenthread.kube.config import ClusterConfig
from greenthread.kube.resources import Resource

log = logging.getLogger(__name__)

#: Seconds: the server ends a watch after this time, and the client when it did not.
SERVER_TIMEOUT, CLIENT_TIMEOUT = 290, 330


class NoDiffs(kopf.DiffBaseStorage):
    """kopf would copy every object several times over to tell its handlers what changed: half of its work."""

    def build(self, **_: Any) -> kopf.BodyEssence:
        return kopf.BodyEssence()

    def fetch(self, **_: Any) -> None:
        return None

    def store(self, **_: Any) -> None:
        """Nothing is kept."""


def build(controller: Controller, config: ClusterConfig) -> tuple[kopf.OperatorRegistry, kopf.OperatorSettings]:
    """The handlers and settings of an operator that only listens."""
    registry = kopf.OperatorRegistry()
    settings = kopf.OperatorSettings()
    settings.posting.enabled = False
    settings.persistence.diffbase_storage = NoDiffs()
    settings.peering.standalone = True
    settings.scanning.disabled = True
    settings.watching.server_timeout = SERVER_TIMEOUT
    settings.watching.client_timeout = CLIENT_TIMEOUT
    settings.watching.chunk_size = 500
    settings.networking.request_timeout = 30
    # of kopf's own words only the warnings: it has one for each event
    for name in ("kopf", "kopf.objects"):
        logging.getLogger(name).setLevel(logging.WARNING)

    @kopf.on.login(registry=registry)
    def login(**_: Any) -> kopf.ConnectionInfo:
        return connection(config)

    for resource, selector in WATCHED.items():
        if selector:
            settings.watching.label_selectors[resource.group, resource.plural] = selector
        _listen(registry, resource, controller)
    return registry, settings


def _listen(registry: kopf.OperatorRegistry, resource: Resource, controller: Controller) -> None:
    @kopf.on.event(resource.group, resource.version, resource.plural, registry=registry, id=resource.plural)
    async def handle(event: Any, **_: Any) -> None:
        controller.observe(resource, event["type"], event["object"])


def connection(config: ClusterConfig) -> kopf.ConnectionInfo:
    """Our credentials in kopf's shape, read anew at every login (tokens change)."""
    scheme, _, token = (config.authorization() or "").partition(" ")
    certificate = config.login.certificate() if config.login and not config.client_certificate else None
    return kopf.ConnectionInfo(
        server=config.server,
        ca_data=config.ca,
        insecure=config.insecure,
        scheme=scheme or None,
        token=token or None,
        certificate_data=config.client_certificate,
        private_key_data=config.client_key,
        certificate_path=certificate[0] if certificate else None,
        private_key_path=certificate[1] if certificate else None,
        proxy_url=config.proxy() or None,
        default_namespace=config.namespace,
    )


async def watch(controller: Controller, config: ClusterConfig, stop: asyncio.Event) -> None:
    """Feeds the controller until `stop` is set."""
    registry, settings = build(controller, config)
    others = asyncio.all_tasks()
    tasks = await kopf.spawn_tasks(
        registry=registry,
        settings=settings,
        standalone=True,
        clusterwide=True,
        stop_flag=stop,
    )
    # kopf's own handlers would end kopf before our work has ended, and do not survive a second signal
    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    await kopf.run_tasks(tasks, ignored=others)
