"""`url`: where a model answers."""

from __future__ import annotations

from greenthread.reach import find_gateway
from kubectl_greenthread.options import Session
from kubectl_greenthread.output import out, tell
from kubectl_greenthread.reading import bare_name, read_models

TYPE_CHECKING = False
if TYPE_CHECKING:
    from greenthread.reach import Address


def url(session: Session, name: str | None, url: str) -> None:
    """Print MODEL's base URL for OpenAI clients; without MODEL the one of all models.

    It is an address that works from here: on one machine the gateway itself, on a cluster what a Gateway or Service
    announces, else the API server's proxy, which asks for your Kubernetes credentials.
    """
    if name is not None:
        read_models(session, [name])  # NoSuchModel
    address = gateway(session, url)
    path = f"/{session.namespace}/{bare_name(name)}/v1" if name is not None else "/v1"
    out(f"{address.url}{path}")
    if address.path:
        tell("This goes through the API server and needs its credentials, so clients of models cannot use it directly:")
        service = address.path.removesuffix("/proxy").rpartition("/")[2].partition(":")[0]
        namespace = address.path.split("/")[4]
        words = " ".join(
            ["kubectl", *session.kubectl_flags, "port-forward", "-n", namespace, f"svc/{service}", "8000:http"]
        )
        tell(f"  {words}   # then http://127.0.0.1:8000{path}")
    elif session.verbose:
        tell(f"found by {address.how}")


def gateway(session: Session, given: str) -> Address:
    """The gateway as it can be reached from here."""
    import os

    return find_gateway(session.client, given or os.environ.get("GREENTHREAD_URL", ""))
