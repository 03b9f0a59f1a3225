"""The HTTP/1.1 data path that sidecar and gateway share.

The owner implements a `Router` (and a `Gate`), makes a `ProxyServer` and starts it:

    server = ProxyServer(router, Settings(), on_finish=metrics.observe)
    port = await server.start("127.0.0.1", 8080)
    ...
    await server.stop(grace=30)
"""

from proxy.errors import error_body
from proxy.exchange import Exchange
from proxy.http1 import RequestHead
from proxy.routes import Forward, Gate, Handle, Later, Outcome, ReadBody, Refuse, Respond, Route, Router, Upstream
from proxy.server import Counters, ProxyServer
from proxy.settings import Settings

__all__ = [
    "Counters",
    "Exchange",
    "Forward",
    "Gate",
    "Handle",
    "Later",
    "Outcome",
    "ProxyServer",
    "ReadBody",
    "Refuse",
    "RequestHead",
    "Respond",
    "Route",
    "Router",
    "Settings",
    "Upstream",
    "error_body",
]
