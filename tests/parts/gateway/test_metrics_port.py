"""The metrics on a port of their own: who scrapes reads them there, and clients do not."""

from __future__ import annotations

import asyncio

import pytest

from gateway.settings import Settings, SettingsError
from tests.parts.gateway.world import world
from tests.unit.proxy.harness import Client


async def test_with_a_port_of_their_own_clients_do_not_read_the_metrics() -> None:
    async with world(metrics_port=0) as w:
        assert (await w.get("/metrics")).status == 404
        scraper = Client(*await asyncio.open_connection("127.0.0.1", w.gateway.metrics_port))
        found = await scraper.ask(b"GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n")
        assert found.status == 200
        assert 'gthread_apiserver_requests_total{code="404",model=""} 1.0' in found.body.decode()
        assert (await scraper.ask(b"GET /v1/models HTTP/1.1\r\nHost: x\r\n\r\n")).status == 404
        scraper.writer.close()


async def test_without_one_they_are_where_the_rest_is() -> None:
    async with world() as w:
        assert (await w.get("/metrics")).status == 200


def test_a_port_that_is_none_is_refused() -> None:
    assert Settings.from_env({"METRICS_PORT": "9090"}).metrics_port == 9090
    with pytest.raises(SettingsError, match="METRICS_PORT='http' is not a port number"):
        Settings.from_env({"METRICS_PORT": "http"})
